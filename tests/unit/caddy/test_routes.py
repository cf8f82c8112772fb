"""Several public services of one application, behind a real Caddy."""

import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.caddy import real
from tests.unit.caddy.real import DOMAIN, Front

pytestmark = pytest.mark.skipif(not real.CADDY, reason="no caddy here")

SERVICES: dict[str, Any] = {
    "api": {"path": "/api/*", "strip": True, "port": 3000, "replicas": 2},
    "v2": {"path": "/api/v2/*", "port": 3000, "replicas": 1},
    "exact": {"path": "/api/hook", "port": 3000, "replicas": 1},
    "admin": {"domain": "admin.acme.com", "port": 80, "replicas": 1, "health": "tcp"},
    "docs": {"domain": "docs.acme.com", "path": "/docs*", "port": 80, "health": ["true"]},
}


@pytest.fixture
def caddy(tmp_path: Path) -> Iterator[Front]:
    with real.caddy(tmp_path / "caddy") as front:
        yield front


def test_each_path_and_domain_has_its_service(caddy: Front) -> None:
    app = caddy.application(services=SERVICES)
    for slot in ("blue", "green"):
        caddy.write(app, slot)
    caddy.configure()
    caddy.replicas(app, "blue")
    caddy.start()
    for path, who, asked in (
        ("/", "web", "/"),
        ("/apis", "web", "/apis"),
        ("/api", "api", "/"),
        ("/api/", "api", "/"),
        ("/api/a/b?c=d", "api", "/a/b?c=d"),
        ("/API/a", "api", "/a"),
        ("/api/v2", "v2", "/api/v2"),
        ("/api/v2/a", "v2", "/api/v2/a"),
        ("/api/v22", "api", "/v22"),
        ("/api/hook", "exact", "/api/hook"),
        ("/api/hook/a", "api", "/hook/a"),
        # Caddy reads several slashes as one.
        ("//api/a", "api", "/a"),
    ):
        status, said = caddy.ask(path)
        assert (status, said.get("who"), said.get("path")) == (200, f"{who} in blue", asked), path
        prefix = "/api" if who == "api" else None
        assert said["headers"].get("X-Forwarded-Prefix") == prefix
        assert said["headers"]["Host"] == DOMAIN
    assert caddy.who("/any", "admin.acme.com") == "admin in blue"
    assert caddy.who("/docs/a", "docs.acme.com") == "docs in blue"
    assert caddy.who("/docs", "docs.acme.com") == "docs in blue"
    # No service has the other paths of that domain.
    assert caddy.who("/", "docs.acme.com") == "404"
    assert caddy.who("/api/a", "admin.acme.com") == "admin in blue"


PAGES = [("/", DOMAIN), ("/api/a", DOMAIN), ("/", "admin.acme.com")]


@pytest.mark.promise("The public services of an application switch to a release at one moment, and "
                     "no request fails")  # fmt: skip
def test_all_services_switch_at_once_and_no_request_fails(caddy: Front) -> None:
    services = {name: SERVICES[name] for name in ("api", "admin")}
    app = caddy.application(services=services)
    for slot in ("blue", "green"):
        caddy.write(app, slot)
    caddy.configure()
    old = caddy.replicas(app, "blue")
    caddy.start()
    time.sleep(1.5)
    with caddy.load(*PAGES) as found:
        time.sleep(0.5)
        caddy.replicas(app, "green")
        # As a release waits until Caddy has noticed the new replicas.
        time.sleep(1.6)
        caddy.point("green")
        switched = time.monotonic()
        time.sleep(1)
        old.close()
        time.sleep(0.5)
    assert not [one for one in found if " in " not in one[2]]
    before = {who for began, _, who in found if began < switched - 0.3}
    after = {who for began, _, who in found if began > switched}
    assert before == {"web in blue", "api in blue", "admin in blue"}
    assert after == {"web in green", "api in green", "admin in green"}


def test_a_service_that_dies_is_left_alone_without_http_checks(caddy: Front) -> None:
    """The others answer in its place: a refused connection is tried at another one."""
    app = caddy.application(health="tcp", services={"api": SERVICES["api"] | {"health": "tcp"}})
    caddy.write(app, "blue")
    caddy.configure()
    caddy.replicas(app, "blue", only=["api"])
    first, second = app.ports("blue", 2)
    with real.replica(first, "web in blue"):
        caddy.start()
        with caddy.load(*PAGES[:2]) as found:
            with real.replica(second, "web in blue"):
                time.sleep(0.5)
            time.sleep(1)
    lost = [one for one in found if " in blue" not in one[2]]
    # Debian's Caddy loses a request with a body whose replica refuses the connection.
    assert not lost or real.version() < (2, 8)


def test_a_release_that_serves_is_reached_until_the_next_one(caddy: Front) -> None:
    """A run gives an application its first public service; the release before has none."""
    plain = caddy.application()
    caddy.configure(routed=False)
    caddy.upstreams.joinpath("shop.blue.caddy").write_text("health_uri /healthz\n")
    caddy.replicas(plain, "blue")
    caddy.start()
    time.sleep(1.2)
    with caddy.load(*PAGES[:2]) as found:
        time.sleep(0.3)
        app = caddy.application(services=SERVICES, protocol="h2c", health="tcp")
        caddy.first_routes()
        caddy.configure()
        caddy.reload()
        time.sleep(1)
        assert caddy.who("/api/a") == "web in blue"
        # The release.
        caddy.write(app, "green")
        caddy.replicas(app, "green")
        caddy.reload()
        time.sleep(1.6)
        caddy.point("green")
        time.sleep(0.5)
        assert caddy.who("/api/a") == "api in green"
        assert caddy.who("/a") == "web in green"
        # A rollback.
        caddy.point("blue")
        assert caddy.who("/api/a") == "web in blue"
    failed = [one for one in found if " in " not in one[2]]
    # A reload closes connections that wait to be accepted, unless the kernel hands them over
    # (tcp_migrate_req), as on a host.
    closed = ("ConnectionReset", "RemoteDisconnected")
    assert not [one for one in failed if not one[2].startswith(closed)]


def test_protocols(caddy: Front, tls: ssl.SSLContext) -> None:
    names: list[str | None] = []
    tls.sni_callback = lambda _, name, __: names.append(name)
    services = {
        "grpc": {"domain": "grpc.acme.com", "port": 50051, "protocol": "h2c", "health": "tcp"},
        # Caddy checks its health over HTTP/2.
        "h2c": {"domain": "h2c.acme.com", "port": 80, "protocol": "h2c", "replicas": 1},
        "tls": {"domain": "tls.acme.com", "port": 443, "protocol": "https"},
    }
    app = caddy.application(services=services)
    caddy.write(app, "blue")
    caddy.configure()
    caddy.replicas(app, "blue", tls=tls)
    caddy.start()
    time.sleep(1.2)
    for _ in range(9):
        assert caddy.who("/", "grpc.acme.com") == "grpc in blue"
        assert caddy.who("/", "h2c.acme.com") == "h2c in blue"
    status, said = caddy.ask("/", "tls.acme.com")
    assert (status, said["who"], said["headers"]["Host"]) == (200, "tls in blue", "tls.acme.com")
    assert {*names} == {"tls.acme.com"}

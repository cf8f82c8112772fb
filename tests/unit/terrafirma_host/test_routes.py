"""The files in which a release writes its routes; tests/unit/caddy/test_routes.py runs them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import proxy, routes
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application, Serving

from tests.unit.settings import application
from tests.unit.terrafirma_host.applications import described

SERVICES: dict[str, Any] = {
    "api": {"path": "/api/*", "strip": True, "port": 3000, "replicas": 3},
    "admin": {"domain": "admin.acme.com", "health": "tcp"},
    "hook": {"domain": "admin.acme.com", "path": "/hook", "protocol": "h2c", "health": ["up"]},
}
PROJECT = {"source": "examples/compose", "compose": ["compose.yaml"], "service": "web"}


def shop(**fields: Any) -> Application:
    return described(**PROJECT | {"domain": "shop.acme.com", "services": SERVICES} | fields)


def test_an_application_is_seen_from_each_of_its_services() -> None:
    app = shop()
    web, admin, api, hook = app.fronts
    assert web is app
    assert [one.service for one in app.fronts] == ["web", "admin", "api", "hook"]
    assert [one.domain for one in (api, admin)] == ["shop.acme.com", "admin.acme.com"]
    assert (api.page, api.page_is_good) == ("/api/healthz", True)
    assert (admin.page, admin.page_is_good) == ("/", False)
    assert (hook.page, hook.page_is_good) == ("/hook", False)
    assert app.counted == "4 replicas of web, 2 of admin, 3 of api, 2 of hook"
    assert app.checked == "answers /healthz or accepts connections or passes its health check"
    assert described().counted == "4 replicas"
    # Each has ports of its own.
    assert len({*app.all_ports("blue"), *app.all_ports("green")}) == 22


def test_the_page_is_the_same_on_the_host() -> None:
    for service in (
        {"path": "/api/*", "strip": True},
        {"path": "/api/*", "strip": True, "health": "tcp"},
        {"path": "/API/*", "health_path": "/api/up"},
        {"path": "/api/*"},
        {"path": "/api*", "health": ["true"]},
        {"domain": "a.acme.com"},
        {"domain": "a.acme.com", "health": "container"},
    ):
        _, front = shop(services={"api": service}).fronts
        fields: dict[str, Any] = PROJECT | {"services": {"api": service}}
        asked = application(**fields).public["api"].page
        assert (front.page, front.page_is_good) == asked


def test_serving_knows_the_ports_of_all(app: Application) -> None:
    """Without further services the record is as earlier versions of the program know it."""
    both = shop()
    serving = Serving.of(both, "r1", "green")
    assert [*serving.ports] == both.all_ports("green")
    both = replace(both, name=app.name)
    serving.save(both)
    loaded = Serving.load(both)
    assert loaded
    assert loaded.ports == serving.ports
    Serving.of(app, "r2", "blue").save(app)
    saved = json.loads((app.directory / "serving.json").read_text())
    assert saved.keys() == {"release", "slot", "replicas", "port"}


def test_what_a_slot_was_asked_is_in_its_file() -> None:
    app = shop(health=["sh", "-c", "a `b` {c}"], protocol="https", health_headers={"A": "b c"})
    text = routes.files(app, "blue")["api.blue.routes"]
    assert routes.as_asked(replace(app, public={}, health="http", protocol="http"), text) == app
    # Of a service that goes on, domain and paths are those of now.
    moved = shop(services={"api": SERVICES["api"] | {"path": "/v1/*", "health_path": "/up"}})
    asked = routes.as_asked(moved, text)
    assert asked
    assert asked.public["api"].paths == ("/v1", "/v1/*")
    assert asked.public["api"].health_path == "/healthz"
    assert [*asked.public] == [*app.public]
    assert asked.fronts[2].page == "/v1/healthz"
    assert routes.as_asked(app, "reverse_proxy {\n}\n") is None
    for nonsense in (f"{routes.ASKED}{{}}", f"{routes.ASKED}[]", f"{routes.ASKED}nonsense"):
        assert routes.as_asked(app, nonsense) is app
    further = text.replace('"guarded"', '"of_another_version": 1, "guarded"')
    assert routes.as_asked(app, further) == app


def test_a_slot_has_a_file_for_each_domain() -> None:
    app = shop()
    files = routes.files(app, "green")
    assert [*files] == ["api.green.routes", "api.green@admin.acme.com@routes"]
    main, admin = files.values()
    assert main.index("uri strip_prefix /api\n") < main.index("X-Forwarded-Prefix /api\n")
    assert main.index("handle @api {") < main.index("health_uri /healthz")
    # Without a health check, Caddy knows the replicas alone.
    first = app.public["admin"].slots["green"]
    assert f"to 127.0.0.1:{first} 127.0.0.1:{first + 1}\n" in admin
    assert "versions h2c 2\n" in admin
    assert "health_uri" not in admin
    only = routes.files(shop(services={"hook": SERVICES["hook"]}), "green")
    assert only["api.green@admin.acme.com@routes"].endswith("\nerror 404\n")


def test_a_release_writes_its_routes(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "runs", lambda: False)
    app = shop()
    proxy.make_directories()
    # A release of then has only written its health check.
    proxy.asking(app, "blue").write_text(
        "# Managed by Terrafirma: the release in this slot\n"
        "health_uri /old\nhealth_headers {\n\tHost old.test\n\tX-A `b c`\n}\n"
    )
    before = proxy.as_asked(app, "blue")
    assert (before.health_path, before.domain, before.public) == ("/old", "old.test", {})
    assert before.health_headers["X-A"] == "b c"
    assert proxy.expect(app, "green")
    names = sorted(one.name for one in proxy.UPSTREAMS.iterdir())
    assert names == [
        "api.blue.caddy", "api.blue.routes", "api.green.routes", "api.green@admin.acme.com@routes",
    ]  # fmt: skip
    assert "health_uri /old" in (proxy.UPSTREAMS / "api.blue.routes").read_text()
    assert proxy.expects(app, "green")
    assert proxy.expects(app, "blue")
    assert not proxy.expect(app, "green")
    # A domain that goes, and a path that changes, need no other containers.
    moved = shop(services={"api": SERVICES["api"] | {"path": "/v1/*"}})
    assert not proxy.expects(moved, "green")
    asked = proxy.as_asked(moved, "green")
    assert proxy.expect(asked, "green")
    assert "@api path /v1 /v1/*\n" in (proxy.UPSTREAMS / "api.green.routes").read_text()
    # The next release has no such domain any more.
    assert proxy.expect(moved, "green")
    assert not [*proxy.UPSTREAMS.glob("*@*")]
    proxy.forget(app)
    assert [*proxy.UPSTREAMS.iterdir()] == []


def test_routes_that_caddy_would_not_read_are_refused(
    roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "runs", lambda: False)
    app = shop()
    proxy.make_directories()
    proxy.CADDYFILE.write_text("try_files /api.green\n")
    with pytest.raises(Failed, match="no routes of api yet"):
        proxy.expect(app, "blue")
    proxy.CADDYFILE.write_text("try_files /api.green\nimport upstreams/api.green.*routes\n")
    assert proxy.expect(app, "blue")
    assert [proxy.has_front(app, one) for one in app.fronts] == [True, False, True, False]

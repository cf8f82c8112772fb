"""Public services in settings: what is refused, and what follows for ports, guards and pages."""

from typing import Any

import pytest

from terrafirma.app.public import matched
from terrafirma.rules import connections, memory_mb
from tests.unit.settings import application, refusal_of, refused, server
from tests.unit.settings import entry as entry_of
from tests.unit.templates import BCRYPT

PROJECT = {
    "source": "examples/compose", "compose": ["compose.yaml"], "domain": "shop.acme.com",
    "stateful": ["redis"],
}  # fmt: skip
API = {"path": "/api/*", "port": 3000}


def shop(services: Any, **more: Any) -> Any:
    return application("shop", **PROJECT | {"services": services} | more)


# The services; the message.
BAD: list[tuple[Any, str]] = [
    ({"a b": API}, "services.'a b': 'a b' does not match"),
    ({"api": "/api/*"}, "services.api: Input should be a valid dictionary"),
    ({"api": API | {"pth": "/x"}}, "services.api.pth: there is no such key"),
    ({"api": API | {"path": "api"}}, "services.api.path: 'api' does not match"),
    ({"api": API | {"path": "/*"}}, "services.api.path: '/*' is the whole domain: leave path out"),
    ({"api": API | {"path": "/a/../b"}}, "services.api.path: '/a/../b' is no path"),
    ({"api": {"port": 80}}, "services.api: port: it is not public: set domain or path too"),
    ({"api": API | {"path": "/api", "strip": True}}, "services.api: strip: its path is '/api'"),
    ({"api": {"domain": "a.acme.com", "strip": True}}, "services.api: strip: its path is ''"),
    ({"api": API | {"domain": "https://x"}}, "services.api.domain: 'https://x' is not a domain"),
    ({"api": {"domain": "shop.acme.com"}}, "services.api.path: 'shop.acme.com' is the "
     "application's own domain: set the path"),
    ({"api": API | {"protocol": "grpc"}}, "services.api.protocol: Input should be 'http', 'h2c' or "
     "'https', not 'grpc'"),
    ({"api": API | {"health": "grpc"}}, "services.api.health: 'grpc' is no health check: use "),
    ({"api": API | {"health": []}}, "services.api.health: [] is no health check"),
    ({"api": API | {"health": ["a\nb"]}}, "services.api.health: has a line break"),
    ({"api": API | {"health_path": "up"}}, "services.api.health_path: 'up' does not match"),
    ({"api": API | {"health_headers": {"Host": "{x}"}}}, "health_headers.Host: '{x}' has a backtick"
     " or a brace"),
    ({"api": API | {"health_headers": {"Host": " a"}}}, "health_headers.Host: ' a' is no value"),
    ({"api": API | {"health_headers": {"H:": "a"}}}, "health_headers.'H:': 'H:' does not match"),
    ({"api": API | {"port": 70000}}, "services.api.port: Input should be less than or equal"),
    ({"api": API | {"replicas": 65}}, "services.api.replicas: Input should be less than or equal"),
    ({"api": API | {"guards": [{"path": "/b/*", "allow": ["10.0.0.1"]}]}},
     "services.api: guards: '/b/*' is outside of its path '/api/*'"),
    ({"shop": API}, "services.shop: shop is the service of the application"),
    ({"redis": API}, "services.redis: redis is stateful too, and a release starts public services"),
    ({"api": API, "b": API | {"path": "/API/*"}},
     "services.b: shop.acme.com/API/* is api's already: take another path"),
    ({"a": {"domain": "a.acme.com"}, "b": {"domain": "a.acme.com"}},
     "services.b: a.acme.com/* is a's already"),
]  # fmt: skip


@pytest.mark.parametrize(("services", "words"), BAD)
def test_refuses_in_one_line(services: Any, words: str) -> None:
    message = refusal_of("shop", **PROJECT, services=services)
    assert message.startswith("apps.shop.services")
    assert words in message


def test_refuses_what_other_fields_contradict() -> None:
    for services, more, words in (
        ({"api": API}, {"static": {"/api*": "/srv"}}, "is in static too ('/api*')"),
        ({"a": {"domain": "old.acme.com"}}, {"redirects": ["old.acme.com"]}, "in redirects too"),
        ({"api": API}, {"source": "examples/api", "compose": [], "stateful": []},
         "services: shop has no compose files"),
        ({"w": {}}, {"health": "none"}, "apps.shop.health: 'none' is no health check"),
        ({}, {"health_headers": {"A": "`"}}, "apps.shop.health_headers.A: '`' has a backtick"),
        ({}, {"protocol": "http2"}, "apps.shop.protocol: Input should be 'http', 'h2c' or"),
    ):  # fmt: skip
        message = refusal_of("shop", **PROJECT | {"services": services} | more)
        assert words in message
    # A name of another application.
    apps = {
        "shop": entry_of("shop", **PROJECT | {"services": {"a": {"domain": "web.acme.com"}}}),
        "web": entry_of("web"),
    }
    words = refused(apps=apps)
    assert words.startswith("apps.web.domain: 'web.acme.com' is a name of shop already; take ")


def test_paths_and_pages() -> None:
    assert matched("/api/*") == ["/api", "/api/*"]
    assert matched("/api*") == ["/api*"]
    assert matched("/api") == matched("/api/") == ["/api", "/api/"]
    for service, page in (
        ({"path": "/api/*", "strip": True}, ("/api/healthz", True)),
        ({"path": "/api/*", "strip": True, "health": "tcp"}, ("/api/", False)),
        ({"path": "/api/*", "health_path": "/api/up"}, ("/api/up", True)),
        # Requests for that path go to another service.
        ({"path": "/api/*"}, ("/api", False)),
        ({"path": "/api*"}, ("/api", False)),
        ({"domain": "a.acme.com"}, ("/healthz", True)),
        ({"domain": "a.acme.com", "health": ["true"]}, ("/", False)),
    ):  # fmt: skip
        assert shop({"api": service}).public["api"].page == page


def test_each_public_service_has_ports_of_its_own() -> None:
    services = {"api": API, "worker": {"replicas": 3}, "admin": {"domain": "a.acme.com"}}
    apps = {"shop": entry_of("shop", **PROJECT, services=services, port=9000), "web": entry_of()}
    placed = server(apps=apps).with_ports({"shop/admin": 8128, "shop/gone": 8384})
    app, web = placed.apps
    assert app.blocks == {"shop": 9000, "shop/api": 8256, "shop/admin": 8128}
    # The ports of a service that is no longer public are its containers' until the next release.
    assert (web.port, app.public_ports["api"]) == (8000, 8256)
    assert {8128, 8135, 8192, 8256, 8263, 8320, 9000, 9064} <= {*app.ports}
    assert not {8000, 8136, 8264, 8384} & {*app.ports}
    assert {socket.port for socket in placed.sockets} >= {*app.ports, *web.ports}
    # Another application cannot take them.
    apps["web"]["port"] = 8100
    words = refused_ports(apps, {"shop/admin": 8128})
    assert "apps.web.port: 8128 belongs to shop/admin, which has had 8128 to 8255" in words


def refused_ports(apps: Any, kept: dict[str, int]) -> str:
    from terrafirma.settings import Refused

    with pytest.raises(Refused) as error:
        server(apps=apps).with_ports(kept)
    return str(error.value)


def test_replicas_of_public_services_count() -> None:
    app = shop({"api": API | {"replicas": 3}, "w": {"replicas": 9}}, memory_mb=100, replicas=2)
    assert memory_mb(app) == 5 * 100 * 2
    assert connections(app) == 5 * 5 * 2


def test_guards_of_a_service_have_its_paths() -> None:
    guards = [{"users": {"me": BCRYPT}}, {"path": "/api/x/*", "allow": ["10.0.0.1"]}]
    one = shop({"api": API | {"guards": guards}}).public["api"]
    assert [guard.path for guard in one.guards_of()] == ["/api", "/api/*", "/api/x/*"]

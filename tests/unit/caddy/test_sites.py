"""Template data of a site, and warnings about names that lead elsewhere."""

from types import SimpleNamespace
from typing import Any

import pytest
from pyinfra.api import DeployError

from terrafirma.app.settings import Application
from terrafirma.caddy.facts import NamesState
from terrafirma.caddy.settings import Caddy
from terrafirma.caddy.sites import astray, names, refuse_options, site
from tests.unit.settings import of

HOST: Any = SimpleNamespace(name="db1")
BCRYPT = "$2b$05$CmPv0xRvR5sSyz9vWiX9mOK8jNmGCyjRvzcSjPdVlPV7TfJPAu9Mi"
USUAL = [
    '?Strict-Transport-Security "max-age=31536000"',
    "?X-Content-Type-Options `nosniff`",
    "?Referrer-Policy `strict-origin-when-cross-origin`",
    "?X-Frame-Options `SAMEORIGIN`",
    "-Server",
    "-Via",
]


def application(**more: Any) -> Application:
    data = {"name": "web", "source": "examples/api", "domain": "acme.com", "database": "api"}
    return Application(**data | more)


def template_data(acme_ca: str = "", **more: Any) -> dict[str, Any]:
    return site(HOST, application(**more), of(Caddy, caddy_acme_ca=acme_ca))


def test_a_site_has_the_usual_headers() -> None:
    assert template_data()["headers"] == USUAL
    assert template_data()["set_headers"] == []
    assert template_data(hsts_seconds=0)["headers"] == USUAL[1:]
    assert (
        template_data(hsts_seconds=300)["headers"][0] == '?Strict-Transport-Security "max-age=300"'
    )


@pytest.mark.parametrize("name", ["X-Frame-Options", "x-frame-options"])
def test_a_header_in_the_settings_replaces_the_default_one(name: str) -> None:
    without = [one for one in USUAL if "X-Frame-Options" not in one]
    assert template_data(headers={name: "DENY"})["headers"] == without
    assert template_data(headers={name: "DENY"})["set_headers"] == [f"{name} `DENY`"]
    assert template_data(headers={name: ""})["headers"] == without
    assert template_data(headers={name: ""})["set_headers"] == [f"-{name}"]


def test_hsts_in_the_headers_of_the_settings() -> None:
    mine = {"Strict-Transport-Security": "max-age=1; preload"}
    assert template_data(headers=mine)["headers"] == USUAL[1:]


def test_a_guard_covers_a_path_with_and_without_its_slash() -> None:
    paths = {"/*": ["/*"], "/a/*": ["/a", "/a/*"], "/a*": ["/a*"], "/": ["/"]}
    paths |= {"/a": ["/a", "/a/"], "/a/": ["/a", "/a/"]}
    for path, guarded in paths.items():
        guards = [{"path": path, "users": {"bob": BCRYPT}}]
        assert template_data(guards=guards)["guards"][0]["paths"] == guarded


def test_directories_and_single_files() -> None:
    static = template_data(static={"/assets/*": "/srv/a", "/icon.ico": "/srv/b"})["static"]
    assert [(one["directive"], one["path"], one["root"]) for one in static] == [
        ("handle_path", "/assets/*", "/srv/a"),
        ("handle", "/icon.ico", "/srv/b"),
    ]


def test_which_names_get_a_certificate_by_acme() -> None:
    more: dict[str, Any] = {"domain": "acme.test", "redirects": ["www.acme.com"]}
    assert template_data(**more)["public"] is False
    assert [one["public"] for one in template_data(**more)["redirects"]] == [True]
    assert template_data(acme_ca="https://ca.acme.com/d", **more)["public"] is True


@pytest.mark.parametrize(("replicas", "room"), [(1, 8), (4, 8), (5, 10), (32, 64), (64, 64)])
def test_a_site_has_room_for_more_replicas(replicas: int, room: int) -> None:
    """Both slots have spare ports, so that a release or scaling needs no reload of Caddy."""
    site = template_data(replicas=replicas, port=9000)
    assert site["blue"] == [f"127.0.0.1:{port}" for port in range(9000, 9000 + room)]
    assert site["green"] == [f"127.0.0.1:{port}" for port in range(9064, 9064 + room)]


def test_all_names() -> None:
    apps = (application(redirects=["www.acme.com"]), application(domain="b.acme.com"))
    assert list(names(apps)) == ["acme.com", "www.acme.com", "b.acme.com"]


@pytest.mark.parametrize(
    ("own", "found", "words"),
    [
        (["203.0.113.5"], None, "has no address"),
        (["8.8.8.8"], ["8.8.8.8"], ""),
        (["8.8.8.8", "2001:4860::1"], ["8.8.8.8", "2001:4860:0::1"], ""),
        (["8.8.8.8"], ["9.9.9.9"], "leads to 9.9.9.9, which is not the host (8.8.8.8)"),
        # One of two records is wrong, and it matters: authorities prefer IPv6.
        (["8.8.8.8"], ["8.8.8.8", "2001:4860::1"], "leads to 2001:4860::1, which is not the host"),
        # Behind NAT the address may be forwarded to the host.
        (["10.0.0.2"], ["9.9.9.9"], "the host itself has no public address (10.0.0.2), so make"),
        ([], ["9.9.9.9"], "the host itself has no public address (none), so make"),
        # The host's own name is in its /etc/hosts.
        (["8.8.8.8"], ["127.0.1.1"], ""),
    ],
)
def test_names_that_lead_elsewhere(own: list[str], found: list[str] | None, words: str) -> None:
    known = NamesState(own=own, names={} if found is None else {"acme.com": found})
    said = list(astray(["acme.com"], known))
    assert len(said) == bool(words)
    assert all(one.startswith("acme.com ") and words in one and "\n" not in one for one in said)


def test_redirected_names_have_the_hsts_of_the_site() -> None:
    own = template_data(headers={"strict-Transport-Security": "max-age=9; preload", "X-A": "b"})
    lines = own["redirect_headers"]
    assert "strict-Transport-Security `max-age=9; preload`" in lines
    assert not [line for line in lines if "31536000" in line or "X-A" in line]
    assert '?Strict-Transport-Security "max-age=31536000"' in template_data()["redirect_headers"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("admin off", "admin cannot be set: releases ask Caddy at"),
        ("admin unix//run/admin.sock {\n  origins x\n}", "admin"),
        ("debug\n\tauto_https disable_redirects", "auto_https"),
        ("servers {\n  protocols h1 h2\n}\ndefault_bind 10.0.0.2", "default_bind"),
        ("# http_port 80\nhttp_port 8080  # a comment", "http_port"),
        ("acme_ca https://ca.test/directory", "set caddy_acme_ca"),
        ("storage file_system /srv", "storage"),
        ("local_certs", "local_certs"),
    ],
)
def test_global_options_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(DeployError, match=f"^db1: caddy_snippet: .*{said}"):
        refuse_options(HOST, {"file": "options", "text": text})


def test_global_options_that_are_allowed() -> None:
    for text in (
        "debug\ngrace_period 10s",
        "servers {\n  trusted_proxies static 10.0.0.0/8\n}",
        # An option inside a block may have the name of a refused global option.
        "log {\n  output net 10.0.0.2:514\n}\nservers {\n  storage x\n}",
        "# admin off",
    ):
        refuse_options(HOST, {"file": "options", "text": text})
    refuse_options(HOST, None)

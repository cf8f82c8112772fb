"""Where Caddy sends requests: real files, sockets and TLS; scripts stand in for programs."""

import json
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import health, proxy
from terrafirma_host.shell import Failed, content_of
from terrafirma_host.spec import Application

from tests.unit.programs import Program
from tests.unit.terrafirma_host.applications import described
from tests.unit.terrafirma_host.pages import serving


@pytest.fixture
def caddy(roots: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Lets Caddy run; the returned file has the commands."""
    asked = roots / "asked"

    def run(state: str = "active", accepts: str = "true", reloads: str = "true") -> Path:
        say = f'echo "$(basename $0) $*" >> {asked};'
        program("systemctl", f"{say} case $1 in show) {state_of(state)};; *) {reloads};; esac")
        directory = program("runuser", f"{say} echo 'Error: no such directive' >&2; {accepts}")
        monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
        proxy.CADDYFILE.parent.mkdir(exist_ok=True)
        proxy.CADDYFILE.write_text("import upstreams/api.green\n")
        return asked

    return run


def state_of(state: str) -> str:
    """A script that says it as systemd does; `a script` in parentheses stands for itself."""
    return state[1:-1] if state.startswith("(") else f"echo {state}"


def there(roots: Path, directory: str = "upstreams") -> list[str]:
    return sorted(one.name for one in (roots / "caddy" / directory).iterdir())


# --- files and reloads ----------------------------------------------------------------------------


def test_a_file_says_which_slot_serves_and_nothing_is_reloaded(
    caddy: Callable[..., Path], app: Application, roots: Path
) -> None:
    # Even if Caddy refused a reload.
    asked = caddy(accepts="false", reloads="false")
    assert proxy.slot_of(app) == "blue"
    # At the first release the directory may not exist.
    proxy.point(app, "blue")
    assert proxy.slot_of(app) == "blue"
    for _ in range(2):
        proxy.point(app, "green")
        assert proxy.slot_of(app) == "green"
        assert there(roots) == ["api.green"]
    file = roots / "caddy" / "upstreams" / "api.green"
    # Readable for Caddy's own user.
    assert file.stat().st_mode & 0o777 == 0o644
    assert file.read_text().startswith("# Managed by Terrafirma")
    for _ in range(2):
        proxy.point(app, "blue")
        assert proxy.slot_of(app) == "blue"
        assert there(roots) == []
    assert not asked.exists()


def test_one_application_is_not_pointed_elsewhere_with_another(
    app: Application, roots: Path
) -> None:
    other = replace(app, name="api-2")
    proxy.point(other, "green")
    assert proxy.slot_of(app) == "blue"
    proxy.point(app, "green")
    proxy.point(other, "blue")
    assert there(roots) == ["api.green"]


def test_a_file_that_is_there_is_not_written_again(app: Application, roots: Path) -> None:
    """A recovery on a full disk then needs no room."""
    proxy.point(app, "green")
    file = roots / "caddy" / "upstreams" / "api.green"
    before = file.stat()
    proxy.point(app, "green")
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_files_that_a_kill_left_do_not_affect_caddy(app: Application, roots: Path) -> None:
    proxy.point(app, "green")
    proxy.point(app, "blue")
    (roots / "caddy" / "upstreams" / ".api.green.123.new").write_text("")
    assert proxy.slot_of(app) == "blue"
    proxy.point(app, "green")
    assert there(roots) == [".api.green.123.new", "api.green"]


@pytest.mark.parametrize("failing", [{"accepts": "false"}, {"reloads": "false"}])
def test_a_reload_that_fails_leaves_the_old_file(
    caddy: Callable[..., Path], app: Application, roots: Path, failing: dict[str, str]
) -> None:
    asked = caddy(**failing)
    with pytest.raises(Failed, match=r"no such directive|systemctl reload"):
        proxy.maintain(app, on=True)
    # There was no file.
    assert there(roots, "maintenance") == []
    caddy()
    proxy.maintain(app, on=True)
    page = roots / "caddy" / "maintenance" / "api.caddy"
    page.write_text("the one before\n")
    caddy(**failing)
    asked.unlink()
    for on in (True, False):
        with pytest.raises(Failed):
            proxy.maintain(app, on=on)
        assert page.read_text() == "the one before\n"
        assert there(roots, "maintenance") == ["api.caddy"]
    # A refused file is not reloaded.
    assert ("reload caddy" in asked.read_text()) == ("reloads" in failing)


def test_a_reload_is_validated_as_the_user_that_serves(
    caddy: Callable[..., Path], app: Application
) -> None:
    asked = caddy()
    proxy.maintain(app, on=True)
    validate, reload = asked.read_text().splitlines()[-2:]
    assert validate.startswith("runuser -u caddy -- env HOME=/var/lib/caddy caddy validate ")
    assert validate.endswith(str(proxy.CADDYFILE))
    assert reload == "systemctl reload caddy"


def test_an_end_in_the_middle_leaves_the_old_file(
    caddy: Callable[..., Path], app: Application, roots: Path, program: Program
) -> None:
    caddy()
    # Ctrl-C, which the terminal sends to all processes.
    program("runuser", "kill -INT $PPID; sleep 5")
    # A background process of a shell ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            proxy.maintain(app, on=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert there(roots, "maintenance") == []


@pytest.mark.parametrize("installed", [False, True])
def test_a_caddy_that_does_not_run_reads_the_file_when_it_starts(
    caddy: Callable[..., Path], app: Application, roots: Path, installed: bool, capsys: Any
) -> None:
    asked = caddy(state="inactive", accepts="false", reloads="false")
    if not installed:
        proxy.CADDYFILE.unlink()
    proxy.maintain(app, on=True)
    assert there(roots, "maintenance") == ["api.caddy"]
    assert "reads the file when it starts" in capsys.readouterr().out
    assert not asked.exists() or "reload" not in asked.read_text()


def test_a_caddy_that_is_just_starting_is_waited_for(
    caddy: Callable[..., Path], app: Application, roots: Path
) -> None:
    """It may have read its files before ours existed."""
    started = roots / "started"
    state = f"(test -e {started} && echo active || {{ echo activating; touch {started}; }})"
    asked = caddy(state=state)
    proxy.maintain(app, on=True)
    assert asked.read_text().splitlines()[-1] == "systemctl reload caddy"


def test_maintenance_is_switched_on_and_off(
    caddy: Callable[..., Path], app: Application, roots: Path
) -> None:
    caddy()
    page = roots / "caddy" / "maintenance" / "api.caddy"
    proxy.maintain(app, on=False)
    assert not page.exists()
    for _ in range(2):
        proxy.maintain(app, on=True)
        assert "Retry-After" in page.read_text()
        assert " 503\n" in page.read_text()
    written = page.read_text()
    caddy(reloads="false")
    with pytest.raises(Failed):
        proxy.maintain(app, on=False)
    assert page.read_text() == written
    caddy()
    proxy.maintain(app, on=False)
    assert list(page.parent.iterdir()) == []


# --- requests under way ---------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def port(server: socket.socket) -> int:
    number: int = server.getsockname()[1]
    return number


class Admin:
    """Caddy's admin interface: the requests under way at each port, and the questions."""

    def __init__(self) -> None:
        self.busy: dict[int, int] = {}
        self.body: bytes | None = None
        self.asked: list[tuple[str, str]] = []

    def answer(self) -> bytes:
        if self.body is not None:
            return self.body
        return json.dumps(
            [
                {"address": f"127.0.0.1:{number}", "num_requests": count, "fails": 0}
                for number, count in self.busy.items()
            ]
        ).encode()


@pytest.fixture
def admin(behind: Callable[..., None]) -> Iterator[Admin]:
    one = Admin()

    class Says(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            one.asked.append((self.headers["Host"], self.path))
            body = one.answer()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Says) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        behind(server.server_address[1], 2019)
        yield one
        server.shutdown()
        thread.join()


def running(app: Application, path: str, host: str) -> bytes:
    """Caddy's configuration, with `path` as the health path of blue."""
    asked = replace(described(), health_path=path, domain=host)
    active = health.configured(asked) | {"max_size": 1}
    one: dict[str, Any] = {"handler": "reverse_proxy", "health_checks": {"active": active}}
    one["upstreams"] = [{"dial": "127.0.0.1:8000"}, {"dial": "127.0.0.1:8001"}]
    other = {"handler": "reverse_proxy", "upstreams": [{"dial": "127.0.0.1:80"}]}
    routes = [{"handle": [{"handler": "subroute", "routes": [{"handle": [other, one]}]}]}]
    return json.dumps({"apps": {"http": {"servers": {"srv0": {"routes": routes}}}}}).encode()


def test_each_slot_is_checked_as_its_own_release_describes(
    caddy: Callable[..., Path], app: Application, roots: Path, admin: Admin
) -> None:
    asked = caddy()

    def reloads() -> int:
        return asked.read_text().count("reload caddy") if asked.exists() else 0

    def blue() -> str:
        return (roots / "caddy" / "upstreams" / "api.blue.caddy").read_text()

    admin.body = running(app, "/healthz", app.domain)
    # The first release writes both files, with one reload.
    proxy.expect(app, "blue")
    assert there(roots) == ["api.blue.caddy", "api.green.caddy"]
    assert (blue().count("health_uri /healthz\n"), reloads()) == (1, 1)
    proxy.expect(app, "green")
    proxy.expect(app, "blue")
    assert reloads() == 1
    # A changed path only counts for the slot of its release.
    other = replace(app, health_path="/up")
    admin.body = running(app, "/up", app.domain)
    proxy.expect(other, "blue")
    assert ("health_uri /up\n" in blue(), reloads()) == (True, 2)
    assert "/healthz\n" in (roots / "caddy" / "upstreams" / "api.green.caddy").read_text()
    # A kill between the file and the reload.
    admin.body = running(app, "/healthz", app.domain)
    proxy.expect(other, "blue")
    assert reloads() == 3
    admin.body = running(app, "/up", "old.test")
    proxy.expect(other, "blue")
    assert reloads() == 4
    # A missing site is not waited for.
    admin.body = b"null"
    proxy.expect(other, "blue")
    assert reloads() == 4


OLD = """\
# Managed by Terrafirma: the release in this slot
health_uri /old
health_headers {
\tHost old.test
\tX-Forwarded-Proto https
}
"""


def test_a_file_of_another_version_is_rewritten_with_the_same_check(
    caddy: Callable[..., Path], app: Application, roots: Path, admin: Admin
) -> None:
    """Path and domain are those of the release in the slot; the rest is the current check."""
    asked = caddy()
    admin.body = b"null"
    blue, green = (proxy.asking(app, slot) for slot in ("blue", "green"))
    proxy.make_directories()
    for path in (blue, green):
        path.write_text(OLD)
    assert not proxy.expects(app, "blue")
    serving = proxy.as_asked(app, "blue")
    assert (serving.health_path, serving.domain) == ("/old", "old.test")
    # By a run, for the slot that serves …
    assert proxy.expect(serving, "blue")
    for path in (blue, green):
        text = path.read_text()
        assert "health_uri /old\nhealth_status 2xx\n" in text
        assert "\tHost old.test\n" in text
    assert proxy.expects(app, "blue")
    assert not proxy.expect(serving, "blue")
    # … or by a release, which has its own path.
    for path in (blue, green):
        path.write_text(OLD)
    assert proxy.expect(app, "green")
    assert f"health_uri {app.health_path}\nhealth_status 2xx\n" in green.read_text()
    assert "health_uri /old\nhealth_status 2xx\n" in blue.read_text()
    assert asked.read_text().count("reload caddy") == 2
    # A broken or missing file has no check.
    blue.write_text("nonsense")
    assert not proxy.expects(app, "blue")
    blue.unlink()
    assert not proxy.expects(app, "blue")
    assert proxy.as_asked(app, "blue") == app


def test_requests_are_counted_at_these_ports_alone(admin: Admin) -> None:
    admin.busy = {8000: 2, 8001: 1, 8064: 4, 80: 7}
    assert proxy.requests(range(8000, 8064)) == {8000: 2, 8001: 1}
    assert proxy.requests([8064]) == {8064: 4}
    assert proxy.requests([]) == proxy.requests([9000]) == {}
    # Caddy refuses other Host headers.
    assert {*admin.asked} == {("localhost:2019", "/reverse_proxy/upstreams")}


def test_nothing_under_way_is_waited_for_a_little(
    caddy: Callable[..., Path], admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caddy does not count a request that it has read but not yet sent on."""
    caddy()
    monkeypatch.setattr(proxy, "QUIET", 0.5)
    # Of the slot that serves.
    admin.busy = {8000: 0, 8064: 9}
    started = time.monotonic()
    proxy.drain([8000], 30)
    assert 0.5 <= time.monotonic() - started < 10
    assert len(admin.asked) > 2


def test_requests_under_way_are_waited_for(
    caddy: Callable[..., Path], admin: Admin, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    caddy()
    monkeypatch.setattr(proxy, "QUIET", 0.5)
    admin.busy = {8000: 0, 8001: 1}
    threading.Timer(1, admin.busy.update, ({8001: 0},)).start()
    started = time.monotonic()
    proxy.drain(range(8000, 8002), 30)
    assert 1.4 <= time.monotonic() - started < 10
    assert capsys.readouterr().out == ""


def test_a_request_that_does_not_end_is_waited_for_until_the_limit(
    caddy: Callable[..., Path], admin: Admin, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    caddy()
    monkeypatch.setattr(proxy, "QUIET", 0.3)
    admin.busy = {8000: 2, 8001: 1}
    started = time.monotonic()
    proxy.drain([8000, 8001], 1)
    assert 1 <= time.monotonic() - started < 10
    assert "3 requests are still under way after 1 s" in capsys.readouterr().out


def test_requests_that_caddy_no_longer_counts_get_the_full_time(
    caddy: Callable[..., Path], admin: Admin, capsys: Any
) -> None:
    """With fewer replicas Caddy forgets some of them, while requests there go on."""
    caddy()
    admin.busy = {8000: 0, 8001: 0}
    started = time.monotonic()
    proxy.drain(range(8000, 8004), 3)
    assert 3 <= time.monotonic() - started < 10
    assert "no longer counts the requests at all replicas: waiting 3 s" in capsys.readouterr().out
    # If Caddy knows none of them, no request comes through it.
    started = time.monotonic()
    proxy.drain(range(9000, 9004), 30)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("body", [b"<html>", b"[{", None])
def test_without_a_count_the_full_time_is_waited(
    caddy: Callable[..., Path], admin: Admin, behind: Callable[..., None],
    listener: socket.socket, body: bytes | None, capsys: Any,
) -> None:  # fmt: skip
    """No request is cut off before the time that the application allows."""
    caddy()
    admin.body = body
    if body is None:
        number = port(listener)
        listener.close()
        behind(number, 2019)
    started = time.monotonic()
    proxy.drain([8000], 2)
    assert 2 <= time.monotonic() - started < 10
    said = capsys.readouterr().out
    assert "warning: Caddy does not say what is under way" in said
    assert "waiting 2 s" in said


def test_without_caddy_nothing_is_under_way(caddy: Callable[..., Path], admin: Admin) -> None:
    caddy(state="inactive")
    admin.busy = {8000: 1}
    started = time.monotonic()
    proxy.drain([8000], 30)
    assert time.monotonic() - started < 5
    assert admin.asked == []


# --- pages ----------------------------------------------------------------------------------------


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets a port of this machine answer in the place of a port of Caddy's, like 443."""
    connect = socket.create_connection

    def use(number: int, instead_of: int = 443) -> None:
        def elsewhere(address: tuple[str, int], *more: Any, **options: Any) -> socket.socket:
            assert address == ("127.0.0.1", instead_of)
            return connect(("127.0.0.1", number), *more, **options)

        monkeypatch.setattr(socket, "create_connection", elsewhere)

    return use


@pytest.mark.parametrize(
    ("status", "guarded"),
    [(200, False), (204, False), (302, False), (200, True), (401, True), (403, True)],
)
def test_a_page_that_answers(
    caddy: Callable[..., Path], app: Application, tls: ssl.SSLContext,
    behind: Callable[..., None], status: int, guarded: bool,
) -> None:  # fmt: skip
    """With a guard, 401 and 403 are good. Any issuer of the certificate is."""
    caddy()
    names: list[str | None] = []
    tls.sni_callback = lambda _, name, __: names.append(name)
    with serving(tls) as (number, asked):
        behind(number)
        proxy.smoke(replace(app, smoke_path=f"/up/{status}", guarded=guarded))
    assert asked == [(app.domain, f"/up/{status}")]
    assert names == [app.domain]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500, 502, 503])
def test_a_page_that_answers_with_an_error(
    caddy: Callable[..., Path], app: Application, tls: ssl.SSLContext,
    behind: Callable[..., None], status: int,
) -> None:  # fmt: skip
    caddy()
    with serving(tls) as (number, asked):
        behind(number)
        with pytest.raises(Failed, match=f"https://{app.domain}/{status} answers {status}"):
            # Without a smoke_path, the health path is requested.
            proxy.smoke(replace(app, health_path=f"/{status}"))
    assert len(asked) == 1


def test_a_page_has_to_go_on_to_answer(
    caddy: Callable[..., Path], app: Application, tls: ssl.SSLContext,
    behind: Callable[..., None],
) -> None:  # fmt: skip
    """It does not if Caddy notices meanwhile that no replica can serve."""
    caddy()
    with serving(tls) as (number, asked):
        behind(number)
        app = replace(app, smoke_path="/200")
        assert proxy.smoke(app)
        started = time.monotonic()
        proxy.watch(app, 1.2)
        assert 1.2 <= time.monotonic() - started < 5
        assert len(asked) > 1
        later = replace(app, smoke_path="/503")
        with pytest.raises(Failed, match="answers 503: Caddy finds no replica that can serve"):
            proxy.watch(later, 1.2)


def test_a_page_that_does_not_answer(
    caddy: Callable[..., Path], app: Application, listener: socket.socket,
    behind: Callable[..., None],
) -> None:  # fmt: skip
    caddy()
    behind(port(listener))
    listener.close()
    with pytest.raises(Failed, match=rf"https://{app.domain}/healthz: .*refused"):
        proxy.smoke(app)


def test_a_site_without_a_certificate_is_no_fault_of_the_release(
    caddy: Callable[..., Path], app: Application, tls: ssl.SSLContext,
    behind: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: Any,
) -> None:  # fmt: skip
    """Caddy without a certificate ends the handshake with an alert."""
    monkeypatch.setattr(proxy, "CERTIFICATE", 0.1)
    caddy()
    tls.sni_callback = lambda *_: ssl.AlertDescription.ALERT_DESCRIPTION_INTERNAL_ERROR
    with serving(tls) as (number, asked):
        behind(number)
        proxy.smoke(app)
    assert asked == []
    assert f"warning: https://{app.domain} has no certificate" in capsys.readouterr().out


def test_a_site_gets_its_first_certificate_a_little_later(
    caddy: Callable[..., Path], app: Application, tls: ssl.SSLContext,
    behind: Callable[..., None],
) -> None:  # fmt: skip
    caddy()
    answers = [ssl.AlertDescription.ALERT_DESCRIPTION_INTERNAL_ERROR, None]
    tls.sni_callback = lambda *_: answers.pop(0)
    with serving(tls) as (number, asked):
        behind(number)
        with pytest.raises(Failed, match="answers 503"):
            proxy.smoke(replace(app, smoke_path="/503"))
    assert asked == [(app.domain, "/503")]


def test_nothing_is_asked_where_nothing_would_answer(
    caddy: Callable[..., Path], app: Application, behind: Callable[..., None],
    listener: socket.socket, capsys: Any,
) -> None:  # fmt: skip
    """Without Caddy, and while the page for maintenance is on."""
    behind(port(listener))
    listener.close()
    caddy(state="inactive")
    proxy.smoke(app)
    caddy()
    proxy.maintain(app, on=True)
    proxy.smoke(app)
    assert "maintenance is on" in capsys.readouterr().out
    proxy.CADDYFILE.unlink()
    proxy.maintain(app, on=False)
    proxy.smoke(app)
    caddy()
    proxy.CADDYFILE.write_text("# no site yet\n")
    proxy.smoke(app)
    assert "Caddy has no site of api yet" in capsys.readouterr().out


@pytest.mark.parametrize("before", [OLD, ""])
def test_a_reload_that_fails_leaves_both_files_as_they_were(
    caddy: Callable[..., Path], app: Application, admin: Admin, before: str
) -> None:
    caddy(accepts="exit 1")
    admin.body = b"null"
    proxy.make_directories()
    paths = [proxy.asking(app, slot) for slot in ("blue", "green")]
    for path in paths:
        if before:
            path.write_text(before)
    with pytest.raises(Failed):
        proxy.expect(app, "green")
    assert [content_of(path) for path in paths] == [before, before]

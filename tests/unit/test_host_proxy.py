"""Where Caddy sends requests: real files, sockets and TLS; scripts stand in for programs."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from terrafirma_host import proxy
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

from tests.unit.conftest import Program

BLUE = "# Managed by Terrafirma: release 0123456789ab in blue\nto 127.0.0.1:8000 127.0.0.1:8001\n"


@pytest.fixture
def caddy(roots: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Has Caddy run; what it is asked for is in the file that is returned."""
    asked = roots / "asked"

    def run(active: str = "true", accepts: str = "true", reloads: str = "true") -> Path:
        say = f'echo "$(basename $0) $*" >> {asked};'
        program("systemctl", f"{say} case $1 in is-active) {active};; *) {reloads};; esac")
        directory = program("runuser", f"{say} echo 'Error: no such directive' >&2; {accepts}")
        monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
        proxy.CADDYFILE.parent.mkdir(exist_ok=True)
        proxy.CADDYFILE.touch()
        return asked

    return run


def upstreams(roots: Path) -> dict[str, str]:
    """What Caddy would read, by name: all that its glob finds."""
    directory = roots / "caddy" / "upstreams"
    return {one.name: one.read_text() for one in directory.glob("api.caddy*")}


# --- files and reloads ----------------------------------------------------------------------------


def test_caddy_is_pointed_at_the_replicas(
    caddy: Callable[..., Path], app: Application, roots: Path
) -> None:
    asked = caddy()
    assert proxy.slot_of(app) == ""
    proxy.point(app, "0123456789ab", "blue", range(8000, 8002))
    assert upstreams(roots) == {"api.caddy": BLUE}
    assert proxy.slot_of(app) == "blue"
    validate, reload = asked.read_text().splitlines()[-2:]
    assert validate.startswith("runuser -u caddy -- env HOME=/var/lib/caddy caddy validate ")
    assert validate.endswith(str(proxy.CADDYFILE))
    assert reload == "systemctl reload caddy"
    proxy.point(app, "ba9876543210", "green", [8064])
    assert upstreams(roots)["api.caddy"].endswith("in green\nto 127.0.0.1:8064\n")
    # For the user that serves.
    assert (roots / "caddy" / "upstreams" / "api.caddy").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("failing", [{"accepts": "false"}, {"reloads": "false"}])
def test_a_reload_that_fails_leaves_the_old_file(
    caddy: Callable[..., Path], app: Application, roots: Path, failing: dict[str, str]
) -> None:
    asked = caddy(**failing)
    with pytest.raises(Failed, match=r"no such directive|systemctl reload"):
        proxy.point(app, "0123456789ab", "blue", range(8000, 8002))
    # There was none.
    assert upstreams(roots) == {}
    caddy()
    proxy.point(app, "0123456789ab", "blue", range(8000, 8002))
    caddy(**failing)
    asked.unlink()
    with pytest.raises(Failed):
        proxy.point(app, "ba9876543210", "green", range(8064, 8066))
    assert upstreams(roots) == {"api.caddy": BLUE}
    assert [one.name for one in (roots / "caddy" / "upstreams").iterdir()] == ["api.caddy"]
    # What it refuses it is not told to read.
    assert ("reload caddy" in asked.read_text()) == ("reloads" in failing)


def test_an_end_in_the_middle_leaves_the_old_file(
    caddy: Callable[..., Path], app: Application, roots: Path, program: Program
) -> None:
    caddy()
    proxy.point(app, "0123456789ab", "blue", range(8000, 8002))
    # Ctrl-C, as the terminal sends it to all.
    program("runuser", "kill -INT $PPID; sleep 5")
    with pytest.raises(KeyboardInterrupt):
        proxy.point(app, "ba9876543210", "green", range(8064, 8066))
    assert upstreams(roots) == {"api.caddy": BLUE}


def test_what_a_kill_left_is_nothing_that_caddy_reads(
    caddy: Callable[..., Path], app: Application, roots: Path
) -> None:
    caddy()
    proxy.point(app, "0123456789ab", "blue", range(8000, 8002))
    for rest in (".api.caddy.before", ".api.caddy.new"):
        (roots / "caddy" / "upstreams" / rest).write_text("to 127.0.0.1:1\n")
    assert upstreams(roots) == {"api.caddy": BLUE}
    proxy.point(app, "ba9876543210", "green", [8064])
    assert list(upstreams(roots)) == ["api.caddy"]
    assert "green" in upstreams(roots)["api.caddy"]


@pytest.mark.parametrize("there", [False, True])
def test_a_caddy_that_does_not_run_reads_the_file_when_it_starts(
    caddy: Callable[..., Path], app: Application, roots: Path, there: bool, capsys: Any
) -> None:
    asked = caddy(active="false", accepts="false", reloads="false")
    if not there:
        proxy.CADDYFILE.unlink()
    proxy.point(app, "0123456789ab", "blue", range(8000, 8002))
    assert upstreams(roots) == {"api.caddy": BLUE}
    assert "reads the file when it starts" in capsys.readouterr().out
    assert not asked.exists() or "reload" not in asked.read_text()


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


# --- what is under way ----------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def port(server: socket.socket) -> int:
    number: int = server.getsockname()[1]
    return number


def test_connections_to_a_port_are_counted(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert proxy.connections([port(listener), port(other)]) == 0
        clients = [socket.create_connection(("127.0.0.1", port(listener))) for _ in range(3)]
        with socket.create_connection(("127.0.0.1", port(other))):
            assert proxy.connections([port(listener)]) == 3
            assert proxy.connections([port(listener), port(other)]) == 4
            assert proxy.connections([]) == 0
        for client in clients:
            client.close()
        assert proxy.connections([port(listener)]) == 0


def test_nothing_under_way_is_waited_for_a_little(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients of the old configuration may still come, and did."""
    monkeypatch.setattr(proxy, "QUIET", 0.5)
    started = time.monotonic()
    proxy.drain([port(listener)], 30)
    assert 0.5 <= time.monotonic() - started < 10


def test_what_is_under_way_is_waited_for(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(proxy, "QUIET", 0.5)
    client = socket.create_connection(("127.0.0.1", port(listener)))
    threading.Timer(1, client.close).start()
    started = time.monotonic()
    proxy.drain([port(listener)], 30)
    assert 1.4 <= time.monotonic() - started < 10
    assert capsys.readouterr().out == ""


def test_one_that_does_not_end_is_waited_for_no_longer_than_it_may_take(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(proxy, "QUIET", 0.3)
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port(listener))):
        proxy.drain([port(listener)], 1)
    assert 1 <= time.monotonic() - started < 10
    assert "1 connections are still open after 1 s" in capsys.readouterr().out


# --- pages ----------------------------------------------------------------------------------------


class Site(BaseHTTPRequestHandler):
    """Answers /503 with 503, and remembers who asked for what."""

    asked: ClassVar[list[tuple[str, str]]]

    def do_GET(self) -> None:
        self.asked.append((self.headers["Host"], self.path))
        self.send_response(int(self.path.rpartition("/")[2]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    class Remembers(Site):
        asked: ClassVar[list[tuple[str, str]]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Remembers)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1], Remembers.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("path", "healthy"),
    [("/200", True), ("/204", True), ("/302", True), ("/404", False), ("/503", False)],
)
def test_a_replica_says_whether_it_can_serve(path: str, healthy: bool) -> None:
    with serving() as (number, asked):
        assert proxy.healthy(number, path) is healthy
        assert [one for _, one in asked] == [path]


def test_a_replica_that_does_not_answer_cannot_serve(listener: socket.socket) -> None:
    def hang_up() -> None:
        listener.accept()[0].close()

    threading.Thread(target=hang_up, daemon=True).start()
    assert not proxy.healthy(port(listener), "/200")
    number = port(listener)
    listener.close()
    assert not proxy.healthy(number, "/200")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that nobody trusts, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "another.test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(pem, *form) + made.public_bytes(pem))
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has that port of this machine answer in the place of 443, which is Caddy's."""
    connect = socket.create_connection

    def use(number: int) -> None:
        def elsewhere(address: tuple[str, int], *more: Any, **options: Any) -> socket.socket:
            assert address == ("127.0.0.1", 443)
            return connect(("127.0.0.1", number), *more, **options)

        monkeypatch.setattr(socket, "create_connection", elsewhere)

    return use


@pytest.mark.parametrize("status", [200, 204, 302, 401, 403])
def test_a_page_that_answers(
    caddy: Callable[..., Path], app: Application, tls: ssl.SSLContext,
    behind: Callable[[int], None], status: int,
) -> None:  # fmt: skip
    """401 and 403 are a guard's. Who signed the certificate is not asked."""
    caddy()
    names: list[str | None] = []
    tls.sni_callback = lambda _, name, __: names.append(name)
    with serving(tls) as (number, asked):
        behind(number)
        proxy.smoke(replace(app, smoke_path=f"/up/{status}"))
    assert asked == [(app.domain, f"/up/{status}")]
    assert names == [app.domain]


@pytest.mark.parametrize("status", [400, 404, 500, 502, 503])
def test_a_page_that_answers_with_an_error(
    caddy: Callable[..., Path], app: Application, tls: ssl.SSLContext,
    behind: Callable[[int], None], status: int,
) -> None:  # fmt: skip
    caddy()
    with serving(tls) as (number, asked):
        behind(number)
        with pytest.raises(Failed, match=f"https://{app.domain}/{status} answers {status}"):
            # Without one of its own it is the path that says whether a replica can serve.
            proxy.smoke(replace(app, health_path=f"/{status}"))
    assert len(asked) == 1


def test_a_page_that_does_not_answer(
    caddy: Callable[..., Path], app: Application, listener: socket.socket,
    behind: Callable[[int], None],
) -> None:  # fmt: skip
    caddy()
    behind(port(listener))
    listener.close()
    with pytest.raises(Failed, match=rf"https://{app.domain}/healthz: .*refused"):
        proxy.smoke(app)


def test_a_site_without_a_certificate_is_no_fault_of_the_release(
    caddy: Callable[..., Path], app: Application, tls: ssl.SSLContext,
    behind: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, capsys: Any,
) -> None:  # fmt: skip
    """As Caddy does while it has none: it ends the handshake with an alert."""
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
    behind: Callable[[int], None],
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
    caddy: Callable[..., Path], app: Application, behind: Callable[[int], None],
    listener: socket.socket, capsys: Any,
) -> None:  # fmt: skip
    """Without Caddy, and while the page for maintenance is on."""
    behind(port(listener))
    listener.close()
    caddy(active="false")
    proxy.smoke(app)
    caddy()
    proxy.maintain(app, on=True)
    proxy.smoke(app)
    assert "maintenance is on" in capsys.readouterr().out
    proxy.CADDYFILE.unlink()
    proxy.maintain(app, on=False)
    proxy.smoke(app)

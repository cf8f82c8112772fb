"""A real Caddy in front of replicas in this process, with the files of runs and releases."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived
from terrafirma_host import routes, spec

from terrafirma.app.description import description
from terrafirma.caddy.settings import Caddy
from terrafirma.caddy.sites import first_routes, sites
from tests.unit.settings import API, of, server
from tests.unit.templates import CADDY_PATH, rendered

HOST: Any = SimpleNamespace(name="db1")
# Another Caddy, like Debian's, can be tried with this variable.
CADDY = os.environ.get("TERRAFIRMA_TEST_CADDY") or shutil.which("caddy", path=CADDY_PATH) or ""
DOMAIN = "shop.acme.com"


def version() -> tuple[int, int]:
    said = subprocess.run([CADDY, "version"], capture_output=True, text=True, check=True).stdout
    major, minor = said.lstrip("v").split(".")[:2]
    return int(major), int(minor)


class Replica(BaseHTTPRequestHandler):
    """Answers who it is, and what it was asked."""

    protocol_version = "HTTP/1.1"
    who = ""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.dumps(
            {"who": self.who, "path": self.path, "headers": dict(self.headers)}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def replica(port: int, who: str, tls: ssl.SSLContext | None = None) -> Iterator[None]:
    handler = type("Handler", (Replica,), {"who": who})
    with _Server(("127.0.0.1", port), handler) as one:
        if tls:
            one.socket = tls.wrap_socket(
                one.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=one.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield
        one.shutdown()
        thread.join()


@contextmanager
def h2c_replica(port: int, who: str) -> Iterator[None]:
    """A server that speaks HTTP/2 without TLS alone, as gRPC servers do."""
    listener = socket.create_server(("127.0.0.1", port), backlog=128)

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            state = H2Connection(H2Configuration(client_side=False))
            state.initiate_connection()
            connection.sendall(state.data_to_send())
            while data := connection.recv(65536):
                for event in state.receive_data(data):
                    if isinstance(event, RequestReceived) and event.stream_id:
                        asked = {k.decode(): v.decode() for k, v in event.headers or ()}
                        body = json.dumps({"who": who, "path": asked[":path"]}).encode()
                        state.send_headers(event.stream_id, [(":status", "200")])
                        state.send_data(event.stream_id, body, end_stream=True)
                connection.sendall(state.data_to_send())

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


class Front:
    """Caddy, and the application behind it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.upstreams = directory / "upstreams"
        self.upstreams.mkdir(parents=True)
        # Below the ports that connections of this machine have.
        self.first = random.randrange(10000, 30000, 128)
        self.port, self.admin = self.first - 1, self.first - 2
        (directory / "compose.yaml").write_text("services: {}\n")
        self.stack = ExitStack()

    def application(self, **fields: Any) -> Any:
        project = {
            "source": str(self.directory), "compose": ["compose.yaml"], "service": "web",
            "domain": DOMAIN, "replicas": 2, "port": self.first,
        }  # fmt: skip
        kept = {f"shop/{name}": self.first + 128 * number
                for number, name in enumerate(sorted(fields.get("services", {})), 1)}  # fmt: skip
        placed = server(apps={"shop": API | project | fields}).with_ports(kept)
        (app,) = placed.apps
        self.settings = app
        text = description(app, placed.users, routed=True)
        return spec.Application.of(json.loads(text))

    def configure(self, *, routed: bool = True) -> None:
        """The Caddyfile as a run writes it, without TLS on a port of its own."""
        data = sites(HOST, (self.settings,), of(Caddy), {"shop"} if routed else ())
        text = rendered("caddy/Caddyfile.j2", version=version(), sites=data)
        for domain in {one["domain"] for one in data}:
            text = text.replace(f"\n{domain} {{", f"\nhttp://{domain}:{self.port} {{")
        text = text.replace("/var/log/caddy", str(self.directory))
        text = text.replace("/etc/caddy/upstreams", str(self.upstreams))
        text = text.replace("localhost:2019", f"localhost:{self.admin}")
        (self.directory / "Caddyfile").write_text(text)

    def first_routes(self) -> None:
        for name, text in first_routes(self.settings):
            text = text.replace("/etc/caddy/upstreams", str(self.upstreams))
            (self.upstreams / name).write_text(text)

    def write(self, app: spec.Application, slot: str) -> None:
        for name, text in routes.files(app, slot).items():
            (self.upstreams / name).write_text(text)

    def point(self, slot: str) -> None:
        marker = self.upstreams / "shop.green"
        if slot == "green":
            marker.touch()
        else:
            marker.unlink(missing_ok=True)

    def _caddy(self, *words: str) -> list[str]:
        return [CADDY, *words, "--config", str(self.directory / "Caddyfile")]

    def start(self) -> None:
        environment = {"HOME": str(self.directory), "PATH": "/usr/bin:/bin"}
        self.log = self.stack.enter_context((self.directory / "log").open("w"))
        self.process = subprocess.Popen(
            self._caddy("run"), env=environment, stdout=self.log, stderr=self.log
        )
        self.stack.callback(self.process.wait)
        self.stack.callback(self.process.terminate)
        until = time.monotonic() + 10
        while True:
            assert self.process.poll() is None, (self.directory / "log").read_text()[-3000:]
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert time.monotonic() < until
            time.sleep(0.05)

    def reload(self) -> None:
        words = [*self._caddy("reload"), "--address", f"localhost:{self.admin}"]
        result = subprocess.run(
            words, env={"HOME": str(self.directory)}, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr

    def replicas(
        self, app: spec.Application, slot: str, only: Sequence[str] = (), **how: Any
    ) -> ExitStack:
        """Start the replicas of a slot; they end with the returned stack."""
        stack = self.stack.enter_context(ExitStack())
        for front in app.fronts:
            if only and front.service not in only:
                continue
            serve = h2c_replica if front.protocol == "h2c" else replica
            for port in front.ports(slot, front.replicas):
                tls = {"tls": how["tls"]} if front.protocol == "https" else {}
                stack.enter_context(serve(port, f"{front.service} in {slot}", **tls))
        return stack

    def ask(
        self, path: str, domain: str = DOMAIN, method: str = "GET", body: bytes | None = None
    ) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        try:
            connection.request(method, path, body=body, headers={"Host": domain})
            answer = connection.getresponse()
            said = answer.read()
            return answer.status, json.loads(said) if answer.status == 200 and said else {}
        finally:
            connection.close()

    def who(self, path: str, domain: str = DOMAIN) -> str:
        status, said = self.ask(path, domain)
        return str(said.get("who") or status)

    @contextmanager
    def load(self, *asked: tuple[str, str]) -> Iterator[list[tuple[float, str, str]]]:
        """Ask on and on; the list has the time, the page, and who answered, or the status."""
        found: list[tuple[float, str, str]] = []
        end = threading.Event()

        def ask(path: str, domain: str, method: str) -> None:
            while not end.is_set():
                began = time.monotonic()
                try:
                    status, said = self.ask(path, domain, method, b"x" * 100)
                    found.append((began, path, str(said.get("who") or status)))
                except (OSError, http.client.HTTPException) as error:
                    found.append((began, path, repr(error)))
                time.sleep(0.005)

        threads = [
            threading.Thread(target=ask, args=(path, domain, method), daemon=True)
            for path, domain in asked
            for method in ("GET", "POST")
        ]
        for one in threads:
            one.start()
        yield found
        end.set()
        for one in threads:
            one.join()


@contextmanager
def caddy(directory: Path) -> Iterator[Front]:
    front = Front(directory)
    with front.stack:
        yield front

"""Requests that wait in Caddy while one release stops and the next one starts."""

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from terrafirma_host import stop_first

from tests.unit.templates import CADDY_PATH, SITE, rendered

STOPS = SITE | {"stops_first": True, "blue": ["127.0.0.1:8000"], "green": ["127.0.0.1:8064"]}
DOMAIN = "api.terrafirma.test"
ROOM = "http://held.terrafirma.internal"


def test_a_site_has_a_place_to_wait_only_where_releases_stop_first() -> None:
    text = rendered("caddy/Caddyfile.j2", sites=[STOPS, SITE | {"name": "b", "domain": "b.test"}])
    blocks = dict(re.findall(r"^(\S*) ?\{\n(.*?)^\}$", text, re.MULTILINE | re.DOTALL))
    assert list(blocks) == ["", DOMAIN, "b.test", ROOM]
    block = blocks[DOMAIN]
    proxies = re.findall(r"^\treverse_proxy (.*?)\{$", block, re.MULTILINE)
    assert proxies == ["@held 127.0.0.1:80 ", "@green ", ""]
    assert "try_files /api.held\n" in block
    # Caddy asks itself without the body, which the replica gets later.
    assert "\t\tmethod GET\n\t\trewrite /api\n" in block
    assert f"header_up Host {ROOM.removeprefix('http://')}\n" in block
    assert f"lb_try_duration {stop_first.HELD}s\n" in block
    assert re.search(r"header @nobody Retry-After 5\n\t\trespond @nobody .* 503\n", block)
    assert "try_files {path}.held\n" in blocks[ROOM]
    assert "held" not in blocks["b.test"]
    assert "held" not in rendered("caddy/Caddyfile.j2", sites=[SITE])


class Replica(BaseHTTPRequestHandler):
    """Answers with its port, and with the number of bytes that it was sent."""

    def do_GET(self) -> None:
        size = len(self.rfile.read(int(self.headers["Content-Length"] or 0)))
        said = f"{self.connection.getsockname()[1]} {size}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def replica() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Replica)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def ask(port: int, body: bytes = b"") -> tuple[int, str, str]:
    """Status, Retry-After and text of an answer of Caddy."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST" if body else "GET", "/", body, {"Host": DOMAIN})
    answer = connection.getresponse()
    return answer.status, answer.headers.get("Retry-After", ""), answer.read().decode()


@pytest.mark.skipif(not shutil.which("caddy", path=CADDY_PATH), reason="no caddy here")
def test_requests_wait_with_their_bodies_and_not_for_ever(tmp_path: Path) -> None:
    with replica() as blue, replica() as green:
        web, admin = free_port(), free_port()
        slots = {"blue": [f"127.0.0.1:{blue}"], "green": [f"127.0.0.1:{green}"]}
        text = rendered("caddy/Caddyfile.j2", version=(2, 11), sites=[STOPS | slots])
        for old, new in (
            (f"{DOMAIN} {{", f"http://{DOMAIN} {{"),
            ("\ttls internal\n", ""),
            ("/var/log/caddy", str(tmp_path)),
            ("localhost:2019", f"localhost:{admin}"),
            ("127.0.0.1:80 ", f"127.0.0.1:{web} "),
            ("/etc/caddy", str(tmp_path)),
            ("skip_install_trust", f"http_port {web}"),
            (f"lb_try_duration {stop_first.HELD}s", "lb_try_duration 2s"),
        ):
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "Caddyfile"
        path.write_text(text)
        for name in ("upstreams", "maintenance"):
            (tmp_path / name).mkdir()
        command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(path)]
        environment = os.environ | {"PATH": CADDY_PATH, "HOME": str(tmp_path)}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 20
            while True:
                with suppress(OSError, HTTPException):
                    assert ask(web, b"xyz") == (200, "", f"{blue} 3")
                    break
                assert time.monotonic() < deadline
                time.sleep(0.1)
            held = tmp_path / "upstreams/api.held"
            held.touch()
            with ThreadPoolExecutor(2) as pool:
                waiting = [pool.submit(ask, web, body) for body in (b"", b"x" * 500_000)]
                time.sleep(0.6)
                assert not any(one.done() for one in waiting)
                (tmp_path / "upstreams/api.green").touch()
                held.unlink()
                # They go to the slot that serves now.
                assert [one.result() for one in waiting] == [
                    (200, "", f"{green} 0"), (200, "", f"{green} 500000"),
                ]  # fmt: skip
            held.touch()
            status, again, said = ask(web, b"x")
            assert (status, again) == (503, "5")
            assert "back in a moment" in said
        finally:
            process.kill()
            process.wait()

"""
Servers that answer a health check in many ways, and how we and a real Caddy judge
each. The module also runs on a target, so it uses only the standard library.

    python3 health_kinds.py CADDY DIRECTORY_OF_TERRAFIRMA_HOST
"""

from __future__ import annotations

import http.client
import json
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

DOMAIN = "api.terrafirma.test"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Sends = Callable[[socket.socket, bytes], None]


def status(line: str, *headers: str, body: str = "") -> bytes:
    lines = [f"HTTP/1.1 {line}", *headers, f"Content-Length: {len(body)}", "", body]
    return "\r\n".join(lines).encode()


def later(seconds: float, *parts: bytes) -> Sends:
    """Send each part after this pause."""

    def send(connection: socket.socket, request: bytes) -> None:
        for part in parts:
            time.sleep(seconds)
            connection.sendall(part)

    return send


def only_if(wanted: bytes, otherwise: bytes) -> Sends:
    def send(connection: socket.socket, request: bytes) -> None:
        connection.sendall(OK if wanted.lower() in request.lower() else otherwise)

    return send


def unless(refused: bytes, otherwise: bytes) -> Sends:
    def send(connection: socket.socket, request: bytes) -> None:
        connection.sendall(otherwise if refused.lower() in request.lower() else OK)

    return send


def reset(connection: socket.socket, _: bytes) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def endless(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(100):
        connection.sendall(b"more ")
        time.sleep(0.1)


HERE = f"Location: https://{DOMAIN}/healthz"
# The answer to a GET of /healthz, and whether it is healthy.
KINDS: dict[str, tuple[bytes | Sends, bool]] = {
    "200": (OK, True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", True),
    "206": (status("206 Partial Content", body="ok"), True),
    "299": (status("299 Whatever"), True),
    "300": (status("300 Choices", "Location: /other"), False),
    "301 to a slash": (status("301 Moved", f"{HERE}/"), False),
    "302 to a page that answers": (status("302 Found", "Location: /other"), False),
    "302 to a login": (status("302 Found", "Location: /login?next=/healthz"), False),
    "303": (status("303 See", "Location: /other"), False),
    "304": (b"HTTP/1.1 304 Not Modified\r\n\r\n", False),
    "307 to itself": (status("307 Temporary", "Location: /healthz"), False),
    "308 to https": (status("308 Permanent", HERE), False),
    "308 to a slash": (status("308 Permanent", f"{HERE}/"), False),
    "308 to another host": (status("308 Permanent", "Location: https://www.acme.com/"), False),
    "308 to nowhere": (status("308 Permanent"), False),
    "400": (status("400 Bad Request", body="Invalid host"), False),
    "401": (status("401 Unauthorized", "WWW-Authenticate: Basic"), False),
    "403": (status("403 Forbidden"), False),
    "404": (status("404 Not Found"), False),
    "405": (status("405 Method Not Allowed"), False),
    "418": (status("418 Teapot"), False),
    "429": (status("429 Too Many"), False),
    "500": (status("500 Error"), False),
    "502": (status("502 Bad Gateway"), False),
    "503": (status("503 Unavailable"), False),
    "599": (status("599 Whatever"), False),
    "101": (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", False),
    "100 first": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, True),
    "early hints first": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK, True),
    "early hints, then 404": (b"HTTP/1.1 103 Early\r\n\r\n" + status("404 No"), False),
    "early hints alone": (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50, False),
    "after 2.5 s": (later(2.5, OK), True),
    "after 5 s": (later(5, OK), False),
    "drips, 3 s in all": (later(1, b"HTTP/1.1 200 OK\r\n", b"A: 1\r\n", b"\r\n"), True),
    "drips, 7 s in all": (
        later(1, b"HTTP/1.1 200 OK\r\n", *[b"A: 1\r\n"] * 5, b"Content-Length: 0\r\n\r\n"),
        False,
    ),
    "a body without an end": (endless, True),
    "a body that breaks off": (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nok", True),
    "a body that is no chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        True,
    ),
    "more than it says": (OK + b"and more", True),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nok", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", True),
    "lines without CR": (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", True),
    "nothing": (b"", False),
    "a reset": (reset, False),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", False),
    "words": (b"hello, who is there?\r\n", False),
    "SSH": (b"SSH-2.0-OpenSSH_10.0\r\n", False),
    "TLS": (b"\x15\x03\x01\x00\x02\x02\x16", False),
    "HTTP/2": (b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64", False),
    "HTTP/0.9": (b"<html>ok</html>", False),
    "a blank line first": (b"\r\n" + OK, False),
    "small letters": (b"http/1.1 200 OK\r\n\r\n", False),
    "a code of four": (b"HTTP/1.1 2000 OK\r\n\r\n", False),
    "a code of two": (b"HTTP/1.1 20 OK\r\n\r\n", False),
    "a code of none": (b"HTTP/1.1 OK\r\n\r\n", False),
    "a header without a colon": (b"HTTP/1.1 200 OK\r\nhello\r\n\r\n", False),
    "a header without a name": (b"HTTP/1.1 200 OK\r\n: x\r\n\r\n", False),
    "a NUL in a header": (b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n", False),
    "a length of letters": (b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n", False),
    "a negative length": (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", False),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n", False),
    "a length twice": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", True),
    "an encoding of its own": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", False),
    "chunked twice": (
        b"HTTP/1.1 200 OK\r\n" + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n",
        False,
    ),
    "chunked, and once more": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        False,
    ),
    **{
        f"a trailer of {name}": (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: %b\r\n\r\n0\r\n\r\n"
            % name.encode(),
            good,
        )
        for name, good in {
            "Content-Length": False,
            "transfer-encoding": False,
            "X-Sum, Trailer": False,
            "X-Sum": True,
            "Server-Timing, X-Content-Length": True,
        }.items()
    },
    "a head of 100 kB": (b"HTTP/1.1 200 OK\r\nA: " + b"a" * 10**5 + b"\r\n\r\n", True),
    "a header of blanks": (b"HTTP/1.1 200 OK\r\nA: a" + b" " * 10**5 + b"b\r\n\r\n", True),
    "a head of 20 MB": (b"HTTP/1.1 200 OK\r\nA: " + b"a" * (20 * 2**20) + b"\r\n\r\n", False),
    "this host alone": (only_if(f"Host: {DOMAIN}\r\n".encode(), status("400 Host")), True),
    "https alone": (only_if(b"X-Forwarded-Proto: https\r\n", status("308 Up", HERE)), True),
    "no programs": (unless(b"User-Agent: Go-http", status("403 Bot")), True),
    "what packs alone": (only_if(b"Accept-Encoding: gzip", status("406 Not")), True),
    "GET alone": (only_if(b"GET /healthz HTTP/1.1", status("405 Not")), True),
    "nobody from this address": (unless(b"X-Forwarded-For", status("403 Not")), True),
}
# Answers that Caddy 2.6 still accepts: it follows redirects, and checks headers less strictly.
LENIENT = {
    *("302 to a page that answers", "302 to a login", "303"),
    *("a header without a name", "a NUL in a header"),
}


@contextmanager
def serving(answer: bytes | Sends) -> Iterator[int]:
    """The port of a server that sends this to a health check, and else answers well."""

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(20)
            request = b""
            while True:
                while b"\r\n\r\n" not in request:
                    if not (more := connection.recv(65536)):
                        return
                    request += more
                if not request.startswith(b"GET /healthz "):
                    connection.sendall(OK)
                    request = b""
                    continue
                if callable(answer):
                    answer(connection, request)
                else:
                    connection.sendall(answer)
                # Close gently, so that no reset overtakes the answer.
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
                return

    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=handle, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def all_kinds() -> Iterator[dict[str, int]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(serving(answer)) for name, (answer, _) in KINDS.items()}


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [one.getsockname()[1] for one in taken]


def caddy_says(caddy: str, lines: str, ports: dict[str, int]) -> dict[str, bool]:
    """Whether a real Caddy with this health check sends visitors to each of these servers."""
    fronts = dict(zip(ports, free_ports(len(ports)), strict=True))
    sites = "".join(
        f"http://127.0.0.1:{fronts[name]} {{\n"
        f"reverse_proxy 127.0.0.1:{port} {{\n{lines}"
        "transport http {\ndial_timeout 1s\nresponse_header_timeout 60s\nkeepalive 1s\n}\n}\n}\n"
        for name, port in ports.items()
    )
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "Caddyfile"
        file.write_text(f"{{\nadmin off\n}}\n{sites}")
        log = Path(directory) / "log"
        with log.open("w") as said:
            process = subprocess.Popen(
                [caddy, "run", "--adapter", "caddyfile", "--config", str(file)],
                stdout=said, stderr=said, env={"HOME": directory, "PATH": "/usr/bin:/bin"},
            )  # fmt: skip
        try:
            _until_it_listens(fronts, process, log)
            # Wait for the slowest first answer.
            time.sleep(6)
            return {name: _visit(port) for name, port in fronts.items()}
        finally:
            process.terminate()
            process.wait()


def _until_it_listens(ports: dict[str, int], process: subprocess.Popen[bytes], log: Path) -> None:
    for port in ports.values():
        while True:
            assert process.poll() is None, log.read_text()[-2000:]
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)


def _visit(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/other")
    answered = connection.getresponse().status
    connection.close()
    assert answered in (200, 503), answered
    return answered == 200


def application(**but: Any) -> Any:
    """The fields of an application that a health check needs."""
    data = {
        "domain": DOMAIN, "health_path": "/healthz", "container_port": 8000, "protocol": "http",
        "health": "http", "health_headers": {},
    }  # fmt: skip
    return SimpleNamespace(**{**data, "timeout_seconds": 60, **but})


def main(caddy: str) -> None:
    from terrafirma_host import health

    app = application()
    with all_kinds() as ports:
        theirs = caddy_says(caddy, health.lines(app), ports)
        answers = dict(zip(ports, health.ask_all(app, ports.values()), strict=True))
    print(json.dumps({name: [answers[name].good, theirs[name]] for name in ports}))


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[2])
    main(sys.argv[1])

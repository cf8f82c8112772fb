"""
Serves /srv/www under the names of the vendors: HTTPS, HTTP, and as a proxy.

/srv/faults.json has the faults to cause, see Faults. Each request adds a line to /srv/asked.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import ssl
import threading
import urllib.error
import urllib.request
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypedDict
from urllib.parse import unquote, urlsplit

WWW = Path("/srv/www")
TLS = Path("/srv/vendors/tls")


class Faults(TypedDict, total=False):
    tls: str  # another certificate than the server's
    status: dict[str, int]  # errors, by a part of the path
    cut: str  # a part of the path of files of which only half is sent
    proxy: str  # "user:password" that the proxy requires


def faults() -> Faults:
    found: Faults = json.loads(Path("/srv/faults.json").read_text())
    return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        url = urlsplit(unquote(self.path))
        if url.hostname and not self.admitted():
            return
        host = url.hostname or self.headers["Host"].partition(":")[0]
        with Path("/srv/asked").open("a") as asked:
            print(f"{'proxy ' if url.hostname else ''}{host}{url.path}", file=asked)
        if url.hostname and host != "mirror.test" and not (WWW / host).is_dir():
            self.forward()
            return
        now = faults()
        # The mirror has all vendors, each in a directory with the vendor's host name.
        path = WWW / (url.path.lstrip("/") if host == "mirror.test" else f"{host}{url.path}")
        for part, status in now.get("status", {}).items():
            if part in url.path:
                self.refuse(status)
                return
        if not path.is_file():
            self.refuse(404)
            return
        size = path.stat().st_size
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        with path.open("rb") as file:
            if now.get("cut") and now["cut"] in url.path:
                self.wfile.write(file.read(size // 2))
                self.close_connection = True
            else:
                shutil.copyfileobj(file, self.wfile, 1 << 20)

    def forward(self) -> None:
        """What a proxy is there for: the archive of the distribution, which is elsewhere."""
        try:
            with urllib.request.urlopen(self.path, timeout=30) as answer:
                data = answer.read()
        except urllib.error.HTTPError as error:
            self.refuse(error.code)
        except OSError:
            self.refuse(502)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def do_CONNECT(self) -> None:
        with Path("/srv/asked").open("a") as asked:
            print(f"connect {self.path}", file=asked)
        if not self.admitted():
            return
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        with socket.create_connection(("127.0.0.1", 443)) as other:
            back = threading.Thread(target=pump, args=(other, self.connection), daemon=True)
            back.start()
            pump(self.connection, other)
            back.join()

    def admitted(self) -> bool:
        wanted = faults().get("proxy")
        said = self.headers.get("Proxy-Authorization", "")
        if not wanted or said == f"Basic {base64.b64encode(wanted.encode()).decode()}":
            return True
        self.send_response(407)
        self.send_header("Proxy-Authenticate", 'Basic realm="proxy"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def pump(one: socket.socket, other: socket.socket) -> None:
    try:
        while data := one.recv(1 << 16):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@cache
def context(name: str) -> ssl.SSLContext:
    one = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    one.load_cert_chain(TLS / f"{name}.crt", TLS / f"{name}.key")
    return one


def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
    connection.context = context(faults().get("tls") or "server")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class Secure(Server):
    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        connection.settimeout(60)
        # Leave the handshake to the thread that answers.
        return self.tls.wrap_socket(connection, True, do_handshake_on_connect=False), address

    def __init__(self) -> None:
        super().__init__(("", 443), Handler)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(TLS / "server.crt", TLS / "server.key")
        self.tls.sni_callback = choose

    def handle_error(self, *_: object) -> None:
        """Print nothing: a client that rejects the certificate reports that itself."""


for server in (Server(("", 80), Handler), Server(("", 3128), Handler)):
    threading.Thread(target=server.serve_forever, daemon=True).start()
Secure().serve_forever()

"""
Stands in for the replicas of an application: `upstream.py PORT NAME`, until it is killed.

Runs on the target, whose Python has no packages.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

port, name = int(sys.argv[1]), sys.argv[2]
seen: dict[str, int] = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "secret/1.0"

    def answer(self, status: int = 200, **more: object) -> None:
        body = json.dumps({"replica": name, **more}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if urlsplit(self.path).path == "/framed":
            self.send_header("X-Frame-Options", "DENY")
            self.send_header("X-Mine", "the application's")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def serve(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        key = f"{self.command} {url.path}"
        seen[key] = seen.get(key, 0) + 1
        match url.path:
            case "/slow":
                time.sleep(float(query["seconds"]))
                self.answer()
            case "/events":
                self.events(int(query["count"]))
            case "/ws":
                self.websocket()
            case "/upload":
                self.answer(received=self.receive())
            case "/break":
                # Takes the request, and closes the connection without an answer.
                self.connection.close()
                self.close_connection = True
            case "/headers":
                self.answer(headers={name.lower(): it for name, it in self.headers.items()})
            case "/seen":
                self.answer(seen=seen)
            case "/healthz" | "/asked":
                asked = {header: self.headers[header] for header in ("Host", "X-Forwarded-Proto")}
                if url.path == "/healthz":
                    seen[f"health of {asked['Host']} {asked['X-Forwarded-Proto']}"] = 1
                self.answer()
            case _:
                if self.command in ("POST", "PUT"):
                    self.receive()
                self.answer(path=self.path)

    do_GET = do_HEAD = do_POST = do_PUT = serve

    def receive(self) -> int:
        """Bytes of the body, which may come in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            left = length = int(self.headers["Content-Length"])
            while left > 0 and (piece := self.rfile.read(min(left, 65536))):
                left -= len(piece)
            return length - left
        total = 0
        while size := int(self.rfile.readline() or b"0", 16):
            total += len(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return total

    def events(self, count: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(count):
            self.wfile.write(f"data: {name} {number}\n\n".encode())
            self.wfile.flush()
            time.sleep(0.5)
        self.close_connection = True

    def websocket(self) -> None:
        """Echoes everything until the connection ends."""
        secret = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        accept = base64.b64encode(hashlib.sha1(secret.encode()).digest()).decode()
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        self.close_connection = True
        while head := self.rfile.read(2):
            length = head[1] & 127
            mask = self.rfile.read(4)
            data = bytes(one ^ mask[n % 4] for n, one in enumerate(self.rfile.read(length)))
            if head[0] & 15 == 8:
                return
            text = f"{name} {data.decode()}".encode()
            self.wfile.write(bytes([0x81, len(text)]) + text)
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


Server(("127.0.0.1", port), Handler).serve_forever()

"""
Asks https://DOMAIN/ on 127.0.0.1:PORT until all replicas have answered, and prints a line for each.

Usage: replicas.py DOMAIN PORT REPLICAS < the certificate authority to trust
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
from http.client import HTTPConnection, HTTPException

PATIENCE = 60  # seconds


def get(domain: str, port: int, trust: ssl.SSLContext) -> dict[str, object]:
    """The answer to one GET /, over a new connection; the name need not resolve here."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        trust.wrap_socket(plain, server_hostname=domain) as secure,
    ):
        connection = HTTPConnection(domain)
        connection.sock = secure
        connection.request("GET", "/", headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read()
    if response.status != 200:
        raise HTTPException(f"HTTP {response.status}")
    answer: dict[str, object] = json.loads(body)
    return answer


def main(domain: str, port: int, replicas: int) -> str | None:
    trust = ssl.create_default_context(cadata=sys.stdin.read())
    seen: set[object] = set()
    trouble = "nothing went wrong"
    deadline = time.monotonic() + PATIENCE
    while len(seen) < replicas:
        if time.monotonic() > deadline:
            return f"{len(seen)} of {replicas} replicas answered in {PATIENCE} s; last: {trouble}"
        try:
            answer = get(domain, port, trust)
        except (OSError, HTTPException, ValueError) as error:
            trouble = f"{type(error).__name__}: {error}"
            time.sleep(0.5)
            continue
        if answer["replica"] not in seen:
            seen.add(answer["replica"])
            print("  " + "  ".join(f"{key} {value}" for key, value in answer.items()))
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

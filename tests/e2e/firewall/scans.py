"""Scans of a server from outside and from its containers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.support import Container, Target, output

# All TCP ports of an address that accept a connection, in batches, since silent ones cost time.
SCAN = """
import errno, json, select, socket, sys, time

address, patience, *ports = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
ports = list(map(int, ports)) or list(range(1, 65536))
found, batch = [], 8000
for start in range(0, len(ports), batch):
    waiting = {}
    poll = select.poll()
    for port in ports[start:start + batch]:
        one = socket.socket(family)
        one.setblocking(False)
        code = one.connect_ex((address, port))
        if code == errno.EINPROGRESS:
            waiting[one.fileno()] = one, port
            poll.register(one, select.POLLOUT)
        elif code == 0:
            found.append(port)
    end = time.monotonic() + float(patience)
    while waiting and (left := end - time.monotonic()) > 0:
        for number, _ in poll.poll(left * 1000):
            poll.unregister(number)
            one, port = waiting.pop(number)
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.append(port)
            one.close()
    for one, _ in waiting.values():
        one.close()
print(json.dumps(sorted(found)))
"""
# Sends a datagram to each port of an address.
SEND = """
import json, socket, sys

address, *ports = sys.argv[1:]
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as one:
    for port in map(int, ports):
        for _ in range(3):
            one.sendto(b"from outside", (address, port))
print(json.dumps(None))
"""


def _patience(ports: tuple[int, ...]) -> str:
    """Seconds for a batch: on a busy machine an open port needs one, and many batches too long."""
    return "1.5" if ports else "0.5"


def scan(client: Container, address: str, *ports: int) -> list[int]:
    """The TCP `ports`, or all, that accept a connection from `client`."""
    found: list[int] = client.python(SCAN, address, _patience(ports), *map(str, ports))
    return found


def send(client: Container, address: str, *ports: int) -> None:
    client.python(SEND, address, *map(str, ports))


def scan_from_container(server: Target, container: str, address: str, *ports: int) -> list[int]:
    """The same from a container on the server, with a program of the server's own."""
    pid = server.run(f"docker inspect --format '{{{{.State.Pid}}}}' {container}")
    words = shlex.join([address, _patience(ports), *map(str, ports)])
    found: list[int] = json.loads(
        server.run(f"nsenter --net --target {pid} python3 - {words}", stdin=SCAN)
    )
    return found


def with_ipv6(one: Container, address: str) -> str:
    """Give a container of this machine an IPv6 address beside its IPv4 address."""
    pid = output("docker", "inspect", "--format", "{{.State.Pid}}", one.name)
    enter = ("nsenter", "--net", "--target", pid)
    output(*enter, "sysctl", "--quiet", "--write", "net.ipv6.conf.all.disable_ipv6=0",
           "net.ipv6.conf.eth0.disable_ipv6=0")  # fmt: skip
    output(*enter, "ip", "-6", "address", "replace", f"{address}/64", "dev", "eth0", "nodad")
    return address


@contextmanager
def route(client: Container, server: Container, subnet: str) -> Iterator[None]:
    """A neighbour that sends packets for containers to their server."""
    pid = output("docker", "inspect", "--format", "{{.State.Pid}}", client.name)
    enter = ("nsenter", "--net", "--target", pid, "ip", "route")
    output(*enter, "replace", subnet, "via", server.address)
    try:
        yield
    finally:
        output(*enter, "delete", subnet)

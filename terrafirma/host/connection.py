"""The SSH connection: `group_data/all.py` hands this to paramiko through pyinfra."""

from __future__ import annotations

import socket
from threading import Event
from typing import Any

from paramiko import PKey, Transport
from pyinfra.api import Host
from typing_extensions import override


class _Transport(Transport):
    """Paramiko's, which knows the key that the server let in."""

    key_in_use: bytes | None = None

    @override
    def auth_publickey(self, username: str, key: PKey, event: Event | None = None) -> list[str]:
        left = super().auth_publickey(username, key, event)
        # An agent's key may have no `public_blob`, and is a certificate itself.
        certificate = getattr(key, "public_blob", None)
        self.key_in_use = certificate.key_blob if certificate else key.asbytes()
        return left


def without_delay(sock: Any, **arguments: Any) -> Transport:
    """
    Paramiko's transport on a socket that sends small packets at once.

    Paramiko leaves Nagle's algorithm on; with the server's delayed acknowledgement each command of
    a run then waits about 40 ms for nothing. Behind a jump host the socket is an SSH channel,
    which has no such option.
    """
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _Transport(sock, **arguments)


def key_in_use(host: Host) -> bytes | None:
    """
    The public half of the key that we are connected with, or its certificate, which no account has
    among its keys; None: without one, or not over SSH.
    """
    client = getattr(host.connector, "client", None)
    transport = client and client.get_transport()
    key: bytes | None = getattr(transport, "key_in_use", None)
    return key

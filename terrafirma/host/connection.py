"""The SSH connection: `group_data/all.py` passes `without_delay` to paramiko through pyinfra."""

from __future__ import annotations

import socket
from threading import Event
from typing import Any

from paramiko import PKey, Transport
from pyinfra.api import Host
from typing_extensions import override


class _Transport(Transport):
    """Paramiko's transport, which also remembers the key that the server accepted."""

    key_in_use: bytes | None = None

    @override
    def auth_publickey(self, username: str, key: PKey, event: Event | None = None) -> list[str]:
        left = super().auth_publickey(username, key, event)
        # A key of an agent may have no `public_blob`, because the key itself is the certificate.
        certificate = getattr(key, "public_blob", None)
        self.key_in_use = certificate.key_blob if certificate else key.asbytes()
        return left


def without_delay(sock: Any, **arguments: Any) -> Transport:
    """
    Paramiko's transport on a socket that sends small packets at once.

    Paramiko leaves Nagle's algorithm on. Together with the server's delayed acknowledgements it
    costs each command of a run about 40 ms. Behind a jump host the socket is an SSH channel, which
    has no such option.
    """
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _Transport(sock, **arguments)


def key_in_use(host: Host) -> bytes | None:
    """
    The public key with which this run is connected; None if it uses no key, or no SSH.

    For a login with a certificate this is the certificate, which is in no account's list of keys.
    """
    client = getattr(host.connector, "client", None)
    transport = client and client.get_transport()
    key: bytes | None = getattr(transport, "key_in_use", None)
    return key

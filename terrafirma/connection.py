"""The SSH connection: `group_data/all.py` hands this to paramiko through pyinfra."""

from __future__ import annotations

import socket
from typing import Any

from paramiko import Transport


def without_delay(sock: Any, **arguments: Any) -> Transport:
    """
    Paramiko's transport on a socket that sends small packets at once.

    Paramiko leaves Nagle's algorithm on; with the server's delayed acknowledgement each command of
    a run then waits about 40 ms for nothing. Behind a jump host the socket is an SSH channel,
    which has no such option.
    """
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Transport(sock, **arguments)

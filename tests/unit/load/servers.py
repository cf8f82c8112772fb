"""Servers for the load generator, their answers, and its result."""

from __future__ import annotations

import json
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

COUNTED = pytest.mark.promise(
    "The load generator counts failed requests correctly; the promises about releases rely on it"
)

NAME = "load.test"
BODY = json.dumps({"release": "one", "replica": "a"}).encode()
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)

Serve = Callable[["Visit"], Awaitable[None]]


class Visit:
    """One connection of a client, and the requests on all connections."""

    def __init__(
        self, number: int, log: list[str], reader: StreamReader, writer: StreamWriter
    ) -> None:
        self.number, self.log = number, log
        self.reader, self.writer = reader, writer

    async def asked(self) -> str:
        """The next request's first line; EOFError once the client has left."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        if "content-length: " in head:
            await self.reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
        self.log.append(head.split("\r\n")[0].removesuffix(" HTTP/1.1"))
        return head

    async def say(self, data: bytes = GOOD) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Reset the connection: the client's next read fails with `connection reset`."""
        plain = self.writer.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Outcome:
    def __init__(self, result: dict[str, Any], log: list[str], visits: int) -> None:
        self.result, self.log, self.visits = result, log, visits
        self.words = [one["words"] for one in result["failed"]]

    def __getattr__(self, key: str) -> Any:
        return self.result[key]


UnderLoad = Callable[..., Outcome]


def answer(data: bytes) -> Serve:
    async def serve(visit: Visit) -> None:
        await visit.asked()
        await visit.say(data)

    return serve


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

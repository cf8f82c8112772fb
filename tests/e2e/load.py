"""
Constant load on a server over HTTPS, certificates verified, and a strict count of what went wrong.

    python3 load.py '{"address": "203.0.113.10", "domain": "api.example.com", "requests": 20000}'

It prints one line of JSON once every client has had its first answer, and a second one, the result,
when so many requests are done and its standard input is closed. It needs hpack beside Python.

What counts as failed: each answer without the expected status; each body that does not end as it
says; each connection that is refused, reset or silent for too long; each certificate that does not
verify; each WebSocket that ends without a close frame; each event stream that ends half-way.

What does not, because every browser does it, but is counted too:
- replayed: a GET on an HTTP/1.1 connection that was used before, and that the server closed just
  then, without a byte of an answer, asked once more on a fresh connection (RFC 9112 section 9.3.1,
  RFC 9110 section 9.2.2); a stream above the last one that a GOAWAY says was seen (RFC 9113
  sections 6.8 and 8.7: the server has not begun to process it, whatever its method).
- reconnected: a WebSocket that was closed by a close frame, an event stream that came to its end.

A POST over HTTP/1.1 is only ever sent on a fresh connection, and never twice.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import ssl
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any, NamedTuple, TypeVar

from hpack import Decoder, Encoder, NeverIndexedHeaderTuple

BODY = b'{"from": "load"}'


@dataclass(frozen=True)
class Order:
    """What is asked for; keys of the JSON object on the command line."""

    address: str
    domain: str
    port: int = 443
    # PEM of the authority to trust; empty: those of the system.
    authority: str = ""
    # It goes on at least until so many requests are done …
    requests: int = 0
    # … with no more than so many each second; 0: as many as there can be.
    rate: float = 0
    paths: tuple[str, ...] = ("/",)
    status: int = 200
    # HTTP/1.1 clients that keep their connection, and those that take a new one each time.
    keep: int = 6
    fresh: int = 2
    # HTTP/2 connections, and how many requests are under way on each.
    http2: int = 0
    streams: int = 8
    # Share of POST among the requests over HTTP/2 and on fresh connections.
    posts: float = 0.0
    # Clients that ask for `slow_path` again and again, by turns over HTTP/1.1 and HTTP/2.
    slow: int = 0
    slow_path: str = "/slow?seconds=5"
    # WebSockets on `websocket_path` that say something each 200 ms; readers of `events_path`.
    websocket: int = 0
    websocket_path: str = "/ws"
    events: int = 0
    events_path: str = "/events"
    # Seconds that an answer may take, an event stream may be silent …
    timeout: float = 20
    # … that it goes on for the sake of `requests` after it was told to stop, and altogether.
    patience: float = 120
    limit: float = 1800


class Broken(Exception):
    """A request that got no proper answer."""


class Unprocessed(Exception):
    """A stream that the server says it has not begun to process."""


class Answer(NamedTuple):
    status: int
    body: bytes


class Wire(asyncio.Protocol):
    """A connection: what came, and whether and how it ended."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = bytearray()
        self.began = False  # whether a byte came since the last request
        self.end = ""
        self.gone = False  # whether that was the server's doing
        self.waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.began = True
        self.wake()

    def eof_received(self) -> None:
        self.gone = self.gone or not self.end
        self.end = self.end or "closed by the server"
        self.wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = self.gone or not self.end
        self.end = self.end or (repr(error) if error else "closed by the server")
        self.wake()

    def wake(self) -> None:
        if self.waiter and not self.waiter.done():
            self.waiter.set_result(None)

    async def more(self) -> None:
        if self.end:
            raise Broken(self.end)
        self.waiter = asyncio.get_running_loop().create_future()
        await self.waiter

    async def until(self, mark: bytes) -> bytes:
        while (found := self.received.find(mark)) < 0:
            await self.more()
        return self.take(found + len(mark))

    async def exactly(self, length: int) -> bytes:
        while len(self.received) < length:
            await self.more()
        return self.take(length)

    def take(self, length: int) -> bytes:
        taken = bytes(self.received[:length])
        del self.received[:length]
        return taken

    def close(self) -> None:
        self.end = self.end or "closed by the client"
        self.transport.close()


LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Http1(Wire):
    """One request at a time."""

    async def head(self) -> tuple[int, bytes]:
        head = await self.until(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 ") or not head[9:12].isdigit():
            raise Broken(f"no HTTP/1.1: {head[:40]!r}")
        return int(head[9:12]), head

    async def ask(self, request: bytes) -> Answer:
        if self.received:
            raise Broken(f"bytes that belong to no answer: {bytes(self.received[:40])!r}")
        self.began = False
        self.transport.write(request)
        status, head = await self.head()
        if CHUNKED.search(head):
            body = b"".join([chunk async for chunk in self.chunks()])
        elif length := LENGTH.search(head):
            try:
                body = await self.exactly(int(length[1]))
            except Broken as error:
                raise Broken(
                    f"truncated after {len(self.received)} of {int(length[1])} bytes: {error}"
                ) from None
        else:
            raise Broken(f"{status} without a length: nobody could tell whether it is whole")
        if CLOSE.search(head):
            self.close()
        return Answer(status, body)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The chunks of a body, up to its proper end."""
        try:
            while length := int((await self.until(b"\r\n")).split(b";")[0], 16):
                yield (await self.exactly(length + 2))[:-2]
            while await self.until(b"\r\n") != b"\r\n":
                pass
        except Broken as error:
            raise Broken(f"truncated before its last chunk: {error}") from None
        except ValueError:
            raise Broken("truncated: no length of a chunk where one belongs") from None


DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0, 1, 3, 4, 6, 7, 8, 9,
)  # fmt: skip
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
CANCEL, WIDE = 8, 2**31 - 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


@dataclass
class Stream:
    answer: asyncio.Future[Answer]
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)


class Http2(Wire):
    """
    Many requests at a time.

    The h2 library would do, were it not that it takes no further frame after a GOAWAY: the answers
    to streams that were under way are lost with it. hpack, which it is built on, is used here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()
        self.streams: dict[int, Stream] = {}
        self.numbers = count(1, 2)
        self.block = bytearray()  # of headers, while their frames come …
        self.ends = False  # … and whether they end their stream
        self.window = 65535  # what may be sent
        self.taken = 0  # what came and was not given back to the server's window yet
        self.last: int | None = None  # of the streams that the server answers, after a GOAWAY

    @property
    def usable(self) -> bool:
        return not self.end and self.last is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # No pushes, and windows that need no care for the answers that there are here.
        settings = struct.pack(">HIHI", 2, 0, 4, WIDE)
        self.transport.write(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(SETTINGS, 0, 0, settings)
            + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WIDE - 65535))
        )

    def data_received(self, data: bytes) -> None:
        self.received += data
        while len(self.received) >= 9:
            length = int.from_bytes(self.received[:3], "big")
            if len(self.received) < 9 + length:
                break
            _, kind, flags, number = struct.unpack(">IBBI", b"\0" + self.received[:9])
            payload = self.take(9 + length)[9:]
            try:
                self.handle(kind, flags, number & WIDE, payload)
            except Exception as error:  # whatever it is, the connection cannot go on
                self.connection_lost(error)
                self.transport.abort()
                return

    def handle(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind in (DATA, HEADERS):
            if flags & PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            if kind == HEADERS and flags & PRIORITY:
                payload = payload[5:]
        if kind == DATA:
            self.data(number, payload)
            if flags & END_STREAM:
                self.complete(number)
        elif kind in (HEADERS, CONTINUATION):
            self.block += payload
            if kind == HEADERS:
                self.ends = bool(flags & END_STREAM)
            if flags & END_HEADERS:
                # Those of a stream that is over, too: the decoder must not miss any.
                headers = self.decoder.decode(bytes(self.block))
                self.block.clear()
                if stream := self.streams.get(number):
                    stream.headers.update((str(name), str(value)) for name, value in headers)
                if self.ends:
                    self.complete(number)
        elif kind == RST_STREAM:
            (code,) = struct.unpack(">I", payload)
            self.fail(number, Broken(f"RST_STREAM with code {code}"))
        elif kind == SETTINGS and not flags & ACK:
            self.transport.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.transport.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and number == 0:
            self.window += int.from_bytes(payload, "big")
            self.wake()
        elif kind == GOAWAY:
            self.last = int.from_bytes(payload[:4], "big") & WIDE
            for above in [one for one in self.streams if one > self.last]:
                self.fail(above, Unprocessed())
            self.wake()
        if self.last is not None and not self.streams:
            self.close()

    def data(self, number: int, payload: bytes) -> None:
        if stream := self.streams.get(number):
            stream.body += payload
        self.taken += len(payload)
        if self.taken > 2**24:
            self.transport.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self.taken)))
            self.taken = 0

    def complete(self, number: int) -> None:
        stream = self.streams.pop(number, None)
        if stream is None or stream.answer.done():
            return
        length = stream.headers.get("content-length", str(len(stream.body)))
        if ":status" not in stream.headers:
            stream.answer.set_exception(Broken("an answer without headers"))
        elif length != str(len(stream.body)):
            stream.answer.set_exception(
                Broken(f"truncated after {len(stream.body)} of {length} bytes")
            )
        else:
            stream.answer.set_result(Answer(int(stream.headers[":status"]), bytes(stream.body)))

    def fail(self, number: int, error: Exception) -> None:
        stream = self.streams.pop(number, None)
        if stream and not stream.answer.done():
            stream.answer.set_exception(error)

    def eof_received(self) -> None:
        super().eof_received()
        self.lose()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.lose()

    def lose(self) -> None:
        for number, stream in list(self.streams.items()):
            how = "truncated" if stream.headers else "no answer"
            self.fail(number, Broken(f"{how}: {self.end}"))

    async def ask(self, headers: bytes, body: bytes) -> Answer:
        while self.window < len(body) and self.usable:
            await self.more()
        if not self.usable:
            raise Unprocessed
        self.window -= len(body)
        number = next(self.numbers)
        stream = Stream(asyncio.get_running_loop().create_future())
        self.streams[number] = stream
        flags = END_HEADERS if body else END_HEADERS | END_STREAM
        self.transport.write(
            frame(HEADERS, flags, number, headers)
            + (frame(DATA, END_STREAM, number, body) if body else b"")
        )
        try:
            return await stream.answer
        finally:
            # Nobody waits for it any longer.
            if self.streams.pop(number, None) and not self.end:
                self.transport.write(frame(RST_STREAM, 0, number, struct.pack(">I", CANCEL)))


class Frame(NamedTuple):
    kind: int
    text: bytes


TEXT, CLOSING, PINGING, PONGING = 1, 8, 9, 10


class WebSocket(Http1):
    """Says something, hears something."""

    async def open(self, request: bytes, key: str) -> int:
        self.transport.write(request)
        status, head = await self.head()
        if status == 101:
            guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = base64.b64encode(hashlib.sha1((key + guid).encode()).digest())
            if accept not in head:
                raise Broken("the handshake of a WebSocket does not fit")
        return status

    def say(self, kind: int, text: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(text))
        assert len(text) < 126
        self.transport.write(bytes([0x80 | kind, 0x80 | len(text)]) + mask + masked)

    async def hear(self) -> Frame:
        """The next message, or the close frame."""
        while True:
            first, length = await self.exactly(2)
            if length >= 126:
                length = int.from_bytes(await self.exactly(2 if length == 126 else 8), "big")
            text = await self.exactly(length)
            if first & 15 == PINGING:
                self.say(PONGING, text)
            elif first & 15 != PONGING:
                return Frame(first & 15, text)


@dataclass
class Kind:
    """What became of the requests of one kind of client."""

    requests: int = 0
    failed: int = 0
    replayed: int = 0
    reconnected: int = 0
    messages: int = 0


@dataclass
class Who:
    """What one replica of one release answered; times are seconds of the epoch."""

    release: str
    replica: str
    count: int = 0
    first: float = 0
    last: float = 0
    # When the last of the requests that it answered was sent.
    asked: float = 0


PAUSE = 0.05  # after a failure, in seconds: a server that is away is not asked as fast as one can
FRESH_PAUSE = 0.02  # a handshake costs as much as ten requests
RACE = 1.0  # seconds: who closes a connection later than that has lost a request that was under way
SLOW = "slow"
SAY = 0.2  # seconds between two messages on a WebSocket

T = TypeVar("T", bound=Wire)


class Generator:
    def __init__(self, order: Order) -> None:
        self.order = order
        self.done = False
        self.ready, self.enough = asyncio.Event(), asyncio.Event()
        self.kinds: dict[str, Kind] = {}
        self.failed: list[dict[str, Any]] = []
        self.answers: dict[tuple[str, str], Who] = {}
        self.times: list[float] = []  # seconds of each request that succeeded, the slow ones not
        self.started = self.success = time.time()
        self.gap = 0.0
        self.requests = 0
        self.turn = 0.0
        self.next = count()
        self.tls = {}
        for protocol in ("http/1.1", "h2"):
            self.tls[protocol] = ssl.create_default_context(cadata=order.authority or None)
            self.tls[protocol].set_alpn_protocols([protocol])

    async def connect(self, kind: type[T], protocol: str = "http/1.1") -> T:
        _, wire = await asyncio.get_running_loop().create_connection(
            kind,
            self.order.address,
            self.order.port,
            ssl=self.tls[protocol],
            server_hostname=self.order.domain,
        )
        spoken = wire.transport.get_extra_info("ssl_object").selected_alpn_protocol()
        if spoken != protocol and not (spoken is None and protocol == "http/1.1"):
            wire.close()
            raise Broken(f"the server speaks {spoken}, not {protocol}")
        return wire

    def request(self, method: str, path: str, *lines: str) -> bytes:
        """A request over HTTP/1.1."""
        body = BODY if method == "POST" else b""
        if body:
            lines = (*lines, f"Content-Length: {len(body)}", "Content-Type: application/json")
        first = (f"{method} {path} HTTP/1.1", f"Host: {self.order.domain}")
        return "\r\n".join([*first, *lines, "", ""]).encode() + body

    # --- what is counted ---

    def fail(self, kind: str, method: str, path: str, error: Exception) -> None:
        words = str(error) if isinstance(error, Broken) else repr(error)
        if isinstance(error, TimeoutError) and not str(error):
            words = f"nothing within {self.order.timeout:g} s"
        self.kinds[kind].failed += 1
        self.failed.append(
            {"at": time.time(), "kind": kind, "method": method, "path": path, "words": words}
        )

    def succeed(self, asked: float, answer: Answer, quick: bool) -> None:
        now = time.time()
        if not self.done:
            self.gap, self.success = max(self.gap, now - self.success), now
        if quick:
            self.times.append(now - asked)
        try:
            body = json.loads(answer.body)
            release, replica = body["release"], body["replica"]
        except (ValueError, KeyError, TypeError):
            return  # somebody else's answer
        who = self.answers.setdefault((release, replica), Who(release, replica, first=now))
        who.count += 1
        who.last = now
        who.asked = max(who.asked, asked)

    async def attempt(
        self,
        kind: str,
        method: str,
        path: str,
        ask: Coroutine[Any, Any, Answer],
        status: int,
        quick: bool = False,
    ) -> bool:
        """Count a request, whatever becomes of it; whether it got the answer that it should."""
        asked = time.time()
        good = False
        try:
            async with asyncio.timeout(self.order.timeout):
                answer = await ask
            if answer.status != status:
                raise Broken(f"{answer.status} {answer.body[:80]!r}")
            self.succeed(asked, answer, quick)
            good = True
        except (Broken, OSError) as error:
            self.fail(kind, method, path, error)
        self.kinds[kind].requests += 1
        self.requests += 1
        if self.requests >= self.order.requests:
            self.enough.set()
        if all(one.requests for name, one in self.kinds.items() if name != SLOW):
            self.ready.set()
        if not good:
            await asyncio.sleep(PAUSE)
        return good

    # --- who asks ---

    def clients(self) -> list[Coroutine[Any, Any, None]]:
        order = self.order
        shared = [OverHttp2(self, "http/2") for _ in range(order.http2)]
        clients = [self.ask(KeepAlive(self, "http/1.1 keep-alive")) for _ in range(order.keep)]
        clients += [
            self.ask(Fresh(self, "http/1.1 fresh"), FRESH_PAUSE) for _ in range(order.fresh)
        ]
        clients += [self.ask(one) for one in shared for _ in range(order.streams)]
        for number in range(order.slow):
            # A stream beside the others, or a connection of its own.
            if number % 2 and shared:
                clients.append(self.ask_slowly(shared[number // 2 % len(shared)]))
            else:
                clients.append(self.ask_slowly(KeepAlive(self, SLOW)))
        clients += [self.talk() for _ in range(order.websocket)]
        clients += [self.listen() for _ in range(order.events)]
        self.kinds |= {
            kind: Kind()
            for kind, clients_of in (
                ("http/1.1 keep-alive", order.keep),
                ("http/1.1 fresh", order.fresh),
                ("http/2", order.http2),
                (SLOW, order.slow),
                ("websocket", order.websocket),
                ("events", order.events),
            )
            if clients_of
        }
        return clients

    async def ask(self, way: Way, pause: float = 0) -> None:
        """Quick requests, one after the other."""
        paths, share = self.order.paths, self.order.posts if way.posts else 0.0
        for number in count():
            await self.pace()
            if self.done:
                break
            if int((number + 1) * share) > int(number * share):
                method, path = "POST", paths[0]
            else:
                method, path = "GET", paths[next(self.next) % len(paths)]
            await self.attempt(
                way.kind, method, path, way.ask(method, path), self.order.status, quick=True
            )
            if pause:
                await asyncio.sleep(pause)
        way.close()

    async def pace(self) -> None:
        if self.order.rate:
            now = time.monotonic()
            self.turn = max(self.turn, now) + 1 / self.order.rate
            await asyncio.sleep(self.turn - now)

    async def ask_slowly(self, way: Way) -> None:
        path = self.order.slow_path
        while not self.done:
            await self.attempt(SLOW, "GET", path, way.ask("GET", path), 200)
        way.close()

    async def talk(self) -> None:
        """A WebSocket that says something each SAY seconds, and wants to hear just that."""
        path = self.order.websocket_path
        while not self.done:
            wire: list[WebSocket] = []
            if not await self.attempt("websocket", "GET", path, self.shake_hands(path, wire), 101):
                continue
            try:
                await self.converse(wire[0])
            except (Broken, OSError) as error:
                self.fail("websocket", "GET", path, error)
                await asyncio.sleep(PAUSE)
            finally:
                wire[0].close()

    async def shake_hands(self, path: str, made: list[WebSocket]) -> Answer:
        wire = await self.connect(WebSocket)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
        )  # fmt: skip
        status = 0
        try:
            status = await wire.open(self.request("GET", path, *lines), key)
            made.append(wire)
        finally:
            if status != 101:
                wire.close()
        return Answer(status, b"")

    async def converse(self, wire: WebSocket) -> None:
        for number in count():
            text = b"%d" % number
            wire.say(CLOSING if self.done else TEXT, struct.pack(">H", 1000) if self.done else text)
            async with asyncio.timeout(self.order.timeout):
                heard = await wire.hear()
            if heard.kind == CLOSING:
                if not self.done:
                    wire.say(CLOSING, heard.text[:2])
                    self.kinds["websocket"].reconnected += 1
                return
            if self.done:
                continue
            if heard != (TEXT, text):
                raise Broken(f"{text!r} came back as {heard}")
            self.kinds["websocket"].messages += 1
            await asyncio.sleep(SAY)

    async def listen(self) -> None:
        """A reader of server-sent events."""
        path, tally = self.order.events_path, self.kinds["events"]
        while not self.done:
            wire: list[Http1] = []
            if not await self.attempt("events", "GET", path, self.tune_in(path, wire), 200):
                continue
            try:
                chunks = wire[0].chunks()
                while not self.done:
                    async with asyncio.timeout(self.order.timeout):
                        chunk = await anext(chunks, b"")
                    if not chunk:
                        tally.reconnected += 1
                        break
                    tally.messages += chunk.count(b"\n\n")
            except (Broken, OSError) as error:
                self.fail("events", "GET", path, error)
            finally:
                wire[0].close()
            await asyncio.sleep(PAUSE)

    async def tune_in(self, path: str, made: list[Http1]) -> Answer:
        wire = await self.connect(Http1)
        try:
            wire.transport.write(self.request("GET", path, "Accept: text/event-stream"))
            status, head = await wire.head()
            if status == 200 and not CHUNKED.search(head):
                raise Broken("an event stream of which nobody could tell where it ends")
            made.append(wire)
        finally:
            if not made:
                wire.close()
        return Answer(status, b"")

    # --- from beginning to end ---

    async def run(self, told: asyncio.Event, begun: Callable[[], None]) -> dict[str, Any]:
        self.started = self.success = time.time()
        tasks = [asyncio.create_task(client) for client in self.clients()]
        with suppress(TimeoutError):
            async with asyncio.timeout(self.order.limit):
                await self.ready.wait()
                begun()
                await told.wait()
                async with asyncio.timeout(self.order.patience):
                    await self.enough.wait()
        self.done = True
        stopped = time.time()
        self.gap = max(self.gap, stopped - self.success)
        # What is under way ends in its own time, or fails in it; the rest is for what cannot be.
        ended, hung = await asyncio.wait(tasks, timeout=2 * self.order.timeout)
        for task in hung:
            task.cancel()
        for task in ended:
            task.result()  # an error of ours is none of the server's
        if hung:
            raise RuntimeError(f"{len(hung)} clients did not end: {hung}")
        return self.result(stopped)

    def result(self, stopped: float) -> dict[str, Any]:
        times = sorted(self.times) or [0.0]
        seconds = stopped - self.started
        return {
            "requests": self.requests,
            "failed": self.failed,
            "replayed": sum(kind.replayed for kind in self.kinds.values()),
            "reconnected": sum(kind.reconnected for kind in self.kinds.values()),
            "gap_seconds": round(self.gap, 3),
            "answers": [asdict(who) for who in self.answers.values()],
            "kinds": {name: asdict(kind) for name, kind in self.kinds.items()},
            "started": self.started,
            "stopped": stopped,
            "cpu_seconds": round(time.process_time(), 2),  # of this program, not of the server
            "rate": round(self.requests / seconds, 1),
            "median_ms": round(1000 * times[len(times) // 2], 2),
            "p99_ms": round(1000 * times[len(times) * 99 // 100], 2),
            "slowest_ms": round(1000 * times[-1], 2),
        }


class Way:
    """How a request gets to the server, and back."""

    posts = True

    def __init__(self, generator: Generator, kind: str) -> None:
        self.generator, self.kind = generator, kind

    async def ask(self, method: str, path: str) -> Answer:
        raise NotImplementedError

    def close(self) -> None:
        """Nobody asks any more, or it is another client of the same connection who does."""

    def replay(self) -> None:
        self.generator.kinds[self.kind].replayed += 1


class Fresh(Way):
    """A connection for each request."""

    async def ask(self, method: str, path: str) -> Answer:
        wire = await self.generator.connect(Http1)
        try:
            return await wire.ask(self.generator.request(method, path, "Connection: close"))
        finally:
            wire.close()


class KeepAlive(Way):
    """A connection for as long as the server keeps it."""

    posts = False
    wire: Http1 | None = None

    async def ask(self, method: str, path: str) -> Answer:
        request = self.generator.request(method, path)
        # What the server did to the connection meanwhile is known after two rounds of the loop.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if self.wire and not self.wire.end:
            sent = time.monotonic()
            try:
                return await self.over(self.wire, request)
            except Broken:
                late = time.monotonic() - sent > RACE
                if method != "GET" or self.wire.began or not self.wire.gone or late:
                    raise
                self.replay()
        return await self.over(await self.generator.connect(Http1), request)

    def close(self) -> None:
        if self.wire:
            self.wire.close()

    async def over(self, wire: Http1, request: bytes) -> Answer:
        self.wire = wire
        whole = False
        try:
            answer = await wire.ask(request)
            whole = True
        finally:
            if not whole:
                wire.close()
        return answer


class OverHttp2(Way):
    """A connection that several clients share."""

    def __init__(self, generator: Generator, kind: str) -> None:
        super().__init__(generator, kind)
        self.lock = asyncio.Lock()
        self.wire: Http2 | None = None
        self.known: dict[tuple[str, str], bytes] = {}

    async def ask(self, method: str, path: str) -> Answer:
        headers = self.headers(method, path)
        while True:
            async with self.lock:
                if self.wire is None or not self.wire.usable:
                    self.wire = await self.generator.connect(Http2, "h2")
                wire = self.wire
            try:
                return await wire.ask(headers, BODY if method == "POST" else b"")
            except Unprocessed:
                self.replay()

    def close(self) -> None:
        if self.wire and not self.wire.streams:
            self.wire.close()

    def headers(self, method: str, path: str) -> bytes:
        """They refer to nothing that was sent before, so they are the same on each connection."""
        if (method, path) not in self.known:
            headers = {
                ":method": method,
                ":scheme": "https",
                ":authority": self.generator.order.domain,
                ":path": path,
            }
            if method == "POST":
                headers |= {"content-length": str(len(BODY)), "content-type": "application/json"}
            self.known[method, path] = Encoder().encode(
                [NeverIndexedHeaderTuple(name, value) for name, value in headers.items()]
            )
        return self.known[method, path]


async def main(order: Order) -> None:
    loop, told = asyncio.get_running_loop(), asyncio.Event()

    def wait_for_the_end_of_input() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(told.set)

    threading.Thread(target=wait_for_the_end_of_input, daemon=True).start()
    generator = Generator(order)
    result = await generator.run(told, lambda: print('{"begun": true}', flush=True))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(main(Order(**given | {"paths": tuple(given.get("paths", ("/",)))})))

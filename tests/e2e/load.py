"""
Constant load on a server over HTTPS, with verified certificates and a strict count of failures.

    python3 load.py '{"address": "203.0.113.10", "domain": "api.example.com", "requests": 20000}'

It prints one line of JSON once every client has had its first answer. It prints a second line, the
result, when that many requests are done and its standard input is closed. It needs h11, h2 and
wsproto, and their dependencies.

These count as failed: each answer without the expected status; each body that ends before its
announced end; each connection that is refused, reset or silent for too long; each certificate that
does not verify; each WebSocket that ends without a close frame; each event stream that breaks off.

These are counted, but not as failures, because every browser repeats them by itself:
- replayed: a GET sent again on a fresh connection, because the server closed the HTTP/1.1
  connection at that moment, which was used before, without a byte of an answer (RFC 9112 section
  9.3.1, RFC 9110 section 9.2.2); a stream sent again, because the server refused it
  (REFUSED_STREAM), or because it is above the last stream that a GOAWAY names (RFC 9113 sections
  6.8 and 8.7: the server has not begun to process it, whatever its method).
- reconnected: a WebSocket that was closed by a close frame, an event stream that came to its end.

A POST over HTTP/1.1 is only ever sent on a fresh connection, and never twice.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import count
from typing import Any, NamedTuple, TypeVar

import h11
from h2 import events as http2
from h2.config import H2Configuration
from h2.connection import ConnectionInputs, H2Connection, H2ConnectionStateMachine
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings
from wsproto import ConnectionType, WSConnection
from wsproto import events as ws
from wsproto.connection import ConnectionState
from wsproto.utilities import RemoteProtocolError

BODY = b'{"from": "load"}'
BODY_HEADERS = (("content-length", str(len(BODY))), ("content-type", "application/json"))


@dataclass(frozen=True)
class Order:
    """The parameters: keys of the JSON object on the command line."""

    address: str
    domain: str
    port: int = 443
    # PEM of the authority to trust; empty: the system's authorities.
    authority: str = ""
    # The least number of requests.
    requests: int = 0
    # The most requests in a second; 0: as many as possible.
    rate: float = 0
    paths: tuple[str, ...] = ("/",)
    status: int = 200
    # HTTP/1.1 clients that keep their connection, and those that take a new one each time.
    keep: int = 6
    fresh: int = 2
    # HTTP/2 connections, and the number of simultaneous requests on each.
    http2: int = 0
    streams: int = 8
    # Share of POST among the requests over HTTP/2 and on fresh connections.
    posts: float = 0.0
    # Clients that request `slow_path` again and again, alternately over HTTP/1.1 and HTTP/2.
    slow: int = 0
    slow_path: str = "/slow?seconds=5"
    # WebSockets on `websocket_path` that send a message every 200 ms; readers of `events_path`.
    websocket: int = 0
    websocket_path: str = "/ws"
    events: int = 0
    events_path: str = "/events"
    # Seconds that an answer may take, or an event stream may be silent.
    timeout: float = 20
    # Seconds that it continues, to complete `requests`, after it was told to stop; and altogether.
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
    """A connection: the received bytes, and whether and how it ended."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = bytearray()
        self.began = False  # whether a byte has arrived since the last request
        self.end = ""
        self.gone = False  # whether the server ended it
        self.news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.began = True
        self.news.set()

    def eof_received(self) -> None:
        self.lose("closed by the server")

    def connection_lost(self, error: Exception | None) -> None:
        self.lose(repr(error) if error else "closed by the server")

    def lose(self, how: str) -> None:
        if not self.end:
            self.end, self.gone = how, True
        self.news.set()

    async def wait(self) -> None:
        self.news.clear()
        await self.news.wait()

    async def more(self) -> bytes:
        while not self.received:
            if self.end:
                raise Broken(self.end)
            await self.wait()
        received = bytes(self.received)
        self.received.clear()
        return received

    def close(self) -> None:
        self.end = self.end or "closed by the client"
        self.transport.close()


@cache
def request(method: str, domain: str, path: str, *headers: tuple[str, str]) -> h11.Request:
    if method == "POST":
        headers += BODY_HEADERS
    return h11.Request(method=method, target=path, headers=[("Host", domain), *headers])


class Http1(Wire):
    """One request at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.http = h11.Connection(h11.CLIENT)
        self.length = ""  # of the body; empty: it comes in chunks
        self.taken = 0  # received bytes of the body

    def send(self, head: h11.Request) -> None:
        self.began = False
        sent = self.http.send(head)
        if head.method == b"POST":
            sent += self.http.send(h11.Data(BODY))
        self.transport.write(sent + self.http.send(h11.EndOfMessage()))

    async def event(self) -> object:
        try:
            while (event := self.http.next_event()) is h11.NEED_DATA:
                self.http.receive_data(await self.more())
        except h11.RemoteProtocolError as error:
            raise Broken(f"no HTTP/1.1: {error}") from None
        return event

    async def head(self) -> int:
        """The status of the final answer, after any informational ones (1xx)."""
        while not isinstance(response := await self.event(), h11.Response):
            pass
        status, headers = response.status_code, dict(response.headers)
        chunked = b"transfer-encoding" in headers
        self.length = "" if chunked else headers.get(b"content-length", b"").decode()
        self.taken = 0
        if not chunked and not self.length and status not in (204, 304):
            raise Broken(f"{status} without a length: nobody could tell whether it is whole")
        return status

    async def part(self) -> bytes:
        """The next part of the body; empty at its proper end."""
        try:
            event = await self.event()
        except Broken as error:
            said = (
                f"after {self.taken} of {self.length} bytes"
                if self.length
                else "before its last chunk"
            )
            raise Broken(f"truncated {said}: {error}") from None
        if not isinstance(event, h11.Data):
            return b""
        self.taken += len(event.data)
        return bytes(event.data)

    async def ask(self, head: h11.Request) -> Answer:
        if stray := self.http.trailing_data[0] or self.received:
            raise Broken(f"bytes that belong to no answer: {bytes(stray[:40])!r}")
        self.send(head)
        status, body = await self.head(), b""
        while part := await self.part():
            body += part
        if self.http.our_state is h11.DONE:
            self.http.start_next_cycle()
        else:
            self.close()
        return Answer(status, body)


class Events(Http1):
    """A stream of server-sent events."""

    async def open(self, domain: str, path: str) -> int:
        self.send(request("GET", domain, path, ("Accept", "text/event-stream")))
        return await self.head()


class Graceful(H2ConnectionStateMachine):
    """
    After a GOAWAY, the streams that the server has seen still get their answers.

    RFC 9113 section 6.8 demands it; h2 alone would close its connection and lose these answers.
    """

    def process_input(self, input_: ConnectionInputs) -> list[http2.Event]:
        return [] if input_ is ConnectionInputs.RECV_GOAWAY else super().process_input(input_)


@dataclass
class Stream:
    answer: asyncio.Future[Answer]
    unsent: bytes
    status: int = 0
    body: bytearray = field(default_factory=bytearray)


WIDE = 2**24  # bytes that the server may send before h2 has acknowledged them


class Http2(Wire):
    """Many requests at a time."""

    def __init__(self) -> None:
        super().__init__()
        # The headers need no validation here, which takes time.
        self.http = H2Connection(
            H2Configuration(
                validate_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.http.state_machine = Graceful()
        self.http.local_settings = Settings(
            initial_values={SettingCodes.ENABLE_PUSH: 0, SettingCodes.INITIAL_WINDOW_SIZE: WIDE}
        )
        self.streams: dict[int, Stream] = {}
        self.last: int | None = None  # the last stream that the server answers, after a GOAWAY

    @property
    def usable(self) -> bool:
        return not self.end and self.last is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.http.initiate_connection()
        self.http.increment_flow_control_window(WIDE)
        self.flush()

    def flush(self) -> None:
        """Send all pending data, and bodies as far as the server's windows allow."""
        for number, stream in self.streams.items():
            if stream.unsent and (room := self.http.local_flow_control_window(number)) > 0:
                sent, stream.unsent = stream.unsent[:room], stream.unsent[room:]
                self.http.send_data(number, sent, end_stream=not stream.unsent)
        if data := self.http.data_to_send():
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        try:
            for event in self.http.receive_data(data):
                self.handle(event)
        except Exception as error:  # after any error the connection is unusable
            self.lose(repr(error))
        self.news.set()
        self.flush()
        if self.end or (self.last is not None and not self.streams):
            self.close()

    def handle(self, event: http2.Event) -> None:
        if isinstance(event, http2.ConnectionTerminated):
            self.last = event.last_stream_id or 0
            for above in [one for one in self.streams if one > self.last]:
                self.settle(above, Unprocessed())
        elif isinstance(event, http2.DataReceived):
            self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if stream := self.streams.get(event.stream_id):
                stream.body += event.data
        elif isinstance(event, http2.ResponseReceived):
            if stream := self.streams.get(event.stream_id):
                stream.status = int(dict(event.headers)[b":status"])
        elif isinstance(event, http2.StreamEnded):
            if stream := self.streams.get(event.stream_id):
                self.settle(event.stream_id, Answer(stream.status, bytes(stream.body)))
        elif isinstance(event, http2.StreamReset):
            if event.error_code is ErrorCodes.REFUSED_STREAM:
                self.settle(event.stream_id, Unprocessed())
            else:
                self.settle(event.stream_id, Broken(f"RST_STREAM with {event.error_code!r}"))

    def settle(self, number: int, outcome: Answer | Exception) -> None:
        stream = self.streams.pop(number, None)
        if stream is None or stream.answer.done():
            return
        if isinstance(outcome, Exception):
            stream.answer.set_exception(outcome)
        else:
            stream.answer.set_result(outcome)

    def lose(self, how: str) -> None:
        super().lose(how)
        for number, stream in list(self.streams.items()):
            began = "truncated" if stream.status else "no answer"
            self.settle(number, Broken(f"{began}: {self.end}"))

    async def ask(self, headers: list[tuple[str, str]], body: bytes) -> Answer:
        limit = self.http.remote_settings
        while self.usable and self.http.open_outbound_streams >= limit.max_concurrent_streams:
            await self.wait()
        if not self.usable:
            raise Unprocessed
        number = self.http.get_next_available_stream_id()
        loop = asyncio.get_running_loop()
        stream = self.streams[number] = Stream(loop.create_future(), body)
        self.http.send_headers(number, headers, end_stream=not body)
        loop.call_soon(self.flush)  # once for all that ask in this round of the loop
        try:
            return await stream.answer
        finally:
            # Nobody waits for it any longer.
            if self.streams.pop(number, None) and not self.end:
                self.http.reset_stream(number, ErrorCodes.CANCEL)
                self.flush()


UNCLOSED = (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING)  # by the server


class WebSocket(Wire):
    """Says something, hears something."""

    def __init__(self) -> None:
        super().__init__()
        self.socket = WSConnection(ConnectionType.CLIENT)

    async def open(self, domain: str, path: str) -> int:
        self.say(ws.Request(host=domain, target=path))
        heard = await self.hear()
        return heard.status_code if isinstance(heard, ws.RejectConnection) else 101

    def say(self, what: ws.Request | ws.Message[str] | ws.CloseConnection | ws.Pong) -> None:
        self.transport.write(self.socket.send(what))

    async def hear(self) -> object:
        """The next message, or the close frame."""
        text = ""
        while True:
            for event in self.socket.events():
                if isinstance(event, ws.Ping):
                    if self.socket.state is ConnectionState.OPEN:
                        self.say(event.response())
                elif isinstance(event, ws.TextMessage):
                    text += event.data
                    if event.message_finished:
                        return ws.TextMessage(text)
                elif isinstance(event, ws.CloseConnection) and self.socket.state in UNCLOSED:
                    # wsproto made this event up after an error: no close frame was received.
                    raise Broken(f"no frame of a WebSocket: {event.reason}")
                elif not isinstance(event, ws.Pong):
                    return event
            try:
                self.socket.receive_data(await self.more())
            except RemoteProtocolError as error:
                raise Broken(f"the handshake of a WebSocket does not fit: {error}") from None


@dataclass
class Kind:
    """The results of one kind of client."""

    requests: int = 0
    failed: int = 0
    replayed: int = 0
    reconnected: int = 0
    messages: int = 0


@dataclass
class Who:
    """The answers of one replica of one release; times are seconds since the epoch."""

    release: str
    replica: str
    count: int = 0
    first: float = 0
    last: float = 0
    # When the last request that it answered was sent.
    asked: float = 0


PAUSE = 0.05  # seconds after a failure, so that an absent server is not flooded
FRESH_PAUSE = 0.02  # a handshake costs as much as ten requests
RACE = 1.0  # seconds: a server that closes a connection later has lost a request in progress
SLOW = "slow"
SAY = 0.2  # seconds between two messages on a WebSocket

W = TypeVar("W", bound=Wire)
L = TypeVar("L", Events, WebSocket)


class Generator:
    def __init__(self, order: Order) -> None:
        self.order = order
        self.done = False
        self.ready, self.enough = asyncio.Event(), asyncio.Event()
        self.kinds: dict[str, Kind] = {}
        self.failed: list[dict[str, Any]] = []
        self.answers: dict[tuple[str, str], Who] = {}
        self.times: list[float] = []  # seconds of each successful request, without the slow ones
        self.started = self.success = time.time()
        self.gap = 0.0
        self.requests = 0
        self.turn = 0.0
        self.next = count()
        self.tls = {}
        for protocol in ("http/1.1", "h2"):
            self.tls[protocol] = ssl.create_default_context(cadata=order.authority or None)
            self.tls[protocol].set_alpn_protocols([protocol])

    async def connect(self, kind: type[W], protocol: str = "http/1.1") -> W:
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

    # --- the count ---

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
            return  # not an answer of a replica
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
        """Send a request and count it; returns whether it got the expected answer."""
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

    # --- the clients ---

    def clients(self) -> list[Coroutine[Any, Any, None]]:
        order = self.order
        shared = [OverHttp2(self, "http/2") for _ in range(order.http2)]
        clients = [self.ask(KeepAlive(self, "http/1.1 keep-alive")) for _ in range(order.keep)]
        clients += [
            self.ask(Fresh(self, "http/1.1 fresh"), FRESH_PAUSE) for _ in range(order.fresh)
        ]
        clients += [self.ask(one) for one in shared for _ in range(order.streams)]
        for number in range(order.slow):
            # Alternately a stream on a shared connection, and a connection of its own.
            if number % 2 and shared:
                clients.append(self.ask_slowly(shared[number // 2 % len(shared)]))
            else:
                clients.append(self.ask_slowly(KeepAlive(self, SLOW)))
        clients += [
            self.stay("websocket", order.websocket_path, 101, WebSocket, self.talk)
            for _ in range(order.websocket)
        ]
        clients += [
            self.stay("events", order.events_path, 200, Events, self.listen)
            for _ in range(order.events)
        ]
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
        """Send quick requests, one after the other."""
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

    async def stay(
        self, kind: str, path: str, status: int, wires: type[L], use: Callable[[L], Awaitable[None]]
    ) -> None:
        """Keep one lasting connection open, and open another whenever it ends."""
        while not self.done:
            made: list[L] = []
            try:
                if await self.attempt(kind, "GET", path, self.open(path, wires, made), status):
                    await use(made[0])
            except (Broken, OSError) as error:
                self.fail(kind, "GET", path, error)
                await asyncio.sleep(PAUSE)
            finally:
                for wire in made:
                    wire.close()

    async def open(self, path: str, wires: type[L], made: list[L]) -> Answer:
        made.append(await self.connect(wires))
        return Answer(await made[0].open(self.order.domain, path), b"")

    async def talk(self, wire: WebSocket) -> None:
        """Send a message every SAY seconds, and expect the same message back."""
        tally = self.kinds["websocket"]
        while not self.done:
            said = ws.TextMessage(str(tally.messages))
            wire.say(said)
            heard = await asyncio.wait_for(wire.hear(), self.order.timeout)
            if isinstance(heard, ws.CloseConnection):
                wire.say(ws.CloseConnection(heard.code))
                tally.reconnected += 1
                return
            if heard != said:
                raise Broken(f"{said} came back as {heard}")
            tally.messages += 1
            await asyncio.sleep(SAY)
        wire.say(ws.CloseConnection(1000))
        while not isinstance(
            await asyncio.wait_for(wire.hear(), self.order.timeout), ws.CloseConnection
        ):
            pass

    async def listen(self, wire: Events) -> None:
        tally, text = self.kinds["events"], b""
        while not self.done:
            part = await asyncio.wait_for(wire.part(), self.order.timeout)
            if not part:
                tally.reconnected += 1
                await asyncio.sleep(PAUSE)
                break
            *events, text = (text + part).split(b"\n\n")
            tally.messages += len(events)

    # --- from beginning to end ---

    async def run(self, stop: asyncio.Event, begun: Callable[[], None]) -> dict[str, Any]:
        self.started = self.success = time.time()
        tasks = [asyncio.create_task(client) for client in self.clients()]
        with suppress(TimeoutError):
            async with asyncio.timeout(self.order.limit):
                await self.ready.wait()
                begun()
                await stop.wait()
                async with asyncio.timeout(self.order.patience):
                    await self.enough.wait()
        self.done = True
        stopped = time.time()
        self.gap = max(self.gap, stopped - self.success)
        # Open requests finish or fail within their own timeout; the double is a safety margin.
        ended, hung = await asyncio.wait(tasks, timeout=2 * self.order.timeout)
        for task in hung:
            task.cancel()
        for task in ended:
            task.result()  # a bug of this program must not look like a failure of the server
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
    """How requests are sent to the server."""

    posts = True

    def __init__(self, generator: Generator, kind: str) -> None:
        self.generator, self.kind = generator, kind

    async def ask(self, method: str, path: str) -> Answer:
        raise NotImplementedError

    def close(self) -> None:
        """Called when a client stops; other clients may still use the same connection."""

    def replay(self) -> None:
        self.generator.kinds[self.kind].replayed += 1


class Fresh(Way):
    """A new connection for each request."""

    async def ask(self, method: str, path: str) -> Answer:
        wire = await self.generator.connect(Http1)
        domain = self.generator.order.domain
        try:
            return await wire.ask(request(method, domain, path, ("Connection", "close")))
        finally:
            wire.close()


class KeepAlive(Way):
    """One connection for as long as the server keeps it open."""

    posts = False
    wire: Http1 | None = None

    async def ask(self, method: str, path: str) -> Answer:
        head = request(method, self.generator.order.domain, path)
        # Two rounds of the event loop, to notice whether the server has closed the connection.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if self.wire and not self.wire.end:
            sent = time.monotonic()
            try:
                return await self.over(self.wire, head)
            except Broken:
                late = time.monotonic() - sent > RACE
                if method != "GET" or self.wire.began or not self.wire.gone or late:
                    raise
                self.replay()
        return await self.over(await self.generator.connect(Http1), head)

    def close(self) -> None:
        if self.wire:
            self.wire.close()

    async def over(self, wire: Http1, head: h11.Request) -> Answer:
        self.wire = wire
        try:
            return await wire.ask(head)
        except BaseException:
            wire.close()
            raise


class OverHttp2(Way):
    """One connection that several clients share."""

    def __init__(self, generator: Generator, kind: str) -> None:
        super().__init__(generator, kind)
        self.lock = asyncio.Lock()
        self.wire: Http2 | None = None
        self.asking = 0

    async def ask(self, method: str, path: str) -> Answer:
        headers = [
            *((":method", method), (":scheme", "https"), (":path", path)),
            (":authority", self.generator.order.domain),
            *(BODY_HEADERS if method == "POST" else ()),
        ]
        self.asking += 1
        try:
            while True:
                async with self.lock:
                    if self.wire is None or not self.wire.usable:
                        self.wire = await self.generator.connect(Http2, "h2")
                    wire = self.wire
                with suppress(Unprocessed):
                    return await wire.ask(headers, BODY if method == "POST" else b"")
                self.replay()
        finally:
            self.asking -= 1

    def close(self) -> None:
        if self.wire and not self.asking:
            self.wire.close()


async def main(order: Order) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def wait_for_the_end_of_input() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait_for_the_end_of_input, daemon=True).start()
    generator = Generator(order)
    result = await generator.run(stop, lambda: print('{"begun": true}', flush=True))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(main(Order(**given | {"paths": tuple(given.get("paths", ("/",)))})))

"""The load generator: each fault of a server is counted as what it is."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import sysconfig
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes
from hpack import Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, GoAwayFrame, HeadersFrame

from tests.conftest import ROOT
from tests.e2e import load
from tests.e2e.load import Generator, Order
from tests.e2e.support import LIBRARIES

pytestmark = pytest.mark.promise(
    "The count of failed requests, on which the promises about releases rest, is right"
)

NAME = "load.test"
BODY = json.dumps({"release": "one", "replica": "a"}).encode()
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)

Serve = Callable[["Visit"], Awaitable[None]]


class Visit:
    """One connection that a client made, and what was asked on all of them."""

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
        """Let go in the rudest way: the client's next read is `connection reset`."""
        plain = self.writer.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for NAME that vouches for itself, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-subj", f"/CN={NAME}"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-addext", f"subjectAltName=DNS:{NAME}"),
            *("-addext", "keyUsage=critical,keyCertSign,digitalSignature"),
            *("-out", str(path), "-keyout", str(path.with_name("key.pem"))),
        ],
        check=True,
        capture_output=True,
    )
    return path


class Outcome:
    def __init__(self, result: dict[str, Any], log: list[str], visits: int) -> None:
        self.result, self.log, self.visits = result, log, visits
        self.words = [one["words"] for one in result["failed"]]

    def __getattr__(self, key: str) -> Any:
        return self.result[key]


@pytest.fixture
def under_load(certificate: Path) -> Callable[..., Outcome]:
    """What the generator makes of a server that behaves like `serve`."""

    async def measure(
        serve: Serve,
        protocols: tuple[str, ...],
        until: Coroutine[Any, Any, None] | None,
        **order: Any,
    ) -> Outcome:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate, certificate.with_name("key.pem"))
        tls.set_alpn_protocols(list(protocols))
        log: list[str] = []
        visits = 0
        tasks: set[asyncio.Task[None] | None] = set()

        async def welcome(reader: StreamReader, writer: StreamWriter) -> None:
            nonlocal visits
            visits += 1
            tasks.add(asyncio.current_task())
            try:
                await serve(Visit(visits, log, reader, writer))
            except (EOFError, OSError):
                pass  # the client left
            finally:
                writer.close()

        server = await asyncio.start_server(welcome, "127.0.0.1", 0, ssl=tls)
        given = {
            "address": "127.0.0.1",
            "port": server.sockets[0].getsockname()[1],
            "domain": NAME,
            "authority": certificate.read_text(),
            "keep": 0,
            "fresh": 0,
            "timeout": 2,
            "patience": 10,
        }
        generator = Generator(Order(**given | order))
        told = asyncio.Event()

        async def tell() -> None:
            if until:
                await until
            told.set()

        teller = asyncio.create_task(tell())
        result = await generator.run(told, lambda: None)
        await teller
        server.close()
        await asyncio.gather(*filter(None, tasks))
        return Outcome(result, log, visits)

    def run(
        serve: Serve,
        protocols: tuple[str, ...] = ("http/1.1",),
        until: Coroutine[Any, Any, None] | None = None,
        **order: Any,
    ) -> Outcome:
        return asyncio.run(measure(serve, protocols, until, **{"requests": 6} | order))

    return run


UnderLoad = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in ("PAUSE", "FRESH_PAUSE", "SAY"):
        monkeypatch.setattr(load, pause, 0.01)


# --- HTTP/1.1 ---


async def well(visit: Visit) -> None:
    while await visit.asked():
        await visit.say()


def test_a_good_server(under_load: UnderLoad) -> None:
    seen = under_load(well, keep=1, fresh=1, posts=0.5, rate=200, requests=60, paths=("/a", "/b"))
    assert seen.failed == []
    assert (seen.replayed, seen.reconnected) == (0, 0)
    assert seen.requests == len(seen.log) >= 60
    assert set(seen.log) == {"GET /a", "GET /b", "POST /a"}
    # The one that keeps its connection sends no POST, and each other request has one of its own.
    fresh = seen.kinds["http/1.1 fresh"]["requests"]
    assert seen.log.count("POST /a") == fresh // 2 > 0
    assert seen.visits == 1 + fresh
    assert seen.gap_seconds < 1
    (who,) = seen.answers
    assert (who["release"], who["replica"], who["count"]) == ("one", "a", seen.requests)
    assert seen.started <= who["first"] <= who["asked"] <= who["last"]


async def chunked(visit: Visit) -> None:
    while await visit.asked():
        chunks = b"7\r\n%b\r\n%x\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (
            BODY[:7], len(BODY) - 7, BODY[7:],
        )  # fmt: skip
        await visit.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)


def test_a_body_in_chunks(under_load: UnderLoad) -> None:
    seen = under_load(chunked, keep=1)
    assert seen.failed == []
    assert seen.visits == 1
    assert seen.answers[0]["count"] == seen.requests


async def informed(visit: Visit) -> None:
    while await visit.asked():
        hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
        await visit.say(b"HTTP/1.1 100 Continue\r\n\r\n" + hints)
        await asyncio.sleep(0.01)
        await visit.say()


async def empty(visit: Visit) -> None:
    while await visit.asked():
        await visit.say(b"HTTP/1.1 204 No Content\r\n\r\n")


@pytest.mark.parametrize(("serve", "status"), [(informed, 200), (empty, 204)])
def test_an_answer_that_is_whole_without_a_length_of_its_own(
    under_load: UnderLoad, serve: Serve, status: int
) -> None:
    seen = under_load(serve, keep=1, status=status)
    assert (seen.failed, seen.visits) == ([], 1)
    assert seen.requests == len(seen.log)


def answer(data: bytes) -> Serve:
    async def serve(visit: Visit) -> None:
        await visit.asked()
        await visit.say(data)

    return serve


async def reset(visit: Visit) -> None:
    await visit.asked()
    visit.reset()


async def reset_in_the_body(visit: Visit) -> None:
    await visit.asked()
    await visit.say(GOOD[:-4])
    await asyncio.sleep(0.05)
    visit.reset()


async def silence(visit: Visit) -> None:
    await visit.asked()
    await visit.reader.read()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (answer(GOOD[:-4]), f"truncated after {len(BODY) - 4} of {len(BODY)} bytes"),
        (answer(CHUNKED + b"5\r\nhello\r\n"), "truncated before its last chunk"),
        (answer(CHUNKED + b"5\r\nhel"), "truncated before its last chunk"),
        (answer(CHUNKED + b"5\r\nhello\r\n0\r\n"), "truncated before its last chunk"),
        (answer(CHUNKED + b"hello\r\n"), "illegal chunk header"),
        (answer(GOOD[:20]), "closed by the server"),
        (answer(b""), "closed by the server"),
        (answer(b"HTTP/1.1 200 OK\r\n\r\n" + BODY), "without a length"),
        (answer(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"), "502"),
        (answer(b"hello\r\n\r\n"), "no HTTP/1.1"),
        (reset, "ConnectionResetError"),
        (reset_in_the_body, "truncated after"),
        (silence, "nothing within 0.3 s"),
    ],
)
@pytest.mark.parametrize("kind", ["keep", "fresh"])
def test_what_is_no_answer_has_failed(
    under_load: UnderLoad, serve: Serve, words: str, kind: str
) -> None:
    timeout = 0.3 if serve is silence else 2
    seen = under_load(serve, requests=3, timeout=timeout, **{kind: 1})
    assert seen.requests == len(seen.failed) == seen.visits >= 3
    assert all(words in one for one in seen.words), seen.words
    assert seen.replayed == 0
    one = seen.failed[0]
    assert (one["kind"][:8], one["method"], one["path"]) == ("http/1.1", "GET", "/")
    assert seen.started <= one["at"]


@pytest.mark.parametrize(("together", "later"), [(b"HTTP", b""), (b"", b"HTTP")])
def test_bytes_that_belong_to_no_answer_are_a_failure(
    under_load: UnderLoad, together: bytes, later: bytes
) -> None:
    async def serve(visit: Visit) -> None:
        while await visit.asked():
            await visit.say(GOOD + together)
            await asyncio.sleep(0.01)
            await visit.say(later)

    seen = under_load(serve, keep=1, rate=20)
    assert len(seen.failed) == seen.requests // 2 == 3
    assert "belong to no answer" in seen.words[0]
    assert seen.replayed == 0


def test_an_idle_connection_that_was_closed_is_not_used_again(under_load: UnderLoad) -> None:
    async def serve(visit: Visit) -> None:
        await visit.asked()
        await visit.say()  # and closed while the client waits for its turn

    seen = under_load(serve, keep=1, rate=20)
    assert (seen.failed, seen.replayed) == ([], 0)
    assert seen.visits == seen.requests >= 6


def test_connection_close_is_heeded(under_load: UnderLoad) -> None:
    async def serve(visit: Visit) -> None:
        await visit.asked()
        await visit.say(GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        await visit.reader.read()

    seen = under_load(serve, keep=1)
    assert (seen.failed, seen.replayed) == ([], 0)
    assert seen.visits == seen.requests


async def closes_when_asked_again(visit: Visit) -> None:
    await visit.asked()
    await visit.say()
    await visit.asked()


async def resets_when_asked_again(visit: Visit) -> None:
    await closes_when_asked_again(visit)
    visit.reset()


@pytest.mark.parametrize("serve", [closes_when_asked_again, resets_when_asked_again])
def test_a_race_with_the_end_of_a_connection_is_replayed(
    under_load: UnderLoad, serve: Serve
) -> None:
    seen = under_load(serve, keep=1)
    assert seen.failed == []
    assert seen.kinds["http/1.1 keep-alive"]["replayed"] == seen.replayed == seen.requests - 1
    assert seen.visits == seen.requests
    assert len(seen.log) == seen.requests + seen.replayed


def test_a_request_is_replayed_once(under_load: UnderLoad) -> None:
    async def serve(visit: Visit) -> None:
        if visit.number == 1:
            await closes_when_asked_again(visit)
        else:
            await visit.asked()

    seen = under_load(serve, keep=1, requests=2)
    assert (seen.requests, seen.replayed, len(seen.failed)) == (2, 1, 1)
    assert seen.visits == 2


def test_an_answer_that_began_is_not_replayed(under_load: UnderLoad) -> None:
    async def serve(visit: Visit) -> None:
        await closes_when_asked_again(visit)
        await visit.say(GOOD[:1])

    seen = under_load(serve, keep=1)
    assert seen.replayed == 0
    assert len(seen.failed) == seen.requests // 2 == 3


def test_a_request_that_was_under_way_is_not_replayed(
    under_load: UnderLoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "RACE", 0.1)

    async def serve(visit: Visit) -> None:
        await closes_when_asked_again(visit)
        await asyncio.sleep(0.3)

    seen = under_load(serve, keep=1, requests=4)
    assert (seen.replayed, len(seen.failed)) == (0, 2)


def test_a_post_is_never_sent_twice(under_load: UnderLoad) -> None:
    seen = under_load(reset, fresh=2, posts=1.0)
    assert set(seen.log) == {"POST /"}
    assert seen.requests == len(seen.failed) == len(seen.log)
    assert seen.failed[0]["method"] == "POST"
    assert seen.replayed == 0


def test_slow_requests(under_load: UnderLoad) -> None:
    async def serve(visit: Visit) -> None:
        while "slow" in await visit.asked():
            await asyncio.sleep(0.2)
            await visit.say()

    seen = under_load(serve, slow=2, requests=4)
    assert seen.failed == []
    assert seen.kinds["slow"]["requests"] == seen.requests
    assert set(seen.log) == {"GET /slow?seconds=5"}
    assert seen.slowest_ms == 0  # a slow answer says nothing about how quick the server is


# --- the connection ---


def test_nobody_listens(under_load: UnderLoad) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        seen = under_load(well, keep=1, fresh=1, http2=1, port=free.getsockname()[1], requests=20)
    assert seen.requests == len(seen.failed)
    assert all("ConnectionRefusedError" in one for one in seen.words)
    assert {one["kind"] for one in seen.failed} == set(seen.kinds)
    assert seen.gap_seconds == pytest.approx(seen.stopped - seen.started, abs=0.01)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"authority": ""}, "CERTIFICATE_VERIFY_FAILED"),
        ({"domain": "other.test"}, "Hostname mismatch"),
        ({"keep": 0, "http2": 1, "streams": 1}, "the server speaks None, not h2"),
    ],
)
def test_tls(under_load: UnderLoad, order: dict[str, Any], words: str) -> None:
    seen = under_load(well, **{"keep": 1} | order)
    assert seen.requests == len(seen.failed)
    assert all(words in one for one in seen.words), seen.words


# --- HTTP/2: the server is that of the h2 library, which tells when the client breaks a rule ---

Respond = Callable[["Http2Visit", int], Awaitable[None]]


class Http2Visit:
    def __init__(self, visit: Visit) -> None:
        self.visit, self.number = visit, visit.number
        self.connection = H2Connection(H2Configuration(client_side=False))
        self.pending: list[int] = []
        self.parts: list[int] = []  # lengths of the DATA frames that came
        self.called_off: list[int] = []

    async def flush(self, more: bytes = b"") -> None:
        await self.visit.say(self.connection.data_to_send() + more)

    async def answer(self, stream: int, body: bytes = BODY, ends: bool = True) -> None:
        headers = [(":status", "200"), ("content-length", str(len(BODY))), ("server", "test")]
        self.connection.send_headers(stream, headers)
        self.connection.send_data(stream, body, end_stream=ends)
        await self.flush()


def http2(respond: Respond) -> Serve:
    async def serve(visit: Visit) -> None:
        one = Http2Visit(visit)
        one.connection.initiate_connection()
        await one.flush()
        while data := await visit.reader.read(65536):
            for event in one.connection.receive_data(data):
                if isinstance(event, RequestReceived):
                    said = {bytes(name): bytes(value) for name, value in event.headers}
                    visit.log.append(f"{said[b':method'].decode()} {said[b':path'].decode()}")
                elif isinstance(event, DataReceived):
                    one.parts.append(len(event.data))
                    one.connection.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
                elif isinstance(event, StreamReset):
                    one.called_off.append(event.stream_id)
                elif isinstance(event, StreamEnded):
                    one.pending.append(event.stream_id)
                    await respond(one, event.stream_id)
            await one.flush()

    return serve


def over_http2(under_load: UnderLoad, respond: Respond, **order: Any) -> Outcome:
    return under_load(http2(respond), protocols=("h2",), **{"http2": 1, "streams": 4} | order)


async def properly(visit: Http2Visit, stream: int) -> None:
    await visit.answer(stream)


def test_http2(under_load: UnderLoad) -> None:
    seen = over_http2(under_load, properly, posts=0.5, requests=100)
    assert (seen.failed, seen.replayed) == ([], 0)
    assert seen.visits == 1
    assert seen.requests == len(seen.log) == seen.answers[0]["count"]
    assert 40 < seen.log.count("POST /") < 60


def test_http2_in_more_frames_than_usual(under_load: UnderLoad) -> None:
    encoders: dict[int, Encoder] = {}

    async def respond(visit: Http2Visit, stream: int) -> None:
        # An encoder for each connection: what it says depends on what it said before.
        block = encoders.setdefault(visit.number, Encoder()).encode(
            [(":status", "200"), ("content-length", str(len(BODY))), ("x-filler", "y" * 99)]
        )
        head = HeadersFrame(stream, block[:9], flags=["PADDED", "PRIORITY"], pad_length=7)
        rest = ContinuationFrame(stream, block[9:], flags=["END_HEADERS"])
        data = DataFrame(stream, BODY[:5], flags=["PADDED"], pad_length=3)
        empty = DataFrame(stream, BODY[5:], flags=["END_STREAM"])
        await visit.flush(b"".join(one.serialize() for one in (head, rest, data, empty)))

    seen = over_http2(under_load, respond, requests=20)
    assert (seen.failed, seen.visits) == ([], 1)
    assert seen.answers[0]["count"] == seen.requests


async def truncated(visit: Http2Visit, stream: int) -> None:
    await visit.answer(stream, BODY[:5], ends=False)
    visit.visit.writer.close()


async def too_short(visit: Http2Visit, stream: int) -> None:
    encoder = Encoder()
    block = encoder.encode([(":status", "200"), ("content-length", "999")])
    frames = (
        HeadersFrame(stream, block, flags=["END_HEADERS"]),
        DataFrame(stream, BODY, flags=["END_STREAM"]),
    )
    await visit.flush(b"".join(one.serialize() for one in frames))


async def no_status(visit: Http2Visit, stream: int) -> None:
    block = Encoder().encode([("content-length", "2")])
    await visit.flush(HeadersFrame(stream, block, flags=["END_HEADERS"]).serialize())


async def stream_reset(visit: Http2Visit, stream: int) -> None:
    visit.connection.reset_stream(stream, 2)


async def hang_up(visit: Http2Visit, stream: int) -> None:
    visit.visit.writer.close()


async def abort(visit: Http2Visit, stream: int) -> None:
    visit.visit.reset()


async def bad_gateway(visit: Http2Visit, stream: int) -> None:
    visit.connection.send_headers(stream, [(":status", "502")], end_stream=True)


async def nothing(visit: Http2Visit, stream: int) -> None:
    pass


async def nonsense(visit: Http2Visit, stream: int) -> None:
    # Refers to a header that was never sent.
    await visit.flush(HeadersFrame(stream, b"\xff\x20", flags=["END_HEADERS"]).serialize())


@pytest.mark.parametrize(
    ("respond", "words"),
    [
        (truncated, "truncated: closed by the server"),
        (too_short, f"InvalidBodyLengthError(999, {len(BODY)})"),
        (stream_reset, "RST_STREAM with <ErrorCodes.INTERNAL_ERROR: 2>"),
        (hang_up, "no answer: closed by the server"),
        (abort, "no answer: ConnectionResetError"),
        (bad_gateway, "502"),
        (nothing, "nothing within 0.3 s"),
        (nonsense, "no answer: "),
        (no_status, "no answer: "),
    ],
)
def test_what_is_no_answer_has_failed_over_http2(
    under_load: UnderLoad, respond: Respond, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    timeout = 0.3 if respond is nothing else 2
    seen = over_http2(under_load, respond, streams=1, requests=3, timeout=timeout, posts=0.4)
    assert seen.requests == len(seen.failed) == len(seen.log) >= 3
    assert all(words in one for one in seen.words), seen.words
    assert seen.replayed == 0
    assert {one["kind"] for one in seen.failed} == {"http/2"}
    assert caplog.messages == []  # it is told as a failure, and nowhere else


@pytest.mark.parametrize("warned", [False, True])
@pytest.mark.parametrize("posts", [0.0, 1.0])
def test_a_goaway(under_load: UnderLoad, posts: float, warned: bool) -> None:
    """Streams above the last one are asked for again; those below get their answer after it."""

    async def respond(visit: Http2Visit, stream: int) -> None:
        if visit.number > 1:
            await visit.answer(stream)
        elif len(visit.pending) == 4:
            for last in (2**31 - 1, visit.pending[1])[not warned :]:
                goaway = GoAwayFrame(0, last_stream_id=last, error_code=0)
                await visit.flush(goaway.serialize())
                await asyncio.sleep(0.05)
            for below in visit.pending[:2]:
                await visit.answer(below)

    seen = over_http2(under_load, respond, posts=posts, requests=20)
    assert seen.failed == []
    assert seen.replayed == seen.kinds["http/2"]["replayed"] == 2
    assert seen.visits == 2
    assert len(seen.log) == seen.requests + 2


def test_a_stream_that_a_goaway_kept_and_that_is_lost_has_failed(under_load: UnderLoad) -> None:
    async def respond(visit: Http2Visit, stream: int) -> None:
        if visit.number > 1:
            await visit.answer(stream)
        elif len(visit.pending) == 4:
            goaway = GoAwayFrame(0, last_stream_id=visit.pending[2], error_code=0)
            await visit.flush(goaway.serialize())
            await visit.answer(visit.pending[0])
            visit.visit.writer.close()

    seen = over_http2(under_load, respond, requests=20)
    assert (len(seen.failed), seen.replayed) == (2, 1)
    assert set(seen.words) == {"no answer: closed by the server"}


@pytest.mark.parametrize("posts", [0.0, 1.0])
def test_a_refused_stream_is_asked_for_again(under_load: UnderLoad, posts: float) -> None:
    async def respond(visit: Http2Visit, stream: int) -> None:
        if len(visit.pending) in (2, 5):
            visit.connection.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
        else:
            await visit.answer(stream)

    seen = over_http2(under_load, respond, posts=posts, requests=20)
    assert (seen.failed, seen.visits) == ([], 1)
    assert seen.replayed == seen.kinds["http/2"]["replayed"] == 2
    assert len(seen.log) == seen.requests + 2


def test_http2_with_answers_that_inform_and_trailers(under_load: UnderLoad) -> None:
    async def respond(visit: Http2Visit, stream: int) -> None:
        visit.connection.send_headers(stream, [(":status", "103"), ("link", "</a.css>")])
        await visit.answer(stream, ends=False)
        visit.connection.send_headers(stream, [("x-check", "1")], end_stream=True)

    seen = over_http2(under_load, respond)
    assert (seen.failed, seen.visits) == ([], 1)
    assert seen.answers[0]["count"] == seen.requests


def test_http2_with_a_server_that_takes_one_stream_at_a_time(under_load: UnderLoad) -> None:
    """What is asked before the server has said so is more, so the first requests do not count."""
    opened: list[int] = []

    async def respond(visit: Http2Visit, stream: int) -> None:
        if stream == 1:
            visit.connection.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
        opened.append(visit.connection.open_inbound_streams)
        await visit.answer(stream)

    seen = over_http2(under_load, respond, requests=30)
    assert (seen.failed, seen.replayed, seen.visits) == ([], 0, 1)
    assert set(opened[8:]) == {1}


def test_http2_with_a_server_that_takes_few_bytes_at_a_time(under_load: UnderLoad) -> None:
    visits: list[Http2Visit] = []

    async def respond(visit: Http2Visit, stream: int) -> None:
        if stream == 1:
            visits.append(visit)
            visit.connection.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 5})
        await visit.answer(stream)

    seen = over_http2(under_load, respond, posts=1.0, requests=30)
    assert (seen.failed, seen.replayed) == ([], 0)
    (visit,) = visits
    assert max(visit.parts[8:]) == 5
    assert sum(visit.parts) == len(seen.log) * len(load.BODY)


def test_http2_with_long_answers(under_load: UnderLoad, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came is given back to the server's window: altogether it is more than that."""
    monkeypatch.setattr(load, "WIDE", 2**16)

    async def respond(visit: Http2Visit, stream: int) -> None:
        visit.connection.send_headers(stream, [(":status", "200")])
        for _ in range(4):
            visit.connection.send_data(stream, b" " * 12_000)
        visit.connection.send_data(stream, BODY, end_stream=True)
        await visit.flush()

    seen = over_http2(under_load, respond, streams=1, requests=20)
    assert (seen.failed, seen.visits) == ([], 1)
    assert seen.answers[0]["count"] == seen.requests


def test_a_request_that_took_too_long_is_called_off(under_load: UnderLoad) -> None:
    """The connection goes on, and takes no harm from an answer that comes late."""
    visits: list[Http2Visit] = []

    async def respond(visit: Http2Visit, stream: int) -> None:
        visits.append(visit)
        late = stream == 1
        await asyncio.sleep(0.9 * late)
        await visit.answer(stream, BODY[:5] if late else BODY, ends=not late)

    seen = over_http2(under_load, respond, streams=1, timeout=0.6)
    assert seen.words == ["nothing within 0.6 s"]
    assert visits[0].called_off == [1]
    assert (seen.visits, seen.replayed) == (1, 0)
    assert seen.answers[0]["count"] == seen.requests - 1


# --- WebSockets and events ---


def message(kind: int, text: bytes, final: bool = True) -> bytes:
    return bytes([0x80 * final | kind, len(text)]) + text


async def shake(visit: Visit) -> None:
    head = await visit.asked()
    key = head.split("Sec-WebSocket-Key: ")[1].split("\r\n")[0]
    await visit.say(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept(key) + b"\r\n\r\n"
    )


def accept(key: str) -> bytes:
    """The digest of RFC 6455, as openssl makes it."""
    text = f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()
    digest = subprocess.run(
        ["openssl", "sha1", "-binary"], input=text, capture_output=True, check=True
    ).stdout
    return subprocess.run(
        ["openssl", "base64"], input=digest, capture_output=True, check=True
    ).stdout.strip()


async def hear(visit: Visit) -> tuple[int, bytes]:
    first, length = await visit.reader.readexactly(2)
    assert length & 0x80, "what a client says is masked"
    mask = await visit.reader.readexactly(4)
    masked = await visit.reader.readexactly(length & 0x7F)
    return first & 15, bytes(byte ^ mask[place % 4] for place, byte in enumerate(masked))


def echo(times: int, last: bytes, closes: list[bytes] | None = None) -> Serve:
    """Echoes so many messages, then says `last` and hangs up."""

    async def serve(visit: Visit) -> None:
        await shake(visit)
        for _ in range(times):
            kind, text = await hear(visit)
            await visit.say(message(9, b"ping") + message(kind, text))
            assert await hear(visit) == (10, b"ping")
            if kind == 8:
                return
        await visit.say(last)
        if closes is not None:
            while (heard := await hear(visit))[0] != 8:
                pass
            closes.append(heard[1])

    return serve


def test_a_websocket(under_load: UnderLoad) -> None:
    seen = under_load(echo(10**6, b""), websocket=1, requests=1, until=asyncio.sleep(0.5))
    assert (seen.failed, seen.reconnected, seen.visits) == ([], 0, 1)
    assert seen.kinds["websocket"]["messages"] > 5
    assert seen.requests == 1


def test_a_websocket_whose_messages_come_in_pieces(under_load: UnderLoad) -> None:
    async def serve(visit: Visit) -> None:
        await shake(visit)
        while (heard := await hear(visit))[0] == 1:
            await visit.say(message(1, heard[1][:1], final=False) + message(10, b""))
            await visit.say(message(0, b"", final=False) + message(0, heard[1][1:]))
        await visit.say(message(8, heard[1]))

    seen = under_load(serve, websocket=1, requests=1, until=asyncio.sleep(0.5))
    assert (seen.failed, seen.reconnected, seen.visits) == ([], 0, 1)
    assert seen.kinds["websocket"]["messages"] > 10


def test_a_websocket_says_goodbye(under_load: UnderLoad) -> None:
    """And hears what is said until the server does so, too."""
    closes: list[bytes] = []

    async def serve(visit: Visit) -> None:
        await shake(visit)
        while (heard := await hear(visit))[0] == 1:
            await visit.say(message(*heard))
        closes.append(heard[1])
        await visit.say(message(1, b"one more") + message(9, b"ping") + message(8, heard[1]))

    seen = under_load(serve, websocket=1, requests=1)
    assert (seen.failed, seen.reconnected) == ([], 0)
    assert closes == [struct.pack(">H", 1000)]


def test_a_websocket_with_a_close_frame_is_reconnected(under_load: UnderLoad) -> None:
    closes: list[bytes] = []
    serve = echo(2, message(8, struct.pack(">H", 1012) + b"bye"), closes)
    seen = under_load(serve, websocket=1, requests=4)
    assert seen.failed == []
    assert seen.reconnected == seen.kinds["websocket"]["reconnected"] >= 3
    assert closes[:3] == [struct.pack(">H", 1012)] * 3  # and answered with one


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (echo(2, b""), "closed by the server"),
        (echo(2, message(8, b"")[:1]), "closed by the server"),
        (echo(2, message(1, b"something else"), []), "came back as"),
        (echo(2, message(2, b"2"), []), "came back as"),
        (echo(2, message(1, b"\xff"), []), "no frame of a WebSocket: "),
        (echo(2, message(0x41, b"2"), []), "no frame of a WebSocket: "),
        (echo(2, message(8, struct.pack(">H", 1006)), []), "no frame of a WebSocket: "),
    ],
)
def test_a_websocket_that_breaks_has_failed(
    under_load: UnderLoad, serve: Serve, words: str
) -> None:
    seen = under_load(serve, websocket=1, requests=3)
    assert seen.reconnected == 0
    # At the end it is the client that says goodbye.
    assert len(seen.failed) >= seen.visits - 1 >= 2
    assert all(words in one for one in seen.words), seen.words


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "502"),
        (b"HTTP/1.1 101 Switching\r\nSec-WebSocket-Accept: x\r\n\r\n", "does not fit"),
        (b"", "closed by the server"),
    ],
)
def test_a_handshake_that_is_refused_has_failed(
    under_load: UnderLoad, data: bytes, words: str
) -> None:
    seen = under_load(answer(data), websocket=1, requests=3)
    assert len(seen.failed) == seen.requests == seen.visits >= 3
    assert all(words in one for one in seen.words), seen.words


EVENT = b"d\r\ndata: hello\n\n\r\n"


def events(times: int, last: bytes) -> Serve:
    async def serve(visit: Visit) -> None:
        await visit.asked()
        await visit.say(CHUNKED)
        for _ in range(times):
            await visit.say(EVENT)
            await asyncio.sleep(0.01)
        await visit.say(last)

    return serve


def test_events(under_load: UnderLoad) -> None:
    seen = under_load(events(10**6, b""), events=1, requests=1, until=asyncio.sleep(0.3))
    assert (seen.failed, seen.reconnected, seen.visits) == ([], 0, 1)
    assert seen.kinds["events"]["messages"] > 5


def test_an_event_in_two_chunks_is_one(under_load: UnderLoad) -> None:
    async def serve(visit: Visit) -> None:
        await visit.asked()
        await visit.say(CHUNKED)
        for _ in range(3):
            for part in (b"c\r\ndata: hello\n\r\n", b"1\r\n\n\r\n"):
                await visit.say(part)
                await asyncio.sleep(0.01)
        await visit.say(b"0\r\n\r\n")

    seen = under_load(serve, events=1, requests=4)
    assert (seen.failed, seen.kinds["events"]["messages"]) == ([], 3 * seen.reconnected)
    assert seen.reconnected >= 3


def test_an_event_stream_of_which_nobody_could_tell_where_it_ends(under_load: UnderLoad) -> None:
    seen = under_load(answer(b"HTTP/1.1 200 OK\r\n\r\n" + EVENT), events=1, requests=3)
    assert seen.requests == len(seen.failed) >= 3
    assert all("without a length" in one for one in seen.words)


def test_an_event_stream_that_ends_is_taken_up_again(under_load: UnderLoad) -> None:
    seen = under_load(events(3, b"0\r\n\r\n"), events=1, requests=4)
    assert seen.failed == []
    assert seen.reconnected >= 3
    assert seen.kinds["events"]["messages"] >= 9


def test_an_event_stream_that_breaks_has_failed(under_load: UnderLoad) -> None:
    seen = under_load(events(3, b""), events=1, requests=4)
    assert seen.reconnected == 0
    assert len(seen.failed) >= 3
    assert all("truncated before its last chunk" in one for one in seen.words)


def test_an_event_stream_that_falls_silent_has_failed(under_load: UnderLoad) -> None:
    async def serve(visit: Visit) -> None:
        await visit.asked()
        await visit.say(CHUNKED + EVENT)
        await visit.reader.read()

    seen = under_load(serve, events=1, requests=2, timeout=0.2)
    assert len(seen.failed) >= 1
    assert seen.words[0] == "nothing within 0.2 s"


# --- when it stops, and what it tells ---


def test_it_goes_on_until_it_is_told(under_load: UnderLoad) -> None:
    seen = under_load(well, keep=1, requests=1, until=asyncio.sleep(0.5))
    assert seen.stopped - seen.started >= 0.5
    assert seen.requests > 10


def test_it_goes_on_until_enough_is_done(under_load: UnderLoad) -> None:
    seen = under_load(well, keep=2, requests=500)
    assert 500 <= seen.requests <= 504  # those that were under way


def test_it_does_not_go_on_for_ever(under_load: UnderLoad) -> None:
    seen = under_load(well, keep=1, requests=10**9, patience=0.2)
    assert 0.2 <= seen.stopped - seen.started < 2
    seen = under_load(well, keep=1, until=asyncio.sleep(1), limit=0.2)
    assert seen.stopped - seen.started < 0.9


def test_the_rate_is_kept(under_load: UnderLoad) -> None:
    seen = under_load(well, keep=4, rate=100, requests=50)
    assert seen.stopped - seen.started >= 0.45


def test_a_gap_and_a_change_of_release(under_load: UnderLoad) -> None:
    async def serve(visit: Visit) -> None:
        while await visit.asked():
            done = len(visit.log)
            if done == 10:
                await asyncio.sleep(0.4)
            if 10 <= done < 15:
                await visit.say(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            else:
                await visit.say(GOOD if done < 10 else GOOD.replace(b"one", b"two"))

    seen = under_load(serve, keep=1, requests=30)
    assert len(seen.failed) == 5
    assert 0.4 <= seen.gap_seconds < 2
    old, new = seen.answers
    assert (old["release"], old["count"]) == ("one", 9)
    assert (new["release"], new["count"]) == ("two", seen.requests - 14)
    assert old["asked"] <= old["last"] < new["first"] - 0.4


def test_the_command_line(tmp_path: Path) -> None:
    """The two lines, and an end when standard input ends; nothing but LIBRARIES is needed."""
    shutil.copy(ROOT / "tests/e2e/load.py", tmp_path)
    for library in LIBRARIES:
        (tmp_path / library).symlink_to(Path(sysconfig.get_path("purelib")) / library)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        order = {"address": "127.0.0.1", "port": free.getsockname()[1], "domain": NAME}
        result = subprocess.run(
            [sys.executable, "-S", str(tmp_path / "load.py"), json.dumps(order)],
            input="",
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    begun, said = map(json.loads, result.stdout.splitlines())
    assert begun == {"begun": True}
    assert said["requests"] == len(said["failed"]) >= 8

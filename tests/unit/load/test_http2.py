"""
The load generator: each fault of a server is counted correctly. Here it speaks HTTP/2
with the h2 library, which tells when the client breaks a rule.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes
from hpack import Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, GoAwayFrame, HeadersFrame

from tests.e2e import load
from tests.unit.load.servers import BODY, COUNTED, Outcome, Serve, UnderLoad, Visit

pytestmark = COUNTED


Respond = Callable[["Http2Visit", int], Awaitable[None]]


class Http2Visit:
    def __init__(self, visit: Visit) -> None:
        self.visit, self.number = visit, visit.number
        self.connection = H2Connection(H2Configuration(client_side=False))
        self.pending: list[int] = []
        self.parts: list[int] = []  # lengths of the received DATA frames
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
        # One encoder for each connection: its output depends on earlier headers.
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
    # This block refers to a header that was never sent.
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
def test_a_bad_answer_over_http2_has_failed(
    under_load: UnderLoad, respond: Respond, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    timeout = 0.3 if respond is nothing else 2
    seen = over_http2(under_load, respond, streams=1, requests=3, timeout=timeout, posts=0.4)
    assert seen.requests == len(seen.failed) == len(seen.log) >= 3
    assert all(words in one for one in seen.words), seen.words
    assert seen.replayed == 0
    assert {one["kind"] for one in seen.failed} == {"http/2"}
    assert caplog.messages == []  # it is reported as a failure, and nowhere else


@pytest.mark.parametrize("warned", [False, True])
@pytest.mark.parametrize("posts", [0.0, 1.0])
def test_a_goaway(under_load: UnderLoad, posts: float, warned: bool) -> None:
    """Streams above the last one are sent again; the others get their answer after the GOAWAY."""

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
    """Until the server announces its limit there are more, so the first requests do not count."""
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
    """Received bytes reopen the server's window: the answers are larger than one window."""
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
    """The connection stays in use, and a late answer does no harm."""
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

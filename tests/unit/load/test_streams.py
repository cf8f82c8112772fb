"""
The load generator: each fault of a server is counted correctly. Here it holds WebSockets
and streams of events.
"""

from __future__ import annotations

import asyncio
import struct
import subprocess

import pytest

from tests.unit.load.servers import CHUNKED, COUNTED, Serve, UnderLoad, Visit, answer

pytestmark = COUNTED


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
    """The digest of RFC 6455, computed by openssl."""
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
    """Echoes this number of messages, then sends `last` and closes the connection."""

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
    """It still receives messages until the server says goodbye too."""
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
    assert closes[:3] == [struct.pack(">H", 1012)] * 3  # answered with a close frame


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
    # At the end the client closes the connection.
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


def test_an_event_stream_without_a_visible_end_has_failed(under_load: UnderLoad) -> None:
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

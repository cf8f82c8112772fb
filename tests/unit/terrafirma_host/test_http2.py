"""A GET over HTTP/2 and over TLS: real servers, and frames made by hand."""

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived
from hpack import Encoder
from terrafirma_host import health
from terrafirma_host.http2 import ACK, END_HEADERS, GOAWAY, HEADERS, PING, RESET, SETTINGS
from terrafirma_host.spec import Application

from tests.unit.caddy.real import h2c_replica, replica
from tests.unit.terrafirma_host.applications import described


@pytest.fixture
def asked() -> Application:
    return described(protocol="h2c", timeout_seconds=1, health_headers={"X-Long": "x" * 300})


def frame(kind: int, payload: bytes, flags: int = 0, stream: int = 1) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack("!BBI", kind, flags, stream) + payload


def status(number: str, *, huffman: bool = True) -> bytes:
    return Encoder().encode([(":status", number), ("grpc-status", "12")], huffman=huffman)


GREETING = frame(SETTINGS, struct.pack("!HI", 3, 100), stream=0)


Answer = Callable[[socket.socket, bytes], None]


@contextmanager
def speaking(answer: Answer) -> Iterator[int]:
    """The port of a server that does this with each connection, after its first bytes."""

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    answer(connection, connection.recv(65536))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def answers(*frames: bytes) -> Answer:
    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"".join(frames))
        connection.settimeout(2)
        while connection.recv(65536):
            pass

    return answer


@pytest.mark.parametrize("huffman", [True, False])
@pytest.mark.parametrize(
    "number", ["200", "204", "206", "304", "400", "404", "500", "503", "415", "367", "289", "421"]
)
def test_statuses(asked: Application, number: str, huffman: bool) -> None:
    head = frame(HEADERS, status(number, huffman=huffman), END_HEADERS)
    with speaking(answers(GREETING, head)) as port:
        assert health.ask(asked, port).status == int(number)


def test_other_frames_come_before_the_answer(asked: Application) -> None:
    early = frame(HEADERS, status("103"), END_HEADERS)
    padded = bytes([2]) + struct.pack("!IB", 0, 9) + status("200") + b"\0\0"
    # A change of the table's size, by a small and by a large number.
    sized = b"\x20" + b"\x3f\xe1\x1f" + status("200")
    for last in (
        frame(HEADERS, padded, END_HEADERS | 0x8 | 0x20),
        frame(HEADERS, sized, END_HEADERS),
        # A name that is written out.
        frame(HEADERS, b"\0\x07:status\x03200", END_HEADERS),
    ):
        others = GREETING, frame(SETTINGS, b"", ACK, 0), frame(PING, b"12345678", 0, 0), early
        with speaking(answers(*others, frame(RESET, b"\0\0\0\0", 0, 3), last)) as port:
            assert health.ask(asked, port).good


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (frame(RESET, struct.pack("!I", 7)), "it refuses the request (HTTP/2 error 7)"),
        (frame(GOAWAY, struct.pack("!II", 0, 1), 0, 0), "it ends the connection (HTTP/2 error 1)"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it speaks HTTP/1.1 alone there: set protocol to "),
        (b"220 mail.acme.com ESMTP\r\n", "it speaks no HTTP/2 there"),
        (frame(HEADERS, b"", END_HEADERS), "its answer has no status"),
        (frame(HEADERS, b"\x20", END_HEADERS), "its answer has no status"),
        (frame(HEADERS, b"\x80", END_HEADERS), "its answer does not begin with a status"),
        (frame(HEADERS, b"\xc0", END_HEADERS), "its answer does not begin with a status"),
        (frame(HEADERS, b"\x48", END_HEADERS), "its answer has no status"),
        (frame(HEADERS, b"\x48\x03abc", END_HEADERS), "its answer has no status"),
        (frame(HEADERS, b"\x48\x82\xff\xff", END_HEADERS), "its answer has no status"),
        (GREETING, "no answer within 1 s"),
    ],
)
def test_answers_without_a_status(asked: Application, sent: bytes, words: str) -> None:
    with speaking(answers(sent)) as port:
        answer = health.ask(asked, port)
    assert not answer.good
    assert words in health.words(asked, answer)


def test_real_servers(asked: Application, tls: ssl.SSLContext) -> None:
    with speaking(answers(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        assert "HTTP/1.1 alone" in health.ask(asked, port).error
        error = health.ask(replace(asked, protocol="https"), port).error
        assert error.startswith("it speaks no TLS there (")
        assert error.endswith("): set protocol to http")
    free = 9000
    with h2c_replica(free, "me"):
        assert health.ask(asked, free).good
    with replica(free, "me", tls):
        assert health.ask(replace(asked, protocol="https"), free).good


def test_what_is_asked(asked: Application) -> None:
    """A server that reads headers strictly understands the request."""
    found: list[dict[str, str]] = []

    def answer(connection: socket.socket, begun: bytes) -> None:
        state = H2Connection(H2Configuration(client_side=False))
        state.initiate_connection()
        data = begun
        while not found:
            found.extend(
                {k.decode(): v.decode() for k, v in event.headers}
                for event in state.receive_data(data)
                if isinstance(event, RequestReceived)
            )
            if not found:
                data = connection.recv(65536)
        state.send_headers(1, [(":status", "200")], end_stream=True)
        connection.sendall(state.data_to_send())

    with speaking(answer) as port:
        assert health.ask(asked, port).good
    assert found == [
        {
            ":method": "GET", ":scheme": "http", ":path": "/healthz", ":authority": asked.domain,
            "user-agent": "terrafirma", "x-forwarded-proto": "https", "x-long": "x" * 300,
        }
    ]  # fmt: skip

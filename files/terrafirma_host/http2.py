"""
Managed by Terrafirma. One GET over HTTP/2 without TLS (h2c), for the status of its answer.

A server that speaks nothing else, like one for gRPC, cannot be asked over HTTP/1.1. Only the first
field of the answer is read: the status comes before all others (RFC 9113, 8.3).
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Mapping

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RESET, SETTINGS, PING, GOAWAY, CONTINUATION = 1, 3, 4, 6, 7, 9
ACK, END_STREAM, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

# The statuses in HPACK's static table, from this index on.
STATUS = 8
STATUSES = (200, 204, 206, 304, 400, 404, 500)
# The codes of the digits in HPACK: 0 to 2 have five bits, the others six.
SHORT = {0b00000: "0", 0b00001: "1", 0b00010: "2"}
LONG = {0b011001 + number: str(number + 3) for number in range(7)}

# Bytes of a frame: the largest that a server may send without being allowed more.
LARGEST = 16 * 1024


class NoHttp2(Exception):
    """Why there is no status."""


def get(connection: socket.socket, path: str, headers: Mapping[str, str], until: float) -> int:
    """The status of an answer; raises NoHttp2 for any other, and TimeoutError after `until`."""
    fields = {
        ":method": "GET", ":scheme": "http", ":path": path, ":authority": headers["Host"],
        **{name.lower(): value for name, value in headers.items() if name != "Host"},
    }  # fmt: skip
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
    # No table for headers, so that the answer needs none; no pushed answers.
    settings = struct.pack("!HIHI", 1, 0, 2, 0)
    connection.sendall(
        HELLO + _frame(SETTINGS, 0, 0, settings)
        + _frame(HEADERS, END_STREAM | END_HEADERS, 1, block)
    )  # fmt: skip
    for status in _statuses(connection, until):
        # An interim response comes before the answer.
        if status >= 200:
            return status
    raise NoHttp2("its answer ends without a status")


def _statuses(connection: socket.socket, until: float) -> Iterator[int]:
    while True:
        kind, flags, stream, payload = _read(connection, until)
        match kind:
            case _ if kind == SETTINGS and not flags & ACK:
                connection.sendall(_frame(SETTINGS, ACK, 0, b""))
            case _ if kind == PING and not flags & ACK:
                connection.sendall(_frame(PING, ACK, 0, payload))
            case _ if kind == GOAWAY:
                raise NoHttp2(f"it ends the connection (HTTP/2 error {_number(payload[4:8])})")
            case _ if kind == RESET and stream == 1:
                raise NoHttp2(f"it refuses the request (HTTP/2 error {_number(payload[:4])})")
            case _ if kind == HEADERS and stream == 1:
                start = (1 if flags & PADDED else 0) + (5 if flags & PRIORITY else 0)
                yield _status(payload[start:])


def _read(connection: socket.socket, until: float) -> tuple[int, int, int, bytes]:
    head = _bytes(connection, 9, until)
    if head.startswith(b"HTTP/"):
        raise NoHttp2("it speaks HTTP/1.1 alone there: set protocol to http")
    length = int.from_bytes(head[:3], "big")
    if length > LARGEST:
        raise NoHttp2("it speaks no HTTP/2 there")
    stream = int.from_bytes(head[5:9], "big") & 0x7FFFFFFF
    return head[3], head[4], stream, _bytes(connection, length, until)


def _bytes(connection: socket.socket, number: int, until: float) -> bytes:
    received = b""
    while len(received) < number:
        if (left := until - time.monotonic()) <= 0:
            raise TimeoutError
        connection.settimeout(left)
        more = connection.recv(number - len(received))
        if not more:
            raise ConnectionError
        received += more
    return received


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack("!BBI", kind, flags, stream) + payload


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


# --- HPACK ----------------------------------------------------------------------------------------


def _text(value: str) -> bytes:
    data = value.encode()
    return _length(len(data)) + data


def _length(number: int) -> bytes:
    """A number with a prefix of seven bits."""
    if number < 0x7F:
        return bytes([number])
    rest, answer = number - 0x7F, [0x7F]
    while rest >= 0x80:
        answer.append(rest % 0x80 + 0x80)
        rest //= 0x80
    return bytes([*answer, rest])


def _status(block: bytes) -> int:
    """The status in the first field of a block."""
    # Changes of the table's size come first.
    while block and block[0] & 0xE0 == 0x20:
        long = block[0] & 0x1F == 0x1F
        block = block[1:].lstrip(bytes(range(0x80, 0x100)))[1:] if long else block[1:]
    if not block:
        raise NoHttp2("its answer has no status")
    first, rest = block[0], block[1:]
    if first & 0x80 and STATUS <= first & 0x7F < STATUS + len(STATUSES):
        return STATUSES[(first & 0x7F) - STATUS]
    index = first & (0x3F if first & 0x40 else 0x0F)
    if index == 0 and rest[:1] in (b"\x07", b"\x85"):
        # The name itself, plain or by Huffman's codes.
        rest = rest[1 + (rest[0] & 0x7F) :]
    elif not STATUS <= index < STATUS + len(STATUSES):
        raise NoHttp2("its answer does not begin with a status")
    value = rest[1 : 1 + (rest[0] & 0x7F)] if rest else b""
    text = _digits(value) if rest and rest[0] & 0x80 else value.decode("latin-1")
    if not (len(text) == 3 and text.isdecimal()):
        raise NoHttp2("its answer has no status")
    return int(text)


def _digits(data: bytes) -> str:
    """Digits in Huffman's codes; the last bits may be padding."""
    bits = "".join(f"{byte:08b}" for byte in data)
    text = ""
    while len(bits) >= 5:
        for size, codes in ((5, SHORT), (6, LONG)):
            if len(bits) >= size and (digit := codes.get(int(bits[:size], 2))):
                text, bits = text + digit, bits[size:]
                break
        else:
            break
    return text

"""
Managed by Terrafirma. The head of an answer over HTTP/1, and the beginning of its body.

It is read strictly, so that no Caddy is stricter.
"""

from __future__ import annotations

import re
import socket
import time
import zlib

from terrafirma_host.shell import plain

# Bytes of a head: more than any real one has, and less than Caddy accepts.
HEAD = 256 * 1024

# Bytes that are read of an error page.
PAGE = 16 * 1024


class NoHttp(Exception):
    """The reason why an answer is not HTTP/1."""


_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})( [^\x00-\x08\x0a-\x1f\x7f]*)?")
_NO_TRAILERS = {"content-length", "trailer", "transfer-encoding"}
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00-\x08\x0a-\x1f\x7f]*)")


Fields = dict[str, list[str]]


def head_of(connection: socket.socket, until: float) -> tuple[int, Fields, bytes]:
    """Status, headers, and the part of the body that has arrived."""
    received, interim = b"", 0
    while True:
        if not b"HTTP/1.".startswith(received[:7]):
            raise NoHttp(_speaks(received))
        if end := _END.search(received):
            status, fields = _parse(received[: end.start()])
            received = received[end.end() :]
            # Interim responses, like early hints, come before the answer.
            if status >= 200 or status == 101:
                return status, fields, received
            interim += 1
            if interim > 5:
                raise NoHttp("it sends one interim response (1xx) after the other")
            continue
        if len(received) > HEAD:
            raise NoHttp(f"the head of its answer has more than {HEAD // 1024} kB")
        if (left := until - time.monotonic()) <= 0:
            raise TimeoutError
        connection.settimeout(left)
        more = connection.recv(65536)
        if not more and received:
            raise NoHttp("its answer breaks off in its head")
        if not more:
            raise ConnectionError
        received += more


def _parse(head: bytes) -> tuple[int, Fields]:
    first, *rest = re.split(rb"\r?\n", head)
    begins = _STATUS.fullmatch(first)
    if not begins:
        raise NoHttp(f"its answer is malformed: {_quote(first)}")
    fields: Fields = {}
    for line in rest:
        field = _FIELD.fullmatch(line)
        if not field:
            raise NoHttp(f"its answer has a malformed header: {_quote(line)}")
        name, value = (part.decode("latin-1").strip(" \t") for part in field.groups())
        fields.setdefault(name.lower(), []).append(value)
    lengths = set(fields.get("content-length", ["0"]))
    if len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,18}", min(lengths)):
        raise NoHttp(f"its answer has a Content-Length of {' and '.join(sorted(lengths))}")
    codings = [value.lower() for value in fields.get("transfer-encoding", ())]
    if codings not in ([], ["chunked"]):
        raise NoHttp(f"its answer has a Transfer-Encoding of {', '.join(codings)}")
    trailers = ",".join(fields.get("trailer", ())).split(",")
    if wrong := _NO_TRAILERS & {name.strip(" \t").lower() for name in trailers}:
        raise NoHttp(f"its answer has a Trailer of {' and '.join(sorted(wrong))}")
    return int(begins[1]), fields


def _speaks(received: bytes) -> str:
    """Which protocol these first bytes are of, as a message."""
    if received[:2] in (b"\x15\x03", b"\x16\x03"):
        return ("it speaks TLS there: let it speak plain HTTP, Caddy has the certificate; or set "
                "protocol to https")  # fmt: skip
    if received[3:5] == b"\x04\x00" and received[5:9] == b"\x00" * 4:
        return ("it speaks HTTP/2 alone there (gRPC?): let it speak HTTP/1.1 as well; or set "
                "protocol to h2c")  # fmt: skip
    return f"it speaks no HTTP there: {_quote(received)}"


def _quote(received: bytes) -> str:
    return repr(plain(received[:60].decode(errors="replace")))


def rest_of(connection: socket.socket) -> bytes:
    """The rest of a body that arrives within a moment."""
    until, body = time.monotonic() + 0.3, b""
    try:
        while len(body) < PAGE and (left := until - time.monotonic()) > 0:
            connection.settimeout(left)
            if not (more := connection.recv(PAGE)):
                break
            body += more
    except OSError:
        pass
    return body


def decoded(fields: Fields, body: bytes) -> bytes:
    """A body, or its beginning, without chunking and compression; empty for an unknown encoding."""
    if "transfer-encoding" in fields:
        chunks, rest = [], body
        while size := re.match(rb"0*([1-9a-fA-F][0-9a-fA-F]{0,7})\b[^\n]*\n", rest):
            end = size.end() + int(size[1], 16)
            chunks.append(rest[size.end() : end])
            rest = rest[end:].lstrip(b"\r\n")
        body = b"".join(chunks)
    match ",".join(fields.get("content-encoding", ())).lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip":
            try:
                return zlib.decompressobj(31).decompress(body, PAGE)
            except zlib.error:
                pass
    return b""

"""
Managed by Terrafirma. Reads the fingerprint of an OpenPGP key, and until when it is valid.

Nothing here verifies a signature: apt does that, with the key. No other key has the fingerprint of
a key, so the fingerprint alone identifies it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from terrafirma_host.shell import Failed

BEGIN, END = "-----BEGIN PGP PUBLIC KEY BLOCK-----", "-----END PGP PUBLIC KEY BLOCK-----"
# Tags of packets (RFC 9580, section 5).
SIGNATURE, SECRET, PUBLIC, SECRET_SUBKEY, USER, SUBKEY = 2, 5, 6, 7, 13, 14
TRUST, USER_ATTRIBUTE = 12, 17
# Types of signatures: on a user ID, on the key itself, and the key's revocation.
OF_A_USER, OF_THE_KEY, REVOCATION = (0x10, 0x11, 0x12, 0x13), 0x1F, 0x20
# Types of a signature's subpackets.
CREATED, LIFETIME, ISSUER, ISSUER_FINGERPRINT = 2, 9, 16, 33


@dataclass(frozen=True)
class Key:
    """A primary key."""

    fingerprint: str
    created: int
    expires: int | None = None
    """Seconds since 1970; None: never."""
    revoked: bool = False


def binary(text: bytes) -> bytes:
    """The packets of a key with or without armor; raises Failed if there are none."""
    if text[:1] and text[0] & 0x80:
        return text
    try:
        lines = text.decode("ascii").replace("\r", "")
    except UnicodeDecodeError:
        raise Failed("it is not an OpenPGP key") from None
    blocks = re.findall(rf"^{BEGIN}\n(.*?)^{END}$", lines, re.DOTALL | re.MULTILINE)
    if not blocks or "PRIVATE KEY BLOCK" in lines:
        raise Failed("it is not a public OpenPGP key")
    return b"".join(map(_unarmored, blocks))


def _unarmored(block: str) -> bytes:
    head, found, body = block.partition("\n\n")
    # Headers are optional, and without them so is the empty line.
    if not found:
        body = head
    data, _, checksum = body.partition("\n=")
    try:
        packets = base64.b64decode("".join(data.split()), validate=True)
        wanted = base64.b64decode(checksum.strip(), validate=True)
    except binascii.Error:
        raise Failed("it is an OpenPGP key that is damaged or incomplete") from None
    if wanted and wanted != crc24(packets):
        raise Failed("it is an OpenPGP key that is damaged or incomplete")
    return packets


def armored(packets: bytes) -> str:
    """A key as text, in one form whatever form it came in."""
    data = base64.b64encode(packets).decode()
    rows = [data[start : start + 64] for start in range(0, len(data), 64)]
    return "\n".join([BEGIN, "", *rows, f"={base64.b64encode(crc24(packets)).decode()}", END])


def crc24(data: bytes) -> bytes:
    value = 0xB704CE
    for byte in data:
        value ^= byte << 16
        for _ in range(8):
            value <<= 1
            if value & 0x1000000:
                value ^= 0x1864CFB
    return value.to_bytes(3, "big")


def keys(packets: bytes) -> list[Key]:
    """All primary keys; raises Failed for data that cannot be read, as a key may hide in it."""
    found: list[Key] = []
    latest = -1
    of_the_key = False
    for tag, body in _packets(packets):
        if tag in (SECRET, SECRET_SUBKEY):
            raise Failed("it is a secret key, which must not be published")
        if tag not in (SIGNATURE, PUBLIC, USER, SUBKEY, TRUST, USER_ATTRIBUTE):
            raise Failed("it contains more than an OpenPGP key")
        if tag == PUBLIC:
            found.append(_key(body))
            latest, of_the_key = -1, True
        elif tag == SUBKEY:
            # The signatures that follow belong to the subkey.
            of_the_key = False
        elif tag == SIGNATURE and found and of_the_key:
            signature = _signature(body, found[-1])
            if signature is None:
                continue
            kind, created, lifetime = signature
            if kind == REVOCATION:
                found[-1] = replace(found[-1], revoked=True)
            # A signature on the key itself without a lifetime is about something else.
            elif (kind in OF_A_USER or (kind == OF_THE_KEY and lifetime)) and created >= latest:
                latest = created
                expires = found[-1].created + lifetime if lifetime else None
                found[-1] = replace(found[-1], expires=expires)
    if not found:
        raise Failed("it contains no OpenPGP key")
    return found


def _key(body: bytes) -> Key:
    if not body or body[0] != 4 or len(body) < 6:
        version = body[0] if body else 0
        raise Failed(f"it is an OpenPGP key of version {version}, and only version 4 is supported")
    start = b"\x99" + len(body).to_bytes(2, "big")
    # A fingerprint of version 4 is defined as SHA-1.
    fingerprint = hashlib.sha1(start + body, usedforsecurity=False).hexdigest().upper()
    return Key(fingerprint, int.from_bytes(body[1:5], "big"))


def _signature(body: bytes, key: Key) -> tuple[int, int, int] | None:
    """
    The type of a key's own signature, its date, and the lifetime that it gives the key.

    None for a signature of another key.
    """
    if len(body) < 6 or body[0] != 4:
        return None
    length = int.from_bytes(body[4:6], "big")
    parts = dict(_parts(body[6 : 6 + length]))
    rest = body[6 + length :]
    # The issuer may be in the part that is not signed.
    others = dict(_parts(rest[2 : 2 + int.from_bytes(rest[:2], "big")])) | parts
    issuer = others.get(ISSUER, b"") or others.get(ISSUER_FINGERPRINT, b"")[-8:]
    if issuer.hex().upper() != key.fingerprint[-16:]:
        return None
    return (
        body[1],
        int.from_bytes(parts.get(CREATED, b""), "big"),
        int.from_bytes(parts.get(LIFETIME, b""), "big"),
    )


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        size, data = _length(data)
        if not 0 < size <= len(data):
            raise Failed("it is an OpenPGP key that is damaged or incomplete")
        # The upper bit only marks the subpacket as critical.
        yield data[0] & 0x7F, data[1:size]
        data = data[size:]


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    damaged = Failed("it is an OpenPGP key that is damaged or incomplete")
    while data:
        first, data = data[0], data[1:]
        if not first & 0x80:
            raise damaged
        if first & 0x40:
            tag = first & 0x3F
            if data and 224 <= data[0] < 255:
                # A partial length, which no key has.
                raise damaged
            size, data = _length(data)
        else:
            tag, width = (first >> 2) & 0x0F, 1 << (first & 3)
            if width == 8 or len(data) < width:
                raise damaged
            size, data = int.from_bytes(data[:width], "big"), data[width:]
        if size > len(data):
            raise damaged
        yield tag, data[:size]
        data = data[size:]


def _length(data: bytes) -> tuple[int, bytes]:
    """The length at the beginning of the data, and the data after it."""
    first = data[0] if data else 0
    if first < 192:
        return first, data[1:]
    if first < 255:
        return ((first - 192) << 8) + int.from_bytes(data[1:2], "big") + 192, data[2:]
    return int.from_bytes(data[1:5], "big"), data[5:]

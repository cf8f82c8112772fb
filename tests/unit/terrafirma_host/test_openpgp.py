"""Fingerprint and validity of a key, and data that is not a key."""

import hashlib
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
from terrafirma_host import openpgp
from terrafirma_host.shell import Failed

CREATED = 1_600_000_000


def packet(tag: int, body: bytes) -> bytes:
    return bytes([0x80 | tag << 2 | 1]) + len(body).to_bytes(2, "big") + body


def public(number: int = 7, *, tag: int = openpgp.PUBLIC, version: int = 4) -> bytes:
    return packet(tag, bytes([version]) + CREATED.to_bytes(4, "big") + b"\x01" + bytes([number]))


def fingerprint(number: int = 7) -> str:
    body = public(number)[3:]
    return hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper()


def part(kind: int, value: bytes) -> bytes:
    return bytes([len(value) + 1, kind]) + value


def signature(
    kind: int = 0x13, created: int = CREATED, lifetime: int = 0, by: int = 7, *, old: bool = False
) -> bytes:
    parts = part(2, created.to_bytes(4, "big"))
    parts += part(9 | 0x80, lifetime.to_bytes(4, "big")) if lifetime else b""
    name = bytes.fromhex(fingerprint(by))
    issuer = part(16, name[-8:]) if old else part(33, b"\x04" + name)
    return packet(
        openpgp.SIGNATURE,
        bytes([4, kind, 1, 8])
        + len(parts).to_bytes(2, "big")
        + parts
        + len(issuer).to_bytes(2, "big")
        + issuer,
    )


USER = packet(openpgp.USER, b"Vendor <v@example.com>")
SUBKEY = packet(openpgp.SUBKEY, b"\x04" + bytes(9))
LATER = CREATED + 86_400


@pytest.mark.parametrize(
    ("packets", "expires", "revoked"),
    [
        (public(), None, False),
        (public() + USER + signature(), None, False),
        (public() + USER + signature(lifetime=60), CREATED + 60, False),
        # A trust packet, and a user attribute.
        (
            public() + packet(12, b"\x00") + b"\xd1\x02\x01x" + signature(lifetime=60),
            *(CREATED + 60, False),
        ),
        (public() + USER + signature(lifetime=60, old=True), CREATED + 60, False),
        (public() + signature(0x1F, lifetime=60), CREATED + 60, False),
        # The latest signature counts.
        (
            public() + USER + signature(lifetime=60) + signature(created=LATER, lifetime=90),
            *(CREATED + 90, False),
        ),
        (
            public() + USER + signature(created=LATER, lifetime=90) + signature(lifetime=60),
            *(CREATED + 90, False),
        ),
        (
            public() + USER + signature(lifetime=60) + signature(created=LATER),
            *(None, False),
        ),
        # Signatures on something else, or by another key.
        (
            public() + signature(0x1F, created=LATER) + USER + signature(lifetime=60),
            *(CREATED + 60, False),
        ),
        (public() + USER + signature() + signature(0x10, LATER, 60, by=8), None, False),
        (public() + USER + signature() + signature(0x20, LATER, by=8), None, False),
        (public() + USER + signature() + SUBKEY + signature(0x18, LATER, 60), None, False),
        (public() + USER + signature() + SUBKEY + signature(0x28, LATER), None, False),
        (public() + signature(0x20, LATER) + USER + signature(), None, True),
    ],
)
def test_until_when_a_key_is_valid(packets: bytes, expires: int | None, revoked: bool) -> None:
    (key,) = openpgp.keys(packets)
    assert key == openpgp.Key(fingerprint(), CREATED, expires, revoked)


def test_every_primary_key_is_found() -> None:
    found = openpgp.keys(public(1) + USER + public(2) + signature(0x20, by=2) + public(3))
    assert [key.fingerprint for key in found] == [fingerprint(number) for number in (1, 2, 3)]
    assert [key.revoked for key in found] == [False, True, False]


def test_armor_is_taken_off_and_put_on() -> None:
    packets = public() + USER + signature()
    text = openpgp.armored(packets)
    assert openpgp.binary(text.encode()) == packets
    assert openpgp.binary(packets) == packets
    assert max(map(len, text.splitlines())) <= 64
    # Keys in the wild have headers, text around them, or line breaks of another system.
    found = text.replace("BLOCK-----\n\n", "BLOCK-----\nVersion: GnuPG v1\nComment: x\n\n", 1)
    for one in (found, f"Our key:\n{found}\n", found.replace("\n", "\r\n")):
        assert openpgp.binary(one.encode()) == packets
    # Newer programs leave out the checksum.
    lines = [line for line in text.splitlines() if not line.startswith("=")]
    assert openpgp.binary("\n".join(lines).encode()) == packets
    both = f"{text}\n{openpgp.armored(public(2))}\n"
    assert len(openpgp.keys(openpgp.binary(both.encode()))) == 2


TEXT = openpgp.armored(public() + USER + signature())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "not a public OpenPGP key"),
        (b"<html>log in</html>", "not a public OpenPGP key"),
        (b"\x00\x01", "not a public OpenPGP key"),
        ("Schlüssel".encode(), "not an OpenPGP key"),
        (TEXT[:120].encode(), "not a public OpenPGP key"),
        (TEXT.replace("PUBLIC", "PRIVATE").encode(), "not a public OpenPGP key"),
        (TEXT.replace("m", "n", 3).replace("M", "N", 1).encode(), "damaged or incomplete"),
        (TEXT.replace("\n=", "!\n=").encode(), "damaged or incomplete"),
        (public()[:-3], "damaged or incomplete"),
        (public() + b"\x01", "damaged or incomplete"),
        (public(version=3), "version 3"),
        (public(version=6), "version 6"),
        (public(tag=openpgp.SECRET), "secret key"),
        (USER, "contains no OpenPGP key"),
        (public() + USER + packet(11, b"b\x00\x00\x00\x00\x00x"), "more than an OpenPGP key"),
        (packet(8, b"\x01x") + public(), "more than an OpenPGP key"),
        (b"\xc6\xe1\x01", "damaged or incomplete"),
        (b"\x9b\x00", "damaged or incomplete"),
    ],
)
def test_other_data_is_not_a_key(text: bytes, words: str) -> None:
    with pytest.raises(Failed, match=words):
        openpgp.keys(openpgp.binary(text))


@pytest.mark.parametrize("cut", range(1, len(public() + USER + signature()), 7))
def test_a_truncated_key_is_never_taken_for_another_key(cut: int) -> None:
    packets = (public() + USER + signature(lifetime=60))[:cut]
    try:
        found = openpgp.keys(packets)
    except Failed:
        return
    assert [key.fingerprint for key in found] == [fingerprint()]


@pytest.mark.skipif(not shutil.which("gpg"), reason="no gpg here")
def test_gpg_reads_the_same_from_a_key(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    gpg = ["gpg", "--homedir", str(tmp_path), "--batch", "--quiet"]
    new = [*gpg, "--passphrase", "", "--quick-gen-key"]
    for name, until in (("for-ever", "never"), ("short", "2y")):
        subprocess.run([*new, name, "ed25519", "sign", until], check=True, capture_output=True)
    text = subprocess.run([*gpg, "--armor", "--export"], check=True, capture_output=True).stdout
    listed = subprocess.run([*gpg, "--with-colons", "--list-keys"], check=True, text=True,
                            capture_output=True).stdout  # fmt: skip
    rows = [line.split(":") for line in listed.splitlines()]
    wanted = [(after[9], row[6]) for row, after in itertools.pairwise(rows) if row[0] == "pub"]
    found = openpgp.keys(openpgp.binary(text))
    assert sorted((key.fingerprint, str(key.expires or "")) for key in found) == sorted(wanted)
    packets = openpgp.binary(text)
    assert openpgp.binary(openpgp.armored(packets).encode()) == packets

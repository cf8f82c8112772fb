"""SSH public keys, read as sshd reads them: a key that sshd would skip locks its owner out."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

KINDS = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
# The least that is still safe, and OpenSSH's maximum.
_RSA_BITS = range(2048, 16384 + 1)


@dataclass(frozen=True)
class Key:
    """A public key that sshd accepts."""

    kind: str
    blob: bytes
    bits: int  # of an RSA key; else 0
    comment: str = ""

    @property
    def text(self) -> str:
        """Its line in `authorized_keys`."""
        return f"{self.kind} {b64encode(self.blob).decode()} {self.comment}".rstrip()

    @property
    def algorithms(self) -> frozenset[str]:
        """The names of sshd's algorithms that accept this key."""
        rsa = ("rsa-sha2-512", "rsa-sha2-256") if self.kind == "ssh-rsa" else ()
        return frozenset({self.kind, *rsa} - ({"ssh-rsa"} if rsa else set()))


def fingerprint(blob: bytes) -> str:
    """The fingerprint of a key, as `ssh-keygen -l` shows it."""
    return "SHA256:" + b64encode(sha256(blob).digest()).decode().rstrip("=")


def parse(text: str) -> Key:
    """The only key in the text of a `.pub` file; raises ValueError, which says what is there."""
    if "PRIVATE KEY" in text:
        raise ValueError("a private key, which must stay where it is; give its .pub file")
    if text.lstrip().startswith(("-----", "---- ")):
        raise ValueError("another format; `ssh-keygen -i -f FILE` prints it as OpenSSH has it")
    lines = [line.replace("\t", " ").strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) != 1:
        raise ValueError("no key" if not lines else f"{len(lines)} lines; give each key by itself")
    if re.search(r"[\x00-\x1f\x7f-\x9f]", lines[0]):
        raise ValueError("a control character")
    kind, _, rest = lines[0].partition(" ")
    encoded, _, comment = rest.strip().partition(" ")
    if "-cert-v0" in kind:
        raise ValueError("a certificate; give the key that it certifies")
    if kind == "ssh-dss":
        raise ValueError("a DSA key, which OpenSSH no longer takes; make one of type ed25519")
    if kind not in KINDS:
        wrong = f"neither {', '.join(KINDS[:-1])} nor {KINDS[-1]} at its beginning"
        if any(word in lines[0].split() for word in KINDS):
            wrong = "something in front of the key (options are not taken)"
        raise ValueError(wrong)
    if re.search(r"(^|\s|,)(sk-)?(ssh|ecdsa)-\S+ AAAA|AAAA[A-Z]3NzaC1|AAAAE2Vj", comment):
        raise ValueError("two keys in one line; give each by itself")
    return Key(kind, *_content(kind, encoded), comment.strip())


def _content(kind: str, encoded: str) -> tuple[bytes, int]:
    try:
        blob = b64decode(encoded, validate=True)
    except (Error, ValueError):
        raise ValueError("a key that is cut off, or no base64") from None
    length = int.from_bytes(blob[:4], "big")
    inside = blob[4 : 4 + length].decode("ascii", errors="replace")
    if len(blob) > 4 and inside != kind and inside.isprintable() and len(inside) == length:
        raise ValueError(f"{kind} in front of a key of type {inside[:40]!r}")
    try:
        key = load_ssh_public_key(f"{kind} {encoded}".encode())
    except NotImplementedError:
        raise ValueError("a key with a compressed point; make one with ssh-keygen") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("a key that is cut off or damaged") from None
    bits = key.key_size if isinstance(key, RSAPublicKey) else 0
    if bits and bits not in _RSA_BITS:
        raise ValueError(
            f"an RSA key of {bits} bits; {_RSA_BITS.start} to {_RSA_BITS.stop - 1} are allowed"
        )
    return blob, bits

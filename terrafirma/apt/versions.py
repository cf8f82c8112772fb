"""Versions of Debian packages: their order, their upstream part, and which one a setting means."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cmp_to_key


def upstream(version: str) -> str:
    """
    The upstream version: numbers with dots between them.

    "5:28.2.2-1~debian.13~trixie" is 28.2.2, "17.5-1.pgdg130+1" is 17.5, "26.1.5+dfsg1-9+b9" is
    26.1.5; empty if the version does not begin with a number.
    """
    found = re.match(r"\d+(\.\d+)*", _parts(version)[1])
    return found[0] if found else ""


def is_prerelease(version: str) -> bool:
    """Whether upstream calls the version a pre-release, like "18~beta1-1.pgdg130+1"."""
    text = _parts(version)[1]
    return bool(re.match(r"[\d.]+[~.+-]*(alpha|beta|rc|pre|dev)", text.lower()))


def matches(version: str, prefix: str) -> bool:
    """Whether the upstream version begins with the components of `prefix`: "28.2" fits 28.2.2."""
    return not prefix or f"{upstream(version)}.".startswith(f"{prefix}.")


def compare(one: str, other: str) -> int:
    """-1, 0 or 1, in dpkg's order (deb-version(7))."""
    (epoch, upstreams, revision), (epoch2, upstreams2, revision2) = _parts(one), _parts(other)
    order = (epoch > epoch2) - (epoch < epoch2)
    return order or _compare(upstreams, upstreams2) or _compare(revision, revision2)


def newest(versions: Iterable[str]) -> str:
    """The newest version in dpkg's order; empty if there is none."""
    return max(versions, key=cmp_to_key(compare), default="")


def choose(offered: Iterable[str], prefix: str) -> str:
    """The newest release that begins with `prefix`; empty if there is none."""
    return newest(one for one in offered if matches(one, prefix) and not is_prerelease(one))


def listed(versions: Iterable[str], most: int = 6) -> str:
    """The upstream versions for a message, the newest first."""
    ordered = sorted({*versions}, key=cmp_to_key(compare), reverse=True)
    names = list(dict.fromkeys(filter(None, map(upstream, ordered))))
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")


def _parts(version: str) -> tuple[int, str, str]:
    epoch, colon, rest = version.partition(":")
    if not colon or not epoch.isdigit():
        epoch, rest = "0", version
    head, hyphen, revision = rest.rpartition("-")
    return (int(epoch), head, revision) if hyphen else (int(epoch), rest, "")


def _compare(one: str, other: str) -> int:
    # A version alternates between text and numbers.
    pieces, pieces2 = re.findall(r"(\D*)(\d*)", one), re.findall(r"(\D*)(\d*)", other)
    length = max(len(pieces), len(pieces2))
    pieces += [("", "")] * (length - len(pieces))
    pieces2 += [("", "")] * (length - len(pieces2))
    for (text, number), (text2, number2) in zip(pieces, pieces2, strict=True):
        # The end of a text sorts after a tilde, and before everything else.
        ranks, ranks2 = [*map(_rank, text), 0], [*map(_rank, text2), 0]
        order = (ranks > ranks2) - (ranks < ranks2)
        if not order:
            value, value2 = int(number or 0), int(number2 or 0)
            order = (value > value2) - (value < value2)
        if order:
            return order
    return 0


def _rank(character: str) -> int:
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256

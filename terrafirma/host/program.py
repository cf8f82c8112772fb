"""The program `terrafirma` on the host: its files, and how it is asked and told about secrets."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from pyinfra.api import QuoteString, StringCommand

from terrafirma.host.files import Directory, Entry, source
from terrafirma.host.given import Hidden
from terrafirma.paths import HOST_LIBRARY, HOST_PROGRAM
from terrafirma.settings import ROOT


def entries() -> list[Entry]:
    """The whole program, for the first `put` of each task that needs it on the host."""
    modules = sorted(path.name for path in (ROOT / "files/terrafirma_host").glob("*.py"))
    return [
        Directory(HOST_LIBRARY),
        *(source(f"terrafirma_host/{name}", f"{HOST_LIBRARY}/{name}") for name in modules),
        # Last: where it is, the modules are.
        source("terrafirma", HOST_PROGRAM, mode="755"),
    ]


def told(values: Mapping[str, str | None], owner: str = "") -> Hidden:
    """
    What the program reads about secrets on standard input, so that they are in no process list.

    + values: by name; None for those that are generated on the host
    + owner: the account that owns the files; empty: root
    """
    lines = Hidden([f"owner {owner}"] if owner else [])
    for name, value in values.items():
        # Base64 is one line, whatever is in it.
        encoded = base64.b64encode((value or "").encode()).decode()
        lines.append(f"generated {name}" if value is None else f"given {name} {encoded}")
    return lines


ALL_WRONG = r"sed -nE 's/^(generated|given) ([^ ]+).*/wrong \2/p'"
"""The shell command that answers of each secret on standard input that it is wrong."""


def which_are_wrong(program: str, about: str) -> StringCommand:
    """
    The shell command that asks which secrets are wrong; standard input is what they should be.

    Nothing is there yet for a program that is missing. One of another version does not know the
    question, and ends as with any wrong command line; one that a killed run left half replaced does
    not start at all. The run puts the right one there first.
    """
    return StringCommand(
        program, "check", QuoteString(about),
        f"|| case $? in 2 | 126 | 127) {ALL_WRONG} ;;",
        f"*) ! {HOST_PROGRAM} --help > /dev/null 2>&1 || exit 1; {ALL_WRONG} ;; esac",
    )  # fmt: skip

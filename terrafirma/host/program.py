"""The program `terrafirma` on the host: its files, and how it gets and checks secrets."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from pyinfra.api import QuoteString, StringCommand

from terrafirma.host.files import Directory, Entry, source
from terrafirma.host.given import Hidden
from terrafirma.paths import HOST_LIBRARY, HOST_PROGRAM
from terrafirma.settings import ROOT


def entries() -> list[Entry]:
    """All files of the program, for the first `put` of each task that needs it on the host."""
    modules = sorted(path.name for path in (ROOT / "files/terrafirma_host").glob("*.py"))
    return [
        Directory(HOST_LIBRARY),
        *(source(f"terrafirma_host/{name}", f"{HOST_LIBRARY}/{name}") for name in modules),
        # Last, so that its presence means that the modules are there.
        source("terrafirma", HOST_PROGRAM, mode="755"),
    ]


def told(values: Mapping[str, str | None], owner: str = "") -> Hidden:
    """
    The secrets as the program reads them on standard input, so that no process list shows them.

    + values: by name; None for a secret that is generated on the host
    + owner: the account that owns the files; empty: root
    """
    lines = Hidden([f"owner {owner}"] if owner else [])
    for name, value in values.items():
        # Base64 keeps any value on one line.
        encoded = base64.b64encode((value or "").encode()).decode()
        lines.append(f"generated {name}" if value is None else f"given {name} {encoded}")
    return lines


ALL_WRONG = r"sed -nE 's/^(generated|given) ([^ ]+).*/wrong \2/p'"
"""A shell command that reports every secret on standard input as wrong."""


def which_are_wrong(program: str, about: str) -> StringCommand:
    """
    The shell command that asks which secrets are wrong; standard input has their right values.

    All secrets count as wrong if the program on the host is missing, is of a version that does not
    know the question (exit code 2), or does not start because a killed run replaced only half of
    it. The run installs the right program before it writes secrets.
    """
    return StringCommand(
        program, "check", QuoteString(about),
        f"|| case $? in 2 | 126 | 127) {ALL_WRONG} ;;",
        f"*) ! {HOST_PROGRAM} --help > /dev/null 2>&1 || exit 1; {ALL_WRONG} ;; esac",
    )  # fmt: skip

"""What is at a path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override


class PathState(TypedDict):
    kind: str  # "file", "directory" or "other"
    mode: str  # octal digits, as in "644"
    user: str
    group: str
    sha256: str  # of a file; else empty


class PathStates(FactBase[dict[str, PathState]]):
    """
    Kind, mode, owner and digest of those of `paths` that exist.

    pyinfra's files.File, Directory and Sha256File answer the same one path and one question at a
    time, which is three or four round trips for a file.
    """

    default = dict

    @override
    def command(self, paths: Sequence[str]) -> StringCommand:
        return StringCommand(
            "for path in",
            *map(QuoteString, paths),
            '; do test -e "$path" || continue;',
            'LC_ALL=C stat -Lc "%a|%U|%G|%F|%n" "$path";',
            'test ! -f "$path" || sha256sum < "$path"; done',
        )

    @override
    def process(self, output: list[str]) -> dict[str, PathState]:
        states: dict[str, PathState] = {}
        path = ""
        for line in output:
            parts = line.split("|", 4)
            if len(parts) == 5:
                mode, user, group, kind, path = parts
                kind = {"directory": "directory"}.get(
                    kind, "file" if "regular" in kind else "other"
                )
                states[path] = PathState(kind=kind, mode=mode, user=user, group=group, sha256="")
            elif path and line.endswith("-"):
                states[path]["sha256"] = line.split()[0]
            else:
                raise FactProcessError(f"not an answer of stat or sha256sum: {line!r}")
        return states

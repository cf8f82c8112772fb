"""Which files of a source say what becomes of it before a build: few, however large it is."""

from __future__ import annotations

import os
import posixpath
from contextlib import suppress
from dataclasses import dataclass

from terrafirma_host.mounts import PLACEHOLDERS
from terrafirma_host.sources import Entry

from terrafirma.app.hashes import look
from terrafirma.app.selection import is_vague, selection
from terrafirma.app.settings import Application


@dataclass(frozen=True)
class Early:
    """The entries of a source that Compose and the host's program look at before a build."""

    read: list[Entry]
    """Files of which something reads the content, and all links."""
    there: list[str]
    """Files that only need to be there: one in each directory, so that it is not empty."""

    @property
    def lines(self) -> list[str]:
        """What decides: two sources with the same lines become the same."""
        return [*(repr(tuple(one)) for one in self.read), *map(repr, self.there)]


def early(app: Application) -> Early:
    """
    What counts of an application's source before a build.

    A build reads all files, and nothing else does: of a project with 20,000 files, some dozens
    say which services, volumes and images it has.
    """
    if not app.source:
        return Early([], [])
    found = look(app.source_directory, selection(app)).entries
    if is_vague(app):
        return Early(found, [])
    named = _named(app)
    read = [one for one in found if one.kind == "link" or _is_read(one.path, named)]
    there = _one_in_each_directory(found) if app.compose else []
    return Early(read, sorted({*there} - {one.path for one in read}))


def _is_read(path: str, named: set[str]) -> bool:
    name = posixpath.basename(path)
    # A message names the line of a file that another one includes.
    return path in named or name.startswith(".env") or name.endswith((".yaml", ".yml", ".env"))


def _named(app: Application) -> set[str]:
    """The files that the settings and the compose files name, and those to which links lead."""
    top = app.source_directory.resolve()
    found = selection(app).needed
    real = set()
    for path in found:
        # A compose file may name something that is no path.
        with suppress(OSError, ValueError):
            real.add(os.path.relpath(os.path.realpath(top / path), top))
    return found | real


def _one_in_each_directory(found: list[Entry]) -> list[str]:
    kept: dict[str, str] = {}
    for one in found:
        directory, name = posixpath.split(one.path)
        # A directory with nothing but placeholders counts as empty.
        if directory not in kept or (
            posixpath.basename(kept[directory]) in PLACEHOLDERS and name not in PLACEHOLDERS
        ):
            kept[directory] = one.path
    return list(kept.values())

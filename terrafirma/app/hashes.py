"""
What a run knows of a source, from one walk, in which each file is looked at once.

The digests of files are kept between runs: unchanged files are not read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

from pyinfra.api import State as Run
from pyinfra.context import ctx_state
from terrafirma_host import sources
from terrafirma_host.sources import DOCKERFILE, Entry, Selection

from terrafirma.host import cache

# A change within a tick of the file system's clock leaves no trace, so a file that has just been
# written is read again. Some file systems count in steps of two seconds.
SETTLED = 3 * 10**9

KEPT = 100
"""Sources whose digests are kept, those that changed last."""

State = tuple[int, int, int, int]
"""Inode, size, and the times of the last changes of content and of anything, in nanoseconds."""


def _state(found: os.stat_result) -> State:
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Hashes:
    """
    The digests of files in a directory.

    A file keeps its digest as long as its inode, size and times stay. No program can set the time
    of the last change, so a file that is written again has another one, whatever its age says.
    """

    def __init__(self, directory: Path, selection: Selection) -> None:
        self.directory = directory.resolve()
        words = json.dumps([str(self.directory), selection.as_json()])
        name = hashlib.sha256(words.encode(errors="surrogateescape")).hexdigest()[:24]
        self.path = cache.directory("sources") / f"{name}.json"
        self.known = _read(self.path)
        self.beginning = len(str(self.directory)) + 1
        self.used: dict[str, tuple[State, str]] = {}

    def __call__(self, path: str, state: os.stat_result) -> str:
        name = path[self.beginning :]
        known = self.known.get(name)
        if known and known[0] == _state(state):
            self.used[name] = known
            return known[1]
        now = time.time_ns()
        content = sources.sha256(path)
        # A file that changes meanwhile is read again, and so is one with a time in the future.
        after = _state(os.lstat(path))
        if after == _state(state) and max(after[2:]) < now - SETTLED:
            self.used[name] = (after, content)
        return content

    def entries(self, paths: Sequence[str]) -> list[Entry]:
        found = sources.entries(self.directory, paths, self)
        if self.used != self.known:
            # Without a home that can be written, each run reads all files.
            _write(self.path, self.used)
        return found


class Look:
    """
    A source as it was when a run looked at it.

    Raises Failed for a wrong .dockerignore, and OSError where something cannot be read.
    """

    def __init__(self, directory: Path, selection: Selection) -> None:
        self.directory = directory
        self.selection = selection

    @cached_property
    def paths(self) -> list[str]:
        """The files and links that a release sees, in a fixed order."""
        return sources.files(self.directory, self.selection)

    @cached_property
    def uploaded(self) -> frozenset[str]:
        """The same, to ask whether a file is among them."""
        return frozenset(self.paths)

    @cached_property
    def entries(self) -> list[Entry]:
        return Hashes(self.directory, self.selection).entries(self.paths)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, modes and contents, which names the source on a host."""
        return sources.digest(self.entries)


_looks: WeakKeyDictionary[Run, dict[tuple[Path, Selection], Look]] = WeakKeyDictionary()


def look(directory: Path, selection: Selection = DOCKERFILE) -> Look:
    """
    A source as it is now or, during a run, as it was when the run first asked.

    So all hosts of a run get the same source, and what the plan shows is what is released.
    """
    key = (directory.resolve(), selection)
    if not ctx_state.isset():
        return Look(*key)
    known = _looks.setdefault(ctx_state.get(), {})
    return known.get(key) or known.setdefault(key, Look(*key))


def tree_digest(directory: Path, selection: Selection = DOCKERFILE) -> str:
    """The digest of the files that a release sees."""
    return look(directory, selection).digest


# --- the file with the digests --------------------------------------------------------------------


def _read(path: Path) -> dict[str, tuple[State, str]]:
    try:
        return {
            str(name): ((int(node), int(size), int(content), int(changed)), str(digest))
            for name, (node, size, content, changed, digest) in cache.read(path).items()
        }
    except (ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, known: dict[str, tuple[State, str]]) -> None:
    cache.write(path, {name: [*state, digest] for name, (state, digest) in known.items()})
    cache.keep_newest(path.parent.glob("*.json"), KEPT)

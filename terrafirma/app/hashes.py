"""The digests of a source's files, kept between runs: unchanged files are not read again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

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


def entries(directory: Path, selection: Selection) -> list[Entry]:
    """The files and links of a source that a release sees."""
    return Hashes(directory, selection).entries(sources.files(directory, selection))


def tree_digest(directory: Path, selection: Selection = DOCKERFILE) -> str:
    """SHA-256 over names, modes and contents of the files that a release sees."""
    return sources.digest(entries(directory, selection))


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

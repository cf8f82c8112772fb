"""
Managed by Terrafirma. Sources that a deploy uploads: only the files that are not here yet.

    terrafirma source have SOURCES           the files of the newest source in that directory
    terrafirma source take SOURCES/DIGEST    a gzipped tar on standard input becomes that source

The tar begins with a member that says which files of an earlier source stay, as hard links.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from terrafirma_host import sources
from terrafirma_host.shell import Failed, write
from terrafirma_host.sources import Entry

# The directory beside the sources with the list of files of each of them.
LISTS = "lists"

# Characters of a SHA-256 that an answer has. The whole digest is compared at the end.
SHORT = 24

# Bytes that are read at once.
PIECE = 2**18

# The source has not the content after which it is named: files of an earlier one have changed.
OTHER = "what has arrived has not the digest that it should have"

State = tuple[int, int, int]
"""Inode, size, and the time of the last change of the content, in nanoseconds."""
NO_STATES: Mapping[str, State] = MappingProxyType({})


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="terrafirma source")
    parser.add_argument("command", choices=["have", "take"])
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args(words)
    if arguments.command == "have":
        print(have(arguments.path))
    else:
        take(arguments.path, sys.stdin.buffer)


def have(directory: Path) -> str:
    """The newest source in a directory and its files, on one line; empty if there is none."""
    there = [one for one in directory.glob("*") if re.fullmatch("[0-9a-f]{64}", one.name)]
    if not there:
        return ""
    newest = max(there, key=lambda one: one.stat().st_ctime_ns)
    files = _known(newest) or [[*one] for one in sources.all_entries(newest)]
    short = [
        [path, kind, content if kind == "link" else content[:SHORT]]
        for path, kind, content, *_ in files
    ]
    answer = json.dumps({"base": newest.name, "files": short}).encode()
    return base64.b64encode(zlib.compress(answer)).decode()


def _list(source: Path) -> Path:
    return source.parent.parent / LISTS / source.name


def _known(source: Path) -> list[list[Any]]:
    """The files of a source as they were noted; empty if they were not."""
    with suppress(OSError, ValueError, zlib.error):
        found: list[list[Any]] = json.loads(zlib.decompress(_list(source).read_bytes()))
        return found
    return []


class Hashes:
    """
    The digests of the files that have arrived, and of those that stay from an earlier source.

    These are hard links, so their inodes are known. A file whose size and time are as they were is
    not read again. (The time of the last change of anything tells nothing: each link changes it.)
    """

    def __init__(self, noted: Iterable[Sequence[Any]] = ()) -> None:
        # Earlier versions noted no states.
        self.known = {tuple(state): content for _, _, content, *state in noted if state}
        self.states: dict[str, State] = {}

    def __call__(self, path: str, found: os.stat_result) -> str:
        state = (found.st_ino, found.st_size, found.st_mtime_ns)
        self.states[path] = state
        return self.known.get(state) or sources.sha256(path)


def take(source: Path, upload: IO[bytes]) -> None:
    """Unpack an upload into a directory named after its content; it is complete or absent."""
    source.parent.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o022)
    try:
        with tempfile.TemporaryDirectory(dir=source.parent, prefix=".new-") as name:
            new = Path(name)
            with gzip.open(upload) as unzipped:
                base = _unpack(unzipped, new, source.parent)
            hashes = Hashes(_known(base) if base else ())
            found = sources.all_entries(new, hashes)
            if sources.digest(found) != source.name:
                raise Failed(OTHER)
            if not source.exists():
                new.rename(source)
                # TemporaryDirectory removes its own path at the end, so the path has to exist.
                new.mkdir()
    except (tarfile.TarError, EOFError, LookupError, zlib.error) as error:
        raise Failed(f"the source has not arrived as a whole: {error}") from None
    finally:
        os.umask(before)
        # The sender reads the error only after it has sent everything.
        with suppress(OSError):
            while upload.read(2**20):
                pass
    note(source, found, {path.removeprefix(f"{new}/"): one for path, one in hashes.states.items()})


def note(source: Path, found: Sequence[Entry], states: Mapping[str, State] = NO_STATES) -> None:
    """
    Note the files of a source, so that the next upload need not read them.

    + states: of those files that may stay unread as long as these do
    """
    _list(source).parent.mkdir(mode=0o700, exist_ok=True)
    noted = json.dumps([[*one, *states.get(one.path, ())] for one in found])
    write(_list(source), zlib.compress(noted.encode(), level=1), 0o600)


def _unpack(unzipped: gzip.GzipFile, new: Path, parent: Path) -> Path | None:
    """Returns the earlier source of which files stay."""
    header = tarfile.TarInfo.frombuf(unzipped.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    beginning = unzipped.read(header.size)
    unzipped.read(-header.size % tarfile.BLOCKSIZE)
    try:
        told = json.loads(beginning)
    except ValueError:
        raise tarfile.ReadError("it has no beginning") from None
    base = parent / str(told["base"]) if told["base"] else None
    if base:
        _stay(base, told, new)
    _extract(unzipped, new)
    return base


def _extract(unzipped: gzip.GzipFile, new: Path) -> None:
    """Unpack the rest of a tar. The program `tar` takes a fifth of the time that Python takes."""
    command = ["tar", "--extract", "--file=-", "--touch", "--keep-old-files", "--no-same-owner"]
    command += ["--no-same-permissions", f"--directory={new}"]
    with tempfile.TemporaryFile() as said:
        tar = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
        with suppress(BrokenPipeError), tar:
            # To the end: only there gzip notices that an upload was cut off.
            shutil.copyfileobj(unzipped, tar.stdin, PIECE)  # type: ignore[arg-type]  # it has one
        if tar.returncode != 0:
            said.seek(0)
            lines = said.read(PIECE).decode(errors="replace").splitlines()
            raise tarfile.ReadError(lines[0] if lines else f"tar ended with {tar.returncode}")


def _stay(base: Path, told: Mapping[str, Any], new: Path) -> None:
    """Make the files that an earlier source has, too."""
    gone = {*told["gone"]}
    todo = [""]
    while todo:
        above = todo.pop()
        with os.scandir(f"{base}/{above}") as found:
            for entry in found:
                path = f"{above}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    todo.append(f"{path}/")
                elif path not in gone:
                    _link(entry.path, f"{new}/{path}", link=entry.is_symlink())
    for path, old in told["moved"].items():
        copy = Path(new, path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        # With a time of its own. The builder takes a file for unchanged that has the size and the
        # time of an earlier one at its path, and files of one upload often have the same time.
        shutil.copy(f"{base}/{old}", copy)


def _link(old: str, new: str, *, link: bool) -> None:
    try:
        if link:
            Path(new).symlink_to(Path(old).readlink())
        else:
            os.link(old, new)
    except FileNotFoundError:
        # The first file in its directory.
        Path(new).parent.mkdir(parents=True)
        _link(old, new, link=link)
    except OSError:
        # A file has so many names at most.
        shutil.copy2(old, new)

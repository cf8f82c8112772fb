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
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from terrafirma_host import sources
from terrafirma_host.shell import Failed, write

# The directory beside the sources with the list of files of each of them.
LISTS = "lists"

# Characters of a SHA-256 that an answer has. The whole digest is compared at the end.
SHORT = 24

# The source has not the content after which it is named: files of an earlier one have changed.
OTHER = "what has arrived has not the digest that it should have"


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
        for path, kind, content in files
    ]
    answer = json.dumps({"base": newest.name, "files": short}).encode()
    return base64.b64encode(zlib.compress(answer)).decode()


def _list(source: Path) -> Path:
    return source.parent.parent / LISTS / source.name


def _known(source: Path) -> list[list[str]]:
    """The files of a source as they were noted; empty if they were not."""
    with suppress(OSError, ValueError, zlib.error):
        found: list[list[str]] = json.loads(zlib.decompress(_list(source).read_bytes()))
        return found
    return []


def take(source: Path, upload: IO[bytes]) -> None:
    """Unpack an upload into a directory named after its content; it is complete or absent."""
    source.parent.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o022)
    try:
        with tempfile.TemporaryDirectory(dir=source.parent, prefix=".new-") as name:
            new = Path(name)
            with gzip.open(upload) as unzipped:
                _unpack(unzipped, new, source.parent)
            found = sources.all_entries(new)
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
    note(source, found)


def note(source: Path, found: Sequence[sources.Entry]) -> None:
    """Note the files of a source, so that the next upload need not read them."""
    _list(source).parent.mkdir(mode=0o700, exist_ok=True)
    write(_list(source), zlib.compress(json.dumps(found).encode()), 0o600)


def _unpack(unzipped: Any, new: Path, parent: Path) -> None:
    with tarfile.open(fileobj=unzipped, mode="r|") as tar:
        for number, member in enumerate(tar):
            content = tar.extractfile(member) if member.isreg() else None
            if number == 0:
                if not content:
                    raise tarfile.ReadError("it has no beginning")
                _stay(json.loads(content.read()), new, parent)
                continue
            path = new / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content:
                with path.open("xb") as file:
                    shutil.copyfileobj(content, file, 2**20)
                if member.mode & 0o100:
                    path.chmod(0o755)
            else:
                path.symlink_to(member.linkname)
    # Read to the end: only there gzip notices that an upload was cut off.
    while unzipped.read(2**20):
        pass


def _stay(told: Mapping[str, Any], new: Path, parent: Path) -> None:
    """Make the files that an earlier source has, too."""
    if not told["base"]:
        return
    base, gone = parent / str(told["base"]), {*told["gone"]}
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
        _link(f"{base}/{old}", f"{new}/{path}", link=False)


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

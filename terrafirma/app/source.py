"""Upload the source of an application: only the files that its newest source there has not."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paramiko import SSHException
from pyinfra import host, logger
from pyinfra.api import FunctionCommand, Host, QuoteString, State, StringCommand
from terrafirma_host import delivery, sources
from terrafirma_host.sources import Entry, Selection

from terrafirma.app.hashes import Look, look
from terrafirma.host.files import path_states
from terrafirma.host.framing import Stream
from terrafirma.host.operation import operation
from terrafirma.paths import HOST_PROGRAM

PIECE = 2**16
"""Bytes that are sent at once."""

LEVEL = 2
"""Of compression: level 4 takes half as long again, and saves 7 % of the bytes of source code."""


@operation
def upload_source(
    directory: Path, *, dest: str, selection: Selection = sources.DOCKERFILE,
    program: str = f"{HOST_PROGRAM} source",
) -> Generator[FunctionCommand]:  # fmt: skip
    """
    A copy of a local directory at `dest`, either complete or absent.

    + directory: the directory to copy
    + selection: which of its files
    + dest: the target, named after the digest of the content: if it exists, it is right
    + program: the command on the host that has and takes sources

    pyinfra's files.sync asks for each file, and leaves half a copy when it is killed. Here the
    host lists the files of its newest source, and gets the others in a stream.
    """
    if dest in path_states([dest]):
        host.noop(f"{dest} exists")
        return
    yield FunctionCommand(_upload, (Delivery(look(directory, selection), dest), program), {})


@dataclass
class Delivery:
    """A source on its way to a host."""

    look: Look
    dest: str
    base: str = ""
    """The source that the host has already; its files may stay, as hard links."""
    known: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Its files: kind and content by path, as entries have them."""
    trouble: str = ""
    """Why the stream ended early."""

    def answered(self, lines: Sequence[str]) -> None:
        """Take the host's answer about its newest source."""
        self.base, self.known = "", {}
        if lines and lines[-1]:
            answer = json.loads(zlib.decompress(base64.b64decode(lines[-1])))
            self.base = answer["base"]
            self.known = {path: (kind, content) for path, kind, content in answer["files"]}

    def stream(self) -> Iterator[bytes]:
        """A gzipped tar; it ends early, so that the host refuses it, in case of `trouble`."""
        packer = zlib.compressobj(level=LEVEL, wbits=31)
        try:
            for block in _in_pieces(self._tar()):
                if packed := packer.compress(block):
                    yield packed
            yield packer.flush()
        except _ChangedError as error:
            self.trouble = f"{error} was changed during its upload: run it again"
        except OSError as error:
            name = str(error.filename).removeprefix(f"{self.look.directory}/")
            self.trouble = f"{name}: {error.strerror}"

    def _tar(self) -> Iterator[bytes]:
        if self.look.digest != Path(self.dest).name:
            raise _ChangedError(self.look.directory.name)
        stay, moved, sent = self._sorted(self.look.entries)
        told = {"base": self.base, "gone": sorted(self.known.keys() - stay), "moved": moved}
        beginning = json.dumps(told).encode()
        yield from _header("stay.json", tarfile.REGTYPE, size=len(beginning))
        yield from _padded([beginning])
        for path, kind, content in sent:
            if kind == "link":
                yield from _header(path, tarfile.SYMTYPE, link=content)
            else:
                yield from self._file(path, kind, content)
        yield bytes(2 * tarfile.BLOCKSIZE)

    def _sorted(self, found: Sequence[Entry]) -> tuple[set[str], dict[str, str], list[Entry]]:
        """The paths that stay on the host, those that have another path there, and the rest."""
        places = {known: path for path, known in self.known.items()}
        stay, moved, sent = set(), {}, []
        for entry in found:
            short = (entry.kind, _short(entry))
            if self.known.get(entry.path) == short:
                stay.add(entry.path)
            elif entry.kind != "link" and short in places:
                moved[entry.path] = places[short]
            else:
                sent.append(entry)
        return stay, moved, sent

    def _file(self, name: str, kind: str, content: str) -> Iterator[bytes]:
        with open(f"{self.look.directory}/{name}", "rb", buffering=0) as file:  # noqa: PTH123  # faster
            size = os.fstat(file.fileno()).st_size
            mode = 0o755 if kind == "True" else 0o644
            yield from _header(name, tarfile.REGTYPE, size=size, mode=mode)
            hashed, sent = hashlib.sha256(), 0

            def blocks() -> Iterator[bytes]:
                nonlocal sent
                while block := file.read(2**20):
                    hashed.update(block)
                    sent += len(block)
                    yield block

            yield from _padded(blocks())
            if sent != size or hashed.hexdigest() != content:
                raise _ChangedError(name)


class _ChangedError(Exception):
    """A file is no longer as its digest says."""


def _short(entry: Entry) -> str:
    return entry.content if entry.kind == "link" else entry.content[: delivery.SHORT]


def _header(name: str, kind: bytes, *, size: int = 0, mode: int = 0o644, link: str = "") -> Iterator[bytes]:  # noqa: E501  # fmt: skip
    member = tarfile.TarInfo(name)
    member.type, member.size, member.mode, member.linkname = kind, size, mode, link
    yield member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _padded(blocks: Iterable[bytes]) -> Iterator[bytes]:
    size = 0
    for block in blocks:
        size += len(block)
        yield block
    yield bytes(-size % tarfile.BLOCKSIZE)


def _in_pieces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Blocks of about the same size, since each costs some time."""
    waiting = bytearray()
    for block in blocks:
        waiting += block
        if len(waiting) >= PIECE:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


def _upload(state: State, host: Host, source: Delivery, program: str) -> bool:
    with suppress(ValueError, LookupError, TypeError, zlib.error):
        answered, lines = _run(host, f"{program} have", str(Path(source.dest).parent))
        source.answered(lines if answered else [])
    success, lines = _send(host, source, program)
    if not success and source.base and lines[-1:] and lines[-1].endswith(delivery.OTHER):
        # The host's files are no longer those that it has noted.
        source.answered([])
        success, lines = _send(host, source, program)
    if not success:
        for line in [source.trouble] if source.trouble else lines or ["the upload has failed"]:
            logger.error(f"{host.print_prefix}{line}")
    return success


def _send(host: Host, source: Delivery, program: str) -> tuple[bool, list[str]]:
    try:
        return _run(host, f"{program} take", source.dest, _stdin=Stream(source.stream))
    except (OSError, SSHException, EOFError) as error:
        return False, [f"the connection broke during the upload ({error}): run it again"]


def _run(host: Host, command: str, path: str, **more: Any) -> tuple[bool, list[str]]:
    sudo = {key: host.data.get(key) for key in ("_sudo", "_sudo_password") if host.data.get(key)}
    success, output = host.run_shell_command(
        StringCommand(command, QuoteString(path)), **sudo, **more
    )
    return success, output.stdout_lines if success else output.stderr_lines

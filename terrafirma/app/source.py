"""Upload the source of an application into a directory named after its content."""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Generator
from pathlib import Path

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand
from terrafirma_host.sources import DOCKERFILE, Selection

from terrafirma.host.files import path_states, source_files
from terrafirma.host.operation import operation


@operation
def upload_source(
    directory: Path, *, dest: str, selection: Selection = DOCKERFILE
) -> Generator[StringCommand]:
    """
    A copy of a local directory at `dest`, either complete or absent.

    + directory: the directory to copy
    + selection: which of its files
    + dest: the target, named after the digest of the content: if it exists, it is right

    pyinfra's files.sync asks for each file, and leaves half a copy when it is killed.
    """
    if dest in path_states([dest]):
        host.noop(f"{dest} exists")
        return
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for path in source_files(directory, selection):
            tar.add(path, path.relative_to(directory), filter=_anonymous)
    yield StringCommand(
        "dest=", QuoteString(dest),
        # Only root can enter the directory. Files in it are readable by all, because containers run
        # under other ids and get these files copied or mounted.
        '; umask 077; rm -rf "$dest.new"; mkdir -p "$dest.new" && umask 022 && base64 -d |',
        ' tar -xzf - -C "$dest.new" && mv "$dest.new" "$dest"',
        _stdin=base64.encodebytes(archive.getvalue()).decode(),
        _separator="",
    )  # fmt: skip


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member

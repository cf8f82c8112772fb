"""Managed by Terrafirma. Sources that arrive with a deploy key."""

from __future__ import annotations

import filecmp
import gzip
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import IO

from terrafirma_host import delivery, sources
from terrafirma_host.lease import Lease
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

# Limits of an upload with a deploy key: seconds, and bytes of all files together.
LONGEST = 15 * 60
LARGEST = 2 * 2**30


def receive(app: Application, upload: IO[bytes], lease: Lease) -> Application:
    """The application with the source that arrives as a gzipped tar."""
    lease.step("upload")
    with lease.at_most(LONGEST):
        sent = app.with_source(unpack(app, upload))
    refuse_other_compose_files(app, sent)
    return sent


def refuse_other_compose_files(app: Application, sent: Application) -> None:
    """
    Raise Failed where a source that was sent has other compose files than the deploy.

    A deploy key decides what runs in a container, never what a container may do on the host.
    The files are compared byte by byte: root does not parse what a key sends.
    """
    for name in app.compose:
        if not filecmp.cmp(Path(app.source, name), Path(sent.source, name), shallow=False):
            raise Failed(
                f"{name}, as it was sent, is not that of the deploy: run deploy.py with it"
            )


def unpack(app: Application, upload: IO[bytes]) -> Path:
    """
    Unpack a gzipped tar into a directory named after its content; returns the directory.

    It has the files that the deploy would upload, so a release of the same source is the same.
    """
    directory = app.directory / "sources"
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".new-") as new:
        _extract(upload, Path(new))
        selection = sources.Selection.of(app.selection)
        sources.drop_others(Path(new), {*sources.files(Path(new), selection)})
        for name in app.compose or (app.dockerfile or "Dockerfile",):
            if not (Path(new) / name).is_file():
                raise Failed(f"the source that was sent has no file {name!r}")
        found = sources.all_entries(Path(new))
        directory /= sources.digest(found)
        if not directory.exists():
            _let_containers_read(Path(new))
            Path(new).rename(directory)
            # TemporaryDirectory removes its own path at the end, so the path has to exist.
            Path(new).mkdir()
    delivery.note(directory, found)
    return directory


def _extract(upload: IO[bytes], directory: Path) -> None:
    size = 0

    def measured(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        nonlocal size
        # Each file takes a block at least; a forged negative size must not reduce the sum.
        size += max(member.size, 0) + 4096
        if size > LARGEST:
            raise Failed(f"the source that was sent has more than {LARGEST // 2**20} MB")
        # The filter refuses paths outside of the directory and devices, and drops owners. Without
        # the sender's times, which some tools set to the same for all files and commits: the
        # builder takes a file with the same size and time for unchanged.
        return tarfile.data_filter(member, path).replace(mtime=None, deep=False)  # type: ignore[arg-type]  # it may be None here

    try:
        with gzip.open(upload) as unzipped:
            with tarfile.open(fileobj=unzipped, mode="r|") as tar:
                tar.extractall(directory, filter=measured)  # noqa: S202  # filtered above
            # Read to the end: only there gzip notices that an upload was cut off.
            while unzipped.read(2**20):
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise Failed(f"the source is no gzipped tar that can be unpacked: {error}") from None


def _let_containers_read(directory: Path) -> None:
    """Make files readable in containers. On the host only root enters the directory above."""
    for path in directory.rglob("*"):
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)

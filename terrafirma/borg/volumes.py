"""The lasting volumes of applications in a backup that leaves out the rest of Docker's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from terrafirma.paths import VOLUMES


def sources(directories: Sequence[str], volumes: Sequence[str]) -> list[str]:
    """What a backup has to list besides `directories`, so that it finds the volumes."""
    return [VOLUMES] if volumes and not _covered(directories) else []


def patterns(directories: Sequence[str], volumes: Sequence[str]) -> list[str]:
    """
    borg's patterns for the volumes. The first match counts, and these come before excluded paths.

    A full path (pf) includes a directory without its content, so that borg passes through one whose
    content is excluded.
    """
    if not volumes:
        return []
    store = PurePosixPath(VOLUMES)
    above = [*reversed(store.parents[:-1]), store] if _covered(directories) else [store]
    found = [f"+ pf:{path}" for path in above]
    found += [f"+ pp:{store / name}" for name in sorted(volumes)]
    # Listed for the volumes of applications alone.
    return found if _covered(directories) else [*found, f"! sh:{store}/*"]


def _covered(directories: Sequence[str]) -> bool:
    return any(PurePosixPath(VOLUMES).is_relative_to(one) for one in directories)

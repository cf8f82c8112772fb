"""Managed by Terrafirma. Which releases, images and sources are kept, and which are removed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from terrafirma_host import delivery, engine, pulls
from terrafirma_host.shell import write
from terrafirma_host.spec import Application, Release, Serving, known_releases

# Seconds after which an upload that was interrupted is removed.
UNFINISHED = 24 * 3600


def prune(app: Application) -> None:
    """
    Keep the last releases, one for each code, with their images and sources.

    Volumes are never touched.
    """
    serving = Serving.load(app)
    known = known_releases(app)
    current = next((one for one in known if serving and one.id == serving.release), None)
    kept = [current] if current else []
    for one in known:
        if len(kept) <= app.keep and one.code not in {other.code for other in kept}:
            kept.append(one)
    dropped = [one for one in known if one not in kept]
    for one in dropped:
        (app.releases / f"{one.id}.json").unlink(missing_ok=True)
    remove_unused_images(app, dropped)
    _remove_unused_sources(app, kept)


def remove_unused_images(app: Application, dropped: Sequence[Release] = ()) -> None:
    """
    Remove the images of the application that no known release needs.

    They are left by a release that failed, was killed, or is no longer kept.
    """
    needed = {image for one in known_releases(app) for image in (*one.images.values(), *one.pulled)}
    fetched = pulls.fetched(app) | {image for one in dropped for image in one.pulled}
    pulls.remove_images(
        [one for one in (*pulls.our_images(app), *sorted(fetched)) if one not in needed]
    )
    left = {one for one in fetched if one in needed or engine.inspect("image", [one])}
    if left != pulls.fetched(app):
        lines = "".join(f"{image}\n" for image in sorted(left))
        write(app.directory / pulls.FETCHED, lines, 0o600)


def _remove_unused_sources(app: Application, kept: Sequence[Release]) -> None:
    # Also keep the source from tasks/app.py: a deploy key may have sent a later one.
    needed = {one.source for one in kept} | {app.source, Application.load(app.name).source}
    # No release recreates a stateful service, so it keeps the files that it has mounted.
    mounts = [mount for one in engine.containers(app.project("state")) for mount in one.mounts]
    for path in (app.directory / "sources").glob("*"):
        # One that is on its way. After a kill it stays for a day.
        if path.name.startswith(".new-") and time.time() - path.stat().st_ctime < UNFINISHED:
            continue
        mounted = any(Path(mount).is_relative_to(path) for mount in mounts)
        if str(path) not in needed and not mounted:
            shutil.rmtree(path, ignore_errors=True)
    for one in (app.directory / delivery.LISTS).glob("*"):
        if not (app.directory / "sources" / one.name).exists():
            one.unlink()

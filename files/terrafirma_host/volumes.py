"""
Managed by Terrafirma. Volumes that last; those of the settings with the image's content, and for
its user.

Docker fills an empty volume with what the image has at its path, as the owner that the image's
directory has. A user other than root could not write there if the image has no such directory, or
if the containers run under the id of an account.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from terrafirma_host import engine, images, layers
from terrafirma_host.layers import Project
from terrafirma_host.shell import Failed, content_of, run, say, succeeds, write
from terrafirma_host.spec import Application

# Bytes of /etc/passwd in an image that are read at most.
LARGEST = 2**20

# A file in the directory of an application, with a line for each volume that has yet to be filled.
FILLING = "filling"

Owner = tuple[int, int]


def make(app: Application, project: Project) -> None:
    """Create the volumes that are not there yet."""
    for key, name in layers.volume_names(app, project).items():
        if not engine.inspect("volume", [name]):
            volume = project["volumes"][key] or {}
            if key in app.volumes:
                # Noted before: after a kill, the next release still knows that it is new.
                with (app.directory / FILLING).open("a") as note:
                    note.write(f"{name}\n")
            options = [f"--opt={k}={v}" for k, v in (volume.get("driver_opts") or {}).items()]
            options += [f"--driver={volume['driver']}"] if volume.get("driver") else []
            run("docker", "volume", "create", "--label", f"terrafirma.app={app.name}", *options,
                name)  # fmt: skip


def prepare(app: Application, project: Project, image: str) -> None:
    """
    The user of the web service can write its volumes, which exist already.

    Those that have files, or belong to that user, stay as they are.
    """
    names = {f"{app.name}_{key}": path for key, path in app.volumes.items()}
    places = {
        one["Name"]: Path(one["Mountpoint"])
        for one in engine.inspect("volume", sorted(names))
        # With options, such as those of an NFS export, it is mounted only while containers run.
        if one.get("Driver") == "local" and not one.get("Options")
    }
    if not places:
        return
    with _created(app, image, {}) as container:
        owner = _owner(app, project, image, container)
    left = _left(app)
    new = {
        name: names[name]
        for name, place in places.items()
        if name in left or (not any(place.iterdir()) and foreign(name, place, owner))
    }
    if new:
        write(app.directory / FILLING, "".join(f"{name}\n" for name in new), 0o600)
        with _created(app, image, new):
            pass
        for name in new if owner[0] else ():
            _give(places[name], owner)
        (app.directory / FILLING).unlink()
    for name, place in places.items():
        if words := foreign(name, place, owner):
            say(words)


@contextmanager
def _created(app: Application, image: str, mounts: Mapping[str, str]) -> Iterator[str]:
    """A container that never starts: Docker fills its volumes, and the image may have no shell."""
    name = f"{app.name}-volumes"
    succeeds("docker", "rm", "--force", "--volumes", name)
    words = [f"--mount=type=volume,source={one},target={path}" for one, path in mounts.items()]
    try:
        run("docker", "create", "--name", name, "--pull", "never", "--network", "none",
            "--label", f"com.docker.compose.project={app.project('run')}",
            "--entrypoint", "none", *words, image, timeout=engine.PATIENT)  # fmt: skip
        yield name
    finally:
        succeeds("docker", "rm", "--force", "--volumes", name)


def foreign(name: str, place: Path, owner: Owner) -> str:
    """A line about a volume whose top directory its containers cannot write, or ""."""
    now = place.stat()
    writes = (
        not owner[0]
        or (now.st_uid == owner[0] and now.st_mode & 0o200)
        or (now.st_gid == owner[1] and now.st_mode & 0o020)
        or now.st_mode & 0o002
    )
    if writes:
        return ""
    return (
        f"the volume {name} belongs to the id {now.st_uid}, and the containers run as {owner[0]}: "
        f"`chown -R {owner[0]}:{owner[1]} {place}` lets them write there"
    )


def _left(app: Application) -> set[str]:
    return set(content_of(app.directory / FILLING).split())


def _give(place: Path, owner: Owner) -> None:
    """Make `owner` the owner of all files, without following a link of the image's."""
    for _, directories, files, descriptor in os.fwalk(place, follow_symlinks=False):
        os.fchown(descriptor, *owner)
        for name in (*directories, *files):
            os.chown(name, *owner, dir_fd=descriptor, follow_symlinks=False)


# --- the user of the containers -------------------------------------------------------------------


def _owner(app: Application, project: Project, image: str, container: str) -> Owner:
    """The ids under which the first process of the web service starts."""
    named = app.owner() or str(project["services"][app.service].get("user") or "")
    if not named:
        named = images.user(engine.image_config(image))
    user, _, group = named.partition(":")
    if user in ("", "root", "0"):
        return 0, 0
    if user.isdecimal() and group.isdecimal():
        return _number(user), _number(group)
    return resolved(user, group, _file(container, "/etc/passwd"), _file(container, "/etc/group"))


def resolved(user: str, group: str, passwd: str, groups: str) -> Owner:
    """The ids of a user and a group of an image, as Docker finds them at the start."""
    accounts = [line.split(":") for line in passwd.splitlines()]
    found = [one for one in accounts if len(one) > 3 and user in (one[0], one[2])]
    if not found and not user.isdecimal():
        raise Failed(f"the image has no user {user!r}, under which it is to run")
    uid = _number(found[0][2] if found else user)
    if not group:
        return uid, _number(found[0][3]) if found else 0
    known = [line.split(":") for line in groups.splitlines()]
    named = [one for one in known if len(one) > 2 and group in (one[0], one[2])]
    if not named and not group.isdecimal():
        raise Failed(f"the image has no group {group!r}, under which it is to run")
    return uid, _number(named[0][2] if named else group)


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) >= 2**31:
        raise Failed(f"the image's user has the id {text[:20]!r}, which is none")
    return int(text)


def _file(container: str, path: str) -> str:
    """A small file of a container; empty without it."""
    with subprocess.Popen(
        ["docker", "cp", "--follow-link", f"{container}:{path}", "-"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout
        said = process.stdout.read(LARGEST)
        process.kill()
    try:
        with tarfile.open(fileobj=io.BytesIO(said)) as tar:
            for member in tar:
                if content := tar.extractfile(member):
                    return content.read().decode(errors="replace")
    except tarfile.TarError:
        pass
    return ""

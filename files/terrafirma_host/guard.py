"""
Files are as they were before a change, unless the change is confirmed in time.

The deploy sends this module to a host, where it runs by itself (`python3 guard.py arm …`): the way
back needs nothing else that the deploy writes. Once armed, it survives a reboot, a killed deploy
and a full disk. The directory ARMED says whether there is a way back; one rename removes it, so a
change is either confirmed or undone.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STATE = Path("/var/lib/terrafirma/guard")
ARMED = STATE / "armed"
UNDONE = STATE / "undone"
"""What the last way back removed, and when it went."""
UNITS = Path("/etc/systemd/system")
NAME = "terrafirma-guard"
SPARE = 5
"""The seconds in which the way back itself has to end."""

SERVICE = """\
# Managed by Terrafirma: files/terrafirma_host/guard.py
[Unit]
Description=Undo the last change to who reaches this host, which nobody confirmed
DefaultDependencies=no
RequiresMountsFor={state}
After=local-fs.target
# At a boot, before anything reads the files.
Before=sysinit.target network-pre.target nftables.service terrafirma-firewall.service
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -I {armed}/guard.py revert
Restart=on-failure
RestartSec=2
"""
TIMER = """\
# Managed by Terrafirma: files/terrafirma_host/guard.py
[Unit]
Description=Undo the change unless it is confirmed
[Timer]
OnActiveSec={seconds}
AccuracySec=100ms
RemainAfterElapse=no
"""


class Failed(Exception):
    """What the person who deploys has to read."""


@dataclass
class Kept:
    """A path as it was; `blob` is the file in ARMED that has its content."""

    path: str
    kind: str  # "file", "directory", "link", "absent"
    mode: int = 0
    uid: int = 0
    gid: int = 0
    blob: str = ""
    target: str = ""


# --- save -----------------------------------------------------------------------------------------


def kept(path: Path, blobs: Path) -> Kept:
    """The present state of `path`, whose content goes into `blobs`."""
    try:
        now = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return Kept(str(path), "absent")
    owner = stat.S_IMODE(now.st_mode), now.st_uid, now.st_gid
    if stat.S_ISLNK(now.st_mode):
        return Kept(str(path), "link", *owner, target=str(path.readlink()))
    if stat.S_ISDIR(now.st_mode):
        return Kept(str(path), "directory", *owner)
    if not stat.S_ISREG(now.st_mode):
        raise Failed(f"{path} is neither a file nor a directory: move it away")
    blob = blobs / str(len(list(blobs.iterdir())))
    # Not through a link that somebody puts in the place of the file at this moment.
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(opened, "rb") as content, blob.open("wb") as copy:
        shutil.copyfileobj(content, copy)
        copy.flush()
        # With its owner and mode, so that a link brings it back on a full disk too.
        os.fchown(copy.fileno(), now.st_uid, now.st_gid)
        os.fchmod(copy.fileno(), owner[0])
        os.fsync(copy.fileno())
    return Kept(str(path), "file", *owner, blob=blob.name)


def save(paths: Sequence[str], blobs: Path) -> tuple[list[Kept], list[str]]:
    """All paths as they are, and the directories to which nothing may be added."""
    found: dict[str, Kept] = {}
    trees = []
    for word in paths:
        try:
            path = Path(word.rstrip("/")).expanduser()
        except RuntimeError:
            # There is no such account yet.
            continue
        # A link on the way is followed now, and never when the path is restored.
        path = path.parent.resolve() / path.name
        inside: Iterator[Path] = iter(())
        if word.endswith("/"):
            path = path.resolve()
            trees.append(str(path))
            inside = iter(sorted(path.rglob("*")))
        for one in (path, *inside):
            if str(one) not in found:
                found[str(one)] = kept(one, blobs)
    return list(found.values()), trees


# --- restore --------------------------------------------------------------------------------------


@contextmanager
def parent(path: Path) -> Iterator[int]:
    """The directory of `path`, reached without following a link."""
    at = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in path.parent.parts[1:]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = below
        yield at
    finally:
        os.close(at)


def restore(one: Kept, blobs: Path, aside: Path) -> None:
    """The path as it was; what stands in its place goes to `aside`."""
    path = Path(one.path)
    with suppress(FileNotFoundError), parent(path) as at:
        now = _state(path.name, at)
        if one.kind == "absent":
            if now:
                _aside(path, aside)
        elif one.kind == "directory":
            if now and not stat.S_ISDIR(now.st_mode):
                _aside(path, aside)
                now = None
            if not now:
                os.mkdir(path.name, 0o700, dir_fd=at)
            opened = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            try:
                os.fchown(opened, one.uid, one.gid)
                os.fchmod(opened, one.mode)
            finally:
                os.close(opened)
        elif one.kind == "link":
            if (
                now
                and stat.S_ISLNK(now.st_mode)
                and os.readlink(path.name, dir_fd=at) == one.target
            ):
                return
            if now:
                _aside(path, aside)
            os.symlink(one.target, path.name, dir_fd=at)
            os.chown(path.name, one.uid, one.gid, dir_fd=at, follow_symlinks=False)
        elif not _same(one, blobs / one.blob, now, at):
            if now and stat.S_ISDIR(now.st_mode):
                _aside(path, aside)
            blob = blobs / one.blob
            # After an earlier way back, the copy and the file may be the same one.
            os.chown(blob, one.uid, one.gid)
            blob.chmod(one.mode)
            _replace(blob, path.name, at)


def _state(name: str, at: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _same(one: Kept, blob: Path, now: os.stat_result | None, at: int) -> bool:
    if now is None or not stat.S_ISREG(now.st_mode):
        return False
    if (stat.S_IMODE(now.st_mode), now.st_uid, now.st_gid) != (one.mode, one.uid, one.gid):
        return False
    opened = os.open(Path(one.path).name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=at)
    with os.fdopen(opened, "rb") as file:
        return file.read() == blob.read_bytes()


def _replace(blob: Path, name: str, at: int) -> None:
    """The copy becomes the file in one step; it needs no space where both are on one disk."""
    new = f".{name}.{NAME}"
    with suppress(FileNotFoundError):
        os.unlink(new, dir_fd=at)
    try:
        os.link(blob, new, dst_dir_fd=at)
    except OSError:
        opened = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=at)
        now = blob.stat()
        with os.fdopen(opened, "wb") as file:
            file.write(blob.read_bytes())
            os.fchown(file.fileno(), now.st_uid, now.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(now.st_mode))
            os.fsync(file.fileno())
    os.rename(new, name, src_dir_fd=at, dst_dir_fd=at)


def _aside(path: Path, aside: Path) -> None:
    """Move what nobody wants there to `aside`, for a person to look at."""
    to = aside / str(path).lstrip("/").replace("/", "__")
    _say(f"{path} goes to {to}")
    with suppress(OSError):
        aside.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Across disks too; a directory that has other content stays.
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            shutil.move(path, to)
        return
    with suppress(OSError):
        path.unlink()


# --- the steps ------------------------------------------------------------------------------------


def arm(order: dict[str, Any]) -> None:
    """Save the paths of `order`, and start the timer that restores them."""
    with _alone():
        if is_pending():
            raise Failed(
                "another run is changing who reaches this host; wait until it has ended, at most a "
                "minute"
            )
        if ARMED.exists():
            # A killed run had no time to start its timer, or its way back failed.
            _revert()
        new = STATE / "new"
        shutil.rmtree(new, ignore_errors=True)
        blobs = new / "files"
        blobs.mkdir(mode=0o700, parents=True)
        try:
            shutil.copy(Path(__file__), new / "guard.py")
            paths, trees = save(order["paths"], blobs)
            saved = {**order, "saved": [asdict(one) for one in paths], "trees": trees}
            _write(new / "saved.json", json.dumps(saved))
            _sync(blobs, new)
            new.rename(ARMED)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            raise Failed(f"the way back cannot be prepared: {error}") from None
        try:
            _install(max(order["seconds"] - SPARE, 1))
        except (OSError, subprocess.SubprocessError) as error:
            _forget()
            raise Failed(f"the way back cannot be armed: {error}") from None


def _install(seconds: int) -> None:
    service = UNITS / f"{NAME}.service"
    wants = UNITS / "sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    _write(service, SERVICE.format(state=STATE, armed=ARMED))
    _write(UNITS / f"{NAME}.timer", TIMER.format(seconds=seconds))
    link = wants / service.name
    link.unlink(missing_ok=True)
    link.symlink_to(service)
    _sync(UNITS, wants, STATE)
    _systemctl("daemon-reload")
    _systemctl("start", f"{NAME}.timer")


def is_pending() -> bool:
    """Whether the timer runs, or the way back is being gone."""
    units = [f"{NAME}.timer", f"{NAME}.service"]
    show = ["systemctl", "show", "--property=ActiveState", "--value", *units]
    shown = subprocess.run(show, capture_output=True, text=True, check=False).stdout.split()
    return ARMED.exists() and any(state in ("active", "activating") for state in shown)


def confirm(token: str) -> None:
    """The change of the run `token` stays."""
    with _alone():
        if _load(ARMED).get("token") == token:
            _forget()
            return
        if _load(UNDONE).get("token") == token and not ARMED.exists():
            # The run went on changing things after its time was over.
            _restore(UNDONE)
        raise Failed("the change took too long, and was undone; run it again")


def revert() -> None:
    """Undo the change; does nothing if it was confirmed."""
    with _alone():
        if ARMED.exists():
            _revert()
        else:
            _remove_units()


def _revert() -> None:
    _restore(ARMED)
    shutil.rmtree(UNDONE, ignore_errors=True)
    ARMED.rename(UNDONE)
    _remove_units()


def _restore(copies: Path) -> None:
    """Everything as `copies` has it, and the services run with that."""
    saved, blobs, aside = _load(copies), copies / "files", copies / "aside"
    paths = [Kept(**one) for one in saved.get("saved", ())]
    for command in saved.get("first", ()):
        _command(command)
    # Directories before their content; what was absent goes in the opposite order.
    for one in paths:
        if one.kind != "absent":
            _try(one, blobs, aside)
    known = {one.path for one in paths}
    added = [
        Kept(str(path), "absent")
        for tree in saved.get("trees", ())
        for path in Path(tree).rglob("*")
        if str(path) not in known
    ]
    gone = [one for one in paths if one.kind == "absent"] + added
    for one in sorted(gone, key=lambda one: one.path, reverse=True):
        _try(one, blobs, aside)
    os.sync()
    if not _boots():
        for command in saved.get("commands", ()):
            _command(command)
    _say(f"{saved.get('what', 'the change')}: the state before is back")


def _try(one: Kept, blobs: Path, aside: Path) -> None:
    """A path that cannot be restored keeps no other one back."""
    try:
        restore(one, blobs, aside)
    except OSError as error:
        _say(f"{one.path} stays as it is: {error}")


def _command(command: str) -> None:
    try:
        subprocess.run(["sh", "-c", command], timeout=20, check=True)
    except subprocess.SubprocessError as error:
        _say(f"{error}")


def _forget() -> None:
    """The one step that confirms; the rest only removes what nobody needs any more."""
    done = STATE / "confirmed"
    shutil.rmtree(done, ignore_errors=True)
    ARMED.rename(done)
    _sync(STATE)
    _remove_units()
    shutil.rmtree(done, ignore_errors=True)


def _remove_units() -> None:
    (UNITS / "sysinit.target.wants" / f"{NAME}.service").unlink(missing_ok=True)
    for kind in ("service", "timer"):
        (UNITS / f"{NAME}.{kind}").unlink(missing_ok=True)
    # At a boot the timer does not run; a wait for it would be for the boot itself.
    _systemctl("--no-block", "stop", f"{NAME}.timer")
    _systemctl("--no-block", "daemon-reload")


def _boots() -> bool:
    """Whether the services are yet to start, and will read the restored files by themselves."""
    state = subprocess.run(["systemctl", "is-active", "--quiet", "sysinit.target"], check=False)
    return state.returncode != 0


def _load(copies: Path) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = json.loads((copies / "saved.json").read_text())
    except FileNotFoundError:
        return {}
    return loaded


@contextmanager
def _alone() -> Iterator[None]:
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (STATE / "lock").open("w") as lock:
        deadline = time.monotonic() + 40
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Failed("another way back is being gone there, and does not end") from None
                time.sleep(0.1)
        yield


def _systemctl(*words: str) -> None:
    subprocess.run(["systemctl", *words], check=True, timeout=20, stdout=subprocess.DEVNULL)


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())


def _sync(*directories: Path) -> None:
    for directory in directories:
        opened = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main(words: Sequence[str]) -> None:
    match words:
        case ["arm", order]:
            arm(json.loads(order))
        case ["confirm", token]:
            confirm(token)
        case ["revert"]:
            revert()
        case _:
            raise Failed("usage: guard arm ORDER | confirm TOKEN | revert")


if __name__ == "__main__":
    os.umask(0o077)
    try:
        main(sys.argv[1:])
    except Failed as failure:
        _say(str(failure))
        sys.exit(1)

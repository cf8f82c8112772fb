"""
Managed by Terrafirma. Makes sure that nothing else goes on: no release, backup, upgrade or apt.

Each of these holds a lock while it runs. A program that holds all of the locks is alone: anything
that starts meanwhile is refused, or waits.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from terrafirma_host import spec
from terrafirma_host.shell import Failed, say, write

BACKUP = Path("/var/lib/terrafirma/backup/lock")
UPGRADE = Path("/run/terrafirma-postgres-upgrade.lock")
# The locks of apt and dpkg; each program takes some of them.
APT = (
    Path("/var/lib/apt/lists/lock"),
    Path("/var/lib/dpkg/lock-frontend"),
    Path("/var/lib/dpkg/lock"),
    Path("/var/cache/apt/archives/lock"),
    Path("/run/unattended-upgrades.lock"),
)
DAILY = Path("/var/lib/apt/daily_lock")

# Seconds between two tries to be alone.
PAUSE = 15


@contextmanager
def standstill(who: str, what: str, *, apt: bool = True) -> Iterator[None]:
    """
    Run the block while nothing else goes on; raises Failed naming all that does.

    + who, what: shown to anyone who tries to release meanwhile
    + apt: False if the block itself installs packages
    """
    with ExitStack() as stack:
        busy = [words for words in _take_all(stack, apt) if words]
        if busy:
            raise Failed("; ".join(busy))
        stack.enter_context(_announced(who, what))
        yield


@contextmanager
def once_well(
    well: Callable[[], list[str]], who: str, what: str, seconds: float, *, apt: bool = True
) -> Iterator[None]:
    """
    The same, as soon as nothing is broken; raises Failed after `seconds` of waiting.

    + well: returns what is broken, in words; called before the locks are taken, as it takes a while
    """
    until = time.monotonic() + seconds
    said = ""
    with ExitStack() as stack:
        while True:
            try:
                if wrong := well():
                    raise Failed("; ".join(wrong))
                stack.enter_context(standstill(who, what, apt=apt))
                break
            except Failed as error:
                if time.monotonic() + PAUSE > until:
                    raise
                if str(error) != said:
                    said = str(error)
                    say(f"not yet: {said}")
                time.sleep(PAUSE)
        yield


def _take_all(stack: ExitStack, apt: bool) -> Iterator[str]:
    """Take every free lock; yield what goes on for each lock that another process holds."""
    spec.RUNTIME.mkdir(parents=True, exist_ok=True)
    for name in applications():
        if not _flock(stack, spec.RUNTIME / f"{name}.lock"):
            yield f"a release of {name} is going on ({_holder(name)})"
    if not _flock(stack, BACKUP):
        yield f"a backup is going on (`fuser -v {BACKUP}`)"
    if not _flock(stack, UPGRADE):
        yield "a major upgrade of PostgreSQL is going on"
    if apt:
        holders = {_record_lock(stack, path) for path in APT} - {""}
        if not _flock(stack, DAILY):
            holders.add("apt.systemd.daily")
        if holders:
            yield f"packages are being installed ({', '.join(sorted(holders))})"


def applications() -> list[str]:
    """The applications of your settings, and others that have had a release."""
    return sorted({*spec.names(), *(path.stem for path in spec.RUNTIME.glob("*.lock"))})


def _flock(stack: ExitStack, path: Path) -> bool:
    """Take the lock; False if another process holds it."""
    if not path.parent.is_dir():
        # The program that takes this lock was never set up here.
        return True
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# `struct flock` of a 64-bit Linux: type, whence, start, length, process.
_RECORD = "hhqqi4x"


def _record_lock(stack: ExitStack, path: Path) -> str:
    """Take a lock as apt does; returns the process that holds it, or "" if it is now ours."""
    if not path.parent.is_dir():
        return ""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    stack.callback(os.close, descriptor)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        asked = struct.pack(_RECORD, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        process = struct.unpack(_RECORD, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[4]
        try:
            name = Path(f"/proc/{process}/comm").read_text().strip()
        except OSError:
            name = "an unknown program"
        return f"{name}, process {process}"
    return ""


def _holder(name: str) -> str:
    """Who holds the lease of a release, and its step: see lease.py."""
    try:
        data = json.loads((spec.RUNTIME / f"{name}.json").read_text())
        return f"{data['holder']} does the {data['what']}, now at the step {data.get('step')!r}"
    except (OSError, ValueError, LookupError, TypeError):
        return "it has just begun"


@contextmanager
def _announced(who: str, what: str) -> Iterator[None]:
    """Leave the reason where a refused release looks for it."""
    notes = [spec.RUNTIME / f"{name}.json" for name in applications()]
    for note in notes:
        data = {
            "application": note.stem, "holder": who, "what": what, "step": "alone",
            "pid": os.getpid(), "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip
        write(note, json.dumps(data) + "\n")
    try:
        yield
    finally:
        for note in notes:
            note.unlink(missing_ok=True)

"""
Managed by Terrafirma. One release at a time, of each application.

The kernel holds the lock and lets go of it with the process, whatever ends that: it cannot stick.
The lease ends by itself after a time, and says who holds it and what is being done.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from terrafirma_host.shell import LOG, Expired, Failed, write
from terrafirma_host.spec import RUNTIME, Application

# Longer than any release takes that still makes progress: building, pulling, migrating, draining
# and stopping may take an hour each.
LONGEST = 6 * 3600


class Busy(Failed):
    """Somebody else has the lease."""


# What ends a program that does not know better: `systemctl stop`, a terminal that goes, Ctrl-C.
ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Lease:
    def __init__(self, app: Application, holder: str, what: str, seconds: int) -> None:
        self.holder = holder
        self.what = what
        self.seconds = seconds
        self.over = ""
        self.state = RUNTIME / f"{app.name}.json"
        self.data: dict[str, Any] = {
            "application": app.name, "holder": holder, "what": what, "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip

    @property
    def current(self) -> str:
        """The step that was begun last."""
        return str(self.data["step"])

    def step(self, name: str) -> None:
        """Show a step as begun; raises Expired where time is up, or somebody stopped this."""
        if self.over:
            raise Expired(self.over)
        self.data["step"] = name
        write(self.state, json.dumps(self.data) + "\n")

    @contextmanager
    def at_most(self, seconds: int) -> Iterator[None]:
        """What is done in the block has less time than the whole."""
        began, whole = time.monotonic(), self.seconds
        left = signal.alarm(seconds)
        self.seconds = seconds
        try:
            yield
        finally:
            self.seconds = whole
            signal.alarm(max(1, left - int(time.monotonic() - began)))


@contextmanager
def lease(app: Application, holder: str, what: str, seconds: int = LONGEST) -> Iterator[Lease]:
    """One process has the application, for at most `seconds`; raises Busy where another has it."""
    RUNTIME.mkdir(parents=True, exist_ok=True)
    mine = Lease(app, holder, what, seconds)
    with (RUNTIME / f"{app.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another release of {app.name} is going on: {describe(app)}") from None

        def expire(number: int, _: object) -> None:
            what = f"not done within {mine.seconds} s"
            if number in ENDS:
                what = f"stopped by {signal.Signals(number).name}"
                # Once: what is done now is to leave all as it was.
                for one in ENDS:
                    signal.signal(one, signal.SIG_IGN)
            mine.over = f"{what}, at the step {mine.data.get('step')!r}"
            raise Expired(mine.over)

        before = {one: signal.signal(one, expire) for one in ENDS}
        signal.signal(signal.SIGALRM, expire)
        signal.alarm(seconds)
        # What is said from now on; of the last one only, so that it does not grow. A recovery
        # follows each release, and adds to what that one said.
        log = app.directory / "log"
        app.directory.mkdir(parents=True, exist_ok=True)
        if what != "recovery":
            log.write_text("")
        LOG.append(log)
        try:
            mine.step("lock")
            yield mine
        except Failed as error:
            with suppress(OSError), log.open("a") as end:
                end.write(f"{error}\n")
            raise
        finally:
            signal.alarm(0)
            for one, how in before.items():
                signal.signal(one, how)
            LOG.remove(log)
            mine.state.unlink(missing_ok=True)


def describe(app: Application) -> str:
    """Who holds the lease, in words."""
    try:
        data = json.loads((RUNTIME / f"{app.name}.json").read_text())
    except (OSError, ValueError):
        return "somebody who has just begun"
    return (
        f"{data['holder']} does the {data['what']} since {data['since']}, "
        f"now at the step {data.get('step')!r} (process {data['pid']})"
    )

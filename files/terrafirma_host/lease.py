"""
Managed by Terrafirma. One release of each application at a time.

The kernel releases the lock when the process ends, however it ends, so a lock cannot stick. The
lease has a time limit, and says who holds it and which step is under way.
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

# Longer than any release that makes progress: building, pulling, migrating, draining and stopping
# may take an hour each.
LONGEST = 6 * 3600


class Busy(Failed):
    """Another process has the lease."""


# The signals of `systemctl stop`, a closed terminal, and Ctrl-C.
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
        """The step that began last."""
        return str(self.data["step"])

    def step(self, name: str) -> None:
        """Show that a step begins; raises Expired when time is up or the process was stopped."""
        if self.over:
            raise Expired(self.over)
        self.data["step"] = name
        write(self.state, json.dumps(self.data) + "\n")

    @contextmanager
    def at_most(self, seconds: int) -> Iterator[None]:
        """Allow less time for the block than for the whole."""
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
    """Hold the lease of an application for at most `seconds`; raises Busy where another does."""
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
                # A second signal must not interrupt the undoing that follows.
                for one in ENDS:
                    signal.signal(one, signal.SIG_IGN)
            mine.over = f"{what}, at the step {mine.data.get('step')!r}"
            raise Expired(mine.over)

        before = {one: signal.signal(one, expire) for one in ENDS}
        signal.signal(signal.SIGALRM, expire)
        signal.alarm(seconds)
        # The log has the output of the last release only, so that it does not grow. A recovery
        # follows each release, and its output is appended.
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
    """Who holds the lease, as a phrase."""
    try:
        data = json.loads((RUNTIME / f"{app.name}.json").read_text())
    except (OSError, ValueError):
        return "its first step has not begun yet"
    return (
        f"{data['holder']} does the {data['what']} since {data['since']}, "
        f"now at the step {data.get('step')!r} (process {data['pid']})"
    )

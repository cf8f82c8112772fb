"""
Managed by Terrafirma. Reports what happened in the windows for a reboot and for PostgreSQL.

The windows open unattended, so each leaves a note, which the next run of the deploy shows:

    terrafirma updates     what is due and what was noted, for the deploy
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress

from terrafirma_host import reboot
from terrafirma_host.notes import STATE, read
from terrafirma_host.shell import run

# Seconds for which a success is shown; a failure is shown until it is repaired.
NEWS = 7 * 24 * 3600


def main(words: Sequence[str]) -> None:
    print(json.dumps(status()))


def status() -> dict[str, list[str]]:
    """Alarms, which need an action, and notes, which are good to know."""
    alarms, notes = [], []
    if why := reboot.due():
        window = "it will happen in the window updates_reboot"
        if not reboot.TIMER.exists():
            how = "reboot the host, or set updates_reboot"
        else:
            how = window if reboot.helps(why) else "the last reboot has not changed that"
        alarms.append(f"a reboot is due ({'; '.join(why)}): {how}")
    for path in sorted(STATE.glob("*.json")):
        note = read(path.stem)
        words = str(note.get("words", ""))
        if not words:
            continue
        if note.get("broken") and not reboot.broken():
            notes.append(f"{words}; by now all is as promised")
        elif note.get("alarm"):
            alarms.append(words)
        elif time.time() - float(note.get("at", 0)) < NEWS:
            notes.append(words)
    if endless := patience():
        alarms.append(endless)
    return {"alarms": alarms, "notes": notes}


def patience() -> str:
    """A complaint if a file makes apt wait for its lock for ever; else empty."""
    said = run("apt-config", "dump", "DPkg::Lock::Timeout", check=False)
    with suppress(ValueError, IndexError):
        if int(said.split('"')[1]) < 0:
            return ("apt waits for its lock for ever: a file in /etc/apt/apt.conf.d sets "
                    "DPkg::Lock::Timeout below 0; remove that line")  # fmt: skip
    return ""

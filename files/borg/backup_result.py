# Managed by Terrafirma: tasks/borg.py
"""The result of the last backup, which runs of the deploy and `terrafirma promises` read."""

import json
import os
import sys
import time
from typing import Any

from backup_store import STATE

LAST = STATE / "last.json"
WHERE = "`systemctl status borgmatic`, `journalctl -u borgmatic`"


def note(outcome: str) -> None:
    """
    Note how a backup has ended, in one line.

    + outcome: continues "the last backup …"; empty: all is well
    """
    at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    first = outcome.partition("\n")[0].rstrip(": ")
    words = f"the last backup ({at}) {first}: {WHERE}" if first else ""
    new = LAST.with_name(f"{LAST.name}.new")
    try:
        with new.open("w") as file:
            json.dump({"words": words, "invocation": _invocation()}, file)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(LAST)
    except OSError as error:
        # The backup itself has ended as it has ended.
        print(f"the result of the backup is not noted: {error}", file=sys.stderr, flush=True)


def note_if_killed() -> None:
    """At the end of the unit: a backup that could not note its result was ended before."""
    if _invocation() and _last().get("invocation") != _invocation():
        result = os.environ.get("SERVICE_RESULT", "success")
        # `systemctl stop` counts as a success.
        why = "it was stopped" if result == "success" else result
        note(f"was ended before it was complete ({why})")


def _invocation() -> str:
    """The present start of the unit; empty for a backup by hand."""
    return os.environ.get("INVOCATION_ID", "")


def _last() -> dict[str, Any]:
    try:
        found = json.loads(LAST.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

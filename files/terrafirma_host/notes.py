"""Managed by Terrafirma. Notes of unattended work, for the next deploy: see updates.py."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from terrafirma_host.shell import write

STATE = Path("/var/lib/terrafirma/updates")


def moment() -> str:
    """The current time, for people."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def note(name: str, words: str, *, alarm: bool = False, **more: Any) -> None:
    """Replace the note `name`: `words` are for people, `more` is for programs."""
    data = {"at": time.time(), "words": words, "alarm": alarm, **more}
    write(STATE / f"{name}.json", json.dumps(data) + "\n")


def read(name: str) -> dict[str, Any]:
    try:
        data = json.loads((STATE / f"{name}.json").read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def forget(name: str) -> None:
    (STATE / f"{name}.json").unlink(missing_ok=True)

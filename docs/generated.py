"""A page of the manual that a program writes: `make docs` runs the program."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def write(page: str, text: str) -> str | None:
    """Write the page, or with `--check` say in one line that it is stale."""
    path = ROOT / page
    arguments = sys.argv[1:]
    if arguments == ["--check"]:
        fresh = path.is_file() and path.read_text() == text
        return None if fresh else f"{page} is stale: run `make docs`"
    if arguments:
        return f"{' '.join(arguments)}: the only argument is --check"
    path.write_text(text)
    return None

"""Files in the user's cache directory: a run may lose them, and then does its work again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any


def directory(name: str = "") -> Path:
    """Our directory there, or a part of it; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "terrafirma" / name


def read(path: Path) -> Any:
    """The JSON in a file; None from a file that another user could have written."""
    with suppress(OSError, ValueError), path.open() as file:
        state = os.fstat(file.fileno())
        if state.st_uid == os.getuid() and not state.st_mode & 0o022:
            return json.load(file)
    return None


def write(path: Path, content: Any) -> None:
    """Replace a file as a whole, for its user alone; nothing happens where that is impossible."""
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{token_hex(4)}")
        new.touch(mode=0o600)
        new.write_text(json.dumps(content))
        new.replace(path)


def keep_newest(paths: Iterable[Path], number: int) -> None:
    """Remove all but those that were changed last."""
    with suppress(OSError):
        for path in sorted(paths, key=lambda one: one.stat().st_mtime, reverse=True)[number:]:
            path.unlink(missing_ok=True)

"""Managed by Terrafirma. Commands, and what is said of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path


class Failed(Exception):
    """What went wrong, in words for whoever releases."""


class Expired(Failed):
    """The time of a release is over: no answer of the command that was under way."""


LOG: list[Path] = []
"""Where what is said is written, too: whoever listens may lose the connection."""


def say(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError:
        # Nobody listens any more, which is no failure at the end of the program either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for path in LOG:
        with suppress(OSError), path.open("a") as log:
            log.write(f"{text}\n")


def run(
    *command: str | Path,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    inherit: bool = True,
    timeout: float | None = None,
    lines: int = 5,
) -> str:
    """
    What a command printed on standard output; raises Failed with its last words.

    Its environment is `env`, and where it inherits, that of whoever called us.
    """
    words = [str(word) for word in command]
    try:
        result = subprocess.run(
            # There is nobody to ask: its standard input is at its end.
            words, input=stdin or "", capture_output=True, text=True, timeout=timeout,
            # Found by our own environment, whatever the command's says.
            executable=shutil.which(words[0]),
            # Whatever a migration prints, it has run.
            errors="replace",
            env={**(os.environ if inherit else {}), **(env or {})}, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Failed(f"{named(words)}: not done within {timeout:.0f} s") from None
    except FileNotFoundError:
        raise Failed(f"{words[0]}: there is no such program") from None
    if result.returncode:
        said = result.stderr.strip() or result.stdout.strip()
        if lines > 5:
            # A build says on the one what failed, and on the other why.
            said = f"{result.stdout}\n{result.stderr}"
        raise Failed(f"{named(words)}: {last(said, lines) or f'exit {result.returncode}'}")
    return result.stdout


def succeeds(*command: str | Path) -> bool:
    try:
        run(*command)
    except Expired:
        raise
    except Failed:
        return False
    return True


def named(words: Sequence[str]) -> str:
    """The command in short: its options may be long."""
    return " ".join(word for word in words[:2] if not word.startswith("-"))


def last(text: str, lines: int = 5) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def write(path: Path, content: str, mode: int = 0o644) -> None:
    """A file that is complete, or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Somebody else may write the same file at the same moment.
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    new.rename(path)
    sync(path.parent)


def sync(directory: Path) -> None:
    """What was renamed or removed there outlives a power cut, too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

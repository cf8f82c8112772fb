"""Managed by Terrafirma. Commands, and what is said of them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

# A line that is longer is shown by its two ends, in characters.
HEAD, TAIL = 400, 100
READ = 64 * 1024

# What a terminal takes for orders: strings (a title, a link) that end in their line; colours and
# movements; and the rest of what begins with ESC.
ORDERS = re.compile(
    r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\n\r\x07\x1b\x80-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|\x1b[ -/]*[0-~]?"
)


class _Visible(dict[int, int | None]):
    """For `str.translate`: no character that is an order, or changes the order of others."""

    def __missing__(self, code: int) -> int | None:
        hidden = unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        self[code] = None if hidden and chr(code) not in "\t\n" else code
        return self[code]


VISIBLE = _Visible()


def plain(text: str) -> str:
    """Text of anybody's, for a terminal: no control sequences, and no line without an end."""
    text = ORDERS.sub("", text.replace("\r\n", "\n")).replace("\r", "\n").translate(VISIBLE)
    return "\n".join(map(_short, text.split("\n")))


def _short(line: str) -> str:
    if len(line) <= HEAD + TAIL:
        return line
    return f"{line[:HEAD]} … {line[-TAIL:]} ({len(line)} characters)"


def plain_lines(stream: IO[bytes]) -> Iterator[str]:
    """Each line that comes, as `plain` shows it; of one without an end what begins it."""
    while begins := stream.readline(READ):
        rest = begins
        while len(rest) == READ and not rest.endswith(b"\n"):
            rest = stream.readline(READ)
        yield plain(begins.decode(errors="replace").rstrip("\r\n"))


def ends(text: str, first: int = 10, last: int = 20) -> str:
    """The first and the last lines: some programs say first what went wrong, others last."""
    lines = [line for line in plain(text).splitlines() if line.strip()]
    left = len(lines) - first - last
    if left > 0:
        lines[first:-last] = [f"… {left} more lines …"]
    return "\n".join(lines)


class Failed(Exception):
    """What went wrong, in words for whoever releases; these may quote anybody."""

    def __init__(self, words: object) -> None:
        super().__init__(plain(str(words)))


class Expired(Failed):
    """A release is over before its end, whatever was under way: out of time, or stopped."""


LOG: list[Path] = []
"""Where what is said is written, too: whoever listens may lose the connection."""


def say(text: str) -> None:
    text = plain(text)
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
        process = subprocess.Popen(
            # There is nobody to ask: its standard input is at its end.
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # Found by our own environment, whatever the command's says.
            executable=shutil.which(words[0]),
            # Whatever a migration prints, it has run.
            text=True, errors="replace",
            env={**(os.environ if inherit else {}), **(env or {})},
            # What it started itself ends with it: Compose is not the process that we start.
            process_group=0,
        )  # fmt: skip
    except FileNotFoundError:
        raise Failed(f"{words[0]}: there is no such program") from None
    with process:
        try:
            out, err = process.communicate(stdin or "", timeout)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise Failed(f"{named(words)}: not done within {timeout:.0f} s") from None
            raise
    if process.returncode:
        said = err.strip() or out.strip()
        if lines > 5:
            # A build says on the one what failed, and on the other why.
            said = f"{out}\n{err}"
        said = ends(said, first=lines // 2, last=lines) if lines > 5 else last(said, lines)
        raise Failed(f"{named(words)}: {said or f'exit {process.returncode}'}")
    return out


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

"""Managed by Terrafirma. Commands, their output, and files that are written safely."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# Characters that are shown of a longer line, from its two ends.
HEAD, TAIL = 900, 100
READ = 64 * 1024

# Control sequences of a terminal: strings (a title, a link) that end in their line; colours and
# cursor movements; and all others that begin with ESC.
ORDERS = re.compile(
    r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\n\r\x07\x1b\x80-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|\x1b[ -/]*[0-~]?"
)


# Values that no output shows, the longest first, and the fewest characters that such a value has.
CONCEALED: list[str] = []
LEAST = 8


def conceal(values: Iterable[str]) -> None:
    """
    From now on no output shows these values, whatever program prints them.

    Of a URL with a password, and of several lines, each part is a value of its own.
    """
    new = set()
    for value in values:
        passwords = re.findall(r"://[^:@/\s]*:([^@/\s]+)@", value)
        new |= {value.strip(), *(line.strip() for line in value.splitlines()), *passwords}
    CONCEALED[:] = sorted(
        {*CONCEALED, *(one for one in new if len(one) >= LEAST)}, key=len, reverse=True
    )


class _Visible(dict[int, int | None]):
    """For `str.translate`: drops control characters, and those that change the text's direction."""

    def __missing__(self, code: int) -> int | None:
        hidden = unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        self[code] = None if hidden and chr(code) not in "\t\n" else code
        return self[code]


VISIBLE = _Visible()


def plain(text: str) -> str:
    """Untrusted text, safe for a terminal: no control sequences, and no endless line."""
    text = ORDERS.sub("", text.replace("\r\n", "\n")).replace("\r", "\n").translate(VISIBLE)
    for value in CONCEALED:
        text = text.replace(value, "(a secret)")
    return "\n".join(map(_short, text.split("\n")))


def _short(line: str) -> str:
    if len(line) <= HEAD + TAIL:
        return line
    return f"{line[:HEAD]} … {line[-TAIL:]} ({len(line)} characters)"


def plain_lines(stream: IO[bytes]) -> Iterator[str]:
    """Each line of a stream through `plain`; of an endless line only its beginning."""
    while begins := stream.readline(READ):
        rest = begins
        while len(rest) == READ and not rest.endswith(b"\n"):
            rest = stream.readline(READ)
        yield plain(begins.decode(errors="replace").rstrip("\r\n"))


def ends(text: str, first: int = 10, last: int = 20) -> str:
    """The first and the last lines: some programs name the error first, others last."""
    lines = [line for line in plain(text).splitlines() if line.strip()]
    left = len(lines) - first - last
    if left > 0:
        lines[first:-last] = [f"… {left} more lines …"]
    return "\n".join(lines)


class Failed(Exception):
    """An error with a message for the user; the message may quote untrusted text."""

    def __init__(self, words: object) -> None:
        super().__init__(plain(str(words)))


class Expired(Failed):
    """A release was stopped, or ran out of time, whatever was under way."""


# Errors that are not bugs of this program. Each is undone, and reported in one line.
BROKEN = (Failed, OSError, ValueError, subprocess.SubprocessError)


LOG: list[Path] = []
"""Files that also get the output: the connection may break before the end."""


def say(text: str) -> None:
    text = plain(text)
    try:
        print(text, flush=True)
    except OSError:
        # The reader is gone. With /dev/null, flushing at exit does not fail either.
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
    check: bool = True,
) -> str:
    """
    Run a command; returns its standard output, and raises Failed with its last lines.

    The environment is `env`; with `inherit` it is added to the caller's. Without `check` the
    command may fail, and the output until then is returned.
    """
    words = [str(word) for word in command]
    try:
        process = subprocess.Popen(
            # Without `stdin` the input is empty, so that a command cannot wait for an answer.
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # Found on our own PATH, whatever the command's environment says.
            executable=shutil.which(words[0]),
            # A migration that prints invalid UTF-8 has still run.
            text=True, errors="replace",
            env={**(os.environ if inherit else {}), **(env or {})},
            # A session, so that its children end with it: `docker` starts Compose as a child.
            start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise Failed(f"{words[0]}: there is no such program") from None
    with process:
        try:
            out, err = process.communicate(stdin or "", timeout)
        except BaseException as error:
            _end(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise Failed(f"{named(words)}: not done within {timeout:.0f} s") from None
            raise
    if check and process.returncode:
        said = err.strip() or out.strip()
        if lines > 5:
            # A build names the failed step on one stream, and the reason on the other.
            said = f"{out}\n{err}"
        said = ends(said, first=lines // 2, last=lines) if lines > 5 else last(said, lines)
        raise Failed(f"{named(words)}: {said or f'exit {process.returncode}'}")
    return out


def follow(
    *command: str | Path, heard: Callable[[str], None], env: Mapping[str, str] | None = None
) -> None:
    """Pass each output line of a command to `heard`; raises Failed with the last lines."""
    words = [str(word) for word in command]
    said: deque[str] = deque(maxlen=5)
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **(env or {})}, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout
        try:
            for line in plain_lines(process.stdout):
                said.append(line)
                heard(line)
        except BaseException:
            _end(process)
            raise
    if process.returncode:
        raise Failed("\n".join([f"{named(words)}:", *said]))


def _end(process: subprocess.Popen[Any]) -> None:
    """Kill a command and all its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def succeeds(*command: str | Path) -> bool:
    try:
        run(*command)
    except Expired:
        raise
    except Failed:
        return False
    return True


def named(words: Sequence[str]) -> str:
    """A short name of a command, without `runuser` and without options."""
    if words[0] == "runuser":
        words = words[words.index("--") + 1 :]
    words = [Path(words[0]).name, *words[1:2]]
    return " ".join(word for word in words if not word.startswith("-"))


def last(text: str, lines: int = 5) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


@contextmanager
def locked(path: Path, busy: Callable[[], Failed] | None = None) -> Iterator[None]:
    """
    Hold a lock on the file or directory at `path`; the kernel releases it with the process.

    + busy: makes the error to raise where another process has the lock; without it, wait
    """
    how = os.O_RDONLY if path.is_dir() else os.O_RDONLY | os.O_CREAT
    descriptor = os.open(path, how, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            assert busy
            raise busy() from None
        yield
    finally:
        os.close(descriptor)


def write(
    path: Path, content: str | bytes, mode: int = 0o644, owner: tuple[int, int] | None = None
) -> None:
    """Write a file with its mode and owner (user and group): completely, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of our own: another process may write the same file at the same moment.
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if owner:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(descriptor)
    new.rename(path)
    sync(path.parent)


def content_of(path: Path) -> str:
    """The text of a file; empty without the file."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def sync(directory: Path) -> None:
    """Make renames and removals in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Managed by Terrafirma. Commands, and what is said of them."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

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


# What can go wrong without a fault of this program: each is undone, and said in one line.
BROKEN = (Failed, OSError, ValueError, subprocess.SubprocessError)


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
    check: bool = True,
) -> str:
    """
    What a command printed on standard output; raises Failed with its last words.

    Its environment is `env`, and where it inherits, that of whoever called us. Without `check` it
    may fail, and what it printed until then is the answer.
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
            # A build says on the one what failed, and on the other why.
            said = f"{out}\n{err}"
        said = ends(said, first=lines // 2, last=lines) if lines > 5 else last(said, lines)
        raise Failed(f"{named(words)}: {said or f'exit {process.returncode}'}")
    return out


def follow(
    *command: str | Path, heard: Callable[[str], None], env: Mapping[str, str] | None = None
) -> None:
    """Hand on each line of a command as it comes; raises Failed with the last of them."""
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
    """With all that it has started."""
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
    """The command in short, whoever it runs as: its options may be long."""
    if words[0] == "runuser":
        words = words[words.index("--") + 1 :]
    words = [Path(words[0]).name, *words[1:2]]
    return " ".join(word for word in words if not word.startswith("-"))


def last(text: str, lines: int = 5) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


@contextmanager
def locked(path: Path, busy: Callable[[], Failed] | None = None) -> Iterator[None]:
    """
    The file or directory at `path` is locked; the kernel lets go of it with the process.

    + busy: what to raise where somebody else has it; without it, that is waited for
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
    """A file that is complete, with its mode and owner (user and group), or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Somebody else may write the same file at the same moment.
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


def sync(directory: Path) -> None:
    """What was renamed or removed there outlives a power cut, too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

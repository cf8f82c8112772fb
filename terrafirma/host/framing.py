"""
Every command on a host runs in a clean environment, and its output is separated from the output of
the login around it; `config.py` installs this between pyinfra and its connections.

sshd passes a command to the account's login shell, which can be any shell and reads start-up files
first. These files may print, read standard input, change directory, umask and variables, define
functions and aliases, set traps, and end or replace the shell. So the login shell gets only one
plain call of /bin/sh. This /bin/sh reads standard input up to a mark, and starts again with an
empty environment. sudo and su have settings and files of their own, so after them /bin/sh is
started in the same way. Then it prints a mark, runs the command, and prints a mark with the exit
code.
"""

from __future__ import annotations

import re
import secrets
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial, wraps
from getpass import getpass
from typing import Any, TextIO
from weakref import WeakSet

import gevent
from pyinfra.api import Host, State, StringCommand
from pyinfra.connectors import local, ssh, util
from pyinfra.connectors.local import LocalConnector
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.util import CommandOutput, OutputLine
from typing_extensions import override

SECONDS = 60
"""How long a login may take to begin its command."""

# Random, so that no program prints it by accident and no start-up file contains it.
_MARK = f"terrafirma-{secrets.token_hex(8)}"
_BEGIN, _END = f"{_MARK}-begin", f"{_MARK}-end"
# Lines that start-up files may consume from standard input, before our own input begins.
_SPARE = [""] * 16
_FRAME = "frame"

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OURS = {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TERM": "dumb"}
# Variables that survive: the user, the SSH connection and forwarded agent, and the proxies.
_KEPT = (
    *("HOME", "USER", "LOGNAME", "SHELL", "SSH_CONNECTION", "SSH_AUTH_SOCK", "XDG_RUNTIME_DIR"),
    *("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"),
)
_ENVIRONMENT = " ".join(
    [f"{name}={value}" for name, value in _OURS.items()]
    + [f'${{{name}:+"{name}=${name}"}}' for name in _KEPT]
)
_CLEAN = f"umask 022; exec /usr/bin/env -i PATH={_PATH} {_ENVIRONMENT} /bin/sh -c"
# Commands on this machine pass no login, so they keep the user's PATH and choice of Docker.
_DOCKER = " ".join(
    f'${{DOCKER_{name}:+"DOCKER_{name}=$DOCKER_{name}"}}'
    for name in ("HOST", "CONTEXT", "CONFIG", "CERT_PATH", "TLS_VERIFY", "API_VERSION")
)
_HERE = _CLEAN.replace(f"PATH={_PATH}", f'"PATH=$PATH" {_DOCKER}')

_OTHER_USER = ("_sudo", "_su_user", "_doas", "_dzdo")
# With one of these arguments the caller asks for the login's environment, and gets it.
_LOGIN = ("_use_sudo_login", "_preserve_sudo_env", "_use_su_login", "_preserve_su_env")


def _escaped(script: str) -> str:
    """
    `script` as an argument of `printf %b`, in single quotes that every shell reads the same way.

    fish interprets escapes in single quotes, and csh allows neither a line break nor `!` in them.
    Once escaped, the text needs no further quoting, however many shells it passes through.
    """
    special = re.sub(r"[\\'!\n\r\t]", lambda found: f"\\0{ord(found[0]):03o}", script)
    return f"'{special}'"


def framed(script: str, shell: str = "sh") -> str:
    """A script that runs `script` between the two marks, and ends with its exit code."""
    return (
        f"echo {_BEGIN}; echo {_BEGIN} >&2; "
        f'{shell} -c "$(printf %b {_escaped(script)})"; status=$?; '
        f"echo {_END} $status; echo {_END} $status >&2; exit $status"
    )


def clean(script: str) -> str:
    """A script that runs `script` in our own environment and nothing else."""
    return f'{_CLEAN} "$(printf %b {_escaped(script)})"'


def sent(script: str, start: str = _CLEAN) -> str:
    """The command line with which any login shell starts a /bin/sh that runs `script`."""
    boot = (
        f'line=; until test "$line" = {_MARK}; do IFS= read -r line || {{ '
        'echo "the start-up files of the login read standard input to its end" >&2; exit 125; }; '
        f'done; cd "${{HOME:-/}}" 2> /dev/null || cd /; {start} "$(printf %b "$1")"'
    )
    return f"/bin/sh -c '{boot}' sh {_escaped(script)}"


class _Sent(StringCommand):
    """A command that logs show as pyinfra writes it, while `words` are sent in its place."""

    def __init__(self, shown: StringCommand, words: str) -> None:
        super().__init__(shown)
        self.words = words

    @override
    def get_raw_value(self) -> str:
        return self.words


def _unix_command(
    state: State, host: Host, command: StringCommand, *, start: str = _CLEAN, **arguments: Any
) -> StringCommand:
    shown = util.make_unix_command_for_host(state, host, command, **arguments)
    own = {key: arguments.pop(key, None) for key in ("_env", "_chdir")}
    shell = arguments.pop("_shell_executable", None) or "sh"
    script = framed(
        util.make_unix_command(command, **own, _shell_executable=None).get_raw_value(), shell
    )
    login = any(arguments.get(key) for key in _LOGIN)
    if any(arguments.get(key) for key in _OTHER_USER):
        script = script if login else clean(script)
        script = util.make_unix_command_for_host(
            state, host, StringCommand(script), **arguments
        ).get_raw_value()
    return _Sent(shown, sent(script, "exec /bin/sh -c" if login else start))


# The channels on which a command has begun. Either stream shows it, since a terminal has only one.
_begun: WeakSet[Any] = WeakSet()


def _close(channel: Any) -> None:
    if channel not in _begun:
        channel.close()


class _Answer:
    """The lines between the marks of one stream; all its lines if the command never began."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.begun = False
        self.status = ""

    def lines(self) -> Iterator[str]:
        # A login may print without end, so keep its last lines only. This machine has no login.
        before: deque[str] = deque(maxlen=20 if hasattr(self.stream, "channel") else None)
        for line in self._limited():
            if not self.begun:
                before.append(line)
                if line.rstrip().endswith(_BEGIN):
                    self._begin()
                    before.clear()
            elif not self.status:
                # The exit code alone follows the mark, except where `ps` prints our script.
                end = re.search(rf"{_END} (\d+)\s*$", line)
                self.status = end[1] if end else ""
                if head := line[: end.start()] if end else line:
                    yield head
        yield from before

    def _begin(self) -> None:
        self.begun = True
        if channel := getattr(self.stream, "channel", None):
            _begun.add(channel)

    def _limited(self) -> Iterator[str]:
        """All lines; closes the channel if the first mark does not come in time."""
        channel = getattr(self.stream, "channel", None)
        timer = channel and gevent.spawn_later(SECONDS, _close, channel)
        if channel:
            # Read bytes: in text mode, one byte of another encoding would end the answer.
            self.stream._flags |= self.stream.FLAG_BINARY
        try:
            for line in self.stream:
                yield line.decode(errors="replace") if isinstance(line, bytes) else line
        finally:
            if timer:
                timer.kill()


def _reader(plain: Callable[..., None]) -> Callable[..., None]:
    @wraps(plain)
    def read(name: str, io: Iterable[Any], output_queue: Any, *args: Any, **kwargs: Any) -> None:
        answer = _Answer(io)
        plain(name, answer.lines(), output_queue, *args, **kwargs)
        if name == "stdout" and answer.begun:
            output_queue.put(OutputLine(_FRAME, answer.status))

    return read


class _Piece(bytes):
    """A piece of standard input that pyinfra, which sends lines, leaves as it is."""

    __slots__ = ()

    def endswith(self, *_: Any) -> bool:
        return True

    def encode(self) -> bytes:
        return self


class Stream(list[Any]):
    """
    Bytes for standard input that are made while they are sent, so that they need no memory.

    To pyinfra it is a list of lines; each time it is sent, `pieces` is called anew.
    """

    def __init__(self, pieces: Callable[[], Iterator[bytes]], before: Iterable[str] = ()) -> None:
        super().__init__()
        self.pieces = pieces
        self.before = before

    @override
    def __iter__(self) -> Iterator[Any]:
        yield from self.before
        yield from map(_Piece, self.pieces())

    def __bool__(self) -> bool:
        return True


Run = Callable[..., tuple[bool, CommandOutput]]


def _is_connected(connector: Any) -> bool:
    client = getattr(connector, "client", None)
    transport = client and client.get_transport()
    return bool(transport and transport.is_active())


def _framed_input(content: Any) -> list[Any]:
    if isinstance(content, Stream):
        return Stream(content.pieces, [*_SPARE, _MARK])
    content = content.readlines() if hasattr(content, "readlines") else content
    content = list(content) if isinstance(content, list | tuple) else [content]
    return [*_SPARE, _MARK, *content]


def _runner(plain: Run) -> Run:
    @wraps(plain)
    def run(
        self: Any,
        command: StringCommand,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> tuple[bool, CommandOutput]:
        arguments["_stdin"] = _framed_input(arguments.get("_stdin") or [])
        codes = arguments.get("_success_exit_codes") or (0,)
        try:
            success, output = plain(self, command, print_output, print_input, **arguments)
        except OSError as error:
            # paramiko's words for a shell that ended before it read its input.
            if str(error) != "Socket is closed" or not _is_connected(self):
                raise
            success, output = False, CommandOutput([])
        statuses = [line.line for line in output.combined_lines if line.buffer_name == _FRAME]
        lines = [line for line in output.combined_lines if line.buffer_name != _FRAME]
        if statuses and statuses[0]:
            success = int(statuses[0]) in codes
        elif not statuses and (success or not lines):
            success = False
            lines.append(OutputLine("stderr", _NEVER))
        return success, CommandOutput(lines)

    return run


_NEVER = (
    f"the command never began: the start-up files of the login ended its shell, put another in "
    f"its place, or did not end within {SECONDS} s; try `ssh HOST true`"
)


def _ask(prompt: str = "", stream: TextIO | None = None) -> str:
    """A password from the terminal. Without one, getpass ends the run with a traceback."""
    if not sys.stdin.isatty():
        raise OSError("sudo asks for a password, and here is no terminal to give it")
    return getpass(prompt, stream)


@cache
def install() -> None:
    """Make pyinfra send all its commands in this way, over SSH and on this machine."""
    ssh.make_unix_command_for_host = _unix_command
    local.make_unix_command_for_host = partial(_unix_command, start=_HERE)
    util.read_buffer = _reader(util.read_buffer)
    util.getpass = _ask
    for connector in (SSHConnector, LocalConnector):
        setattr(connector, "run_shell_command", _runner(connector.run_shell_command))  # noqa: B010

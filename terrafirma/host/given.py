"""
Secrets that come from outside the settings: from the environment of the process, or from a command
that runs on this machine.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from threading import Lock

from pyinfra.api import DeployError, Host

from terrafirma.settings import ROOT

LARGEST = 64 * 1024
"""Bytes of a secret."""

SECONDS = 60
"""How long a command may take."""


class Hidden(list[str]):
    """Lines for standard input, hidden from the log, in which pyinfra prints a fact's arguments."""

    def __repr__(self) -> str:
        return "…"


class HiddenText(str):
    """Text that is hidden from the log."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "…"


def value(host: Host, key: str, source: str) -> HiddenText:
    kind, _, rest = source.partition(":")
    wrong = ""
    if kind == "env":
        value, what = os.environb.get(rest.encode()), rest
        if value is None:
            wrong = "is not set; set it in the environment of pyinfra"
    else:
        value, wrong = _printed_by(rest)
        what = "its command" if wrong else "what its command prints"
    value = (value or b"").removesuffix(b"\n")
    text = value.decode(errors="replace")
    if not wrong:
        if not value.strip():
            wrong = "is empty; a secret has at least one character"
        elif b"\0" in value:
            wrong = "has a NUL character in it; encode it, as with base64"
        elif len(value) > LARGEST:
            wrong = f"has {len(value)} bytes; {LARGEST} is the most"
        elif text.encode() != value:
            wrong = "is not text (UTF-8); encode it, as with base64"
    if wrong:
        raise DeployError(f"{host.name}: {key}: {what} {wrong}")
    # Keep the final newline of a multi-line value: OpenSSH rejects a private key without it.
    return HiddenText(f"{text}\n" if "\n" in text else text)


# Each command runs once, however many hosts and secrets use it. The lock is needed because pyinfra
# works on several hosts at once.
_answers: dict[str, tuple[bytes, str]] = {}
_lock = Lock()


def _printed_by(command: str) -> tuple[bytes, str]:
    """The output of a shell command on this machine, and what went wrong, if anything."""
    with _lock:
        if command not in _answers:
            _answers[command] = _run(command)
        return _answers[command]


def _run(command: str) -> tuple[bytes, str]:
    # A session of its own has no terminal to ask for input, and can be killed as a whole.
    with subprocess.Popen(  # noqa: S602  # the command is the user's own, with pipes
        command,
        shell=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            printed, said = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return (
                b"",
                f"took longer than {SECONDS} s; try it by hand: it cannot ask for input here",
            )
    last = ""
    for line in said.decode(errors="replace").splitlines():
        last = re.sub(r"[\x00-\x1f\x7f-\x9f]", "", line).strip()[:200] or last
    if process.returncode != 0:
        return b"", f"ended with {process.returncode}{last and f' ({last})'}; try it by hand"
    if not printed.strip():
        # Such as `sops -d x | jq -r .y` when its first half fails.
        return b"", f"printed nothing{last and f' ({last})'}; try it by hand"
    return printed, ""

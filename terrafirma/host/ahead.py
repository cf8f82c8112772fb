"""
The questions of a run are sent to a host together, before each is asked; `config.py` installs this.

A run on a converged host asks some forty questions, each in a round trip of its own. Nearly all are
the same in every run. So the end of a run notes its questions in the user's cache directory, and
the first of them in the next run brings the answers to all. The host works out the answers for the
execution while the plan is made here. An answer serves for exactly the command that it belongs to,
once in the plan and once in the execution, and for a few seconds. Any other command, which may
change the host, drops the answers that are left.
"""

from __future__ import annotations

import functools
import hashlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import gevent
from gevent import Greenlet
from paramiko import SSHException
from pyinfra.api import Host, StringCommand
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.util import CommandOutput, OutputLine

from terrafirma.host import cache
from terrafirma.host.asking import changes_of

FRESH = 20
"""Seconds for which an answer serves."""

# The users under whom a question is asked. Further arguments may be secret, or change the answer.
_USERS = ("_sudo", "_sudo_user", "_su_user", "_doas", "_doas_user")
_PLAIN = {*_USERS, "_stdin", "_shell_executable", "_success_exit_codes", "_retry_delay"}

Answer = tuple[int, list[OutputLine]]
"""Exit code and output of a command."""


@dataclass(frozen=True)
class Question:
    """A command that only reads."""

    key: str  # digest of the command and its user
    users: str  # for whom it is asked
    text: str  # the command; empty if it reads standard input or has a secret in it

    @classmethod
    def of(cls, command: str | StringCommand, arguments: dict[str, Any]) -> Question:
        command = StringCommand(command) if isinstance(command, str) else command
        given = {name: value for name, value in arguments.items() if value not in _NOTHING}
        users = json.dumps([[name, given.get(name)] for name in _USERS])
        text = command.get_raw_value()
        key = hashlib.sha256(json.dumps([users, sorted(given), text]).encode()).hexdigest()
        plain = given.keys() <= _PLAIN and not given.get("_stdin") and text == str(command)
        plain = plain and given.get("_shell_executable", "sh") == "sh"
        return cls(key, users, text if plain else "")


_NOTHING: tuple[Any, ...] = (None, False, "", (), [], {})


@dataclass
class Phase:
    """The plan of a run, or its execution, on one host."""

    expected: dict[str, Question]  # by key: those of the run before, in their order
    times: dict[str, int]  # by key: how often the run before asked it
    asked: list[Question] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)  # users whose questions were sent
    at: float = 0  # when the answers came
    trusted: bool = True  # whether every command so far was a question of the run before

    def batch(self, question: Question) -> list[Question]:
        """The questions to send with this one; fewer than two are not worth it."""
        if not self.trusted or question.users in self.sent or not question.text:
            return []
        found = [one for one in self.expected.values() if one.text and one.users == question.users]
        return found if len(found) > 1 and question in found else []

    def note(self, question: Question) -> None:
        """A command is about to run; drop all answers if the run before did not ask it so often."""
        self.asked.append(question)
        if self.asked.count(question) > self.times.get(question.key, 0):
            self.distrust()

    def distrust(self) -> None:
        self.trusted = False
        self.answers.clear()

    def take(self, question: Question) -> Answer | None:
        """The answer that is here already."""
        if time.monotonic() - self.at > FRESH:
            self.answers.clear()
        return self.answers.pop(question.key, None)


Fetch = Callable[[list[Question]], dict[str, Answer]]
"""Asks questions together; the answers by the keys of the questions."""


class Questions:
    """The questions of a run on one host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        # Answers for the execution that come during the plan, and the moment of the first of them.
        self.early: list[Greenlet] = []
        self.shared: dict[str, Answer] = {}
        self.at: float = 0
        self.path = cache.directory() / f"{_name(host)}.json"
        known = _read(self.path)
        self.phases = {
            executing: _phase(known.get(str(executing), ())) for executing in (False, True)
        }

    @property
    def phase(self) -> Phase:
        return self.phases[bool(self.host.state.is_executing)]

    def answer(self, question: Question, fetch: Fetch) -> Answer | None:
        """The answer to a question, if it comes with those to others; None to ask it alone."""
        phase = self.phase
        if phase is self.phases[True]:
            self._take_over(phase)
        if (answer := phase.take(question)) is None and (batch := phase.batch(question)):
            phase.sent.add(question.users)
            at = time.monotonic()
            if phase is self.phases[False]:
                self._ask_early(batch, fetch, at)
            phase.at, found = at, fetch(batch)
            phase.answers.update(found)
            if phase is self.phases[False]:
                self.shared.update(found)
            answer = phase.take(question)
        return answer

    def _ask_early(self, batch: list[Question], fetch: Fetch, at: float) -> None:
        """Let the host begin with the questions of the execution that the plan does not ask."""
        self.at = self.at or at
        later = [
            one for one in self.phases[True].expected.values()
            if one.text and one.users == batch[0].users and one not in batch
        ]  # fmt: skip
        if later:
            self.early.append(gevent.spawn(fetch, later))

    def _take_over(self, phase: Phase) -> None:
        """Give the execution the answers that came during the plan."""
        self.wait()
        # The first command of the execution may have been a change.
        if phase.trusted and self.phases[False].trusted and self.shared:
            for one in self.early:
                self.shared.update(one.value or {})
            known = {key: one for key, one in self.shared.items() if key in phase.expected}
            phase.answers, phase.at = known, self.at
        self.early, self.shared = [], {}

    def wait(self) -> None:
        """Wait until the host has worked out all answers: sshd may allow one session alone."""
        gevent.joinall(self.early)

    def save(self) -> None:
        """Keep the questions for the next run, unless the execution changed something."""
        planned, executed = self.phases[False], self.phases[True]
        if changes_of(self.host) or self.host not in self.host.state.active_hosts:
            return
        # A dry run does not execute.
        kept = executed.asked or list(executed.expected.values())
        content = {
            str(executing): [[one.key, one.users, one.text] for one in asked]
            for executing, asked in ((False, planned.asked), (True, kept))
        }
        cache.write(self.path, content)


def _phase(known: Sequence[Question]) -> Phase:
    keys = [one.key for one in known]
    return Phase({one.key: one for one in known}, {key: keys.count(key) for key in keys})


_questions: WeakKeyDictionary[Host, Questions] = WeakKeyDictionary()


def _of(host: Host) -> Questions:
    return _questions.get(host) or _questions.setdefault(host, Questions(host))


# --- the file with the questions ------------------------------------------------------------------


def _name(host: Host) -> str:
    """A name for a host, as this user reaches it, and for the files that a run executes there."""
    reached = [str(host.data.get(key)) for key in ("ssh_hostname", "ssh_port", "ssh_user")]
    files = [word for word in sys.argv if word.endswith(".py")]
    return hashlib.sha256(json.dumps([host.name, reached, files]).encode()).hexdigest()[:24]


def _read(path: Path) -> dict[str, list[Question]]:
    known = cache.read(path)
    try:
        return {key: [Question(*map(str, one)) for one in known[key]] for key in ("False", "True")}
    except (LookupError, TypeError):
        return {}


# --- all questions in one command -----------------------------------------------------------------


def script(questions: Sequence[Question], mark: str) -> str:
    """A shell script that asks all questions at once, and prints each answer after a mark."""
    lines = ["dir=$(mktemp -d) && trap 'rm -rf \"$dir\"' EXIT || exit 1"]
    for number, question in enumerate(questions):
        lines += [
            f"cat > \"$dir/{number}\" << '{mark}'",
            question.text,
            mark,
            f'{{ sh -c "$(cat "$dir/{number}")" < /dev/null > "$dir/{number}.1" '
            f'2> "$dir/{number}.2"; echo $? > "$dir/{number}.0"; }} &',
        ]
    # A marker has its own line, also after an answer that does not end its last line.
    lines += [
        "wait",
        f"for n in $(seq 0 {len(questions) - 1}); do",
        f'echo "{mark} $(cat "$dir/$n.0")"; echo "{mark}" >&2',
        'for to in 1 2; do cat "$dir/$n.$to" >&$to',
        'test -z "$(tail -c 1 "$dir/$n.$to")" || echo >&$to; done; done',
    ]
    return "\n".join(lines)


def answers(questions: Sequence[Question], output: CommandOutput, mark: str) -> dict[str, Answer]:
    """The answers in the output of `script`, by the keys of their questions."""
    found: list[Answer] = []
    for line in output.combined_lines:
        if line.buffer_name != "stdout":
            continue
        if line.line.startswith(mark):
            found.append((int(line.line.removeprefix(mark)), []))
        elif found:
            found[-1][1].append(line)
    number = -1
    for line in output.combined_lines:
        if line.buffer_name == "stderr" and line.line == mark:
            number += 1
        elif line.buffer_name == "stderr" and 0 <= number < len(found):
            found[number][1].append(line)
    if len(found) != len(questions):
        raise ValueError(f"{len(found)} answers to {len(questions)} questions")
    return {question.key: answer for question, answer in zip(questions, found, strict=True)}


Run = Callable[..., tuple[bool, CommandOutput]]


def _fetch(
    run: Callable[..., Any], arguments: dict[str, Any], questions: list[Question]
) -> dict[str, Answer]:
    """Ask these questions together; without an answer, each is asked by itself."""
    mark = f"terrafirma-{secrets.token_hex(8)}"
    given = arguments | {"_stdin": script(questions, mark).splitlines()}
    given.pop("_success_exit_codes", None)
    with suppress(ValueError, OSError, EOFError, SSHException):
        success, output = run(StringCommand("sh"), **given)
        if success:
            return answers(questions, output, mark)
    return {}


def _runner(plain: Run) -> Run:
    @wraps(plain)
    def run(
        self: SSHConnector,
        command: str | StringCommand,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> tuple[bool, CommandOutput]:
        questions, question = _of(self.host), Question.of(command, arguments)
        questions.phase.note(question)
        # A user who wants to see each command gets each by itself.
        if not (print_output or print_input):
            fetch = partial(_fetch, partial(plain, self), arguments)
            if (answer := questions.answer(question, fetch)) is not None:
                code, lines = answer
                return code in (arguments.get("_success_exit_codes") or (0,)), CommandOutput(lines)
        questions.wait()
        return plain(self, command, print_output, print_input, **arguments)

    return run


def _changes(plain: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plain)
    def change(self: SSHConnector, *words: Any, **more: Any) -> Any:
        questions = _of(self.host)
        questions.phase.distrust()
        questions.wait()
        return plain(self, *words, **more)

    return change


def _last(plain: Callable[[SSHConnector], None]) -> Callable[[SSHConnector], None]:
    @wraps(plain)
    def disconnect(self: SSHConnector) -> None:
        if known := _questions.pop(self.host, None):
            gevent.killall(known.early)
            known.save()
        plain(self)

    return disconnect


@functools.cache
def install() -> None:
    """Make pyinfra ask ahead on all hosts that it reaches over SSH."""
    wrappers: dict[str, Callable[[Any], Any]] = {
        "run_shell_command": _runner, "put_file": _changes, "rsync": _changes, "disconnect": _last,
    }  # fmt: skip
    for name, wrapper in wrappers.items():
        setattr(SSHConnector, name, wrapper(getattr(SSHConnector, name)))

"""The questions of a run travel together, and an answer serves only its own question."""

import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from pyinfra.api import HiddenValue, StringCommand
from pyinfra.connectors.util import CommandOutput, OutputLine

from terrafirma.host import ahead
from terrafirma.host.ahead import Phase, Question

USUAL = {"_shell_executable": "sh", "_success_exit_codes": [0], "_retry_delay": 5}
MARK = "terrafirma-0123"


def question(text: str, **arguments: Any) -> Question:
    return Question.of(StringCommand(text), USUAL | arguments)


def expecting(*questions: Question) -> Phase:
    return ahead._phase(questions)


# --- which commands may be sent before they are asked ---------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        question("cat", _stdin=["a password"]),
        question("id", _env={"PASSWORD": "secret"}),
        question("id", _chdir="/srv"),
        question("id", _shell_executable="bash"),
        question("id", _sudo=True, _sudo_password="secret"),
        Question.of(StringCommand("echo", HiddenValue("secret")), USUAL),
    ],
)
def test_a_command_with_input_or_a_secret_is_not_sent_ahead(command: Question) -> None:
    assert command.text == ""
    assert "secret" not in repr(command)


def test_users_are_asked_separately() -> None:
    root, other = question("id", _sudo=True), question("id")
    assert root.text == other.text == "id"
    assert root.key != other.key
    assert root.users != other.users


# --- all questions in one command -----------------------------------------------------------------

ANSWERED = [
    ("echo one; echo two; echo three >&2", 0, [("stdout", "one"), ("stdout", "two"),
                                               ("stderr", "three")]),
    ("printf 'no line break'; printf 'nor here' >&2; exit 3", 3,
     [("stdout", "no line break"), ("stderr", "nor here")]),
    ("true", 0, []),
    ("echo; echo", 0, [("stdout", ""), ("stdout", "")]),
    ("cat; echo 'it'\\''s' \"$0\" '$HOME' `echo done`", 0, [("stdout", "it's sh $HOME done")]),
    (f"echo x {MARK} 0", 0, [("stdout", f"x {MARK} 0")]),
    ("false", 1, []),
    ("set -- a b\nfor one; do\n  echo $one\ndone", 0, [("stdout", "a"), ("stdout", "b")]),
    ("no-such-program-here 2> /dev/null", 127, []),
]  # fmt: skip


def test_each_question_gets_its_own_answer() -> None:
    questions = [question(text) for text, _, _ in ANSWERED]
    result = subprocess.run(
        ["sh"], input=ahead.script(questions, MARK), capture_output=True, text=True, check=True
    )
    output = CommandOutput(
        [OutputLine("stdout", line) for line in result.stdout.split("\n")[:-1]]
        + [OutputLine("stderr", line) for line in result.stderr.split("\n")[:-1]]
    )
    found = ahead.answers(questions, output, MARK)
    for one, (_, code, lines) in zip(questions, ANSWERED, strict=True):
        assert found[one.key] == (code, [OutputLine(*line) for line in lines])


def test_nothing_is_left_on_the_host(tmp_path: Path) -> None:
    script = ahead.script([question("echo one"), question("exit 1")], MARK)
    subprocess.run(["sh"], input=script, text=True, check=True, env={"TMPDIR": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


def test_a_cut_answer_serves_nothing() -> None:
    with pytest.raises(ValueError, match="1 answers to 2 questions"):
        ahead.answers(
            [question("a"), question("b")], CommandOutput([OutputLine("stdout", f"{MARK} 0")]), MARK
        )


# --- when an answer serves ------------------------------------------------------------------------

ONE, TWO, ASKED_LIVE = question("one"), question("two"), question("three", _stdin=["x"])


def answered(*more: Question) -> Phase:
    phase = expecting(ONE, TWO, ASKED_LIVE, *more)
    phase.note(ONE)
    assert phase.batch(ONE) == [ONE, TWO]
    phase.sent.add(ONE.users)
    phase.answers = {one.key: (0, []) for one in (ONE, TWO)}
    phase.at = time.monotonic()
    return phase


def test_an_answer_serves_once() -> None:
    phase = answered(TWO)
    assert phase.take(ONE) == (0, [])
    phase.note(TWO)
    assert phase.take(TWO) == (0, [])
    phase.note(TWO)
    assert phase.trusted
    assert phase.take(TWO) is None
    assert phase.batch(TWO) == []


def test_a_question_with_input_keeps_the_other_answers() -> None:
    phase = answered()
    phase.note(ASKED_LIVE)
    assert phase.take(ASKED_LIVE) is None
    assert phase.take(TWO) == (0, [])


@pytest.mark.parametrize("command", [question("systemctl restart caddy"), ONE], ids=str)
def test_another_command_and_a_repetition_drop_the_answers(command: Question) -> None:
    phase = answered()
    phase.note(command)
    assert phase.take(TWO) is None
    assert phase.batch(TWO) == []


def test_old_answers_are_dropped() -> None:
    phase = answered()
    phase.at -= ahead.FRESH + 1
    assert phase.take(TWO) is None


def test_the_first_run_asks_one_by_one() -> None:
    phase = expecting()
    phase.note(ONE)
    assert phase.batch(ONE) == []
    assert phase.take(ONE) is None


# --- the execution's questions, during the plan ---------------------------------------------------

LATER, LAST = question("four"), question("five")


class Answers:
    """A host that answers questions, and remembers which were asked together."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, questions: list[Question]) -> dict[str, ahead.Answer]:
        self.asked.append([one.text for one in questions])
        gevent.sleep(0)
        return {one.key: (0, [OutputLine("stdout", one.text)]) for one in questions}


def planned(host: Any, fetch: Answers) -> ahead.Questions:
    """A run whose plan has asked its questions; the execution asks TWO again, LATER and LAST."""
    run = ahead.Questions(host)
    run.phases = {
        False: expecting(ONE, TWO),
        True: expecting(TWO, LATER, LAST, ASKED_LIVE, question("id", _sudo=True)),
    }
    for one in (ONE, TWO):
        run.phase.note(one)
        assert run.answer(one, fetch) == (0, [OutputLine("stdout", one.text)])
    return run


def executed(run: ahead.Questions, fetch: Answers, *questions: Question) -> list[Any]:
    run.host.state.is_executing = True
    found = []
    for one in questions:
        run.phase.note(one)
        found.append(run.answer(one, fetch))
    return [one and one[1][0].line for one in found]


def test_the_host_answers_the_questions_of_the_execution_during_the_plan(host: Any) -> None:
    fetch = Answers()
    run = planned(host, fetch)
    assert fetch.asked[0] == ["one", "two"]
    run.wait()
    assert fetch.asked == [["one", "two"], ["four", "five"]]
    assert executed(run, fetch, TWO, LATER, ASKED_LIVE, LAST) == ["two", "four", None, "five"]
    assert len(fetch.asked) == 2


def test_a_command_of_the_plan_drops_the_answers_for_the_execution(host: Any) -> None:
    fetch = Answers()
    run = planned(host, fetch)
    run.phase.note(question("systemctl restart caddy"))
    assert executed(run, fetch, TWO, LATER) == ["two", "four"]
    assert fetch.asked[2] == ["two", "four", "five"]


def test_a_command_of_the_execution_drops_them_too(host: Any) -> None:
    fetch = Answers()
    run = planned(host, fetch)
    assert executed(run, fetch, TWO, question("apt-get install x"), LATER) == ["two", None, None]


def test_also_the_first_command_of_the_execution_drops_them(host: Any) -> None:
    fetch = Answers()
    run = planned(host, fetch)
    assert executed(run, fetch, question("apt-get install x"), TWO, LATER) == [None] * 3


def test_a_file_that_the_execution_begins_with_drops_them(host: Any) -> None:
    fetch = Answers()
    run = planned(host, fetch)
    host.state.is_executing = True
    run.phase.distrust()
    assert executed(run, fetch, TWO, LATER) == [None, None]


def test_they_are_asked_again_after_a_plan_that_was_read_for_long(host: Any) -> None:
    fetch = Answers()
    run = planned(host, fetch)
    run.at -= ahead.FRESH + 1
    assert executed(run, fetch, TWO, LATER) == ["two", "four"]
    assert fetch.asked[2:] == [["two", "four", "five"]]


def test_without_answers_from_the_plan_the_execution_asks_by_itself(host: Any) -> None:
    fetch = Answers()
    run = planned(host, lambda questions: fetch(questions) if ONE in questions else {})  # type: ignore[arg-type]
    assert executed(run, fetch, LATER, LAST) == ["four", "five"]
    assert fetch.asked == [["one", "two"], ["two", "four", "five"]]


# --- from one run to the next ---------------------------------------------------------------------


class Host:
    name = "web"

    def __init__(self, port: int = 22) -> None:
        self.data = {"ssh_port": port}
        self.state = SimpleNamespace(is_executing=False, ops={self: {}}, active_hosts={self})


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Host()


def ran(host: Any) -> ahead.Questions:
    run = ahead.Questions(host)
    run.phase.note(ONE)
    run.phase.note(ASKED_LIVE)
    host.state.is_executing = True
    run.phase.note(TWO)
    run.save()
    host.state.is_executing = False
    return run


def test_the_next_run_knows_the_questions_without_their_input(host: Any) -> None:
    path = ran(host).path
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    phases = ahead.Questions(host).phases
    assert [*phases[False].expected.values()] == [ONE, ASKED_LIVE]
    assert [*phases[True].expected.values()] == [TWO]
    assert not ahead.Questions(Host(2222)).phases[False].expected  # type: ignore[arg-type]


def test_a_dry_run_keeps_the_questions_of_the_execution(host: Any) -> None:
    ran(host)
    dry = ahead.Questions(host)
    dry.phase.note(TWO)
    dry.save()
    phases = ahead.Questions(host).phases
    assert [*phases[False].expected.values()] == [TWO]
    assert [*phases[True].expected.values()] == [TWO]


def test_a_run_that_changes_or_fails_is_not_kept(host: Any) -> None:
    run = ahead.Questions(host)
    run.phase.note(ONE)
    host.state.active_hosts = set()
    run.save()
    assert not run.path.exists()
    host.state.active_hosts = {host}
    changed = SimpleNamespace(operation_meta=SimpleNamespace(_commands=["rm x"]))
    host.state.ops = {host: {"1": changed}}
    run.save()
    assert not run.path.exists()


@pytest.mark.parametrize(
    "content", ["", "{}", '{"False": 1}', '{"False": [[1]], "True": []}', "\0"]
)
def test_a_damaged_file_is_no_trouble(host: Any, content: str) -> None:
    path = ran(host).path
    path.write_text(content)
    assert not ahead.Questions(host).phases[False].expected


def test_a_file_that_others_may_write_is_not_read(host: Any) -> None:
    path = ran(host).path
    path.chmod(0o666)
    assert not ahead.Questions(host).phases[False].expected


def test_a_directory_that_cannot_be_written_is_no_trouble(host: Any, tmp_path: Path) -> None:
    (tmp_path / "terrafirma").write_text("a file, not a directory")
    assert not ran(host).path.exists()

"""What a host says of its updates, and what systemd says of a window."""

import json

import pytest

from terrafirma.updates import facts
from terrafirma.updates.facts import UpdatesStatus, WrongCalendars
from tests.unit.facts import ask
from tests.unit.programs import Program


def test_what_is_due_is_told(monkeypatch: pytest.MonkeyPatch, program: Program) -> None:
    answer = {"alarms": ["a reboot is due (it's the kernel)"], "notes": ["fine"]}
    path = program("terrafirma", f"test $1 = updates && cat << 'END'\n{json.dumps(answer)}\nEND")
    monkeypatch.setattr(facts, "HOST_PROGRAM", str(path / "terrafirma"))
    assert ask(UpdatesStatus) == answer


@pytest.mark.parametrize("script", ["exit 2", "exit 126", "exit 127", "exit 1"])
def test_a_program_of_another_version_knows_nothing(
    monkeypatch: pytest.MonkeyPatch, program: Program, script: str
) -> None:
    """Also one that does not start at all, which fails at --help as well."""
    path = program("terrafirma", script)
    monkeypatch.setattr(facts, "HOST_PROGRAM", str(path / "terrafirma"))
    assert ask(UpdatesStatus) == UpdatesStatus.default()


def test_a_failure_is_no_answer(monkeypatch: pytest.MonkeyPatch, program: Program) -> None:
    path = program("terrafirma", "test $1 = --help && exit; echo 'terrafirma: no' >&2; exit 1")
    monkeypatch.setattr(facts, "HOST_PROGRAM", str(path / "terrafirma"))
    with pytest.raises(AssertionError, match="terrafirma: no"):
        ask(UpdatesStatus)


def test_nothing_is_known_where_there_is_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "HOST_PROGRAM", "/no/such/program")
    assert ask(UpdatesStatus) == UpdatesStatus.default()


def test_systemd_decides_what_a_window_is(program: Program) -> None:
    path = program("systemd-analyze", 'test "$1 $2" = "calendar --" && test "$3" = daily')
    assert ask(WrongCalendars, path, calendars=["daily", "it's", "$(id)"]) == ["it's", "$(id)"]

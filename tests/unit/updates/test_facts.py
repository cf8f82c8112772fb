"""The state of a host's updates, and the check of windows by systemd."""

import json

import pytest

from terrafirma.host.calendars import WrongCalendars
from terrafirma.updates import facts
from terrafirma.updates.facts import UpdatesStatus
from tests.unit.facts import ask
from tests.unit.programs import Program


def test_the_answer_of_the_program_is_read(
    monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    answer = {"alarms": ["a reboot is due (it's the kernel)"], "notes": ["fine"]}
    path = program("terrafirma", f"test $1 = updates && cat << 'END'\n{json.dumps(answer)}\nEND")
    monkeypatch.setattr(facts, "HOST_PROGRAM", str(path / "terrafirma"))
    assert ask(UpdatesStatus) == answer


@pytest.mark.parametrize("script", ["exit 2", "exit 126", "exit 127", "exit 1"])
def test_a_program_of_another_version_gives_an_empty_answer(
    monkeypatch: pytest.MonkeyPatch, program: Program, script: str
) -> None:
    """So does a program that does not start, because it fails at --help as well."""
    path = program("terrafirma", script)
    monkeypatch.setattr(facts, "HOST_PROGRAM", str(path / "terrafirma"))
    assert ask(UpdatesStatus) == UpdatesStatus.default()


def test_a_failure_of_the_program_is_a_failure_of_the_fact(
    monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    path = program("terrafirma", "test $1 = --help && exit; echo 'terrafirma: no' >&2; exit 1")
    monkeypatch.setattr(facts, "HOST_PROGRAM", str(path / "terrafirma"))
    with pytest.raises(AssertionError, match="terrafirma: no"):
        ask(UpdatesStatus)


def test_a_missing_program_gives_an_empty_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "HOST_PROGRAM", "/no/such/program")
    assert ask(UpdatesStatus) == UpdatesStatus.default()


def test_systemd_decides_whether_a_window_is_valid(program: Program) -> None:
    path = program("systemd-analyze", 'test "$1 $2" = "calendar --" && test "$3" = daily')
    assert ask(WrongCalendars, path, calendars=["daily", "it's", "$(id)"]) == ["it's", "$(id)"]

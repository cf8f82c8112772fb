"""Runs of commands/upgrade.py: the shown plan, and one host at a time."""

from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest

from terrafirma.apt import upgrade_operations
from terrafirma.apt.upgrade_operations import UPDATE
from terrafirma.host.packages import InstalledPackages
from tests.conftest import Pyinfra
from tests.unit.facts import shell
from tests.unit.fake_host import command, fake, machine, refusal
from tests.unit.programs import Program

PAGE = "commands/upgrade.py"
DEBIAN = "http://archive.example/debian trixie/main"
CADDY = [
    "policy|caddy:",
    "policy|  Installed: 2.6.2-12",
    "policy|  Version table:",
    "policy|     2.6.2-13 500",
    f"policy|        500 {DEBIAN} amd64 Packages",
    "policy| *** 2.6.2-12 500",
    f"policy|        500 {DEBIAN} amd64 Packages",
    "age|60",
]
CURRENT = [line for line in CADDY if "2.6.2-13" not in line]
CURRENT.remove(f"policy|        500 {DEBIAN} amd64 Packages")


def asked_by(pyinfra: Pyinfra, **data: Any) -> str:
    """The shell command of the fact about a host's packages."""
    result = pyinfra.call("@fake/host", PAGE, "--dry", "-vv", *fake(machine(), **data))
    asked = [line.partition(">>> ")[2] for line in result.stderr.splitlines()]
    (found,) = {line for line in asked if line.startswith("apt-cache policy")}
    return found


@pytest.fixture(scope="module")
def question(pyinfra: Pyinfra) -> str:
    return asked_by(pyinfra)


def run(pyinfra: Pyinfra, hosts: str, *how: str) -> CompletedProcess[str]:
    return pyinfra.call(hosts, PAGE, *how)


def test_a_dry_run_shows_the_plan_and_does_nothing(
    pyinfra: Pyinfra, question: str, inventory: Any
) -> None:
    hosts = inventory(one=(machine() | {question: CADDY}, {}))
    result = run(pyinfra, hosts, "--dry", "-vv")
    assert result.returncode == 0, result.stderr
    assert "Caddy: 2.6.2-12 → 2.6.2-13: one restart" in result.stderr
    assert "There are no backups" in result.stderr
    assert "terrafirma upgrade" not in result.stderr
    assert UPDATE not in result.stderr


def test_an_upgrade_without_newer_packages_does_nothing(
    pyinfra: Pyinfra, question: str, inventory: Any
) -> None:
    hosts = inventory(one=(machine() | {question: CURRENT}, {}))
    result = run(pyinfra, hosts, "-y", "-vv")
    assert result.returncode == 0, result.stderr
    assert "Caddy: 2.6.2-12 is the newest that the settings allow" in result.stderr
    assert UPDATE not in result.stderr


def test_the_plan_is_made_again_with_fresh_lists_and_carried_out(
    pyinfra: Pyinfra, question: str, inventory: Any
) -> None:
    hosts = inventory(one=(machine() | {question: CADDY}, {}))
    result = run(pyinfra, hosts, "-y", "-vv")
    assert result.returncode == 0, result.stderr
    before, _, after = result.stderr.partition(UPDATE)
    assert after
    assert "terrafirma upgrade" not in before
    assert "Caddy: 2.6.2-12 → 2.6.2-13" in after.partition("/usr/local/bin/terrafirma upgrade")[0]


def test_after_a_failure_no_further_host_is_upgraded(
    pyinfra: Pyinfra, question: str, inventory: Any
) -> None:
    answers = machine() | {
        question: CADDY,
        "/usr/local/bin/terrafirma upgrade": {"success": False, "stdout": ["failed: rolled back"]},
    }
    hosts = inventory(one=(answers, {}), two=(answers, {}))
    result = run(pyinfra, hosts, "-y", "-vv")
    assert result.returncode != 0
    assert result.stderr.count(">>> /usr/local/bin/terrafirma upgrade") == 1
    assert "not started, because the upgrade of @fake/" in result.stderr
    assert "Traceback" not in result.stderr


def test_after_an_exception_no_further_host_is_upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def carry_out(host: Any, *_: Any) -> bool:
        asked.append(host.name)
        raise OSError("the connection broke")

    monkeypatch.setattr(upgrade_operations, "_carry_out", carry_out)
    state: Any = type("State", (), {})()
    one, two = (
        SimpleNamespace(name=name, log=print, log_styled=lambda *_, **__: None)
        for name in ("one", "two")
    )
    take_turn: Any = upgrade_operations._take_turn
    with pytest.raises(OSError, match="connection"):
        take_turn(state, one, (), ())
    assert take_turn(state, two, (), ()) is False
    assert asked == ["one"]


BUSY = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)"


def test_the_refresh_waits_for_the_lock_of_the_lists(program: Program, tmp_path: Path) -> None:
    path = program(
        "apt-get",
        f'echo "$*" >> {tmp_path}/asked; test -e {tmp_path}/free || '
        f"{{ echo '{BUSY}' >&2; exit 100; }}",
    )
    program("sleep", f"touch {tmp_path}/free")
    assert shell(UPDATE, path) == []
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 2
    assert "APT::Update::Error-Mode=any" in asked[0]


@pytest.mark.parametrize("waits", [False, True])
def test_a_refresh_that_fails_says_why(program: Program, tmp_path: Path, waits: bool) -> None:
    words = BUSY if waits else "E: Failed to fetch http://archive.example"
    path = program("apt-get", f"echo '{words}' >&2; exit 100")
    # Each look at the clock is later than the last, by longer than the wait for the lock.
    program("date", f"echo 1 >> {tmp_path}/clock; echo $(($(wc -l < {tmp_path}/clock) * 700))")
    with pytest.raises(AssertionError, match=words.partition(".")[0]):
        shell(UPDATE, path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"caddy_version": "3"}, "caddy_version: Caddy 3 is wanted, and only 2.6.2 is offered"),
        ({"caddy_version": "2.6.1"}, "caddy_version: Caddy 2.6.1 is wanted"),
    ],
)
def test_refuses_in_one_line_before_anything_changes(
    pyinfra: Pyinfra, question: str, data: dict[str, Any], words: str
) -> None:
    host = fake(machine() | {question: CURRENT}, **data)
    assert words in refusal(pyinfra.call("@fake/host", PAGE, "-y", *host))


def test_a_change_of_the_source_is_announced_and_adds_the_repositories_first(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    """`deploy.py` refuses a change of the source: see test_tasks.py."""
    upstream = {"apt_source": "upstream"}
    installed = command(InstalledPackages)
    answers = machine() | {
        asked_by(pyinfra, **upstream): CURRENT,
        installed: ["installed install caddy 2.6.2-12"],
    }
    hosts = inventory(one=(answers, upstream))
    result = run(pyinfra, hosts, "--dry", "-vv")
    assert result.returncode == 0, result.stderr
    assert "Caddy: to the vendor's version, unknown until its repository" in result.stderr
    names = [one["name"] for one in pyinfra.run(hosts, PAGE, "--dry")["plan"]]
    assert names[-1].endswith("Upgrade each engine in turn, then all other packages")
    assert "tasks/apt.py | Add the vendors' repositories" in names[:-1]

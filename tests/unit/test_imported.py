"""A run forked from a process that has imported pyinfra behaves like a run of a user."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Imported, Pyinfra
from tests.unit.fake_host import api, fake, machine

TASK = """
import os, sys
from pyinfra import host, logger
from pyinfra.operations import server

logger.info(f"{sys.argv[-1]} {os.getcwd()} {os.environ.get('TF_NEW')} {os.environ.get('TF_OLD')}")
logger.info(f"{sys.stdin.read()!r} {sys.stdout.isatty()} {sys.path}")
server.shell(name="Say so", commands=["echo said", "echo complained >&2"])
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "task.py"
    path.write_text(TASK)
    return path


CALLS: dict[str, list[str]] = {
    "plan": ["@fake/host", "deploy.py", "--dry", "-vv", *fake(machine())],
    "run": ["@fake/host", "tasks/users.py", "-y", *fake(machine())],
    "refusal": ["@fake/host", "deploy.py", "-y", *fake(machine(), **api(replicas=0))],
    "failure": ["@local", "server.shell", "exit 3", "-y"],
    "usage": ["--no-such-option"],
    "no such host": ["no-such-host.invalid", "deploy.py", "-y"],
    "task": ["@local", "{task}", "-y", "-vvv"],
}


@pytest.mark.parametrize("kind", CALLS)
def test_it_answers_like_a_new_process(
    pyinfra: Imported, command_line: Pyinfra, task: Path, kind: str
) -> None:
    arguments = [argument.replace("{task}", str(task)) for argument in CALLS[kind]]
    expected = command_line.call(*arguments, TF_NEW="new")
    result = pyinfra.call(*arguments, TF_NEW="new")
    assert result.returncode == expected.returncode
    assert result.stdout == expected.stdout
    assert without_names(result.stderr) == without_names(expected.stderr)


def without_names(said: str) -> str:
    """Output without the random name that each run has."""
    return re.sub(r"'[0-9a-f]{16}'", "'name'", said)


def ending(pyinfra: Pyinfra, task: Path, last: str) -> tuple[int, str]:
    """The exit code and the last output of a task that ends with this line."""
    task.write_text(f"import os, sys\n{last}\n")
    result = pyinfra.call("@local", str(task), "-y")
    return result.returncode, result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "last",
    ["sys.exit(7)", "sys.exit('words')", "os.kill(os.getpid(), 9)", "1 / 0"],
)
def test_it_exits_like_a_new_process(
    pyinfra: Imported, command_line: Pyinfra, tmp_path: Path, last: str
) -> None:
    task = tmp_path / "task.py"
    assert ending(pyinfra, task, last) == ending(command_line, task, last)


def test_a_run_leaves_nothing_to_the_next(
    pyinfra: Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its data, environment, imports and assignments are gone."""
    (tmp_path / "group_data").mkdir()
    task = tmp_path / "task.py"
    task.write_text(
        "import os, sys\n"
        "from pyinfra import host, logger\n"
        "from terrafirma import paths\n"
        "import helper\n"
        "before = [getattr(paths, 'LEFT', ''), os.environ.get('TF_LEFT', '')]\n"
        "paths.LEFT = os.environ['TF_LEFT'] = 'left'\n"
        "logger.info(f'found {[host.data.kind, helper.NUMBER, *before]}')\n"
    )

    def found(number: int) -> Any:
        (tmp_path / "group_data" / "all.py").write_text(f"kind = 'kind {number}'\n")
        (tmp_path / "helper.py").write_text(f"NUMBER = {number}\n")
        result = pyinfra.call(
            *("@local", "task.py", "-y", "--chdir", str(tmp_path)), TF_LEFT=f"{number}"
        )
        (line,) = [one for one in result.stderr.splitlines() if "found " in one]
        return json.loads(line.partition("found ")[2].replace("'", '"'))

    assert found(1) == ["kind 1", 1, "", "1"]
    assert found(2) == ["kind 2", 2, "", "2"]

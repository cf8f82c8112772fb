"""A fact is asked once until any operation changes something on the host."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pyinfra.facts.server import Hostname

from terrafirma.host.asking import ask
from tests.conftest import Pyinfra


def test_a_fact_is_asked_again_only_after_a_change(pyinfra: Pyinfra, tmp_path: Path) -> None:
    result = pyinfra.call(
        "@local", "tests/unit/host/deploy_asked.py", "-y", "--data", f"x_path={tmp_path / 'asked'}"
    )
    assert result.returncode == 0, result.stderr
    assert re.findall(r"seen: (\[.*?\])", result.stderr) == [
        "[1]",
        "[1]",
        "[1, 2]",
        "[3]",
        "[4]",
        "[4]",
    ]


def test_a_plan_asks_once(pyinfra: Pyinfra, tmp_path: Path) -> None:
    path = tmp_path / "asked"
    result = pyinfra.call(
        "@local", "tests/unit/host/deploy_asked.py", "--dry", "--data", f"x_path={path}"
    )
    assert result.returncode == 0, result.stderr
    assert path.read_text() == "\n"


def test_a_run_does_not_go_by_what_its_plan_saw() -> None:
    class Host:
        def __init__(self) -> None:
            self.state = SimpleNamespace(is_executing=False, ops={self: {}})
            self.asked = 0

        def get_fact(self, fact: type) -> int:
            self.asked += 1
            return self.asked

    host: Any = Host()
    assert [ask(host, Hostname), ask(host, Hostname)] == [1, 1]
    host.state.is_executing = True
    assert [ask(host, Hostname), ask(host, Hostname)] == [2, 2]

"""Helpers for unit and end-to-end tests, and how end-to-end modules run side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import NamedTemporaryFile
from typing import Any

import pytest

from testbed.alone import BUSY, hold
from tests.imported import Run

ROOT = Path(__file__).parent.parent
SECONDS = 1800
"""How long a run may take."""


class Pyinfra:
    """Runs the real CLI from the project root and returns what `--json` printed."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root

    def run(self, *arguments: str, **environment: str) -> dict[str, Any]:
        result = self.call(*arguments, **environment)
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    def call(self, *arguments: str, **environment: str) -> CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pyinfra", *arguments, "--json"],
            cwd=self.root,
            env=_environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def call_all(self, calls: Mapping[str, Sequence[str]]) -> dict[str, CompletedProcess[str]]:
        """The results of several calls, by name."""
        return {name: self.call(*arguments) for name, arguments in calls.items()}

    @cached_property
    def imported(self) -> Imported:
        return Imported(self.root)


class Imported(Pyinfra):
    """
    Runs the CLI in a tenth of the time, one run after the other: see tests/imported.py.

    Tests of the process itself use Pyinfra, which starts a process as a user does.
    """

    def __init__(self, root: Path = ROOT) -> None:
        super().__init__(root)
        # It ends when its standard input closes, so at the latest with this process.
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.imported"],
            cwd=root,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, *arguments: str, **environment: str) -> CompletedProcess[str]:
        with NamedTemporaryFile("r") as stdout, NamedTemporaryFile("r") as stderr:
            run = Run(
                arguments=[*arguments, "--json"],
                environment=_environment(**environment),
                stdout=stdout.name,
                stderr=stderr.name,
                seconds=SECONDS,
            )
            print(json.dumps(run), file=self._server.stdin, flush=True)
            assert self._server.stdout
            code = self._server.stdout.readline()
            assert code, "tests/imported.py has ended; its standard error says why"
            return CompletedProcess(run["arguments"], int(code), stdout.read(), stderr.read())


def _environment(**more: str) -> dict[str, str]:
    delays = {"PYINFRA_FAKE_DELAY": "0", "PYINFRA_FAKE_DELAY_JITTER": "0"}
    return {**os.environ, **delays, "XDG_CACHE_HOME": str(ROOT / ".pytest_cache"), **more}


@pytest.fixture(scope="session")
def pyinfra() -> Pyinfra:
    return Pyinfra()


# --- lanes: each end-to-end module runs in one process, beside the others -------------------------


def budget(minutes: float = 3, *, why: str = "") -> float:
    """The minutes that a module may take: 3 by default, more only with a reason."""
    assert why or minutes == 3
    return minutes


def minutes_of(item: pytest.Item) -> float:
    mark = item.get_closest_marker("budget")
    return budget(*mark.args, **mark.kwargs) if mark else budget()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # A report carries properties from the process that ran the test to the one that prints.
        item.user_properties.append(("budget", minutes_of(item)))
        if not item.get_closest_marker("e2e"):
            # A program that hangs must fail its test.
            item.add_marker(pytest.mark.timeout(300))
    # The heaviest first, so that only light modules are left at the end.
    items.sort(key=lambda item: -minutes_of(item) if item.get_closest_marker("e2e") else 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Minutes and budget of each module, fixtures included, except modules of a few seconds."""
    spent: dict[str, float] = defaultdict(float)
    budgets: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                module = report.nodeid.partition("::")[0]
                spent[module] += report.duration / 60
                budgets[module] = float(str(dict(report.user_properties)["budget"]))
    modules = sorted((module for module in spent if spent[module] >= 0.1), key=lambda m: -spent[m])
    if modules:
        terminalreporter.section("minutes of each module, and its budget")
    for module in modules:
        over = "  over budget" if spent[module] > budgets[module] else ""
        terminalreporter.line(f"{spent[module]:6.1f} of {budgets[module]:g}  {module}{over}")


# --- signals --------------------------------------------------------------------------------------


def pytest_configure() -> None:
    # A shell without job control makes a command with `&` ignore this signal, and then the programs
    # that the command starts could not catch it.
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


# --- one run at a time ----------------------------------------------------------------------------

HELD = pytest.StashKey[int]()


def run_alone(config: pytest.Config, tests: Iterable[str]) -> None:
    if HELD in config.stash or not any(one.startswith("tests/e2e/") for one in tests):
        return
    lock = hold()
    if lock is None:
        pytest.exit(BUSY, returncode=4)
    config.stash[HELD] = lock


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take the lock if all tests run in one process."""
    if not (hasattr(session.config, "workerinput") or session.config.option.collectonly):
        run_alone(session.config, (item.nodeid for item in session.items))


def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    """With several processes, take the lock in the one that distributes the tests."""
    run_alone(node.config, ids)

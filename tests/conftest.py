from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import NamedTemporaryFile
from typing import Any

import pytest

from tests.imported import Run

ROOT = Path(__file__).parent.parent
SECONDS = 1800
"""How long a run may take."""


class Pyinfra:
    """Runs the real CLI from the project root and returns what `--json` printed."""

    def run(self, *arguments: str, **environment: str) -> dict[str, Any]:
        result = self.call(*arguments, **environment)
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    def call(self, *arguments: str, **environment: str) -> CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pyinfra", *arguments, "--json"],
            cwd=ROOT,
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
        return Imported()


class Imported(Pyinfra):
    """
    The same in a tenth of the time, one run after the other: see tests/imported.py.

    For runs that change no server; those of users begin with a process of their own.
    """

    def __init__(self) -> None:
        # It ends with its standard input, which ends with us.
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.imported"],
            cwd=ROOT,
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
    return {**os.environ, "PYINFRA_FAKE_DELAY": "0", "PYINFRA_FAKE_DELAY_JITTER": "0", **more}


@pytest.fixture(scope="session")
def pyinfra() -> Pyinfra:
    return Pyinfra()

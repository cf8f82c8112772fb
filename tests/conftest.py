import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


class Pyinfra:
    """Runs the real CLI from the project root and returns what `--json` printed."""

    def run(self, *arguments: str, **environment: str) -> dict[str, Any]:
        result = self.call(*arguments, **environment)
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    def call(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pyinfra", *arguments, "--json"],
            cwd=ROOT,
            env={
                **os.environ,
                "PYINFRA_FAKE_DELAY": "0",
                "PYINFRA_FAKE_DELAY_JITTER": "0",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )

    def call_all(
        self, calls: Mapping[str, Sequence[str]]
    ) -> dict[str, subprocess.CompletedProcess[str]]:
        """The results of several calls, by name; they run side by side."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            results = pool.map(lambda arguments: self.call(*arguments), calls.values())
            return dict(zip(calls, results, strict=True))


@pytest.fixture(scope="session")
def pyinfra() -> Pyinfra:
    return Pyinfra()

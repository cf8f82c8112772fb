"""What config.py corrects in pyinfra."""

import re
from pathlib import Path

import pytest

from tests.conftest import Pyinfra

DEPLOY = """
import inspect

from pyinfra.operations import server


def findsource(object):
    raise AssertionError(f"the source of {object} was searched")


inspect.findsource = findsource
server.shell(name="First", commands=["true"])
server.shell(name="Second", commands=["true"])
"""


@pytest.mark.parametrize("kept", ["1", ""])
def test_our_modules_stay_compiled_unless_the_user_wants_no_bytecode(
    command_line: Pyinfra, tmp_path: Path, kept: str
) -> None:
    task = tmp_path / "task.py"
    task.write_text("import terrafirma.app.settings")
    variables = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": kept}
    assert command_line.call("@fake/x", str(task), "--dry", **variables).returncode == 0
    for name in ("host/ahead", "app/settings"):
        assert bool([*tmp_path.rglob(f"terrafirma/{name}.*.pyc")]) == (not kept)


def test_the_order_of_operations_needs_no_source(command_line: Pyinfra, tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text(DEPLOY)
    result = command_line.call("@fake/x", str(task), "-y")
    assert result.returncode == 0, result.stderr
    assert re.findall(r"Starting operation: (\w+)", result.stderr) == ["First", "Second"]

"""`make lint` checks all Python files of this repository."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.conftest import ROOT


def listed(*command: str) -> set[Path]:
    """The files that a command prints, one on each line."""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {ROOT / line for line in result.stdout.splitlines()}


def is_python(path: Path) -> bool:
    if path.suffix:
        return path.suffix == ".py"
    first = path.read_bytes().partition(b"\n")[0]
    return first.startswith(b"#!") and b"python" in first


def test_all_python_is_formatted_linted_and_typed() -> None:
    known = listed("git", "ls-files", "--cached", "--others", "--exclude-standard")
    python = {path for path in known if path.is_file() and is_python(path)}
    # The programs for the server have no file extension.
    assert {path for path in python if not path.suffix} >= {ROOT / "files/terrafirma"}

    assert python - listed(sys.executable, "-m", "ruff", "check", "--show-files") == set()

    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["files"]
    patterns += re.findall(r"\$\(BIN\)/mypy .*?(\S+)\n", (ROOT / "Makefile").read_text())
    typed = {path for pattern in patterns for path in ROOT.glob(pattern)}
    assert {path for path in python if not typed & {path, *path.parents}} == set()

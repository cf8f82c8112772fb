"""Runs and imports the programs for the host."""

import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT

Program = Callable[[str, str], Path]
"""The fixture `program`: writes a shell script with a name, and returns its directory."""

# Like the launcher on a host, but for any user.
LAUNCH = f"""
import os, sys
sys.path.insert(0, {str(ROOT / "files")!r})
os.geteuid = lambda: 0
from terrafirma_host.cli import main
sys.exit(main())
"""


def terrafirma(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command of the host, without any installed package."""
    bare = [sys.executable, "-I", "-S", "-c", LAUNCH, *words]
    return subprocess.run(
        bare, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def load(path: Path) -> ModuleType:
    """The program in `path` as a module; Python could not import it by its name."""
    loader = SourceFileLoader(path.name.replace("-", "_"), str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        loader.exec_module(module)
    return module

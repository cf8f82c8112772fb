"""The program on the host: each task that needs it installs it, and removes its predecessors."""

import pytest

from terrafirma.host.files import Absent, File
from terrafirma.host.program import entries, told, which_are_wrong
from terrafirma.paths import HOST_LIBRARY, HOST_PROGRAM
from tests.conftest import ROOT, Pyinfra
from tests.unit.fake_host import commands, fake, machine

# Where the previous version had its programs.
BEFORE = "/usr/local/lib/terrafirma"
OLD = {
    "tasks/app.py": ["app-secrets"],
    "tasks/postgres.py": ["postgres-passwords", "postgres-check", "postgres-upgrade"],
}


def test_all_its_modules_are_there_before_it_can_be_called() -> None:
    _, *modules, launcher = (one.path for one in entries())
    files = ROOT / "files" / "terrafirma_host"
    assert modules == [f"{HOST_LIBRARY}/{path.name}" for path in sorted(files.glob("*.py"))]
    assert launcher == HOST_PROGRAM


def test_every_user_can_run_it() -> None:
    """The user postgres checks its configuration with it; and each file is recognised as ours."""
    for one in entries():
        assert not isinstance(one, Absent)
        assert (one.mode, one.user) in (("755", "root"), ("644", "root"))
        if isinstance(one, File):
            assert "Managed by Terrafirma" in one.content, one.path


@pytest.mark.parametrize("task", OLD)
def test_a_task_that_needs_it_puts_it_and_removes_what_it_was(pyinfra: Pyinfra, task: str) -> None:
    programs = [f"{BEFORE}/{name}" for names in OLD.values() for name in names]
    there = [f"755|root|root|regular file|{path}" for path in programs]
    host = fake(machine() | {"stat -Lc": there})
    done = commands(pyinfra.call("@fake/host", task, "-y", "-vv", *host))
    put = [line.partition(" ;")[0] for line in done if line.startswith("path=/usr/local/")]
    assert put == [f"path={one.path}" for one in entries() if isinstance(one, File)]
    removed = [line for line in done if line.startswith(f"rm -f {BEFORE}/")]
    assert removed == [f"rm -f {BEFORE}/{name}" for name in OLD[task]]


def test_no_value_is_in_a_command() -> None:
    lines = told({"token": "s3cret", "key": None}, owner="prod")
    assert lines == ["owner prod", "given token czNjcmV0", "generated key"]
    assert repr(lines) == "…"
    asked = str(which_are_wrong("terrafirma secrets", "/it's here"))
    assert asked.startswith("""terrafirma secrets check '/it'"'"'s here' || """)

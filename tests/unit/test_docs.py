"""What the manual says in tables is what the tests ask and what the code does."""

import json
import re
import subprocess
import sys

import pytest

from terrafirma.tuning import Hardware, huge_pages, tune
from tests.conftest import ROOT
from tests.e2e.test_postgres import LOGINS, RIGHTS

POSTGRES = (ROOT / "docs/tasks/postgres.md").read_text()
GB = 1024 * 1024  # kB


def table(text: str, first: str) -> list[list[str]]:
    """The rows below the head that begins with the column `first`, without the marks of code."""
    _, _, after = text.partition(f"\n| {first} |")
    lines = after.split("\n\n", 1)[0].splitlines()[2:]
    assert lines, first
    return [[cell.strip().strip("`").strip() for cell in one.strip("|").split(" | ")]
            for one in lines]  # fmt: skip


def test_the_rights_of_the_manual_are_those_that_are_tried() -> None:
    assert table(POSTGRES, "Role | Database") == [list(right) for right in RIGHTS]


def test_the_logins_of_the_manual_are_those_that_are_tried() -> None:
    shown = [[cell.replace("`", "") for cell in row] for row in table(POSTGRES, "From")]
    assert shown == [[cell.replace("`", "") for cell in login] for login in LOGINS]


HARDWARE = {
    column: Hardware(memory=gb * GB, cores=cores, ssd=True)
    for column, (gb, cores) in enumerate(((2, 2), (8, 4), (32, 16), (128, 64)), 1)
}


def test_the_values_of_the_manual_are_those_of_the_code() -> None:
    rows = table(POSTGRES, "Setting")
    assert [row[0] for row in rows] == [
        *tune(HARDWARE[1], max_connections=100, version=17), "vm.nr_hugepages",
    ]  # fmt: skip
    for column, hardware in HARDWARE.items():
        tuned = tune(hardware, max_connections=100, version=17)
        wanted = [setting.value for setting in tuned.values()]
        wanted.append(str(huge_pages(hardware) or "none"))
        assert [row[column] for row in rows] == wanted
    # Each says why.
    assert all(len(row) == 6 and len(row[5]) > 20 for row in rows), rows


# Each runs what those before it run.
COMMANDS = ("make test", "make check", "make long")
TEST, CHECK, LONG = range(3)
COLLECT = """
import json, sys, pytest

class Marks:
    def pytest_collection_finish(self, session):
        for item in session.items:
            print(json.dumps([item.nodeid, [mark.name for mark in item.iter_markers()]]))

sys.exit(pytest.main(["--collect-only", "-qq", "tests/e2e"], plugins=[Marks()]))
"""


@pytest.fixture(scope="module")
def cases() -> dict[str, int]:
    """Which of the commands is the first to run it, for each case of the end-to-end tests."""
    collected = subprocess.run(
        [sys.executable, "-c", COLLECT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    marks = dict(json.loads(line) for line in collected.stdout.splitlines() if line[:1] == "[")
    return {
        case: LONG if "long" in names else TEST if "promise" in names else CHECK
        for case, names in marks.items()
    }


def test_each_promise_has_its_tests_and_the_command_that_shows_it(cases: dict[str, int]) -> None:
    readme = (ROOT / "README.md").read_text()
    for promise, named, command in table(readme, "Promise"):
        module, needed = "", []
        for test in re.findall(r"(?:tests/unit/)?test_[^\s`,]+", named):
            if test.startswith("tests/unit/"):
                assert (ROOT / test).is_file(), test
                needed.append(TEST)
                continue
            file, _, name = test.rpartition("::")
            module = file or module
            whole = f"tests/e2e/{module}::{name}"
            found = {cases[case] for case in cases if case == whole or case.startswith(f"{whole}[")}
            assert found, f"{promise}: there is no {test}"
            # What is long is more of what the others show, unless nothing else shows it.
            needed.append(max(found - {LONG}, default=LONG))
        assert command == COMMANDS[max(needed)], promise


@pytest.mark.parametrize("page", ["docs/operations.md", "docs/tasks/postgres_drop.md"])
def test_no_page_restores_as_superuser(page: str) -> None:
    """The functions of a dump run as whoever restores it."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    commands = [line for line in text.splitlines() if re.search(r"\bpg_restore\b.* --dbname", line)]
    assert commands
    for command in commands:
        assert "sudo" not in command
        for word in ("--host localhost", "--username", "--no-owner", "--no-privileges"):
            assert word in command

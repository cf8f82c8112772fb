"""What the manual says in tables is what the tests ask and what the code does."""

import re
from pathlib import Path

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


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the titles."""
    titles = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        file, _, anchor = re.sub(r"\s+", "", link).partition("#")
        if file.startswith("https:"):
            continue
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link

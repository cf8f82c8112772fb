"""Ends of security updates: their sources, and the warnings before them."""

import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from terrafirma.host import lifetimes
from terrafirma.host.facts import Machine, MachineState
from terrafirma.host.lifetimes import End, Lifetimes, LifetimesState, ends, warnings
from terrafirma.host.machine import DISTRIBUTIONS
from tests.conftest import Pyinfra
from tests.unit.facts import shell, text
from tests.unit.fake_host import DEBIAN_13, command, fake, machine
from tests.unit.programs import Program

CSV = """\
version,codename,series,created,release,eol,eol-lts,eol-elts
12,Bookworm,bookworm,2021-08-14,2023-06-10,2026-07-11,2028-06-30,2033-06-30
13,Trixie,trixie,2023-06-10,2025-08-09,2028-08-09,2030-06-30,2035-06-30
14,Forky,forky,2025-08-09,2027-08-01,2030-08-01
"""
UBUNTU = """\
version,codename,series,created,release,eol,eol-server,eol-esm
24.04 LTS,Noble Numbat,noble,2023-10-12,2024-04-25,2029-05-31,2029-05-31,2034-04-25
24.10,Oracular Oriole,oracular,2024-04-25,2024-10-10,2025-07-10
"""


def known(kind: dict[str, str] = DEBIAN_13) -> MachineState:
    return Machine().process([f"{key}={value}" for key, value in kind.items()])


def state(end: str = "", **packages: str) -> LifetimesState:
    return LifetimesState(
        end=end, packages={name.replace("_", "-"): one for name, one in packages.items()}
    )


# --- the sources ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distribution", "version", "end"),
    [
        # The end of Debian's long-term support counts if it is known.
        ("debian", "13", "2030-06-30"),
        ("debian", "14", "2030-08-01"),
        ("debian", "1", ""),
        ("ubuntu", "24.04", "2029-05-31"),
        ("ubuntu", "24", ""),
        ("fedora", "43", ""),
        ("../x", "13", ""),
    ],
)
def test_distro_info_knows_the_end_of_the_distribution(
    tmp_path: Path, distribution: str, version: str, end: str
) -> None:
    (tmp_path / "debian.csv").write_text(CSV)
    (tmp_path / "ubuntu.csv").write_text(UBUNTU)
    asked = text(Lifetimes, distribution=distribution, version=version)
    output = shell(asked.replace("/usr/share/distro-info", str(tmp_path)))
    assert Lifetimes().process([line for line in output if line.startswith("row=")])["end"] == end


def test_the_vendors_packages_are_asked_for(program: Program) -> None:
    path = program(
        "dpkg-query",
        "echo 'installed docker-ce=5:28.2.2-1~debian.13~trixie'; echo 'config-files caddy=2.6.2'",
    )
    output = shell(text(Lifetimes, distribution="x", version="1"), path)
    assert Lifetimes().process(output)["packages"] == {"docker-ce": "5:28.2.2-1~debian.13~trixie"}


def test_the_tables_are_used_for_ends_that_the_host_does_not_know() -> None:
    (debian, postgres) = ends(known(), state(), "17")
    assert debian == End("Debian GNU/Linux 13 (trixie)", date(2030, 6, 30), debian.way)
    assert "rebuild-a-lost-server" in debian.way
    assert postgres == End("PostgreSQL 17", date(2029, 11, 8), postgres.way)
    assert "commands/postgres_upgrade.py" in postgres.way
    (debian, _) = ends(known(), state("2031-01-01"), "17")
    assert debian.day == date(2031, 1, 1)


@pytest.mark.parametrize(
    ("packages", "found"),
    [
        ({"docker_ce": "5:27.5.1-1~debian.13~trixie"}, ["Docker 27"]),
        ({"docker_ce": "5:26.1.4-1~ubuntu.24.04~noble"}, ["Docker 26.1"]),
        # No end was announced for these.
        ({"docker_ce": "5:28.2.2-1~debian.13~trixie", "caddy": "2.10.0"}, []),
        ({"docker_ce": "5:270.0.0-1~debian.13~trixie"}, []),
        ({"caddy": "1.0.4"}, ["Caddy 1"]),
        # The distribution supports its own packages.
        ({"caddy": "1.0.4-2"}, []),
        ({"caddy": "2.6.2-12"}, []),
    ],
)
def test_the_vendors_packages_end_when_the_vendor_says_so(
    packages: dict[str, str], found: list[str]
) -> None:
    assert [one.what for one in ends(known(), state(**packages), "99")][1:] == found


@pytest.mark.parametrize("kind", DISTRIBUTIONS, ids=" ".join)
def test_the_tables_know_every_supported_distribution(kind: tuple[str, str]) -> None:
    assert kind in lifetimes.DISTRIBUTIONS
    assert str(DISTRIBUTIONS[kind].postgres) in lifetimes.POSTGRES


def test_postgresql_ends_on_a_thursday_in_november() -> None:
    """The second one, five years after the first release."""
    for version, end in lifetimes.POSTGRES.items():
        assert (end.year, end.month, end.weekday()) == (2012 + int(version), 11, 3), version
        assert 8 <= end.day <= 14


# --- the warnings ---------------------------------------------------------------------------------

DAY = date(2030, 6, 30)


@pytest.mark.parametrize(
    ("today", "said"),
    [
        (DAY - timedelta(days=184), None),
        (DAY - timedelta(days=183), ("X gets security updates until 2030-06-30: go on", False)),
        (DAY, ("X gets security updates until 2030-06-30: go on", False)),
        (
            DAY + timedelta(days=1),
            ("X has had no security updates since 2030-06-30: go on", True),
        ),
    ],
)
def test_warnings_begin_half_a_year_before_the_end(today: date, said: Any) -> None:
    assert list(warnings(iter([End("X", DAY, "go on")]), today)) == ([said] if said else [])


def test_preflight_warns_and_refuses_nothing(pyinfra: Pyinfra) -> None:
    answers = machine() | {
        command(Lifetimes, distribution="debian", version="13"): [
            *(f"row={line}" for line in CSV.replace("2030-06-30", "2026-01-31").splitlines()[::2]),
            "docker-ce=5:20.10.24-1~debian.13~trixie",
        ]
    }
    result = pyinfra.call("@fake/host", "tasks/preflight.py", "-y", *fake(answers))
    assert result.returncode == 0
    assert re.search(
        r"Debian GNU/Linux 13 \(trixie\) has had no security updates since 2026-01-31: set up a "
        "server with a newer release",
        result.stderr,
    )
    assert "Docker 20.10 has had no security updates since 2023-12-10: commands/upgrade.py" in (
        result.stderr
    )

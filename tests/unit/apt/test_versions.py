"""Versions of packages: their upstream part, their order, and which one a setting means."""

import shutil
import subprocess
from itertools import pairwise, product

import pytest

from terrafirma.apt.versions import (
    choose,
    compare,
    is_prerelease,
    listed,
    matches,
    newest,
    upstream,
)

DOCKER = [
    "5:26.1.4-1~debian.13~trixie",
    "5:28.2.2-1~debian.13~trixie",
    "5:28.10.0-1~debian.13~trixie",
    "5:29.0.0~rc.1-1~debian.13~trixie",
]


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("5:28.2.2-1~debian.13~trixie", "28.2.2"),
        ("5:28.2.2-1~ubuntu.24.04~noble", "28.2.2"),
        ("5:24.0.9-1~ubuntu.22.04~jammy", "24.0.9"),
        ("1.7.27-1", "1.7.27"),
        ("17.5-1.pgdg130+1", "17.5"),
        ("17.5-1.pgdg24.04+1", "17.5"),
        ("15.13-0+deb12u1", "15.13"),
        ("18~beta1-1~exp1.pgdg130+1", "18"),
        ("26.1.5+dfsg1-9+b9", "26.1.5"),
        ("20.10.24+dfsg1-1+deb12u1", "20.10.24"),
        ("28.2.2-0ubuntu1~24.04.1", "28.2.2"),
        ("2.10.2", "2.10.2"),
        ("2.6.2-5", "2.6.2"),
        ("2.11.0~beta1", "2.11.0"),
        ("0.25.0-1~debian.13~trixie", "0.25.0"),
        ("278.pgdg130+1", "278"),
        ("unknown", ""),
    ],
)
def test_the_upstream_part_of_a_version(version: str, name: str) -> None:
    assert upstream(version) == name


@pytest.mark.parametrize(
    ("version", "prefix", "right"),
    [
        ("5:28.2.2-1~debian.13~trixie", "", True),
        ("5:28.2.2-1~debian.13~trixie", "28", True),
        ("5:28.2.2-1~debian.13~trixie", "28.2", True),
        ("5:28.2.2-1~debian.13~trixie", "28.2.2", True),
        ("5:28.2.2-1~debian.13~trixie", "28.2.2.0", False),
        ("5:28.2.2-1~debian.13~trixie", "28.2.20", False),
        ("5:28.2.2-1~debian.13~trixie", "28.1", False),
        ("5:28.2.2-1~debian.13~trixie", "2", False),
        ("5:28.2.2-1~debian.13~trixie", "5", False),
        ("5:28.10.0-1~debian.13~trixie", "28.1", False),
        ("5:28.10.0-1~debian.13~trixie", "28.10", True),
        ("5:8.2.2-1", "28", False),
        ("17.5-1.pgdg130+1", "17", True),
        ("17.5-1.pgdg130+1", "17.5", True),
        ("17.5-1.pgdg130+1", "17.50", False),
        ("17.15-1.pgdg130+1", "17.1", False),
        ("17.5-1.pgdg130+1", "1", False),
        ("17.5-0+deb13u1", "17.5", True),
        ("2.10.2", "2", True),
        ("2.10.2", "2.1", False),
        ("2.10.2", "2.10", True),
        ("2.10.2", "2.10.2", True),
        ("2.10.20", "2.10.2", False),
        ("2.6.2-5", "2.6.2", True),
        ("2.6.2-5", "2.6.2.5", False),
        ("26.1.5+dfsg1-9+b9", "26.1.5", True),
        ("26.1.5+dfsg1-9+b9", "26.1", True),
        ("26.1.5+dfsg1-9+b9", "26.1.5.1", False),
        ("20.10.24+dfsg1-1+deb12u1", "20", True),
        ("20.10.24+dfsg1-1+deb12u1", "20.1", False),
        ("5:29.0.0~rc.1-1~debian.13~trixie", "29", True),
        ("unknown", "1", False),
        ("unknown", "", True),
    ],
)
def test_a_prefix_ends_where_a_component_does(version: str, prefix: str, right: bool) -> None:
    assert matches(version, prefix) is right


@pytest.mark.parametrize(
    ("prefix", "chosen"),
    [
        ("", "5:28.10.0-1~debian.13~trixie"),
        ("28", "5:28.10.0-1~debian.13~trixie"),
        ("28.2", "5:28.2.2-1~debian.13~trixie"),
        ("26", "5:26.1.4-1~debian.13~trixie"),
        ("28.1", ""),
        ("27", ""),
        # A major version never selects a pre-release.
        ("29", ""),
    ],
)
def test_the_newest_release_of_a_prefix_is_chosen(prefix: str, chosen: str) -> None:
    assert choose(DOCKER, prefix) == chosen
    assert choose(reversed(DOCKER), prefix) == chosen


def test_nothing_is_offered() -> None:
    assert choose([], "") == newest([]) == listed([]) == ""


def test_versions_are_listed_once_and_the_newest_first() -> None:
    assert listed([*DOCKER, "5:28.2.2-2~debian.13~trixie"]) == "29.0.0, 28.10.0, 28.2.2, 26.1.4"
    assert listed([f"1.{number}" for number in range(9)], most=3) == "1.8, 1.7, 1.6 …"


@pytest.mark.parametrize(
    "version",
    [
        "18~beta1-1.pgdg130+1",
        "19~~devel-3~20260507.1415.g1.pgdg+1",
        "5:29.0.0~rc.1-1~debian.13",
        "2.11.0-beta.1-1",
        "19rc1-1",
    ],
)
def test_prereleases_are_recognized(version: str) -> None:
    assert is_prerelease(version)


@pytest.mark.parametrize("version", [*DOCKER[:3], "17.5-1.pgdg130+1", "20.10.24+dfsg1-1", "2.6.2"])
def test_releases_are_recognized(version: str) -> None:
    assert not is_prerelease(version)


ORDERED = [
    "0~~", "0~", "0", "0-0", "1~rc1", "1~rc1-1", "1", "1-1~bpo1", "1-1", "1-1+b1", "1.0", "1.0a",
    "1.0+dfsg", "1.0.0", "1.2", "1.10", "1.10-9", "1.10-10", "2.6.2-5", "2.10.2",
    "15.13-0+deb12u1", "17.5-0+deb13u1", "17.5-1.pgdg130+1", "17.5-1.pgdg130+2", "17.10-1",
    "278", "278.pgdg130+1", "278.pgdg130+2", "1:0.1", "5:28.1.1-1~debian.12~bookworm",
    "5:28.2.2-1~debian.13~trixie", "5:28.2.2-1~ubuntu.24.04~noble",
]  # fmt: skip


def test_the_order_is_the_one_of_dpkg() -> None:
    for (number, one), (number2, other) in product(enumerate(ORDERED), repeat=2):
        wanted = (number > number2) - (number < number2)
        if {one, other} == {"0", "0-0"}:
            wanted = 0  # a revision that is missing is one of 0
        assert compare(one, other) == wanted, (one, other)


@pytest.mark.skipif(not shutil.which("dpkg"), reason="no dpkg here")
def test_dpkg_itself_has_the_same_order() -> None:
    for one, other in pairwise(ORDERED):
        operator = {-1: "lt", 0: "eq", 1: "gt"}[compare(one, other)]
        subprocess.run(["dpkg", "--compare-versions", one, operator, other], check=True)

"""files/docker/docker-ports, with an iptables that logs its arguments."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

NAT = """#!/bin/sh
test "$1 $2 $3 $4" = '-w 10 -t nat' || exit 1
shift 4
case "$1" in
-S) cat "$HERE/$2" ;;
-C) test -e "$HERE/jumps" ;;
*) echo "$*" >> "$HERE/said" ;;
esac
"""
RESTORE = """#!/bin/sh
test "$*" = '-w 10 --noflush' && cat >> "$HERE/said"
"""
TO = "-d 127.0.0.1/32 -p tcp -m tcp --dport"


@pytest.fixture(autouse=True)
def iptables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("iptables", NAT), ("iptables-restore", RESTORE)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("HERE", str(tmp_path))


def ports(*words: str) -> int:
    return subprocess.run([ROOT / "files/docker/docker-ports", *words], check=False).returncode


def test_the_engines_rules_are_copied(tmp_path: Path) -> None:
    (tmp_path / "DOCKER").write_text(
        f"-N DOCKER\n-A DOCKER {TO} 8000 -j DNAT --to-destination 10.210.1.2:8000\n"
    )
    assert ports("keep") == 0
    assert (tmp_path / "said").read_text().splitlines() == [
        "*nat",
        ":TERRAFIRMA - [0:0]",
        f"-A TERRAFIRMA {TO} 8000 -j DNAT --to-destination 10.210.1.2:8000",
        "COMMIT",
        "-A OUTPUT -d 127.0.0.0/8 -j TERRAFIRMA",
    ]


def test_rules_of_an_older_copy_stay_behind_newer_ones(tmp_path: Path) -> None:
    (tmp_path / "DOCKER").write_text(
        f"-N DOCKER\n-A DOCKER {TO} 8000 -j DNAT --to-destination 10.210.1.9:8000\n"
        f"-A DOCKER {TO} 8002 -j DNAT --to-destination 10.210.1.4:8000\n"
    )
    (tmp_path / "TERRAFIRMA").write_text(
        f"-N TERRAFIRMA\n-A TERRAFIRMA {TO} 8000 -j DNAT --to-destination 10.210.1.2:8000\n"
        f"-A TERRAFIRMA {TO} 8002 -j DNAT --to-destination 10.210.1.4:8000\n"
    )
    (tmp_path / "jumps").touch()
    assert ports("keep") == 0
    assert (tmp_path / "said").read_text().splitlines() == [
        "*nat",
        ":TERRAFIRMA - [0:0]",
        f"-A TERRAFIRMA {TO} 8000 -j DNAT --to-destination 10.210.1.9:8000",
        f"-A TERRAFIRMA {TO} 8002 -j DNAT --to-destination 10.210.1.4:8000",
        f"-A TERRAFIRMA {TO} 8000 -j DNAT --to-destination 10.210.1.2:8000",
        "COMMIT",
    ]


def test_without_an_engine_there_is_nothing_to_copy(tmp_path: Path) -> None:
    assert ports("keep") == 0
    assert "DNAT" not in (tmp_path / "said").read_text()


def test_the_copy_is_removed(tmp_path: Path) -> None:
    assert ports("drop") == 0
    assert (tmp_path / "said").read_text().splitlines() == [
        "-D OUTPUT -d 127.0.0.0/8 -j TERRAFIRMA",
        "-F TERRAFIRMA",
        "-X TERRAFIRMA",
    ]


@pytest.mark.parametrize("words", [(), ("stay",)])
def test_anything_else_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert ports(*words) == 2
    assert not (tmp_path / "said").exists()

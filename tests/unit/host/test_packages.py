"""The facts about installed packages and about the holder of apt's lock."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from terrafirma.host.packages import AptLockHolder, InstalledPackages
from tests.unit.facts import ask, shell, text
from tests.unit.programs import Program

# Paths of a host, replaced by paths of this machine to run the shell here.
APT_LOCKS = [
    "/var/lib/apt/lists/lock",
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/cache/apt/archives/lock",
]


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="not a Debian system")
def test_packages_of_this_machine() -> None:
    installed = ask(InstalledPackages)
    assert {"dpkg", "bash"} <= installed
    assert "no-such-package" not in installed


@pytest.mark.parametrize(
    ("output", "installed"),
    [
        ("installed caddy", {"caddy"}),
        ("config-files caddy", set()),
        ("half-configured caddy", set()),
        ("not-installed caddy", set()),
        ("installed caddy\nconfig-files vim\ninstalled g++", {"caddy", "g++"}),
        # Two architectures of one package.
        ("installed caddy\ninstalled caddy", {"caddy"}),
    ],
)
def test_a_package_counts_once_it_is_installed(
    program: Program, output: str, installed: set[str]
) -> None:
    assert ask(InstalledPackages, program("dpkg-query", f"echo '{output}'")) == installed


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "lock"
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield path


def test_the_holder_of_a_lock_is_named(lock: Path, tmp_path: Path) -> None:
    command = text(AptLockHolder)
    for one in APT_LOCKS:
        assert one in command
    free = tmp_path / "free"
    free.touch()
    for number, one in enumerate(reversed(APT_LOCKS)):
        command = command.replace(one, str((free, lock, tmp_path / "no", free)[number]))
    me = Path("/proc/self/comm").read_text().strip()
    assert AptLockHolder().process(shell(command)) == f"{me} (pid {os.getpid()})"


def test_locks_that_nobody_holds(tmp_path: Path) -> None:
    command = text(AptLockHolder)
    for one in reversed(APT_LOCKS):
        command = command.replace(one, str(tmp_path))
    assert shell(command) == []


def test_the_holder_of_a_lock_on_a_host() -> None:
    assert AptLockHolder().process(["unattended-upgr (pid 812)"]) == "unattended-upgr (pid 812)"

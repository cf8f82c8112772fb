"""Which packages are installed, and who holds the lock of the package manager."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from terrafirma.host.packages import AptLockHolder, Installed, InstalledPackages
from tests.unit.facts import ask, shell, text
from tests.unit.programs import Program

# Paths on a host that are replaced by such of this machine, to run the shell here.
APT_LOCKS = [
    "/var/lib/apt/lists/lock",
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/cache/apt/archives/lock",
]


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="not a Debian system")
def test_packages_of_this_machine() -> None:
    installed = ask(InstalledPackages)
    assert installed["dpkg"]["version"].startswith("1.")
    assert "bash" in installed
    assert "no-such-package" not in installed


CADDY = {"caddy": {"version": "2.6.2-12", "held": False}}


@pytest.mark.parametrize(
    ("output", "installed"),
    [
        ("installed install caddy 2.6.2-12", CADDY),
        ("installed hold caddy 2.6.2-12", {"caddy": {"version": "2.6.2-12", "held": True}}),
        # Somebody is about to remove it, and has not yet.
        ("installed deinstall caddy 2.6.2-12", CADDY),
        ("config-files deinstall caddy 2.6.2-12", {}),
        ("half-configured install caddy 2.6.2-12", {}),
        ("not-installed unknown caddy ", {}),
        (
            "installed install caddy 2.6.2-12\nconfig-files hold vim 1\n"
            "installed install g++ 4:14.2",
            CADDY | {"g++": {"version": "4:14.2", "held": False}},
        ),
        # Two architectures of one package.
        ("installed install caddy 2.6.2-12\ninstalled install caddy 2.6.2-12", CADDY),
    ],
)
def test_a_package_counts_once_it_is_installed(
    program: Program, output: str, installed: Installed
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

"""The facts about installed packages and about the holder of apt's lock."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from pyinfra.api import StringCommand

from terrafirma.host.packages import AptLockHolder, Installed, InstalledPackages, installation
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
    assert installed["dpkg"]["version"].startswith("1.")
    assert "bash" in installed
    assert "no-such-package" not in installed


CADDY = {"caddy": {"version": "2.6.2-12", "held": False}}


@pytest.mark.parametrize(
    ("output", "installed"),
    [
        ("installed install caddy 2.6.2-12", CADDY),
        ("installed hold caddy 2.6.2-12", {"caddy": {"version": "2.6.2-12", "held": True}}),
        # Marked for removal, but still installed.
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


def test_free_locks_have_no_holder(tmp_path: Path) -> None:
    command = text(AptLockHolder)
    for one in reversed(APT_LOCKS):
        command = command.replace(one, str(tmp_path))
    assert shell(command) == []


def test_the_holder_of_a_lock_on_a_host() -> None:
    assert AptLockHolder().process(["unattended-upgr (pid 812)"]) == "unattended-upgr (pid 812)"


def installed_by(command: StringCommand, directory: Path, simulated: str) -> CompletedProcess[str]:
    """Run the command with a fake apt-get that records its calls and answers a simulation."""
    fake = directory / "apt-get"
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in *" -s "*) printf "%b" "{simulated}" ;; '
        f'*) echo "$@" >> {directory}/done ;; esac\n'
    )
    fake.chmod(0o755)
    return subprocess.run(
        ["sh", "-c", command.get_raw_value()], check=False, capture_output=True, text=True,
        env={"PATH": f"{directory}:/usr/bin:/bin"},
    )  # fmt: skip


def done(directory: Path) -> list[str]:
    path = directory / "done"
    return path.read_text().splitlines() if path.exists() else []


def test_versions_are_named_and_nothing_is_removed(tmp_path: Path) -> None:
    command = installation({"docker-ce": "5:28.1.1-1~debian.13~trixie", "containerd.io": ""})
    assert installed_by(command, tmp_path, "").returncode == 0
    (line,) = done(tmp_path)
    assert line.endswith(" docker-ce=5:28.1.1-1~debian.13~trixie containerd.io")
    assert "--no-remove" in line


@pytest.mark.parametrize(
    ("simulated", "other"),
    [
        ("", ""),
        ("Inst docker-ce (5:28 x)\\nRemv runc [1.1.5]\\n", ""),
        ("Remv runc:amd64 [1.1.5]\\nRemv containerd [1.6]\\nConf docker-ce\\n", ""),
        ("Remv runc [1.1.5]\\nRemv podman [4.3.1] [crun:amd64 ]\\n", "podman"),
        ("Remv postgresql-17 [17.5]\\n", "postgresql-17"),
    ],
)
def test_only_conflicting_packages_are_removed(tmp_path: Path, simulated: str, other: str) -> None:
    command = installation({"docker-ce": ""}, replacing=["containerd", "runc"])
    result = installed_by(command, tmp_path, simulated)
    if other:
        assert result.returncode == 1
        assert result.stderr == f"{other} would have to be removed as well: remove it first\n"
        assert not [line for line in done(tmp_path) if " install " in line]
    else:
        assert result.returncode == 0, result.stderr
        update, line = done(tmp_path)
        assert update.endswith(" update")
        assert line.endswith(" docker-ce containerd- runc-")

"""A reboot: whether it is due, when it happens, and the notes about it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from terrafirma_host import notes, reboot, standstill, updates
from terrafirma_host.shell import Failed

from tests.unit.programs import Program

KERNELS = ["6.12.43+deb13-amd64", "6.12.48+deb13-amd64", "6.12.57+deb13-cloud-amd64"]


@pytest.fixture(autouse=True)
def host(roots: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host where nothing is due and nothing goes on; `systemctl` records its arguments."""
    directory = program("systemctl", f'echo "$*" >> {roots}/systemctl')
    # The host is not a container.
    program("systemd-detect-virt", "exit 1")
    program("apt-config", "true")
    program("dpkg-query", "exit 1")
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    monkeypatch.setattr(notes, "STATE", roots / "updates")
    monkeypatch.setattr(updates, "STATE", roots / "updates")
    monkeypatch.setattr(reboot, "REQUIRED", roots / "reboot-required")
    monkeypatch.setattr(reboot, "BOOT", roots / "boot")
    monkeypatch.setattr(reboot, "TIMER", roots / "timer")
    monkeypatch.setattr(reboot, "PROC", roots / "proc")
    monkeypatch.setattr(reboot, "DOWN", 0)
    monkeypatch.setattr(reboot, "PAUSE", 0.05)
    monkeypatch.setattr(reboot, "broken", list)
    for name in ("BACKUP", "UPGRADE", "DAILY"):
        monkeypatch.setattr(standstill, name, roots / name.lower())
    monkeypatch.setattr(standstill, "APT", (roots / "frontend",))
    monkeypatch.setattr(standstill, "PAUSE", 0.05)
    runs(monkeypatch, "6.12.48+deb13-amd64")
    boots(roots, 100)
    (roots / "boot").mkdir()
    return roots


def runs(monkeypatch: pytest.MonkeyPatch, release: str, build: str = "#1 SMP") -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release, version=build))


def boots(roots: Path, moment: int) -> None:
    """Make the host one that started at this time of its kernel's clock."""
    (roots / "proc/sys/kernel/random").mkdir(parents=True, exist_ok=True)
    (roots / "proc/sys/kernel/random/boot_id").write_text("b00t\n")
    (roots / "proc/1").mkdir(exist_ok=True)
    fields = " ".join(["S", *["0"] * 18, str(moment), "0"])
    (roots / "proc/1/stat").write_text(f"1 (systemd (x)) {fields}\n")


def asked(host: Path) -> list[str]:
    path = host / "systemctl"
    return path.read_text().splitlines() if path.exists() else []


def is_due(host: Path) -> None:
    (host / "reboot-required").touch()
    (host / "reboot-required.pkgs").write_text("libc6\nlinux-base\nlibc6\n")


# --- whether it is due ----------------------------------------------------------------------------


def test_no_reboot_is_due_by_default() -> None:
    assert reboot.due() == []


def test_packages_ask_for_a_reboot(host: Path) -> None:
    (host / "reboot-required").touch()
    assert reboot.due() == ["a package asks for it"]
    is_due(host)
    assert reboot.due() == ["asked for by libc6, linux-base"]


@pytest.mark.parametrize(
    ("running", "newest"),
    [
        ("6.12.43+deb13-amd64", "6.12.48+deb13-amd64"),
        ("6.12.48+deb13-amd64", ""),
        # Only kernels of the same kind count.
        ("6.12.43+deb13-cloud-amd64", "6.12.57+deb13-cloud-amd64"),
        ("6.12.43+deb13-rt-amd64", ""),
        # A provider's own kernel is in no package.
        ("6.18.44-fc-v669", ""),
        ("6.18.44", ""),
    ],
)
def test_a_newer_kernel_of_the_same_kind_needs_a_reboot(
    host: Path, monkeypatch: pytest.MonkeyPatch, running: str, newest: str
) -> None:
    for name in KERNELS:
        (host / f"boot/vmlinuz-{name}").touch()
    runs(monkeypatch, running)
    wanted = [f"kernel {newest} is installed, {running} runs"] if newest else []
    assert reboot.due() == wanted


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("6.1.0-9-amd64", "6.1.0-37-amd64"),
        ("6.1.0-37-amd64", "6.12.43+deb13-amd64"),
        ("6.8.0-45-generic", "6.8.0-101-generic"),
        ("6.8.0-101-generic", "6.11.0-9-generic"),
    ],
)
def test_kernels_are_compared_by_their_numbers(
    host: Path, monkeypatch: pytest.MonkeyPatch, older: str, newer: str
) -> None:
    for name in (older, newer):
        (host / f"boot/vmlinuz-{name}").touch()
    runs(monkeypatch, newer)
    assert reboot.due() == []
    runs(monkeypatch, older)
    assert reboot.due() == [f"kernel {newer} is installed, {older} runs"]


def test_a_newer_build_of_the_same_kernel_needs_a_reboot(
    host: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    program("dpkg-query", 'test "$3" = linux-image-6.1.0-37-amd64 && printf 6.1.140-1')
    build = "#1 SMP PREEMPT_DYNAMIC Debian {} (2025-05-22)"
    runs(monkeypatch, "6.1.0-37-amd64", build.format("6.1.140-1"))
    assert reboot.due() == []
    runs(monkeypatch, "6.1.0-37-amd64", build.format("6.1.139-1"))
    assert reboot.due() == ["kernel 6.1.140-1 is installed, 6.1.139-1 runs"]


def test_a_container_needs_no_reboot_for_a_kernel(
    host: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    (host / "boot/vmlinuz-6.12.57+deb13-amd64").touch()
    assert reboot.due()
    program("systemd-detect-virt", "exit 0")
    assert reboot.due() == []


# --- the window -----------------------------------------------------------------------------------


def test_a_window_without_a_reason_does_nothing(host: Path) -> None:
    reboot.main(["window", "0"])
    assert asked(host) == []
    assert notes.read("reboot") == {}


def noted() -> dict[str, Any]:
    return notes.read("reboot")


def test_a_due_reboot_happens(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_due(host)

    def sleep(_: float) -> None:
        # The host goes down here.
        assert asked(host) == ["reboot"]
        assert "has reported nothing since" in noted()["words"]
        raise SystemExit

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(SystemExit):
        reboot.main(["window", "3600"])


def gone_down(host: Path) -> None:
    notes.note(
        "reboot", "rebooted", alarm=True, left=reboot.boot(),
        began="2026-01-31 04:00 UTC", why="asked for by libc6",
    )  # fmt: skip


def test_nothing_is_reported_before_the_boot(host: Path) -> None:
    gone_down(host)
    before = noted()
    reboot.main(["report"])
    assert noted() == before


def test_after_the_boot_it_waits_until_all_is_well(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone_down(host)
    boots(host, 200)
    answers = iter([["api: …"], ["api: …"], []])
    monkeypatch.setattr(reboot, "broken", lambda: next(answers))
    reboot.main(["report"])
    assert noted()["words"].startswith(
        "rebooted at 2026-01-31 04:00 UTC (asked for by libc6): all was as promised again after "
    )
    assert not noted()["alarm"]
    assert updates.status()["notes"] == [noted()["words"]]
    # The next boot is none of the window's.
    boots(host, 300)
    before = noted()
    reboot.main(["report"])
    assert noted() == before


def test_a_reboot_that_changes_nothing_is_reported_and_happens_once(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For example if the boot loader is set to an older kernel."""
    (host / "timer").touch()
    (host / "boot/vmlinuz-6.12.57+deb13-amd64").touch()
    why = "kernel 6.12.57+deb13-amd64 is installed, 6.12.48+deb13-amd64 runs"
    is_due(host)
    with pytest.raises(Failed):
        reboot.main(["window", "3600"])
    notes.note(
        "reboot", "rebooted", alarm=True, left=reboot.boot(),
        began="2026-01-31 04:00 UTC", why="; ".join(reboot.due()),
    )  # fmt: skip
    boots(host, 200)
    (host / "reboot-required").unlink()
    reboot.main(["report"])
    due, words = updates.status()["alarms"]
    assert due == f"a reboot is due ({why}): the last reboot has not changed that"
    assert f"which changed nothing: {why}; no window reboots again for this reason" in words
    # No window and no later boot repeats it.
    (host / "systemctl").unlink()
    reboot.main(["window", "3600"])
    reboot.main(["report"])
    assert asked(host) == []
    assert "a reboot has changed nothing about it" in capsys.readouterr().out
    assert noted()["words"] == words
    # Another reason counts.
    is_due(host)
    with pytest.raises(Failed):
        reboot.main(["window", "3600"])
    assert asked(host) == ["reboot"]


@pytest.mark.parametrize("command", [["report"], ["window", "0"]])
def test_a_reboot_that_changed_nothing_is_forgotten_once_none_is_due(
    host: Path, command: list[str]
) -> None:
    notes.note("reboot", "changed nothing", alarm=True, unchanged=["kernel …"])
    reboot.main(command)
    assert not noted()


def test_a_lasting_failure_is_shown_until_it_is_repaired(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone_down(host)
    boots(host, 200)
    monkeypatch.setattr(reboot, "PATIENCE", 0.2)
    monkeypatch.setattr(reboot, "broken", lambda: ["PostgreSQL 17 answers no query"])
    reboot.main(["report"])
    (words,) = updates.status()["alarms"]
    assert words.endswith("minutes after the boot: PostgreSQL 17 answers no query")
    monkeypatch.setattr(reboot, "broken", list)
    assert updates.status() == {"alarms": [], "notes": [f"{words}; by now all is as promised"]}


def test_a_broken_host_is_not_rebooted(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_due(host)
    monkeypatch.setattr(reboot, "broken", lambda: ["api: no", "PostgreSQL: no"])
    with pytest.raises(Failed, match="api: no; PostgreSQL: no"):
        reboot.main(["window", "0"])
    assert asked(host) == []
    assert "did not happen in its window of" in noted()["words"]


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def going_on(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate("")


@pytest.mark.parametrize("lock", ["run/api.lock", "backup", "upgrade", "daily"])
def test_a_reboot_interrupts_nothing(host: Path, lock: str) -> None:
    is_due(host)
    with going_on(host / lock), pytest.raises(Failed):
        reboot.main(["window", "0"])
    assert asked(host) == []
    (due, words) = updates.status()["alarms"]
    assert due == (
        "a reboot is due (asked for by libc6, linux-base): reboot the host, or set updates_reboot"
    )
    assert words.startswith("the due reboot did not happen in its window of")


def test_a_host_that_does_not_go_down_has_not_rebooted(host: Path) -> None:
    is_due(host)
    with pytest.raises(Failed, match="did not go down"):
        reboot.main(["window", "3600"])
    assert asked(host) == ["reboot"]
    assert noted()["words"].endswith("the host did not go down within 0 s")
    assert noted()["refused"]


def test_a_refused_reboot_is_forgotten_once_none_is_due(host: Path) -> None:
    notes.note("reboot", "not made", alarm=True, refused=True)
    is_due(host)
    reboot.main(["report"])
    assert noted()
    (host / "reboot-required").unlink()
    reboot.main(["report"])
    assert not noted()


@pytest.mark.parametrize("words", [[], ["now"], ["window"], ["window", "soon"], ["report", "x"]])
def test_a_wrong_command_line_does_nothing(host: Path, words: list[str]) -> None:
    is_due(host)
    with pytest.raises(SystemExit):
        reboot.main(words)
    assert asked(host) == []


# --- the report for the deploy --------------------------------------------------------------------


def test_a_due_reboot_waits_for_its_window(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    is_due(host)
    (host / "timer").touch()
    updates.main([])
    (words,) = json.loads(capsys.readouterr().out)["alarms"]
    assert words.endswith("it will happen in the window updates_reboot")


def test_a_success_is_shown_for_a_while_only(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes.note("postgres", "PostgreSQL was upgraded")
    assert updates.status()["notes"] == ["PostgreSQL was upgraded"]
    monkeypatch.setattr(updates, "NEWS", -1)
    assert updates.status()["notes"] == []
    notes.note("postgres", "PostgreSQL was not upgraded", alarm=True)
    assert updates.status()["alarms"] == ["PostgreSQL was not upgraded"]


def test_a_damaged_note_is_ignored(host: Path) -> None:
    (host / "updates").mkdir()
    for text in ("", "{", "[]", "{}"):
        (host / "updates/reboot.json").write_text(text)
        assert updates.status() == {"alarms": [], "notes": []}
        reboot.main(["report"])


@pytest.mark.parametrize(
    ("said", "endless"),
    [("", False), ('DPkg::Lock::Timeout "600";', False), ('DPkg::Lock::Timeout "-1";', True)],
)
def test_an_endless_wait_for_apt_is_reported(program: Program, said: str, endless: bool) -> None:
    program("apt-config", f"echo '{said}'")
    assert bool(updates.status()["alarms"]) == endless

"""The fact about a unit: its state, and which of its files changed since it started."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from terrafirma.host.units import Unit
from tests.unit.facts import shell, text
from tests.unit.programs import Program

RELOADS = "/run/terrafirma"


def test_units_of_a_host() -> None:
    caddy = ["ActiveState=active", "UnitFileState=enabled", "started"]
    assert Unit().process(caddy) == {
        "active": True,
        "enabled": True,
        "on_demand": False,
        "stale_units": [],
        "stale": [],
        "stale_reload": [],
        "stale_socket": [],
    }
    postgresql = [
        *("ActiveState=failed", "UnitFileState=enabled-runtime", "started"),
        *(
            "stale_unit=/etc/systemd/system/x.service",
            "stale=/etc/a=b.conf",
            "stale=/etc/c.conf",
            "stale_reload=/etc/pg_hba.conf",
        ),
    ]
    assert Unit().process(postgresql) == {
        "active": False,
        "enabled": True,
        "on_demand": False,
        "stale_units": ["/etc/systemd/system/x.service"],
        "stale": ["/etc/a=b.conf", "/etc/c.conf"],
        "stale_reload": ["/etc/pg_hba.conf"],
        "stale_socket": [],
    }
    unknown = ["ActiveState=inactive", "UnitFileState="]
    assert Unit().process(unknown) == Unit().default()


@pytest.mark.parametrize(
    ("state", "enabled"),
    [
        *(("enabled", True), ("enabled-runtime", True), ("static", True), ("generated", True)),
        *(("disabled", False), ("masked", False), ("masked-runtime", False), ("", False)),
    ],
)
def test_what_starts_at_boot(state: str, enabled: bool) -> None:
    assert Unit().process([f"UnitFileState={state}"])["enabled"] is enabled


@pytest.mark.parametrize(
    ("active", "enabled", "on_demand"),
    [("true", "true", True), ("true", "false", False), ("false", "true", False)],
)
def test_a_unit_that_its_socket_starts(
    program: Program, active: str, enabled: str, on_demand: bool
) -> None:
    path = program(
        "systemctl",
        f"""case "$1" in
        is-active) {active} ;;
        is-enabled) {enabled} ;;
        *) echo ActiveState=inactive; echo UnitFileState=disabled ;;
        esac""",
    )
    command = text(Unit, unit="ssh.service", socket="ssh.socket")
    assert Unit().process(shell(command, path))["on_demand"] is on_demand
    assert "ssh.socket" not in text(Unit, unit="ssh.service")


def test_a_unit_that_reloads_runs() -> None:
    assert Unit().process(["ActiveState=reloading", "started"])["active"]
    assert not Unit().process(["ActiveState=activating", "started"])["active"]


class Service:
    """A unit that started at `since`, and its files."""

    def __init__(self, directory: Path, program: Program) -> None:
        self.directory = directory
        self.program = program
        self.old, self.new = directory / "old.conf", directory / "it's new.conf"
        self.old.touch()
        self.since = self.now()
        self.new.touch()

    def now(self) -> str:
        """The present time as systemd prints it, later than all changes so far."""
        # A file's time stamp may lag by a tick of the kernel's clock.
        time.sleep(0.02)
        now = datetime.now(UTC)
        time.sleep(0.02)
        return f"{now:%a %Y-%m-%d %H:%M:%S.%f} UTC"

    def state(self, *, active: str = "active") -> Any:
        path = self.program(
            "systemctl",
            f"""case "$*" in
            *--value*) echo "{self.since}" ;;
            *) echo ActiveState={active}; echo UnitFileState=enabled ;;
            esac""",
        )
        files = [str(self.old), str(self.directory / "gone.conf"), str(self.new)]
        command = text(Unit, unit="a.service", restart_on=files, reload_on=files)
        return Unit().process(shell(command.replace(RELOADS, str(self.directory)), path))


@pytest.fixture
def service(tmp_path: Path, program: Program) -> Service:
    return Service(tmp_path, program)


def test_files_that_changed_since_a_unit_started_are_stale(service: Service) -> None:
    state = service.state()
    assert state["stale"] == [str(service.new)]
    assert state["stale_reload"] == [str(service.new)]


def test_a_change_of_the_mode_is_a_change(service: Service) -> None:
    service.old.chmod(0o600)
    assert service.state()["stale"] == [str(service.old), str(service.new)]


def test_a_time_stamp_that_was_set_back_is_a_change(service: Service) -> None:
    os.utime(service.old, (0, 0))
    assert str(service.old) in service.state()["stale"]


def test_a_restart_clears_stale_files(service: Service) -> None:
    service.since = service.now()
    state = service.state()
    assert (state["stale"], state["stale_reload"]) == ([], [])


def test_a_reload_clears_stale_files_that_it_reads(service: Service) -> None:
    service.now()
    (service.directory / "a.service.reloaded").touch()
    state = service.state()
    assert (state["stale"], state["stale_reload"]) == ([str(service.new)], [])
    service.now()
    service.old.touch()
    assert service.state()["stale_reload"] == [str(service.old)]


def test_a_reload_before_the_start_does_not_count(service: Service) -> None:
    (service.directory / "a.service.reloaded").touch()
    service.now()
    service.new.touch()
    service.since = service.now()
    service.old.touch()
    assert service.state()["stale_reload"] == [str(service.old)]


def test_a_unit_that_never_started_has_no_stale_files(service: Service) -> None:
    service.since = ""
    state = service.state(active="inactive")
    assert (state["active"], state["stale"], state["stale_reload"]) == (False, [], [])


def test_a_file_of_the_socket_is_compared_with_the_socket(service: Service) -> None:
    path = service.program(
        "systemctl",
        f"""case "$*" in *a.socket*ActiveEnter*) echo "{service.since}" ;;
        *) echo ActiveState=active ;; esac""",
    )
    command = text(
        Unit, unit="a.service", socket="a.socket", socket_files=[str(service.old), str(service.new)]
    )
    lines = shell(command.replace(RELOADS, str(service.directory)), path)
    assert f"stale_socket={service.new}" in lines
    assert f"stale_socket={service.old}" not in lines

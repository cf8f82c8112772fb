"""tasks/updates.py, run against fake hosts."""

import json
from collections.abc import Sequence
from subprocess import CompletedProcess
from typing import Any

import pytest

from terrafirma.host.calendars import WrongCalendars
from terrafirma.host.files import PathStates
from terrafirma.paths import OURS
from terrafirma.updates.facts import UpdatesStatus
from tests.conftest import Pyinfra
from tests.unit.fake_host import DEBIAN_13, UBUNTU_24, command, fake, machine, refuses, written

WINDOW = "Sun *-*-* 04:00:00"
CONFIGURATION = "/etc/apt/apt.conf.d/60terrafirma-updates"


def test_ubuntu_uses_its_own_archive(pyinfra: Pyinfra) -> None:
    result = pyinfra.call(
        "@fake/host", "tasks/updates.py", "--dry", "--diff", *fake(machine(UBUNTU_24))
    )
    assert "origin=Ubuntu,archive=${distro_codename}-security" in written(result, CONFIGURATION)


def test_windows_in_the_settings_are_opened(pyinfra: Pyinfra) -> None:
    host = fake(machine(), updates_reboot=WINDOW, updates_postgres=WINDOW)
    result = pyinfra.call("@fake/host", "tasks/updates.py", "--dry", "--diff", *host)
    for name in ("reboot", "postgres-minor"):
        timer = written(result, f"/etc/systemd/system/terrafirma-{name}.timer")
        assert f"OnCalendar={WINDOW}\n" in timer
    steps = [one["name"] for one in json.loads(result.stdout)["plan"]]
    assert "Open the window for a reboot" in steps
    assert "Check the host after a reboot" in steps
    assert "Open the window for PostgreSQL's minor releases" in steps


def test_each_host_has_its_own_windows(pyinfra: Pyinfra, inventory: Any) -> None:
    hosts = inventory(
        first=(machine(), {"updates_reboot": WINDOW}),
        second=(machine(), {"updates_postgres": WINDOW}),
    )
    plan = pyinfra.run(hosts, "tasks/updates.py", "--dry")["plan"]
    change = {one["name"]: one["hosts_with_change"] for one in plan}
    assert change["Open the window for a reboot"] == ["@fake/first"]
    assert change["Check the host after a reboot"] == ["@fake/first"]
    assert change["Open the window for PostgreSQL's minor releases"] == ["@fake/second"]


def test_windows_that_are_no_longer_wanted_are_closed(pyinfra: Pyinfra) -> None:
    timer = "/etc/systemd/system/terrafirma-reboot.timer"
    there = {command(PathStates, paths=(), patterns=OURS): [f"644|root|root|regular file|{timer}"]}
    plan = pyinfra.run("@fake/host", "tasks/updates.py", "--dry", *fake(machine() | there))["plan"]
    change = {one["name"]: bool(one["hosts_with_change"]) for one in plan}
    assert change["Close the window for a reboot"]
    assert not change["Close the window for PostgreSQL's minor releases"]


def test_without_security_updates_unattended_upgrades_is_not_installed(pyinfra: Pyinfra) -> None:
    host = fake(machine(), updates_security=False)
    result = pyinfra.call("@fake/host", "tasks/updates.py", "-y", "-vv", *host)
    assert result.returncode == 0
    assert "install --no-install-recommends" in result.stderr
    assert " needrestart" in result.stderr
    assert " unattended-upgrades " not in result.stderr.replace("unattended-upgrades.", "")


@pytest.mark.parametrize("masked", [[], ["apt-daily.timer", "apt-daily-upgrade.timer"]])
def test_without_security_updates_a_masked_timer_stays_so(
    pyinfra: Pyinfra, masked: list[str]
) -> None:
    host = fake(machine(DEBIAN_13, *(f"masked={one}" for one in masked)), updates_security=False)
    plan = pyinfra.run("@fake/host", "tasks/updates.py", "--dry", *host)["plan"]
    names = [one["name"] for one in plan]
    assert ("Run apt-daily every day" in names) is (not masked)
    assert "Run apt-daily-upgrade every day" not in names


def test_reports_are_shown_and_count_as_no_change(pyinfra: Pyinfra) -> None:
    due = {"alarms": ["a reboot is due (asked for by libc6): reboot it"], "notes": ["all is well"]}
    answers = machine() | {command(UpdatesStatus): [json.dumps(due)]}
    result = pyinfra.call("@fake/host", "tasks/updates.py", "-y", *fake(answers))
    assert result.returncode == 0
    for words in (*due["alarms"], *due["notes"]):
        assert words in result.stderr
    operations = json.loads(result.stdout)["results"]["operations"]
    assert [one["no_change"] for one in operations if one["name"] == "Report what is due"] == [
        ["@fake/host"]
    ]


REFUSALS: dict[str, tuple[str, list[str], Sequence[str]]] = {
    f"no window: {key}": (
        page,
        fake(machine() | {command(WrongCalendars, calendars=["noon-ish"]): ["noon-ish"]}, **{
            key: "noon-ish"
        }),
        (f"{key}: ", "systemd does not understand 'noon-ish'", "Sun *-*-* 04:00:00"),
    )
    for key in ("updates_reboot", "updates_postgres")
    for page in ("tasks/updates", "deploy")
} | {
    f"a masked timer: {page}": (
        page,
        fake(machine(DEBIAN_13, "masked=apt-daily.timer")),
        ("updates_security: apt-daily.timer is masked on the host; systemctl unmask it, or set "
         "updates_security to False",),
    )
    for page in ("tasks/updates", "deploy")
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses_in_one_line_before_anything_changes(
    refused: dict[str, CompletedProcess[str]], what: str
) -> None:
    refuses(refused[what], REFUSALS[what][2])

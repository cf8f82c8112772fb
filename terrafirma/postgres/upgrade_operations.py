"""PostgreSQL: major upgrades, and the way back to the old cluster."""

from __future__ import annotations

import time
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import FunctionCommand, Host, State, StringCommand

from terrafirma.host.operation import operation
from terrafirma.paths import UPGRADE_LOG, UPGRADE_PROGRAM, UPGRADE_STATE, UPGRADE_UNIT
from terrafirma.postgres.upgrade import Upgrade
from terrafirma.postgres.upgrade_facts import UpgradeProgress

Commands = Generator[StringCommand | FunctionCommand]

# Seconds of silence after which the user is reminded that the upgrade is still running.
_PATIENCE = 15


@operation
def back_up(upgrade: Upgrade) -> Commands:
    """A backup with borgmatic where one is configured, else a dump of all databases on the host."""
    yield from _on_host("backup", upgrade)


@operation
def new_cluster(upgrade: Upgrade) -> Generator[StringCommand]:
    """
    An empty cluster for the data, with the encoding, locale and checksums of the old one.

    A cluster that an earlier upgrade left unfinished is replaced. systemd does not start it yet.
    """
    yield StringCommand(UPGRADE_PROGRAM, "create", str(upgrade.old), str(upgrade.new))


@operation
def move_data(upgrade: Upgrade) -> Commands:
    """
    The new cluster serves all data of the old one; on any failure the old one serves as before.

    pg_upgrade copies the files. It runs in its own unit on the host, so it continues when the
    connection breaks or pyinfra is killed.
    """
    yield from _on_host("upgrade", upgrade)


@operation
def analyse(upgrade: Upgrade) -> Commands:
    """The planner's statistics, in case an upgrade was stopped before it had collected them."""
    yield from _on_host("analyse", upgrade)


@operation
def go_back(upgrade: Upgrade) -> Commands:
    """The old cluster serves as before the upgrade; the new one is set aside."""
    yield from _on_host("back", upgrade)


@operation
def remove_retired(versions: list[int]) -> Generator[StringCommand]:
    """Clusters that an upgrade or the way back set aside are removed, with their data."""
    for version in versions:
        yield StringCommand(UPGRADE_PROGRAM, "clean", str(version), str(version))


@operation
def say(message: str) -> Generator[StringCommand]:
    """Print `message`; changes nothing."""
    host.log_styled(message, fg="yellow")
    host.noop(message)
    yield from ()


def _on_host(action: str, upgrade: Upgrade) -> Commands:
    versions = f"{upgrade.old} {upgrade.new}"
    yield StringCommand(
        f"if test -e /run/systemd/transient/{UPGRADE_UNIT}; then",
        "echo 'upgrade: another upgrade is running; wait until it has ended' >&2; exit 1; fi;",
        f"install -d -m 700 {UPGRADE_STATE} && : > {UPGRADE_LOG} &&",
        f"systemd-run --quiet --collect --unit {UPGRADE_UNIT}",
        # However the unit ends, even with kill -9, the old server is started again.
        f"--property 'ExecStopPost={UPGRADE_PROGRAM} recover {versions}'",
        f"--property StandardOutput=append:{UPGRADE_LOG}",
        f"--property StandardError=append:{UPGRADE_LOG}",
        "--property TimeoutStopSec=600",
        UPGRADE_PROGRAM, action, versions,
    )  # fmt: skip
    yield FunctionCommand(_follow, (), {})


def _follow(state: State, host: Host) -> bool:
    """Print the host's log until the unit has ended; return whether it succeeded."""
    lines: list[str] = []
    started = heard = time.monotonic()
    while True:
        progress = host.get_fact(UpgradeProgress, seen=len(lines))
        failed = False
        for line in progress["lines"]:
            failed = failed or line.startswith("failed: ")
            if line != "finished":
                host.log_styled(line, fg="red") if failed else host.log(line)
        lines += progress["lines"]
        now = time.monotonic()
        if progress["lines"]:
            heard = now
        elif now - heard > _PATIENCE:
            host.log(f"Still running, for {now - started:.0f} s")
            heard = now
        if not progress["running"]:
            break
        time.sleep(0.5)
    if "finished" in lines:
        return True
    if not any(line.startswith("failed: ") for line in lines):
        host.log_styled(f"the unit was stopped: journalctl -u {UPGRADE_UNIT} on the host", fg="red")
    return False

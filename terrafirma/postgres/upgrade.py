"""The plan of commands/postgres_upgrade.py, or the reason why it must not begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple
from weakref import WeakKeyDictionary

from pyinfra.api import DeployError, Host

from terrafirma.host.facts import MachineState
from terrafirma.postgres.settings import Postgres
from terrafirma.postgres.upgrade_facts import UpgradeNeeds, UpgradeState
from terrafirma.postgres.version import choose_postgres, main_version, own_version, wanted_version

MB = 1024  # kB
SPARE = 1024 * MB
"""kB that stay free beside the copy."""


class Upgrade(NamedTuple):
    """From one major version of PostgreSQL to a newer one."""

    old: int
    new: int


@dataclass(frozen=True)
class Plan:
    """The steps to take; all fields but `message` are empty when there is nothing to do."""

    message: str
    """What the command is about to do, or why there is nothing to do."""
    upgrade: Upgrade | None = None
    back: Upgrade | None = None
    clean: tuple[int, ...] = ()
    settle: bool = False
    """Apply your settings afterwards: they may have changed while the cluster was set aside."""
    packages: tuple[str, ...] = ()
    """Packages of the new version for the extensions that the old databases use."""


_upgrading: WeakKeyDictionary[Host, Upgrade] = WeakKeyDictionary()


def upgrading(host: Host) -> Upgrade | None:
    """The upgrade for which commands/postgres_upgrade.py runs tasks/postgres.py; None otherwise."""
    return _upgrading.get(host)


def plan(
    host: Host, settings: Postgres, machine: MachineState, kind: Literal["", "back", "clean"]
) -> Plan:
    """
    What commands/postgres_upgrade.py has to do on this host.

    From now on tasks/postgres.py configures the version that will serve. Raises DeployError, before
    anything changes, when something is in the way.
    """
    wanted = wanted_version(host, settings, machine)
    version = own_version(machine)
    retired = sorted(filter(None, map(main_version, machine["retired_clusters"])))
    if kind == "clean":
        return _clean(machine, retired)
    if version is None:
        return Plan("There is nothing to upgrade: Terrafirma manages no cluster here yet")
    if kind == "back":
        steps = _back(version, retired)
        if steps.settle:
            choose_postgres(host, steps.back.old if steps.back else version)
        return steps
    if version >= wanted:
        return _current(settings, version, wanted)
    if wanted in retired:
        raise DeployError(
            f"{host.name}: upgrade: the retired cluster {wanted}/main is in the way, with "
            "the rows that were written before the way back; remove it first, with "
            "--data upgrade=clean"
        )
    if f"{wanted}/main" in set(machine["clusters"]) - set(machine["unfinished_clusters"]):
        raise DeployError(
            f"{host.name}: upgrade: there is a cluster {wanted}/main that no upgrade "
            "made; move it away"
        )
    upgrade = Upgrade(version, wanted)
    needs = host.get_fact(UpgradeState, old=version, new=wanted)
    _refuse(host, upgrade, needs)
    choose_postgres(host, wanted)
    _upgrading[host] = upgrade
    tight = (
        f". Only {needs['free'] / MB:.0f} MB are free: unless the file systems copy by sharing "
        "blocks, the upgrade ends before the old server stops"
    )
    return Plan(
        f"From PostgreSQL {version} to {wanted}, {needs['size'] / MB:.0f} MB: PostgreSQL is down "
        f"while they are copied; {version}/main is kept, switched off"
        f"{tight if needs['free'] < _needed(needs) else ''}",
        upgrade=upgrade,
        packages=tuple(name for name in needs["packages"] if name != f"postgresql-{wanted}"),
    )


def _needed(needs: UpgradeNeeds) -> int:
    return needs["size"] * 11 // 10 + SPARE


def _refuse(host: Host, upgrade: Upgrade, needs: UpgradeNeeds) -> None:
    if not needs["online"]:
        raise DeployError(
            f"{host.name}: upgrade: {upgrade.old}/main does not run; start it first "
            f"(systemctl start postgresql@{upgrade.old}-main)"
        )
    if needs["inside"]:
        raise DeployError(
            f"{host.name}: upgrade: the tablespace in {needs['inside'][0]} is inside "
            f"the data directory of {upgrade.old}/main, and would be removed with it; move it out"
        )
    needed = _needed(needs)
    if needs["free"] < needed and not needs["may_share"]:
        raise DeployError(
            f"{host.name}: upgrade: {needs['free'] / MB:.0f} MB are free on the disk of "
            f"/var/lib/postgresql, {needed / MB:.0f} MB are needed: {needs['size'] / MB:.0f} MB of "
            f"data, a tenth more, and {SPARE / MB:.0f} MB; make room"
        )
    if needs["missing"]:
        raise DeployError(
            f"{host.name}: upgrade: the databases use extensions, and the package lists have no "
            f"{', '.join(needs['missing'])}; add the source of that package, or drop the extension"
        )


def _current(settings: Postgres, version: int, wanted: int) -> Plan:
    if version == wanted:
        why = f"postgres_version is {wanted}" if settings.version else "the distribution's own"
        return Plan(f"There is nothing to upgrade: {version}/main runs, {why}")
    return Plan(f"There is nothing to upgrade: {version}/main is newer than {wanted}")


def _back(version: int, retired: list[int]) -> Plan:
    older = [one for one in retired if one < version]
    if newer := [one for one in retired if one > version]:
        # Running the same command twice goes back once.
        return Plan(
            f"{version}/main is back already: {newer[-1]}/main is kept, switched off", settle=True
        )
    if not older:
        return Plan(f"There is no way back: nothing older than {version}/main is kept")
    return Plan(
        f"Back to {older[-1]}/main, as it was before the upgrade: rows written since then stay in "
        f"{version}/main only, which is kept, switched off. Set postgres_version = {older[-1]}, "
        "else the next run stops",
        back=Upgrade(older[-1], version),
        settle=True,
    )


def _clean(machine: MachineState, retired: list[int]) -> Plan:
    if not retired:
        return Plan("There is no retired cluster to remove")
    names = ", ".join(f"{version}/main" for version in retired)
    return Plan(f"Removing {names}, with all its data", clean=tuple(retired))

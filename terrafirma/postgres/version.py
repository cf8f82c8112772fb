"""Which major version of PostgreSQL a host has, and which one it should have."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from pyinfra.api import DeployError, Host

from terrafirma.host.facts import MachineState
from terrafirma.host.machine import distribution
from terrafirma.paths import UPGRADE_LOG
from terrafirma.postgres.settings import Postgres

# Versions set by `choose_postgres`.
_chosen: WeakKeyDictionary[Host, int] = WeakKeyDictionary()


def own_version(machine: MachineState) -> int | None:
    """The major version of the cluster N/main that Terrafirma manages; None before the first."""
    aside = {*machine["retired_clusters"], *machine["unfinished_clusters"]}
    mains = [main_version(name) for name in machine["own_clusters"] if name not in aside]
    return max((version for version in mains if version is not None), default=None)


def wanted_version(host: Host, settings: Postgres, machine: MachineState) -> int:
    """
    The major version in your settings; the distribution's own if the setting is None.

    Raises DeployError when the host cannot have a cluster of this version: its package archives do
    not offer it, a cluster that Terrafirma did not make is in the way, or an upgrade is running.
    """
    if machine["upgrading"]:
        raise DeployError(
            f"{host.name}: upgrade: a major upgrade of PostgreSQL is going on there; wait "
            f"until it has ended (tail -f {UPGRADE_LOG})"
        )
    own = distribution(machine).postgres
    wanted = settings.major or own
    # The distribution always has its own version, even if the package lists are missing or old.
    offered = sorted({own, *machine["postgres_offered"]})
    if wanted not in offered:
        versions = [str(version) for version in offered]
        raise DeployError(
            f"{host.name}: postgres_version: {machine['name']} has {' and '.join(versions)}, "
            f"not {wanted}; set it to {', '.join(versions)} or None"
        )
    ours = {name for name in machine["own_clusters"] if main_version(name) is not None}
    for name in machine["clusters"]:
        if name not in ours and name.partition("/")[0] != str(wanted):
            whose = "holds your data" if name in machine["own_clusters"] else "is not ours"
            raise DeployError(
                f"{host.name}: postgres_version: this would make a new cluster {wanted}/main "
                f"beside {name}, which {whose}; upgrade or move that one first "
                "(man pg_upgradecluster)"
            )
    main = f"{wanted}/main"
    if main in machine["clusters"] and main not in ours and not settings.adopt:
        raise DeployError(
            f"{host.name}: postgres_adopt: the cluster {main} on the host is not ours; set it to "
            "True to take it over (pg_hba.conf is replaced, the old one kept), or move it away"
        )
    return wanted


def postgres_version(host: Host, settings: Postgres, machine: MachineState) -> int:
    """
    The major version that tasks configure on this host.

    Raises DeployError as `wanted_version` does, and when the data are in a cluster of another
    version: a new, empty cluster beside it is never intended.
    """
    if host in _chosen:
        return _chosen[host]
    wanted = wanted_version(host, settings, machine)
    version = own_version(machine)
    main = f"{wanted}/main"
    if version is None and main in (*machine["retired_clusters"], *machine["unfinished_clusters"]):
        raise DeployError(
            f"{host.name}: postgres_version: the cluster {main} was set aside by an upgrade, and "
            "the one in its place is gone; keep a copy of what you need, and remove it "
            f"(pg_dropcluster {wanted} main)"
        )
    if version is None or version == wanted:
        return wanted
    if version > wanted:
        back = (
            f"; the retired {main}, without the rows since the upgrade, comes back with "
            "commands/postgres_upgrade.py --data upgrade=back"
            if main in machine["retired_clusters"]
            else ""
        )
        raise DeployError(
            f"{host.name}: postgres_version: the cluster {version}/main holds your data, and "
            f"cannot be downgraded to {wanted}; set it to {version}{back}"
        )
    raise DeployError(
        f"{host.name}: postgres_version: the cluster {version}/main holds your data, and {wanted} "
        f"is wanted{_why(machine, settings)}; upgrade it with commands/postgres_upgrade.py, or set "
        f"postgres_version = {version} to stay with it"
    )


def choose_postgres(host: Host, version: int) -> None:
    """Make `version` the one that tasks configure on `host`, from now until the run ends."""
    _chosen[host] = version


def main_version(name: str) -> int | None:
    """The version N of a cluster named N/main; None for any other name."""
    version, _, cluster = name.partition("/")
    return int(version) if cluster == "main" and version.isdigit() else None


def _why(machine: MachineState, settings: Postgres) -> str:
    return f" (None: what {machine['name']} has)" if settings.version is None else ""

"""What each task starts with: a host that it can work on, and root's rights there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from pyinfra.api import DeployError, Host

from terrafirma.facts.machine import PACKAGES, Machine, MachineState
from terrafirma.paths import UPGRADE_LOG
from terrafirma.settings import Postgres, Preflight


@dataclass(frozen=True)
class Distribution:
    """What a supported distribution's own archive holds."""

    postgres: int
    docker: tuple[str, ...]
    engine: tuple[int, int]
    compose: bool = True  # Docker Compose v2 and buildx are among `docker`
    pooled_statements: bool = True  # PgBouncer 1.21 or newer follows prepared statements


# apparmor: Debian's kernels have it on, and no container starts without its parser.
_ENGINE = ("docker.io", "apparmor", "iptables")
DISTRIBUTIONS = {
    ("debian", "13"): Distribution(
        17, (*_ENGINE, "docker-cli", "docker-compose", "docker-buildx"), (26, 1)
    ),
    ("debian", "12"): Distribution(15, _ENGINE, (20, 10), compose=False, pooled_statements=False),
    ("ubuntu", "24.04"): Distribution(
        16, (*_ENGINE, "docker-compose-v2", "docker-buildx"), (24, 0)
    ),
}
ARCHITECTURES = ("amd64", "arm64")

# Asked once a run for each host: none of it changes while the run lasts.
_known: WeakKeyDictionary[Host, MachineState] = WeakKeyDictionary()
# What `choose_postgres` was told.
_chosen: WeakKeyDictionary[Host, int] = WeakKeyDictionary()


def ready(host: Host) -> MachineState:
    """
    What kind of host this is; from here on operations and facts run there as root.

    Waits, and says so, until cloud-init has finished. Raises DeployError for a host that Terrafirma
    does not support, and for a user who cannot become root: before anything changes.
    """
    if host in _known:
        return _known[host]
    # Whoever is connected, also where pyinfra was told to use sudo for everything: that name is the
    # one that sshd must go on letting in.
    machine = host.get_fact(Machine, _sudo=False)
    deadline = time.monotonic() + Preflight.of(host).wait_seconds
    while machine["booting"]:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeployError(
                f"{host.name}: preflight_wait_seconds: cloud-init is still not finished; "
                "see `cloud-init status --long` there"
            )
        host.log(f"Waiting for cloud-init to finish, {left:.0f} s left")
        time.sleep(min(5, left))
        machine = host.get_fact(Machine, _sudo=False)
    refuse_unsupported(host, machine)
    if not machine["root"]:
        # `_sudo` is what pyinfra reads for every operation and fact of this host.
        host.data._sudo = True
    _known[host] = machine
    return machine


def refuse_unsupported(host: Host, machine: MachineState) -> None:
    """Raise DeployError unless the host is one that Terrafirma supports."""
    supported = ", ".join(f"{name.title()} {version}" for name, version in DISTRIBUTIONS)
    if (machine["id"], machine["version"]) not in DISTRIBUTIONS:
        raise DeployError(
            f"{host.name}: distribution: {machine['name']} is not supported; use {supported}"
        )
    if machine["architecture"] not in ARCHITECTURES:
        raise DeployError(
            f"{host.name}: architecture: {machine['architecture']} is not supported; "
            f"use {' or '.join(ARCHITECTURES)}"
        )
    if not machine["systemd"]:
        raise DeployError(
            f"{host.name}: systemd: it does not run there (a plain container?); "
            "use a server or a virtual machine that boots with it"
        )
    if machine["missing"]:
        packages = sorted({PACKAGES[program] for program in machine["missing"]})
        raise DeployError(
            f"{host.name}: programs: {', '.join(machine['missing'])} missing there; install them "
            f"first: apt-get install {' '.join(packages)}"
        )
    if not (machine["root"] or machine["sudo"] or host.data.get("_sudo_password")):
        raise DeployError(
            f"{host.name}: ssh_user: {machine['user']!r} is neither root nor may it use sudo "
            f"without a password ({machine['sudo_answer'] or 'no answer'}); connect as root "
            "(--user root) or as an account with sudo"
        )


def distribution(machine: MachineState) -> Distribution:
    """What the archive of a supported host's distribution holds."""
    return DISTRIBUTIONS[machine["id"], machine["version"]]


def own_version(machine: MachineState) -> int | None:
    """The major version of the cluster N/main that holds our data; None where there is none yet."""
    aside = {*machine["retired_clusters"], *machine["unfinished_clusters"]}
    mains = [main_version(name) for name in machine["own_clusters"] if name not in aside]
    return max((version for version in mains if version is not None), default=None)


def wanted_version(host: Host, settings: Postgres) -> int:
    """
    The major version that the data ask for; None is the distribution's own.

    Raises DeployError when the host can have no cluster of it, whatever clusters of ours there are:
    its archives do not offer it, somebody else's cluster is there, or an upgrade is going on.
    """
    machine = ready(host)
    if machine["upgrading"]:
        raise DeployError(
            f"{host.name}: postgres_upgrade: a major upgrade of PostgreSQL is going on there; wait "
            f"until it has ended (tail -f {UPGRADE_LOG})"
        )
    own = distribution(machine).postgres
    wanted = settings.version or own
    # Lists that are missing or old say nothing against what the distribution is known to have.
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


def postgres_version(host: Host, settings: Postgres) -> int:
    """
    The major version for this host.

    Raises DeployError when the archives do not have the wanted one, when our data are in a cluster
    of another version (a new and empty one beside it is never what was meant), when a cluster is
    somebody else's, and while a major upgrade is going on.
    """
    if host in _chosen:
        return _chosen[host]
    wanted = wanted_version(host, settings)
    machine = ready(host)
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
            "tasks/postgres_upgrade.py --data postgres_upgrade=back"
            if main in machine["retired_clusters"]
            else ""
        )
        raise DeployError(
            f"{host.name}: postgres_version: the cluster {version}/main holds your data, and there "
            f"is no way down to {wanted}; set it to {version}{back}"
        )
    raise DeployError(
        f"{host.name}: postgres_version: the cluster {version}/main holds your data, and {wanted} "
        f"is wanted{_why(machine, settings)}; upgrade it with tasks/postgres_upgrade.py, or set "
        f"postgres_version = {version} to stay with it"
    )


def choose_postgres(host: Host, version: int) -> None:
    """From here on this is the version for `host`: that of the cluster to come."""
    _chosen[host] = version


def main_version(name: str) -> int | None:
    """The version of a cluster that is called N/main."""
    version, _, cluster = name.partition("/")
    return int(version) if cluster == "main" and version.isdigit() else None


def _why(machine: MachineState, settings: Postgres) -> str:
    return f" (None: what {machine['name']} has)" if settings.version is None else ""

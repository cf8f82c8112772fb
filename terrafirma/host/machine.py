"""The machines that Terrafirma supports, and how a run becomes root there."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from pyinfra.api import DeployError, Host

from terrafirma.host.facts import PACKAGES, Machine, MachineState


@dataclass(frozen=True)
class Distribution:
    """The versions and packages in the archive of a supported distribution."""

    codename: str  # in the names of an archive's suites
    postgres: int
    docker: tuple[str, ...]
    engine: tuple[int, int]
    compose: bool = True  # Docker Compose v2 and buildx are among `docker`
    pooled_statements: bool = True  # PgBouncer 1.21 or newer follows prepared statements
    caddy: bool = True
    borgmatic: bool = True  # 1.7 or newer


# apparmor: Debian's kernels enable AppArmor, and then no container starts without its parser.
_ENGINE = ("docker.io", "apparmor", "iptables")
# The versions in the archives. They pin nothing: `packages` installs names without a version.
DISTRIBUTIONS = {
    ("debian", "13"): Distribution(
        "trixie", 17, (*_ENGINE, "docker-cli", "docker-compose", "docker-buildx"), (26, 1)
    ),
    ("debian", "12"): Distribution(
        "bookworm", 15, _ENGINE, (20, 10), compose=False, pooled_statements=False
    ),
    ("ubuntu", "26.04"): Distribution(
        "resolute", 18, (*_ENGINE, "docker-compose-v2", "docker-buildx"), (29, 1)
    ),
    # The oldest possible engine: updates of the distribution bring newer ones, with more keys.
    ("ubuntu", "24.04"): Distribution(
        "noble", 16, (*_ENGINE, "docker-compose-v2", "docker-buildx"), (24, 0)
    ),
    # Supported only with the vendors' packages, see `refuse_source`.
    ("ubuntu", "22.04"): Distribution(
        "jammy", 14, _ENGINE, (20, 10),
        compose=False, pooled_statements=False, caddy=False, borgmatic=False,
    ),
}  # fmt: skip
ARCHITECTURES = ("amd64", "arm64")

# The least that the vendors offer; the exact versions are in a host's package lists.
VENDORS_POSTGRES = (15, 16, 17, 18)
VENDORS_ENGINE = (28, 0)
# Where the distribution's own PostgreSQL is too old for this platform, the default replaces it.
OLDEST_POSTGRES, DEFAULT_POSTGRES = 15, 17

# Asked once for each host in a run, during which it stays the same.
_known: WeakKeyDictionary[Host, MachineState] = WeakKeyDictionary()


def ready(host: Host, wait_seconds: int) -> MachineState:
    """
    The state of the machine `host`. From here on, operations and facts there run as root.

    Waits up to `wait_seconds` for cloud-init, and for the change of another run that is neither
    proved nor undone yet, and says so. Raises DeployError, before anything changes, for a host that
    Terrafirma does not support and for a user who cannot become root.
    """
    if host in _known:
        return _known[host]
    # Ask as the login user even when pyinfra uses sudo for everything: sshd must keep admitting
    # that user.
    machine = host.get_fact(Machine, _sudo=False)
    deadline = time.monotonic() + wait_seconds
    while machine["booting"] or machine["guarded"]:
        left = deadline - time.monotonic()
        what, see = (
            ("cloud-init", "cloud-init status --long")
            if machine["booting"]
            else ("the change of another run", "systemctl status terrafirma-guard.service")
        )
        if left <= 0:
            raise DeployError(
                f"{host.name}: preflight_wait_seconds: {what} is still not finished; "
                f"see `{see}` there"
            )
        host.log(f"Waiting for {what} to finish, {left:.0f} s left")
        time.sleep(min(5, left))
        machine = host.get_fact(Machine, _sudo=False)
    refuse_unsupported(host, machine)
    if not machine["root"]:
        # pyinfra reads `_sudo` for every operation and fact of this host.
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


def refuse_source(host: Host, machine: MachineState, source: str, *, backups: bool) -> None:
    """
    Raise DeployError if the distribution's archive lacks a package that the settings need.

    + source: `apt_source`
    + backups: whether backups are configured
    """
    held = distribution(machine)
    if source == "distro" and not held.caddy:
        raise DeployError(
            f"{host.name}: apt_source: {machine['name']}'s archive has no Caddy; "
            "use apt_source = 'upstream'"
        )
    if backups and not held.borgmatic:
        raise DeployError(
            f"{host.name}: borg_repository: {machine['name']}'s borgmatic is too old, and the "
            "vendors have none; use a newer release, or leave borg_repository empty"
        )


def with_source(machine: MachineState, source: str) -> MachineState:
    """The same machine, whose engines come from `source`."""
    offered = VENDORS_POSTGRES if source == "upstream" else ()
    return {
        **machine,
        "source": source,
        # The same run refreshes the host's package lists for that source.
        "postgres_offered": sorted({*machine["postgres_offered"], *offered}),
    }


def distribution(machine: MachineState) -> Distribution:
    """The versions and packages that a supported host can install, vendors' included."""
    held = DISTRIBUTIONS[machine["id"], machine["version"]]
    if machine["source"] != "upstream":
        return held
    return replace(
        held,
        postgres=held.postgres if held.postgres >= OLDEST_POSTGRES else DEFAULT_POSTGRES,
        engine=max(held.engine, VENDORS_ENGINE),
        compose=True,
        caddy=True,
    )

"""Add the vendors' repositories to a host, and install the engines."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from urllib.parse import quote, urlsplit
from weakref import WeakSet

from pyinfra import host
from pyinfra.api import DeployError, FunctionCommand, Host, StringCommand

from terrafirma.apt import versions
from terrafirma.apt.engines import UPGRADE, EngineName, Plan, plan
from terrafirma.apt.engines import engine as engine_from
from terrafirma.apt.facts import OfferedPackages, Offers
from terrafirma.apt.settings import PROXY_PASSWORD, Apt, VendorName
from terrafirma.apt.vendors import VENDORS, Repository, repository
from terrafirma.fields import here
from terrafirma.host.asking import ask
from terrafirma.host.facts import MachineState
from terrafirma.host.files import PathState, path_states
from terrafirma.host.given import HiddenText, value
from terrafirma.host.machine import distribution
from terrafirma.host.operation import failure, operation
from terrafirma.host.packages import (
    Installed,
    InstalledPackages,
    holding,
    installation,
    prepare,
)
from terrafirma.paths import HOST_PROGRAM, REPOSITORIES
from terrafirma.postgres.settings import Postgres
from terrafirma.server import Server

# Hosts that commands/upgrade.py is upgrading.
_upgrading: WeakSet[Host] = WeakSet()


def allow_upgrade(host: Host) -> None:
    """Let the tasks of this run accept any installed engine: the upgrade replaces it later."""
    _upgrading.add(host)


# Shell commands that fetch one of the host's indexes through the proxy in `$new`. A source that is
# down, or has its index elsewhere, does not count against the proxy.
PROXY_WORKS = (
    "indexes=$(apt-get indextargets --format '$(REPO_URI)dists/$(RELEASE)/InRelease' "
    '"Created-By: Packages" | grep "^http" | sort -u); test -n "$indexes" || exit 0; '
    "failed=; got=$(mktemp); for index in $indexes; do "
    'said=$(/usr/lib/apt/apt-helper -c "$new" -o APT::Sandbox::User=root -o Acquire::Retries=0 '
    '-o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 download-file "$index" "$got" 2>&1)'
    ' && {{ rm -f "$got"; exit 0; }}; '
    'why=$(echo "$said" | grep -m 1 -A 1 "^Err" | tail -n 1 | sed "s/^ *//"); '
    'test -n "$failed" || failed="$index: $why"; done; rm -f "$got"; '
    'echo "apt_proxy: "{proxy}" does not fetch $failed" >&2; exit 1'
)

# --- sources --------------------------------------------------------------------------------------


def repositories_of(apt: Apt, machine: MachineState) -> list[Repository]:
    """The repositories of all vendors, as this host would use them."""
    return [
        repository(
            name,
            distribution=machine["id"],
            codename=distribution(machine).codename,
            architecture=machine["architecture"],
            urls=apt.urls,
        )
        for name in VENDORS
    ]


def keys_of(host: Host, apt: Apt) -> dict[VendorName, bytes]:
    """The contents of the files in `apt_keys`; raises DeployError if a file cannot be read."""
    found: dict[VendorName, bytes] = {}
    for name, path in apt.keys.items():
        try:
            found[name] = here(path).read_bytes()
        except OSError as error:
            raise DeployError(
                f"{host.name}: apt_keys: {name}: cannot read {path!r} ({error.strerror})"
            ) from None
        # Whose key it is, the host says; what is none at all leaves this machine for no host.
        begins = b"-----BEGIN PGP PUBLIC KEY BLOCK-----"
        if len(found[name]) > 1 << 20 or not (found[name][:1] >= b"\x80" or begins in found[name]):
            raise DeployError(
                f"{host.name}: apt_keys: {name}: {path!r} is no public OpenPGP key; name a "
                f"file with that of {VENDORS[name].title}"
            )
    return found


def proxy_of(host: Host, apt: Apt) -> HiddenText:
    """`apt_proxy` with its password; raises DeployError if the password is not given."""
    parts = urlsplit(apt.proxy)
    if parts.username is None:
        return HiddenText(apt.proxy)
    password = value(host, "apt_proxy", f"env:{PROXY_PASSWORD}")
    user = f"{parts.username}:{quote(password, safe='')}"
    return HiddenText(f"{parts.scheme}://{user}@{parts.netloc.rpartition('@')[2]}")


def record_path(one: Repository) -> str:
    return f"{REPOSITORIES}/{one.vendor.name}"


def record(one: Repository, key: bytes | None) -> str:
    """The properties for which a repository was tested: if one changes, it is tested again."""
    whose = hashlib.sha256(key).hexdigest() if key is not None else "fetched"
    return f"{one.head}{' '.join(one.vendor.fingerprints)}\nkey {whose}\n"


def is_right(one: Repository, key: bytes | None, states: Mapping[str, PathState]) -> bool:
    """Whether the source on the host is unchanged since it was tested for the same properties."""
    source, noted = states.get(one.path), states.get(record_path(one))
    if source is None or noted is None or source["mode"] != "644" or source["user"] != "root":
        return False
    tested = f"{record(one, key)}sha256 {source['sha256']}\n"
    return noted["sha256"] == hashlib.sha256(tested.encode()).hexdigest()


@operation
def repositories(
    wanted: Sequence[Repository], keys: Mapping[VendorName, bytes], wait_seconds: int
) -> Generator[StringCommand]:
    """
    Add the vendors' repositories to apt's sources, each signed by its pinned key.

    pyinfra's apt.repo and apt.key accept any key that is at an address, and leave a failing source
    in place, which breaks every later `apt-get update` on the host. Here the host tests each
    repository first (files/terrafirma_host/repositories.py). If a source is unchanged since it was
    tested, nothing is fetched.
    """
    paths = [path for one in wanted for path in (one.path, record_path(one))]
    states = path_states(paths) if paths else {}
    right = True
    for one in wanted:
        key = keys.get(one.vendor.name)
        if not is_right(one, key, states):
            right = False
            yield StringCommand(
                HOST_PROGRAM, "repositories set", _stdin=_request(one, key, wait_seconds)
            )
    if right:
        host.noop(f"{', '.join(one.path for one in wanted)}: as wanted")


def _request(one: Repository, key: bytes | None, wait_seconds: int) -> str:
    """The input of `terrafirma repositories set`."""
    return json.dumps(
        {
            "title": one.vendor.title,
            "url": one.url,
            "suite": one.suite,
            "architecture": one.architecture,
            "path": one.path,
            "head": one.head,
            "fingerprints": one.vendor.fingerprints,
            "key_urls": one.key_urls,
            "key": None if key is None else base64.b64encode(key).decode(),
            "probe": one.vendor.probe,
            "record": record(one, key),
            "record_path": record_path(one),
            "wait_seconds": wait_seconds,
        }
    )


# --- engines --------------------------------------------------------------------------------------


def prefix_of(server: Server, name: EngineName, major: int) -> str:
    """The version that the settings ask for; empty for another major version of PostgreSQL."""
    return {
        "docker": server.docker.version,
        "postgres": _minor(server.postgres, major),
        "caddy": server.caddy.version,
    }[name]


def _minor(postgres: Postgres, major: int) -> str:
    # The name of the package contains the major version.
    prefix = postgres.prefix_of_version
    return prefix if prefix.startswith(f"{major}.") else ""


def plan_of(
    server: Server,
    machine: MachineState,
    name: EngineName,
    major: int,
    *,
    installed: Installed,
    offers: Offers,
) -> Plan:
    """Compare an engine with the settings; `major` is the major version of PostgreSQL."""
    return plan(
        engine_from(name, server.apt.source, distribution(machine), major),
        prefix_of(server, name, major),
        installed=installed,
        offers=offers,
        repositories=repositories_of(server.apt, machine),
    )


def look(
    host: Host, server: Server, machine: MachineState, name: EngineName, major: int = 0
) -> Plan:
    """
    Compare an engine with the settings, before anything changes.

    Reports a newer version. Raises DeployError if the settings do not allow the installed version,
    because only commands/upgrade.py replaces it.
    """
    one = plan_of(
        server, machine, name, major,
        installed=ask(host, InstalledPackages), offers=ask(host, OfferedPackages),
    )  # fmt: skip
    if host in _upgrading:
        return one
    if one.refusal:
        raise DeployError(f"{host.name}: {one.refusal}")
    if one.newer:
        host.log_styled(f"{one.summary}: run {UPGRADE} to upgrade", fg="yellow")
    return one


@operation
def install(
    server: Server, machine: MachineState, engine: EngineName, major: int = 0
) -> Generator[StringCommand | FunctionCommand]:
    """
    Install an engine and hold it, so that only commands/upgrade.py changes its version.

    The first installation takes the newest version that the settings allow. An installed engine
    keeps its version, and gets its missing packages. pyinfra's apt.packages does not support holds,
    and supports exact versions only.
    """

    def now(offers: Offers) -> Plan:
        return plan_of(
            server, machine, engine, major, installed=ask(host, InstalledPackages), offers=offers
        )

    one = now({})
    if one.missing:
        yield from prepare(host)
        if not one.installed:
            one = now(host.get_fact(OfferedPackages))
            if words := one.refused_version or one.nothing_offered:
                yield failure(words)
                return
        # Adding a missing package must not change the version of an installed engine.
        first = not one.installed
        yield installation(_versions(one), one.in_the_way if first else (), held=first)
        one = now({})
    # With --dry, nothing has been installed yet.
    if one.loose:
        yield holding(one.loose)
    elif not one.missing:
        host.noop(f"{one.engine.title} {versions.upstream(one.installed)}: installed and held")


def _versions(one: Plan) -> dict[str, str]:
    """The packages to install, with versions; for an installed engine only the missing ones."""
    if one.installed:
        return {name: one.installed if name in one.engine.lockstep else "" for name in one.missing}
    # If the settings name no version, let apt choose versions that fit together.
    return dict(one.pins) if one.prefix else dict.fromkeys(one.engine.packages, "")

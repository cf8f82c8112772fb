"""
The engines, Docker, PostgreSQL and Caddy, and the versions of them that a host should have.

Everything here is computed from facts that the caller passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from terrafirma.apt import versions
from terrafirma.apt.settings import Source, VendorName
from terrafirma.apt.vendors import VENDORS, Repository
from terrafirma.postgres.settings import NEWEST, OLDEST

if TYPE_CHECKING:
    from terrafirma.apt.facts import Offers
    from terrafirma.host.machine import Distribution
    from terrafirma.host.packages import Installed

EngineName = Literal["docker", "postgres", "caddy"]
ENGINES: tuple[EngineName, ...] = ("docker", "postgres", "caddy")
"""In the order in which `deploy.py` installs them."""

# Packages that an engine needs, but that are not a part of it: apt upgrades them as usual.
_NOT_HELD = ("apparmor", "iptables")
_DOCKER_CE = ("docker-ce-cli", "docker-ce-rootless-extras")
_DOCKER_BESIDE = ("containerd.io", "docker-buildx-plugin", "docker-compose-plugin")
_DOCKER_DISTRO = (
    *("docker.io", "docker-cli", "docker-buildx", "docker-compose", "docker-compose-v2"),
    *("docker-doc", "podman-docker", "containerd", "runc"),
)
"""Packages that Docker's instructions remove first, and those into which Debian splits Docker."""

_POSTGRES = tuple(
    f"postgresql-{kind}{major}" for kind in ("", "client-") for major in range(OLDEST, NEWEST + 1)
)
ALL_PACKAGES = ("caddy", "docker-ce", *_DOCKER_CE, *_DOCKER_BESIDE, *_DOCKER_DISTRO, *_POSTGRES)
"""The packages of all engines, so that one fact finds out which versions a host is offered."""

UPGRADE = "commands/upgrade.py"


@dataclass(frozen=True)
class Engine:
    """An engine, as packaged by one source."""

    name: EngineName
    title: str
    key: str
    """The setting that chooses the version."""
    source: Source
    vendor: VendorName
    """The vendor whose repository has the packages if `source` is "upstream"."""
    main: str
    """The package whose version is the version of the engine."""
    lockstep: tuple[str, ...]
    """Packages that must have the same version as `main`."""
    beside: tuple[str, ...]
    """Further packages, always in their newest version."""
    held: tuple[str, ...]
    """Packages that only commands/upgrade.py changes once they are installed."""
    conflicts: tuple[str, ...]
    """Packages that cannot be installed at the same time."""
    units: tuple[str, ...]
    """Units that an upgrade restarts."""

    @property
    def packages(self) -> tuple[str, ...]:
        return (self.main, *self.lockstep, *self.beside)


def engine(name: EngineName, source: Source, distribution: Distribution, major: int = 0) -> Engine:
    """
    The packages and units of an engine on a host.

    + distribution: the release of the host
    + major: the major version of PostgreSQL
    """
    if name == "postgres":
        main, client = f"postgresql-{major}", f"postgresql-client-{major}"
        return Engine(
            name=name, title="PostgreSQL", key="postgres_version", source=source, vendor="pgdg",
            main=main, lockstep=(client,),
            # All major versions share these packages, so they must come from PGDG as well.
            beside=("postgresql-common", "postgresql-client-common", "libpq5")
            if source == "upstream" else (),
            held=(main, client), conflicts=(), units=(f"postgresql@{major}-main.service",),
        )  # fmt: skip
    if name == "caddy":
        return Engine(
            name=name, title="Caddy", key="caddy_version", source=source, vendor="caddy",
            main="caddy", lockstep=(), beside=(), held=("caddy",), conflicts=(),
            units=("caddy.service",),
        )  # fmt: skip
    units = ("docker.service", "containerd.service")
    # Debian's kernels enable AppArmor, and no container starts without its parser.
    if source == "upstream":
        return Engine(
            name=name, title="Docker", key="docker_version", source=source, vendor="docker",
            main="docker-ce", lockstep=("docker-ce-cli",), beside=(*_DOCKER_BESIDE, *_NOT_HELD),
            held=("docker-ce", *_DOCKER_CE, *_DOCKER_BESIDE), conflicts=_DOCKER_DISTRO, units=units,
        )  # fmt: skip
    beside = tuple(one for one in distribution.docker if one != "docker.io")
    return Engine(
        name=name, title="Docker", key="docker_version", source=source, vendor="docker",
        main="docker.io", lockstep=(), beside=beside,
        held=("docker.io", *(one for one in beside if one not in _NOT_HELD), "containerd", "runc"),
        conflicts=("docker-ce", *_DOCKER_CE, *_DOCKER_BESIDE, "podman-docker"), units=units,
    )  # fmt: skip


def source_of(name: EngineName, installed: Installed, major: int = 0) -> tuple[Source | None, str]:
    """The source and the version of the engine on a host; None and "" if it is not installed."""
    if name == "docker":
        for source, main in _DOCKERS:
            if main in installed:
                return source, installed[main]["version"]
        return None, ""
    main = "caddy" if name == "caddy" else f"postgresql-{major}"
    if main not in installed:
        return None, ""
    version = installed[main]["version"]
    return "upstream" if is_vendors(name, version) else "distro", version


def is_vendors(name: str, version: str) -> bool:
    """Whether a version of Caddy or PostgreSQL is the vendor's."""
    # Caddy's own packages have no revision; PGDG's versions contain "pgdg".
    return "-" not in version if name == "caddy" else "pgdg" in version


_DOCKERS: tuple[tuple[Source, str], ...] = (("upstream", "docker-ce"), ("distro", "docker.io"))


@dataclass(frozen=True)
class Plan:
    """The installed and the wanted version of an engine, and what prevents the change."""

    engine: Engine
    prefix: str
    installed: str
    """The installed version of the engine, from either source; empty if there is none."""
    installed_source: Source | None
    offered: tuple[str, ...]
    """The versions of `engine.main` that `engine.source` offers, by the host's package lists."""
    chosen: str
    """The newest offered version that the settings allow; empty if there is none."""
    pins: Mapping[str, str]
    """The version of each package that goes with `chosen`; empty: the newest."""
    missing: tuple[str, ...]
    """Packages of the engine that are not installed."""
    loose: tuple[str, ...]
    """Packages that are installed and should be held, but are not."""
    in_the_way: tuple[str, ...]
    """Installed packages that conflict with the engine."""

    @property
    def moves(self) -> bool:
        """Whether the installed engine comes from another source than the settings ask for."""
        return self.installed_source not in (None, self.engine.source)

    @property
    def newer(self) -> str:
        """The version that an upgrade would install; empty if there is none."""
        if not (self.installed and self.chosen):
            return ""
        return self.chosen if versions.compare(self.chosen, self.installed) > 0 else ""

    @property
    def numbers(self) -> tuple[int, int] | None:
        """The major and minor version, installed or to be installed; None if unknown."""
        known = versions.upstream(self.installed or self.chosen) or self.prefix
        major, _, rest = known.partition(".")
        return (int(major), int(rest.partition(".")[0] or 0)) if known else None

    @property
    def summary(self) -> str:
        """The installed version → the wanted one, for people."""
        title = self.engine.title
        now = versions.upstream(self.installed)
        then = versions.upstream(self.chosen) or self.prefix or "the newest"
        if not self.installed:
            return f"{title}: {then}"
        if self.moves:
            return f"{title}: {now} of {_whose(self.installed_source)} → {then} of {self.whose}"
        return f"{title}: {now} → {then}" if self.newer else f"{title}: {now}"

    @property
    def whose(self) -> str:
        return _whose(self.engine.source, self.engine.vendor)

    @property
    def refusal(self) -> str:
        """Why `deploy.py` must stop, in a message that begins with the key; empty: it may go on."""
        return self.refused_move or self.refused_version

    @property
    def refused_move(self) -> str:
        if not self.moves:
            return ""
        there = f"{self.engine.title} {versions.upstream(self.installed)} on the host"
        if self.engine.source == "distro":
            return (
                f"apt_source: {there} is the vendor's, and 'distro' would install an older one, "
                "which may be unable to read its data; use apt_source = 'upstream'"
            )
        return (
            f"apt_source: {there} is the distribution's; run {UPGRADE}, which shows what the "
            "change interrupts, and replaces it with the vendor's"
        )

    @property
    def refused_version(self) -> str:
        """Like `refusal`, but allows a change of the source."""
        now, key = versions.upstream(self.installed), self.engine.key
        if self.installed and versions.matches(self.installed, self.prefix):
            return ""
        if self.offered and not self.chosen:
            other = " (or with apt_source = 'upstream')" if self.engine.source == "distro" else ""
            have = f"; {now} is installed" if now else ""
            return (
                f"{key}: {self.whose} offers {versions.listed(self.offered)}, not "
                f"{self.prefix or 'a release'}{have}; use one of these{other}, or leave it "
                f"{self._empty}"
            )
        if not self.installed:
            return ""
        if self.newer or (not self.chosen and _above(self.prefix, now)):
            return f"{key}: {self.prefix} is wanted, and {now} is installed; run {UPGRADE}"
        return (
            f"{key}: {self.prefix} is wanted, and {now} is installed, which cannot be downgraded; "
            f"set it to {now!r}, or leave it {self._empty}"
        )

    @property
    def nothing_offered(self) -> str:
        """Why the wanted version cannot be installed, by fresh package lists; empty if it can."""
        if self.chosen or not self.prefix:
            return ""
        return f"{self.engine.key}: {self.whose} offers no {self.engine.main} to this host"

    @property
    def _empty(self) -> str:
        return "at the major" if self.engine.name == "postgres" else "empty"


def _whose(source: Source | None, vendor: VendorName | None = None) -> str:
    if source == "distro":
        return "the distribution"
    return VENDORS[vendor].title if vendor else "the vendor"


def _above(prefix: str, version: str) -> bool:
    numbers = [int(part) for part in prefix.split(".")]
    return numbers > [int(part) for part in version.split(".")][: len(numbers)]


def plan(
    engine: Engine,
    prefix: str,
    *,
    installed: Installed,
    offers: Offers,
    repositories: Sequence[Repository],
) -> Plan:
    """
    Compare an engine on a host with the settings.

    + prefix: the value of the version's setting
    + installed: the fact InstalledPackages
    + offers: the fact OfferedPackages
    + repositories: the repositories of all vendors, as this host would use them
    """
    listed = {one.listed: one.vendor.name for one in repositories}

    def offered(package: str) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(
                offer["version"]
                for offer in offers.get(package, ())
                if listed.get(offer["repository"])
                == (engine.vendor if engine.source == "upstream" else None)
            )
        )

    major = int(engine.main.rpartition("-")[2]) if engine.name == "postgres" else 0
    source, version = source_of(engine.name, installed, major)
    chosen = versions.choose(offered(engine.main), prefix)
    # Compare the whole version: a rebuilt package differs only in its revision.
    same = {name: chosen for name in engine.lockstep if chosen in offered(name)}
    return Plan(
        engine=engine,
        prefix=prefix,
        installed=version,
        installed_source=source,
        offered=offered(engine.main),
        chosen=chosen,
        pins=dict.fromkeys(engine.packages, "") | {engine.main: chosen} | same,
        missing=tuple(name for name in engine.packages if name not in installed),
        loose=tuple(
            name for name in engine.held if name in installed and not installed[name]["held"]
        ),
        in_the_way=tuple(name for name in engine.conflicts if name in installed),
    )

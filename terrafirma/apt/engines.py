"""
The engines: Docker, PostgreSQL and Caddy, and which versions of them a host is to have.

What is said here of a host comes from its facts; nothing is asked, and nothing is changed.
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

# Both keep libraries or kernel rules; the engine itself is not in them.
_NOT_HELD = ("apparmor", "iptables")
_DOCKER_CE = ("docker-ce-cli", "docker-ce-rootless-extras")
_DOCKER_BESIDE = ("containerd.io", "docker-buildx-plugin", "docker-compose-plugin")
_DOCKER_DISTRO = (
    *("docker.io", "docker-cli", "docker-buildx", "docker-compose", "docker-compose-v2"),
    *("docker-doc", "podman-docker", "containerd", "runc"),
)
"""What Docker's instructions have removed first, and the packages into which Debian splits it."""

_POSTGRES = tuple(
    f"postgresql-{kind}{major}" for kind in ("", "client-") for major in range(OLDEST, NEWEST + 1)
)
ALL_PACKAGES = ("caddy", "docker-ce", *_DOCKER_CE, *_DOCKER_BESIDE, *_DOCKER_DISTRO, *_POSTGRES)
"""Names for which a host is asked what it is offered: one question for all engines."""

UPGRADE = "commands/upgrade.py"


@dataclass(frozen=True)
class Engine:
    """An engine as it comes from one source."""

    name: EngineName
    title: str
    key: str
    """The setting of its version."""
    source: Source
    vendor: VendorName
    """Whose repository has it, where `source` is upstream."""
    main: str
    """The package whose version is the engine's."""
    lockstep: tuple[str, ...]
    """Packages that have the version of `main`."""
    beside: tuple[str, ...]
    """Further packages, of whatever version is the newest."""
    held: tuple[str, ...]
    """Those that nothing but an announced upgrade moves, where they are installed."""
    conflicts: tuple[str, ...]
    """Packages that cannot be there at the same time."""
    units: tuple[str, ...]
    """What an upgrade restarts."""

    @property
    def packages(self) -> tuple[str, ...]:
        return (self.main, *self.lockstep, *self.beside)


def engine(name: EngineName, source: Source, distribution: Distribution, major: int = 0) -> Engine:
    """
    What an engine consists of on a host.

    + distribution: what the distribution's own archive holds
    + major: of PostgreSQL
    """
    if name == "postgres":
        main, client = f"postgresql-{major}", f"postgresql-client-{major}"
        return Engine(
            name=name, title="PostgreSQL", key="postgres_version", source=source, vendor="pgdg",
            main=main, lockstep=(client,),
            # What they share with each other's majors comes from where they come from.
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
    # apparmor: Debian's kernels have it on, and no container starts without its parser.
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
    """Where the engine on a host is from, and its version; None and "" where there is none."""
    if name == "docker":
        for source, main in _DOCKERS:
            if main in installed:
                return source, installed[main]["version"]
        return None, ""
    main = "caddy" if name == "caddy" else f"postgresql-{major}"
    if main not in installed:
        return None, ""
    version = installed[main]["version"]
    # Caddy's own packages have no revision; PGDG's say so.
    theirs = "-" not in version if name == "caddy" else "pgdg" in version
    return "upstream" if theirs else "distro", version


_DOCKERS: tuple[tuple[Source, str], ...] = (("upstream", "docker-ce"), ("distro", "docker.io"))


@dataclass(frozen=True)
class Plan:
    """What a host has of an engine, what it is to have, and what is in the way of that."""

    engine: Engine
    prefix: str
    installed: str
    """The version of the package that is there, from whatever source; empty: none."""
    installed_source: Source | None
    offered: tuple[str, ...]
    """The versions of `engine.main` that `engine.source` offers, the last refresh of lists says."""
    chosen: str
    """The newest of them that is allowed; empty where none is, or none is known."""
    pins: Mapping[str, str]
    """Which version of which package is to be there, with `chosen`; empty: the newest."""
    missing: tuple[str, ...]
    """Packages of the engine that are not installed."""
    loose: tuple[str, ...]
    """Packages that are installed, and not held."""
    in_the_way: tuple[str, ...]
    """Packages that are installed, and conflict with the engine."""

    @property
    def moves(self) -> bool:
        """Whether the engine on the host comes from another source than it should."""
        return self.installed_source not in (None, self.engine.source)

    @property
    def newer(self) -> str:
        """The version to which an upgrade would take the host; empty: none."""
        if not (self.installed and self.chosen):
            return ""
        return self.chosen if versions.compare(self.chosen, self.installed) > 0 else ""

    @property
    def numbers(self) -> tuple[int, int] | None:
        """The major and the minor version that the host has, or is to have; None: not known."""
        known = versions.upstream(self.installed or self.chosen) or self.prefix
        major, _, rest = known.partition(".")
        return (int(major), int(rest.partition(".")[0] or 0)) if known else None

    @property
    def summary(self) -> str:
        """What is there → what is wanted, for people."""
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
        """Why a plain deploy must not go on, in words that begin with the key; empty: it may."""
        return self.refused_move or self.refused_version

    @property
    def refused_move(self) -> str:
        if not self.moves:
            return ""
        there = f"{self.engine.title} {versions.upstream(self.installed)} on the host"
        if self.engine.source == "distro":
            return (
                f"apt_source: {there} is the vendor's, and 'distro' would put an older one in its "
                "place, which may not read its data; use apt_source = 'upstream'"
            )
        return (
            f"apt_source: {there} is the distribution's; {UPGRADE} puts the vendor's in its place, "
            "and says first what that interrupts"
        )

    @property
    def refused_version(self) -> str:
        """The same, of an engine that may come from another source than it does."""
        now, key = versions.upstream(self.installed), self.engine.key
        if self.installed and versions.matches(self.installed, self.prefix):
            return ""
        if self.offered and not self.chosen:
            other = " (or with apt_source = 'upstream')" if self.engine.source == "distro" else ""
            have = f"; {now} is installed" if now else ""
            return (
                f"{key}: {self.whose} offers {versions.told(self.offered)}, not "
                f"{self.prefix or 'a release'}{have}; use one of these{other}, or leave it "
                f"{self._empty}"
            )
        if not self.installed:
            return ""
        if self.newer or (not self.chosen and _above(self.prefix, now)):
            return f"{key}: {self.prefix} is wanted, and {now} is installed; run {UPGRADE}"
        return (
            f"{key}: {self.prefix} is wanted, and {now} is installed: there is no way down; set it "
            f"to {now!r}, or leave it {self._empty}"
        )

    @property
    def nothing_offered(self) -> str:
        """Why a host that has just refreshed its lists cannot get the version; empty: it can."""
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
    What is to be done about an engine on a host.

    + prefix: what the setting of the version says
    + installed: the answer of InstalledPackages
    + offers: the answer of OfferedPackages
    + repositories: all vendors' that the host has, or is to have
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
    # A rebuild of the package has another revision, so the whole version is compared.
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

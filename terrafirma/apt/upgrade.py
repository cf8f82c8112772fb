"""The plan of commands/upgrade.py: the versions it installs, and what that interrupts."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from terrafirma.apt.engines import Engine, is_vendors
from terrafirma.apt.upgrade_facts import Known, PackagesState
from terrafirma.apt.versions import choose, compare, is_prerelease, listed, matches, newest

# The interruptions by packages that belong to no engine.
NOTICED = {
    "openssh-server": "sshd restarts, open sessions continue",
    "pgbouncer": "PgBouncer restarts, connections through it end",
    "systemd": "systemd re-executes itself, services keep running",
}
# How the names of kernel packages begin: a new kernel runs after a reboot.
KERNELS = ("linux-image-",)
# How many packages a line names; the others are only counted.
NAMED = 8


@dataclass(frozen=True)
class Wanted:
    """An engine, as the settings want it."""

    name: str
    title: str
    key: str  # the setting that decides the version
    main: str  # the package whose version counts
    packages: tuple[str, ...]
    interruption: str  # what users notice
    held: tuple[str, ...] = ()  # packages that only this upgrade changes once they are installed
    units: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()  # packages to remove, because they conflict
    foreign: tuple[str, ...] = ()  # a vendor's packages, which the distribution's cannot replace
    prefix: str = ""  # the first components of the version
    archive: str = ""  # the vendor's repository as apt lists it; empty: the distribution's


# The interruptions by each engine, also in docs/commands/upgrade.md.
INTERRUPTIONS = {
    "docker": "containers and their connections continue; `docker` is unavailable while it starts",
    "postgres": "one restart: connections end, and new ones are refused for some seconds",
    "caddy": "one restart: connections end, and new ones are refused for a moment",
}


def wanted(engine: Engine, prefix: str, archive: str = "") -> Wanted:
    """
    The engine as the settings want it.

    + prefix: the version in the settings, perhaps only its first components
    + archive: the vendor's repository as apt lists it, used if the source is "upstream"
    """
    upstream = engine.source == "upstream"
    return Wanted(
        name=engine.name,
        title=engine.title,
        key=engine.key,
        main=engine.main,
        # The step for all other packages upgrades those that are not held. With "upstream", they
        # may have to change their source together with the engine.
        packages=tuple(name for name in engine.packages if name in engine.held or upstream),
        held=engine.held,
        interruption=INTERRUPTIONS[engine.name],
        # containerd first, because Docker connects to it.
        units=tuple(sorted(engine.units, key=lambda unit: unit != "containerd.service")),
        replaces=engine.conflicts if upstream else (),
        # The distribution has podman-docker, too.
        foreign=() if upstream else tuple({*engine.conflicts} - {"podman-docker"}),
        prefix=prefix,
        archive=archive if upstream else "",
    )


@dataclass(frozen=True)
class Step:
    """The upgrade of one engine."""

    wanted: Wanted
    packages: Mapping[str, str]
    old: Mapping[str, str]
    replaced: Mapping[str, str]
    lost: tuple[str, ...]

    @property
    def before(self) -> Mapping[str, str]:
        return {**self.old, **self.replaced}

    def lines(self) -> Iterator[str]:
        title, main = self.wanted.title, self.wanted.main
        was = self.old.get(main) or ", ".join(f"{key} {one}" for key, one in self.before.items())
        yield f"{title}: {was} → {self.packages[main]}: {self.wanted.interruption}"
        for name, version in self.packages.items():
            if name != main and self.old.get(name) != version:
                yield f"  {name}: {self.old.get(name, 'new')} → {version}"
        if self.replaced:
            yield f"  removed, not purged: {', '.join(self.replaced)}"
        if self.lost:
            yield (
                f"  no rollback: the installed {', '.join(self.lost)} is no longer offered, and "
                "not kept on the host"
            )

    def data(self) -> dict[str, object]:
        """The part of the host program's input for this engine."""
        return {
            "name": self.wanted.name,
            "title": self.wanted.title,
            "main": self.wanted.main,
            "packages": dict(self.packages),
            "old": dict(self.old),
            "replaced": dict(self.replaced),
            "held": [*self.wanted.held, *self.wanted.replaces],
            "units": list(self.wanted.units),
            "lost": list(self.lost),
        }


@dataclass(frozen=True)
class Plan:
    """All steps of an upgrade, in order; false if there is nothing to do."""

    steps: tuple[Step, ...] = ()
    rest: tuple[tuple[str, str, str], ...] = ()
    """All other packages: name, installed version (empty if it is new), and new version."""
    notes: tuple[str, ...] = ()
    """Engines that keep their version, and why."""
    awaited: tuple[str, ...] = ()
    """Engines whose new version is unknown until the vendor's repository is set up."""
    held: tuple[str, ...] = ()
    """Packages that belong to an engine, and so not to `rest`."""
    refusals: tuple[str, ...] = ()
    """Why the upgrade must not run."""
    backups: bool = False
    reboot: bool = False
    left: bool = False
    """An earlier upgrade was interrupted, and not yet finished or undone."""
    stale: bool = field(default=False, compare=False)
    """The package lists are older than an hour, so a run refreshes them first."""

    def __bool__(self) -> bool:
        return bool(self.steps or self.rest or self.awaited or self.left)

    def only(self, names: Collection[str]) -> Plan:
        """The same plan without the engines of other names, which the shown plan did not have."""
        return Plan(
            steps=tuple(step for step in self.steps if step.wanted.name in names),
            rest=self.rest,
            notes=(
                *self.notes,
                *(f"{step.wanted.title}: {step.packages[step.wanted.main]} is offered since the "
                  "plan was shown; the next run takes it"
                  for step in self.steps if step.wanted.name not in names),
            ),
            held=self.held, backups=self.backups, reboot=self.reboot, left=self.left,
        )  # fmt: skip

    def data(self) -> str:
        """The input of the host program, as JSON."""
        return json.dumps({"engines": [step.data() for step in self.steps],
                           "rest": bool(self.rest), "held": list(self.held)})  # fmt: skip

    def lines(self) -> Iterator[str]:
        if self.left:
            yield "An earlier upgrade was interrupted: it is finished or undone first"
        if self.stale:
            yield "The package lists are older than an hour: a run refreshes them first"
        if self.steps or self.awaited:
            yield (
                "A backup is made first" if self.backups
                else "There are no backups, so none is made first"
            )  # fmt: skip
        for step in self.steps:
            yield from step.lines()
        for title in self.awaited:
            yield f"{title}: to the vendor's version, unknown until its repository is added"
        yield from self.notes
        yield from self._rest()
        if self.reboot:
            yield "A reboot is due; this run does not reboot (set updates_reboot, or do it by hand)"
        if not self:
            yield "There is nothing to upgrade"

    def _rest(self) -> Iterator[str]:
        if not self.rest:
            return
        kernels = [one for one in self.rest if one[0].startswith(KERNELS)]
        others = [one for one in self.rest if one not in kernels]
        if others:
            shown = ", ".join(
                f"{name} {old} → {new}" if old else f"{name} {new}, new"
                for name, old, new in others[:NAMED]
            )
            more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
            yield f"{len(others)} other packages, which cannot be rolled back: {shown}{more}"
        for name, _, _ in others:
            if name in NOTICED:
                yield f"  {name}: {NOTICED[name]}"
        for name, _, new in kernels:
            yield f"Kernel: {name} {new}, which runs after a reboot"


def make(wanted: Sequence[Wanted], state: PackagesState, vendors: Collection[str] = ()) -> Plan:
    """
    Make the plan.

    + vendors: the repositories of all vendors, as apt lists them
    """
    steps: list[Step] = []
    notes: list[str] = []
    awaited: list[str] = []
    refusals: list[str] = []
    for one in wanted:
        if others := [name for name in one.foreign if _installed(state, name)]:
            refusals.append(_foreign(one, others, state))
            continue
        there = {
            name: _installed(state, name)
            for name in (*one.packages, *one.held, *one.replaces)
            if _installed(state, name)
        }
        # Kubernetes needs containerd without Docker, and other programs need libpq5.
        if not {one.main, "docker.io"} & {*there}:
            notes.append(f"{one.title}: not installed; deploy.py installs it")
            continue
        now = there.get(one.main, "")
        if now and not one.archive and is_vendors(one.name, now):
            refusals.append(_foreign(one, [one.main], state))
            continue
        main = state["packages"].get(one.main)
        offered = [*_offered(main, one.archive, vendors)]
        replaced = {name: there[name] for name in one.replaces if name in there}
        if not offered and one.archive:
            awaited.append(one.title)
            continue
        right = choose(offered, one.prefix)
        if not right:
            if now and matches(now, one.prefix):
                notes.append(f"{one.title}: {now} stays: no other allowed version is offered")
            else:
                refusals.append(_nothing_fits(one, offered))
            continue
        if main and now and not replaced and compare(now, right) > 0:
            if matches(now, one.prefix) and _is_of(main, now, one.archive, vendors):
                notes.append(f"{one.title}: {now} stays: no newer allowed version is offered")
            else:
                refusals.append(_way_down(one, now, right))
            continue
        packages = {
            name: version
            for name in (*one.packages, *one.held)
            # A package that is only in `held` is upgraded if it is installed, and never added.
            if (name in one.packages or _installed(state, name))
            and (version := _version(state["packages"].get(name), right, one, vendors))
        }
        old = {name: there[name] for name in packages if name in there}
        moved = [name for name in packages if name in one.held]
        if not replaced and all(old.get(name) == packages[name] for name in moved):
            notes.append(f"{one.title}: {now} is the newest that the settings allow")
            continue
        steps.append(Step(one, packages, old, replaced, _lost(state, {**old, **replaced})))
    mine = {name for one in wanted for name in (*one.held, *one.replaces)}
    return Plan(
        steps=tuple(steps),
        # Packages of an engine are upgraded only together with it.
        rest=tuple(
            (name, old, new) for name, old, new in state["rest"] if name not in mine
        ),
        notes=tuple(notes), awaited=tuple(awaited), held=tuple(sorted(mine)),
        refusals=tuple(refusals),
        backups=state["backups"], reboot=state["reboot"], left=state["left"],
        stale=state["age"] is None or state["age"] > FRESH,
    )  # fmt: skip


FRESH = 3600
"""How old package lists may be, in seconds."""


def _installed(state: PackagesState, name: str) -> str:
    return state["packages"][name]["installed"] if name in state["packages"] else ""


def _remote(known: Known, version: str) -> list[str]:
    """The archives that offer a version."""
    places = dict(known["versions"]).get(version, [])
    return [place for place in places if not place.startswith("/var/lib/dpkg/")]


def _offered(known: Known | None, archive: str, vendors: Collection[str]) -> Iterator[str]:
    """The versions that the archive offers."""
    for version, _ in known["versions"] if known else ():
        places = _remote(known, version) if known else []
        if archive in places if archive else {*places} - {*vendors}:
            yield version


def _is_of(known: Known, version: str, archive: str, vendors: Collection[str]) -> bool:
    """Whether a version fits the wanted source: the distribution's must not be a vendor's."""
    return bool(archive) or not {*_remote(known, version)} & {*vendors}


def _version(known: Known | None, main: str, one: Wanted, vendors: Collection[str]) -> str:
    """The version for a package of the engine: that of the main package, or else the newest."""
    offered = [*_offered(known, one.archive, vendors)]
    if main in offered:
        return main
    # Empty if this release of the distribution does not have the package.
    releases = [version for version in offered if not is_prerelease(version)]
    return newest(releases)


def _lost(state: PackagesState, before: Mapping[str, str]) -> tuple[str, ...]:
    """The packages whose installed version neither an archive nor the host has."""
    return tuple(
        name
        for name, version in before.items()
        if (name, version) not in {tuple(one) for one in state["files"]}
        and not _remote(state["packages"][name], version)
    )


def _nothing_fits(one: Wanted, offered: Sequence[str]) -> str:
    asked = one.prefix or "a release"
    return (
        f"{one.key}: {one.title} {asked} is wanted, and only {listed(offered) or 'nothing'} is "
        "offered; choose one of these"
    )


def _foreign(one: Wanted, others: Sequence[str], state: PackagesState) -> str:
    there = ", ".join(f"{name} {_installed(state, name)}" for name in others)
    return (
        f"apt_source: {one.title} on the host is the vendor's ({there}), and cannot be downgraded "
        "to the distribution's, which may be unable to read its data; keep apt_source = 'upstream'"
    )


def _way_down(one: Wanted, now: str, then: str) -> str:
    key = one.key if one.prefix and matches(then, one.prefix) else "apt_source"
    return (
        f"{key}: {one.title} {now} is installed, and cannot be downgraded to {then}, which the "
        "settings ask for and which may be unable to read its data; keep the installed version"
    )

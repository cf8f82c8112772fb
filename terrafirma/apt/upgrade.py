"""What a run of commands/upgrade.py does: from which versions to which, and who notices."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from terrafirma.apt.engines import Engine
from terrafirma.apt.upgrade_facts import Known, PackagesState
from terrafirma.apt.versions import choose, compare, is_prerelease, matches, newest, told

# What else a package restarts that is no engine's, and what one notices of it.
NOTICED = {
    "openssh-server": "sshd is restarted, open sessions go on",
    "pgbouncer": "PgBouncer is restarted, connections through it end",
    "systemd": "systemd starts itself anew, what runs goes on",
}
# The kernels' names, on which a reboot follows.
KERNELS = ("linux-image-",)
# Names that a line has at most: the others are counted.
NAMED = 8


@dataclass(frozen=True)
class Wanted:
    """What an engine is to consist of, by the settings."""

    name: str
    title: str
    key: str  # the setting that decides the version
    main: str  # the package whose version counts
    packages: tuple[str, ...]
    interruption: str  # what one notices
    held: tuple[str, ...] = ()  # those that nothing but an upgrade moves, where they are there
    units: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()  # packages that have to make room
    foreign: tuple[str, ...] = ()  # packages of another source, from which there is no way here
    prefix: str = ""  # of the version, at the borders of its parts
    archive: str = ""  # the vendor's, as apt lists it; empty: the distribution's


# What one notices of each; docs/commands/upgrade.md has what was measured.
INTERRUPTIONS = {
    "docker": "containers and their connections go on; `docker` does not answer while it starts",
    "postgres": "one restart: its connections end, and nobody is served for some seconds",
    "caddy": "one restart: its connections end, and none is accepted for a moment",
}


def wanted(engine: Engine, prefix: str, archive: str = "") -> Wanted:
    """
    What an engine is to become.

    + prefix: of the version, as the settings have it
    + archive: where it comes from upstream, the vendor's repository as apt lists it
    """
    upstream = engine.source == "upstream"
    return Wanted(
        name=engine.name,
        title=engine.title,
        key=engine.key,
        main=engine.main,
        # What is not held is upgraded with all the rest, unless it is to come from elsewhere.
        packages=tuple(name for name in engine.packages if name in engine.held or upstream),
        held=engine.held,
        interruption=INTERRUPTIONS[engine.name],
        # The one that the other one talks to first.
        units=tuple(sorted(engine.units, key=lambda unit: unit != "containerd.service")),
        replaces=engine.conflicts if upstream else (),
        # The distribution's own, too.
        foreign=() if upstream else tuple({*engine.conflicts} - {"podman-docker"}),
        prefix=prefix,
        archive=archive if upstream else "",
    )


@dataclass(frozen=True)
class Step:
    """One engine, and what becomes of it."""

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
            yield f"  {', '.join(self.replaced)} make room; nothing is purged"
        if self.lost:
            yield (
                f"  no way back: {', '.join(self.lost)} of now is offered no longer, and not kept "
                "on the host"
            )

    def data(self) -> dict[str, object]:
        """What the program on the host is told."""
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
    """What is to be done, in its order; nothing of it where there is nothing to do."""

    steps: tuple[Step, ...] = ()
    rest: tuple[tuple[str, str, str], ...] = ()
    """All other packages: name, version of now (empty: it is new) and version to come."""
    notes: tuple[str, ...] = ()
    """Engines that stay, and why."""
    awaited: tuple[str, ...] = ()
    """Engines whose versions are known once the vendor's repository is set up."""
    held: tuple[str, ...] = ()
    """What is no part of `rest`: packages that belong to an engine."""
    refusals: tuple[str, ...] = ()
    """Why nothing of it is done."""
    backups: bool = False
    reboot: bool = False
    left: bool = False
    """A run before this one was killed."""
    stale: bool = field(default=False, compare=False)
    """The package lists are older than an hour: a run refreshes them first."""

    def __bool__(self) -> bool:
        return bool(self.steps or self.rest or self.awaited or self.left)

    def only(self, names: Collection[str]) -> Plan:
        """Without the engines of other names: they were not announced."""
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
        """What the program on the host is told: JSON."""
        return json.dumps({"engines": [step.data() for step in self.steps],
                           "rest": bool(self.rest), "held": list(self.held)})  # fmt: skip

    def lines(self) -> Iterator[str]:
        if self.left:
            yield "An upgrade was killed here: it is finished, or undone, first"
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
            yield f"{title}: to what the vendor offers, which is known once its repository is there"
        yield from self.notes
        yield from self._rest()
        if self.reboot:
            yield "A reboot is due; none is made here (updates_reboot, or by hand)"
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
            yield f"{len(others)} other packages, without a way back: {shown}{more}"
        for name, _, _ in others:
            if name in NOTICED:
                yield f"  {name}: {NOTICED[name]}"
        for name, _, new in kernels:
            yield f"Kernel: {name} {new}, which runs after a reboot"


def make(wanted: Sequence[Wanted], state: PackagesState, vendors: Collection[str] = ()) -> Plan:
    """
    The plan, by what the host knows of its packages.

    + vendors: all archives that are a vendor's, as apt lists them
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
        if not there:
            notes.append(f"{one.title}: not installed; deploy.py does that")
            continue
        main = state["packages"].get(one.main)
        offered = [*_offered(main, one.archive, vendors)]
        replaced = {name: there[name] for name in one.replaces if name in there}
        if not offered and one.archive:
            awaited.append(one.title)
            continue
        right = choose(offered, one.prefix)
        now = there.get(one.main, "")
        if not right:
            if now and matches(now, one.prefix):
                notes.append(f"{one.title}: {now} stays, nothing else is offered")
            else:
                refusals.append(_nothing_fits(one, offered))
            continue
        if main and now and not replaced and compare(now, right) > 0:
            if matches(now, one.prefix) and _is_of(main, now, one.archive, vendors):
                notes.append(f"{one.title}: {now} stays, the newest that is allowed")
            else:
                refusals.append(_way_down(one, now, right))
            continue
        packages = {
            name: version
            for name in (*one.packages, *one.held)
            # A part of the engine that is not there is none that anybody asked for.
            if (name in one.packages or _installed(state, name))
            and (version := _version(state["packages"].get(name), right, one, vendors))
        }
        old = {name: there[name] for name in packages if name in there}
        moved = [name for name in packages if name in one.held]
        if not replaced and all(old.get(name) == packages[name] for name in moved):
            notes.append(f"{one.title}: {now} is the newest that is allowed")
            continue
        steps.append(Step(one, packages, old, replaced, _lost(state, {**old, **replaced})))
    mine = {name for one in wanted for name in (*one.held, *one.replaces)}
    return Plan(
        steps=tuple(steps),
        # What belongs to an engine goes with it, or not at all.
        rest=tuple(
            (name, old, new) for name, old, new in state["rest"] if name not in mine
        ),
        notes=tuple(notes), awaited=tuple(awaited), held=tuple(sorted(mine)),
        refusals=tuple(refusals),
        backups=state["backups"], reboot=state["reboot"], left=state["left"],
        stale=state["age"] is None or state["age"] > FRESH,
    )  # fmt: skip


FRESH = 3600
"""Seconds for which package lists are good enough."""


def _installed(state: PackagesState, name: str) -> str:
    return state["packages"][name]["installed"] if name in state["packages"] else ""


def _remote(known: Known, version: str) -> list[str]:
    """The archives that have a version."""
    places = dict(known["versions"]).get(version, [])
    return [place for place in places if not place.startswith("/var/lib/dpkg/")]


def _offered(known: Known | None, archive: str, vendors: Collection[str]) -> Iterator[str]:
    """The versions that the archive has."""
    for version, _ in known["versions"] if known else ():
        places = _remote(known, version) if known else []
        if archive in places if archive else {*places} - {*vendors}:
            yield version


def _is_of(known: Known, version: str, archive: str, vendors: Collection[str]) -> bool:
    """Whether a version is none of another archive than the one that is wanted."""
    return bool(archive) or not {*_remote(known, version)} & {*vendors}


def _version(known: Known | None, main: str, one: Wanted, vendors: Collection[str]) -> str:
    """The version of a package beside the main one: the same where there is such, or the newest."""
    offered = [*_offered(known, one.archive, vendors)]
    if main in offered:
        return main
    # Not every release of a distribution has each of them.
    releases = [version for version in offered if not is_prerelease(version)]
    return newest(releases)


def _lost(state: PackagesState, before: Mapping[str, str]) -> tuple[str, ...]:
    """Those of the packages of now that nobody has any more."""
    return tuple(
        name
        for name, version in before.items()
        if (name, version) not in {tuple(one) for one in state["files"]}
        and not _remote(state["packages"][name], version)
    )


def _nothing_fits(one: Wanted, offered: Sequence[str]) -> str:
    asked = one.prefix or "a release"
    return (
        f"{one.key}: {one.title} {asked} is asked for, and {told(offered) or 'nothing'} is "
        "offered; choose one of them"
    )


def _foreign(one: Wanted, others: Sequence[str], state: PackagesState) -> str:
    there = ", ".join(f"{name} {_installed(state, name)}" for name in others)
    return (
        f"apt_source: {one.title} is the vendor's there ({there}), and there is no way down to the "
        "distribution's, for an older version need not read what a newer one wrote; keep "
        "apt_source = 'upstream'"
    )


def _way_down(one: Wanted, now: str, then: str) -> str:
    key = one.key if one.prefix and matches(then, one.prefix) else "apt_source"
    return (
        f"{key}: {one.title} {now} is installed, and {then} is what the settings lead to: there is "
        "no way down, for an older version need not read what a newer one wrote; keep to what is "
        "there"
    )

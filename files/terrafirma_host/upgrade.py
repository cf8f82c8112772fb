"""
Managed by Terrafirma. New packages of the engines, one engine after the other, and the way back.

    terrafirma upgrade            do what the plan on standard input says, in a unit of its own
    terrafirma upgrade run        what that unit runs
    terrafirma upgrade recover    finish or undo what a run left that was killed

The packages that an engine has are kept as files before it is touched. Each new one has to keep
what this host promises (promises.py); where it does not, the old packages are installed again.
What is going on is in a file from the first change on: whatever ends a run, the end of its unit, or
the next run, finds that there and finishes or undoes it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

from terrafirma_host import reboot
from terrafirma_host.engine import unit_runs
from terrafirma_host.postgres_minor import BACKUP, BACKUP_CONFIG, QUIET, back_up, is_old
from terrafirma_host.promises import broken
from terrafirma_host.shell import (
    BROKEN,
    LOG,
    Failed,
    follow,
    locked,
    run,
    say,
    succeeds,
    write,
)
from terrafirma_host.standstill import standstill

PROGRAM = "/usr/local/bin/terrafirma"
UNIT = "terrafirma-upgrade.service"
# Set for what runs in it, so that whoever waits knows the end of this run from that of another.
TOKEN = "TERRAFIRMA_UPGRADE"

STATE = Path("/var/lib/terrafirma/packages")
LOCK = Path("/run/terrafirma-upgrade.lock")
CACHE = Path("/var/cache/apt/archives")
PROC = Path("/proc")
DOCKER_ENGINE = Path("/usr/local/lib/terrafirma/docker-engine")

APT = (
    "apt-get", "-y", "-q", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=600",
    "-o", "Dpkg::Options::=--force-confold", "-o", "Dpkg::Options::=--force-confdef",
    # Whoever reads a failure looks for its reason, not for how far dpkg was with reading.
    "-o", "Dpkg::Use-Pty=0",
    # Data of a package that is replaced go with its configuration: with `purge`, that is.
    "-o", "APT::Get::Purge=false", "-o", "APT::Get::AutomaticRemove=false",
    # It cannot write where the packages are kept, which is root's.
    "-o", "APT::Sandbox::User=root",
)  # fmt: skip
CHANGE = ("--allow-change-held-packages", "--no-install-recommends")
# Seconds that packages, and a restart, may take; and until all is as promised.
LONG = 3600
PATIENCE = 180
PAUSE = 2


@dataclass(frozen=True)
class Engine:
    """Packages that belong together, what they are to become, and what runs of them."""

    name: str
    title: str
    main: str  # the package whose version counts
    packages: dict[str, str]  # what is to be there, with versions
    old: dict[str, str]  # those of them that are there now, with theirs
    replaced: dict[str, str] = field(default_factory=dict)  # what makes room for them
    held: tuple[str, ...] = ()  # what nothing else moves, where it is there
    units: tuple[str, ...] = ()  # in the order in which they are restarted
    lost: tuple[str, ...] = ()  # of the old ones: offered no longer, so there is no way back

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Engine:
        many = {key: tuple(data[key]) for key in ("held", "units", "lost") if key in data}
        return cls(**{**data, **many})

    @property
    def before(self) -> dict[str, str]:
        """All that the engine consisted of before."""
        return {**self.old, **self.replaced}

    @property
    def was(self) -> str:
        """The version before, for whoever reads: of what takes the main package's place, too."""
        return self.old.get(self.main) or ", ".join(
            f"{name} {version}" for name, version in self.before.items()
        )

    @property
    def is_to_be(self) -> str:
        return self.packages[self.main]


@dataclass(frozen=True)
class Plan:
    engines: tuple[Engine, ...] = ()
    rest: bool = False  # all other packages, too
    held: tuple[str, ...] = ()  # what is none of the others, where it is there

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Plan:
        return cls(tuple(map(Engine.of, data["engines"])), bool(data["rest"]), tuple(data["held"]))


def main(words: Sequence[str]) -> None:
    # apt's own user reads what is kept, and systemd what is written.
    os.umask(0o022)
    match list(words):
        case []:
            begin(json.loads(sys.stdin.read()))
        case ["run"]:
            carry_out()
        case ["recover"]:
            # A run that is still there holds the lock; there is nothing to recover then.
            with locked(LOCK, busy), logged():
                recover()
                # The last step has nothing to go back to.
                mend()
        case _:
            sys.exit(__doc__)


def busy() -> Failed:
    return Failed(f"an upgrade is going on: tail -f {STATE / 'log'}")


# --- a unit of its own: it outlives the connection ------------------------------------------------


def begin(data: Mapping[str, Any]) -> None:
    Plan.of(data)  # whatever cannot be read is said before anything is written
    if unit_runs(UNIT):
        raise busy()
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(STATE / "plan.json", json.dumps(data) + "\n", 0o600)
    token = token_hex(8)
    sys.stdout.flush()
    subprocess.run(
        [
            "systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--unit={UNIT}",
            "--description=Upgrade of packages",
            # Whatever ends it, a kill -9 as well.
            f"--property=ExecStopPost={PROGRAM} upgrade recover",
            f"--property=TimeoutStopSec={LONG}",
            f"--setenv={TOKEN}={token}",
            PROGRAM, "upgrade", "run",
        ],
        stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    # Not by its exit code: for systemd one that was stopped has ended well.
    with suppress(OSError, ValueError):
        ended = json.loads((STATE / "end.json").read_text())
        if ended["token"] == token:
            raise SystemExit(ended["status"])
    if unit_runs(UNIT):
        raise Failed(f"nobody waits for the upgrade any more, and it goes on: {STATE / 'log'}")
    raise Failed(f"the upgrade was stopped before its end: `journalctl -u {UNIT}`")


def carry_out() -> None:
    """The plan that was written; where it ends, and how, whoever waits finds in a file."""
    status = 1
    (STATE / "log").write_text("")
    try:
        with locked(LOCK, busy), logged():
            recover()
            perform(Plan.of(json.loads((STATE / "plan.json").read_text())))
        status = 0
    except BROKEN as error:
        with logged():
            say(f"failed: {error}")
    finally:
        end = {"token": os.environ.get(TOKEN, ""), "status": status}
        write(STATE / "end.json", json.dumps(end) + "\n", 0o600)
    sys.exit(status)


@contextmanager
def logged() -> Iterator[None]:
    """What is said is in a file, too."""
    log = STATE / "log"
    LOG.append(log)
    try:
        yield
    finally:
        LOG.remove(log)


# --- what is done ---------------------------------------------------------------------------------


def line(error: BaseException) -> str:
    return " ".join(str(error).split())


def perform(plan: Plan) -> None:
    mend()
    if wrong := broken():
        raise Failed(f"nothing was changed, for something is broken already: {'; '.join(wrong)}")
    if BACKUP.exists() and BACKUP_CONFIG.exists():
        back_up()
    for engine in plan.engines:
        keep(engine)
        foresee(engine)
    for engine in plan.engines:
        fetch(engine)
    with standstill("commands/upgrade.py", "upgrade of packages", apt=False):
        for engine in plan.engines:
            replace(engine)
        if plan.rest:
            # An engine that stays as it is, stays.
            hold(plan.held)
            upgrade_rest()
    forget_older(plan)
    if why := reboot.due():
        say(f"A reboot is due: {'; '.join(why)}")


def keep(engine: Engine) -> None:
    """The packages that are there now are files, from which they can be installed again."""
    for name, version in engine.before.items():
        if name in engine.lost or kept(name, version):
            continue
        for path in CACHE.glob(pattern(name, version)):
            shutil.copy2(path, STATE)
        if kept(name, version):
            continue
        try:
            run("env", f"--chdir={STATE}", *APT, "download", f"{name}={version}", timeout=LONG)
        except Failed as error:
            raise Failed(
                f"nothing was changed: {name} {version}, the way back, cannot be fetched: {error}"
            ) from None


def pattern(name: str, version: str) -> str:
    """What files of a package are called, whatever it is built for."""
    return f"{name}_{version.replace(':', '%3a')}_*.deb"


def kept(name: str, version: str) -> Path | None:
    """The file of a package, if it is whole and is what its name says."""
    for path in STATE.glob(pattern(name, version)):
        said = run("dpkg-deb", "--show", "--showformat", "${Package} ${Version}", path, check=False)
        if said == f"{name} {version}":
            return path
        path.unlink()
    return None


def wanted(engine: Engine) -> list[str]:
    """What apt is asked for: packages with their versions, and those that make room."""
    leaving = [f"{name}-" for name in engine.replaced if name not in engine.packages]
    return [*(f"{name}={version}" for name, version in engine.packages.items()), *leaving]


def foresee(engine: Engine) -> None:
    """Raises Failed where apt would remove what nobody spoke of."""
    said = run(*APT, "--simulate", "install", *CHANGE, *wanted(engine), env=QUIET, timeout=LONG)
    gone = set(re.findall(r"^Remv (\S+)", said, re.MULTILINE)) - {*engine.replaced}
    if gone:
        raise Failed(
            f"nothing was changed: {engine.title} {engine.is_to_be} would take "
            f"{', '.join(sorted(gone))} along; remove that first, or hold {engine.title} back"
        )


def fetch(engine: Engine) -> None:
    """All that is to be installed is here: from now on no network is needed."""
    say(f"{engine.title}: fetching {engine.is_to_be}")
    options = ("install", "--download-only", *CHANGE)
    run(*APT, *options, *wanted(engine), env=QUIET, timeout=LONG)
    # The next upgrade needs them, and perhaps they are offered no longer then.
    for name, version in engine.packages.items():
        for path in CACHE.glob(pattern(name, version)):
            shutil.copy2(path, STATE)


def replace(engine: Engine) -> None:
    """The engine is the new one, and all is as promised; or it is the old one, and Failed says."""
    began = time.monotonic()
    say(f"{engine.title}: {engine.was} is replaced by {engine.is_to_be}")
    mark(engine, "installing")
    try:
        install(engine, *wanted(engine))
        wrong = settle(engine, engine.packages)
    except BROKEN as error:
        wrong = [line(error), *stopped(engine)]
    if wrong:
        go_back(engine, "; ".join(wrong))
    unmark()
    say(f"{engine.title}: {engine.is_to_be} keeps what is promised, after "
        f"{time.monotonic() - began:.0f} s")  # fmt: skip


def install(engine: Engine, *words: str | Path, more: Sequence[str] = ()) -> None:
    run(*APT, "install", *CHANGE, *more, *words, env=QUIET, timeout=LONG)
    hold(engine.held)
    if engine.replaced:
        # What a package was that is gone does not say of the other that it starts at boot.
        units = [unit for unit in engine.units if "@" not in unit]
        run("systemctl", "enable", "--quiet", *units)
    restart(engine)


def hold(names: Sequence[str]) -> None:
    """Nothing but this program moves what is installed of these."""
    if there := [name for name in names if installed(name)]:
        run("apt-mark", "hold", *there)


def restart(engine: Engine) -> None:
    """What its packages have not restarted themselves, and runs a program that is gone."""
    run("systemctl", "daemon-reload")
    for unit in engine.units:
        if not runs_old(unit):
            continue
        say(f"{engine.title}: restarting {unit}")
        if unit == "docker.service" and DOCKER_ENGINE.exists():
            run(DOCKER_ENGINE, "restart", timeout=LONG)
        else:
            run("systemctl", "restart", unit, timeout=LONG)


def runs_old(unit: str) -> bool:
    """Whether a unit runs a program that is no longer there, or none at all."""
    if cluster := re.fullmatch(r"postgresql@(\d+)-main\.service", unit):
        return is_old(cluster[1])
    process = run("systemctl", "show", "--value", "--property", "MainPID", unit).strip()
    try:
        return (PROC / process / "exe").readlink().name.endswith("(deleted)")
    except OSError:
        return True


def settle(engine: Engine, versions: Mapping[str, str]) -> list[str]:
    """What is not as promised, with patience; empty: all is."""
    began = time.monotonic()
    while wrong := [*differences(versions), *stopped(engine), *broken()]:
        if time.monotonic() - began > PATIENCE:
            break
        time.sleep(PAUSE)
    return wrong


def differences(versions: Mapping[str, str]) -> list[str]:
    return [
        f"{name} is {there or 'not installed'}, not {version}"
        for name, version in versions.items()
        if (there := installed(name)) != version
    ]


def stopped(engine: Engine) -> list[str]:
    return [
        f"{unit} does not run: `journalctl -u {unit}`"
        for unit in engine.units
        if not succeeds("systemctl", "is-active", "--quiet", unit)
    ]


def installed(name: str) -> str:
    """The version of a package that is there, whole; else empty."""
    show = ("dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Version}", name)
    status, _, version = run(*show, check=False).partition(" ")
    return version if status == "installed" else ""


def upgrade_rest() -> None:
    """All packages that are not held, the kernel among them; none is removed."""
    say("Upgrading the other packages")

    def heard(line: str) -> None:
        if line.startswith("Setting up "):
            say(f"  {line.removeprefix('Setting up ').removesuffix(' ...')}")

    try:
        follow(*APT, "upgrade", "--with-new-pkgs", heard=heard, env=QUIET)
    finally:
        mend()
    if wrong := settle(NOTHING, {}):
        raise Failed(f"since the other packages were upgraded: {'; '.join(wrong)}")


NOTHING = Engine("", "", "", {}, {})


def forget_older(plan: Plan) -> None:
    """Of each engine the packages of now and those before are kept, no others."""
    for engine in plan.engines:
        names = [
            pattern(name, version)
            for versions in (engine.packages, engine.before)
            for name, version in versions.items()
        ]
        for name in {**engine.packages, **engine.before}:
            for path in STATE.glob(f"{name}_*.deb"):
                if not any(path.match(one) for one in names):
                    path.unlink()


# --- the way back ---------------------------------------------------------------------------------


def go_back(engine: Engine, why: str) -> None:
    """The old packages are there again; raises Failed, which says both."""
    say(f"{engine.title} {engine.is_to_be} does not do: {why}")
    mark(engine, "undoing")
    if engine.lost:
        unmark()
        raise Failed(
            f"{engine.title} {engine.is_to_be}: {why}; there is no way back, for "
            f"{', '.join(engine.lost)} is offered no longer"
        )
    say(f"{engine.title}: back to {engine.was}")
    try:
        reinstall(engine)
        wrong = settle(engine, engine.before)
    except BROKEN as error:
        wrong = [line(error)]
    unmark()
    if wrong:
        raise Failed(f"{engine.title} {engine.is_to_be}: {why}; with {engine.was} again: "
                     f"{'; '.join(wrong)}")  # fmt: skip
    raise Failed(f"{engine.title} {engine.is_to_be} was taken back: {why}; {engine.was} keeps what "
                 "is promised, as before")  # fmt: skip


def reinstall(engine: Engine) -> None:
    files = [kept(name, version) for name, version in engine.before.items()]
    if None in files:
        raise Failed("the old packages are gone")
    old = [path for path in files if path]
    leaving = [name for name in engine.packages if name not in engine.before]
    try:
        words: list[str | Path] = [*old, *(f"{name}-" for name in leaving)]
        install(engine, *words, more=("--allow-downgrades",))
    except Failed as error:
        # apt will not do with what it finds half-done; dpkg asks less.
        say(f"  {line(error)}")
        if leaving:
            run("dpkg", "--remove", "--force-depends", *leaving, check=False, timeout=LONG)
        options = ("--force-downgrade", "--force-confold", "--force-confdef")
        run("dpkg", *options, "--install", *old, env=QUIET, timeout=LONG)
        hold(engine.held)
        restart(engine)


# --- a run that was killed ------------------------------------------------------------------------


def mark(engine: Engine, phase: str) -> None:
    data = {"phase": phase, "engine": engine.__dict__}
    write(STATE / "current.json", json.dumps(data) + "\n", 0o600)


def unmark() -> None:
    (STATE / "current.json").unlink(missing_ok=True)


def mend() -> None:
    """What dpkg was at when it was killed is finished, as far as it can be."""
    if run("dpkg", "--audit", check=False):
        options = ("--force-confdef", "--force-confold")
        run("dpkg", *options, "--configure", "-a", env=QUIET, timeout=LONG, check=False)


def recover() -> None:
    """After a run that came to its end there is nothing to do."""
    try:
        data = json.loads((STATE / "current.json").read_text())
        engine, phase = Engine.of(data["engine"]), data["phase"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    say(f"{engine.title}: an upgrade to {engine.is_to_be} was killed")
    mend()
    if not differences(engine.before) and not any(
        installed(name) for name in engine.packages if name not in engine.before
    ):
        # Before the first change, or after the last one back.
        unmark()
        restart(engine)
        say(f"{engine.title}: {engine.was} is there as before")
        return
    wrong = ["it was killed half-way"]
    if phase == "installing" and not differences(engine.packages):
        try:
            hold(engine.held)
            restart(engine)
            wrong = settle(engine, engine.packages)
        except BROKEN as error:
            wrong = [line(error), *stopped(engine)]
    if wrong:
        go_back(engine, "; ".join(wrong))
    unmark()
    say(f"{engine.title}: {engine.is_to_be} is there, and keeps what is promised")

"""
Managed by Terrafirma. Upgrades the engines one after the other, and rolls back one that fails.

    terrafirma upgrade            carry out the plan on standard input, in a unit of its own
    terrafirma upgrade run        carry out the plan: for that unit
    terrafirma upgrade recover    finish or undo an upgrade that was killed

Before an engine is touched, its installed packages are saved as files. If the host breaks a promise
(promises.py) with the new packages, the old ones are installed again. A file records the work under
way from the first change on: if the run is killed, its unit's last command, or the next run, reads
that file and finishes or undoes the work.
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
from terrafirma_host.postgres_minor import QUIET, back_up, is_old
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
from terrafirma_host.standstill import once_well, standstill

PROGRAM = "/usr/local/bin/terrafirma"
UNIT = "terrafirma-upgrade.service"
# Tells the process that waits for the unit that the reported end is that of its own run.
TOKEN = "TERRAFIRMA_UPGRADE"

STATE = Path("/var/lib/terrafirma/packages")
LOCK = Path("/run/terrafirma-upgrade.lock")
CACHE = Path("/var/cache/apt/archives")
PROC = Path("/proc")
DOCKER_ENGINE = Path("/usr/local/lib/terrafirma/docker-engine")

APT = (
    "apt-get", "-y", "-q", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=600",
    "-o", "Dpkg::Options::=--force-confold", "-o", "Dpkg::Options::=--force-confdef",
    # Without a terminal dpkg shows no progress, which would hide the reason of a failure.
    "-o", "Dpkg::Use-Pty=0",
    # Purging a replaced package would delete its data.
    "-o", "APT::Get::Purge=false", "-o", "APT::Get::AutomaticRemove=false",
    # apt's own user may not write to the directory of the saved packages, which is root's.
    "-o", "APT::Sandbox::User=root",
)  # fmt: skip
CHANGE = ("--allow-change-held-packages", "--no-install-recommends")
# Seconds for packages or a restart, until all must be as promised, and between two checks.
LONG = 3600
PATIENCE = 180
PAUSE = 2
# Seconds that a recovery waits for a release or a backup; it must end before the unit's time limit.
WAIT = 600


@dataclass(frozen=True)
class Engine:
    """Packages that are upgraded together, with the units that run their programs."""

    name: str
    title: str
    main: str  # the package whose version counts
    packages: dict[str, str]  # the packages to install, with versions
    old: dict[str, str]  # those of them that are installed now, with their present versions
    replaced: dict[str, str] = field(default_factory=dict)  # removed packages, which conflict
    held: tuple[str, ...] = ()  # packages to hold, if installed
    units: tuple[str, ...] = ()  # in the order in which they are restarted
    lost: tuple[str, ...] = ()  # old packages that are no longer offered: there is no way back

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Engine:
        many = {key: tuple(data[key]) for key in ("held", "units", "lost") if key in data}
        return cls(**{**data, **many})

    @property
    def before(self) -> dict[str, str]:
        """All packages of the engine before the upgrade."""
        return {**self.old, **self.replaced}

    @property
    def was(self) -> str:
        """The version before, for people; if the main package is new, that of each old package."""
        return self.old.get(self.main) or ", ".join(
            f"{name} {version}" for name, version in self.before.items()
        )

    @property
    def is_to_be(self) -> str:
        return self.packages[self.main]


@dataclass(frozen=True)
class Plan:
    engines: tuple[Engine, ...] = ()
    rest: bool = False  # whether to upgrade all other packages, too
    held: tuple[str, ...] = ()  # packages of engines, to hold while the others are upgraded

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Plan:
        return cls(tuple(map(Engine.of, data["engines"])), bool(data["rest"]), tuple(data["held"]))


def main(words: Sequence[str]) -> None:
    # apt's own user reads the saved packages, and systemd the written files.
    os.umask(0o022)
    match list(words):
        case []:
            begin(json.loads(sys.stdin.read()))
        case ["run"]:
            carry_out()
        case ["recover"]:
            # A running upgrade holds the lock, and there is nothing to recover then.
            with locked(LOCK, busy), logged():
                recover()
                # The step for all other packages has no way back, so finish that.
                mend()
        case _:
            sys.exit(__doc__)


def busy() -> Failed:
    return Failed(f"an upgrade is going on: tail -f {STATE / 'log'}")


# --- a unit of its own, which outlives the connection ---------------------------------------------


def begin(data: Mapping[str, Any]) -> None:
    Plan.of(data)  # fail on an unreadable plan before anything is written
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
            # Runs whatever ends the unit, kill -9 included.
            f"--property=ExecStopPost={PROGRAM} upgrade recover",
            f"--property=TimeoutStopSec={LONG}",
            f"--setenv={TOKEN}={token}",
            PROGRAM, "upgrade", "run",
        ],
        stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    # The exit code of systemd-run does not tell: for systemd a stopped unit has succeeded.
    with suppress(OSError, ValueError):
        ended = json.loads((STATE / "end.json").read_text())
        if ended["token"] == token:
            raise SystemExit(ended["status"])
    if unit_runs(UNIT):
        raise Failed(f"the upgrade goes on, but this command no longer waits: {STATE / 'log'}")
    raise Failed(f"the upgrade was stopped before its end: `journalctl -u {UNIT}`")


def carry_out() -> None:
    """Carry out the written plan, and record its end in a file for the process that waits."""
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
    """Write all messages to the log, too."""
    log = STATE / "log"
    LOG.append(log)
    try:
        yield
    finally:
        LOG.remove(log)


# --- the steps ------------------------------------------------------------------------------------


def line(error: BaseException) -> str:
    return " ".join(str(error).split())


def perform(plan: Plan) -> None:
    mend()
    if wrong := broken():
        raise Failed(f"nothing was changed: something is already broken: {'; '.join(wrong)}")
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
            # Hold the engines that are not upgraded, too.
            hold(plan.held)
            upgrade_rest()
    forget_older(plan)
    if why := reboot.due():
        say(f"A reboot is due: {'; '.join(why)}")


def keep(engine: Engine) -> None:
    """Save the installed packages as files, from which they can be installed again."""
    for name, version in engine.before.items():
        if name in engine.lost or kept(name, version):
            continue
        save(name, version)
        if kept(name, version):
            continue
        try:
            run("env", f"--chdir={STATE}", *APT, "download", f"{name}={version}", timeout=LONG)
        except Failed as error:
            raise Failed(
                f"nothing was changed: {name} {version}, the way back, cannot be fetched: {error}"
            ) from None


def save(name: str, version: str) -> None:
    """Copy the package's file out of apt's cache, if it is there."""
    for path in CACHE.glob(pattern(name, version)):
        shutil.copy2(path, STATE)


def pattern(name: str, version: str) -> str:
    """The name of a package's file, for any architecture."""
    return f"{name}_{version.replace(':', '%3a')}_*.deb"


def kept(name: str, version: str) -> Path | None:
    """The saved file of a package; a damaged or wrong file is deleted."""
    for path in STATE.glob(pattern(name, version)):
        said = run("dpkg-deb", "--show", "--showformat", "${Package} ${Version}", path, check=False)
        if said == f"{name} {version}":
            # The name is at the beginning of the file; this reads all of it.
            with suppress(Failed):
                run("dpkg-deb", "--contents", path)
                return path
        path.unlink()
    return None


def wanted(engine: Engine) -> list[str]:
    """Arguments for apt: packages with their versions, and conflicting packages to remove."""
    leaving = [f"{name}-" for name in engine.replaced if name not in engine.packages]
    return [*(f"{name}={version}" for name, version in engine.packages.items()), *leaving]


def foresee(engine: Engine) -> None:
    """Raise Failed if apt would remove a package that the plan does not name."""
    said = run(*APT, "--simulate", "install", *CHANGE, *wanted(engine), env=QUIET, timeout=LONG)
    gone = set(re.findall(r"^Remv (\S+)", said, re.MULTILINE)) - {*engine.replaced}
    if gone:
        raise Failed(
            f"nothing was changed: {engine.title} {engine.is_to_be} would remove "
            f"{', '.join(sorted(gone))}; remove that first, or keep {engine.title} as it is"
        )


def fetch(engine: Engine) -> None:
    """Fetch the new packages, so that the rest needs no network."""
    say(f"{engine.title}: fetching {engine.is_to_be}")
    options = ("install", "--download-only", *CHANGE)
    run(*APT, *options, *wanted(engine), env=QUIET, timeout=LONG)
    # The next upgrade needs them for its way back, and they may no longer be offered then.
    for name, version in engine.packages.items():
        save(name, version)


def replace(engine: Engine) -> None:
    """Install the new packages; roll back and raise Failed unless all is as promised."""
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
    say(f"{engine.title}: {engine.is_to_be} runs, and all is as promised, after "
        f"{time.monotonic() - began:.0f} s")  # fmt: skip


def install(engine: Engine, *words: str | Path, more: Sequence[str] = ()) -> None:
    run(*APT, "install", *CHANGE, *more, *words, env=QUIET, timeout=LONG)
    hold(engine.held)
    if engine.replaced:
        # The removed package's unit was enabled; the new package's unit may not be.
        units = [unit for unit in engine.units if "@" not in unit]
        run("systemctl", "enable", "--quiet", *units)
    restart(engine)


def hold(names: Sequence[str]) -> None:
    """Hold the installed ones of these packages, so that only this program upgrades them."""
    if there := [name for name in names if installed(name)]:
        run("apt-mark", "hold", *there)


def restart(engine: Engine) -> None:
    """Restart each unit that the packages have not restarted themselves."""
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
    """Whether a unit still runs a replaced program, or does not run."""
    if cluster := re.fullmatch(r"postgresql@(\d+)-main\.service", unit):
        return is_old(cluster[1])
    process = run("systemctl", "show", "--value", "--property", "MainPID", unit).strip()
    try:
        return (PROC / process / "exe").readlink().name.endswith("(deleted)")
    except OSError:
        return True


def settle(engine: Engine, versions: Mapping[str, str]) -> list[str]:
    """Wait until all is as promised; returns what is still wrong in the end."""
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
    """The version of a completely installed package; else empty."""
    show = ("dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Version}", name)
    status, _, version = run(*show, check=False).partition(" ")
    return version if status == "installed" else ""


def upgrade_rest() -> None:
    """Upgrade all packages that are not held, the kernel included; none is removed."""
    say("Upgrading the other packages")

    def heard(line: str) -> None:
        if line.startswith("Setting up "):
            say(f"  {line.removeprefix('Setting up ').removesuffix(' ...')}")

    try:
        follow(*APT, "upgrade", "--with-new-pkgs", heard=heard, env=QUIET)
    finally:
        mend()
    if wrong := settle(NOTHING, {}):
        raise Failed(f"after the upgrade of the other packages: {'; '.join(wrong)}")


NOTHING = Engine("", "", "", {}, {})


def forget_older(plan: Plan) -> None:
    """Delete each engine's saved packages, except the installed ones and those before."""
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
    """Install the old packages again; always raises Failed, with the reason and the result."""
    say(f"{engine.title}: {engine.is_to_be} fails: {why}")
    mark(engine, "undoing")
    if engine.lost:
        unmark()
        raise Failed(
            f"{engine.title} {engine.is_to_be}: {why}; there is no way back, because "
            f"{', '.join(engine.lost)} is no longer offered"
        )
    say(f"{engine.title}: back to {engine.was}")
    try:
        reinstall(engine)
        wrong = settle(engine, engine.before)
    except BROKEN as error:
        wrong = [line(error)]
    unmark()
    if wrong:
        raise Failed(f"{engine.title} {engine.is_to_be}: {why}; after the return to {engine.was}: "
                     f"{'; '.join(wrong)}")  # fmt: skip
    raise Failed(f"{engine.title} {engine.is_to_be} was rolled back: {why}; {engine.was} runs "
                 "again, and all is as promised")  # fmt: skip


def reinstall(engine: Engine) -> None:
    files = [kept(name, version) for name, version in engine.before.items()]
    if None in files:
        raise Failed("the files of the old packages are missing")
    old = [path for path in files if path]
    leaving = [name for name in engine.packages if name not in engine.before]
    try:
        words: list[str | Path] = [*old, *(f"{name}-" for name in leaving)]
        install(engine, *words, more=("--allow-downgrades",))
    except Failed as error:
        # apt may refuse to work on a half-done installation; dpkg is less strict.
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
    """Finish an interrupted run of dpkg, as far as possible."""
    if run("dpkg", "--audit", check=False):
        options = ("--force-confdef", "--force-confold")
        run("dpkg", *options, "--configure", "-a", env=QUIET, timeout=LONG, check=False)


def recover() -> None:
    """Finish or undo the upgrade of an engine that was killed, if there is one."""
    try:
        data = json.loads((STATE / "current.json").read_text())
        engine, phase = Engine.of(data["engine"]), data["phase"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    say(f"{engine.title}: an upgrade to {engine.is_to_be} was killed")
    # A broken host is no reason to wait, because the killed upgrade may have broken it.
    with once_well(list, "commands/upgrade.py", "recovery of an upgrade", WAIT, apt=False):
        finish_or_undo(engine, phase)


def finish_or_undo(engine: Engine, phase: str) -> None:
    mend()
    if not differences(engine.before) and not any(
        installed(name) for name in engine.packages if name not in engine.before
    ):
        # The run was killed before its first change, or after it had undone the last one.
        unmark()
        restart(engine)
        say(f"{engine.title}: {engine.was} is installed as before")
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
    say(f"{engine.title}: {engine.is_to_be} runs, and all is as promised")

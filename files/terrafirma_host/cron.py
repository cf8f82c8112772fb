"""
Managed by Terrafirma. The scheduled commands of an application: `terrafirma cron NAME JOB`.

A timer of systemd starts each job in the environment of the release that serves then. A job never
runs twice at once, and not while a migration runs or one release stops for another: it waits, and a
release waits for jobs under way. cron.json and the units have the jobs of the last release that
succeeded: those of a release that fails never run.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from terrafirma_host import engine, jobs
from terrafirma_host.engine import PROMPT
from terrafirma_host.jobs import Job
from terrafirma_host.shell import (
    BROKEN,
    Failed,
    content_of,
    plain_lines,
    run,
    say,
    succeeds,
    write,
)
from terrafirma_host.spec import RUNTIME, Application, now, serving_release
from terrafirma_host.target import in_release

UNITS = Path("/etc/systemd/system")
# The exit code of a job that was ended because its time was over, as timeout(1) has it.
LATE = 124
# Seconds that a job waits for the recovery after a killed release.
RECOVERY = 600


# --- the jobs and their timers --------------------------------------------------------------------


def installed(app: Application) -> list[Job]:
    """The jobs that have timers."""
    try:
        return jobs.read(app.name, json.loads(_file(app).read_text()))
    except FileNotFoundError:
        return []


def agrees(app: Application) -> bool:
    """Whether the timers are those of the description, and run."""
    wanted = jobs.of(app)
    if not wanted and not _units(app):
        return True
    files = _files(app)
    timers = [f"{one.unit}.timer" for one in wanted]
    return (
        {one.name for one in _units(app)} == {one.name for one in files}
        and all(path.read_text() == text for path, text in files.items())
        and content_of(_file(app)) == jobs.told(app)
        and all((UNITS / "timers.target.wants" / one).is_symlink() for one in timers)
        and succeeds("systemctl", "is-active", "--quiet", *timers)
    )


def agree(app: Application) -> None:
    """Make the timers those of the description."""
    if agrees(app):
        return
    before, files = installed(app), _files(app)
    names = {path.name for path in files}
    _end([path for path in _units(app) if path.name not in names])
    changed = {path.name for path, text in files.items() if content_of(path) != text}
    for path, text in files.items():
        write(path, text)
    write(_file(app), jobs.told(app))
    run("systemctl", "daemon-reload", timeout=PROMPT)
    for job in jobs.of(app):
        timer = f"{job.unit}.timer"
        run("systemctl", "enable", "--quiet", timer, timeout=PROMPT)
        # A timer that runs on keeps its old schedule.
        verb = "restart" if timer in changed else "start"
        run("systemctl", verb, timer, timeout=PROMPT)
        if job not in before:
            say(f"the job {job.name} of {app.name} runs {job.schedule}: {' '.join(job.command)}")
    for path in (app.directory / "cron").glob("*.json"):
        if path.stem not in app.cron:
            path.unlink()


def forget(app: Application) -> None:
    """No timer of an application is left; a job under way ends with its container."""
    for unit in _units(app):
        if unit.suffix == ".service":
            succeeds("systemctl", "stop", unit.name)
    if units := _units(app):
        _end(units)
        run("systemctl", "daemon-reload", timeout=PROMPT)


def _end(units: list[Path]) -> None:
    timers = [one.name for one in units if one.suffix == ".timer"]
    if timers:
        succeeds("systemctl", "disable", "--now", "--quiet", *timers)
    for one in units:
        one.unlink()


def _units(app: Application) -> list[Path]:
    return sorted(UNITS.glob(f"terrafirma-cron-{app.name}.*"))


def _file(app: Application) -> Path:
    return app.directory / "cron.json"


def _files(app: Application) -> dict[Path, str]:
    found = {}
    for job in jobs.of(app):
        what = f"the job {job.name} of {app.name}"
        found[UNITS / f"{job.unit}.service"] = (
            "# Managed by Terrafirma: releases\n"
            "[Unit]\n"
            f"Description=Run {what}\n"
            "After=docker.service\n"
            "\n"
            "[Service]\n"
            "Type=oneshot\n"
            f"ExecStart=/usr/local/bin/terrafirma cron {app.name} {job.name}\n"
            "# However this ends, its container ends with it.\n"
            f"ExecStopPost=/bin/sh -c 'docker rm --force {job.container} > /dev/null 2>&1 || :'\n"
            f"SyslogIdentifier={app.name}.{job.name}\n"
        )
        found[UNITS / f"{job.unit}.timer"] = (
            "# Managed by Terrafirma: releases\n"
            "[Unit]\n"
            f"Description=The schedule of {what}\n"
            "\n"
            "[Timer]\n"
            f"OnCalendar={job.schedule}\n"
            "AccuracySec=1s\n"
            "# A run that the host slept through follows at the next boot, once.\n"
            "Persistent=true\n"
            "\n"
            "[Install]\n"
            "WantedBy=timers.target\n"
        )
    return found


# --- what may run at once -------------------------------------------------------------------------


@contextmanager
def _held(path: Path, how: int) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _next(app: Application) -> Path:
    """Its lock belongs to a release that waits for jobs, so that no further job begins."""
    return RUNTIME / f"{app.name}.next.lock"


def _working(app: Application) -> Path:
    """Its lock is shared by the jobs under way."""
    return RUNTIME / f"{app.name}.jobs.lock"


def _own(app: Application, job: str) -> Path:
    return RUNTIME / f"{app.name}.{job}.job.lock"


def _look(app: Application) -> Path:
    """Its lock is held while a process takes or tries the lock of a job."""
    return RUNTIME / f"{app.name}.look.lock"


@contextmanager
def paused(app: Application) -> Iterator[None]:
    """No job runs within the block, which begins when those under way have ended."""
    with ExitStack() as stack:
        stack.enter_context(_held(_next(app), fcntl.LOCK_EX))
        try:
            stack.enter_context(_held(_working(app), fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            for job in under_way(app):
                say(f"waiting for the job {job.name}, at most {job.timeout_seconds} s; to end it: "
                    f"systemctl stop {job.unit}.service")  # fmt: skip
            stack.enter_context(_held(_working(app), fcntl.LOCK_EX))
        yield


@contextmanager
def _turn(app: Application) -> Iterator[None]:
    """A job runs within the block, which begins once no release is in its way."""
    deadline = time.monotonic() + RECOVERY
    while True:
        with ExitStack() as stack:
            with _held(_next(app), fcntl.LOCK_SH):
                stack.enter_context(_held(_working(app), fcntl.LOCK_SH))
            # Without it, no release was killed while the one that serves was stopped.
            if not app.stopped.exists():
                yield
                return
        if time.monotonic() > deadline:
            raise Failed(f"a release of {app.name} was interrupted: `terrafirma recover "
                         f"{app.name}`")  # fmt: skip
        time.sleep(1)


def under_way(app: Application) -> list[Job]:
    found = []
    # A job that begins at this moment waits, and does not take the look for another run of it.
    with _held(_look(app), fcntl.LOCK_EX):
        for job in installed(app):
            try:
                with _held(_own(app, job.name), fcntl.LOCK_EX | fcntl.LOCK_NB):
                    pass
            except BlockingIOError:
                found.append(job)
    return found


@contextmanager
def _alone(app: Application, name: str) -> Iterator[None]:
    """No other run of a job begins within the block; raises Failed where one is under way."""
    with ExitStack() as stack:
        with _held(_look(app), fcntl.LOCK_EX):
            try:
                stack.enter_context(_held(_own(app, name), fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError:
                raise Failed(f"the job {name} of {app.name} is under way") from None
        yield


# --- a run ----------------------------------------------------------------------------------------


def work(app: Application, name: str) -> int:
    """Run a job now; returns its exit code. Its output goes to ours."""
    _job(app, name)
    with _alone(app, name), _turn(app):
        # A release that it has waited for may have other jobs, and another description.
        app = Application.load(app.name)
        job = _job(app, name)
        began, at = time.monotonic(), now()
        code, late, words, release = 1, False, "", ""
        try:
            release = serving_release(app)[0].release
            code, late = _run(app, job)
        except BROKEN as error:
            words = str(error).splitlines()[0]
            raise
        finally:
            if late:
                words = f"ended after {job.timeout_seconds} s (timeout_seconds)"
            result = {"at": at, "seconds": round(time.monotonic() - began, 1), "code": code,
                      "words": words, "release": release}  # fmt: skip
            write(app.directory / "cron" / f"{name}.json", json.dumps(result) + "\n")
    if late:
        say(f"the job {name} of {app.name} was {words}")
    return code


def _job(app: Application, name: str) -> Job:
    known = {job.name: job for job in installed(app)}
    if name not in known:
        raise Failed(f"{app.name} has no job {name!r} ({', '.join(known) or 'none'})")
    return known[name]


def _run(app: Application, job: Job) -> tuple[int, bool]:
    """The exit code of the job's container, and whether it took too long."""
    compose, layer = in_release(app)
    # A run that was killed with its unit has left it.
    succeeds("docker", "rm", "--force", job.container)
    program, *rest = job.command
    command = compose.command(app.project("run"), layer)
    # Nothing but the job's own output belongs into the journal.
    command[command.index("plain")] = "quiet"
    command += ["run", "--rm", "--no-deps", "--no-TTY", "--interactive=false", "--name"]
    command += [job.container, "--entrypoint", program, job.service or app.service, *rest]
    late = threading.Event()

    def end() -> None:
        late.set()
        with suppress(*BROKEN):
            engine.stop(app, [job.container])
        # It may not have begun.
        process.kill()

    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # Found on our own PATH, as in `shell.run`.
        executable=shutil.which(command[0]), env=compose.environment(),
    ) as process:  # fmt: skip
        limit = threading.Timer(job.timeout_seconds, end)
        limit.start()
        try:
            assert process.stdout
            for line in plain_lines(process.stdout):
                print(line, flush=True)
            process.wait()
        finally:
            limit.cancel()
            succeeds("docker", "rm", "--force", job.container)
    return LATE if late.is_set() else process.returncode, late.is_set()


# --- the results ----------------------------------------------------------------------------------


def results(app: Application) -> list[dict[str, Any]]:
    """The jobs, each with its last result, and when it runs next."""
    running = under_way(app)
    return [
        {
            "job": job.name,
            "schedule": job.schedule,
            "command": list(job.command),
            "runs": job in running,
            "next": run(
                "systemctl", "show", f"{job.unit}.timer", "--property=NextElapseUSecRealtime",
                "--value", check=False,
            ).strip(),
            "last": _last(app, job),
        }
        for job in installed(app)
    ]  # fmt: skip


def _last(app: Application, job: Job) -> dict[str, Any]:
    """The last result of a job; empty if it has not run yet."""
    try:
        found = json.loads((app.directory / "cron" / f"{job.name}.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def lines(app: Application) -> list[str]:
    """The jobs for people, one a line."""
    found = []
    for one in results(app):
        last = one["last"]
        said = "has not run yet"
        if last:
            why = f" ({last['words']})" if last["words"] else ""
            said = f"{last['at'][:19]} exit {last['code']} after {last['seconds']:g} s{why}"
        next_one = "runs now" if one["runs"] else f"next {one['next'] or 'never'}"
        found.append(f"job {one['job']}, {one['schedule']}: {said}; {next_one}")
    return found


def failures(app: Application) -> list[str]:
    """A line for each job whose last run failed."""
    return [
        f"the job {job.name} failed: exit {last['code']} at {last['at'][:19]}"
        f"{' (' + last['words'] + ')' if last['words'] else ''}: journalctl -u {job.unit}"
        for job in installed(app)
        if (last := _last(app, job)) and last["code"]
    ]

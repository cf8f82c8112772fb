"""
Managed by Terrafirma. What a backup needs of the applications, for files/borg/backup.

    terrafirma backup begin    run the commands before a backup; print the volumes, as JSON
    terrafirma backup end      run those afterwards, also after a backup that was killed

The engine knows the volumes for certain: an application of a deploy key may have others than its
settings describe. The same label marks those that we made, and containers name those that were
there before. A command that fails, or takes too long, ends no backup.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from terrafirma_host import dumps, engine, values
from terrafirma_host.dumps import Dump
from terrafirma_host.engine import PROMPT, Container
from terrafirma_host.shell import BROKEN, Failed, conceal, content_of, plain_lines, run, write
from terrafirma_host.spec import Application, Serving, description, names

# Which commands a backup has begun, until those afterwards have run. A restart of the host ends
# whatever a command began in a container, so the file does not outlive it.
NOTE = Path("/run/terrafirma/backup.json")
# A variable by which the processes of a command are found: the engine cannot end them.
MARK = "TERRAFIRMA_BACKUP"
PROC = Path("/proc")
# Seconds until a command is tried once more: its container may have been replaced by a release.
AGAIN = 10
# Seconds that processes have to end by themselves.
GRACE = 10
# The errors of a description that another version wrote, or that was edited by hand.
DAMAGED = (*BROKEN, AttributeError, LookupError, TypeError)

Troubles = dict[str, str]


def main(words: Sequence[str]) -> None:
    match words:
        case ["begin"]:
            print(json.dumps(begin()))
        case ["end"]:
            if troubles := end():
                print(json.dumps({"troubles": troubles}))
        case _:
            raise SystemExit(__doc__)


def begin() -> dict[str, Any]:
    """
    The volumes of all applications, once the commands before a backup have run.

    With `troubles`, each with its reason, and `good`: the services whose commands succeeded.
    """
    if not shutil.which("docker"):
        return {"volumes": [], "troubles": {}, "good": []}
    troubles = end()
    good = []
    for one in _all(troubles):
        try:
            _begin(one)
            good.append(str(one))
        except BROKEN as error:
            troubles[f"backup_command of {one}"] = _line(error)
    # Afterwards: a command may make its container, and so a volume, anew.
    found, elsewhere = volumes()
    return {"volumes": found, "troubles": {**troubles, **elsewhere}, "good": good}


def end() -> Troubles:
    """Run the commands after a backup of all services whose commands before it have begun."""
    note = _note()
    if not note:
        return {}
    if token := note.get("token"):
        # The backup was killed while a command ran.
        _kill(str(token))
    troubles: Troubles = {}
    begun = [str(one) for one in note.get("begun") or ()]
    for one in [one for one in _all(troubles) if str(one) in begun and one.after]:
        try:
            _execute(one, one.after, container(one))
        except BROKEN as error:
            troubles[f"backup_after of {one}"] = _line(error)
    NOTE.unlink(missing_ok=True)
    return troubles


def _note() -> dict[str, Any]:
    try:
        found = json.loads(content_of(NOTE) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


# --- volumes --------------------------------------------------------------------------------------


def volumes() -> tuple[list[str], Troubles]:
    """The directories of all lasting volumes, and those that no directory of this host has."""
    left = {name: _described(name) for name in names()}
    wanted = {
        volume for app, volume in _used() if not dumps.left_out(left.get(app, {}), volume)
    }  # fmt: skip
    found, troubles = [], {}
    for one in engine.inspect("volume", sorted(wanted)):
        place, options = one.get("Mountpoint") or "", one.get("Options") or {}
        if options.get("type") == "tmpfs":
            continue
        if not (place and Path(place).is_dir()):
            troubles[f"the volume {one['Name']}"] = (
                f"its driver, {one.get('Driver')}, keeps it elsewhere (backup_leave_out)"
            )
            continue
        if options.get("device") and not Path(place).is_mount():
            troubles[f"the volume {one['Name']}"] = (
                f"{options['device']} is mounted only while a container has it, and none runs"
            )
            continue
        # The engine's own driver has the files in _data; its other files belong to them.
        found.append(place.removesuffix("/_data"))
    return sorted(found), troubles


def _used() -> Iterator[tuple[str, str]]:
    """Each lasting volume, after an application that has it."""
    label = "terrafirma.app"
    ours = ["--quiet", "--filter", f"label={label}"]
    made = run("docker", "volume", "ls", *ours, timeout=PROMPT).split()
    for one in engine.inspect("volume", made):
        yield (one.get("Labels") or {}).get(label, ""), one["Name"]
    there = run("docker", "ps", "--all", "--no-trunc", *ours, timeout=PROMPT).split()
    for one in engine.inspect("container", there):
        labels = (one.get("Config") or {}).get("Labels") or {}
        app = labels.get(label, "")
        stateful = labels.get("com.docker.compose.project") == f"{app}-state"
        for mount in one.get("Mounts") or []:
            # One without a name lasts as long as its container: of a stateful service.
            nameless = re.fullmatch("[0-9a-f]{64}", mount.get("Name") or "")
            if mount.get("Type") == "volume" and (stateful or not nameless):
                yield app, mount["Name"]


def _described(name: str) -> Mapping[str, Any]:
    with suppress(*DAMAGED):
        return dict(description(name))
    return {}


# --- commands -------------------------------------------------------------------------------------


def _all(troubles: Troubles) -> list[Dump]:
    """The commands of all applications that have a release."""
    found = []
    for name in names():
        try:
            # Described by the version before, until the deploy comes to it.
            app = Application.of_any_version(name)
            if Serving.load(app):
                found += dumps.of(app)
                _conceal(app)
        except DAMAGED as error:
            troubles[f"the description of {name}"] = _line(error)
    return found


def _conceal(app: Application) -> None:
    """No message quotes a secret that a command prints."""
    with suppress(*DAMAGED):
        given = app.further_variables() if app.env_file else {}
        conceal([*app.values().values(), *values.confidential(given)])


def container(one: Dump) -> Container:
    """A container of a service that runs: the stateful one, or one of the release that serves."""
    app = Application.of_any_version(one.app)
    serving = Serving.load(app)
    for project in [app.project("state"), *([app.project(serving.slot)] if serving else [])]:
        for found in engine.containers(project, one.service):
            if found.state == "running":
                return found
    raise Failed("no container of it runs")


def _begin(one: Dump) -> None:
    """Run a command before a backup; one that fails at once is tried again."""
    note = _note()
    _write({**note, "begun": [*(note.get("begun") or ()), str(one)]})
    try:
        _execute(one, one.command, container(one))
    except Late:
        raise
    except Failed:
        time.sleep(AGAIN)
        _execute(one, one.command, container(one))


def _write(note: Mapping[str, Any]) -> None:
    write(NOTE, json.dumps(note) + "\n", 0o600)


class Late(Failed):
    """The time of a command was over."""


def _execute(one: Dump, words: Sequence[str], where: Container) -> None:
    """Run a command in a container, with its user and environment; raises Failed."""
    token, late = token_hex(8), threading.Event()
    # Noted before it begins: if the backup is killed, its end knows the processes.
    _write({**_note(), "token": token})
    said = ""
    with subprocess.Popen(
        ["docker", "exec", "--env", f"{MARK}={token}", where.id, *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip

        def stop() -> None:
            late.set()
            _kill(token)
            # The engine itself may hang.
            process.kill()

        limit = threading.Timer(one.seconds, stop)
        limit.start()
        try:
            assert process.stdout
            for line in plain_lines(process.stdout):
                said = line.strip() or said
            process.wait()
        finally:
            limit.cancel()
    _write({key: value for key, value in _note().items() if key != "token"})
    if late.is_set():
        raise Late(f"ended after {one.seconds} s (backup_seconds)")
    if process.returncode:
        raise Failed(f"exit {process.returncode}{f': {said}' if said else ''}")


def _kill(token: str) -> None:
    """End all processes of a command, which the engine's own client leaves running."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE
        for pid in _marked(token):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        while _marked(token) and time.monotonic() < deadline:
            time.sleep(0.1)


def _marked(token: str) -> list[int]:
    mark, found = f"{MARK}={token}".encode(), []
    for path in PROC.glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found

"""Managed by Terrafirma. What the commands about applications do."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from secrets import token_hex
from typing import Any, BinaryIO, NoReturn

from terrafirma_host import cron, engine, forced, proxy, pulls, registries, release
from terrafirma_host.cli import DAMAGED, TOKEN, UNIT, end_of
from terrafirma_host.forced import PROGRAM
from terrafirma_host.image_names import Image
from terrafirma_host.lease import LONGEST, Busy, describe
from terrafirma_host.shell import BROKEN, Failed, plain_lines, say
from terrafirma_host.spec import (
    RUNTIME,
    Application,
    Serving,
    history,
    known_releases,
    names,
    serving_release,
)
from terrafirma_host.target import fits_description, in_release, with_serving_code


def run(arguments: argparse.Namespace) -> None:
    match arguments.command:
        case "forced":
            forced.run(arguments.names)
        case "releases":
            _show_releases(arguments.name, as_json=arguments.json)
        case "status":
            if arguments.stdin:
                # After the description: the run of the deploy that asks.
                text = sys.stdin.read()
                described, end = json.JSONDecoder().raw_decode(text)
                registries.begin(text[end:].strip())
                app = Application.of(described)
            else:
                app = Application.load(arguments.name)
            print(json.dumps(release.status(app)))
        case "logs":
            _logs(Application.load(arguments.name), arguments)
        case "run" | "console":
            _container(Application.load(arguments.name), arguments.words or ["sh"])
        case "cron":
            _cron(Application.load(arguments.name), arguments.job)
        case "maintenance":
            app = Application.load(arguments.name)
            if arguments.state:
                proxy.maintain(app, arguments.state == "on")
            say(
                f"maintenance of {app.name} is {'on' if proxy.maintenance(app).exists() else 'off'}"
            )
        case "remove":
            if arguments.confirm != arguments.name:
                raise Failed(f"this ends {arguments.name} and removes its releases: add "
                             f"--confirm {arguments.name}")  # fmt: skip
            release.remove(Application.of_any_version(arguments.name), by=_who(""))
        case "recover":
            if arguments.name:
                release.recover(Application.load(arguments.name), by=_who(""))
            else:
                _recover_all()
        case _:
            _serve(arguments)


def _all() -> Iterator[Application]:
    """All applications but those that another version of this program has described."""
    for name in names():
        try:
            yield Application.load(name)
        except (*BROKEN, *DAMAGED) as error:
            print(f"terrafirma: {name} is left alone: {error}", file=sys.stderr, flush=True)


def _recover_all() -> None:
    """At boot: recover each application, also where another one fails."""
    troubles = []
    for app in _all():
        try:
            release.recover(app, by=_who(""))
        except Busy as error:
            # The release under way began by cleaning up after the one before.
            say(str(error))
        except (*BROKEN, *DAMAGED) as error:
            troubles.append(f"{app.name}: {error}")
    if troubles:
        raise Failed("\n".join(troubles))


def _serve(arguments: argparse.Namespace) -> None:
    """Run a command that replaces containers, in a unit of its own that outlives the connection."""
    app = Application.load(arguments.name)
    if not os.environ.get(UNIT):
        _become_unit(app, arguments.command, sys.argv[1:])
    by = _who(arguments.by)
    match arguments.command:
        case "rollback":
            release.rollback(app, arguments.release, by=by)
        case "restart":
            release.restart(app, by=by)
        case "refresh":
            if Serving.load(app):
                release.refresh(app, by=by)
            else:
                say(f"{app.name} has no release yet")
        case "release":
            registries.begin(arguments.run)
            revision = arguments.revision
            if arguments.image:
                _refuse_other_image(app, arguments.image)
                app = app.with_image(arguments.image)
            source: BinaryIO | None = None
            if arguments.source:
                if arguments.source != "-" or not app.source:
                    raise Failed(f"--source: {app.name} takes - alone, and only when it is built "
                                 "from a source")  # fmt: skip
                source = sys.stdin.buffer
            if not arguments.image and not source:
                asked, app = app, with_serving_code(app)
                # This revision is that of the source here, not of the code that a key sent.
                revision = arguments.revision if app is asked else ""
            release.release(app, by=by, revision=revision, again=arguments.again, source=source)


def _become_unit(app: Application, command: str, words: Sequence[str]) -> NoReturn:
    unit = f"terrafirma-release-{app.name}.service"
    state = RUNTIME / f"{app.name}.json"
    if state.exists() and engine.unit_runs(unit):
        raise Failed(f"another release of {app.name} is going on: {describe(app)}")
    token = token_hex(8)
    # For the undoing of all steps, which may have to start the old release again.
    patience = app.drain_seconds + app.slowest_stop + app.start_seconds * app.stops_first + 600
    sys.stdout.flush()
    waited = subprocess.run(
        [
            "systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--unit={unit}",
            f"--description=Release of {app.name}",
            # Whatever ends the unit, kill -9 included, the release that served goes on to serve.
            f"--property=ExecStopPost={PROGRAM} recover {app.name}",
            f"--property=RuntimeMaxSec={LONGEST + 600}",
            # For the registry's password: systemd removes the directory however the unit ends.
            f"--property=RuntimeDirectory=terrafirma/releases/{app.name}",
            "--property=RuntimeDirectoryMode=0700",
            f"--property=TimeoutStopSec={patience}",
            f"--setenv={UNIT}={unit}", f"--setenv=TERRAFIRMA_BY={_who('')}",
            f"--setenv={TOKEN}={token}",
            PROGRAM, *words,
        ],
        check=False,
    )  # fmt: skip
    # The exit code of systemd-run does not tell: for systemd a stopped unit has succeeded.
    try:
        found, status = end_of(app.name).read_text().split()
    except (FileNotFoundError, ValueError):
        found, status = "", ""
    if found == token:
        raise SystemExit(int(status))
    if engine.unit_runs(unit):
        raise Failed(f"nobody waits for the release of {app.name} any more, and it goes on: "
                     f"`terrafirma releases {app.name}` will show it")  # fmt: skip
    serving = Serving.load(app)
    raise Failed(
        f"the {command} of {app.name} was stopped before its end (systemd-run: exit "
        f"{waited.returncode}); {serving.release if serving else 'nothing'} serves: "
        f"`journalctl -u {unit}`"
    )


def _who(by: str) -> str:
    """Who asks for the command: the given name, or the account that became root."""
    return by or os.environ.get("TERRAFIRMA_BY") or os.environ.get("SUDO_USER") or "root"


def _refuse_other_image(app: Application, image: str) -> None:
    if not app.image:
        raise Failed(f"--image: {app.name} is built from a source")
    if Image.of(image).repository != Image.of(app.image).repository:
        raise Failed(f"--image: {app.name} comes from {Image.of(app.image).repository}, not from "
                     f"{Image.of(image).repository}")  # fmt: skip


def _logs(app: Application, arguments: argparse.Namespace) -> NoReturn:
    serving, _ = serving_release(app)
    words = ["docker", "compose", "--project-name", app.project(serving.slot), "logs"]
    words += ["--no-color", "--tail", str(arguments.lines)]
    words += ["--follow"] if arguments.follow else []
    words += ["--timestamps"] if arguments.timestamps else []
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        try:
            for line in plain_lines(process.stdout):
                print(line, flush=True)
        except BrokenPipeError:
            # The reader of the pipe has closed it.
            process.kill()
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(process.returncode)


def _container(app: Application, words: Sequence[str]) -> NoReturn:
    compose, layer = in_release(app)
    terminal = [] if sys.stdin.isatty() else ["--no-TTY"]
    # Replace the entry point, as `docker exec` does: the image's own may be the server.
    program, *rest = words
    compose.become(
        # In a project of its own, so that the next release does not stop it.
        app.project("run"), layer, "run", "--rm", "--no-deps", *terminal,
        "--entrypoint", program, app.service, *rest,
    )  # fmt: skip


def _cron(app: Application, job: str) -> None:
    if job:
        raise SystemExit(cron.work(app, job))
    for line in cron.lines(app) or [f"{app.name} has no jobs"]:
        say(line)


def _show_releases(name: str | None, *, as_json: bool) -> None:
    apps = [Application.load(name)] if name else list(_all())
    answers = [_releases(one) for one in apps]
    if as_json:
        print(json.dumps(answers))
        return
    for app, answer in zip(apps, answers, strict=True):
        serving = answer["serving"] or "no release"
        page = ", under maintenance" if answer["maintenance"] else ""
        say(f"{answer['application']}: {answer['replicas']} replicas of {serving}{page}")
        for line in cron.lines(app):
            say(f"  {line}")
        shown = set()
        for line in answer["history"]:
            one, revision = line["release"], (line["revision"] or "-")[:12]
            marks = [
                mark
                for mark, marked in (
                    ("serves", one == answer["serving"]),
                    ("rolled back", one in answer["withdrawn"]),
                    ("kept", one in answer["kept"]),
                )
                if marked and one not in shown
            ]
            shown.add(one)
            say(
                f"  {line['at'][:19]}  {line['action']:8}  {one}  {revision:12}  {line['by']:24}  "
                + ", ".join(marks)
            )


def _releases(app: Application) -> dict[str, Any]:
    serving, known = Serving.load(app), known_releases(app)
    return {
        "application": app.name,
        "serving": serving.release if serving else "",
        "replicas": serving.replicas if serving else 0,
        "maintenance": proxy.maintenance(app).exists(),
        "cron": cron.results(app),
        "kept": [one.id for one in known if fits_description(app, one) and pulls.has_images(one)],
        "withdrawn": [one.id for one in known if one.withdrawn],
        "history": history(app)[:50],
    }

"""
Managed by Terrafirma. The command `terrafirma` on a server.

    terrafirma releases api            what ran when, and which releases a rollback can reach
    terrafirma rollback api            let the release before this one serve again
    terrafirma logs api --follow       the log of all replicas
    terrafirma run api -- CMD …        a command in the release's environment
    terrafirma promises                whether everything works
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO, NoReturn

from terrafirma_host import (
    cron,
    delivery,
    engine,
    forced,
    postgres_check,
    postgres_minor,
    postgres_passwords,
    postgres_upgrade,
    promises,
    proxy,
    pulls,
    reboot,
    registries,
    release,
    repositories,
    secrets,
    updates,
    upgrade,
)
from terrafirma_host.forced import PROGRAM
from terrafirma_host.image_names import Image
from terrafirma_host.lease import LONGEST, Busy, describe
from terrafirma_host.shell import BROKEN, Failed, plain, plain_lines, say, write
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

UNIT = "TERRAFIRMA_UNIT"
# Tells the process that waits for a unit that the reported end is that of its own unit.
TOKEN = "TERRAFIRMA_TOKEN"

# Commands that each parse the arguments after their names.
DEPLOY = {
    "secrets": secrets.main,
    "source": delivery.main,
    "repositories": repositories.main,
    "passwords": postgres_passwords.main,
    "postgres-check": postgres_check.main,
    "postgres-upgrade": postgres_upgrade.main,
    "postgres-minor": postgres_minor.main,
    "promises": promises.main,
    "reboot": reboot.main,
    "updates": updates.main,
    "upgrade": upgrade.main,
}

# Of those, the commands that the help lists; the others are for the deploy and for units alone.
LISTED = {
    "promises": "check whether everything works: applications, PostgreSQL, Caddy",
    "updates": "print what is due and what happened in the windows, as JSON",
    "secrets": "check, set or renew the secrets in a directory",
    "upgrade": "carry out an upgrade that commands/upgrade.py planned, or recover one",
}

# The errors to which a file of ours leads that was edited by hand.
DAMAGED = (AttributeError, LookupError, TypeError)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="terrafirma", description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def added(name: str, text: str, *, listed: bool) -> argparse.ArgumentParser:
        if listed:
            return commands.add_parser(name, help=text, description=text)
        # argparse lists each command that has a `help`, even an empty one.
        return commands.add_parser(name, description=text)

    def command(
        name: str, text: str, *, optional: bool = False, listed: bool = True
    ) -> argparse.ArgumentParser:
        one = added(name, text, listed=listed)
        one.add_argument("name", metavar="APPLICATION", nargs="?" if optional else None)
        return one

    one = command("release", "release what the deploy described, or another source or image")
    one.add_argument("--source", default="", help="-: a gzipped tar on standard input")
    one.add_argument("--image", default="", help="the same image by another tag or digest")
    one.add_argument("--revision", default="", help="of the source, for the list of releases")
    one.add_argument("--by", default="", help="who asks for it")
    one.add_argument("--again", action="store_true", help="even code that was rolled back")
    one.add_argument("--run", default="", help="for the deploy: which run asks for it")
    one = command("refresh", "give the code that serves the current settings and secrets")
    one.add_argument("--by", default="", help="who asks for it")
    one = command("rollback", "let an earlier release serve again")
    one.add_argument("release", nargs="?", default="", help="its ID; without it, the one before")
    one.add_argument("--by", default="", help="who asks for it")
    one = command("releases", "show what ran when, and what is kept", optional=True)
    one.add_argument("--json", action="store_true", help="for programs")
    one = command("logs", "show the logs of all containers of the release")
    one.add_argument("-f", "--follow", action="store_true", help="go on with new lines")
    one.add_argument("-n", "--lines", type=int, default=100, help="so many of each (100)")
    one.add_argument("-t", "--timestamps", action="store_true", help="with the time of each line")
    one = command("run", "run a command in the release's environment, in a container of its own")
    one.add_argument("words", nargs="+", metavar="WORD", help="the command; put -- before it")
    one = command("console", "open a shell in the release's environment")
    one.add_argument("words", nargs="*", metavar="WORD", help="instead of sh")
    one = command("cron", "run a job of an application's `cron` now; without JOB: show all jobs")
    one.add_argument("job", nargs="?", default="", metavar="JOB", help="its name")
    one = command("restart", "replace the containers that serve, without a failed request")
    one.add_argument("--by", default="", help="who asks for it")
    one = command("maintenance", "switch the page for maintenance on or off")
    one.add_argument("state", nargs="?", choices=["on", "off"], help="without it: show the state")
    one = command(
        "remove",
        "remove an application that is no longer in your settings; its volumes and secrets stay",
    )
    one.add_argument("--confirm", default="", metavar="APPLICATION", help="its name once more")
    command("recover", "clean up after a release that was killed", optional=True, listed=False)
    one = command("status", "print whether the described release serves and answers, as JSON")
    one.add_argument("--stdin", action="store_true", help="read the description from stdin")
    one = added("forced", "for sshd: run what a deploy key may do", listed=False)
    one.add_argument("names", nargs="+", metavar="APPLICATION")
    for name in DEPLOY:
        one = added(name, LISTED.get(name, "for the deploy"), listed=name in LISTED)
        one.add_argument("words", nargs="*")
    return top


def main(words: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(words)
    if not arguments.command:
        parser().print_help()
        return 0
    # The account postgres, which writes PostgreSQL's configuration, also tries it.
    if os.geteuid() != 0 and arguments.command != "postgres-check":
        print("terrafirma: run it as root (sudo)", file=sys.stderr)
        return 1
    os.umask(0o077)
    status = 0
    # People, sudo and systemd call this program, each with a locale of their own.
    os.environ["LC_ALL"] = "C.UTF-8"
    try:
        if arguments.command in DEPLOY:
            # They run programs as accounts that may not enter every directory.
            os.chdir("/")
            DEPLOY[arguments.command](arguments.words)
        else:
            _run(arguments)
    except (*BROKEN, *DAMAGED) as error:
        print(f"terrafirma: {plain(str(error))}", file=sys.stderr, flush=True)
        status = 1
    except KeyboardInterrupt:
        status = 130
    if os.environ.get(UNIT) and arguments.command != "recover":
        # A process that is stopped or killed writes no such file.
        write(_end(arguments.name), f"{os.environ.get(TOKEN)} {status}\n", 0o600)
    return status


def _end(name: str) -> Path:
    """The file in which a unit that has come to its end writes its exit code."""
    return RUNTIME / f"{name}.end"


def _run(arguments: argparse.Namespace) -> None:
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
        found, status = _end(app.name).read_text().split()
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

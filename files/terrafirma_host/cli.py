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
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from terrafirma_host.shell import BROKEN, plain, write
from terrafirma_host.spec import RUNTIME

UNIT = "TERRAFIRMA_UNIT"
# Tells the process that waits for a unit that the reported end is that of its own unit.
TOKEN = "TERRAFIRMA_TOKEN"

# Commands that each parse the arguments after their names, and their modules.
DEPLOY = {
    "backup": "backup",
    "secrets": "secrets",
    "source": "delivery",
    "repositories": "repositories",
    "passwords": "postgres_passwords",
    "postgres-check": "postgres_check",
    "postgres-upgrade": "postgres_upgrade",
    "postgres-minor": "postgres_minor",
    "promises": "promises",
    "reboot": "reboot",
    "updates": "updates",
    "upgrade": "upgrade",
}

# Of those, the commands that the help lists; the others are for the deploy and for units alone.
LISTED = {
    "promises": "check whether everything works: applications, PostgreSQL, Caddy, backups",
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
            _module(DEPLOY[arguments.command]).main(arguments.words)
        else:
            _module("commands").run(arguments)
    except (*BROKEN, *DAMAGED) as error:
        print(f"terrafirma: {plain(str(error))}", file=sys.stderr, flush=True)
        status = 1
    except KeyboardInterrupt:
        status = 130
    if os.environ.get(UNIT) and arguments.command != "recover":
        # A process that is stopped or killed writes no such file.
        write(end_of(arguments.name), f"{os.environ.get(TOKEN)} {status}\n", 0o600)
    return status


def _module(name: str) -> Any:
    """A module that is loaded for its commands alone: the deploy asks many short questions."""
    return import_module(f"terrafirma_host.{name}")


def end_of(name: str) -> Path:
    """The file in which a unit that has come to its end writes its exit code."""
    return RUNTIME / f"{name}.end"

"""Managed by Terrafirma. What a client with a deploy key may ask for."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from terrafirma_host.image_names import NAME
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

PROGRAM = "/usr/local/bin/terrafirma"
# A client's names of a revision and a release are shown on other people's terminals.
REVISION = r"[A-Za-z0-9][\w./+-]{0,99}"
RELEASE = r"[0-9a-f]{6,12}"


def run(allowed: Sequence[str]) -> None:
    """Do what the client with a deploy key asks for, where the key allows it."""
    words = asked_for(allowed, os.environ.get("SSH_ORIGINAL_COMMAND", ""))
    app = Application.load(words[1])
    if not app.automated:
        # Only tasks/app.py checks that the compose files read nothing that a key sends.
        raise Failed(f"{app.name} is not described as one that a key releases: run deploy.py first")
    by = f"--by=deploy key of {os.environ.get('SUDO_USER', 'root')}"
    if words[0] != "releases":
        words.append(by)
    if words[0] == "release" and app.source:
        words.append("--source=-")
    os.execv(PROGRAM, [PROGRAM, *words])


def asked_for(allowed: Sequence[str], asked: str) -> list[str]:
    """The client's command as arguments of this program; raises Failed where it is not allowed."""
    usage = Failed(
        f"this key may: release [{'|'.join(allowed)}] [--image REF] [--revision REV]; "
        "rollback [APPLICATION] [RELEASE]; releases [APPLICATION]"
    )
    # The client's text is shown to root, on a terminal.
    if not asked.isprintable():
        raise Failed(usage)
    try:
        command, *rest = shlex.split(asked)
    except ValueError:
        raise usage from None
    if rest and rest[0] in allowed:
        name = rest.pop(0)
    elif len(allowed) == 1:
        name = allowed[0]
    else:
        raise usage
    match command, rest:
        case "releases", []:
            return ["releases", name]
        case "rollback", []:
            return ["rollback", name]
        case "rollback", [release_id] if re.fullmatch(RELEASE, release_id):
            return ["rollback", name, release_id]
        case "release", options if len(options) % 2 == 0:
            chosen = dict(zip(options[::2], options[1::2], strict=True))
            right = {"--image": NAME, "--revision": REVISION}
            if len(chosen) * 2 == len(options) and all(
                key in right and re.fullmatch(right[key], value) for key, value in chosen.items()
            ):
                return ["release", name, *(f"{key}={value}" for key, value in chosen.items())]
    raise usage

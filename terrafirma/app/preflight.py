"""Refuse an application that the host would refuse, before a run changes anything."""

from __future__ import annotations

import functools
import hashlib
import json
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from pyinfra.api import DeployError, Host

from terrafirma.app.early import early
from terrafirma.app.env_files import given
from terrafirma.app.settings import Application
from terrafirma.host import cache
from terrafirma.settings import ROOT


def refuse_project(host: Host, app: Application, described: str) -> None:
    """
    Raise DeployError, with a line for each fault, where the host would refuse an application.

    A project that was found right is not read again until its settings or variables change, or
    those files of its source that count before a build.

    + described: the content of NAME.json
    """
    asked = _digest(app, described)
    mark = cache.directory("checked") / asked
    if mark.exists():
        # The newest marks are kept.
        with suppress(OSError):
            mark.touch()
        return
    # Loaded only here: in most runs all projects have been found right before.
    if refusals := import_module("terrafirma.app.check").examine(app, described).refusals:
        raise DeployError("\n".join(f"{host.name}: {line}" for line in refusals))
    _keep(mark)


KEPT = 200
"""Empty files that are kept, the newest: one for each application that was found right."""


def _keep(mark: Path) -> None:
    # Without a home that can be written, each run reads the projects.
    with suppress(OSError):
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch()
        cache.keep_newest(mark.parent.iterdir(), KEPT)


def _digest(app: Application, described: str) -> str:
    """Of all that decides: the programs, the settings, and some files of the source."""
    settings = json.loads(described)
    # It is named after all its files.
    settings["source"] = bool(settings["source"])
    # Compose files may refer to variables of `env_file`, whose values are not in the settings.
    decides = [_rules(), settings, early(app).lines, given(app)]
    text = json.dumps(decides, sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


@functools.cache
def _rules() -> str:
    """A digest of the programs that decide."""
    digest = hashlib.sha256()
    for directory in ("files/terrafirma_host", "terrafirma/app"):
        for path in sorted((ROOT / directory).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()

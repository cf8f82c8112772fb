"""A project as the host's program would read it, on the machine that deploys, without a server."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from terrafirma_host import spec
from terrafirma_host.compose import Compose
from terrafirma_host.shell import Failed

from terrafirma.app.early import early
from terrafirma.app.env_files import given
from terrafirma.app.rules import LARGEST_COMPOSE_FILE
from terrafirma.app.settings import Application
from terrafirma.paths import SECRETS

# Where packages and Docker Desktop install Compose; it also runs without `docker`.
PLUGINS = (
    *("~/.docker/cli-plugins", "/usr/local/lib/docker/cli-plugins"),
    *("/usr/local/libexec/docker/cli-plugins", "/usr/lib/docker/cli-plugins"),
    *("/usr/libexec/docker/cli-plugins", "/opt/homebrew/lib/docker/cli-plugins"),
)

LARGE = LARGEST_COMPOSE_FILE
"""Bytes of a file whose content nothing reads before a build: a longer one stays empty here."""


@cache
def compose_program() -> tuple[str, ...]:
    """
    Docker Compose v2 on this machine; raises Failed where there is none.

    The pinned package comes first: so everybody who deploys reads the files with one version.
    """
    package = find_spec("compose")
    for place in package.submodule_search_locations or () if package else ():
        if (program := Path(place, "docker-compose")).is_file():
            return (str(program),)
    for directory in PLUGINS:
        if (program := Path(directory, "docker-compose").expanduser()).is_file():
            return (str(program),)
    found = shutil.which("docker-compose")
    if found and _is_second(found):
        return (found,)
    raise Failed("no Docker Compose v2 on this machine: run `make venv`, or install its plugin")


def _is_second(program: str) -> bool:
    result = subprocess.run(
        [program, "version", "--short"], capture_output=True, text=True, check=False
    )
    return result.returncode == 0 and result.stdout.strip().removeprefix("v").startswith("2")


@contextmanager
def staged(app: Application, described: str) -> Iterator[Compose]:
    """
    The compose project of an application as it would be on the host.

    A directory of its own has the uploaded files that count before a build, and no others; secrets
    have a placeholder.

    + described: the content of NAME.json
    """
    program = compose_program()
    with TemporaryDirectory(prefix="terrafirma-") as root:
        data = _with_placeholders(json.loads(described), Path(root))
        if app.source:
            source = Path(root, app.name, "sources", "source")
            source.mkdir(parents=True)
            _copy(app, source)
            data["source"] = str(source)
        if data["env_file"]:
            # They decide what the files mean, and are on this machine anyway.
            file = Path(data["env_file"])
            file.chmod(0o600)
            file.write_text(json.dumps(given(app)))
        yield Compose(replace(spec.Application.of(data), root=root), program)


def _copy(app: Application, to: Path) -> None:
    """The files of a source that count before a build; large ones without their content."""
    source, found = app.source_directory, early(app)
    for one in found.read:
        copy = _placed(to, one.path)
        if one.kind == "link":
            copy.symlink_to(one.content)
        elif (source / one.path).stat().st_size > LARGE:
            copy.touch()
        else:
            shutil.copyfile(source / one.path, copy)
    for path in found.there:
        _placed(to, path).touch()


def _placed(top: Path, path: str) -> Path:
    copy = top / path
    copy.parent.mkdir(parents=True, exist_ok=True)
    return copy


def _with_placeholders(value: Any, root: Path) -> Any:
    """A description whose secrets are files below `root`."""
    if isinstance(value, dict):
        return {key: _with_placeholders(one, root) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_placeholders(one, root) for one in value]
    if isinstance(value, str) and value.startswith(f"{SECRETS}/"):
        file = root / value.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        url = "postgresql://role:terrafirma-placeholder@host.docker.internal:5432/database"
        file.write_text(url if file.name.startswith("database_url") else "terrafirma-placeholder")
        return str(file)
    return value

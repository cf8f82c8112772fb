"""How an image is built, and which directories of its container can be written: types and rules."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

# A file in a source: no part of the path leads out of it.
_SOURCE_FILE = r"[\w.][\w. @+-]*(/[\w.][\w. @+-]*)*"
# Directories of a container that are the kernel's, or that Terrafirma mounts itself.
_TAKEN = ("/proc", "/sys", "/dev", "/run/secrets")


def _source_file(value: str) -> str:
    if value and (not re.fullmatch(_SOURCE_FILE, value) or {".", ".."} & {*value.split("/")}):
        raise ValueError(f"{value!r} is no path in the source, like docker/Dockerfile")
    return value


def _directory(value: str) -> str:
    """A directory of a container in normal form."""
    # Compose reads a colon as the end of the path, and a dollar sign as a variable.
    if not re.fullmatch(r"/[^\x00-\x1f:$,\\]*", value):
        raise ValueError(f"{value!r} is no absolute path of a directory in the container")
    path = posixpath.normpath(value.replace("//", "/"))
    if path == "/":
        raise ValueError("'/' is the whole file system: name the directories in it")
    if any(path == one or path.startswith(f"{one}/") for one in _TAKEN):
        raise ValueError(f"{path!r} is a directory of the system in a container: take another")
    return path


SourceFile = Annotated[
    str, AfterValidator(_source_file), Field(title="path in the source, or empty")
]
StageName = Annotated[
    str,
    Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,127})?$", title="name of a stage, or empty"),
]
ContainerDirectory = Annotated[
    str, AfterValidator(_directory), Field(title="absolute path in the container")
]
VolumeName = Annotated[
    str,
    Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$", title="a-z, 0-9, `_`, `.` and `-`, at most 63"),
]


def refuse_same_place(writable: Iterable[str], volumes: Mapping[str, str]) -> None:
    """Raise ValueError where two mounts are at the same path."""
    seen = set()
    for key, path in [
        *(("writable", one) for one in writable),
        *(("volumes", one) for one in volumes.values()),
    ]:
        if path in seen:
            raise ValueError(f"{key}: {path!r} is there twice")
        seen.add(path)


_FROM = re.compile(r"(?im)^[ \t]*FROM[ \t]+(?:--\S+[ \t]+)*\S+(?:[ \t]+AS[ \t]+(\S+))?[ \t]*$")


def refuse_unknown_stage(dockerfile: str, target: str) -> None:
    """Raise ValueError where a Dockerfile has no stage `target`, by its name or its number."""
    stages = _FROM.findall(dockerfile)
    names = [name for name in stages if name]
    known = [*(name.lower() for name in names), *map(str, range(len(stages)))]
    if stages and target and target.lower() not in known:
        raise ValueError(
            f"target: the Dockerfile has no stage {target!r} ({', '.join(names) or 'none'})"
        )

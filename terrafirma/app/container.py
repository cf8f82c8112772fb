"""How an image is built, and which directories of its container can be written: types and rules."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from terrafirma.fields import Line

# A file in a source: no part of the path leads out of it.
_SOURCE_FILE = r"[\w.][\w. @+-]*(/[\w.][\w. @+-]*)*"
# Directories of a container that are the kernel's, or that Terrafirma mounts itself.
_TAKEN = ("/proc", "/sys", "/dev", "/run/secrets")


def _source_file(value: str) -> str:
    given = value
    while value.startswith("./"):
        value = value[2:].lstrip("/")
    if given and (not re.fullmatch(_SOURCE_FILE, value) or {".", ".."} & {*value.split("/")}):
        raise ValueError(f"{given!r} is no path in the source, like docker/Dockerfile")
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


def _memory(value: int) -> int:
    if 0 < value < LEAST_MEMORY:
        raise ValueError(f"Docker takes {LEAST_MEMORY} MB or more, or 0 for no limit, not {value}")
    return value


LEAST_MEMORY = 6
"""MB that Docker accepts as the limit of a container."""
Memory = Annotated[
    int, Field(ge=0), AfterValidator(_memory), Field(title=f"integer, not 1 to {LEAST_MEMORY - 1}")
]


def named(words: tuple[str, ...]) -> tuple[str, ...]:
    """Raises ValueError where a command names no program."""
    if words and not words[0].strip():
        raise ValueError("its first word is empty: it is the program that runs")
    return words


Command = Annotated[tuple[Line, ...], AfterValidator(named)]


_FROM = re.compile(r"(?im)^[ \t]*FROM[ \t]+(?:--\S+[ \t]+)*\S+(?:[ \t]+AS[ \t]+(\S+))?[ \t]*$")


def refuse_unknown_stage(dockerfile: str, target: str) -> None:
    """Raise ValueError where a Dockerfile has no stage `target`, by its name or its number."""
    stages = _FROM.findall(_instructions(dockerfile))
    names = [name for name in stages if name]
    known = [*(name.lower() for name in names), *map(str, range(len(stages)))]
    if stages and target and target.lower() not in known:
        raise ValueError(
            f"target: the Dockerfile has no stage {target!r} ({', '.join(names) or 'none'})"
        )


_ESCAPE = re.compile(r"(?i)(?:[ \t]*#[^\n]*\n)*?[ \t]*#[ \t]*escape[ \t]*=[ \t]*`")


def _instructions(dockerfile: str) -> str:
    """A Dockerfile without its comments, and with each instruction in one line."""
    escape = "`" if _ESCAPE.match(dockerfile) else "\\"
    found = ""
    for line in dockerfile.split("\n"):
        bare = line.strip()
        goes_on = bare.endswith(escape)
        if not bare.startswith("#") and (bare or not found.endswith(" ")):
            found += bare.removesuffix(escape) + (" " if goes_on else "\n")
    return found

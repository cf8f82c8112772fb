"""Managed by Terrafirma. The variables in compose files, and those that nothing sets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from terrafirma_host.project_files import BLANK, Files, below, text_at
from terrafirma_host.shell import Failed

NAME = "[A-Za-z_][A-Za-z0-9_]*"
VARIABLE = re.compile(rf"\$\$|\$\{{({NAME})(:?[-+?])?|\$({NAME})|[{{}}]")
# Variables that have another value for root on the host than for the author of the files.
HOSTS = {"HOME": "is /root", "PWD": "is not set"}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _strings(key)
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def variables(value: Any, given: Mapping[str, str] | None = None) -> set[str]:
    """
    The variables in a part of the files, without those in a default that is not needed.

    Without `given` every variable counts.
    """
    return {name for text in _strings(value) for name in _variables(text, given)}


def _variables(text: str, given: Mapping[str, str] | None) -> Iterator[str]:
    counts = [True]  # for each open brace, whether the text inside is used
    for token in VARIABLE.finditer(text):
        braced, how, plain = token.groups()
        if counts[-1] and (braced or plain):
            yield braced or plain
        if braced:
            known = given is not None and bool(given.get(braced) or (
                braced in given and not (how or "").startswith(":")))  # fmt: skip
            used = given is None or known == (how or "").endswith("+")
            counts.append(counts[-1] and used)
        elif token[0] == "{":
            counts.append(counts[-1])
        elif token[0] == "}" and len(counts) > 1:
            counts.pop()


def _users(files: Files) -> dict[str, list[str]]:
    """For each variable, the parts of started services that name it; no parts without `raw`."""
    if not files.raw:
        return {name: [] for name in variables(_lines(files), files.given)}
    found: dict[str, list[str]] = {}
    live = [(name, (files.raw.get("services") or {}).get(name)) for name in files.used]
    for kind in ("volumes", "networks", "secrets", "configs"):
        for key, one in (files.raw.get(kind) or {}).items():
            if any(files.names(name, kind, key) for name in files.used):
                live.append((f"{kind}.{key}", one))
    for name, part in live:
        for variable in variables(part, files.given):
            found.setdefault(variable, []).append(name)
    return found


def _lines(files: Files) -> list[str]:
    lines = "\n".join(map(text_at, files.paths)).splitlines()
    return [line for line in lines if not line.lstrip().startswith("#")]


def _place(files: Files, variable: str) -> str:
    """The file and line that name a variable."""
    for path in (*files.paths, *files.env_files(), *_further(files)):
        try:
            lines = Path(path).read_text(errors="replace").splitlines()
        except OSError:
            continue
        for number, line in enumerate(lines, 1):
            written = variable in line and not line.lstrip().startswith("#")
            if written and variable in variables([line], files.given):
                return f"{below(files.app, path)}, line {number}"
    return "the compose files"


def _further(files: Files) -> list[str]:
    """Further compose files, which others may include or extend."""
    source = Path(files.app.source)
    found = sorted([*source.glob("**/*.yaml"), *source.glob("**/*.yml")])
    return [str(path) for path in found if "node_modules" not in path.parts][:200]


def _refuse_kept(files: Files) -> None:
    """Refuse variables in the settings that Docker reads itself: these are never filled in."""
    users = _users(files)
    for name in sorted(files.kept & users.keys()):
        where = ", ".join([_place(files, name), *users[name]])
        raise Failed(
            f"env: {name} is a name that Docker reads itself, so ${{{name}}} ({where}) is not "
            "filled in: call it otherwise, in both"
        )


def _refuse_hosts(files: Files) -> None:
    for name, users in sorted(_users(files).items()):
        if name in HOSTS and (name == "HOME" or name not in files.given):
            where = ", ".join([_place(files, name), *users])
            raise Failed(
                f"${name} ({where}) {HOSTS[name]} on the host: write the path out, or `$${name}` "
                "for the container's own"
            )


def _refuse_blank(files: Files) -> None:
    users = _users(files)
    blank = [match[1] for one in files.warnings if (match := BLANK.search(one))]
    env_files = {
        name
        for path in files.env_files()
        for name in variables(text_at(path), files.given)
    }  # fmt: skip
    # Compose also warns of variables in a default that is not needed.
    unused = set() if files.raw else variables(_lines(files)) - users.keys()
    said = []
    for name in sorted(blank):
        if name in users or name in env_files or not (files.raw or name in unused):
            where = ", ".join([_place(files, name), *users.get(name, [])])
            said.append(f"${{{name}}} ({where})")
    if said:
        verb = "is" if len(said) == 1 else "are"
        raise Failed(
            f"env: {', '.join(said)} {verb} not set: name what is to stand there in env or in a "
            "file of env_file, or in secrets with secrets_env; `${…:-}` where it may be empty, "
            "`$$` for a dollar sign"
        )


RULES = _refuse_kept, _refuse_hosts, _refuse_blank
"""Each raises Failed for variables that have no value, or not the one that was meant."""


def refuse_blank(files: Files, error: str) -> None:
    """Raise Failed if Compose warned of a blank variable before this error."""
    if any(map(BLANK.search, files.warnings)):
        try:
            for rule in RULES:
                rule(files)
        except Failed as blank:
            raise Failed(f"{blank} ({error})") from None

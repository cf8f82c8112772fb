"""Files that compose files read but that are not uploaded: the application would miss them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from terrafirma.app.selection import selection
from terrafirma.app.settings import Application
from terrafirma.host.files import source_files


def files_left_out(app: Application) -> Iterator[str]:
    """
    A line for each file that a compose file reads and that stays on this machine.

    An optional file may stay if the settings name all variables that it sets, or if its name says
    that it is for development: the release then reports that the file is left out.
    """
    uploaded = set(source_files(app.source_directory, selection(app))) if app.compose else set()
    for name in app.compose:
        try:
            top = yaml.compose((app.source_directory / name).read_text())
        except (yaml.YAMLError, OSError, ValueError):
            # The release reports what Compose says about such a file.
            continue
        for key, path, required in _read(top):
            file = app.source_directory / path
            if "$" in path or path.startswith(("/", "~")) or "://" in path:
                continue
            if posixpath.normpath(path).startswith(".."):
                yield (
                    f"{name}: {key} reads {path}, which is outside of {app.source} and not "
                    "uploaded: move it in there, or let source be the directory above"
                )
                continue
            if file in uploaded or not file.is_file():
                continue
            if not required and not _serves(file.name):
                continue
            missing = sorted(_variables(file) - _given(app)) if key == "env_file" else []
            if required or missing:
                names = f" ({', '.join(missing)})" if missing else ""
                optional = ", and write `{path: …, required: false}` there" if required else ""
                yield (
                    f"{name}: {key} reads {path}, which is not uploaded: name its variables"
                    f"{names} in env, or in small letters in secrets with "
                    f"secrets_env{optional}"
                )


def _serves(name: str) -> bool:
    """Whether an env file is for servers as well, judged by its name."""
    words = {*re.split(r"[._-]", name.lower())} - {"", "env"}
    return not words or bool(words & {"prod", "production", "live", "staging"})


def _given(app: Application) -> set[str]:
    if not app.secrets_env:
        return {*app.env}
    return {*app.env, *(name.upper() for name in (*app.secrets, *app.database_urls.values()))}


def _variables(file: Path) -> set[str]:
    """The names of the variables that an env file sets, without their values."""
    text = file.read_text(errors="replace")
    return set(re.findall(r"(?m)^[ \t]*(?:export[ \t]+)?([A-Za-z_][\w.-]*)[ \t]*[=:]", text))


def entries(top: yaml.Node | None) -> Iterator[tuple[yaml.Node, str, yaml.Node]]:
    """Each value in a compose file: its parent node, its key there (or ""), and the value."""
    todo, seen = [top], set()
    while todo:
        node = todo.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        for one in node.value:
            key, value = one if isinstance(one, tuple) else (None, one)
            todo.append(value)
            yield node, key.value if key else "", value


def _read(top: yaml.Node | None) -> Iterator[tuple[str, str, bool]]:
    """Each file that a compose file reads: the key that names it, its path, and if required."""
    for node, word, value in entries(top):
        if word == "env_file" or (word == "include" and node is top):
            for entry in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                yield from _entry(word, entry, "path")
        elif word == "extends":
            yield from _entry(word, value, "file") if _is_mapping(value) else ()


def _entry(word: str, node: yaml.Node, key: str) -> Iterator[tuple[str, str, bool]]:
    """A path on its own, or one in a mapping, which says whether the file is required."""
    if isinstance(node, yaml.ScalarNode):
        yield word, node.value, True
    elif _is_mapping(node):
        entries = {name.value: value for name, value in node.value}
        required = entries.get("required")
        paths = entries.get(key)
        for one in paths.value if isinstance(paths, yaml.SequenceNode) else [paths]:
            if isinstance(one, yaml.ScalarNode):
                yield word, one.value, required is None or required.value != "false"


def _is_mapping(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode)

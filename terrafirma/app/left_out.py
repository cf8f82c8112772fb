"""Files that compose files read but that are not uploaded: the application would miss them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from terrafirma.app.env_files import example_of
from terrafirma.app.hashes import look
from terrafirma.app.selection import selection
from terrafirma.app.settings import Application
from terrafirma.fields import is_file

LONGEST = 4095
"""Characters of a path."""


def files_left_out(app: Application) -> Iterator[str]:
    """
    A line for each file that a compose file reads and that stays on this machine.

    An optional file may stay if the settings name all variables that it sets, or if its name says
    that it is for development: the release then reports that the file is left out.
    """
    uploaded = _uploaded(app)
    inner = _inner(app)
    for name in app.compose:
        try:
            top = yaml.compose((app.source_directory / name).read_text())
        except (yaml.YAMLError, OSError, ValueError, RecursionError):
            # The release reports what Compose says about such a file.
            continue
        for key, path, required in _read(top):
            if not path.isprintable() or len(path) > LONGEST:
                yield f"{name}: {key} reads {path[:40]!r}, which is no path of a file"
                continue
            if "$" in path or path.startswith(("/", "~")) or "://" in path:
                continue
            if key == "env_file":
                if not app.env_file and (words := _no_variables(app, path, required, uploaded)):
                    yield f"{name}: env_file reads {path}, {words}"
                continue
            if posixpath.normpath(posixpath.join(inner, path)).startswith(".."):
                yield (
                    f"{name}: {key} reads {path}, which is outside of {app.source} and not "
                    "uploaded: move it in there, or let source be the directory above"
                )
                continue
            if _inside(app, path) in uploaded or not is_file(_place(app, path)):
                continue
            if required:
                yield (
                    f"{name}: {key} reads {path}, which is not uploaded: give it another name or "
                    "place"
                )


def _no_variables(app: Application, path: str, required: bool, uploaded: frozenset[str]) -> str:
    """Why a service would miss the variables of an env_file, and what to write; or ""."""
    file = _place(app, path)
    if _inside(app, path) in uploaded or not (required or _serves(file.name)):
        return ""
    here = posixpath.normpath(posixpath.join(app.source, _inner(app), path))
    if not is_file(file):
        example = example_of(file)
        way = f"copy {example} to {here}, fill it in," if example else f"write {here},"
        return f"which is not there: {way} and name it in env_file" if required else ""
    missing = ", ".join(sorted(_variables(file) - _given(app)))
    return missing and (
        f'which is not uploaded: env_file = ["{here}"] sends its variables ({missing}) as secrets, '
        "if they are those for the server; otherwise name them in env"
    )


class _Loader(yaml.SafeLoader):
    """Reads compose files, whose tags `!reset` and `!override` change nothing here."""


_Loader.add_multi_constructor("!", lambda loader, _, node: _plain(loader, node))


def _plain(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_object(node)


def _inner(app: Application) -> str:
    """The directory in the source where relative paths of the compose files begin."""
    return posixpath.dirname(app.compose[0]) if app.compose else ""


def _inside(app: Application, path: str) -> str:
    """A relative path of a compose file, as it is from the source's directory."""
    return posixpath.normpath(posixpath.join(_inner(app), path))


def _place(app: Application, path: str) -> Path:
    """The file that a relative path of a compose file means."""
    return app.source_directory / _inside(app, path)


def _uploaded(app: Application) -> frozenset[str]:
    if not app.compose:
        return frozenset()
    return look(app.source_directory, selection(app)).uploaded


def env_files(app: Application) -> dict[str, list[Any]]:
    """
    The services with an env_file that they need and that is not uploaded, with its other entries.

    The variables of the settings, from `env` or its own `env_file`, take the place of such a file.
    """
    uploaded = _uploaded(app)
    found: dict[str, list[Any]] = {}
    for file in app.compose:
        try:
            top = yaml.load((app.source_directory / file).read_text(), _Loader)  # noqa: S506
            for name, service in top["services"].items():
                listed = service.get("env_file") or []
                found.setdefault(name, []).extend([listed] if isinstance(listed, str) else listed)
        except (
            yaml.YAMLError,
            RecursionError,
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
        ):
            # The release reports what Compose says about such a file.
            continue

    def is_there(entry: Any) -> bool:
        path = str(entry.get("path") or "") if isinstance(entry, dict) else str(entry)
        unknown = "$" in path or path.startswith(("/", "~"))
        return unknown or _inside(app, path) in uploaded

    def is_needed(entry: Any) -> bool:
        optional = isinstance(entry, dict) and entry.get("required") is False
        return not is_there(entry) and (bool(app.env_file) or not optional)

    return {
        name: [one for one in listed if is_there(one)]
        for name, listed in found.items()
        if any(map(is_needed, listed))
    }


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
        entries = {str(name.value): value for name, value in node.value}
        required = entries.get("required")
        paths = entries.get(key)
        for one in paths.value if isinstance(paths, yaml.SequenceNode) else [paths]:
            if isinstance(one, yaml.ScalarNode):
                yield word, one.value, required is None or required.value != "false"


def _is_mapping(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode)

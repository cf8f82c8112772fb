"""Where in the compose files the cause of a message is: file, line, service and key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import yaml

from terrafirma.app.settings import Application

# How the host's program begins what Compose says about the files.
SAID = "the compose files"


class Place(NamedTuple):
    """A key or a value of a compose file."""

    file: str
    line: int
    path: tuple[str, ...]  # the keys that lead there: "services", "web", "ports"
    text: str  # the key itself, or the value
    is_key: bool


def located(app: Application, words: str) -> str:
    """A message about the compose files, which begins with the file, the line, service and key."""
    if not app.compose:
        return words
    if not words.startswith(f"{SAID}: "):
        return _with_place(app, words)
    said = words.removeprefix(f"{SAID}: ").removeprefix("failed to parse ")
    if re.search(r"\bline \d+", said):
        # Compose counts some lines from 0.
        said = next(_no_yaml(app), said)
        return said
    found = _best(list(_places(app)), _service(said), _wanted(said))
    if not found:
        files = ", ".join(app.compose)
        return said if any(name in said for name in app.compose) else f"{files}: {said}"
    keys = found.path[1:] if found.path[:1] == ("services",) else found.path
    names = [*keys[:2], *([found.text] if found.is_key else [])][:2]
    missing = [name for name in names if not re.search(rf"\b{re.escape(name)}\b", said)]
    said = said.removeprefix(f"validating {found.file}: ")
    return ": ".join([f"{found.file}, line {found.line}", *missing, said])


def _no_yaml(app: Application) -> Iterator[str]:
    """Where a compose file is no YAML."""
    for name in app.compose:
        try:
            yaml.compose((app.source_directory / name).read_text())
        except yaml.MarkedYAMLError as error:
            if error.problem_mark:
                yield f"{name}, line {error.problem_mark.line + 1}: {error.problem}"
        except (yaml.YAMLError, OSError, ValueError, RecursionError):
            continue


def _with_place(app: Application, words: str) -> str:
    """A message of our own about a service and a key: `web: volumes: ../data is …`."""
    match = re.match(r"([\w.-]+): ([\w.-]+): (?:([\w.-]+): )?(\S+)", words)
    if not match:
        return words
    service, key, further, value = match.groups()
    places = [one for one in _places(app) if one.path[:2] == ("services", service)]
    found = _best(places, service, [one for one in (value, further, key) if one])
    return f"{found.file}, line {found.line}: {words}" if found else words


def _best(places: Sequence[Place], service: str, wanted: Sequence[str]) -> Place | None:
    """The place that has most of the words that a message quotes."""
    ranked = [
        (len(set(wanted) & {place.text, *place.path}), -_first(wanted, place), -number)
        for number, place in enumerate(places)
        if not service or service in place.path or (place.is_key and place.text == service)
    ]
    best = max(ranked, default=(0, 0, 0))
    return places[-best[2]] if best[0] or (service and ranked) else None


def _first(wanted: Sequence[str], place: Place) -> int:
    """How late in a message the text of a place comes."""
    return wanted.index(place.text) if place.text in wanted else len(wanted)


def _service(said: str) -> str:
    found = re.search(r"services[.\[]([\w-]+)|service \"([\w.-]+)\"|^services?: ([\w-]+)", said)
    return next((name for name in found.groups() if name), "") if found else ""


def _wanted(said: str) -> list[str]:
    """The words of a message that may stand in a file, the last ones first."""
    quoted = re.findall(r"'([^']+)'|\"([^\"]+)\"", said)
    words = [one or other for one, other in quoted]
    for path in re.findall(r"\bservices[.\[][\w.\[\]-]+", said):
        words += re.split(r"[.\[\]]+", path)[1:]
    words += re.findall(
        r"(?:open|stat|file|undefined \w+|variable|Port:|->|detected:) ([\w./-]+)", said
    )
    return list(dict.fromkeys(word.rstrip(".:,") for word in reversed(words)))


def _places(app: Application) -> Iterator[Place]:
    for name in app.compose:
        try:
            top = yaml.compose((app.source_directory / name).read_text())
        except (yaml.YAMLError, OSError, ValueError, RecursionError):
            continue
        yield from _below(name, top, ())


def _below(file: str, top: yaml.Node | None, path: tuple[str, ...]) -> Iterator[Place]:
    todo: list[tuple[yaml.Node | None, tuple[str, ...]]] = [(top, path)]
    seen: set[int] = set()
    while todo:
        node, path = todo.pop()
        if isinstance(node, yaml.ScalarNode):
            line = node.start_mark.line + 1
            yield Place(file, line, path, node.value, False)
            # Parts of a short form: "80:http", "./a:/b:ro", "${NAME}".
            for part in re.split(r"[:=/${}]+", node.value):
                yield Place(file, line, path, part, False)
        elif isinstance(node, yaml.CollectionNode) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, yaml.SequenceNode):
                todo += [(one, path) for one in reversed(node.value)]
                continue
            for key, value in reversed(node.value):
                todo.append((value, (*path, str(key.value))))
            for key, _ in node.value:
                yield Place(file, key.start_mark.line + 1, path, str(key.value), True)

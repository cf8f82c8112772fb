"""What would be right in place of a wrong setting, as far as the types of the settings tell."""

from __future__ import annotations

import json
import re
import shlex
import typing
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

COMMANDS = frozenset({"command", "migrate", "backup_command", "backup_after"})
"""Settings that are a program and its words."""
LONGEST = 120
"""Characters of a text that is written as a list."""
# What only a shell understands.
_SHELL = re.compile(r"[|&;<>$`*?]")


def as_list(key: str, given: object) -> str:
    """How a text is written where a list is wanted; "" where it says too little, or is secret."""
    if not isinstance(given, str) or not re.fullmatch(rf"[^@]{{1,{LONGEST}}}", given):
        return ""
    if not given.isprintable():
        return ""
    words = [given]
    if key in COMMANDS and _SHELL.search(given):
        words = ["sh", "-c", given]
    elif key in COMMANDS:
        try:
            words = shlex.split(given)
        except ValueError:
            return ""
    elif re.search(r"[\s:,\[{]", given):
        # It may be several, or hold a password.
        return ""
    return f": write {json.dumps(words, ensure_ascii=False)}"


def keys_at(model: type[BaseModel], place: Sequence[str]) -> list[str]:
    """The fields that there are at a place of the settings, like `services.db`."""
    models: Collection[type[BaseModel]] = [model]
    for part in place:
        inner = [one.model_fields[part] for one in models if part in one.model_fields]
        # Other parts are names and numbers that a person chose.
        models = [found for one in inner for found in _models(one.annotation)] or models
    return [key for one in models for key in one.model_fields]


def title_of(model: type[BaseModel], pattern: str) -> str:
    """The words for the values that match a pattern, as its field has them."""
    for one in _fields(model, set()):
        if one.title and any(getattr(known, "pattern", "") == pattern for known in one.metadata):
            return one.title
    return ""


def _parts(annotation: Any) -> Iterator[Any]:
    """A type, and the types of which it is made."""
    yield annotation
    for one in typing.get_args(annotation):
        yield from _parts(one)


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [one for one in _parts(annotation)
            if isinstance(one, type) and issubclass(one, BaseModel)]  # fmt: skip


def _fields(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[FieldInfo]:
    """All that a model says of its fields, and of the types inside them."""
    seen.add(model)
    for field in model.model_fields.values():
        yield field
        yield from (one for one in _parts(field.annotation) if isinstance(one, FieldInfo))
        for inner in _models(field.annotation):
            if inner not in seen:
                yield from _fields(inner, seen)

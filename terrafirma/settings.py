"""
The base of all settings: a section is the flat `<prefix>_*` keys of one part, typed and checked.

`group_data/all.py` has the defaults, `terrafirma/<thing>/settings.py` the types of each section,
and `terrafirma/site.py` reads all sections of all hosts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from terrafirma.hints import as_list, keys_at, title_of

ROOT = Path(__file__).parent.parent
"""The directory of deploy.py: relative paths in settings begin here."""


NOT_OURS = frozenset({"docker_identifier", "docker_platform", "docker_architecture"})
"""Keys of pyinfra's own connectors that share a prefix with a section."""


class Refused(Exception):
    """The mistakes in the settings of a host, one message for each, which begins with the key."""

    def __init__(self, *words: str) -> None:
        super().__init__("; ".join(words))
        self.words = words


class Model(BaseModel):
    """Settings, frozen, without unknown keys; the docstring of a field is its reference entry."""

    # docs/settings.py reads the docstrings: pydantic would read all sources again in each run.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Settings(Model):
    """One section: the keys of host data that start with its prefix."""

    prefix: ClassVar[str]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The section from `data`, the settings of a host; raises Refused."""
        start = f"{cls.prefix}_"
        return build(
            cls,
            {
                key.removeprefix(start): value
                for key, value in data.items()
                if key.startswith(start) and key not in NOT_OURS
            },
            start,
        )


M = TypeVar("M", bound=Model)


def build(model: type[M], values: Mapping[str, Any], start: str) -> M:
    """A model with `values`; raises Refused, whose messages begin with `start` and the field."""
    try:
        built = model.model_validate(dict(values))
    except ValidationError as error:
        raise Refused(*_explain(start, error, model)) from None
    if place := next(_endless("", values), ""):
        raise Refused(f"{start}{place.removeprefix('.')}: it is {ENDLESS}")
    return built


# Errors whose offending value is short and safe to print.
_SHOWN = ("int_", "float_", "bool_", "greater_than", "less_than", "literal_error")


ENDLESS = "a number of more digits than Python writes"


def text(value: object) -> str:
    """A value as it is shown: Python writes no number of thousands of digits."""
    try:
        return str(value)
    except ValueError:
        return ENDLESS


def _endless(place: str, value: Any) -> Iterator[str]:
    """Where in a value numbers are that no file could have."""
    if isinstance(value, int) and text(value) == ENDLESS:
        yield place
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _endless(f"{place}.{text(key)}", one)
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from _endless(f"{place}.{number}", one)


def _explain(start: str, error: ValidationError, model: type[Model]) -> Iterator[str]:
    errors, fields = error.errors(), tuple(model.model_fields)
    deeper = {one["loc"][: len(one["loc"]) - 1] for one in errors}
    for one in errors:
        if one["type"] == "too_short" and one["loc"] in deeper:
            # Pydantic does not count wrong entries, and says of each that it is wrong, too.
            continue
        message = one["msg"].removeprefix("Value error, ")
        if message.startswith("Exceeds the limit"):
            message = f"it is {ENDLESS}"
        location = ".".join(
            part if re.fullmatch(r"[\w.-]+", part) else repr(part)
            for part in map(str, one["loc"])
            if part != "[key]"
        )
        if one["type"] == "extra_forbidden":
            *above, last = map(str, one["loc"])
            close = get_close_matches(last, keys_at(model, above), 1)
            hint = f", did you mean {start}{'.'.join([*above, close[0]])}?" if close else ""
            whole = location.partition(".")[0]
            if len(one["loc"]) == 1 and location != whole in fields:
                hint = f"; {start}{whole} is written as a whole"
            message = f"there is no such key{hint}"
        elif one["type"] == "string_pattern_mismatch":
            given = "the value" if one["loc"][-1] == "password" else repr(one["input"])
            pattern = one["ctx"]["pattern"]
            title = title_of(model, pattern)
            message = f"{given} does not match {pattern}{f' ({title})' if title else ''}"
        elif one["type"] == "tuple_type":
            message = f"must be a list, not {type(one['input']).__name__}"
            message += as_list(str(one["loc"][-1]), one["input"])
        elif one["type"] in ("string_type", "dict_type"):
            given = one["input"]
            message += f", not {'None' if given is None else type(given).__name__}"
        elif one["type"].startswith(_SHOWN) and re.fullmatch(r".{0,40}", text(one["input"])):
            message += f", not {one['input']!r}"
        # The value may hold a password by mistake: keep it out of the log.
        if re.search(r":(?!//)[^@]*@(?!sha256:)", text(one["input"])):
            message = message.replace(repr(one["input"]), "the value")
        # A rule over the whole model has no location: its message names the keys itself.
        if not location and re.split(r"[:.]", message, maxsplit=1)[0] not in fields:
            start = ""
        yield f"{start}{location and location + ': '}{message}"

"""
After this ran, docs/settings.md says what group_data/all.py and the settings models say.

    docs/settings.py            write it
    docs/settings.py --check    fail, in one line, when it is stale
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Le, MinLen
from pydantic import AfterValidator
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).parent.parent))

from terrafirma.settings import ALL_SETTINGS, ROOT, Model, Settings

DEFAULTS = ROOT / "group_data" / "all.py"
REFERENCE = ROOT / "docs" / "settings.md"

INTRODUCTION = """\
# Settings

<!-- Written by docs/settings.py; `make docs` writes it anew. -->

Every key has its default in [group_data/all.py](../group_data/all.py). Leave that file as it is.
Write what differs for your servers into a file of your own: `group_data/servers.py` for the group
`servers` of `inventory.py`.

- A key in your file replaces the default as a whole. A list is not added to: write all of it.
- `--data key=value` on the command line comes before everything else. JSON is understood there:
  `--data 'docker_networks=["apps", "jobs"]'`.
- An unknown key, a wrong type or a value outside its range ends the run before it changes anything.
  The one line that says so names the host, the key and what would be right. Rules that join several
  keys are on the [pages of the tasks](tasks/).
- Keys of your own tasks start with `x_`. Keys that start with `_` or `ssh_` are pyinfra's
  (`ssh_port`, `ssh_key`, …).
"""

# What a pattern of the models means. One that is not here is shown as it is, so that no words
# outlive their pattern.
PATTERNS = {
    r"^[a-z_][a-z0-9_]{0,62}$": "a-z, 0-9 and `_`, first no digit, at most 63",
    r"^[a-z_][a-z0-9_-]{0,31}$": "a-z, 0-9, `_` and `-`, first a letter or `_`, at most 32",
    r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$": "name, perhaps with an extension's before a dot",
    r"^[a-z](-?[a-z0-9]){0,30}$": "a-z, 0-9 and single `-` between them, first a letter",
    r"^([a-z_][a-z0-9_-]{0,31})?$": "name of an account, or empty",
    r"^([a-z][a-z0-9-]*(:[0-9a-f]{6,12})?)?$": "application, perhaps `:` and a release, or empty",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "letters, digits and `_`, first no digit",
    r"^[a-z][a-z0-9_]{0,62}$": "a-z, 0-9 and `_`, first a letter, at most 63",
    r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$": "name of a service",
    r"^([a-zA-Z0-9][a-zA-Z0-9._-]{0,62})?$": "name of a service, or empty",
    r"^([a-zA-Z0-9][a-zA-Z0-9._-]{0,62}|(/[^/\s:,]+)+/?)$": "key of a volume, or absolute path",
    r"^\w[\w-]*([./]\w[\w-]*)*\.ya?ml$": "relative path that ends in `.yaml` or `.yml`",
    r"^[A-Za-z][A-Za-z0-9-]*$": "letters, digits and `-`, first a letter",
    r"^[\w.@-]+$": "letters, digits, `_`, `.`, `@` and `-`",
    r"^/[A-Za-z0-9/_.*-]*$": "path that starts with `/`, perhaps with `*`",
    r"^/[A-Za-z0-9/_.-]*\*?$": "path that starts with `/`, perhaps with `*` at its end",
    r"^(/[A-Za-z0-9/_.-]*)?$": "path that starts with `/`, or empty",
    r"^[a-z0-9][a-z0-9+.-]+$": "package name",
    r"^[a-z0-9][a-z0-9_.-]*$": "a-z, 0-9, `_`, `.` and `-`, first a letter or digit",
    r"^[1-9][0-9]*[kmg]$": "number and `k`, `m` or `g`",
    r"^/([A-Za-z0-9_.-][A-Za-z0-9/_.-]*)?$": "path that starts with one `/`",
    r"^$|^[^\s@{}\"]+@[^\s@{}\"]+$": "e-mail address, or empty",
    r"^$|^https://[^\s{}\"]+$": "`https://` URL, or empty",
    r"^$|^[A-Za-z0-9_./~][A-Za-z0-9_./+~-]*$": "path or name of a program, or empty",
    r"^$|^[0-9a-f]{64}$": "64 digits from 0 to f, or empty",
    r"^$|^ssh://[^\s@]+@[^\s/@]+/\S+$": "`ssh://` URL with a user and a path, or empty",
}
# What the functions mean that check more than a pattern can.
CHECKS = {
    "_absolute": "absolute path",
    "_domain": "domain name in lower case",
    "_not_reserved": "no name that PostgreSQL reserves",
    "_one_line": "one line",
    "_known_host": "one line of a known_hosts file",
    "_setting": "`True`, `False`, number or one line",
    "_registry": "host of a registry, like `registry.example.com:5000`, or empty",
    "_image": "image, like `registry.example.com/team/api:1.2`, or empty",
    "_secret_source": "`born`, `env:NAME` or `command:…`",
    "_secret_source_or_empty": "`env:NAME` or `command:…`, or empty",
    "_address_range": "address or network",
    "_bcrypt": "bcrypt hash",
    "_header": "one line without a backtick",
    "_public_key": "SSH public key, or the file on this machine that holds it",
}
TYPES: dict[Any, str] = {
    Any: "anything",
    NoneType: "`None`",
    bool: "`True` or `False`",
    int: "integer",
    float: "number",
    str: "text",
    IPv4Network: "IPv4 network",
}


@dataclass(frozen=True)
class Key:
    """A key of group_data/all.py."""

    default: str
    meaning: str


@dataclass(frozen=True)
class Manual:
    """What group_data/all.py says: its keys, and a line on each of its sections."""

    keys: dict[str, Key]
    sections: dict[str, str]


def manual(source: str) -> Manual:
    """The keys with the comment above them; keys in a row share the comment of the first."""
    lines = source.splitlines()
    heads = (re.match(r"# --- (\w+)(?:: (.*?))? -+$", line) for line in lines)
    keys: dict[str, Key] = {}
    meaning = ""
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            continue
        above = lines[: node.lineno - 1]
        comment: list[str] = []
        while above and above[-1].startswith("# ") and not above[-1].startswith("# ---"):
            comment.insert(0, above.pop().removeprefix("# "))
        if comment:
            meaning = " ".join(comment)
        default = " ".join((ast.get_source_segment(source, node.value) or "").split())
        default = re.sub(r",? ([\]}])", r"\1", re.sub(r"([\[{]) ", r"\1", default))
        keys[node.targets[0].id] = Key(default, meaning)
    return Manual(keys, {head[1]: head[2] or "" for head in heads if head})


def rule(hint: Any, constraints: Iterable[Any] = ()) -> str:
    """What values a type admits, in words."""
    known = list(constraints)
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        known = [*more, *known]
    words = list(_constraints(known))
    if any(one in CHECKS.values() or one in PATTERNS.values() for one in words):
        return "; ".join(words)
    return "; ".join([_type(hint), *words])


def _type(hint: Any) -> str:
    arguments = get_args(hint)
    origin = get_origin(hint)
    if origin is tuple:
        return f"list of: {rule(arguments[0])}"
    if origin is dict:
        return f"dictionary of: {rule(arguments[0])} → {rule(arguments[1])}"
    if origin is Literal:
        return " or ".join(f'`"{value}"`' for value in arguments)
    if origin in (Union, UnionType):
        return ", or ".join(rule(one) for one in arguments)
    if isinstance(hint, type) and issubclass(hint, Model):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return TYPES[hint]


def _constraints(known: Iterable[Any]) -> Iterator[str]:
    flat: list[Any] = []
    for one in known:
        flat += one.metadata if isinstance(one, FieldInfo) else [one]
    low = next((one.ge for one in flat if isinstance(one, Ge)), None)
    high = next((one.le for one in flat if isinstance(one, Le)), None)
    if low is not None:
        yield f"{low} to {high}" if high is not None else f"{low} or more"
    elif high is not None:
        yield f"at most {high}"
    for one in flat:
        if isinstance(one, AfterValidator):
            yield from _check(one.func)
        elif isinstance(one, MinLen):
            yield "not empty" if one.min_length == 1 else f"at least {one.min_length} long"
        elif pattern := getattr(one, "pattern", None):
            yield PATTERNS.get(pattern, f"matches `{pattern}`")


def _check(function: Any) -> Iterator[str]:
    """Words for a function that checks, or for the first that it calls (`lambda value: …`)."""
    names = (function.__name__, *getattr(getattr(function, "__code__", None), "co_names", ()))
    yield from [CHECKS[name] for name in names if name in CHECKS][:1]


def rules(model: type[Model]) -> dict[str, str]:
    """What each field of a model admits."""
    hints = get_type_hints(model, include_extras=True)
    found = {}
    for name, field in model.model_fields.items():
        annotated = get_origin(hints[name]) is Annotated
        found[name] = rule(hints[name], () if annotated else field.metadata)
    return found


def meanings(model: type[Model]) -> dict[str, str]:
    """The docstring of each field; pydantic's own answer gives way to the type's description."""
    (definition,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for pair in pairwise(definition.body):
        match pair:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str() as text)),
            ):
                found[name] = " ".join(text.split())
    return found


def nested(model: type[Model]) -> Iterator[type[Model]]:
    """The models that a field of `model` is a list of."""
    for field in model.model_fields.values():
        for one in get_args(field.annotation):
            if isinstance(one, type) and issubclass(one, Model):
                yield one


def table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| Key | Default | Value | Meaning |"
    yield "| --- | --- | --- | --- |"
    for row in rows:
        cells = (cell.replace("|", "\\|") for cell in row)
        yield f"| {' | '.join(cells)} |"


def task_section(settings: type[Settings], known: Manual) -> Iterator[str]:
    about = known.sections.get(settings.prefix, "")
    yield f"\n## {settings.prefix}\n"
    about = f"{about[:1].upper()}{about[1:]}. " if about else ""
    yield f"{about}Read by [{settings.prefix}](tasks/{settings.prefix}.md).\n"
    words = {f"{settings.prefix}_{name}": text for name, text in rules(settings).items()}
    yield from table(
        (f"`{name}`", f"`{key.default}`", words[name], key.meaning)
        for name, key in known.keys.items()
        if name in words
    )
    for model in nested(settings):
        yield from model_section(model)


def model_section(model: type[Model]) -> Iterator[str]:
    yield f"\n### {model.__name__}\n"
    yield f"{(model.__doc__ or '').strip()}\n"
    words, about = rules(model), meanings(model)
    yield from table(
        (f"`{name}`", _default(field), words[name], about.get(name, ""))
        for name, field in model.model_fields.items()
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default == ():
        return "`[]`"
    return f'`"{field.default}"`' if isinstance(field.default, str) else f"`{field.default}`"


def reference() -> str:
    known = manual(DEFAULTS.read_text())
    lines = [line for settings in ALL_SETTINGS for line in task_section(settings, known)]
    return INTRODUCTION + "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> str | None:
    text = reference()
    if list(arguments) == ["--check"]:
        if not REFERENCE.is_file() or REFERENCE.read_text() != text:
            return "docs/settings.md is stale: run `make docs`"
        return None
    if arguments:
        return __doc__
    REFERENCE.write_text(text)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""
Write docs/settings.md from group_data/all.py and the models of the settings.

Usage: python docs/settings.py [--check]
"""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

sys.path.insert(0, str(Path(__file__).parent.parent))

from docs.generated import ROOT, write
from terrafirma.app.settings import Application
from terrafirma.arguments import ARGUMENTS
from terrafirma.server import SECTIONS
from terrafirma.settings import Model

DEFAULTS = ROOT / "group_data/all.py"
# The page of a section, where it is not that of the task with its name.
PAGES = {"apps": "tasks/app.md", "guard": "guard.md"}
Schema = dict[str, Any]

INTRODUCTION = """\
# Settings

<!-- Written by docs/settings.py; `make docs` writes it anew. -->

Every key has its default in [group_data/all.py](../group_data/all.py). Leave that file as it is.
Write the settings of your servers into a file of your own: `group_data/servers.py` for the group
`servers` of `inventory.py`.

- A key in your file replaces the whole default. To add to a list, write the complete list.
- `--data key=value` on the command line overrides everything else, and accepts JSON:
  `--data 'docker_networks=["apps", "jobs"]'`.
- An unknown key, a wrong type or a value outside its range ends the run before it changes anything.
  The message is one line, and names the host, the key and what would be right. The
  [pages of the tasks](tasks/) have the rules that concern several keys.
- Keys of your own tasks start with `x_`. Keys that start with `_` or `ssh_` are pyinfra's
  (`ssh_port`, `ssh_key`, …).
"""
APPLICATIONS = """\
```python
apps = {
    "api": {"source": "../our-api", "domain": "api.your-startup.com", "database": "api"},
    "shop": {
        "image": "registry.example.com/team/shop:1.2",
        "domain": "shop.your-startup.com",
        "replicas": 2,
    },
}
```

- Each application is an entry of `apps`, under its name. `{}`: no application.
- Its compose projects, its images and its directory on the host have the same name: a-z, 0-9 and
  single `-` between them, first a letter.
- An entry has a `domain`, and a `source` or an `image`. Every field that is left out has its
  default.
- `--data apps.api.replicas=6` replaces one field for one run. For one host, write that key into
  `inventory.py`: `("web1", {"apps.api.replicas": 6})`.
"""
ARGUMENTS_OF_COMMANDS = """
## Arguments of commands

A command takes its arguments with `--data`:
`.venv/bin/pyinfra inventory.py commands/rollback.py --data rollback=api`.
"""
TYPES = {
    "boolean": "`True` or `False`",
    "integer": "integer",
    "null": "`None`",
    "number": "number",
    "string": "text",
}


def docstrings(model: type[Model]) -> dict[str, str]:
    """The fields that a model defines, each with the docstring below it."""
    (code,) = ast.parse(inspect.getsource(model)).body
    return {
        field.target.id: inspect.cleandoc(str(text.value.value))
        for field, text in pairwise(code.body)  # type: ignore[attr-defined]
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


class Documented(GenerateJsonSchema):
    """
    A schema with the titles of types (terrafirma/fields.py) and the docstrings of fields, without
    pydantic's own titles.
    """

    def model_schema(self, schema: Any) -> Schema:
        found = super().model_schema(schema)
        for base in reversed(schema["cls"].__mro__):
            for name, text in docstrings(base).items() if issubclass(base, Model) else ():
                found["properties"][name]["description"] = text
        return found

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def dict_schema(self, schema: Any) -> Schema:
        """A dictionary with a schema of its keys: JSON Schema has no place for their title."""
        parts = ("keys", "values")
        return {"type": "object"} | {
            part: self.generate_inner(schema[f"{part}_schema"]) for part in parts
        }


def schema_of(model: type[Model]) -> Schema:
    return model.model_json_schema(schema_generator=Documented)


def meanings(source: str) -> dict[str, str]:
    """The keys of group_data/all.py, each with the nearest comment above it."""
    found: dict[str, str] = {}
    meaning = ""
    for comment, key in re.findall(r"^((?:# .*\n)*)(\w+) = ", source, re.MULTILINE):
        meaning = " ".join(re.findall(r"^# (.*)", comment, re.MULTILINE)) or meaning
        found[key] = meaning
    return found


def heads(source: str) -> dict[str, str]:
    """The sections of group_data/all.py, each with its description."""
    return dict(re.findall(r"^# --- (\w+)(?:: (.*?))? -+$", source, re.MULTILINE))


def words(schema: Schema) -> str:
    """The values that a schema admits, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema and "title" not in schema:
        return ", or ".join(map(words, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f'`"{value}"`' for value in schema["enum"])
    return "; ".join([schema.get("title") or _type(schema), *_limits(schema)])


def _type(schema: Schema) -> str:
    if "pattern" in schema:
        return f"text that matches `{schema['pattern']}`"
    match schema.get("type"):
        case None:
            return "anything"
        case "array":
            return f"list of: {words(schema['items'])}"
        case "object":
            return f"dictionary of: {words(schema['keys'])} → {words(schema['values'])}"
        case name:
            return TYPES[name]


def _limits(schema: Schema) -> Iterator[str]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None:
        yield f"{low} or more" if high is None else f"{low} to {high}"
    if schema.get("minLength") or schema.get("minItems"):
        yield "not empty"


def shown(value: Any) -> str:
    return f"`{value!r}`".replace("'", '"')


def table(columns: str, rows: Iterable[Iterable[str]]) -> str:
    lines = [columns, re.sub(r"[^|]+", " --- ", columns)]
    lines += (
        " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) for row in rows
    )
    return "".join(f"| {line.strip()} |\n" for line in lines)


def fields(schema: Schema) -> str:
    """The tables of a model's fields and of the models that the fields contain."""
    text = table(
        "Key | Default | Value | Meaning",
        (
            (
                f"`{name}`",
                shown(field["default"]) if "default" in field else "required",
                words(field),
                field["description"],
            )
            for name, field in schema["properties"].items()
        ),
    )
    for name, model in schema.get("$defs", {}).items():
        text += f"\n### {name}\n\n{model['description']}\n\n{fields(model)}"
    return text


def sections() -> Iterator[tuple[str, str]]:
    """The prefix and the table of each section; group_data/all.py has defaults and meanings."""
    defaults, known = runpy.run_path(str(DEFAULTS)), meanings(DEFAULTS.read_text())
    for model in SECTIONS:
        schema = schema_of(model)
        schema["properties"] = {
            key: field | {"default": defaults[key], "description": known[key]}
            for name, field in schema["properties"].items()
            for key in [f"{model.prefix}_{name}"]
        }
        yield model.prefix, fields(schema)
    schema = schema_of(Application)
    # The name is the key of the entry, not a field.
    del schema["properties"]["name"]
    yield "apps", f"{APPLICATIONS}\n{fields(schema)}"


def arguments() -> str:
    return table(
        "Key | Value | Meaning | Command",
        (
            (f"`{name}`", words(field), field["description"], f"[{command}](commands/{command}.md)")
            for schema in map(schema_of, ARGUMENTS)
            for command in re.findall(r"commands/(\w+)\.py", schema["description"])
            for name, field in schema["properties"].items()
        ),
    )


def reference() -> str:
    """The whole page, in the order of group_data/all.py."""
    tables = dict(sections())
    text = INTRODUCTION
    for name, about in heads(DEFAULTS.read_text()).items():
        about = f"{about[:1].upper()}{about[1:]}. " if about else ""
        page = PAGES.get(name, f"tasks/{name}.md")
        task = page.rpartition("/")[2].removesuffix(".md")
        text += f"\n## {name}\n\n{about}Read by [{task}]({page}).\n\n{tables.pop(name)}"
    assert not tables, f"group_data/all.py has no section {', '.join(tables)}"
    return text + ARGUMENTS_OF_COMMANDS + "\n" + arguments()


if __name__ == "__main__":
    sys.exit(write("docs/settings.md", reference()))

"""Files of variables, like .env: they are read on this machine, and their values are secrets."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from dotenv.parser import Binding, parse_stream
from pyinfra.api import DeployError, Host
from terrafirma_host.shell import Failed

from terrafirma.app.settings import Application
from terrafirma.fields import here, is_file
from terrafirma.host.given import LARGEST

ENV_FILE = ".env_file"
"""The file with all variables on the host, as JSON, among the secrets; only root reads it."""

EXAMPLES = (".env.example", ".env.sample", ".env.dist", ".env.template", "env.example")
"""Files that a repository has in the place of its `.env`."""

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_VARIABLE = re.compile(
    rf"\\(?P<dollar>\$)|\$\{{(?P<name>{_NAME})(?P<how>:?[-+?])?(?P<other>[^{{}}]*)\}}"
    rf"|\$(?P<plain>{_NAME})"
)


def given(app: Application) -> dict[str, str]:
    """The variables in the files of `env_file`; raises Failed, which shows no value."""
    found: dict[str, str] = {}
    for name in app.env_file:
        try:
            text = here(name).read_bytes().decode("utf-8-sig")
        except OSError as error:
            example = example_of(here(name))
            way = f": copy {example} beside it to that name, and fill it in" if example else ""
            raise Failed(f"env_file: cannot read {name!r} ({error.strerror}){way}") from None
        except UnicodeDecodeError:
            raise Failed(f"env_file: {name} is not text (UTF-8)") from None
        try:
            found |= variables(text, found)
        except ValueError as error:
            raise Failed(f"env_file: {name}, {error}") from None
    return found


def example_of(file: Path) -> str:
    """The name of the example of a file of variables, in its directory; "" where there is none."""
    if is_file(file):
        return ""
    own = [f"{file.name}.{word}" for word in ("example", "sample", "dist", "template")]
    return next((one for one in (*own, *EXAMPLES) if is_file(file.with_name(one))), "")


def refuse_env_files(host: Host, app: Application) -> None:
    """Raise DeployError where a file of `env_file` cannot be read, or has another form."""
    try:
        given(app)
    except Failed as error:
        raise DeployError(f"{host.name}: apps.{app.name}.{error}") from None


def variables(text: str, known: Mapping[str, str]) -> dict[str, str]:
    """
    The variables that a file sets; raises ValueError, which names the line and shows no value.

    The library reads lines, quotes and comments. Readers differ in `$NAME`: a variable that is set
    above is filled in, as Compose does, and any other text with a `$` stays, as libraries do.

    + known: variables of files before this one
    """
    found: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text.replace("\r\n", "\n"))):
        written = binding.original.string
        above = written[: len(written) - len(written.lstrip())]
        line = binding.original.line + above.count("\n")
        if binding.error:
            raise ValueError(
                f"line {line}: is not NAME=value; a value of several lines needs quotes around it"
            )
        if binding.key is None:
            continue
        # The name is not shown: it may be the second line of a secret.
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", binding.key):
            raise ValueError(f"line {line}: has no name of a variable: letters, digits and `_`")
        if binding.value is None:
            raise ValueError(f"line {line}: has no value; NAME= is an empty one")
        value = binding.value
        if "\0" in value or len(value) > LARGEST:
            raise ValueError(
                f"line {line}: {binding.key} has a NUL or more than {LARGEST} characters"
            )
        if not _is_literal(binding):
            value = "".join(_filled(value, {**known, **found}, line))
        found[binding.key] = value
    return found


def _is_literal(binding: Binding) -> bool:
    return binding.original.string.partition("=")[2].lstrip(" \t").startswith("'")


def _filled(value: str, known: Mapping[str, str], line: int) -> Iterator[str]:
    end = 0
    for match in _VARIABLE.finditer(value):
        yield value[end : match.start()]
        end = match.end()
        name, how, other = match["name"], match["how"] or "", match["other"]
        if match["dollar"]:
            yield "$"
        elif match["plain"]:
            yield known.get(match["plain"], match[0])
        elif not how and other:
            yield match[0]
        else:
            set_to = known.get(name, "")
            has = bool(set_to) or (name in known and not how.startswith(":"))
            if how.endswith("+"):
                yield other if has else ""
            elif has or how.endswith("-"):
                yield set_to if has else other
            else:
                raise ValueError(
                    f"line {line}: ${{{name}}} is not set above; put the value in single quotes if "
                    "it is text"
                )
    yield value[end:]

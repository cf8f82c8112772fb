"""
Managed by Terrafirma. References in the values of `env`: {database.url}, {secrets.NAME} and others.

Pure functions. The settings check references on the machine that deploys, and the host fills them
in: a value with a reference is as secret as what it refers to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from terrafirma_host.shell import Failed

if TYPE_CHECKING:
    from typing_extensions import Self

DATABASE_URL = "database_url"
"""The secret with the URL of the application's database."""
SCHEME = "postgresql"
PARTS = ("url", "host", "port", "name", "user", "password")

# Words with dots in braces, and perhaps what follows a colon.
_WORDS = r"([A-Za-z_]\w*)((?:\.\w*)*)"
_TOKEN = re.compile(rf"(\{{?)\{{{_WORDS}(?::([^{{}}]*))?\}}(\}}?)")
_FIRST = ("database", "databases", "secrets")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://([^:@/]+):([^@/]*)@([^:@/]+):([0-9]+)/([^/?]+)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")


@dataclass(frozen=True)
class Address:
    """The address of a database: what its URL says, in parts."""

    user: str
    password: str = field(repr=False)
    host: str
    port: str
    name: str

    @classmethod
    def of(cls, url: str, secret: str = DATABASE_URL) -> Self:
        """The address in a URL; raises Failed, which names the secret and shows no part of it."""
        found = _ADDRESS.fullmatch(url.strip())
        if not found:
            raise Failed(f"the secret {secret} is not the URL of a database; run deploy.py")
        return cls(*map(unquote, found.groups()))

    def url(self, scheme: str = SCHEME) -> str:
        user, password, name = (
            quote(one, safe="") for one in (self.user, self.password, self.name)
        )
        return f"{scheme}://{user}:{password}@{self.host}:{self.port}/{name}"

    def part(self, name: str, scheme: str = "") -> str:
        """One of PARTS."""
        return self.url(scheme or SCHEME) if name == "url" else str(getattr(self, name))


@dataclass(frozen=True)
class Reference:
    """What a value refers to: a secret, or a part of the address of a database."""

    secret: str
    part: str = ""  # one of PARTS; or "", for the secret as it is
    scheme: str = ""  # of a URL

    def fill(self, secrets: Mapping[str, str]) -> str:
        value = secrets.get(self.secret)
        if value is None:
            raise Failed(f"env: there is no secret {self.secret}; run deploy.py")
        if not self.part:
            return value.rstrip("\n")
        return Address.of(value, self.secret).part(self.part, self.scheme)


def secret_of(database: str) -> str:
    """The secret with the URL of a further database."""
    return f"{DATABASE_URL}_{database}"


def parse(text: str) -> Iterator[str | Reference]:
    """
    The parts of a value, text and references; raises ValueError for a reference to nothing.

    `{{` before a reference is a brace: `{{database.url}` and `{{database.url}}` are the text
    `{database.url}`. All other braces are text as well: JSON, `{id}` in the template of a URL,
    `{{ value }}` of a template engine.
    """
    end = 0
    for token in _TOKEN.finditer(text):
        brace, first, rest, scheme, closing = token.groups()
        bare = token[0].removeprefix(brace).removesuffix(closing)
        if not _is_meant(first, rest):
            continue
        yield text[end : token.start()]
        if not brace and text[: token.start()].endswith("$"):
            raise ValueError(f"${bare} has no $ before it: {bare}")
        end = token.end()
        if brace:
            yield bare
        else:
            yield _reference(bare, [first, *rest.split(".")[1:]], scheme)
            yield closing
    yield text[end:]


def _is_meant(first: str, rest: str) -> bool:
    """Whether words in braces are a reference, perhaps a misspelt one."""
    if not rest:
        return first in _FIRST
    return first == "db" or bool(get_close_matches(first.lower(), _FIRST, 1, 0.8))


def references(text: str) -> list[Reference]:
    """What a value refers to; raises ValueError for a reference to nothing."""
    return [one for one in parse(text) if isinstance(one, Reference)]


def fill(text: str, secrets: Mapping[str, str]) -> str:
    """The value with its references filled in, from the secrets by name."""
    return "".join(one.fill(secrets) if isinstance(one, Reference) else one for one in parse(text))


def _reference(text: str, words: list[str], scheme: str | None) -> Reference:
    match words:
        case ["secrets", name] if name and scheme is None:
            return Reference(name)
        case ["database", part] if part in PARTS:
            secret = DATABASE_URL
        case ["databases", name, part] if name and part in PARTS:
            secret = secret_of(name)
        case ["database", *_]:
            raise ValueError(f"{text} is none of {_listed('database')}")
        case ["databases", name, *_] if name:
            raise ValueError(f"{text} is none of {_listed(f'databases.{name}')}")
        case ["databases" | "secrets", *_]:
            form = "{databases.NAME.url}" if words[0] == "databases" else "{secrets.NAME}"
            raise ValueError(f"{text} is not of the form {form}")
        case _:
            raise ValueError(
                f"{text} refers to nothing: there are {{database.url}}, {{databases.NAME.url}} and "
                f"{{secrets.NAME}}; write {{{text} for the text itself"
            )
    if scheme is not None and (part != "url" or not _SCHEME.fullmatch(scheme)):
        raise ValueError(
            f"{text}: after the colon there is another scheme for a URL, like "
            f"{{{'.'.join([*words[:-1], 'url'])}:postgresql+psycopg}}"
        )
    return Reference(secret, part, scheme or "")


def _listed(start: str) -> str:
    return ", ".join(f"{{{start}.{part}}}" for part in PARTS)


# Names of variables whose value is confidential.
_CONFIDENTIAL = re.compile(
    r"key|secret|token|pass|pwd|credential|auth|private|salt|dsn|cert|signature|cookie",
    re.IGNORECASE,
)


def confidential(variables: Mapping[str, str]) -> Iterator[str]:
    """
    The values in a file of variables that no output may show.

    Such a file also has harmless ones (`production`, `8000`), which messages need.
    """
    for name, value in variables.items():
        random = re.fullmatch(r"[A-Za-z0-9+/_=-]{24,}", value) and re.search(r"\d", value)
        if _CONFIDENTIAL.search(name) or random or "\n" in value:
            yield value
        else:
            # The password in a URL.
            yield from re.findall(r"://[^:@/\s]*:([^@/\s]+)@", value)


# --- the variables of an application --------------------------------------------------------------


def shown(env: Mapping[str, str]) -> dict[str, str]:
    """The variables without a reference, which files may have, too."""
    return {name: fill(text, {}) for name, text in env.items() if not references(text)}


def hidden(env: Mapping[str, str]) -> dict[str, str]:
    """The variables with a reference, not filled in."""
    return {name: text for name, text in env.items() if references(text)}


def secret_variables(
    env: Mapping[str, str], secrets: Mapping[str, str], *, every: bool
) -> dict[str, str]:
    """
    The variables that hold secrets, with their values; with `every` also one for each secret.

    A variable of the settings wins over the one of a secret.
    """
    found = {name.upper(): text.rstrip("\n") for name, text in secrets.items() if every}
    own = {name: fill(text, secrets) for name, text in hidden(env).items()}
    return {name: value for name, value in found.items() if name not in env} | own

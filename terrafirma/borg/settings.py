"""Settings of backups: content, repository, retention and schedule."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from terrafirma.fields import AbsolutePath, KnownHost, Line
from terrafirma.settings import Settings

_REPOSITORY = r"^$|^ssh://[^\s@]+@[^\s/@]+/\S+$"
RepositoryId = Annotated[
    str, Field(pattern=r"^$|^[0-9a-f]{64}$", title="64 digits from 0 to f, or empty")
]


LOST_WITH_IT = (
    "is the server itself, and a backup there is lost with it: name another host, "
    "ssh://user@host:port/./path"
)


def _repository(value: Any) -> Any:
    text = str(value)
    if re.match(r"[\w+-]+://[^@]*:[^@]*@", text):
        # The message does not repeat the URL, because it may end in a log.
        raise ValueError(
            "has a password in it: the server logs in with the key that commands/borg_key.py "
            "shows; write ssh://user@host:port/./path"
        )
    if ".." in text.split("/"):
        raise ValueError(f"{text!r}: write the path without '..'")
    name = repository_host(text)
    if _is_this_machine(name):
        raise ValueError(f"{name} {LOST_WITH_IT}")
    return value


def repository_host(repository: str) -> str:
    """The host of an ssh:// URL; empty for other text."""
    found = re.match(r"ssh://[^@]+@(\[[^]]*\]|[^/:@]*)", repository)
    return found[1].strip("[]").rstrip(".").lower() if found else ""


def _is_this_machine(name: str) -> bool:
    try:
        address = ip_address(name)
    except ValueError:
        # Resolvers take short forms such as 127.1 for addresses.
        return bool(re.fullmatch(r"localhost|.+\.(localhost|localdomain)|127(\.\d+)*|0+", name))
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


class Borg(Settings):
    prefix = "borg"

    repository: Annotated[
        str,
        BeforeValidator(_repository),
        Field(pattern=_REPOSITORY, title="`ssh://` URL with a user and a path, or empty"),
    ]
    remote_path: Annotated[
        str,
        Field(
            pattern=r"^$|^[A-Za-z0-9_./~][A-Za-z0-9_./+~-]*$",
            title="path or name of a program, or empty",
        ),
    ]
    repository_id: RepositoryId
    repository_replaces: RepositoryId
    known_hosts: tuple[KnownHost, ...]
    directories: tuple[AbsolutePath, ...] = Field(min_length=1)
    exclude: tuple[Line, ...]
    exclude_databases: tuple[Line, ...]
    keep_daily: int = Field(ge=1)
    keep_weekly: int = Field(ge=0)
    keep_monthly: int = Field(ge=0)
    schedule: Line = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.repository and not self.known_hosts:
            raise ValueError(
                "borg_known_hosts: empty; list the backup host's SSH host keys, as your provider "
                "publishes them or as `ssh-keyscan` prints them after you compared them"
            )
        return self

"""Logins to the registries that an application's images come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from terrafirma.app.secret_source import SecretSource
from terrafirma.fields import Line
from terrafirma.settings import Model

# Without a dot, a port or `localhost`, Docker reads a name as a path at its own registry.
_HOST = r"localhost|[a-z0-9-]+(\.[a-z0-9-]+)+(:[0-9]{1,5})?|[a-z0-9-]+:[0-9]{1,5}"


def _by_host(value: Any) -> Any:
    """The logins under the names that images have."""
    found = {}
    for host, login in value.items() if isinstance(value, dict) else ():
        if not isinstance(host, str) or not re.fullmatch(_HOST, host):
            # Not repeated if it may have a password in it.
            given = "one" if "@" in str(host) else repr(host)
            raise ValueError(f"{given} is no host of a registry, like ghcr.io or docker.io")
        name = "docker.io" if host in ("index.docker.io", "registry-1.docker.io") else host
        found[name] = login
    return found or value


def _known(value: str) -> str:
    if value == "generated":
        raise ValueError("the registry has it already: use env:NAME or command:…")
    return value


class Registry(Model):
    """A login to a registry of images."""

    user: Annotated[Line, Field(pattern=r"^[^:]+$", title="name without a colon")]
    """Who logs in."""
    password: Annotated[
        SecretSource, AfterValidator(_known), Field(title="`env:NAME` or `command:…`")
    ]
    """Password or access token of that user: `env:NAME` or `command:…`."""


Logins = Annotated[
    dict[Annotated[str, Field(title="host of a registry, like `ghcr.io`")], Registry],
    BeforeValidator(_by_host),
]

OLD = ("registry", "registry_user", "registry_password")


def refuse_old_keys(data: Any) -> None:
    """Raise ValueError for keys of an earlier version; the message has the new form."""
    if not isinstance(data, dict) or not (old := [key for key in OLD if key in data]):
        return
    raise ValueError(
        f"registries: {', '.join(old)}: there is no such key any more, write registries = "
        f'{{"{_host_of(data)}": {{"user": {_shown(data, "registry_user", "…")}, '
        f'"password": {_shown(data, "registry_password", "env:…")}}}}}'
    )


def _host_of(data: Mapping[str, Any]) -> str:
    if isinstance(found := data.get("registry"), str) and re.fullmatch(r"[a-z0-9.:-]+", found):
        return found
    first, slash, _ = str(data.get("image") or "").partition("/")
    named = slash and re.fullmatch(r"[a-z0-9.:-]*[.:][a-z0-9.:-]+|localhost", first)
    return first if named else "docker.io" if data.get("image") else "registry.example.com"


def _shown(data: Mapping[str, Any], key: str, otherwise: str) -> str:
    """A value in quotes, if it is plain and no secret."""
    value = str(data.get(key) or "")
    plain = r"[\w.@-]+" if key == "registry_user" else r"env:\w+"
    return f'"{value if re.fullmatch(plain, value) else otherwise}"'


def file_of(host: str) -> str:
    """The name of the file on the server that has the password for a registry."""
    return f".registry_{host.replace(':', '_')}"

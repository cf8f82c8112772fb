"""Sections, servers and applications for tests: the defaults with changes."""

import runpy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from _pytest.mark import ParameterSet

from terrafirma.app.settings import Application
from terrafirma.rules import RULES
from terrafirma.server import Server, applications
from terrafirma.settings import Refused, Settings
from tests.conftest import ROOT

DEFAULTS = {
    key: value
    for key, value in runpy.run_path(str(ROOT / "group_data" / "all.py")).items()
    if not key.startswith("_") and not callable(value)
}
API: dict[str, Any] = DEFAULTS["apps"]["api"]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGc1+glbGrHlrI9G1dvS2Q54l8v1A9J2h2KIlylF3/L8"
SECURITY_KEY = (
    "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAILfwl0Vx9OJ8"
    "q0ZkEUmQ3HbQHZqzXf8SDtTEYVuQm3zgAAAABHNzaDo="
)
S = TypeVar("S", bound=Settings)


HOST: Any = SimpleNamespace(name="db1")


def of(section: type[S], **data: Any) -> S:
    """One section of a host that has `data` instead of the defaults."""
    return section.of(DEFAULTS | data)


def server(**data: Any) -> Server:
    """A whole server that has `data` instead of the defaults."""
    return Server.of("db1", DEFAULTS | data)


def entry(name: str = "web", **fields: Any) -> dict[str, Any]:
    """An entry of `apps`: the required fields, and these `fields`."""
    return API | {"domain": f"{name}.acme.com"} | fields


def application(name: str = "api", **fields: Any) -> Application:
    (app,) = applications({"apps": {name: entry(name, **fields)}})
    return app


def refusal(section: type[Settings], **data: Any) -> str:
    with pytest.raises(Refused) as error:
        of(section, **data)
    return readable(error.value)


def refusal_of(name: str = "api", **fields: Any) -> str:
    """The message that refuses an application with these fields."""
    with pytest.raises(Refused) as error:
        application(name, **fields)
    return readable(error.value)


def refused(**data: Any) -> str:
    """The message that refuses a host that has `data` instead of the defaults."""
    with pytest.raises(Refused) as error:
        keep_rules(server(**data))
    return readable(error.value)


def keep_rules(one: Server) -> None:
    if wrong := [words for rule in RULES for words in rule(one)]:
        raise Refused(*wrong)


def readable(error: Refused) -> str:
    message = str(error)
    assert message
    assert "\n" not in message
    # pydantic's internal names help nobody.
    assert "function-" not in message
    return message


def numbered(rows: Sequence[tuple[Any, ...]], key: int) -> list[ParameterSet]:
    return [pytest.param(*row, id=f"{row[key]}-{number}") for number, row in enumerate(rows)]


POOLS: dict[str, Any] = {
    "pgbouncer_enabled": True,
    "postgres_roles": [{"name": "api"}, {"name": "web", "connection_limit": 7}, {"name": "x"}],
    "postgres_databases": [
        {"name": "api", "owner": "api", "access": {"web": "read"}},
        {"name": "shop", "owner": "api"},
    ],
}

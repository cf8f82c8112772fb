"""
Managed by Terrafirma. A database of a compose project in whose place the host's PostgreSQL is used.

Its service is left out. Variables of other services that name it refer to the host's database
instead, by values that only Compose's environment has. Each of them is said in a line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from terrafirma_host import values
from terrafirma_host.spec import Application

POSTGRES = re.compile(r"(postg|pgvector|timescale|spilo|paradedb|pgvecto|vchord|citus|pgautoupgrade"
                      r"|supabase/postgres)")  # fmt: skip
# The variables with which images of PostgreSQL are told a user, a password and a database.
USER = ("POSTGRES_USER", "POSTGRESQL_USERNAME", "POSTGRESQL_USER")
PASSWORD = ("POSTGRES_PASSWORD", "POSTGRESQL_PASSWORD")
NAME = ("POSTGRES_DB", "POSTGRESQL_DATABASE")
_URL = re.compile(
    r"(?P<scheme>(?:jdbc:)?[A-Za-z][A-Za-z0-9+.-]*)://(?:(?P<user>[^:@/\s]*)(?::(?P<word>[^@/\s]*))?@)?"
    r"(?P<host>[A-Za-z0-9_.-]+)(?::(?P<port>[0-9]+))?(?:/(?P<name>[^?#/\s]*))?(?P<rest>[?#]\S*)?"
)


@dataclass(frozen=True)
class Bundled:
    """The service that is replaced, and what its files say about it."""

    service: str
    names: frozenset[str]  # by which others reach it
    user: str
    password: str = field(repr=False)
    name: str  # of its database
    secrets: frozenset[str]  # files that its image reads its user, password and database from


@dataclass(frozen=True)
class Replaced:
    app: Application  # with the variables of services that refer to the host's database
    names: list[str]  # which lead to the host
    rewritten: dict[str, list[str]]  # service → variables
    lines: list[str]


def refusals(app: Application, project: Mapping[str, Any]) -> Iterator[str]:
    """Why the host's PostgreSQL cannot take the place of a service."""
    image = project["services"][app.database_replaces].get("image") or ""
    built = "build" in project["services"][app.database_replaces]
    if not built and not POSTGRES.search(image.lower()):
        yield (f"database_replaces: {app.database_replaces} runs {image}, and the host's database "
               "is PostgreSQL: leave it out, the service is stateful")  # fmt: skip


def replaced(app: Application, project: Mapping[str, Any], used: Collection[str]) -> Replaced:
    """What becomes of the services in use."""
    bundled = _bundled(app.database_replaces, project)
    lines = [f"{bundled.service} is left out: the host's database is in its place, under its name"]
    lines += _initial(project["services"][bundled.service], bundled)
    services = {name: dict(own) for name, own in app.services.items()}
    rewritten: dict[str, list[str]] = {}
    for name in used:
        service = project["services"][name]
        own = services.get(name, {}).get("env") or {}
        given = {**own} if name in app.stateful else {**app.env, **own}
        env = {key: text for key, text in _rewritten(service, bundled).items() if key not in given}
        if env:
            services.setdefault(name, {})["env"] = {**env, **own}
            rewritten[name] = list(env)
            lines.append(f"{name}: {', '.join(env)}: the host's database, not {bundled.service}")
        elif bundled.service in (service.get("depends_on") or {}) and not _names(
            given, "{database"
        ):
            lines.append(f"{name}: it waits for {bundled.service}, and none of its variables names "
                         "it: give it the address of the host's database")  # fmt: skip
        lines += _left(name, service, bundled, {**env, **given})
    app = replace(app, services=services)
    return Replaced(app, sorted(bundled.names), rewritten, lines)


def _bundled(name: str, project: Mapping[str, Any]) -> Bundled:
    service = project["services"][name]
    env = {key: _plain(value) for key, value in (service.get("environment") or {}).items()}
    names = {name, service.get("container_name") or name}
    for entry in (service.get("networks") or {}).values():
        names |= {*((entry or {}).get("aliases") or [])}
    for other in project["services"].values():
        for link in other.get("links") or []:
            target, _, alias = link.partition(":")
            names |= {alias} if target == name and alias else set()
    user = _first(env, USER) or "postgres"
    given = {one["source"]: one.get("target") or one["source"]
             for one in service.get("secrets") or []}  # fmt: skip
    files = {env[f"{key}_FILE"] for key in (*USER, *PASSWORD, *NAME) if env.get(f"{key}_FILE")}
    secrets = {key for key, path in given.items() if {path, f"/run/secrets/{path}"} & files}
    password, database = _first(env, PASSWORD), _first(env, NAME) or user
    return Bundled(name, frozenset(names), user, password, database, frozenset(secrets))


def _first(env: Mapping[str, str], names: Collection[str]) -> str:
    return next((env[name] for name in names if env.get(name)), "")


def _plain(value: object) -> str:
    # Compose prints each dollar sign twice.
    return str(value if value is not None else "").replace("$$", "$")


def _rewritten(service: Mapping[str, Any], bundled: Bundled) -> dict[str, str]:
    """The variables of a service that are others here, with references in them."""
    env = {key: _plain(value) for key, value in (service.get("environment") or {}).items()}
    found = {key: text for key, value in env.items() if (text := _address(value, bundled)) != value}
    asks = bool(found) or bundled.service in (service.get("depends_on") or {})
    for key, value in env.items() if asks else ():
        if key not in found and (text := _part(key.upper(), value, bundled)):
            found[key] = text
    return {key: text for key, text in found.items() if _is_clear(env[key])}


def _is_clear(value: str) -> bool:
    """Whether a value has no words that would count as a reference."""
    try:
        return not values.references(value)
    except ValueError:
        return False


def _address(value: str, bundled: Bundled) -> str:
    """A value with references where it names the bundled database."""
    if value in bundled.names:
        return "{database.host}"
    if (parts := value.partition(":"))[0] in bundled.names and parts[2].isdigit():
        return "{database.host}:{database.port}"
    if re.search(r"(?:^|\s)host=", value):
        return _words(value, bundled)
    return _URL.sub(lambda found: _url(found, bundled), value)


def _url(found: re.Match[str], bundled: Bundled) -> str:
    if found["host"] not in bundled.names or found["name"] not in (None, "", bundled.name):
        return found[0]
    scheme, rest = found["scheme"], found["rest"] or ""
    if found["user"] is not None and found["name"] and not scheme.startswith("jdbc:"):
        return f"{{database.url:{scheme}}}{rest}"
    login = "{database.user}:{database.password}@" if found["user"] is not None else ""
    name = "/{database.name}" if found["name"] else "/" * (found["name"] is not None)
    return f"{scheme}://{login}{{database.host}}:{{database.port}}{name}{rest}"


def _words(value: str, bundled: Bundled) -> str:
    """A value like `host=db user=app password=x dbname=app`."""
    words = dict(re.findall(r"(\w+)=(\S+)", value))
    if words.get("host") not in bundled.names or words.get("dbname", bundled.name) != bundled.name:
        return value
    parts = {"host": "host", "port": "port", "user": "user", "password": "password",
             "dbname": "name"}  # fmt: skip
    return re.sub(
        r"\b(host|port|user|password|dbname)=(\S+)",
        lambda found: f"{found[1]}={{database.{parts[found[1]]}}}", value,
    )  # fmt: skip


def _part(key: str, value: str, bundled: Bundled) -> str:
    """The reference for a variable that holds a part of the address by itself; or ""."""
    if value == "5432" and "PORT" in key:
        return "{database.port}"
    if re.search("FILE$|ADMIN|REDIS|SECRET|MAIL|SMTP", key):
        return ""
    own = re.search("DB|DATABASE|PG|POSTGRES|SQL", key)
    # Without a password, as with `trust`, an empty one may be of anything else.
    if value == bundled.password and re.search("PASS|PWD", key) and (value or own):
        return "{database.password}"
    if value == bundled.user and re.search("USER|ROLE|LOGIN", key):
        return "{database.user}"
    # An APP_NAME is often the same word.
    if value == bundled.name and (own or key == "NAME") and not re.search("USER", key):
        return "{database.name}"
    return ""


def _initial(service: Mapping[str, Any], bundled: Bundled) -> Iterator[str]:
    for mount in service.get("volumes") or []:
        if mount["target"].startswith("/docker-entrypoint-initdb.d"):
            yield (f"{bundled.service}: what it runs at its first start "
                   f"({mount['target']}) does not run in the host's database")  # fmt: skip
            return


def _left(
    name: str, service: Mapping[str, Any], bundled: Bundled, env: Mapping[str, str]
) -> Iterator[str]:
    """Lines about what names the bundled database and stays as it is."""
    there = {**(service.get("environment") or {})}
    there = {key: value for key, value in there.items() if key not in env}
    named = [key for key, value in there.items() if _names({key: _plain(value)}, *bundled.names)]
    where = {key: service.get(key) for key in ("command", "entrypoint")}
    named += [key for key, value in where.items() if value and _names({key: json.dumps(value)},
                                                                     *bundled.names)]  # fmt: skip
    if named:
        yield (f"{name}: {', '.join(named)} stays as it is: {bundled.service} leads to the host's "
               "PostgreSQL there, with another user, password and database")  # fmt: skip
    secrets = {one["source"] for one in service.get("secrets") or []} & bundled.secrets
    if secrets:
        yield (
            f"{name}: the secret {', '.join(sorted(secrets))} stays as it is, and is no login "
            "to the host's database: give it {database.password} or {database.url} in env"
        )


def _names(env: Mapping[str, Any], *words: str) -> bool:
    """Whether a value names one of these as a host."""
    found = "|".join(map(re.escape, words))
    if words[0].startswith("{"):
        return any(words[0] in str(value) for value in env.values())
    return any(
        re.search(rf"(?:^|[@/=\s\"'])(?:{found})(?::[0-9]+|/|$)", str(value))
        for value in env.values()
    )

"""Commands by which well-known databases write a dump for a backup, as `check` proposes them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from terrafirma_host import databases, dumps, layers, stores
from terrafirma_host.image_names import Image
from terrafirma_host.layers import Project
from terrafirma_host.spec import Application

# Only the shell in the container reads a password: no process list shows it. A dump that breaks
# replaces no complete one.


def proposed(app: Application, project: Project) -> dict[str, list[str]]:
    """A command for each service whose image is known, and whose settings have none."""
    return dict(_proposed(app, project))


def notes(app: Application, project: Project) -> list[str]:
    """A line about each of these services, and about each whose data no volume keeps."""
    runs = [name for name in app.stateful if name in project["services"]]
    unkept = [
        f"{name}: its data lasts only as long as its container: mount a volume with a name where "
        "the image keeps it"
        for name in runs
        if _kind(databases.database(project, name)) not in ("", "redis", "valkey")
        and not any(one.key for one in stores.of_service(app, project, name))
    ]
    return unkept + [
        f"{name}: a backup copies {_place(app, project, name)} while {name} writes there, without "
        "a dump: services has no backup_command"
        for name in proposed(app, project)
    ]


def _proposed(app: Application, project: Project) -> Iterator[tuple[str, list[str]]]:
    have = {one.service for one in dumps.of(app)}
    runs = [*app.stateful, *layers.lasting(app, project)]
    for name in dict.fromkeys(runs):
        service = project["services"].get(name) or {}
        command = _COMMANDS.get(_kind(databases.database(project, name) if service else ""))
        place = _place(app, project, name)
        if command and place and name not in {*have, *app.scratch}:
            own = {**(service.get("environment") or {}), **(app.setting(name, "env") or {})}
            yield name, ["sh", "-c", command(shlex.quote(place), own)]


def _kind(image: str) -> str:
    last = Image.of(image.lower()).last
    if "mongodb" in last:
        # Also that of a publisher of MySQL.
        return "mongo"
    return next((kind for kind in _COMMANDS if last.startswith(kind)), "")


def _place(app: Application, project: Project, name: str) -> str:
    """The directory of a service in its container that lasts; the first of several."""
    found = [one for one in stores.of_service(app, project, name) if one.key]
    data = [one for one in found if any(stores.overlap(one.target, top) for top in databases.DATA)]
    return next((one.target.rstrip("/") for one in data), "")


def _written(command: str, file: str) -> str:
    return f"umask 077; {command} > {file}.new && mv {file}.new {file}"


def _value(names: Collection[str], env: Mapping[str, Any]) -> str:
    """How a shell reads the first of these variables that the service has, or its file."""
    for name in names:
        if name in env:
            return f'"${name}"'
        if f"{name}_FILE" in env:
            return f'"$(cat "${name}_FILE")"'
    return ""


def _sql(program: str) -> Callable[[str, Mapping[str, Any]], str]:
    def command(place: str, env: Mapping[str, Any]) -> str:
        value = _value(("MARIADB_ROOT_PASSWORD", "MYSQL_ROOT_PASSWORD"), env)
        words = f"{f'MYSQL_PWD={value} ' if value else ''}{program} --user=root --all-databases"
        words += " --single-transaction --routines --events"
        return _written(words, f"{place}/backup.sql")

    return command


def _postgres(place: str, env: Mapping[str, Any]) -> str:
    return _written('pg_dumpall --username="${POSTGRES_USER:-postgres}"', f"{place}/backup.sql")


def _mongo(place: str, env: Mapping[str, Any]) -> str:
    user = _value(["MONGO_INITDB_ROOT_USERNAME"], env)
    value = _value(["MONGO_INITDB_ROOT_PASSWORD"], env)
    words = "mongodump --quiet --archive"
    if user and value:
        # It reads the password from standard input.
        words = f"printf '%s\\n' {value} | {words} --username={user}"
    return _written(words, f"{place}/backup.archive")


def _redis(program: str) -> Callable[[str, Mapping[str, Any]], str]:
    def command(place: str, env: Mapping[str, Any]) -> str:
        value = _value(("REDIS_PASSWORD", "VALKEY_PASSWORD"), env)
        known = f"{program.replace('-', '').upper()}_AUTH={value} " if value else ""
        # It succeeds also where it prints an error.
        return f'said=$({known}{program} SAVE); echo "$said"; test "$said" = OK'

    return command


_COMMANDS: dict[str, Callable[[str, Mapping[str, Any]], str]] = {
    "mysql": _sql("mysqldump"),
    "percona": _sql("mysqldump"),
    "mariadb": _sql("mariadb-dump"),
    "mongo": _mongo,
    "redis": _redis("redis-cli"),
    "valkey": _redis("valkey-cli"),
    **dict.fromkeys(("postgres", "postgis", "pgvector", "timescaledb"), _postgres),
}

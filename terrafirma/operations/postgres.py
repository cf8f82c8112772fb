"""PostgreSQL: cluster, roles, passwords, databases."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence

from pyinfra import host
from pyinfra.api import StringCommand
from pyinfra.facts.files import FileContents

from terrafirma.facts.files import PathStates
from terrafirma.facts.postgres import (
    Databases,
    RestartSettings,
    Roles,
    RoleState,
    WrongPasswords,
    psql,
)
from terrafirma.operations import operation
from terrafirma.paths import PASSWORDS_PROGRAM
from terrafirma.settings import Database, Role


@operation
def cluster(version: int) -> Generator[StringCommand]:
    """
    The cluster `version`/main, with data checksums and UTF-8; an existing one is left as it is.

    The package would make one without checksums; tasks/postgres.py tells it not to.
    """
    configuration = f"/etc/postgresql/{version}/main/postgresql.conf"
    if configuration in host.get_fact(PathStates, paths=[configuration]):
        host.noop(f"cluster {version}/main exists")
    else:
        yield StringCommand(
            f"pg_createcluster --locale C.UTF-8 --encoding UTF8 {version} main",
            "-- --data-checksums --auth-local peer --auth-host scram-sha-256",
        )


@operation
def apply_restart(
    version: int, *, unit: str, path: str, settings: Callable[[], Mapping[str, str]]
) -> Generator[StringCommand]:
    """
    A restart, if a setting waits for one: the server itself says so.

    + unit: of the cluster
    + path: the file with our settings
    + settings: what that file is going to say; asked by a dry run alone, so that the plan announces
      the restart

    A time stamp would restart the server for every changed value; most need a reload only.
    """
    restart_settings = host.get_fact(RestartSettings, version=version)
    due = sorted(name for name, pending in restart_settings.items() if pending)
    if not host.state.is_executing:
        lines = host.get_fact(FileContents, path=path) or []
        present = dict(line.split(" = ", 1) for line in lines if " = " in line)
        wanted = settings()
        due += sorted(
            name
            for name in set(restart_settings) & (set(wanted) | set(present))
            if present.get(name) != wanted.get(name)
        )
    if due:
        yield StringCommand("systemctl restart", unit, "#", *due)
    else:
        host.noop("no setting waits for a restart")


def _attributes(role: Role) -> RoleState:
    return RoleState(
        login=True,
        superuser=False,
        create_database=False,
        create_role=False,
        replication=False,
        bypass_rls=False,
        connection_limit=role.connection_limit,
    )


@operation
def roles(version: int, roles: Sequence[Role]) -> Generator[StringCommand]:
    """
    Roles that log in, and can do no more than that.

    pyinfra's postgres.role never takes an attribute away, does not see LOGIN, SUPERUSER and the
    limit at all, and costs a round trip for each role.
    """
    known = host.get_fact(Roles, version=version)
    sql = []
    for role in roles:
        if known.get(role.name) != _attributes(role):
            verb = "alter" if role.name in known else "create"
            sql.append(
                f'{verb} role "{role.name}" login nosuperuser nocreatedb nocreaterole '
                f"noreplication nobypassrls connection limit {role.connection_limit};"
            )
    yield from _run(version, sql, f"{len(roles)} roles as wanted")


@operation
def passwords(version: int, roles: Sequence[Role]) -> Generator[StringCommand]:
    """
    Passwords that are born on the server, in files that root alone reads, and never leave it.

    pyinfra's postgres.role sends them in clear text, and sets them on each run.
    """
    wrong = host.get_fact(WrongPasswords, version=version, roles=[role.name for role in roles])
    if wrong:
        yield StringCommand(PASSWORDS_PROGRAM, "set", str(version), *wrong)
    else:
        host.noop(f"{len(roles)} passwords as in their files")


@operation
def databases(version: int, databases: Sequence[Database]) -> Generator[StringCommand]:
    """
    Databases with their owners, closed to every other role.

    pyinfra's postgres.database leaves CONNECT and TEMPORARY with PUBLIC: any role of the cluster
    may look around in every database.
    """
    known = host.get_fact(Databases, version=version)
    sql = []
    for database in databases:
        now = known.get(database.name)
        if now is None:
            # template0: what somebody put into template1 is not copied into each new database.
            sql.append(
                f'create database "{database.name}" owner "{database.owner}" template template0;'
            )
        elif now["owner"] != database.owner:
            sql.append(f'alter database "{database.name}" owner to "{database.owner}";')
        if now is None or now["open"]:
            sql.append(f'revoke connect, temporary on database "{database.name}" from public;')
    # Nor is there anything to look at for them in the maintenance database.
    if known.get("postgres", {"open": True})["open"]:
        sql.append("revoke connect, temporary on database postgres from public;")
    yield from _run(version, sql, f"{len(databases)} databases as wanted")


def _run(version: int, sql: list[str], otherwise: str) -> Generator[StringCommand]:
    if sql:
        yield StringCommand(psql(version), _stdin=sql)
    else:
        host.noop(otherwise)

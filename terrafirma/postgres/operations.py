"""PostgreSQL: the cluster, roles, passwords and databases."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pyinfra import host
from pyinfra.api import FactBase, StringCommand
from pyinfra.facts.files import FileContents

from terrafirma.host.asking import ask
from terrafirma.host.files import PathStates, path_states
from terrafirma.host.operation import failure, operation
from terrafirma.host.program import told
from terrafirma.paths import DROPPED, PASSWORDS, PASSWORDS_PROGRAM
from terrafirma.postgres.facts import (
    Contents,
    Databases,
    Roles,
    Server,
    WrongPasswords,
    at_server,
    connect,
    psql,
)
from terrafirma.postgres.grants import (
    closed_sql,
    content_sql,
    database_sql,
    membership_sql,
    role_sql,
)
from terrafirma.postgres.settings import Postgres, Role
from terrafirma.postgres.status import one_line

State = TypeVar("State")


@operation
def cluster(version: int) -> Generator[StringCommand]:
    """
    The cluster `version`/main, with data checksums and UTF-8; an existing one is not changed.

    The package would create one without checksums; a file of tasks/postgres.py prevents that.
    """
    configuration = f"/etc/postgresql/{version}/main/postgresql.conf"
    if configuration in path_states([configuration]):
        host.noop(f"cluster {version}/main exists")
    else:
        yield StringCommand(
            f"pg_createcluster --locale C.UTF-8 --encoding UTF8 {version} main",
            "-- --data-checksums --auth-local peer --auth-host scram-sha-256",
        )


@operation
def undo_by_hand(
    version: int, *, settings: Callable[[], Mapping[str, str]]
) -> Generator[StringCommand]:
    """
    No setting of our file is overridden by ALTER SYSTEM, which wins over every file.

    + settings: the settings in our file
    """
    # The sleep lets new sessions see the reloaded value, or the next fact would read the old one.
    by_hand = set(ask(host, Server, version=version)["by_hand"])
    sql = [f"alter system reset {name};" for name in sorted(by_hand & settings().keys())]
    yield from _run(
        version,
        sql and [*sql, "select pg_reload_conf();", "select pg_sleep(0.2);"],
        "ALTER SYSTEM overrides no setting",
    )


@operation
def apply_restart(
    version: int, *, unit: str, path: str, settings: Callable[[], Mapping[str, str]]
) -> Generator[StringCommand]:
    """
    A restart, if the server itself reports a setting that waits for one.

    + unit: the unit of the cluster
    + path: the file with our settings
    + settings: the future content of that file; used in a dry run only, to announce the restart

    Comparing time stamps would restart the server for every change, and most need a reload only.
    """
    server = ask(host, Server, version=version)
    due = set(server["pending"])
    if not host.state.is_executing:
        lines = host.get_fact(FileContents, path=path) or []
        present = dict(line.split(" = ", 1) for line in lines if " = " in line)
        wanted = settings()
        changing = {name for name, value in wanted.items() if present.get(name) != value}
        changing |= present.keys() - wanted.keys()
        # What ALTER SYSTEM set will be undone. If the value is in force, that needs a restart; if
        # the value waits for one, it no longer does.
        by_hand = wanted.keys() & set(server["by_hand"])
        due = (due - by_hand) | ((changing | (by_hand - due)) & set(server["restart"]))
    if due:
        yield StringCommand("systemctl restart", unit, "#", *sorted(due))
    else:
        host.noop("no setting waits for a restart")


@operation
def roles(version: int, settings: Postgres) -> Generator[StringCommand]:
    """
    The roles, each with exactly its declared attributes and memberships.

    pyinfra's postgres.role never removes an attribute, ignores LOGIN, SUPERUSER and the connection
    limit, and costs a round trip for each role.
    """
    known = yield from _seen(Roles, version)
    if known is None:
        return
    sql = [line for role in settings.roles for line in role_sql(role, known.get(role.name))]
    # All roles are created before one becomes a member of another.
    for role in settings.roles:
        sql += membership_sql(role.name, settings.groups(role), known.get(role.name))
    declared = {role.name for role in settings.roles}
    _report("roles", known.keys() - declared - {"postgres"})
    yield from _run(version, sql, f"{len(settings.roles)} roles as wanted")


@operation
def passwords(
    version: int, roles: Sequence[str], given: Mapping[str, str], *, renew: bool = False
) -> Generator[StringCommand]:
    """
    Passwords of the roles, generated on the server, which they never leave; only root reads them.

    + roles: names of the roles that log in
    + given: passwords that the user passed, by role
    + renew: set new passwords even where the present ones are right

    pyinfra's postgres.role sends them in clear text, and sets them on each run.
    """
    stdin = told({role: given.get(role) for role in roles})
    wrong = list(roles) if renew else host.get_fact(WrongPasswords, version=version, _stdin=stdin)
    if wrong:
        stdin = told({role: given.get(role) for role in wrong})
        verb = "renew" if renew else "set"
        yield StringCommand(PASSWORDS_PROGRAM, verb, str(version), _stdin=stdin)
    else:
        host.noop(f"{len(roles)} passwords as in their files")


@operation
def twin(version: int, role: Role, settings: Postgres) -> Generator[StringCommand]:
    """
    A second login of `role`, which acts as that role: `NAME~`, a name no declared role can have.

    PostgreSQL keeps one password for a role. With a second login while the password is renewed, no
    connection is ever refused.
    """
    double = role.model_copy(
        update={
            "name": f"{role.name}~",
            "settings": {**role.settings, "role": role.name},
            # No limit: PgBouncer could not be given the same one, because its configuration allows
            # no ~ in names.
            "connection_limit": -1,
        }
    )
    known = yield from _seen(Roles, version)
    if known is None:
        return
    now = known.get(double.name)
    # The second login inherits every membership through the role, and loses it with the role.
    sql = [*role_sql(double, now), *membership_sql(double.name, [role.name], now)]
    sql += [
        f'alter role "{double.name}" in database "{database.name}" set role to {database.owner};'
        for database in settings.databases
        if database.access.get(role.name) == "migrate"
    ]
    yield from _run(version, sql, f"{double.name} is there")


@operation
def drop_role(version: int, names: Sequence[str]) -> Generator[StringCommand]:
    """
    The roles are dropped, with their passwords and rights.

    A role that owns something in any database is refused, so that nothing is dropped with it.
    """
    known = yield from _seen(Roles, version)
    if known is None:
        return
    files = [f"{PASSWORDS}/{name}" for name in names]
    left = [path for path in host.get_fact(PathStates, paths=files) if path in files]
    there = [name for name in names if name in known]
    if there:
        # PostgreSQL writes the second script: it knows in which databases the roles have rights.
        yield StringCommand(
            f"lines=$({psql(version)}) && printf '%s\\n' \"$lines\" | {psql(version)}",
            _stdin=drop_role_sql(there),
        )
    if there or left:
        yield StringCommand("rm -f", *files)
    else:
        host.noop(f"there is no role {names[-1]}")


def drop_role_sql(names: Sequence[str]) -> list[str]:
    """
    SQL that fails if one of the roles owns something, else answers the SQL that drops them.

    `drop owned by` removes their rights, and would drop what they own. So each database is checked
    once more right before, in the same transaction.
    """
    these = ", ".join(f"'{name}'" for name in names)
    quoted = ", ".join(f'"{name}"' for name in names)
    theirs = (
        "pg_shdepend join pg_authid on pg_authid.oid = refobjid "
        f"and refclassid = 'pg_authid'::regclass and rolname in ({these})"
    )
    # The catalog counts default privileges as owned; they may be dropped.
    check = f"""do $check$ declare why text; begin
  select string_agg(distinct format('%s owns something in %s', rolname, case
      when classid = 'pg_database'::regclass
        then 'the cluster, the database ' || (select datname from pg_database where oid = objid)
      when dbid = 0 then 'the cluster, a tablespace'
      else 'the database ' || (select datname from pg_database where oid = dbid) end), ', ')
    into why from {theirs}
    where deptype = 'o' and classid <> 'pg_default_acl'::regclass;
  if why is not null then
    raise exception 'drop_role: %; drop that, or give it to another role', why;
  end if;
end $check$;"""
    visited = f"""with visited as (
  select distinct datname, datallowconn and datconnlimit <> -2 and datname !~ '[\\n\\r]' as open
  from pg_database join {theirs} on dbid = pg_database.oid)"""
    closed = f"""do $closed$ declare closed text; begin
  {visited} select string_agg(datname, ', ') into closed from visited where not open;
  if closed is not null then
    raise exception 'drop_role: {names[-1]} has rights in %, which refuses connections; '
      'see allow_connections of alter database', closed;
  end if;
end $closed$;"""
    # Names are quoted as in CONNECT. `drop owned` in any database also removes rights on shared
    # objects, so the database postgres is always among them.
    lines = rf"""{visited}, named as (select datname from visited union select 'postgres')
select '\connect -reuse-previous=on "' || replace(format('dbname=''%s''',
    replace(replace(datname, '\', '\\'), '''', '\''')), '"', '""') || '"' || $lines$
begin;
{check}
drop owned by {quoted};
commit;$lines$ from named order by datname;"""
    drops = [f"""select 'drop role "{name}";';""" for name in names]
    terse = r"\set VERBOSITY terse"
    return [terse, check, closed, rf"select '{terse}';", lines, *drops]


@operation
def drop_database(version: int, database: str) -> Generator[StringCommand]:
    """The database is dropped, after a last dump to /var/lib/terrafirma/dropped."""
    known = yield from _seen(Databases, version)
    if known is None:
        return
    if database not in known:
        host.noop(f"there is no database {database}")
        return
    yield StringCommand(drop_database_script(version, database))


def drop_database_script(version: int, database: str) -> str:
    """The shell commands that dump and drop a database, if no session is connected to it."""
    # A database in SQL_ASCII may hold any bytes: the client encoding SQL_ASCII converts nothing.
    dump = at_server(version, f"pg_dump --format custom {database}", "-c client_encoding=SQL_ASCII")
    connected = f"""
        select 'drop: ' || sum(number) || ' sessions are connected to {database}, from '
            || string_agg(place || ' (' || usename || ', ' || number || ')', ', ' order by place)
            || '; end them first'
        from (select coalesce(host(client_addr), 'the host itself') as place, usename,
                count(*) as number
            from pg_stat_activity where datname = '{database}'
                and backend_type in ('client backend', 'walsender') and pid <> pg_backend_pid()
            group by 1, 2) as clients having count(*) > 0"""
    limit = f"select datconnlimit from pg_database where datname = '{database}'"
    lines = (
        f"""ask() {{ printf '%s;\\n' "$1" | {psql(version)}; }};""",
        f'idle() {{ who=$(ask "{" ".join(connected.split())}") &&',
        """{ test -z "$who" || { echo "$who" >&2; false; }; }; };""",
        f'idle && limit=$(ask "{limit}") || exit 1;',
        # Limit -2: an earlier drop died in the middle. Nothing can connect, so nothing can be
        # dumped.
        f"""if test "$limit" = -2; then ask 'drop database "{database}"'; exit; fi;""",
        """trap 'test -z "$limit" ||""",
        f"""ask "alter database \\"{database}\\" connection limit $limit"' EXIT;""",
        "trap 'exit 1' HUP INT TERM;",
        # From here on no session can connect and write rows that the dump would miss.
        f"""ask 'alter database "{database}" connection limit 0' && idle || exit 1;""",
        # An existing dump is never overwritten: dropping twice leaves two dumps.
        f"umask 077; mkdir -p {DROPPED}; file={DROPPED}/{database}.dump; n=1;",
        f'while test -e "$file"; do n=$((n + 1)); file={DROPPED}/{database}.$n.dump; done;',
        f'{dump} > "$file" && sync "$file" || {{ rm -f "$file"; exit 1; }};',
        # A template cannot be dropped.
        f"""ask 'alter database "{database}" is_template false' || exit 1;""",
        f"""ask 'drop database "{database}"' || exit 1;""",
        f'limit=; echo "the last dump of {database}: $file"',
    )
    return " ".join(lines)


@operation
def databases(version: int, settings: Postgres) -> Generator[StringCommand]:
    """
    Databases with their owners, limits and settings, closed to every role without access.

    pyinfra's postgres.database leaves CONNECT and TEMPORARY with PUBLIC: any role of the cluster
    may connect to every database.
    """
    known = yield from _seen(Databases, version)
    if known is None:
        return
    declared = {role.name for role in settings.roles}
    sql = list(closed_sql("postgres", known.get("postgres"), declared))
    for database in settings.databases:
        now = known.get(database.name)
        sql += database_sql(database, now, declared)
        if now is not None and (now["encoding"], now["locale"]) != (
            database.encoding,
            database.locale,
        ):
            host.log_styled(
                f"postgres_databases: {database.name} is {now['encoding']}, {now['locale']}, not "
                f"{database.encoding}, {database.locale}: only a new database can have these",
                fg="yellow",
            )
    _report("databases", known.keys() - {one.name for one in settings.databases} - {"postgres"})
    yield from _run(version, sql, f"{len(settings.databases)} databases as wanted")


@operation
def contents(version: int, settings: Postgres) -> Generator[StringCommand]:
    """
    The extensions and schemas of the databases, and the rights of the roles in them.

    Rights that a declared role has beyond its level are revoked. One query covers all databases.
    """
    # Only declared databases are asked, so that a broken other one cannot stop the run.
    asked = [connect(name) for name in ("postgres", *(one.name for one in settings.databases))]
    known = yield from _seen(Contents, version, _stdin=asked)
    if known is None:
        return
    sql = []
    declared = {role.name for role in settings.roles}
    for database in settings.databases:
        now = known.get(database.name)
        if lines := list(content_sql(database, now, declared)):
            sql += [f'\\connect "{database.name}"', "begin;", *lines, "commit;"]
        if now:
            more = set(now["extensions"]) - {"plpgsql", *database.extensions}
            _report(f"extensions of {database.name}", more)
            others = {
                owner
                for name in database.schemas
                if name in now["schemas"]
                for owner, *_ in now["schemas"][name]["strangers"]
            }
            _report(f"tables and sequences in {database.name} that belong to", others)
    # In the database postgres the superuser sees the statements of all databases.
    if "pg_stat_statements" not in known.get("postgres", {"extensions": []})["extensions"]:
        sql += ["\\connect postgres", "create extension pg_stat_statements schema public;"]
    yield from _run(version, sql, f"the contents of {len(settings.databases)} databases as wanted")


def _seen(
    fact: type[FactBase[dict[str, State] | None]], version: int, **more: Any
) -> Generator[StringCommand, None, dict[str, State] | None]:
    """The answer of `fact`; None if the server is down, which fails a run but not a dry run."""
    known: dict[str, State] | None = host.get_fact(fact, version=version, **more)
    if known is None:
        if host.state.is_executing:
            yield failure("the server does not run: see `journalctl -u 'postgresql@*'`")
        host.noop("the server is down: a dry run cannot see what it contains")
    return known


def _report(what: str, names: Iterable[str]) -> None:
    if names := sorted(map(one_line, names)):
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        host.log(f"Not in your settings, left alone: {what} {', '.join(names[:10])}{more}")


def _run(version: int, sql: list[str], otherwise: str) -> Generator[StringCommand]:
    if not sql:
        host.noop(otherwise)
        return
    if not host.state.is_executing:
        # Show the statements: the operation's name does not say what differs. They hold no secret,
        # but names that other people chose, hence `one_line`.
        lines = [line for line in sql if line.startswith(("alter", "create", "grant", "revoke"))]
        for line in lines[:10]:
            host.log(f"  {one_line(line)}")
        if len(lines) > 10:
            host.log(f"  … and {len(lines) - 10} more")
    yield StringCommand(psql(version), _stdin=sql)

"""The roles, databases, rights and settings of a PostgreSQL cluster."""

from __future__ import annotations

import json
from typing import Any, TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override

from terrafirma.host.program import ALL_WRONG, which_are_wrong
from terrafirma.paths import PASSWORDS_PROGRAM

# The owner of a database controls the default settings of its sessions, and may define functions
# that a superuser must not call. These options override the settings of a database or a role.
PSQL_OPTIONS = (
    "-c search_path=pg_catalog -c role=none -c local_preload_libraries= -c statement_timeout=0 "
    "-c lock_timeout=0 -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 "
    "-c default_transaction_read_only=off -c standard_conforming_strings=on"
)


def psql_options(version: int) -> str:
    """The session options that `version` knows; an unknown one would end the session."""
    return PSQL_OPTIONS + (" -c transaction_timeout=0" if version >= 17 else "")


# The pid file says where the server of a cluster listens. `--cluster` and pg_lsclusters read the
# configuration, which is wrong between a change of the port and the restart. A crash may leave a
# pid file behind, so its process is checked; psql without a port would connect to another cluster.
# pg_conftool is Perl and slow to start: a command that already knows the directory sets $data.
_DATA = "data=${{data:-$(pg_conftool -s {version} main show data_directory 2> /dev/null)}}"
_RUNS = (
    _DATA + ' && test -n "$data" && '
    'pid=$(head -n 1 "$data/postmaster.pid" 2> /dev/null) && test "/proc/$pid/cwd" -ef "$data"'
)
_AT_SERVER = (
    _RUNS + ' && host=$(sed -n 5p "$data/postmaster.pid") && test -n "$host" || '
    '{{ echo "{version}/main does not run, or has no socket" >&2; exit 2; }}; '
    'exec env PGHOST="$host" PGPORT="$(sed -n 4p "$data/postmaster.pid")" "$@"'
)


def runs(version: int) -> str:
    """The shell command that succeeds if the server of cluster `version`/main runs."""
    return f"{{ {_RUNS.format(version=version)}; }}"


def at_server(version: int, program: str, options: str = "") -> str:
    """
    The command line that runs one of PostgreSQL's programs as superuser on the running server.

    + program: name and arguments of the program
    + options: further session options
    """
    options = f"{psql_options(version)} {options}".strip()
    return (
        f"runuser -u postgres -- env PGOPTIONS='{options}' "
        f"sh -c '{_AT_SERVER.format(version=version)}' sh "
        f"/usr/lib/postgresql/{version}/bin/{program}"
    )


def psql(version: int, *more: str, options: str = "") -> str:
    """The command line that runs SQL from standard input in cluster `version`/main as superuser."""
    words = ("psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1", *more)
    # We read UTF-8. pg_dump, in contrast, keeps the encoding of the database.
    options = f"-c client_encoding=UTF8 {options}".strip()
    return at_server(version, " ".join((*words, "postgres")), options)


# psql takes a name like `a=b` for a connection string, so each name is made one. The name is quoted
# as in pg_dumpall: first for the connection string, then for psql.
CONNECT = r"""
select '\connect -reuse-previous=on "' || replace(format('dbname=''%s''',
    replace(replace(datname, '\', '\\'), '''', '\''')), '"', '""') || '"'
from pg_database
where datallowconn and datname not in ('template0', 'template1') and datconnlimit <> -2
and datname !~ '[\n\r]'
order by datname
"""
"""
The query for the `\\connect` lines that lead psql into each database, one after the other.

It leaves out PostgreSQL's own templates, not others: any owner may mark a database as template.
"""


def connect(name: str) -> str:
    """The line in CONNECT's output for the database `name`, a name from your settings."""
    return f"\\connect -reuse-previous=on \"dbname='{name}'\""


class RoleState(TypedDict):
    login: bool
    superuser: bool
    create_database: bool
    create_role: bool
    replication: bool
    bypass_rls: bool
    inherit: bool
    expires: bool
    connection_limit: int
    # (group, grantor, whether it has the default options); the grantor "" is PostgreSQL itself
    member_of: list[tuple[str, str, bool]]
    settings: list[str]  # "work_mem=64MB"


class DatabaseState(TypedDict):
    owner: str
    encoding: str
    locale: str  # of libc, or of ICU
    connection_limit: int
    connectable: bool
    template: bool
    acl: list[tuple[str, str]]  # (role or "public", "CONNECT"), granted by the owner
    handed: list[tuple[str, str, str]]  # (holder, taker, right), as in SchemaState
    settings: list[str]  # "work_mem=64MB"
    role_settings: dict[str, list[str]]  # settings of one role in this database


class SchemaState(TypedDict):
    owner: str
    of_extension: bool
    acl: list[tuple[str, str]]  # (role or "public", "USAGE"), without the owner's own
    tables: int  # includes views and foreign tables; all counts leave out those of extensions
    sequences: int
    table_acl: list[tuple[str, str, int]]  # (role, "SELECT", how many), without the owners' own
    sequence_acl: list[tuple[str, str, int]]
    # ("r", holder, taker, "SELECT"): `holder` granted the right to `taker`; with "" as `taker`,
    # `holder` has the grant option. The kind "n" is the schema itself. Rights granted by anyone but
    # the owner are in none of the lists above.
    handed: list[tuple[str, str, str, str]]
    # (role that creates the object, "r" or "S", grantee, "SELECT", whether with grant option)
    default_acl: list[tuple[str, str, str, str, bool]]
    strangers: list[tuple[str, str, int]]  # owners other than the database's: (role, "r", how many)


class ContentState(TypedDict):
    extensions: list[str]
    schemas: dict[str, SchemaState]
    default_acl: list[tuple[str, str, str, str]]  # for all schemas: (creator, "r", grantee, right)


_DOWN = "down"


def _online(version: int) -> str:
    # No cluster: it has no roles and databases yet. A cluster that is down has some, and cannot
    # list them.
    return (
        f"{_DATA.format(version=version)} || exit 0; export data; "
        f"{runs(version)} || {{ echo {_DOWN}; exit 0; }};"
    )


def _ask(version: int, query: str) -> StringCommand:
    return StringCommand(
        _online(version), "printf %s", QuoteString(" ".join(query.split())), f"| {psql(version)}"
    )


def _ask_each(version: int, query: str) -> StringCommand:
    """
    One line of answer from each database whose `connect` line is on standard input.

    So the command is as long for two hundred databases as for one, and no other database can break
    it.
    """
    return StringCommand(
        "wanted=$(cat);",
        _online(version),
        StringCommand("query=", QuoteString(" ".join(query.split()) + ";"), _separator=""),
        "; lines=$(printf %s", QuoteString(" ".join(CONNECT.split())),
        f"| {psql(version)}) || exit 1;",
        "printf '%s\\n' \"$lines\" | grep -aFxe \"$wanted\" | while IFS= read -r line; do",
        """printf '%s\\n' "$line" "$query"; done |""",
        psql(version),
    )  # fmt: skip


def _answer(output: list[str]) -> dict[str, Any] | None:
    if output == [_DOWN]:
        return None
    try:
        answer: dict[str, Any] = dict(json.loads("".join(output)))
    except (ValueError, TypeError) as error:
        raise FactProcessError(f"psql answered {output[:1]!r}") from error
    return answer


class Roles(FactBase[dict[str, RoleState] | None]):
    """The roles of cluster `version`/main; empty if there is no cluster, None if it is down."""

    default = dict

    @override
    def command(self, version: int) -> StringCommand:
        return _ask(
            version,
            # Before version 16 a membership has one grantor, and ADMIN is its only option.
            """
            select json_object_agg(rolname, json_build_object(
                'login', rolcanlogin, 'superuser', rolsuper, 'create_database', rolcreatedb,
                'create_role', rolcreaterole, 'replication', rolreplication,
                'bypass_rls', rolbypassrls, 'inherit', rolinherit,
                'expires', coalesce(rolvaliduntil < 'infinity', false),
                'connection_limit', rolconnlimit,
                'member_of', (
                    select coalesce(json_agg(json_build_array(
                        groups.rolname,
                        case when current_setting('server_version_num')::int < 160000
                             or grantor = 10 or pg_get_userbyid(grantor) = current_user then ''
                             else pg_get_userbyid(grantor) end,
                        not admin_option
                        and coalesce((to_jsonb(one)->>'inherit_option')::bool, true)
                        and coalesce((to_jsonb(one)->>'set_option')::bool, true))
                        order by groups.rolname collate "C"), '[]')
                    from pg_auth_members one join pg_roles groups on groups.oid = roleid
                    where member = roles.oid),
                'settings', coalesce(rolconfig, '{}')))
            from pg_roles roles where rolname !~ '^pg_'
            """,
        )

    @override
    def process(self, output: list[str]) -> dict[str, RoleState] | None:
        return _answer(output)


class Databases(FactBase[dict[str, DatabaseState] | None]):
    """The databases of cluster `version`/main; empty if there is no cluster, None if it is down."""

    default = dict

    @override
    def command(self, version: int) -> StringCommand:
        return _ask(
            version,
            # The name of the column with ICU's locale depends on the version.
            """
            select json_object_agg(datname, json_build_object(
                'owner', pg_get_userbyid(datdba),
                'encoding', pg_encoding_to_char(encoding),
                'locale', coalesce(to_jsonb(one)->>'datlocale', to_jsonb(one)->>'daticulocale',
                                   datcollate),
                'connection_limit', datconnlimit,
                'connectable', datallowconn,
                'template', datistemplate,
                'acl', (
                    select coalesce(json_agg(json_build_array(
                        case grantee when 0 then 'public' else pg_get_userbyid(grantee) end,
                        privilege_type)), '[]')
                    from aclexplode(coalesce(datacl, acldefault('d', datdba)))
                    where grantor = datdba),
                'handed', (
                    select coalesce(json_agg(json_build_array(
                        pg_get_userbyid(case when grantor = datdba then grantee else grantor end),
                        case when grantor = datdba then '' when grantee = 0 then 'public'
                             else pg_get_userbyid(grantee) end,
                        privilege_type)), '[]')
                    from aclexplode(datacl)
                    where grantor <> datdba or is_grantable and grantee <> datdba),
                'settings', coalesce((
                    select to_json(setconfig) from pg_db_role_setting
                    where setdatabase = one.oid and setrole = 0), '[]'),
                'role_settings', coalesce((
                    select json_object_agg(pg_get_userbyid(setrole), setconfig)
                    from pg_db_role_setting
                    where setdatabase = one.oid and setrole <> 0), '{}')))
            from pg_database one where datname not in ('template0', 'template1')
            """,
        )

    @override
    def process(self, output: list[str]) -> dict[str, DatabaseState] | None:
        return _answer(output)


class Contents(FactBase[dict[str, ContentState] | None]):
    """
    Extensions, schemas and rights in some databases of cluster `version`/main.

    Standard input has a line of `connect` for each of the databases. Empty if there is no cluster,
    None if it is down.
    """

    default = dict

    @override
    def command(self, version: int) -> StringCommand:
        return _ask_each(
            version,
            """
            with spaces as (
                select * from pg_namespace
                where nspname !~ '^pg_' and nspname <> 'information_schema'
            ), relations as (
                select relnamespace, case relkind when 'S' then 'S' else 'r' end::"char" as kind,
                       relacl, relowner
                from pg_class
                where relkind in ('r', 'p', 'v', 'm', 'f', 'S') and not exists (
                    select from pg_depend where classid = 'pg_class'::regclass
                    and objid = pg_class.oid and deptype = 'e')
            ), granted as (
                select relnamespace, kind, grantee, privilege_type, count(*) as times
                from relations, aclexplode(relacl)
                where grantor = relowner and grantee <> relowner and grantee <> 0
                group by relnamespace, kind, grantee, privilege_type
            ), handed as (
                select distinct space, kind,
                       case when grantor = owner then grantee else grantor end as holder,
                       case when grantor <> owner then grantee end as taker, privilege_type
                from (
                    select relnamespace as space, kind, relowner as owner, exploded.*
                    from relations, aclexplode(relacl) exploded
                    union all
                    select oid, 'n', nspowner, exploded.*
                    from spaces, aclexplode(nspacl) exploded
                ) one
                where grantor <> owner or is_grantable and grantee <> owner
            ), owned as (
                select relnamespace, kind, relowner, count(*) as times from relations
                where relowner <> (
                    select datdba from pg_database where datname = current_database())
                group by relnamespace, kind, relowner
            ), grants as (
                select relnamespace, kind, json_agg(json_build_array(
                    pg_get_userbyid(grantee), privilege_type, times)) as list
                from granted group by relnamespace, kind
            )
            select json_build_object(
                'database', current_database(),
                'extensions', array(select extname from pg_extension order by extname),
                'schemas', (select coalesce(json_object_agg(nspname, json_build_object(
                    'owner', pg_get_userbyid(nspowner),
                    'of_extension', exists (
                        select from pg_depend where classid = 'pg_namespace'::regclass
                        and objid = spaces.oid and deptype = 'e'),
                    'acl', (
                        select coalesce(json_agg(json_build_array(
                            case grantee when 0 then 'public' else pg_get_userbyid(grantee) end,
                            privilege_type)), '[]')
                        from aclexplode(nspacl) where grantor = nspowner and grantee <> nspowner),
                    'handed', (
                        select coalesce(json_agg(json_build_array(
                            kind, pg_get_userbyid(holder),
                            case taker when 0 then 'public'
                                 else coalesce(pg_get_userbyid(taker), '') end,
                            privilege_type)), '[]')
                        from handed where space = spaces.oid),
                    'tables', (select count(*) from relations
                               where relnamespace = spaces.oid and kind = 'r'),
                    'sequences', (select count(*) from relations
                                  where relnamespace = spaces.oid and kind = 'S'),
                    'table_acl', coalesce((select list from grants
                                  where relnamespace = spaces.oid and kind = 'r'), '[]'),
                    'sequence_acl', coalesce((select list from grants
                                     where relnamespace = spaces.oid and kind = 'S'), '[]'),
                    'default_acl', (
                        select coalesce(json_agg(json_build_array(
                            pg_get_userbyid(defaclrole), defaclobjtype, pg_get_userbyid(grantee),
                            privilege_type, is_grantable)), '[]')
                        from pg_default_acl, aclexplode(defaclacl)
                        where defaclnamespace = spaces.oid and grantee <> 0),
                    'strangers', (
                        select coalesce(json_agg(json_build_array(
                            pg_get_userbyid(relowner), kind, times)), '[]')
                        from owned where relnamespace = spaces.oid)
                )), '{}') from spaces),
                'default_acl', (
                    select coalesce(json_agg(json_build_array(
                        pg_get_userbyid(defaclrole), defaclobjtype, pg_get_userbyid(grantee),
                        privilege_type)), '[]')
                    from pg_default_acl, aclexplode(defaclacl)
                    where defaclnamespace = 0 and grantee not in (0, defaclrole)))
            """,
        )

    @override
    def process(self, output: list[str]) -> dict[str, ContentState] | None:
        if output == [_DOWN]:
            return None
        try:
            answers = [dict(json.loads(line)) for line in output if line]
            return {
                one["database"]: ContentState(
                    extensions=one["extensions"],
                    schemas=one["schemas"],
                    default_acl=one["default_acl"],
                )
                for one in answers
            }
        except (ValueError, TypeError, KeyError) as error:
            raise FactProcessError(f"psql answered {output[:1]!r}") from error


class ServerState(TypedDict):
    pending: list[str]  # settings that wait for a restart
    restart: list[str]  # settings that only a restart changes
    by_hand: list[str]  # settings made by ALTER SYSTEM, which overrides every file of ours


class Server(FactBase[ServerState]):
    """The state of the settings of cluster `version`/main; empty if it does not run."""

    @staticmethod
    @override
    def default() -> ServerState:
        return ServerState(pending=[], restart=[], by_hand=[])

    @override
    def command(self, version: int) -> StringCommand:
        return _ask(
            version,
            # The first query makes this session read the files, so that pending restarts are known
            # even if a run died before the reload. Names are lowered: their case does not matter.
            """
            do 'begin perform from pg_file_settings; end';
            select json_build_object(
                'pending', array(select lower(name) from pg_settings where pending_restart),
                'restart', array(select lower(name) from pg_settings where context = 'postmaster'),
                'by_hand', array(select distinct lower(name) from pg_file_settings
                                 where sourcefile like '%/postgresql.auto.conf'))
            """,
        )

    @override
    def process(self, output: list[str]) -> ServerState:
        answer = _answer(output)
        try:
            if answer is None:
                return self.default()
            return ServerState(
                pending=answer["pending"], restart=answer["restart"], by_hand=answer["by_hand"]
            )
        except KeyError as error:
            raise FactProcessError(f"psql answered {output[:1]!r}") from error


class WrongPasswords(FactBase[list[str]]):
    """
    The roles whose password in the cluster differs from their file, or that have no file.

    Standard input has the names of all roles, and the passwords that were passed for some, in the
    form that `told` writes: `host.get_fact(WrongPasswords, version=17, _stdin=…)`. The answer is
    all roles if there is no cluster yet, and none if it is down.
    """

    default = list

    @override
    def command(self, version: int) -> StringCommand:
        return StringCommand(
            f"{_DATA.format(version=version)}",
            f"|| {{ {ALL_WRONG}; exit 0; }};",
            f"! {runs(version)} ||", which_are_wrong(PASSWORDS_PROGRAM, str(version)),
        )  # fmt: skip

    @override
    def process(self, output: list[str]) -> list[str]:
        if any(len(line.split()) != 2 or not line.startswith("wrong ") for line in output):
            raise FactProcessError("terrafirma passwords gave an answer of unknown form")
        return [line.removeprefix("wrong ") for line in output]

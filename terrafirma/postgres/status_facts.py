"""The state of a PostgreSQL cluster: load, locks, sizes, statements, replication."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pyinfra.api import FactBase, FactProcessError
from typing_extensions import TypedDict, override

from terrafirma.postgres.facts import CONNECT, psql

SECONDS = 60
"""How long all queries to one cluster may take together, over all its databases."""


class DiskState(TypedDict):
    used_percent: int
    free: str  # as df prints it: "4.2G"


class ServerState(TypedDict):
    version: str
    started: str  # in the time zone of the server
    up: float  # s
    recovery: bool
    replayed: float | None  # s since the last transaction that a standby replayed
    size: str
    checksums: bool
    checksum_failures: int
    connections: int
    max_connections: int
    pending_restart: list[str]  # names of settings
    xid_age: int
    xid_database: str


class DatabaseStatus(TypedDict):
    name: str
    owner: str
    visited: bool  # it accepts connections, so its tables can be listed
    size: str
    connections: int
    blocks_hit: int
    blocks_read: int
    commits: int
    rollbacks: int
    deadlocks: int
    temp_files: int
    temp_size: str
    oldest: float | None  # s, of the oldest open transaction


class ConnectionGroup(TypedDict):
    role: str
    database: str
    client: str  # an address, or "socket"
    count: int
    active: int
    idle_in_transaction: int
    longest: float | None  # s, of the oldest open transaction
    longest_idle: float | None  # s since a session in a transaction last did something …
    longest_idle_pid: int | None  # … and which session that is
    groups: int  # how many groups there are in all; the list has the first 20


class BlockedSession(TypedDict):
    pid: int
    role: str
    database: str
    waited: float | None  # s
    lock: str
    blocker: int  # pid; 0: a prepared transaction
    blocker_role: str | None
    blocker_client: str | None
    blocker_state: str | None
    blocker_open: float | None  # s, of its transaction


class TableStatus(TypedDict):
    database: str
    table: str
    bytes: int  # with indexes and toast
    size: str
    rows: int  # estimate
    live: int
    dead: int
    bloat: float | None  # %, of the table itself; estimate; None: never analyzed
    vacuumed: float | None  # s ago
    analyzed: float | None  # s ago


class Statement(TypedDict):
    queryid: str
    database: str | None  # None: the database was dropped
    calls: int
    mean_ms: float
    total_s: float
    share: float  # %, of the time of all statements
    text: str  # one line without literals
    cut: bool  # the statement is longer than `text`


class Slot(TypedDict):
    name: str
    kind: str
    active: bool
    status: str | None  # "lost": its WAL is gone
    retained: str | None


class Replica(TypedDict):
    name: str
    client: str
    state: str
    sync: str
    behind: str | None
    lag: float | None  # s


class WalState(TypedDict):
    lsn: str | None
    size: str
    files: int
    archive_mode: str
    archived: int
    archived_ago: float | None  # s
    failed: int
    failed_ago: float | None  # s
    failed_wal: str | None
    timed: int
    requested: int
    slots: list[Slot]
    replicas: list[Replica]


class StatusState(TypedDict):
    cluster: str  # from pg_lsclusters: "online", "online,recovery", "down"; "": no such cluster
    disk: DiskState | None  # the disk that holds the data
    server: ServerState | None  # None: psql got no answer
    databases: list[DatabaseStatus]  # the biggest first
    connections: list[ConnectionGroup]
    blocked: list[BlockedSession]
    answered: list[str]  # databases whose tables are known
    tables: list[TableStatus]  # the biggest of all databases, the biggest first
    statements: list[Statement] | None  # None: no database has pg_stat_statements
    wal: WalState | None
    errors: list[str]  # error messages of psql


_STATUS = TypeAdapter(StatusState)
_TABLES = 10

# The superuser's session in a user's database must not call functions there that have the names of
# PostgreSQL's own, must not write or wait for a lock, and must not appear in pg_stat_statements.
_OPTIONS = " ".join(
    f"-c {option}"
    for option in (
        "search_path=pg_catalog",
        "default_transaction_read_only=on",
        "statement_timeout=20s",
        "lock_timeout=500ms",
        "pg_stat_statements.track=none",
        "client_min_messages=error",
        "jit=off",
    )
)

# Every query answers with one line of JSON; one that fails does not affect the others.
_SERVER = r"""
\set ON_ERROR_STOP off
\set VERBOSITY terse
\set sought yes
select jsonb_build_object('server', jsonb_build_object(
    'version', current_setting('server_version'),
    'started', to_char(pg_postmaster_start_time(), 'YYYY-MM-DD HH24:MI TZ'),
    'up', extract(epoch from now() - pg_postmaster_start_time()),
    'recovery', pg_is_in_recovery(),
    'replayed', extract(epoch from now() - pg_last_xact_replay_timestamp()),
    'size', (select pg_size_pretty(sum(pg_database_size(oid))) from pg_database),
    'checksums', current_setting('data_checksums') = 'on',
    'checksum_failures', (select coalesce(sum(checksum_failures), 0) from pg_stat_database),
    'connections', (select count(*) from pg_stat_activity
        where backend_type = 'client backend' and pid <> pg_backend_pid()),
    'max_connections', current_setting('max_connections')::int,
    'pending_restart', (select coalesce(jsonb_agg(name order by name), '[]') from pg_settings
        where pending_restart),
    'xid_age', age(oldest.datfrozenxid),
    'xid_database', oldest.datname))
from (select * from pg_database order by age(datfrozenxid) desc limit 1) oldest;

select jsonb_build_object('databases', jsonb_agg(to_jsonb(one) order by one.bytes desc)) from (
    select d.datname as name, pg_get_userbyid(d.datdba) as owner, d.bytes,
        d.datallowconn and d.datconnlimit <> -2 as visited,
        pg_size_pretty(d.bytes) as size, coalesce(a.connections, 0) as connections,
        s.blks_hit as blocks_hit, s.blks_read as blocks_read, s.xact_commit as commits,
        s.xact_rollback as rollbacks, s.deadlocks, s.temp_files,
        pg_size_pretty(s.temp_bytes) as temp_size, a.oldest
    from (
        select *, pg_database_size(oid) as bytes from pg_database
        where datname not in ('template0', 'template1')
    ) d
    join pg_stat_database s on s.datid = d.oid
    left join (
        select datid, count(*) as connections, extract(epoch from now() - min(xact_start)) as oldest
        from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()
        group by datid
    ) a on a.datid = d.oid
) one;

select jsonb_build_object('connections', coalesce(jsonb_agg(to_jsonb(one)), '[]')) from (
    select coalesce(usename, '?') as role, coalesce(datname, '?') as database,
        coalesce(host(client_addr), 'socket') as client, count(*) as count,
        count(*) filter (where state = 'active') as active,
        count(*) filter (where waits) as idle_in_transaction,
        extract(epoch from now() - min(xact_start)) as longest,
        extract(epoch from now() - min(state_change) filter (where waits)) as longest_idle,
        (array_agg(pid order by state_change) filter (where waits))[1] as longest_idle_pid,
        count(*) over () as groups
    from (select *, state like 'idle in transaction%' as waits from pg_stat_activity) session
    where backend_type = 'client backend' and pid <> pg_backend_pid()
    group by 1, 2, 3
    order by 8 desc nulls last, 7 desc nulls last, 4 desc, 1, 2, 3
    limit 20
) one;

select jsonb_build_object('blocked', coalesce(jsonb_agg(to_jsonb(one)), '[]')) from (
    select a.pid, coalesce(a.usename, '?') as role, coalesce(a.datname, '?') as database,
        extract(epoch from now() - l.waitstart) as waited, l.locktype || ' ' || l.mode as lock,
        by.pid as blocker, b.usename as blocker_role,
        case when b.backend_type = 'client backend' then coalesce(host(b.client_addr), 'socket')
            else b.backend_type end as blocker_client,
        b.state as blocker_state, extract(epoch from now() - b.xact_start) as blocker_open
    from pg_locks l
    join pg_stat_activity a on a.pid = l.pid
    cross join lateral (select distinct unnest(pg_blocking_pids(l.pid)) as pid) by
    left join pg_stat_activity b on b.pid = by.pid
    where not l.granted
    order by 4 desc nulls last, 1
    limit 20
) one;

select jsonb_build_object('wal', jsonb_build_object(
    'lsn', here.lsn,
    'size', (select pg_size_pretty(coalesce(sum(size), 0)) from pg_ls_waldir()),
    'files', (select count(*) from pg_ls_waldir()),
    'archive_mode', current_setting('archive_mode'),
    'archived', archiver.archived_count,
    'archived_ago', extract(epoch from now() - archiver.last_archived_time),
    'failed', archiver.failed_count,
    'failed_ago', extract(epoch from now() - archiver.last_failed_time),
    'failed_wal', archiver.last_failed_wal,
    'timed', checkpoints.timed,
    'requested', checkpoints.requested,
    'slots', (select coalesce(jsonb_agg(jsonb_build_object(
        'name', slot_name, 'kind', slot_type, 'active', active, 'status', wal_status,
        'retained', pg_size_pretty(pg_wal_lsn_diff(here.lsn, restart_lsn))
        ) order by slot_name), '[]') from pg_replication_slots),
    'replicas', (select coalesce(jsonb_agg(jsonb_build_object(
        'name', coalesce(application_name, ''), 'client', coalesce(host(client_addr), 'socket'),
        'state', coalesce(state, '?'), 'sync', coalesce(sync_state, '?'),
        'behind', pg_size_pretty(pg_wal_lsn_diff(here.lsn, replay_lsn)),
        'lag', extract(epoch from replay_lag)
        ) order by application_name, client_addr), '[]') from pg_stat_replication)))
from (select case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
        else pg_current_wal_lsn() end as lsn) here,
    pg_stat_archiver archiver, (@CHECKPOINTS@) checkpoints;
"""

_CHECKPOINTS = {
    15: "select checkpoints_timed as timed, checkpoints_req as requested from pg_stat_bgwriter",
    17: "select num_timed as timed, num_requested as requested from pg_stat_checkpointer",
}

# Asking for the size of a table takes a lock on it. If a session holds an ACCESS EXCLUSIVE lock, or
# waits for one, the size comes from the catalog, as of the last VACUUM or ANALYZE, without waiting.
#
# Bloat: the share of a table's pages that its rows do not need, as of the last VACUUM or ANALYZE.
# The estimate takes the average row width of ANALYZE, plus the header. It reads no page of the
# table, and ignores the padding between columns.
#
# pg_stat_statements keeps the statements of all databases, so one database that has it is enough.
# It stores statements other than DML as written, including the passwords in ALTER ROLE, and
# possibly DML, too, when its table was full. So literals never leave the host: the text ends before
# the first quote or comment, and numbers are masked.
_EACH = r"""
select jsonb_build_object('database', current_database(),
    'tables', coalesce(jsonb_agg(to_jsonb(one)), '[]'))
from (
    with locked as materialized (
        select l.relation from pg_locks l join pg_database d on d.oid = l.database
        where d.datname = current_database() and l.mode = 'AccessExclusiveLock'
    )
    select current_database() as database, biggest.name as table, bytes,
        pg_size_pretty(bytes) as size, n_live_tup as live, n_dead_tup as dead,
        case when n_live_tup > 0 then n_live_tup else greatest(reltuples, 0)::bigint end as rows,
        (
            select 100 * greatest(0, 1 - reltuples * (
                4 + 8 * ceil((23 + case when max(stanullfrac) > 0 then count(*) / 8 + 1 else 0 end
                    ) / 8.0) + 8 * ceil(sum((1 - stanullfrac) * stawidth) / 8)
                ) / ((current_setting('block_size')::int - 24) * fill / 100.0) / relpages)
            from pg_attribute left join pg_statistic
                on starelid = attrelid and staattnum = attnum and not stainherit
            where attrelid = biggest.oid and attnum > 0 and not attisdropped
                and relpages > 0 and reltuples >= 0
            having count(*) = count(stawidth) and count(*) > 0
        ) as bloat,
        extract(epoch from now() - greatest(last_vacuum, last_autovacuum)) as vacuumed,
        extract(epoch from now() - greatest(last_analyze, last_autoanalyze)) as analyzed
    from (
        select c.oid, c.reltuples, c.relpages,
            coalesce((select option_value::int from pg_options_to_table(c.reloptions)
                where option_name = 'fillfactor'), 100) as fill,
            case when n.nspname = 'public' then c.relname else n.nspname || '.' || c.relname end
                as name,
            case when not exists (select from locked) or not exists (
                select from locked where relation in (c.oid, c.reltoastrelid) or relation in (
                    select indexrelid from pg_index where indrelid in (c.oid, c.reltoastrelid)))
            then pg_total_relation_size(c.oid)
            else (
                select sum(relpages)::bigint * current_setting('block_size')::int from pg_class
                where oid in (c.oid, c.reltoastrelid) or oid in (
                    select indexrelid from pg_index where indrelid in (c.oid, c.reltoastrelid)))
            end as bytes
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'm') and (n.nspname not in ('pg_catalog', 'information_schema')
            or c.relname = 'pg_largeobject' and c.relpages > 0)
        order by bytes desc nulls last limit @TABLES@
    ) biggest
    join pg_stat_all_tables s on s.relid = biggest.oid
    where bytes is not null
    order by bytes desc
) one;
\set here no
select :'sought' = 'yes' and count(*) > 0
    and current_setting('shared_preload_libraries') ~ 'pg_stat_statements' as here,
    coalesce(max(nspname), '') as schema
from pg_extension join pg_namespace n on n.oid = extnamespace
where extname = 'pg_stat_statements' \gset
\if :here
\set sought no
select jsonb_build_object('statements', coalesce(jsonb_agg(to_jsonb(one)), '[]')) from (
    select queryid, database, calls, mean_ms, total_s, share,
        left(regexp_replace(regexp_replace(
            shown, '(?<![\w$"])[0-9][\w.]*', '?', 'g'), '\s+', ' ', 'g'), 200) as text,
        length(shown) < length(query) or length(shown) > 200 as cut
    from (
        select *, substring(query from '^(?:[^''$/-]|\$[0-9]|/(?!\*)|-(?!-))*') as shown
        from (
            select s.queryid::text, d.datname as database, s.calls, s.mean_exec_time as mean_ms,
                s.total_exec_time / 1000 as total_s,
                100 * s.total_exec_time / nullif(sum(s.total_exec_time) over (), 0) as share,
                regexp_replace(query,
                    '^(?:[\s(]|--[^\n]*\n|/\*(?:[^*]|\*+[^*/])*\*+/)+', '') as query
            from :"schema".pg_stat_statements s left join pg_database d on d.oid = s.dbid
        ) everything
        where query ~* '^(select|insert|update|delete|merge|with|values|table)\M' and total_s > 0
        order by total_s desc limit 10
    ) slow
    order by total_s desc
) one;
\endif
"""

_SHELL = r"""
cd /
export LC_ALL=C PGCLIENTENCODING=UTF8 PGCONNECT_TIMEOUT=5
set -- $(pg_lsclusters -h @VERSION@ main 2> /dev/null)
echo "cluster ${4:-}"
case ${4:-} in online*) ;; *) exit 0 ;; esac
df -Ph "$6" | awk 'NR == 2 { print "disk " $5 + 0 " " $4 }'
server() { cat <<'SQL'
@SERVER@
SQL
}
each() { cat <<'SQL'
@EACH@
SQL
}
connects() { timeout 10 @PSQL@ <<'SQL'
@CONNECT@
SQL
}
{
    server
    connects 2> /dev/null | while IFS= read -r line; do printf '%s\n' "$line"; each; done
} | timeout @SECONDS@ @PSQL@ 2>&1
# Ignore psql's exit code: `process` checks the output.
exit 0
"""


class PostgresStatus(FactBase[StatusState]):
    """
    The state of cluster `version`/main and all its databases; changes nothing.

    The command has the same length for any number of databases, and ends within 75 s. A database
    that does not answer is missing in `answered`. If the cluster does not exist or is stopped,
    `cluster` says so and the rest is empty. Statement texts contain no literals.
    """

    @staticmethod
    @override
    def default() -> StatusState:
        return StatusState(
            cluster="",
            disk=None,
            server=None,
            databases=[],
            connections=[],
            blocked=[],
            answered=[],
            tables=[],
            statements=None,
            wal=None,
            errors=[],
        )

    @override
    def command(self, version: int) -> str:
        command = _SHELL
        for key, value in {
            "SERVER": _SERVER.strip(),
            "CHECKPOINTS": _CHECKPOINTS[17 if version >= 17 else 15],
            "CONNECT": CONNECT.strip(),
            "EACH": _EACH.strip(),
            "TABLES": str(_TABLES),
            "VERSION": str(version),
            "SECONDS": str(SECONDS),
            "PSQL": psql(version, options=_OPTIONS),
        }.items():
            command = command.replace(f"@{key}@", value)
        return command

    @override
    def process(self, output: list[str]) -> StatusState:
        state: dict[str, Any] = dict(self.default())
        try:
            word, _, state["cluster"] = output[0].partition(" ")
            if word != "cluster":
                raise ValueError(f"not a state of a cluster: {output[0]!r}")
            for line in output[1:]:
                if line.startswith("{"):
                    answer = json.loads(line)
                    if "database" in answer:
                        state["answered"].append(answer["database"])
                        state["tables"] += answer["tables"]
                    else:
                        state |= answer
                elif line.startswith("disk "):
                    _, used, free = line.split()
                    state["disk"] = {"used_percent": int(used), "free": free}
                elif line.strip():
                    state["errors"].append(line.strip())
            state["tables"] = sorted(state["tables"], key=lambda one: -one["bytes"])[:_TABLES]
            status = _STATUS.validate_python(state)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = error.errors()[0]["loc"] if isinstance(error, ValidationError) else error
            raise FactProcessError(f"psql answered what makes no sense: {what}") from error
        if status["cluster"].startswith("online") and not (status["server"] or status["errors"]):
            raise FactProcessError(f"psql answered nothing: {output!r}")
        return status

"""
The status report of a cluster for people: first the alarms, then tables.

Pure functions of the answer of the fact PostgresStatus.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from terrafirma.postgres.status_facts import ServerState, StatusState, WalState

# Thresholds past which a number is an alarm.
IDLE_IN_TRANSACTION = 5 * 60  # s
BLOCKED = 30  # s
CONNECTIONS = 80  # % of max_connections
HIT_RATIO = 0.9
HIT_BLOCKS = 10_000  # with fewer reads the cache is still cold, and the ratio means nothing
DEAD = 20  # % of the rows
DEAD_ROWS = 1_000  # autovacuum skips small tables
BLOAT = 60  # % of the pages; free space is reused, and the estimate may be a few % wrong
BLOAT_BYTES = 100 * 1024**2  # with indexes; bloat in smaller tables does not matter
XID_AGE = 1_000_000_000  # of 2^31, at which the server refuses to write
DISK = 90  # % used
LAG = 60  # s

# Width of the text of a statement, in columns of the terminal.
_TEXT = 60


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: "12 s", "7 min", "5 h", "3 d"; "-" for None."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        # "90 min" says more than "1 h".
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def one_line(value: object) -> str:
    """`value` for a terminal, without control characters: anyone may have chosen a name."""
    return "".join(one if one.isprintable() else "?" for one in str(value))


class Table:
    """A title and rows in aligned columns; a row with an alarm begins with "!"."""

    def __init__(self, title: str, *columns: str) -> None:
        """Columns by title; a leading ">" marks a column of numbers, aligned right."""
        self.title = title
        self.columns = columns
        self.rows: list[list[str]] = []
        self.alarms: list[str] = []
        self.notes: list[str] = []

    def add(self, *cells: object, alarm: str = "", when: bool = False) -> None:
        """Add a row; `when` says whether it is an alarm, and `alarm` why, in one line."""
        self.rows.append(["!" if when else "", *map(one_line, cells)])
        if when:
            self.alarms.append(one_line(alarm))

    def __str__(self) -> str:
        """The table with its notes, without trailing spaces."""
        titles = ["", *(column.removeprefix(">") for column in self.columns)]
        lines = [titles, *self.rows] if any(titles) else self.rows
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)] if self.rows else []
        widths[:1] = [1]
        text = [self.title]
        for cells in lines if self.rows else []:
            aligned = [
                cell.rjust(width) if column.startswith(">") else cell.ljust(width)
                for cell, width, column in zip(cells, widths, ("", *self.columns), strict=True)
            ]
            text.append(("  " + aligned[0] + " " + "  ".join(aligned[1:])).rstrip())
        return "\n".join([*text, *(f"    {note}" for note in self.notes)])


def report(name: str, version: int, status: StatusState) -> str:
    r"""
    The report for the host `name`: alarms first, then all tables; no newline at the end.

    `status["server"]` must not be None: the cluster has answered.
    """
    server = status["server"]
    assert server is not None
    tables = [
        _server(server, status),
        _blocked(status),
        _connections(status),
        _databases(status),
        _statements(status),
        _tables(status),
        *_wal(status["wal"]),
    ]
    unanswered = {one["name"] for one in status["databases"] if one["visited"]} - set(
        status["answered"]
    )
    alarms = [
        *chain.from_iterable(table.alarms for table in tables),
        *(one_line(f"database {one}: its tables are not known") for one in sorted(unanswered)),
        *map(one_line, status["errors"]),
    ]
    head = [f"{name}: PostgreSQL {server['version']}, cluster {version}/main"]
    head += [f"  ! {alarm}" for alarm in alarms] or ["  nothing is alarming"]
    return "\n\n".join(["\n".join(head), *map(str, tables)])


def refusal(version: int, status: StatusState) -> str | None:
    """One line on why there is no report; None if there is one."""
    unit = f"postgresql@{version}-main"
    if not status["cluster"]:
        return f"postgres: there is no cluster {version}/main; tasks/postgres.py makes it"
    if not status["cluster"].startswith("online"):
        return (
            f"postgres: the cluster {version}/main is {one_line(status['cluster'])}; see "
            f"`systemctl status {unit}` and `journalctl -u {unit}` there"
        )
    if status["server"] is None:
        said = one_line(status["errors"][0]) if status["errors"] else "no answer"
        return f"postgres: the cluster {version}/main runs, but does not answer: {said}"
    return None


def _server(server: ServerState, status: StatusState) -> Table:
    table = Table("Server", "", "")
    table.add("up since", f"{server['started']} ({duration(server['up'])})")
    replayed = f"yes, replayed the last transaction {_ago(server['replayed'])}"
    table.add("in recovery", replayed if server["recovery"] else "no")
    disk = status["disk"]
    table.add(
        "data",
        f"{server['size']}; disk {disk['used_percent']} % full, {disk['free']} free"
        if disk
        else server["size"],
        alarm=f"the disk with the data is {disk['used_percent'] if disk else 0} % full",
        when=disk is not None and disk["used_percent"] > DISK,
    )
    failures = server["checksum_failures"]
    table.add(
        "checksums",
        f"on, {failures} failed" if server["checksums"] else "off",
        alarm=f"{failures} pages failed their checksum: the disk or its data are damaged",
        when=failures > 0,
    )
    used, most = server["connections"], server["max_connections"]
    table.add(
        "connections",
        f"{used} of {most}",
        alarm=f"{used} of {most} connections are used",
        when=used * 100 > CONNECTIONS * most,
    )
    pending = ", ".join(server["pending_restart"])
    table.add(
        "wait for a restart",
        pending or "no settings",
        alarm=f"settings wait for a restart: {pending}",
        when=bool(pending),
    )
    oldest, age = server["xid_database"], server["xid_age"]
    percent = f"{100 * age / 2**31:.0f} %"
    table.add(
        "transaction ids",
        f"{percent} are used up; the oldest, in {oldest}, is {age:,} old",
        alarm=f"database {oldest}: {percent} of the transaction ids are used up; vacuum it",
        when=age > XID_AGE,
    )
    return table


def _blocked(status: StatusState) -> Table:
    table = Table(
        "Blocked sessions", "pid", "role", "database", ">waits", "for", "held by pid", "role",
        "client", "state", ">open",
    )  # fmt: skip
    for one in status["blocked"]:
        who = f"{one['role']} in {one['database']} (pid {one['pid']})"
        blocker = f"pid {one['blocker']}" if one["blocker"] else "a prepared transaction"
        table.add(
            one["pid"], one["role"], one["database"], duration(one["waited"]), one["lock"],
            one["blocker"] or "prepared", one["blocker_role"] or "-", one["blocker_client"] or "-",
            one["blocker_state"] or "-", duration(one["blocker_open"]),
            alarm=f"{who} has waited {duration(one['waited'])} for {blocker}",
            when=(one["waited"] or 0) > BLOCKED,
        )  # fmt: skip
    if not table.rows:
        table.notes.append("none")
    return table


def _connections(status: StatusState) -> Table:
    table = Table(
        "Connections", "role", "database", "client", ">all", ">active", ">idle in transaction",
        ">longest transaction", ">longest idle in it",
    )  # fmt: skip
    for one in status["connections"]:
        idle, pid = one["longest_idle"], one["longest_idle_pid"]
        who = f"{one['role']} in {one['database']} from {one['client']}"
        table.add(
            one["role"], one["database"], one["client"], one["count"], one["active"],
            one["idle_in_transaction"], duration(one["longest"]), duration(idle),
            alarm=f"{who}: idle in a transaction for {duration(idle)}, with its locks (pid {pid})",
            when=(idle or 0) > IDLE_IN_TRANSACTION,
        )  # fmt: skip
    if not table.rows:
        table.notes.append("none")
    elif (more := status["connections"][0]["groups"] - len(table.rows)) > 0:
        table.notes.append(f"and {more} more")
    return table


def _databases(status: StatusState) -> Table:
    table = Table(
        "Databases", "name", "owner", ">size", ">connections", ">cache hits", ">commits",
        ">rollbacks", ">deadlocks", ">temp files", ">oldest transaction",
    )  # fmt: skip
    for one in status["databases"]:
        blocks = one["blocks_hit"] + one["blocks_read"]
        ratio = one["blocks_hit"] / blocks if blocks else 1
        table.add(
            one["name"], one["owner"], one["size"], one["connections"],
            f"{100 * ratio:.1f} %" if blocks else "-", f"{one['commits']:,}",
            f"{one['rollbacks']:,}", one["deadlocks"],
            f"{one['temp_files']:,}, {one['temp_size']}" if one["temp_files"] else "0",
            duration(one["oldest"]),
            alarm=f"database {one['name']}: only {100 * ratio:.1f} % of its reads hit the cache",
            when=ratio < HIT_RATIO and blocks >= HIT_BLOCKS,
        )  # fmt: skip
    return table


def _statements(status: StatusState) -> Table:
    table = Table(
        "Statements that took the most time", "queryid", "database", ">calls", ">mean ms",
        ">total s", ">share", "statement",
    )  # fmt: skip
    if status["statements"] is None:
        table.notes.append(
            "not known: needs the extension pg_stat_statements in one of postgres_databases"
        )
    elif not status["statements"]:
        table.notes.append("none yet")
    for one in status["statements"] or []:
        text = one["text"].strip()
        cut = one["cut"] or len(text) > _TEXT
        table.add(
            one["queryid"], one["database"] or "dropped", f"{one['calls']:,}",
            f"{one['mean_ms']:.1f}", f"{one['total_s']:.1f}", f"{one['share']:.1f} %",
            text[:_TEXT].strip() + ("…" if cut else ""),
        )  # fmt: skip
    return table


def _tables(status: StatusState) -> Table:
    table = Table(
        "Biggest tables", "database", "table", ">size", ">rows", ">dead", ">bloat", ">vacuumed",
        ">analyzed",
    )  # fmt: skip
    for one in status["tables"]:
        rows = one["live"] + one["dead"]
        share = 100 * one["dead"] / rows if rows else 0
        bloat, name = one["bloat"], f"table {one['table']} of {one['database']}"
        rotten = share > DEAD and one["dead"] >= DEAD_ROWS
        bloated = (bloat or 0) > BLOAT and one["bytes"] >= BLOAT_BYTES
        dead = f"{share:.0f} % of its rows are dead, vacuumed {_ago(one['vacuumed'])}"
        empty = f"about {bloat or 0:.0f} % of its pages are empty space"
        table.add(
            one["database"], one["table"], one["size"], f"{one['rows']:,}", f"{share:.0f} %",
            "-" if bloat is None else f"{bloat:.0f} %",
            _ago(one["vacuumed"]), _ago(one["analyzed"]),
            alarm=f"{name}: {dead if rotten else empty}",
            when=rotten or bloated,
        )  # fmt: skip
    if not table.rows:
        table.notes.append("none")
    return table


def _wal(wal: WalState | None) -> Iterator[Table]:
    table = Table("WAL", "", "")
    yield table
    if wal is None:
        table.notes.append("no answer")
        return
    table.add("position", wal["lsn"] or "-")
    table.add("on the disk", f"{wal['size']}, {wal['files']:,} files")
    ago, failed = wal["archived_ago"], wal["failed_ago"]
    archiver = f"{wal['archived']:,} archived, the last {_ago(ago)}; {wal['failed']:,} failed"
    if failed is not None:
        archiver += f", the last {_ago(failed)} ({wal['failed_wal']})"
    on = wal["archive_mode"] != "off"
    table.add(
        "archiver",
        archiver if on else "off",
        alarm=f"the archiver fails: last archived {_ago(ago)}; WAL piles up",
        when=on and failed is not None and (ago is None or failed < ago),
    )
    table.add("checkpoints", f"{wal['timed']:,} on time, {wal['requested']:,} requested")
    slots = Table("Replication slots", "name", "kind", "active", "status", ">keeps WAL")
    for slot in wal["slots"]:
        lost = slot["status"] == "lost"
        idle = f"is inactive and keeps {slot['retained'] or 'no'} WAL"
        slots.add(
            slot["name"], slot["kind"], "yes" if slot["active"] else "no", slot["status"] or "-",
            slot["retained"] or "-",
            alarm=f"slot {slot['name']} {'lost its WAL: rebuild its replica' if lost else idle}",
            when=lost or not slot["active"],
        )  # fmt: skip
    replicas = Table("Replicas", "name", "client", "state", "sync", ">behind", ">lag")
    for one in wal["replicas"]:
        replicas.add(
            one["name"], one["client"], one["state"], one["sync"], one["behind"] or "-",
            duration(one["lag"]),
            alarm=f"replica {one['name']} lags {duration(one['lag'])}",
            when=(one["lag"] or 0) > LAG,
        )  # fmt: skip
    yield from (table for table in (slots, replicas) if table.rows)


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{duration(seconds)} ago"

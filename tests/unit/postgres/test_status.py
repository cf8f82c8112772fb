"""The status of a cluster: the fact, the tables, the alarms, and the command that prints them."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api import FactProcessError

from terrafirma.postgres.status import Table, duration, refusal, report
from terrafirma.postgres.status_facts import PostgresStatus, StatusState
from tests.conftest import Pyinfra
from tests.unit.fake_host import DEBIAN_13, fake, machine

# The answers of a real host: PostgreSQL 17 with one application.
SERVER: dict[str, Any] = {
    "up": 493.626272,
    "size": "29 MB",
    "started": "2026-11-24 02:34 UTC",
    "version": "17.12 (Debian 17.12-0+deb13u1)",
    "xid_age": 25,
    "recovery": False,
    "replayed": None,
    "checksums": True,
    "connections": 3,
    "xid_database": "template1",
    "max_connections": 100,
    "pending_restart": [],
    "checksum_failures": 0,
}
DATABASE: dict[str, Any] = {
    "name": "api",
    "size": "7425 kB",
    "bytes": 7602703,
    "owner": "api",
    "oldest": None,
    "commits": 1033,
    "visited": True,
    "deadlocks": 0,
    "rollbacks": 7,
    "temp_size": "0 bytes",
    "blocks_hit": 99_500,
    "temp_files": 0,
    "blocks_read": 500,
    "connections": 3,
}
CONNECTION: dict[str, Any] = {
    "role": "api",
    "count": 3,
    "active": 1,
    "client": "10.210.1.3",
    "groups": 1,
    "longest": 0.2,
    "database": "api",
    "longest_idle": None,
    "longest_idle_pid": None,
    "idle_in_transaction": 0,
}
BLOCKED: dict[str, Any] = {
    "pid": 812,
    "role": "api",
    "lock": "transactionid ShareLock",
    "waited": 3.1,
    "blocker": 811,
    "database": "api",
    "blocker_open": 9.4,
    "blocker_role": "api",
    "blocker_state": "idle in transaction",
    "blocker_client": "10.210.1.4",
}
TABLE: dict[str, Any] = {
    "database": "api",
    "table": "visits",
    "bytes": 1_048_576,
    "size": "1024 kB",
    "rows": 20_000,
    "live": 20_000,
    "dead": 400,
    "bloat": 12.4,
    "vacuumed": 7200.0,
    "analyzed": None,
}
STATEMENT: dict[str, Any] = {
    "cut": False,
    "text": "insert into visits (replica) values ($1) returning id",
    "calls": 18_012,
    "share": 81.25,
    "mean_ms": 0.417,
    "queryid": "-7711864590253096608",
    "total_s": 7.51,
    "database": "api",
}
WAL: dict[str, Any] = {
    "lsn": "0/193D498",
    "size": "16 MB",
    "files": 1,
    "slots": [],
    "timed": 12,
    "failed": 0,
    "archived": 0,
    "replicas": [],
    "requested": 1,
    "failed_ago": None,
    "failed_wal": None,
    "archive_mode": "off",
    "archived_ago": None,
}
SLOT = {
    "name": "standby",
    "kind": "physical",
    "active": True,
    "status": "reserved",
    "retained": "16 MB",
}
REPLICA = {
    "name": "standby",
    "client": "192.0.2.7",
    "state": "streaming",
    "sync": "async",
    "behind": "0 bytes",
    "lag": 0.01,
}


def output(
    disk: str = "disk 30 72G", statements: list[dict[str, Any]] | None = None, **but: Any
) -> list[str]:
    """The output of the fact's command, with the given differences."""
    answers = {
        "server": SERVER,
        "databases": [DATABASE],
        "connections": [CONNECTION],
        "blocked": [],
        "wal": WAL,
    } | {key: value for key, value in but.items() if key != "tables"}
    lines = [json.dumps({key: value}) for key, value in answers.items()]
    tables = json.dumps({"database": "api", "tables": but.get("tables", [TABLE])})
    more = [] if statements is None else [json.dumps({"statements": statements})]
    return ["cluster online", disk, *lines, tables, *more]


def status(**but: Any) -> StatusState:
    return PostgresStatus().process(output(**but))


def printed(**but: Any) -> str:
    return report("web1", 17, status(**but))


def alarms(text: str) -> list[str]:
    return [line[4:] for line in text.splitlines() if line.startswith("  ! ")]


def row(text: str, *words: str) -> str:
    """The line of a table that begins with these words; exactly one must."""
    (line,) = [line for line in text.splitlines() if line[4:].split()[: len(words)] == [*words]]
    return line


# --- the fact -------------------------------------------------------------------------------------


def test_a_cluster_that_runs() -> None:
    known = status(statements=[STATEMENT])
    assert known["cluster"] == "online"
    assert known["disk"] == {"used_percent": 30, "free": "72G"}
    assert known["server"] is not None
    assert known["server"]["max_connections"] == 100
    assert [one["name"] for one in known["databases"]] == ["api"]
    assert known["answered"] == ["api"]
    assert known["tables"][0]["size"] == "1024 kB"
    assert known["statements"] == [STATEMENT]
    assert known["errors"] == []


def test_the_biggest_tables_are_those_of_all_databases() -> None:
    lines = [
        json.dumps(
            {
                "database": name,
                "tables": [TABLE | {"database": name, "bytes": size} for size in sizes],
            }
        )
        for name, sizes in {"one": range(0, 20, 2), "two": range(1, 21, 2), "none": []}.items()
    ]
    known = PostgresStatus().process([*output(tables=[]), *lines])
    assert [one["bytes"] for one in known["tables"]] == list(range(19, 9, -1))
    assert known["answered"] == ["api", "one", "two", "none"]


@pytest.mark.parametrize("word", ["", "down", "down,binaries_missing"])
def test_no_cluster_and_one_that_is_down_are_answers(word: str) -> None:
    known = PostgresStatus().process([f"cluster {word}"])
    assert known == PostgresStatus().default() | {"cluster": word}


def test_errors_of_psql_are_kept() -> None:
    refused = 'psql: error: connection to server on socket "/x" failed: FATAL:  too many clients'
    known = PostgresStatus().process(["cluster online", "disk 30 72G", refused])
    assert known["server"] is None
    assert known["errors"] == [refused]


@pytest.mark.parametrize(
    "lines",
    [
        ["pg_lsclusters: not found"],
        ["cluster online"],
        ["cluster online", "disk full"],
        ["cluster online", "disk many 72G"],
        ["cluster online", "{"],
        ["cluster online", '{"server": {}}'],
        ["cluster online", '{"server": 7}'],
        ["cluster online", '{"database": "api"}'],
        ["cluster online", '{"database": "api", "tables": [{}]}'],
        output(wal=WAL | {"timed": "often"}),
        output(databases=None),
    ],
)
def test_an_answer_that_makes_no_sense_fails_only_this_host(lines: list[str]) -> None:
    with pytest.raises(FactProcessError) as error:
        PostgresStatus().process(lines)
    assert "\n" not in str(error.value)


def test_each_default_is_a_new_object() -> None:
    PostgresStatus().default()["errors"].append("x")
    assert PostgresStatus().default()["errors"] == []


@pytest.mark.parametrize(
    ("version", "view"),
    [(15, "pg_stat_bgwriter"), (16, "pg_stat_bgwriter"), (17, "pg_stat_checkpointer"),
     (18, "pg_stat_checkpointer")],
)  # fmt: skip
def test_checkpoints_come_from_the_view_of_the_version(version: int, view: str) -> None:
    command = PostgresStatus().command(version=version)
    assert f"from {view}" in command
    assert f"/usr/lib/postgresql/{version}/bin/psql " in command
    # The restrictions for users' databases come last, so they override the others.
    assert "default_transaction_read_only=off" in command
    assert command.rindex("default_transaction_read_only=on") > command.rindex("_read_only=off")
    assert "@" not in command.replace("'@'", "").replace('"$@"', "")


PSQL = r"""#!/bin/sh
script=$(cat)
case $script in
*"from pg_database
where datallowconn"*) for n in $(seq "$DATABASES"); do printf '%s\n' "\connect db$n"; done ;;
*) printf '%s\n' "$script" | grep -c '^.connect ' ;;
esac
"""


def run_here(tmp_path: Path, lsclusters: str, databases: int = 0) -> list[str]:
    """The output of the command, with fake programs in place of PostgreSQL's."""
    for name, script in {
        "pg_lsclusters": f"#!/bin/sh\necho '{lsclusters}'\n",
        "runuser": PSQL,
    }.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    result = subprocess.run(
        ["sh", "-c", PostgresStatus().command(version=17)],
        env=os.environ
        | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DATABASES": str(databases)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert result.stderr == ""
    return result.stdout.splitlines()


@pytest.mark.parametrize("databases", [0, 1, 200])
def test_every_database_is_visited_in_one_session(tmp_path: Path, databases: int) -> None:
    line = "17 main 5432 online postgres / /var/log/x.log"
    cluster, disk, visited = run_here(tmp_path, line, databases)
    assert cluster == "cluster online"
    assert disk.startswith("disk ")
    assert visited == str(databases)


def test_a_cluster_that_is_down_is_not_asked(tmp_path: Path) -> None:
    down = "17 main 5432 down postgres / /var/log/x.log"
    assert run_here(tmp_path, down) == ["cluster down"]
    assert run_here(tmp_path, "") == ["cluster "]


# --- the tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "-"),
        (-0.3, "0 s"),
        (0, "0 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (5400, "90 min"),
        (86_400, "24 h"),
        (86_400 * 3, "3 d"),
    ],
)
def test_durations_are_short(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def test_columns_are_aligned_and_numbers_flush_right() -> None:
    table = Table("Things", "name", ">size", "what")
    table.add("a", "7 kB", "x")
    table.add("longer", 1234, "", alarm="it is too long", when=True)
    table.add("never", 1, "", alarm="never said", when=False)
    table.notes.append("and 3 more")
    assert str(table).splitlines() == [
        "Things",
        "    name    size  what",
        "    a       7 kB  x",
        "  ! longer  1234",
        "    never      1",
        "    and 3 more",
    ]
    assert table.alarms == ["it is too long"]


def test_a_table_without_rows_is_its_title_and_its_notes() -> None:
    table = Table("Things", "name")
    table.notes.append("none")
    assert str(table) == "Things\n    none"


def test_names_do_not_move_the_cursor() -> None:
    text = printed(
        databases=[DATABASE | {"name": "a\x1b[2J\nb\u202e", "blocks_hit": 0, "blocks_read": 99_999}]
    )
    assert "a?[2J?b?" in text
    assert all(one.isprintable() or one == "\n" for one in text)
    assert "! database a?[2J?b?: only 0.0 % of its reads hit the cache" in text


def test_a_healthy_cluster() -> None:
    text = printed(statements=[STATEMENT])
    assert text.splitlines()[:3] == [
        "web1: PostgreSQL 17.12 (Debian 17.12-0+deb13u1), cluster 17/main",
        "  nothing is alarming",
        "",
    ]
    assert "    up since            2026-11-24 02:34 UTC (8 min)\n" in text
    assert "    connections         3 of 100\n" in text
    assert "    data                29 MB; disk 30 % full, 72G free\n" in text
    assert row(text, "api", "api", "10.210.1.3").split()[3:] == ["3", "1", "0", "0", "s", "-"]
    assert row(text, "api", "api", "7425").split()[4:] == [
        "3", "99.5", "%", "1,033", "7", "0", "0", "-",
    ]  # fmt: skip
    assert row(text, "api", "visits").split()[4:] == [
        "20,000", "2", "%", "12", "%", "2", "h", "ago", "never",
    ]  # fmt: skip
    assert row(text, STATEMENT["queryid"]).split()[1:7] == [
        "api", "18,012", "0.4", "7.5", "81.2", "%",
    ]  # fmt: skip
    assert text.endswith("    checkpoints  12 on time, 1 requested")
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_without_pg_stat_statements_the_report_says_how_to_get_it() -> None:
    assert "needs the extension pg_stat_statements in one of postgres_databases" in printed()
    assert "none yet" in printed(statements=[])


def test_a_long_statement_is_cut() -> None:
    long = STATEMENT | {"text": "select " + "a, " * 60, "database": None}
    line = row(printed(statements=[long, STATEMENT | {"queryid": "1"}]), STATEMENT["queryid"])
    assert line.endswith("a, a,…")
    assert " dropped " in line


def test_a_standby_and_its_replicas() -> None:
    text = printed(
        server=SERVER | {"recovery": True, "replayed": 2.2},
        wal=WAL | {"slots": [SLOT], "replicas": [REPLICA]},
    )
    assert "yes, replayed the last transaction 2 s ago" in text
    assert row(text, "standby", "physical").split()[2:] == ["yes", "reserved", "16", "MB"]
    assert row(text, "standby", "192.0.2.7").split()[2:] == [
        "streaming", "async", "0", "bytes", "0", "s",
    ]  # fmt: skip
    assert alarms(text) == []


def test_groups_that_are_not_shown_are_counted() -> None:
    assert "    and 4 more\n" in printed(connections=[CONNECTION | {"groups": 5}])
    assert "Connections\n    none\n" in printed(connections=[])


# --- the alarms -----------------------------------------------------------------------------------

ARCHIVING = WAL | {"archive_mode": "on", "archived": 9, "archived_ago": 30.0, "failed": 2}

# What differs from a healthy cluster; the alarm, or "" for none.
ALARMS: dict[str, tuple[dict[str, Any], str]] = {
    "a setting waits for a restart": (
        {"server": SERVER | {"pending_restart": ["max_connections", "shared_buffers"]}},
        "settings wait for a restart: max_connections, shared_buffers",
    ),
    "connections run out": (
        {"server": SERVER | {"connections": 81}},
        "81 of 100 connections are used",
    ),
    "connections do not run out": ({"server": SERVER | {"connections": 80}}, ""),
    "damaged pages": (
        {"server": SERVER | {"checksum_failures": 2}},
        "2 pages failed their checksum: the disk or its data are damaged",
    ),
    "transaction ids run out": (
        {"server": SERVER | {"xid_age": 1_073_741_824, "xid_database": "old"}},
        "database old: 50 % of the transaction ids are used up; vacuum it",
    ),
    "transaction ids do not run out": ({"server": SERVER | {"xid_age": 200_000_000}}, ""),
    "a full disk": ({"disk": "disk 91 800M"}, "the disk with the data is 91 % full"),
    "a session that is idle in a transaction": (
        {"connections": [CONNECTION | {"longest_idle": 720.0, "longest_idle_pid": 4711}]},
        "api in api from 10.210.1.3: idle in a transaction for 12 min, with its locks (pid 4711)",
    ),
    "a session that is idle in a transaction for a moment": (
        {"connections": [CONNECTION | {"longest_idle": 299.0, "longest_idle_pid": 4711}]},
        "",
    ),
    "a session that waits long": (
        {"blocked": [BLOCKED | {"waited": 45.0}]},
        "api in api (pid 812) has waited 45 s for pid 811",
    ),
    "a session that waits for a prepared transaction": (
        {"blocked": [BLOCKED | {"waited": 300.0, "blocker": 0, "blocker_role": None,
                                "blocker_state": None, "blocker_client": None,
                                "blocker_open": None}]},
        "api in api (pid 812) has waited 5 min for a prepared transaction",
    ),
    "a session that waits a moment": ({"blocked": [BLOCKED]}, ""),
    "a cache that is too small": (
        {"databases": [DATABASE | {"blocks_hit": 89_000, "blocks_read": 11_000}]},
        "database api: only 89.0 % of its reads hit the cache",
    ),
    "a cache that is still cold": (
        {"databases": [DATABASE | {"blocks_hit": 100, "blocks_read": 900}]}, "",
    ),
    "a database without reads": (
        {"databases": [DATABASE | {"blocks_hit": 0, "blocks_read": 0}]}, "",
    ),
    "dead rows": (
        {"tables": [TABLE | {"live": 7_000, "dead": 3_000, "vacuumed": None}]},
        "table visits of api: 30 % of its rows are dead, vacuumed never",
    ),
    "few dead rows": ({"tables": [TABLE | {"live": 5, "dead": 30}]}, ""),
    "bloat": (
        {"tables": [TABLE | {"bytes": 200 * 1024**2, "bloat": 81.6}]},
        "table visits of api: about 82 % of its pages are empty space",
    ),
    "a small table's bloat": ({"tables": [TABLE | {"bloat": 99.0}]}, ""),
    "bloat at the threshold": ({"tables": [TABLE | {"bytes": 2**40, "bloat": 60.0}]}, ""),
    "a table that was never analyzed": ({"tables": [TABLE | {"bytes": 2**40, "bloat": None}]}, ""),
    "an inactive slot": (
        {"wal": WAL | {"slots": [SLOT | {"active": False, "retained": "12 GB"}]}},
        "slot standby is inactive and keeps 12 GB WAL",
    ),
    "a slot that lost its WAL": (
        {"wal": WAL | {"slots": [SLOT | {"active": False, "status": "lost", "retained": None}]}},
        "slot standby lost its WAL: rebuild its replica",
    ),
    "a replica that lags": (
        {"wal": WAL | {"replicas": [REPLICA | {"lag": 180.0}]}}, "replica standby lags 3 min",
    ),
    "an archiver that fails": (
        {"wal": ARCHIVING | {"failed_ago": 10.0, "failed_wal": "00A"}},
        "the archiver fails: last archived 30 s ago; WAL piles up",
    ),
    "an archiver that has always failed": (
        {"wal": ARCHIVING | {"archived_ago": None, "failed_ago": 10.0, "failed_wal": "00A"}},
        "the archiver fails: last archived never; WAL piles up",
    ),
    "an archiver that failed once": (
        {"wal": ARCHIVING | {"failed_ago": 900.0, "failed_wal": "00A"}}, "",
    ),
    "a database that does not answer": (
        {"databases": [DATABASE, DATABASE | {"name": "shop"}]},
        "database shop: its tables are not known",
    ),
    "a database that takes no connections": (
        {"databases": [DATABASE, DATABASE | {"name": "shop", "visited": False}]}, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ALARMS)
def test_alarms_come_first_and_mark_their_rows(what: str) -> None:
    but, alarm = ALARMS[what]
    text = printed(**but)
    assert alarms(text.split("\n\n")[0]) == ([alarm] if alarm else [])
    marked = alarms(text.partition("\n\n")[2])
    assert len(marked) == (1 if alarm and "not known" not in alarm else 0)


def test_a_failed_query_is_an_alarm() -> None:
    lines = [line for line in output() if '"wal"' not in line]
    said = "psql:<stdin>:99: ERROR:  canceling statement due to statement timeout"
    text = report("web1", 17, PostgresStatus().process([*lines, said]))
    assert alarms(text) == [said]
    assert text.endswith("WAL\n    no answer")


def test_the_reason_why_there_is_no_report() -> None:
    process = PostgresStatus().process
    assert refusal(17, status()) is None
    none = refusal(17, PostgresStatus().default())
    assert none == "postgres: there is no cluster 17/main; tasks/postgres.py makes it"
    assert refusal(17, process(["cluster down"])) == (
        "postgres: the cluster 17/main is down; see `systemctl status postgresql@17-main` and "
        "`journalctl -u postgresql@17-main` there"
    )
    assert refusal(17, process(["cluster online", "FATAL:  too many clients"])) == (
        "postgres: the cluster 17/main runs, but does not answer: FATAL:  too many clients"
    )


# --- the command ----------------------------------------------------------------------------------

COMMAND = "commands/postgres_status.py"
CLUSTER = machine(DEBIAN_13, "cluster=17/main", "own=17/main")
QUESTION = "pg_lsclusters -h 17 main"


@pytest.mark.parametrize("how", ["-y", "--dry"])
def test_a_host_is_asked_one_question(pyinfra: Pyinfra, how: str) -> None:
    answers = CLUSTER | {QUESTION: output(server=SERVER | {"connections": 99})}
    result = pyinfra.call("@fake/host", COMMAND, how, "-vv", *fake(answers))
    assert result.returncode == 0, result.stderr
    assert "@fake/host: PostgreSQL 17.12" in result.stderr
    assert "  ! 99 of 100 connections are used\n" in result.stderr
    # One question for the machine, and one for PostgreSQL.
    assert result.stderr.count(">>> ") == 2
    assert json.loads(result.stdout)["plan"] == []


def test_a_host_that_is_down_does_not_hide_the_reports_of_others(
    pyinfra: Pyinfra, tmp_path: Path
) -> None:
    hosts = {
        "@fake/down": CLUSTER | {QUESTION: ["cluster down"]},
        "@fake/none": machine(),
        "@fake/odd": CLUSTER | {QUESTION: ["what?"]},
        "@fake/slow": CLUSTER | {QUESTION: {"success": False, "stderr": "sh: out of memory"}},
        "@fake/well": CLUSTER | {QUESTION: output()},
    }
    inventory = tmp_path / "fakes.py"
    servers = [(name, {"fake_responses": answers}) for name, answers in hosts.items()]
    inventory.write_text(f"servers = {servers!r}\n")
    result = pyinfra.call(str(inventory), COMMAND, "-y")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "@fake/well: PostgreSQL 17.12" in result.stderr
    assert "@fake/down: postgres: the cluster 17/main is down; see" in result.stderr
    assert "@fake/none: postgres: there is no cluster 17/main" in result.stderr
    assert "@fake/slow: postgres" not in result.stderr
    assert "@fake/odd: postgres" not in result.stderr
    assert "could not process fact" in result.stderr

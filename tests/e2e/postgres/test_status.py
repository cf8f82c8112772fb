"""Status of PostgreSQL: true numbers, alarms, and no change."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import ROOT, Pyinfra
from tests.e2e.clones import DEPLOYED, clone
from tests.e2e.support import Target, eventually, target

pytestmark = pytest.mark.e2e

COMMAND = "commands/postgres_status.py"
LIBRARY = "pg_stat_statements"
SECRETS = ("hunter2-create", "hunter2-alter", "hunter2-literal", "hunter2-into", "hunter2-comment")


def status(server: Target, *more: str, rc: int = 0) -> str:
    """The output of the command."""
    result = server.pyinfra.imported.call(*(more or ("-y",)), *server.arguments(), COMMAND)
    assert result.returncode == rc, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def unit(server: Target) -> str:
    return f"postgresql@{server.run('ls /etc/postgresql')}-main"


def alarms(printed: str) -> list[str]:
    return [line[4:] for line in printed.splitlines() if line.startswith("  ! ")]


@contextmanager
def session(server: Target, name: str, sql: str) -> Iterator[None]:
    """A session in the database `api` that has run `sql` and stays connected."""
    command = f"PGAPPNAME={name} runuser -u postgres -- psql -XAtq -d api"
    process = subprocess.Popen(
        ["docker", "exec", "-i", server.name, "sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin
    try:
        process.stdin.write(f"{sql};\n")
        process.stdin.flush()
        yield
    finally:
        # A session that waits for a lock would not notice that its client is gone.
        server.psql(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            f" where application_name = '{name}'"
        )
        process.stdin.close()
        process.kill()
        process.wait(timeout=10)


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    """A deployed server with a table, and statements with secrets in them."""
    with clone(pyinfra, "tf-test-status", 2457, DEPLOYED) as server:
        # The deploy loads the library, and creates the extension in `postgres` only.
        assert LIBRARY in server.psql("show shared_preload_libraries")
        has_it = f"select count(*) from pg_extension where extname = '{LIBRARY}'"
        assert [server.psql(has_it, name) for name in ("postgres", "api")] == ["1", "0"]
        server.psql(
            "create table status_rows as select n, repeat('x', 500) as filler"
            " from generate_series(1, 12345) n",
            "api",
        )
        # In a session of its own: PostgreSQL adds rows that the same session wrote to VACUUM's
        # count.
        server.psql("vacuum analyze status_rows", "api")
        create, alter, literal, into, comment = SECRETS
        server.psql(f"create role status_probe password '{create}'", "api")
        server.psql(f"alter role status_probe password '{alter}'", "api")
        server.psql(f"select pg_sleep(1), '{literal}' as it, n from status_rows limit 1", "api")
        server.psql(f"select '{into}' as it into status_into from pg_sleep(0.5)", "api")
        server.psql(f"/* {comment} */ with it as (select pg_sleep(0.5)) select from it", "api")
        yield server


@pytest.mark.promise("The numbers in the status of PostgreSQL are true")
def test_the_tables_are_true(server: Target) -> None:
    printed = status(server)
    size = server.psql("select pg_size_pretty(pg_total_relation_size('status_rows'))", "api")
    version = server.psql("show server_version")
    assert f"127.0.0.1: PostgreSQL {version}, cluster " in printed
    table = rf"^    api +status_rows +{size} +12,345 +0 % +[0-5] % +\d+ s ago +\d+ s ago$"
    assert re.search(table, printed, re.MULTILINE), printed
    database = server.psql("select pg_size_pretty(pg_database_size('api'))")
    assert re.search(rf"^    api +api +{database} +\d+ +\d+\.\d %", printed, re.MULTILINE)
    assert re.search(r"^    checksums +on, 0 failed$", printed, re.MULTILINE)
    assert re.search(r"^    connections +\d+ of 100$", printed, re.MULTILINE)
    assert re.search(r"^    on the disk +\d+ MB, \d+ files$", printed, re.MULTILINE)
    assert re.search(r"^    position +[0-9A-F]+/[0-9A-F]+$", printed, re.MULTILINE)
    assert re.search(r"^    checkpoints +\d+ on time, \d+ requested$", printed, re.MULTILINE)


@pytest.mark.promise(like=test_the_tables_are_true)
def test_connections_are_counted_by_role_and_address(server: Target) -> None:
    """Each replica appears with its address in Docker's network."""
    sql = (
        "select usename, datname, host(client_addr), count(*) from pg_stat_activity"
        " where client_addr is not null group by 1, 2, 3 order by 3"
    )
    there = [line.split("|") for line in server.psql(sql).splitlines()]
    assert len({address for _, _, address, _ in there}) >= 4
    printed = status(server)
    for role, database, address, _ in there:
        shown = rf"^    {role} +{database} +{re.escape(address)} +[1-9]\d* +\d+ +\d+ "
        assert re.search(shown, printed, re.MULTILINE), printed


@pytest.mark.promise(like=test_the_tables_are_true)
def test_bloat_is_estimated_within_a_few_per_cent(server: Target) -> None:
    """Three of four rows on every page are deleted: no dead rows, and much empty space."""
    server.psql(
        "create table status_bloat with (autovacuum_enabled = off) as select n,"
        " md5(n::text) as one, null::int as nothing, now() as at"
        " from generate_series(1, 40000) n;"
        "create table status_new with (autovacuum_enabled = off)"
        " as select n from generate_series(1, 40000) n",
        "api",
    )
    try:
        server.psql("analyze status_bloat", "api")
        assert re.search(r" status_bloat +\d+ kB +40,000 +0 % +[0-9] % +never ", status(server))
        server.psql("delete from status_bloat where n % 4 <> 0", "api")
        server.psql("vacuum analyze status_bloat", "api")
        pages = "select pg_relation_size('{0}') / 8192"
        before = int(server.psql(pages.format("status_bloat"), "api"))
        printed = status(server)
        (bloat,) = re.findall(r" status_bloat +\d+ kB +10,000 +0 % +(\d+) % ", printed)
        server.psql("vacuum full status_bloat", "api")
        after = int(server.psql(pages.format("status_bloat"), "api"))
        assert abs(int(bloat) - 100 * (1 - after / before)) < 5
        # The width of the rows is unknown before an ANALYZE.
        assert re.search(
            r" status_new +\d+ kB +40,000 +0 % +- +never +never$", printed, re.MULTILINE
        )
    finally:
        server.psql("drop table status_bloat, status_new", "api")


def test_an_inactive_slot_is_an_alarm(server: Target) -> None:
    server.psql("select pg_create_physical_replication_slot('status_standby', true)")
    try:
        printed = status(server)
    finally:
        server.psql("select pg_drop_replication_slot('status_standby')")
    assert re.search(
        r"^  ! slot status_standby is inactive and keeps \d+ \w+ WAL$", printed, re.MULTILINE
    )
    assert re.search(
        r"^  ! status_standby +physical +no +reserved +\d+ \w+$", printed, re.MULTILINE
    )
    assert "status_standby" not in status(server)


@pytest.mark.promise("The status of PostgreSQL shows slow statements without the values in them")
def test_slow_statements_are_shown_without_their_values(server: Target) -> None:
    printed = status(server, "-y", "-vvv")
    assert re.search(r" api +1 +1,?\d+\.\d +1\.\d +\d.* select pg_sleep\(\$1\), \$2 as", printed)
    # pg_stat_statements does have them.
    for secret in SECRETS:
        kept = server.psql(f"select count(*) from {LIBRARY} where query ~ '{secret}'")
        assert secret in SECRETS[2:4] or int(kept) > 0, secret
        assert secret not in printed
    assert "role status_probe" not in printed


def test_a_setting_that_waits_for_a_restart_is_an_alarm(server: Target) -> None:
    due = "select pending_restart from pg_settings where name = 'max_files_per_process'"
    try:
        server.psql("alter system set max_files_per_process = 999")
        server.psql("select pg_reload_conf()")
        eventually(lambda: server.psql(due) == "t", 10)
        assert "settings wait for a restart: max_files_per_process" in alarms(status(server))
    finally:
        server.psql("alter system reset max_files_per_process")
        # A value that is reset also waits for a restart.
        server.run(f"systemctl restart {unit(server)}")
    assert "wait for a restart  no settings" in status(server)


# The command with alarms after one second.
IMPATIENT = """
import runpy
from terrafirma.postgres import status
status.IDLE_IN_TRANSACTION = status.BLOCKED = 1
runpy.run_module("pyinfra", run_name="__main__")
"""


def test_idle_and_blocking_sessions_are_alarms(server: Target) -> None:
    lock = "begin; select pg_advisory_lock(4711)"
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    with session(server, "holder", lock), session(server, "waiter", lock):
        eventually(lambda: server.psql(waiting) == "1", 10)
        eventually(
            lambda: (
                server.psql(
                    "select max(now() - state_change) > '3 s' from pg_stat_activity"
                    " where state = 'idle in transaction'"
                )
                == "t"
            ),
            20,
        )
        result = subprocess.run(
            [sys.executable, "-c", IMPATIENT, "-y", *server.arguments(), COMMAND],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        holder = server.psql("select pid from pg_locks where locktype = 'advisory' and granted")
    printed = result.stderr
    idle = r"postgres in api from socket: idle in a transaction for \d+ s, with its locks"
    assert re.search(rf"^  ! {idle} \(pid {holder}\)$", printed, re.MULTILINE), printed
    assert re.search(
        rf"^  ! postgres in api \(pid \d+\) has waited \d+ s for pid {holder}$",
        printed,
        re.MULTILINE,
    )
    assert re.search(rf"advisory ExclusiveLock +{holder} +postgres +socket +idle in tr", printed)
    assert re.search(r"^  ! postgres +api +socket +2 +1 +1 +\d+ s +\d+ s$", printed, re.MULTILINE)


def test_a_locked_table_does_not_delay_the_status(server: Target) -> None:
    with session(server, "locker", "begin; lock table status_rows in access exclusive mode"):
        granted = "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and granted"
        eventually(lambda: server.psql(granted) == "1", 10)
        printed = status(server)
    assert re.search(r"^    api +status_rows +\d+ kB +12,345 ", printed, re.MULTILINE)
    assert "tables are not known" not in printed
    assert "psql:" not in printed


NAMES = ['it\'s "a" $(touch /tmp/canary) `touch /tmp/canary`', "back\\slash :x :'x' dbname=x", "Ü"]


def test_databases_may_have_any_name(server: Target) -> None:
    quoted = ['"' + name.replace('"', '""') + '"' for name in NAMES]
    try:
        for name in quoted:
            server.psql(f"create database {name}")
        printed = status(server)
    finally:
        for name in quoted:
            server.psql(f"drop database if exists {name}")
    for name in NAMES:
        assert re.search(rf"^    {re.escape(name)} +postgres +\d+ kB", printed, re.MULTILINE)
    assert "tables are not known" not in printed
    assert "psql:" not in printed
    assert server.call("ls /tmp/canary").returncode != 0


def test_nothing_is_changed(server: Target) -> None:
    def state() -> str:
        return server.digest() + server.psql(
            "select md5(string_agg(s::text, ' ' order by name)) from pg_settings s;"
            "select md5(string_agg(a::text, ' ' order by oid)) from pg_authid a;"
            "select md5(string_agg(datname || datdba, ' ' order by oid)) from pg_database;"
            "select md5(string_agg(oid || relname, ' ' order by oid)) from pg_class",
            "api",
        )

    before = state()
    for how in ("-y", "--dry"):
        printed = status(server, how)
        assert "Starting operation" not in printed
        assert "status_rows" in printed
    assert state() == before


def test_a_cluster_that_is_stopped_is_one_line_and_a_failure(server: Target) -> None:
    version = server.run("ls /etc/postgresql")
    server.run(f"pg_ctlcluster {version} main stop")
    try:
        line = server.refuse(COMMAND)
        assert line.count("127.0.0.1") == 2
        assert f"postgres: the cluster {version}/main is down; see `systemctl status" in line
    finally:
        server.run(f"systemctl start {unit(server)}")
    status(server)


def test_a_host_without_postgresql_is_one_line_and_a_failure(pyinfra: Pyinfra) -> None:
    with target(pyinfra, "tf-test-status-bare", 2458) as bare:
        line = bare.refuse(COMMAND)
    assert "postgres: there is no cluster 17/main; tasks/postgres.py makes it" in line

"""Major upgrades of PostgreSQL: refused, failed, killed, done, undone and done again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import ROOT, Pyinfra
from tests.e2e.clones import STORAGE, admit
from tests.e2e.databases import BOOKWORM
from tests.e2e.support import Target, changed, eventually, options, target

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.budget(
        minutes=4, why="two versions of PostgreSQL on one server, upgrades killed and undone"
    ),
]

COMMAND = "commands/postgres_upgrade.py"
STAY: dict[str, Any] = {"postgres_version": 15}
ROWS = """
create table notes (id serial primary key, body text);
create index notes_body on notes (body);
insert into notes (body) select md5(number::text) from generate_series(1, 20000) as number;
create extension citext;
alter role postgres set work_mem = '17MB';
create tablespace far location '/srv/far';
create table distant tablespace far as select generate_series(1, 1000) as number;
"""
SUM = "select count(*), md5(string_agg(id || body, '' order by id)) from notes"
PASSWORD = "select rolpassword from pg_authid where rolname = 'api'"
UNIT = "/run/systemd/transient/terrafirma-postgres-upgrade.service"


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with target(pyinfra, "tf-test-upgrade", 2416) as bare:
        bare.run(BOOKWORM)
        assert changed(bare.deploy("tasks/postgres.py", **STAY))
        bare.run("install -d -o postgres -g postgres /srv/far")
        bare.psql(ROWS, "api")
        yield bare


@pytest.fixture(scope="module")
def held(server: Target) -> list[str]:
    """The content that must survive all tests below."""
    return contents(server)


@pytest.fixture(scope="module")
def verifier(server: Target) -> str:
    return server.psql(PASSWORD)


def contents(server: Target) -> list[str]:
    return [
        server.psql(SUM, "api"),
        server.psql("show work_mem", "api"),
        server.psql("select count(*), sum(number) from distant", "api"),
        server.psql("select indexrelid::regclass from pg_index where indrelid = 'notes'::regclass "
                    "order by 1", "api"),
    ]  # fmt: skip


def clusters(server: Target) -> list[str]:
    """Version, port and state of each cluster."""
    lines = server.run("pg_lsclusters -h").splitlines()
    return [" ".join(line.split()[number] for number in (0, 2, 3)) for line in lines]


LOGIN = (
    'PGPASSWORD="$(cat /etc/terrafirma/secrets/postgres/api)" '
    "psql -h localhost -U api api -XAtc 'select 1'"
)


def upgrade(server: Target, **data: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pyinfra", "-y", *options(data), *server.arguments(), COMMAND],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def down(server: Target) -> bool:
    """Whether the old server is stopped, so that its files are being copied."""
    return server.call("pg_lsclusters -h 15 main | grep -qw down").returncode == 0


def test_a_run_is_refused_and_names_the_task(server: Target, held: list[str]) -> None:
    before = server.digest()
    line = server.refuse("tasks/postgres.py")
    assert "postgres_version: the cluster 15/main holds your data, and 17 is wanted" in line
    assert "upgrade it with commands/postgres_upgrade.py" in line
    assert "set postgres_version = 15 to stay" in line
    assert "17 is wanted; upgrade it" in server.refuse("tasks/postgres.py", postgres_version=17)
    assert server.digest() == before


def test_the_old_version_can_stay(server: Target) -> None:
    assert changed(server.deploy("tasks/postgres.py", **STAY)) == []
    # Nothing to upgrade to.
    assert changed(server.deploy(COMMAND, **STAY)) == []


@pytest.mark.promise("Root does not follow symbolic links of the user `postgres`")
def test_root_follows_no_link_of_postgres(server: Target) -> None:
    ours, roots = "/etc/postgresql/15/main/conf.d", "/etc/systemd/system/ssh.service.d"
    as_postgres = "runuser -u postgres -- sh -c"
    server.run(f"install -d {roots}")
    before = server.run(f"find {roots} -ls")
    server.run(f"{as_postgres} 'mv {ours} {ours}.kept && ln -s {roots} {ours}'")
    try:
        result = server.pyinfra.imported.call(
            "-y", *options(STAY), *server.arguments(), "tasks/postgres.py"
        )
        assert result.returncode != 0
        assert "Configure the server" in result.stderr
        assert server.run(f"find {roots} -ls") == before
    finally:
        server.run(f"{as_postgres} 'rm {ours} && mv {ours}.kept {ours}'")
    assert changed(server.deploy("tasks/postgres.py", **STAY)) == []


def test_a_tablespace_inside_the_old_data_is_refused(server: Target) -> None:
    place = "/var/lib/postgresql/15/main/near"
    server.run(f"install -d -o postgres -g postgres {place}")
    server.psql(f"create tablespace near location '{place}'")
    try:
        line = server.refuse(COMMAND)
        assert f"127.0.0.1: upgrade: the tablespace in {place} is inside the data directory" in line
    finally:
        server.psql("drop tablespace near")
        server.run(f"rmdir {place}")


def test_a_dry_run_names_the_steps(server: Target) -> None:
    before = server.digest()
    plan = server.plan(COMMAND)
    steps = ["Back up the databases", "Create the new cluster", "Move the data to the new cluster"]
    assert [step.split(" | ")[-1] for step in plan if step.split(" | ")[-1] in steps] == steps
    assert server.digest() == before


def test_a_cluster_that_cannot_be_upgraded_keeps_serving(server: Target, held: list[str]) -> None:
    server.psql("create table broken (f regproc)", "api")
    # In place of the upgrade's directory, postgres puts a link to a directory of root's.
    server.run("install -d -m 700 /root/precious && touch /root/precious/file")
    server.run("runuser -u postgres -- ln -s /root/precious /var/lib/postgresql/terrafirma-upgrade")
    try:
        started = server.psql("select pg_postmaster_start_time()")
        result = server.pyinfra.imported.call("-y", *server.arguments(), COMMAND)
        assert result.returncode != 0
        assert "failed: checking: pg_upgrade:" in result.stderr
        assert "public.broken.f" in result.stderr
        assert "Traceback" not in result.stderr
        # The old server never stopped.
        assert server.psql("select pg_postmaster_start_time()") == started
        precious = "find /root/precious -printf '%f %U %m\\n'"
        assert server.run(precious) == "precious 0 700\nfile 0 644"
        assert server.call("ls /var/lib/postgresql/terrafirma-upgrade").returncode != 0
    finally:
        server.psql("drop table broken", "api")
    assert clusters(server) == ["15 5432 online"]
    assert contents(server) == held
    assert changed(server.deploy("tasks/postgres.py", **STAY)) == []


@pytest.mark.promise("A major upgrade that is killed brings the old server back")
def test_a_kill_on_the_host_brings_the_old_server_back(server: Target, held: list[str]) -> None:
    run = upgrade(server)
    eventually(lambda: down(server) or run.poll() is not None, 300)
    server.run(f"systemctl kill --signal KILL {UNIT.rpartition('/')[2]}")
    _, said = run.communicate(timeout=300)
    assert run.returncode != 0
    assert "15/main serves as before" in said
    assert "the unit was stopped: journalctl -u" in said
    assert clusters(server) == ["15 5432 online"]
    assert contents(server) == held
    # The rest of the upgrade (program, packages) does not matter to this run.
    assert changed(server.deploy("tasks/postgres.py", **STAY)) == []


@pytest.mark.promise("A major upgrade of PostgreSQL outlives a lost connection")
def test_the_upgrade_outlives_pyinfra(server: Target, held: list[str]) -> None:
    run = upgrade(server)
    eventually(lambda: down(server) or run.poll() is not None, 300)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    # The upgrade is quick; stop its program until the two runs below are done.
    kill = f"systemctl kill --kill-whom main {UNIT.rpartition('/')[2]} --signal"
    server.run(f"{kill} STOP")
    try:
        for task, data in ((COMMAND, {}), ("tasks/postgres.py", STAY)):
            line = server.refuse(task, **data)
            assert "127.0.0.1: upgrade: a major upgrade of PostgreSQL is going on there" in line
    finally:
        server.run(f"{kill} CONT")
    eventually(lambda: server.call(f"test -e {UNIT}").returncode != 0, 300)
    assert server.run("tail -n 1 /var/lib/terrafirma/upgrade/log") == "finished"
    # The next run finds nothing to do.
    assert changed(server.deploy(COMMAND)) == []


def test_all_rows_are_there(server: Target, held: list[str], verifier: str) -> None:
    assert clusters(server) == ["15 5432 down", "17 5432 online"]
    assert server.psql("show server_version").startswith("17.")
    assert server.psql("show data_checksums") == "on"
    assert contents(server) == held
    assert server.psql("select count(*) > 1 from pg_stats where tablename = 'notes'", "api") == "t"
    # The applications' password still works.
    assert server.psql(PASSWORD) == verifier
    assert server.run(LOGIN) == "1"
    dump = server.run("stat -c '%a %U' /var/lib/terrafirma/upgrade/15-to-17.sql.gz")
    assert dump == "600 root"
    assert "CREATE TABLE public.notes" in server.run(
        "zcat /var/lib/terrafirma/upgrade/15-to-17.sql.gz"
    )


def test_afterwards_there_is_nothing_to_do(server: Target) -> None:
    server.deploy("tasks/postgres.py")
    assert changed(server.deploy("tasks/postgres.py")) == []
    assert server.plan("tasks/postgres.py") == []
    assert server.plan(COMMAND) == []
    line = server.refuse("tasks/postgres.py", **STAY)
    assert "cannot be downgraded to 15" in line
    assert "the retired 15/main, without the rows since the upgrade, comes back with" in line


def test_a_reboot_starts_the_new_cluster_only(server: Target, held: list[str]) -> None:
    server.reboot()
    eventually(
        lambda: server.call("pg_lsclusters -h 17 main | grep -qw online").returncode == 0, 60
    )
    assert clusters(server) == ["15 5432 down", "17 5432 online"]
    refused = server.call("systemctl start postgresql@15-main")
    assert refused.returncode != 0
    assert clusters(server) == ["15 5432 down", "17 5432 online"]
    assert contents(server) == held


@pytest.mark.promise("Files that the new cluster uses are not removed with the old cluster")
def test_files_that_the_new_cluster_uses_are_not_removed(server: Target, held: list[str]) -> None:
    place = "/var/lib/postgresql/15/main/near"
    server.run(f"install -d -o postgres -g postgres {place}")
    server.psql(f"create tablespace near location '{place}'")
    server.psql("create table close tablespace near as select 1 as number", "api")
    result = server.pyinfra.imported.call(
        "-y", *options({"upgrade": "clean"}), *server.arguments(), COMMAND
    )
    assert result.returncode != 0
    assert f"failed: 15/main is not removed: {place} is in use by 17/main" in result.stderr
    assert "move that first" in result.stderr
    assert "Traceback" not in result.stderr
    assert clusters(server) == ["15 5432 down", "17 5432 online"]
    assert server.psql("select number from close", "api") == "1"
    server.psql("drop table close", "api")
    server.psql("drop tablespace near")
    assert contents(server) == held


@pytest.mark.promise("A major upgrade can be undone, and current passwords stay valid")
def test_the_way_back(server: Target, held: list[str], verifier: str) -> None:
    data: dict[str, Any] = {
        "pgbouncer_enabled": True,
        "postgres_roles": [{"name": "api"}, {"name": "later"}],
    }
    server.deploy("tasks/postgres.py", "tasks/pgbouncer.py", **data)
    # Changes that the old cluster lacks: a role, a password, a row.
    server.run("/usr/local/bin/terrafirma passwords renew 17", stdin="generated api\n")
    server.deploy("tasks/pgbouncer.py", **data)
    server.psql("insert into notes (body) values ('after the upgrade')", "api")
    assert server.psql(PASSWORD) != verifier
    pooled = LOGIN.replace("localhost", "localhost -p 6432")
    assert [server.run(LOGIN), server.run(pooled)] == ["1", "1"]
    assert server.plan(COMMAND, upgrade="back", **data)[0] == "Go back to the old cluster"
    result = server.pyinfra.imported.call("-y", *options({"upgrade": "back", **data}),
                                 *server.arguments(), COMMAND)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "rows written since then stay in 17/main only" in result.stderr
    assert "Set postgres_version = 15" in result.stderr
    assert clusters(server) == ["15 5432 online", "17 5432 down"]
    assert contents(server) == held
    # The application has the new password.
    assert server.psql(PASSWORD) != verifier
    assert [server.run(LOGIN), server.run(pooled)] == ["1", "1"]
    assert server.psql("select rolcanlogin from pg_roles where rolname = 'later'") == "t"
    tasks = ("tasks/postgres.py", "tasks/pgbouncer.py")
    assert changed(server.deploy(*tasks, **STAY, **data)) == []
    assert server.plan(*tasks, **STAY, **data) == []
    # Going back a second time changes nothing.
    assert changed(server.deploy(COMMAND, upgrade="back", **data)) == []
    assert "the retired cluster 17/main is in the way" in server.refuse(COMMAND)
    server.reboot()
    eventually(
        lambda: server.call("pg_lsclusters -h 15 main | grep -qw online").returncode == 0, 60
    )
    assert clusters(server) == ["15 5432 online", "17 5432 down"]
    server.deploy("tasks/pgbouncer.py", **STAY)


def test_clean_removes_retired_clusters(server: Target, held: list[str]) -> None:
    assert server.plan(COMMAND, upgrade="clean") == ["Remove the retired clusters"]
    assert changed(server.deploy(COMMAND, upgrade="clean")) == ["Remove the retired clusters"]
    assert clusters(server) == ["15 5432 online"]
    assert changed(server.deploy(COMMAND, upgrade="clean")) == []
    assert server.call("ls /etc/postgresql/17").returncode != 0
    assert server.call("ls /var/lib/postgresql/17").returncode != 0
    assert server.run("ls /srv/far") == "PG_15_202209061"
    assert contents(server) == held


def archives(server: Target) -> list[dict[str, Any]]:
    (repository,) = json.loads(server.run("borgmatic rlist --json"))
    found: list[dict[str, Any]] = repository["archives"]
    return found


def test_backups_continue_with_the_new_cluster(server: Target, held: list[str]) -> None:
    server.run(STORAGE.commands)
    data = admit(server, server, "/home/box/upgrade.borg")
    server.deploy("tasks/borg.py", **data, **STAY)
    assert len(archives(server)) == 1
    steps = changed(server.deploy(COMMAND, **data))
    assert "Back up the databases" in steps
    assert len(archives(server)) > 1
    assert steps[-1] == "tasks/borg.py | Make and verify a first backup"
    assert clusters(server) == ["15 5432 down", "17 5432 online"]
    assert contents(server) == held
    config = server.run("cat /etc/borgmatic/config.yaml")
    assert "--cluster 17/main" in config
    assert "15/main" not in config
    assert changed(server.deploy("tasks/borg.py", **data)) == []
    assert changed(server.deploy(COMMAND, upgrade="clean", **data))
    assert clusters(server) == ["17 5432 online"]
    assert contents(server) == held

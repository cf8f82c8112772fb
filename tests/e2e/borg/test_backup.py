"""Backups: each is read back before it counts, and none loses an acknowledged row."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import POSTGRES, STORAGE, admit, clone
from tests.e2e.support import Target, changed

pytestmark = pytest.mark.e2e

REPOSITORY = "/home/box/ledger.borg"
DATA: dict[str, Any] = {
    "postgres_databases": [{"name": "api", "owner": "api"}, {"name": "shop", "owner": "api"}],
}
# Large enough that a test can break its dump half-way.
BULK = (
    "create table bulk as select n, md5(n::text) || md5((-n)::text) as t"
    " from generate_series(1, {}) n;"
)


@pytest.fixture(
    scope="module", params=["debian13", pytest.param("debian12", marks=pytest.mark.long)]
)
def hosts(pyinfra: Pyinfra, request: pytest.FixtureRequest) -> Iterator[tuple[Target, Target]]:
    """A server with two databases whose first backup was made, and its backup host."""
    with (
        clone(pyinfra, "tf-b-ledger", 2560, replace(POSTGRES, distro=request.param)) as server,
        clone(pyinfra, "tf-b-ledger-store", 2561, STORAGE) as storage,
    ):
        DATA.update(admit(storage, server, REPOSITORY))
        server.deploy("tasks/postgres.py", "tasks/borg.py", **DATA)
        server.psql("create table ledger (id bigint primary key);" + BULK.format(120_000), "shop")
        assert server.deploy("tasks/borg.py", **DATA)["results"]["totals"]["success"] == 0
        yield server, storage


def pay(server: Target, count: int) -> int:
    """Insert `count` rows, each acknowledged on its own; returns the number of all rows."""
    server.psql("insert into ledger select coalesce(max(id), 0) + 1 from ledger;\n" * count, "shop")
    return int(server.psql("select count(*) from ledger", "shop"))


def nightly(server: Target) -> tuple[bool, str]:
    """Run the nightly unit; returns whether it succeeded, and its log."""
    since = server.run("date '+%F %T.%N'")
    result = server.call("systemctl start borgmatic.service")
    said = server.run(f"journalctl -u borgmatic.service -o cat --since '{since[:23]}'")
    return result.returncode == 0, said


def archives(server: Target) -> list[str]:
    (repository,) = json.loads(server.run("borgmatic rlist --json"))
    return [one["archive"] for one in repository["archives"]]


def restored(server: Target, archive: str = "latest") -> int:
    """Restore an archive; returns the number of payments in it."""
    server.run(
        "rm -rf /root/restored && install -d -m 700 /root/restored && cd /root/restored &&"
        f" borgmatic extract --archive {archive} --destination . &&"
        " mv $(find . -path '*postgresql_databases/localhost/shop') /tmp/shop.dump &&"
        " chmod 644 /tmp/shop.dump"
    )
    server.psql("drop database if exists scratch;\ncreate database scratch;")
    server.run("runuser -u postgres -- pg_restore --exit-on-error -d scratch /tmp/shop.dump")
    count = int(server.psql("select count(*) from ledger", "scratch"))
    server.psql("drop database scratch;")
    return count


def in_the_middle(server: Target, what: str) -> None:
    """Run a command while the dump of the large table is stopped half-way, then let it go on."""
    # runuser stops with what it runs.
    go_on = "pkill -CONT -x 'pg_dump|runuser'"
    going_on = "application_name = 'pg_dump' and query ilike 'COPY%bulk%'"
    server.run(
        "for try in $(seq 1200); do pkill -STOP -x pg_dump;"
        f' echo "select pid from pg_stat_activity where {going_on}"'
        " | runuser -u postgres -- psql -XAtq | grep -q . && break;"
        f" {go_on}; sleep 0.01; done;"
        f" test $try -lt 1200 && {{ {what}; }}; status=$?; {go_on}; exit $status"
    )


TERMINATE = (
    'echo "select pg_terminate_backend(pid) from pg_stat_activity'
    " where application_name = 'pg_dump' and datname = 'shop'\" | runuser -u postgres -- psql -XAtq"
)
BREAKS: dict[str, str] = {
    "its session is ended": TERMINATE,
    "it is killed": "kill -9 $(pgrep -x pg_dump)",
    "PostgreSQL is stopped": "systemctl stop CLUSTER && sleep 3 && systemctl start CLUSTER",
}


@pytest.mark.promise(
    "A backup that fails half-way never becomes `latest`, replaces no good backup, and loses no "
    "acknowledged row"
)
@pytest.mark.parametrize(
    "how",
    [
        "its session is ended",
        *(pytest.param(how, marks=pytest.mark.long) for how in list(BREAKS)[1:]),
    ],
)
def test_a_dump_that_breaks_is_made_again(hosts: tuple[Target, Target], how: str) -> None:
    server, _ = hosts
    before = archives(server)
    paid = pay(server, 20)
    cluster = server.run("pg_lsclusters -h").split()[0]
    with subprocess.Popen(
        ["docker", "exec", server.name, "systemctl", "start", "borgmatic.service"]
    ) as unit:
        in_the_middle(server, BREAKS[how].replace("CLUSTER", f"postgresql@{cluster}-main"))
        assert unit.wait(600) == 0
    said = server.run("journalctl -u borgmatic.service -o cat -n 200")
    assert "/localhost/shop' returned non-zero exit status" in said
    assert archives(server)[-1] not in before
    assert restored(server) == paid
    # The next backup removes what the failed one left.
    assert nightly(server)[0]
    assert unfinished(server) == []


@pytest.mark.promise("One database that cannot be dumped does not end the backup of the others")
def test_a_database_that_cannot_be_dumped_does_not_end_the_backup(
    hosts: tuple[Target, Target],
) -> None:
    server, _ = hosts
    paid = pay(server, 5)
    assert nightly(server)[0]
    good = archives(server)[-1]
    server.psql("create table broken ();", "shop")
    schema = server.psql("select relnamespace from pg_class where relname = 'broken'", "shop")
    server.psql("update pg_class set relnamespace = 4242 where relname = 'broken'", "shop")
    try:
        for _ in range(2):
            fine, said = nightly(server)
            assert not fine
            assert f"(its last dump: {good})" in said
            newest = archives(server)[-1]
            # Prune alone would keep only the day's newest archive, which lacks the database.
            assert newest != good
            assert good in archives(server)
            dumps = server.run(f"borgmatic list --archive {newest} | grep postgresql_databases")
            assert "/api" in dumps
            assert "/shop" not in dumps
        assert restored(server, good) == paid
    finally:
        server.psql(f"update pg_class set relnamespace = {schema} where relname = 'broken'", "shop")
        server.psql("drop table broken;", "shop")
    fine, said = nightly(server)
    assert fine, said
    assert restored(server) == paid


def unfinished(server: Target) -> list[str]:
    """Archives that do not count, from borg's own list."""
    settings = "/etc/borgmatic/config.yaml"
    names = server.run(
        "export BORG_PASSCOMMAND='cat /etc/terrafirma/secrets/borg/passphrase';"
        f' export BORG_RSH="$(sed -n "s/^ *ssh_command: //p" {settings})";'
        f" borg list --consider-checkpoints --short {DATA['borg_repository']}"
    )
    return [name for name in names.splitlines() if not name[-1].isdigit()]


@pytest.mark.long
def test_a_database_that_refuses_connections_does_not_end_the_backup(
    hosts: tuple[Target, Target],
) -> None:
    server, _ = hosts
    paid = pay(server, 5)
    # One that an interrupted DROP DATABASE left, a closed one, and names that need quoting.
    for name in ("gone", "closed", "-x", "a b", "it's=$(false)/..", "all"):
        server.psql(f'create database "{name}";')
    server.psql("update pg_database set datconnlimit = -2 where datname = 'gone'")
    server.psql("alter database closed allow_connections false;")
    server.psql("create role nobody_much; alter database shop set role = nobody_much;")
    server.psql("alter database shop set statement_timeout = '1ms';")
    try:
        fine, said = nightly(server)
        assert not fine
        assert re.search('not in the backup: "closed": .*; "gone": it is invalid', said), said
        assert restored(server) == paid
        dumps = server.run("cd /root/restored; find . -path '*databases/localhost/*' -type f")
        names = {line.rpartition("/")[2] for line in dumps.splitlines()}
        assert names == {
            "postgres",
            "api",
            "%2Dx",
            "a%20b",
            "%61ll",
            "it%27s%3D%24%28false%29%2F..",
        }
        # The closed one may be excluded in the settings; the invalid one must be dropped.
        server.psql("update pg_database set datconnlimit = -1 where datname = 'gone'")
        server.psql("drop database gone;")
        data = DATA | {"borg_exclude_databases": ["closed"]}
        steps = changed(server.deploy("tasks/borg.py", **data))
        assert steps[-1] == "Make and verify a first backup"
        assert server.plan("tasks/borg.py", **data) == []
    finally:
        server.psql("alter database shop reset all;")
        server.psql("alter database closed allow_connections true;")
        for name in ("closed", "-x", "a b", "it's=$(false)/..", "all"):
            server.psql(f'drop database "{name}";')


@pytest.mark.promise(like=test_a_dump_that_breaks_is_made_again)
@pytest.mark.parametrize(
    "cut", ["head -c 1200", pytest.param("cat /dev/null", marks=pytest.mark.long)]
)
def test_a_dump_that_ends_early_without_an_error_is_found(
    hosts: tuple[Target, Target], cut: str
) -> None:
    """Reading the dump back finds it; pg_dump itself reports success."""
    server, _ = hosts
    good = archives(server)[-1]
    program = server.run("ls /usr/lib/postgresql/*/bin/pg_dump")
    server.run(f"mv {program} {program}.real")
    server.run(
        f"cat > {program} && chmod 755 {program}",
        # pg_dumpall asks for its version.
        stdin=f'#!/bin/sh\n[ "$1" != -V ] || exec {program}.real -V\n{program}.real "$@" | {cut}\n',
    )
    try:
        fine, said = nightly(server)
    finally:
        server.run(f"mv {program}.real {program}")
    assert not fine
    assert re.search(r'the dump of "\w+" cannot be read back: .*pg_restore: error', said), said
    assert archives(server)[-1] == good


@pytest.mark.promise(like=test_a_dump_that_breaks_is_made_again)
@pytest.mark.parametrize(
    "phase",
    [
        # With borg before 1.2.5 the program uses `recreate` instead of `rename`.
        "borg.* re(name|create)",
        *(
            pytest.param(phase, marks=pytest.mark.long)
            for phase in ("borg.* create", "borg.* export-tar", "bin/pg_restore", "borg.* prune")
        ),
    ],
)
def test_a_run_that_is_killed_is_made_up_for(hosts: tuple[Target, Target], phase: str) -> None:
    server, _ = hosts
    paid = pay(server, 5)
    assert nightly(server)[0]
    good = archives(server)[-1]
    with subprocess.Popen(
        ["docker", "exec", server.name, "systemctl", "start", "borgmatic.service"]
    ) as unit:
        server.run(
            # SIGSTOP first, so that the step cannot end before it is killed. The brackets keep
            # pkill from matching this shell itself.
            f"for try in $(seq 3000); do pkill -STOP -f '[{phase[0]}]{phase[1:]}' && break;"
            " sleep 0.03; done;"
            " systemctl kill --signal KILL borgmatic.service; test $try -lt 3000"
        )
        assert unit.wait(600) != 0
    # The killed run's archive either is complete or does not count; good archives are still there.
    now = archives(server)
    assert good in now or phase == "borg.* prune"
    assert restored(server) == paid
    paid = pay(server, 5)
    fine, said = nightly(server)
    assert fine, said
    assert restored(server) == paid
    assert unfinished(server) == []


# --- the backup host ------------------------------------------------------------------------------


def refused(server: Target, **data: Any) -> str:
    """The error line of a run with wrong settings of the backup host."""
    before = server.run("sha256sum /etc/borgmatic/*")
    result = server.pyinfra.imported.call(
        "-y",
        *[
            word
            for key, value in (DATA | data).items()
            for word in (
                "--data",
                f"{key}={value if isinstance(value, str) else json.dumps(value)}",
            )
        ],
        *server.arguments(),
        "tasks/borg.py",
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert server.run("sha256sum /etc/borgmatic/*") == before
    lines = [
        line.partition("] ")[2]
        for line in result.stderr.splitlines()
        if re.search(r"\] (borg_|there is no repository)", line)
    ]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.promise(
    "Backup settings that do not open the repository never replace settings that do"
)
@pytest.mark.long
def test_settings_that_do_not_open_the_repository_replace_nothing(
    hosts: tuple[Target, Target],
) -> None:
    server, storage = hosts
    server.deploy("tasks/borg.py", **DATA)
    place = str(DATA["borg_repository"])
    identity = server.run("grep -oE '[0-9a-f]{64}' /var/lib/terrafirma/backup/repositories.json")
    wrong = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEtc7dzGLmWBcFXg3rKhPvNGlYEIbGMVOHNvyMHwYfJt"
    address = storage.address
    # Lift the forced command of the key, which would run borg whatever program is asked for.
    keys = "/home/box/.ssh/authorized_keys"
    storage.run(f"cp -p {keys} /root/ && sed -i 's/^command=.*restrict ssh/ssh/' {keys}")
    assert "has no program /opt/bin/borg" in refused(server, borg_remote_path="/opt/bin/borg")
    storage.run(f"cp -p /root/authorized_keys {keys}")
    assert "shows another key" in refused(server, borg_known_hosts=[f"{address} {wrong}"])
    assert re.search(
        r"no \S+ key is declared for .*SHA256", refused(server, borg_known_hosts=[f"other {wrong}"])
    )
    assert "the name nowhere.invalid does not resolve" in refused(
        server, borg_repository="ssh://box@nowhere.invalid/./a"
    )
    assert "port 2: no SSH server" in refused(
        server, borg_repository=f"ssh://box@{address}:2/./a",
        borg_known_hosts=[f"[{address}]:2 {wrong}"],
    )  # fmt: skip
    key = server.run("cut -d' ' -f2 /etc/terrafirma/secrets/borg/id_ed25519.pub")
    assert key in refused(server, borg_repository=place.replace("box@", "root@"))
    assert "may not use /home/box/other" in refused(
        server, borg_repository=place.replace("ledger", "other")
    )
    # The old settings still work.
    assert server.plan("tasks/borg.py", **DATA) == []
    assert nightly(server)[0]
    # The repository moves, which its id in the settings confirms for one run.
    storage.run(
        "mkdir -p /home/box/a && mv /home/box/ledger.borg /home/box/a/ && chown box: /home/box/a &&"
        f" sed -i 's,/home/box/ledger.borg,/home/box,; s,repository,path,' {keys}"
    )
    fine, said = nightly(server)
    assert not fine
    assert "there is no repository at borg_repository" in said
    moved = place.replace("/home/box/", "/home/box/a/")
    assert f'set borg_repository_id = "{identity}"' in refused(server, borg_repository=moved)
    server.deploy(
        "tasks/borg.py", **DATA | {"borg_repository": moved, "borg_repository_id": identity}
    )
    fine, said = nightly(server)
    assert fine, said
    # A new repository needs the old one's id as well, even if directories have to be created.
    new = place.replace("/home/box/", "/home/box/a/b/c/")
    assert f'borg_repository_replaces = "{identity}"' in refused(server, borg_repository=new)
    data = DATA | {"borg_repository": new, "borg_repository_replaces": identity}
    server.deploy("tasks/borg.py", **data)
    assert len(archives(server)) == 1
    assert server.plan("tasks/borg.py", **data) == []
    # The nightly backup creates no new repository in place of one that is gone.
    storage.run("rm -r /home/box/a/b/c/ledger.borg")
    assert "there is no repository" in nightly(server)[1]
    assert not storage.run("ls /home/box/a/b/c")

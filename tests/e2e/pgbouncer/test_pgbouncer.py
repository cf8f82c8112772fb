"""PgBouncer: many clients share few connections, and access stays as in PostgreSQL."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import DEPLOYED, clone
from tests.e2e.support import (
    Container,
    Target,
    api,
    changed,
    eventually,
    get,
    load,
    open_ports,
    options,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.budget(minutes=4, why="rotations under load, and a boot"),
]

POOL = 8
DATA: dict[str, Any] = {
    "pgbouncer_enabled": True,
    "pgbouncer_pool_size": POOL,
    **api(pgbouncer=True),
}
TASK = "tasks/pgbouncer.py"
STARTED = "systemctl show --value --property ActiveEnterTimestampMonotonic pgbouncer.service"


@dataclass(frozen=True)
class Pooled:
    """A server after its first run, with the output of that run, a second run and a dry run."""

    server: Target
    first: str
    second: dict[str, Any]
    plan: list[str]


@pytest.fixture(scope="module")
def pooled(pyinfra: Pyinfra) -> Iterator[Pooled]:
    with clone(pyinfra, "tf-test-pgbouncer", 2417, DEPLOYED) as server:
        first = pyinfra.call(
            "-y", "-vvv", "--diff", *options(DATA), *server.arguments(), "deploy.py"
        )
        assert first.returncode == 0, first.stderr
        yield Pooled(
            server=server,
            first=first.stdout + first.stderr,
            second=server.deploy(**DATA),
            plan=server.plan(**DATA),
        )


def in_container(server: Target, program: str, *arguments: str, network: str = "apps") -> Any:
    """The JSON that `program` printed in a container on the server."""
    image = server.run("docker image ls --quiet terrafirma/api | head -n 1")
    answer = server.run(
        f"docker run --rm -i --network {network} --add-host host.docker.internal:host-gateway"
        f" --entrypoint python3 {image} - {shlex.join(arguments)}",
        stdin=program,
    )
    return json.loads(answer)


def password(server: Target) -> str:
    return server.run("cat /etc/terrafirma/secrets/postgres/api")


LOGINS = """
import json, sys
import psycopg

known = {"host": "host.docker.internal", "port": 6432, "user": "api", "dbname": "api"}
answers = []
for case in json.loads(sys.argv[1]):
    try:
        with psycopg.connect(**known | case, connect_timeout=5) as connection:
            answers.append(connection.execute("select current_user").fetchone()[0])
    except psycopg.Error as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def logins(server: Target, *cases: dict[str, str], network: str = "apps") -> list[str]:
    """The role of each of `cases` in PostgreSQL, or why PgBouncer refused it."""
    known = {"password": password(server)}
    text = json.dumps([known | case for case in cases])
    return [str(answer) for answer in in_container(server, LOGINS, text, network=network)]


def console(server: Target, command: str) -> str:
    return server.run(
        f"runuser -u postgres -- psql -XAtq -p 6432 -U pgbouncer pgbouncer -c {command!r}"
    )


def serves(server: Target, outsider: Container) -> bool:
    try:
        answers = get(outsider, server, 8)
    except AssertionError:
        return False
    return {status for status, _ in answers} == {200}


def test_the_application_answers_through_the_pooler(pooled: Pooled, outsider: Container) -> None:
    server = pooled.server
    assert {status for status, _ in get(outsider, server, 20)} == {200}
    assert ":6432/api" in server.run("cat /etc/terrafirma/secrets/app/api/database_url")
    # PostgreSQL sees no replica, only the pooler.
    seen = server.psql("select distinct client_addr from pg_stat_activity where usename = 'api'")
    assert seen == "127.0.0.1"


def test_a_second_run_changes_nothing(pooled: Pooled) -> None:
    assert changed(pooled.second) == []
    assert pooled.plan == []
    assert changed(pooled.server.deploy(TASK, **DATA)) == []


CROWD = """
import asyncio, json, sys
import psycopg

url, clients, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

async def client(ready, go):
    connection = await psycopg.AsyncConnection.connect(
        url, autocommit=True, prepare_threshold=0, connect_timeout=30
    )
    ready.append(connection)
    await go.wait()
    pids = set()
    for number in range(rounds):
        cursor = await connection.execute(
            "select pg_backend_pid(), %s::int + 1, pg_sleep(0.01)", [number]
        )
        pid, answer, _ = await cursor.fetchone()
        assert answer == number + 1
        pids.add(pid)
    return pids

async def main():
    ready, go = [], asyncio.Event()
    crowd = [asyncio.create_task(client(ready, go)) for _ in range(clients)]
    while len(ready) < clients and not any(one.done() for one in crowd):
        await asyncio.sleep(0.05)
    at_once = len(ready)
    go.set()
    pids = await asyncio.gather(*crowd)
    print(json.dumps({
        "at once": at_once,
        "servers": len(set().union(*pids)),
        "most of one client": max(map(len, pids)),
    }))

asyncio.run(main())
"""


@pytest.mark.promise(
    "With PgBouncer, 200 clients share a handful of connections, prepared statements included"
)
def test_many_clients_share_few_connections(pooled: Pooled) -> None:
    """Twice as many clients as PostgreSQL accepts; each one prepares its statement once."""
    url = f"postgresql://api:{password(pooled.server)}@host.docker.internal:6432/api"
    answer = in_container(pooled.server, CROWD, url, "200", "5")
    assert answer["at once"] == 200
    assert answer["servers"] <= POOL
    # Prepared on one connection, executed on another.
    assert answer["most of one client"] > 1


@pytest.fixture(scope="module")
def stranger(pooled: Pooled) -> dict[str, str]:
    """A role that was created by hand, with a password and a database of its own."""
    pooled.server.psql("create role other login password 'of-its-own'")
    pooled.server.psql("create database other owner other")
    return {"user": "other", "password": "of-its-own"}


@pytest.mark.promise("PgBouncer refuses every client that PostgreSQL would refuse")
@pytest.mark.parametrize("network", ["bridge", "apps"])
def test_all_other_clients_are_refused(
    pooled: Pooled, stranger: dict[str, str], network: str
) -> None:
    cases = {
        "right": ({}, "api"),
        "password": ({"password": "wrong"}, "SASL authentication failed"),
        "database": ({"dbname": "postgres"}, "login rejected"),
        "by hand": ({"dbname": "other"}, "login rejected"),
        "nowhere": ({"dbname": "nowhere"}, "login rejected"),
        "superuser": ({"user": "postgres"}, "login rejected"),
        "undeclared": (stranger | {"dbname": "other"}, "login rejected"),
        "undeclared, here": (stranger, "login rejected"),
        "console": ({"dbname": "pgbouncer"}, "not allowed"),
        "its user": ({"dbname": "pgbouncer", "user": "pgbouncer"}, "login rejected"),
        "its superuser": ({"dbname": "pgbouncer", "user": "postgres"}, "login rejected"),
    }  # fmt: skip
    answers = logins(pooled.server, *(how for how, _ in cases.values()), network=network)
    for (what, (_, expected)), answer in zip(cases.items(), answers, strict=True):
        assert expected in answer, what
        # PgBouncer refused without asking PostgreSQL.
        assert "pg_hba.conf" not in answer, what


def test_the_pooler_listens_for_containers_and_the_host_only(
    pooled: Pooled, outsider: Container
) -> None:
    server = pooled.server
    assert open_ports(outsider, server, 22, 5432, 6432) == [22]
    docker0 = server.run("ip -4 -oneline address show dev docker0").split()[3].split("/")[0]
    listening = server.run("ss -Hltn 'sport = :6432' | awk '{ print $4 }'").split()
    assert {f"{docker0}:6432", "127.0.0.1:6432"} <= set(listening)
    assert set(listening) <= {f"{docker0}:6432", "127.0.0.1:6432", "[::1]:6432"}


def test_the_console_is_open_to_the_system_user_postgres_only(pooled: Pooled) -> None:
    assert "api|api|" in console(pooled.server, "show pools")
    # Not even root may use it, and the socket opens no database without a password.
    for who, database in (("pgbouncer", "pgbouncer"), ("postgres", "pgbouncer"), ("api", "api")):
        for account in ("root", "prod", "postgres"):
            if (who, account) == ("pgbouncer", "postgres"):
                continue
            result = pooled.server.call(
                f"runuser -u {account} -- psql -XAtq -h /run/postgresql -p 6432 -U {who} {database}"
            )
            assert "login rejected" in result.stderr, (who, account)


def test_a_setting_changes_while_clients_stay_connected(pooled: Pooled) -> None:
    server = pooled.server
    pid = "systemctl show --value --property MainPID pgbouncer.service"
    first = server.run(pid)
    data = DATA | {
        "pgbouncer_max_clients": 900,
        "pgbouncer_settings": {"query_wait_timeout": 60},
        "postgres_roles": [{"name": "api", "connection_limit": 3}],
    }
    assert server.plan(TASK, **data) == ["Configure the pools", "Run PgBouncer"]
    assert changed(server.deploy(TASK, **data)) == ["Configure the pools", "Run PgBouncer"]
    eventually(lambda: "max_client_conn|900|" in console(server, "show config"), 5)
    assert "query_wait_timeout|60|" in console(server, "show config")
    assert server.run(pid) == first
    # The pool of a role respects the role's own limit.
    server.psql("alter role api connection limit 3")
    server.psql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'api'")
    url = f"postgresql://api:{password(server)}@host.docker.internal:6432/api"
    answer = in_container(server, CROWD, url, "50", "5")
    assert (answer["at once"], answer["servers"] <= 3) == (50, True)
    server.psql("alter role api connection limit -1")
    # A setting that PgBouncer reads only when it starts.
    data = DATA | {"pgbouncer_settings": {"listen_backlog": 256}}
    assert changed(server.deploy(TASK, **data)) == [
        *("Configure the pools", "Configure where PgBouncer listens", "Run PgBouncer"),
    ]
    assert server.run(pid) != first
    assert "listen_backlog|256|" in console(server, "show config")
    server.deploy(TASK, **DATA)


@pytest.mark.parametrize(
    "settings",
    # One of each file.
    [{"no_such_setting": 1}, {"pkt_buf": "much"}],
)
def test_a_broken_file_never_replaces_a_good_one(pooled: Pooled, settings: dict[str, Any]) -> None:
    server = pooled.server
    files = "sha256sum /etc/pgbouncer/*"
    before = server.run(files)
    data = options(DATA | {"pgbouncer_settings": settings})
    result = server.pyinfra.imported.call("-y", *data, *server.arguments(), TASK)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    (name,) = settings
    assert name in result.stderr
    assert server.run(files) == before
    # Nothing of the trial is left.
    assert server.run("pgrep --count --exact pgbouncer") == "1"
    assert server.run("ls -d /tmp/tmp.* 2> /dev/null || true") == ""


def test_no_secret_is_shown_by_the_most_verbose_run(pooled: Pooled) -> None:
    server = pooled.server
    server.run("rm /etc/pgbouncer/userlist.txt /etc/terrafirma/secrets/app/api/database_url")
    again = server.pyinfra.imported.call(
        "-y", "-vvv", "--diff", *options(DATA), *server.arguments(), TASK, "tasks/app.py"
    )
    assert again.returncode == 0, again.stderr
    assert server.run("stat -c %a:%U:%G /etc/pgbouncer/userlist.txt") == "640:root:postgres"
    said = pooled.first + again.stdout + again.stderr
    verifier = server.psql("select rolpassword from pg_authid where rolname = 'api'")
    assert verifier in server.run("cat /etc/pgbouncer/userlist.txt")
    for secret in (password(server), verifier, *verifier.replace(":", "$").split("$")[2:]):
        assert len(secret) >= 24
        assert secret not in said
    assert "postgres" not in server.run('grep -o \'^"[^"]*"\' /etc/pgbouncer/userlist.txt')


def test_the_pooler_comes_back_after_a_kill(pooled: Pooled, outsider: Container) -> None:
    server = pooled.server
    pid = server.run("systemctl show --value --property MainPID pgbouncer.service")
    server.run(f"kill -9 {pid}")
    eventually(lambda: server.call("systemctl is-active pgbouncer.service").returncode == 0, 10)
    assert server.run("systemctl show --value --property MainPID pgbouncer.service") != pid
    eventually(lambda: serves(server, outsider), 30)


def test_the_pooler_survives_a_restart_of_postgresql(pooled: Pooled, outsider: Container) -> None:
    before = pooled.server.run(STARTED)
    pooled.server.run("systemctl restart postgresql@17-main")
    eventually(lambda: serves(pooled.server, outsider), 10)
    assert pooled.server.run(STARTED) == before


@pytest.mark.long
def test_the_pooler_comes_back_after_a_reboot(pooled: Pooled, outsider: Container) -> None:
    server = pooled.server
    listening = "ss -Hltn 'sport = :6432' | awk '{ print $4 }' | sort"
    before = server.run(listening)
    server.reboot()
    eventually(lambda: serves(server, outsider), 60)
    assert server.run(listening) == before
    assert changed(server.deploy(TASK, **DATA)) == []


@pytest.mark.long
def test_a_rotated_password_costs_no_request(pooled: Pooled, outsider: Container) -> None:
    server = pooled.server
    old = password(server)
    with load(outsider, server, rate=200) as seen:
        server.deploy("commands/postgres_rotate.py", **DATA, rotate="api")
    assert seen["failed"] == []
    assert seen["requests"] > 500
    assert password(server) != old
    assert changed(server.deploy(**DATA)) == []
    assert "SASL authentication failed" in logins(server, {"password": old})[0]
    assert server.run("grep -c '~' /etc/pgbouncer/userlist.txt || true") == "0"


def test_a_new_password_reaches_the_pooler_with_the_next_run(pooled: Pooled) -> None:
    server = pooled.server
    old, started = password(server), server.run(STARTED)
    server.run("rm /etc/terrafirma/secrets/postgres/api")
    assert changed(server.deploy("tasks/postgres.py", **DATA)) == ["Give the roles their passwords"]
    # By a reload: clients stay.
    assert server.plan(TASK, **DATA) == ["Let PostgreSQL's roles log in", "Run PgBouncer"]
    assert changed(server.deploy(TASK, **DATA)) == [
        *("Let PostgreSQL's roles log in", "Run PgBouncer"),
    ]
    assert server.run(STARTED) == started
    assert changed(server.deploy(TASK, **DATA)) == []
    # New connections to PostgreSQL use the new password, too.
    server.psql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'api'")
    eventually(lambda: logins(server, {})[0] == "api", 10)
    assert "SASL authentication failed" in logins(server, {"password": old})[0]


def test_the_pooler_is_stopped_when_it_is_disabled(pooled: Pooled, outsider: Container) -> None:
    server = pooled.server
    direct = DATA | api(pgbouncer=False)
    # With the password of the last test, too.
    assert changed(server.deploy("tasks/app.py", **direct)) == [
        *("Give api the address of its database", "Release api, 4 replicas"),
    ]
    assert server.plan(TASK) == ["Stop PgBouncer, which is no longer enabled"]
    assert changed(server.deploy(TASK)) == ["Stop PgBouncer, which is no longer enabled"]
    state = server.call("systemctl is-active pgbouncer; systemctl is-enabled pgbouncer").stdout
    assert state.split() == ["inactive", "disabled"]
    assert server.deploy(TASK)["results"]["operations"] == []
    eventually(lambda: serves(server, outsider), 30)
    # The package stays, and with it the way back.
    assert changed(server.deploy(TASK, **direct)) == ["Run PgBouncer"]
    assert logins(server, {}) == ["api"]

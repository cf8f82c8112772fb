"""PgBouncer as a run plans it: it follows PostgreSQL's rules and addresses."""

import json
import re
from collections.abc import Sequence
from subprocess import CompletedProcess
from typing import Any

import pytest

from terrafirma.host.units import Unit
from terrafirma.pgbouncer.facts import ForeignPooler, UserList
from tests.conftest import Pyinfra
from tests.unit.fake_host import (
    DEBIAN_12,
    DEBIAN_13,
    ON_172,
    POOLED,
    api,
    command,
    commands,
    fake,
    kept,
    machine,
    refuses,
    written,
)

# --- they refuse ----------------------------------------------------------------------------------

# What is wrong; the task; the host; the key, and words of the message.
REFUSALS: dict[str, tuple[str, list[str], Sequence[str]]] = {
    "a pooler on PostgreSQL's port": (
        "tasks/pgbouncer",
        fake(machine(), **POOLED, pgbouncer_port=5432),
        ("pgbouncer_port: ", "5432 is taken by postgres_port; take another"),
    ),
    "a pooler on an application's port": (
        "tasks/app",
        fake(machine(), **POOLED, pgbouncer_port=8003, **api(port=8000)),
        ("apps.api.port: ", "8003 is taken by pgbouncer_port; take another, or leave it out"),
    ),
    "a pooler on an application's port during deploy.py": (
        "deploy",
        fake(machine(), **POOLED, pgbouncer_port=8127, **api(port=8000)),
        ("apps.api.port: ", "8127 is taken by pgbouncer_port; take another, or leave it out"),
    ),
    **{
        f"a pooler on a port that an application has on the host, beside {page}": (
            page,
            fake(machine() | kept(api=8000), **POOLED, pgbouncer_port=8127),
            ("pgbouncer_port: ", "8127 belongs to api, which has had 8000 to 8127", "take another"),
        )
        for page in ("tasks/caddy", "tasks/app", "deploy")
    },
    "disabling a pooler that an application uses": (
        "tasks/pgbouncer",
        fake(machine(DEBIAN_13, "pooler=ours"), **api(pgbouncer=True)),
        ("apps.api.pgbouncer: ", "pgbouncer_enabled is False"),
    ),
    "a pooler that Terrafirma did not set up": (
        "tasks/pgbouncer",
        fake(machine() | {command(ForeignPooler): ["foreign"]}, **POOLED),
        ("pgbouncer_enabled: ", "/etc/pgbouncer/pgbouncer.ini", "not ours", "move it away"),
    ),
    **{
        f"pools that do not fit beside {page}": (
            page,
            fake(machine(), **POOLED, pgbouncer_pool_size=51),
            (
                "postgres_max_connections: ",
                "100 is too few: api 4 replicas x 5 x 2 releases = 40, 1 pools of PgBouncer = 51",
                "set it to 152 or more, or lower apps.*.connections and pgbouncer_pool_size",
            ),
        )
        for page in ("tasks/postgres", "tasks/app", "deploy")
    },
    "pools alone that do not fit": (
        "tasks/postgres",
        fake(machine(), **POOLED, **api(pgbouncer=True), pgbouncer_pool_size=91),
        (
            "postgres_max_connections: ",
            "100 is too few: 1 pools of PgBouncer = 91, 91 while a password is renewed, ",
            "set it to 192 or more",
            "or lower pgbouncer_pool_size",
        ),
    ),
    "a database of the console's name": (
        "tasks/pgbouncer",
        fake(
            machine(),
            **POOLED,
            **api(database="pgbouncer"),
            postgres_databases=[{"name": "pgbouncer", "owner": "api"}],
        ),
        ("postgres_databases: ", "'pgbouncer' is the name of PgBouncer's console"),
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses_in_one_line_before_anything_changes(
    refused: dict[str, CompletedProcess[str]], what: str
) -> None:
    refuses(refused[what], REFUSALS[what][2])


# --- the pooler -----------------------------------------------------------------------------------


def test_a_pooler_that_is_not_enabled_costs_no_question(pyinfra: Pyinfra) -> None:
    bare = pyinfra.call("@fake/host", "tasks/pgbouncer.py", "-y", "-vv", *fake(machine()))
    # The one command asks for the machine.
    assert len(commands(bare)) == 1
    assert json.loads(bare.stdout)["results"]["operations"] == []


def test_a_pooler_that_is_no_longer_enabled_is_stopped(pyinfra: Pyinfra) -> None:
    runs = {command(Unit, unit="pgbouncer.service"): ["ActiveState=active", "started"]}
    host = fake(machine(DEBIAN_13, "pooler=ours") | runs)
    result = pyinfra.call("@fake/host", "tasks/pgbouncer.py", "-y", "-vv", *host)
    assert commands(result)[-1] == "systemctl disable --quiet --now pgbouncer.service"
    (operation,) = json.loads(result.stdout)["results"]["operations"]
    assert operation["name"] == "Stop PgBouncer, which is no longer enabled"
    assert operation["success"] == ["@fake/host"]


def test_the_pooler_has_postgresqls_rules_and_addresses(pyinfra: Pyinfra) -> None:
    roles = [{"name": "api"}, {"name": "web", "connection_limit": 7}, {"name": "other"}]
    databases = [
        {"name": "api", "owner": "api", "access": {"web": "write"}},
        {"name": "shop", "owner": "api"},
    ]
    answers = machine() | ON_172
    host = fake(
        answers,
        **POOLED,
        postgres_max_connections=140,
        postgres_roles=roles,
        postgres_databases=databases,
    )
    result = pyinfra.call("@fake/host", "tasks/pgbouncer.py", "--dry", "--diff", "-vv", *host)
    assert "listen_addr = localhost,172.17.0.1" in written(result, "/etc/pgbouncer/pgbouncer.ini")
    theirs = pyinfra.call("@fake/host", "tasks/postgres.py", "--dry", "--diff", *host)
    clients = [
        [line for line in written(run, path).splitlines() if line.endswith("scram-sha-256")]
        for run, path in (
            (result, "/etc/pgbouncer/hba.conf"),
            (theirs, "/etc/postgresql/17/main/pg_hba.conf"),
        )
    ]
    assert clients[0] == clients[1] != []
    visitors = {tuple(line.split()[1:3]) for line in clients[0]}
    assert visitors == {("api", "api,api~"), ("api", "web,web~"), ("shop", "api,api~")}
    pools = written(result, "/etc/pgbouncer/terrafirma.ini")
    assert re.findall(r"^(\w+) = host=", pools, re.MULTILINE) == ["api", "shop"]
    assert re.findall(r"^(\w+) = max_user_connections=(\d+)$", pools, re.MULTILINE) == [
        ("web", "7")
    ]
    # The user list has only roles that connect to at least one database.
    assert command(UserList, version=17, roles=["api", "web"]) in commands(result)


def test_old_poolers_get_no_setting_for_prepared_statements(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    hosts = inventory(
        trixie=(machine(), POOLED), bookworm=(machine(DEBIAN_12), {"apps": {}, **POOLED})
    )
    result = pyinfra.call(hosts, "tasks/pgbouncer.py", "--dry", "--diff")
    pools = "/etc/pgbouncer/terrafirma.ini"
    assert "max_prepared_statements = 200" in written(result, pools, "trixie")
    assert "max_prepared_statements" not in written(result, pools, "bookworm")


def test_the_pooler_is_reloaded_for_users_and_rules(pyinfra: Pyinfra) -> None:
    """It is restarted for settings that it reads only when it starts."""
    unit = {
        "unit": "pgbouncer.service",
        "unit_files": ["/etc/systemd/system/pgbouncer.service.d/terrafirma.conf"],
        "restart_on": ["/etc/pgbouncer/pgbouncer.ini"],
        "reload_on": [
            *("/etc/pgbouncer/hba.conf", "/etc/pgbouncer/terrafirma.ini"),
            "/etc/pgbouncer/userlist.txt",
        ],
    }
    runs = ["ActiveState=active", "UnitFileState=enabled", "started"]
    for stale, ending in (
        ("stale_reload=/etc/pgbouncer/userlist.txt", "reload pgbouncer.service"),
        ("stale=/etc/pgbouncer/pgbouncer.ini", "restart pgbouncer.service"),
    ):
        answers = machine() | {command(Unit, **unit): [*runs, stale]}
        answers |= {command(UserList, version=17, roles=["api"]): ["right"]}
        result = pyinfra.call(
            "@fake/host", "tasks/pgbouncer.py", "-y", "-vv", *fake(answers, **POOLED)
        )
        assert ending in commands(result)[-1]

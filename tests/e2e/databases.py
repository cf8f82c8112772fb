"""PostgreSQL with several databases and roles, beside the example application."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import DEPLOYED, clone
from tests.e2e.support import Target, api, changed

GIVEN = "ann-has-chosen-this-one"
DATA: dict[str, Any] = api(replicas=2) | {
    "docker_networks": ["apps", "shop"],
    "postgres_roles": [
        {"name": "api"},
        {"name": "reader", "settings": {"statement_timeout": "20s"}},
        {"name": "writer"},
        {"name": "deployer"},
        {"name": "analysts", "login": False, "member_of": ["pg_monitor"]},
        {"name": "ann", "member_of": ["analysts"], "password": "env:TF_TEST_ANN"},
        {"name": "shop_owner", "login": False},
        {"name": "shop"},
        {"name": "retired"},
    ],
    "postgres_databases": [
        {
            "name": "api",
            "owner": "api",
            "access": {
                "reader": "read",
                "writer": "write",
                "deployer": "migrate",
                "analysts": "read",
            },
            "extensions": ["pg_trgm"],
            "settings": {"statement_timeout": "30s"},
            "connection_limit": 80,
        },
        {"name": "shop", "owner": "shop_owner", "access": {"shop": "write"}, "locale": "de-DE"},
    ],
}
POSTGRES = "tasks/postgres.py"
DENIED, REJECTED = "permission denied for", "pg_hba.conf rejects connection"
LISTEN, BOOT = "Let the server listen before Docker is up", "Start the cluster at boot"
ROLES, DATABASES, CONTENTS, ACCESS, RELOAD = (
    "Create the roles",
    "Create the databases",
    "Create extensions and give access",
    "Configure client access",
    "Run PostgreSQL",
)
UNDO, RESTART = "Undo what ALTER SYSTEM set", "Restart the server if a setting needs it"
PASSWORDS, PREPARE, CONFIGURE = (
    "Give the roles their passwords", "Prepare the host", "Configure the server",
)  # fmt: skip
HBA, CONF, START = (
    f"/etc/postgresql/17/main/{name}"
    for name in ("pg_hba.conf", "conf.d/terrafirma.conf", "start.conf")
)


@contextmanager
def database_server(pyinfra: Pyinfra, name: str, port: int) -> Iterator[Target]:
    with (
        pytest.MonkeyPatch.context() as patch,
        clone(pyinfra, name, port, DEPLOYED) as server,
    ):
        patch.setenv("TF_TEST_ANN", GIVEN)
        server.deploy(**DATA)
        server.psql("set role shop_owner; create table goods (name text);", "shop")
        # Other roles can read new tables of the owner at once, without another run.
        server.psql("set role api; create table notes (text text);", "api")
        assert changed(server.deploy(**DATA)) == []
        yield server


def password(server: Target, role: str) -> str:
    return server.run(f"cat /etc/terrafirma/secrets/postgres/{role}")


SESSIONS = """
import json, sys
import psycopg

host, cases = sys.argv[1], json.loads(sys.argv[2])
answers = []
for user, password, database, sql in cases:
    try:
        with psycopg.connect(
            host=host, user=user, password=password, dbname=database, connect_timeout=5,
            autocommit=True,
        ) as connection:
            cursor = connection.execute(sql)
            row = cursor.fetchone() if cursor.description else ["done"]
            answers.append(str(row and row[0]))
    except psycopg.Error as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def sessions(
    server: Target, network: str, cases: list[tuple[str, str, str, str]],
    address: str = "host.docker.internal",
) -> list[str]:  # fmt: skip
    """PostgreSQL's answers to (role, password, database, SQL), from a container in `network`."""
    image = server.run("docker image ls --quiet terrafirma/api | head -n 1")
    answers: list[str] = json.loads(
        server.run(
            f"docker run --rm -i --network {network} --add-host host.docker.internal:host-gateway"
            f" --entrypoint python3 {image} - {address} {shlex.quote(json.dumps(cases))}",
            stdin=SESSIONS,
        )
    )
    return answers


# Makes PostgreSQL 15 installable from the same mirror as the other packages: as after an upgrade of
# the distribution, when the old packages stay.
BOOKWORM = r"""
set -e
apt-get update -q
apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 'Component: main' |
    sort -u | while read -r uri suite; do
        test "$suite" != trixie || echo "deb \
[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri bookworm main"
    done > /etc/apt/sources.list.d/bookworm.list
printf 'Package: *\nPin: release n=bookworm\nPin-Priority: 100\n' > /etc/apt/preferences.d/bookworm
apt-get update -q
"""

# Role, database, statement, and PostgreSQL's answer.
RIGHTS = [
    ("api", "api", "create table mine (id int)", "done"),
    ("api", "api", "select current_user", "api"),
    ("api", "api", "drop table mine", "done"),
    ("api", "shop", "select 1", REJECTED),
    ("api", "postgres", "select 1", REJECTED),
    ("api", "api", "create role other", "permission denied to create role"),
    ("api", "api", "create database other", "permission denied to create database"),
    ("api", "api", "select count(*) from pg_authid", f"{DENIED} table pg_authid"),
    ("api", "api", "copy (select 1) to program 'id'", "permission denied to COPY to or from"),
    ("api", "api", "select pg_read_file('/etc/passwd')", f"{DENIED} function pg_read_file"),
    ("writer", "api", "insert into notes values ('x')", "done"),
    ("writer", "api", "update notes set text = 'y'", "done"),
    ("writer", "api", "truncate notes", f"{DENIED} table notes"),
    ("writer", "api", "drop table notes", "must be owner of table notes"),
    ("writer", "api", "create table mine (id int)", f"{DENIED} schema public"),
    ("writer", "api", "create temporary table mine (id int)", "done"),
    ("writer", "shop", "select 1", REJECTED),
    ("reader", "api", "select text from notes limit 1", "y"),
    ("reader", "api", "insert into notes values ('x')", f"{DENIED} table notes"),
    ("reader", "api", "delete from notes", f"{DENIED} table notes"),
    ("reader", "api", "create table mine (id int)", f"{DENIED} schema public"),
    ("reader", "api", "create temporary table mine (id int)", "permission denied to create temp"),
    ("reader", "api", "show statement_timeout", "20s"),
    ("writer", "api", "show statement_timeout", "30s"),
    ("reader", "api", "set role api", 'permission denied to set role "api"'),
    ("ann", "api", "select text from notes limit 1", "y"),
    ("ann", "shop", "select 1", REJECTED),
    ("deployer", "api", "select current_user", "api"),
    ("deployer", "api", "create table if not exists later (id int)", "done"),
    ("deployer", "api", "select tableowner from pg_tables where tablename = 'later'", "api"),
    ("reader", "api", "select count(*) from later", "0"),
    ("deployer", "shop", "select 1", REJECTED),
    ("shop", "shop", "insert into goods values ('x')", "done"),
    ("shop", "shop", "drop table goods", "must be owner of table goods"),
    ("shop", "api", "select 1", REJECTED),
    ("shop_owner", "shop", "select 1", REJECTED),
    ("retired", "api", "select 1", REJECTED),
    ("postgres", "api", "select 1", REJECTED),
    ("postgres", "postgres", "select 1", REJECTED),
    ("nobody", "api", "select 1", REJECTED),
]

NEIGHBOUR, OUTSIDE = (
    "a neighbour, through docker0's address",
    "a neighbour, at the server's address",
)
OWN, WRONG = "its own", "a wrong one"
# Origin, role, owner of the password, database, and PostgreSQL's answer to `select current_user`.
LOGINS = [
    ("apps", "api", OWN, "api", "api"),
    ("apps", "shop", OWN, "shop", "shop"),
    ("shop", "api", OWN, "api", "api"),
    ("shop", "shop", OWN, "shop", "shop"),
    ("apps", "api", OWN, "shop", REJECTED),
    ("shop", "shop", OWN, "api", REJECTED),
    ("apps", "api", WRONG, "api", 'password authentication failed for user "api"'),
    ("apps", "api", "shop's", "api", 'password authentication failed for user "api"'),
    ("shop", "shop", "api's", "shop", 'password authentication failed for user "shop"'),
    ("apps", "postgres", WRONG, "postgres", REJECTED),
    ("apps", "postgres", WRONG, "api", REJECTED),
    ("apps", "deployer, taken out of the settings", OWN, "api", REJECTED),
    ("apps", "reader, without `connect`", OWN, "api", 'permission denied for database "api"'),
    ("apps", "ann, `nologin`", OWN, "api", 'role "ann" is not permitted to log in'),
    (NEIGHBOUR, "api", OWN, "api", REJECTED),
    (NEIGHBOUR, "shop", OWN, "shop", REJECTED),
    (NEIGHBOUR, "postgres", WRONG, "postgres", REJECTED),
    (OUTSIDE, "api", OWN, "api", "Connection refused"),
    (OUTSIDE, "postgres", WRONG, "postgres", "Connection refused"),
]


LOGIN = """
import json, sys
import psycopg

host, user, password, database = sys.argv[1:]
try:
    with psycopg.connect(
        host=host, user=user, password=password, dbname=database, connect_timeout=5
    ) as connection:
        row = connection.execute("select current_user, host(inet_client_addr())").fetchone()
    print(json.dumps({"user": row[0], "address": row[1]}))
except psycopg.Error as error:
    print(json.dumps({"error": str(error)}))
"""


def login(server: Target, network: str, **how: str) -> dict[str, str]:
    """PostgreSQL's answer to a login from a container in `network`."""
    image = server.run("docker image ls --quiet terrafirma/api | head -n 1")
    who = {
        "host": "host.docker.internal",
        "user": "api",
        "password": server.run("cat /etc/terrafirma/secrets/postgres/api"),
        "database": "api",
    } | how
    answer: dict[str, str] = json.loads(
        server.run(
            f"docker run --rm -i --network {network} --add-host host.docker.internal:host-gateway"
            f" --entrypoint python3 {image} - {' '.join(who.values())}",
            stdin=LOGIN,
        )
    )
    return answer

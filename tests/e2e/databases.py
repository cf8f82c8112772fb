"""PostgreSQL with several databases and roles, beside the example application: what is asked."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import DEPLOYED, clone
from tests.e2e.support import Target, changed

GIVEN = "ann-has-chosen-this-one"
DATA: dict[str, Any] = {
    "app_replicas": 2,
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
LISTEN, BOOT = "Let it listen before Docker is up", "Start it at boot"
ROLES, DATABASES, CONTENTS, ACCESS, RELOAD = (
    "Create the roles",
    "Create the databases",
    "Create extensions and give access",
    "Configure client access",
    "Run PostgreSQL",
)
UNDO, RESTART = "Undo what ALTER SYSTEM set", "Restart it if a setting asks for that"
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
        # What the owner makes is the others' to read at once, without another run.
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
    """PostgreSQL's answer to each (role, password, database, SQL) of a container in `network`."""
    image = server.run("docker image ls --quiet terrafirma/api | head -n 1")
    answers: list[str] = json.loads(
        server.run(
            f"docker run --rm -i --network {network} --add-host host.docker.internal:host-gateway"
            f" --entrypoint python3 {image} - {address} {shlex.quote(json.dumps(cases))}",
            stdin=SESSIONS,
        )
    )
    return answers

"""The statements that operations send to psql over standard input: pyinfra does not print them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from terrafirma.postgres.facts import connect
from tests.conftest import Pyinfra

# A psql that answers the queries of facts, and records all other statements.
PSQL = """\
#!/bin/sh
input=$(cat)
case $input in
*datallowconn*'order by datname') cat "{directory}/connects" ;;
*relnamespace*) cat "{directory}/contents" ;;
*pg_auth_members*) cat "{directory}/roles" ;;
*pg_file_settings*) cat "{directory}/server" ;;
*) printf '%s\\n' "$input" "--" >> "{directory}/said" ;;
esac
"""
ROLE = {
    **dict.fromkeys(("superuser", "create_database", "create_role", "replication"), False),
    "login": True,
    "bypass_rls": False,
    "inherit": True,
    "expires": False,
    "connection_limit": -1,
    "member_of": [],
    "settings": [],
}
PUBLIC = {
    "owner": "pg_database_owner",
    "acl": [["public", "USAGE"]],
    "tables": 2,
    "sequences": 0,
    "table_acl": [["former", "SELECT", 2], ["stranger", "SELECT", 2]],
    "sequence_acl": [],
    "of_extension": False,
    "handed": [],
    "default_acl": [],
    "strangers": [["stranger", "r", 1]],
}
DATABASES: list[dict[str, Any]] = [
    {"name": "api", "owner": "own", "access": {"mig": "migrate"}},
    {"name": "shop", "owner": "shop_own", "access": {"mig": "migrate"}},
    # In this database `mig` acts as itself.
    {"name": "stats", "owner": "stats_own", "access": {"mig": "read"}},
]
DATA = {
    "postgres_roles": [
        {"name": "own", "login": False},
        {
            "name": "mig",
            "connection_limit": 5,
            "settings": {"jit": False},
            "member_of": ["pg_monitor"],
        },
        {"name": "shop_own", "login": False},
        {"name": "stats_own", "login": False},
        {"name": "former"},
    ],
    "postgres_databases": DATABASES,
    "apps": {},
}


@pytest.fixture
def said(pyinfra: Pyinfra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The statements of each command in a real run."""
    none: dict[str, Any] = {"default_acl": []}
    contents = [
        {"database": "postgres", "extensions": ["pg_stat_statements"], "schemas": {}, **none},
        {"database": "api", "extensions": ["plpgsql"], "schemas": {"public": PUBLIC}, **none},
        *(
            {
                "database": name,
                "extensions": ["plpgsql"],
                **none,
                "schemas": {"public": PUBLIC | {"tables": 0, "table_acl": [], "strangers": []}},
            }
            for name in ("shop", "stats")
        ),
    ]
    (tmp_path / "contents").write_text("".join(f"{json.dumps(one)}\n" for one in contents))
    (tmp_path / "connects").write_text("".join(f"{connect(one['database'])}\n" for one in contents))
    (tmp_path / "roles").write_text(json.dumps({"mig": ROLE}))
    server = {"pending": [], "restart": [], "by_hand": ["work_mem", "wal_level", "port"]}
    (tmp_path / "server").write_text(json.dumps(server))
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, script in (
        ("runuser", PSQL.format(directory=tmp_path)),
        ("pg_conftool", f"#!/bin/sh\necho {tmp_path}\n"),
    ):
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    # The process of the tests stands in for the server's.
    (tmp_path / "postmaster.pid").write_text(f"{os.getpid()}\n")
    monkeypatch.chdir(tmp_path)
    data = [
        word for key, value in DATA.items() for word in ("--data", f"{key}={json.dumps(value)}")
    ]
    result = pyinfra.call(
        *("@local", "tests/unit/postgres/deploy_postgres.py", "-y", *data),
        PATH=f"{programs}:{os.environ['PATH']}",
    )
    assert result.returncode == 0, result.stderr
    *scripts, end = (tmp_path / "said").read_text().split("--\n")
    assert end == ""
    return [script.splitlines() for script in scripts]


def test_the_statements_sent_to_psql(said: list[list[str]]) -> None:
    undo, access, twin = said
    assert undo == [
        "alter system reset port;",
        "alter system reset work_mem;",
        # The next session, which is asked for pending restarts, must start after the reload.
        "select pg_reload_conf();",
        "select pg_sleep(0.2);",
    ]
    # `former` is declared, without access. `stranger` is not declared, and keeps its rights.
    assert [line for line in access if "former" in line or "stranger" in line] == [
        'revoke select on all tables in schema "public" from "former";'
    ]
    assert access[:2] == ['\\connect "api"', "begin;"]
    no_more = "nosuperuser nocreatedb nocreaterole noreplication nobypassrls inherit"
    assert twin == [
        f"create role \"mig~\" login {no_more} connection limit -1 valid until 'infinity';",
        """alter role "mig~" set jit to 'off';""",
        # The role `mig` owns what `mig~` creates …
        """alter role "mig~" set role to 'mig';""",
        # … and passes its memberships on; `mig~` loses them together with `mig`.
        'grant "mig" to "mig~";',
        # Where `mig` acts as the owner, the owner owns it.
        'alter role "mig~" in database "api" set role to own;',
        'alter role "mig~" in database "shop" set role to shop_own;',
    ]

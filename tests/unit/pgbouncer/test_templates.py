"""PgBouncer's files: the clients it admits, and the databases it offers."""

from typing import Any

import pytest

from tests.unit.templates import NETWORKS, VISITORS, rendered, rules, settled


@pytest.mark.parametrize("networks", NETWORKS)
def test_the_pooler_admits_the_same_clients_as_postgresql(networks: list[dict[str, Any]]) -> None:
    data = {"networks": networks}
    local, *clients = [line.split() for line in settled(rendered("pgbouncer/hba.conf.j2", **data))]
    theirs = [rule for rule in rules(**data) if rule[-1] == "scram-sha-256"]
    # A line for each (database, role) and address.
    assert len(theirs) == len(VISITORS) * (2 + len(networks))
    assert [rule for rule in clients if rule[-1] == "scram-sha-256"] == theirs
    # The socket admits no client; the console needs no rule.
    assert local == ["local", "all", "all", "reject"]
    assert clients[len(theirs) :] == [
        ["host", "all", "all", "0.0.0.0/0", "reject"],
        ["host", "all", "all", "::/0", "reject"],
    ]


def sections(text: str) -> dict[str, list[str]]:
    """The lines of an ini file by section; lines before the first section under ""."""
    found: dict[str, list[str]] = {"": []}
    for line in settled(text):
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), [])
        else:
            (section if len(found) > 1 else found[""]).append(line)
    return found


def test_the_pooler_knows_the_declared_databases_and_no_others() -> None:
    found = sections(rendered("pgbouncer/terrafirma.ini.j2"))
    assert found["databases"] == [
        "api = host=127.0.0.1 port=5432 dbname=api",
        "jobs = host=127.0.0.1 port=5432 dbname=jobs",
    ]
    assert found["users"] == ["worker = max_user_connections=5"]
    assert "users" not in sections(rendered("pgbouncer/terrafirma.ini.j2", limits={}))


def test_the_pooler_pools_transactions_and_checks_passwords() -> None:
    settings = sections(rendered("pgbouncer/terrafirma.ini.j2"))[""]
    for line in (
        "pool_mode = transaction",
        "default_pool_size = 20",
        "max_client_conn = 1000",
        "auth_type = hba",
        "auth_hba_file = /etc/pgbouncer/hba.conf",
        "max_prepared_statements = 200",
    ):
        assert line in settings
    # The last line overrides earlier ones.
    assert settings[-1] == "query_wait_timeout = 10"
    text = rendered("pgbouncer/terrafirma.ini.j2") + rendered("pgbouncer/pgbouncer.ini.j2")
    for name in ("admin_users", "stats_users", "auth_user", "auth_query", "trust"):
        assert name not in text


def test_an_old_pooler_gets_no_setting_that_it_does_not_know() -> None:
    text = rendered("pgbouncer/terrafirma.ini.j2", prepared_statements=False, settings={})
    assert "max_prepared_statements" not in text
    assert "pgbouncer_settings" not in text


def test_the_file_for_a_start_includes_the_file_for_a_reload() -> None:
    """A second heading would reset the section, so the included file continues the first."""
    text = rendered("pgbouncer/pgbouncer.ini.j2")
    found = sections(text)
    assert list(found) == ["", "pgbouncer"]
    assert found["pgbouncer"] == [
        "listen_addr = localhost,10.210.0.1",
        "listen_port = 6432",
        "unix_socket_dir = /run/postgresql",
        "listen_backlog = 512",
        "%include /etc/pgbouncer/terrafirma.ini",
    ]
    assert "[pgbouncer]" not in settled(rendered("pgbouncer/terrafirma.ini.j2"))

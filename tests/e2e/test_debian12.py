"""Debian 12: everything but applications, for which its archive lacks Docker Compose v2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import STORAGE, admit, clone
from tests.e2e.support import Container, Target, changed, open_ports, target

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with target(pyinfra, "tf-test-debian12", 2414, "debian12") as bare:
        yield bare


@pytest.fixture(scope="module")
def storage(pyinfra: Pyinfra) -> Iterator[Target]:
    with clone(pyinfra, "tf-test-debian12-store", 2459, STORAGE) as backup_host:
        yield backup_host


def test_the_application_is_refused_in_one_line(server: Target) -> None:
    assert (
        "127.0.0.1: apps: Debian GNU/Linux 12 (bookworm)'s archive has no Docker Compose v2; use "
        in server.refuse()
    )
    assert server.call("command -v docker || command -v psql").returncode != 0


def test_everything_else_converges(server: Target, outsider: Container) -> None:
    assert changed(server.deploy(apps={}))
    assert changed(server.deploy(apps={})) == []
    assert server.plan(apps={}) == []
    assert server.psql("show server_version").startswith("15.")
    assert server.psql("show data_checksums") == "on"
    docker0 = server.run("ip -4 -oneline address show dev docker0").split()[3].split("/")[0]
    assert server.psql("show listen_addresses") == f"localhost,{docker0}"
    assert open_ports(outsider, server, 22, 5432) == [22]


def test_the_older_pooler_works(server: Target) -> None:
    data: dict[str, Any] = {"apps": {}, "pgbouncer_enabled": True}
    assert changed(server.deploy("tasks/pgbouncer.py", **data))[-1] == "Run PgBouncer"
    assert changed(server.deploy("tasks/pgbouncer.py", **data)) == []
    login = (
        "PGPASSWORD=$(cat /etc/terrafirma/secrets/postgres/api) psql -XAtqw -h localhost -p 6432"
    )
    assert server.run(f"{login} -U api api -c 'select current_user'") == "api"
    assert "login rejected" in server.call(f"{login} -U api postgres -c 'select 1'").stderr
    wrong = login.replace("$(", "x$(")
    assert "SASL authentication failed" in server.call(f"{wrong} -U api api -c 'select 1'").stderr
    docker0 = server.run("ip -4 -oneline address show dev docker0").split()[3].split("/")[0]
    listening = server.run("ss -Hltn 'sport = :6432' | awk '{ print $4 }'").split()
    assert {f"{docker0}:6432", "127.0.0.1:6432"} <= set(listening)
    assert not {"0.0.0.0:6432", "*:6432", "[::]:6432"} & set(listening)
    stopped = server.deploy("tasks/pgbouncer.py", apps={})
    assert changed(stopped) == ["Stop PgBouncer, which is no longer enabled"]


def test_a_backup_is_made_and_listed(server: Target, storage: Target) -> None:
    repository = "/home/box/debian12.borg"
    # The volume of an application that is no longer in the settings, and one of somebody else.
    for name, words in (("old_files", "--label terrafirma.app=old"), ("theirs", "")):
        server.run(f"docker volume create {words} {name}")
        server.run(f"touch /var/lib/docker/volumes/{name}/_data/file")
    data = admit(storage, server, repository) | {"apps": {}}
    assert changed(server.deploy("tasks/borg.py", **data))[-1] == "Make and verify a first backup"
    assert changed(server.deploy("tasks/borg.py", **data)) == []
    passphrase = server.run("cat /etc/terrafirma/secrets/borg/passphrase")
    borg = (
        "export BORG_RELOCATED_REPO_ACCESS_IS_OK=yes BORG_PASSPHRASE=$(cat); "
        f"borg list {repository}::$(borg list --short {repository})"
    )
    listed = storage.run(borg, stdin=passphrase)
    assert "postgresql_databases" in listed
    assert "/api" in listed
    assert "volumes/old_files/_data/file" in listed
    assert "volumes/theirs" not in listed


def test_killed_services_come_back(server: Target) -> None:
    for pid in (
        "head -n 1 /var/lib/postgresql/15/main/postmaster.pid",
        "systemctl show --value --property MainPID caddy.service",
        "systemctl show --value --property MainPID docker.service",
    ):
        server.run(f"kill -9 $({pid})")
    server.run(
        "for i in $(seq 60); do runuser -u postgres -- psql -c 'select 1' && docker ps"
        " && systemctl is-active caddy && exit; sleep 0.5; done; exit 1"
    )


def test_the_status_of_its_postgresql_is_shown(server: Target) -> None:
    result = server.pyinfra.call("-y", *server.arguments(), "commands/postgres_status.py")
    assert result.returncode == 0, result.stderr
    assert "127.0.0.1: PostgreSQL 15." in result.stderr
    assert "psql:" not in result.stderr

"""Debian 12: everything that its archive has, which is all but Docker Compose v2."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Pyinfra
from tests.e2e.support import Container, Target, changed, open_ports, target

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with target(pyinfra, "tf-test-debian12", 2414, "debian12") as bare:
        yield bare


def test_the_application_is_refused_in_one_line(server: Target) -> None:
    assert (
        "app_source: Debian GNU/Linux 12 (bookworm)'s archive has no Docker Compose"
        in server.refuse()
    )
    assert server.call("command -v docker || command -v psql").returncode != 0


def test_everything_else_converges(server: Target, outsider: Container) -> None:
    assert changed(server.deploy(app_source=""))
    assert changed(server.deploy(app_source="")) == []
    assert server.plan(app_source="") == []
    assert server.psql("show server_version").startswith("15.")
    assert server.psql("show data_checksums") == "on"
    docker0 = server.run(
        "docker network inspect bridge --format '{{(index .IPAM.Config 0).Gateway}}'"
    )
    assert server.psql("show listen_addresses") == f"localhost,{docker0}"
    assert open_ports(outsider, server, 22, 5432) == [22]


def test_what_is_killed_comes_back(server: Target) -> None:
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

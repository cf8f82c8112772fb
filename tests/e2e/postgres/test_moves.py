"""PostgreSQL stays reachable when its port, Docker's networks or a password change."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.conftest import Pyinfra
from tests.e2e.databases import (
    ACCESS,
    CONF,
    DATA,
    POSTGRES,
    REJECTED,
    RELOAD,
    RESTART,
    SESSIONS,
    database_server,
    password,
    sessions,
)
from tests.e2e.support import (
    Container,
    Target,
    changed,
    eventually,
    get,
    is_releasing,
    load,
    networks,
    options,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.budget(minutes=5, why="changes of port, socket, addresses and networks; reboots"),
]


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with database_server(pyinfra, "tf-test-moves", 2427) as server:
        yield server


def restarts(operations: list[str]) -> bool:
    """Whether the restart is among them; in deploy.py their names begin with the task's."""
    return any(one.endswith(RESTART) for one in operations)


@pytest.mark.promise("One run moves PostgreSQL and its applications to another port")
def test_another_port_needs_one_run(server: Target, outsider: Container) -> None:
    data = DATA | {"postgres_port": 6543}
    assert restarts(server.plan("deploy.py", **data))
    assert restarts(changed(server.deploy(**data)))
    assert ":6543/api" in server.run("cat /etc/terrafirma/secrets/app/api/database_url")
    eventually(lambda: {status for status, _ in get(outsider, server, 8)} == {200}, 60)
    assert changed(server.deploy(**data)) == []
    assert restarts(changed(server.deploy(**DATA)))
    assert server.psql("show port") == "5432"


@pytest.mark.promise(
    "A run finds PostgreSQL at its old port and socket, even after a run that died before the "
    "restart"
)
@pytest.mark.long
def test_another_socket_and_a_run_that_died(server: Target) -> None:
    server.run("install -d -o postgres /run/elsewhere")
    data = DATA | {
        "postgres_port": 6544,
        "postgres_settings": {"unix_socket_directories": "/run/elsewhere, /tmp"},
    }
    expected = ["Configure the server", RELOAD, RESTART]
    assert server.plan(POSTGRES, **data) == expected
    assert changed(server.deploy(POSTGRES, **data)) == expected
    assert server.run("runuser -u postgres -- psql -h /run/elsewhere -p 6544 -Atc 'select 1'")
    assert server.plan(POSTGRES, **data) == []
    assert changed(server.deploy(POSTGRES, **data)) == []

    # One run died after it wrote the file, another one after the reload.
    server.deploy(POSTGRES, **DATA)
    for port, command, expected in (
        (6545, ":", [RELOAD, RESTART]),
        (6546, "systemctl reload postgresql@17-main && sleep 1 && mkdir -p /run/terrafirma"
         " && touch /run/terrafirma/postgresql@17-main.service.reloaded", [RESTART]),
    ):  # fmt: skip
        data = DATA | {"postgres_port": port}
        server.run(f"sed -i 's/^port = .*/port = {port}/' {CONF} && {command}")
        # The plan has nothing else: the facts reach the server at its old port.
        assert server.plan(POSTGRES, **data) == expected
        assert changed(server.deploy(POSTGRES, **data)) == expected
        assert server.run(f"runuser -u postgres -- psql -p {port} -Atc 'show port'") == str(port)
        assert changed(server.deploy(POSTGRES, **data)) == []

    assert restarts(changed(server.deploy(**DATA)))
    assert server.psql("show port") == "5432"
    assert changed(server.deploy(**DATA)) == []


def test_replicas_follow_docker0(server: Target, outsider: Container) -> None:
    """A container whose /etc/hosts has an address that the host no longer has is replaced."""
    for name in server.run("docker ps -q --filter label=terrafirma.release").split():
        hosts = server.run(f"docker inspect --format '{{{{.HostsPath}}}}' {name}")
        server.run(f"sed -i 's/^[0-9.]*\\(.host.docker.internal\\)/10.254.0.1\\1/' {hosts}")
    assert changed(server.deploy("tasks/app.py", **DATA)) == ["Release api, 2 replicas"]
    assert changed(server.deploy("tasks/app.py", **DATA)) == []
    assert {status for status, _ in get(outsider, server, 8)} == {200}


@pytest.mark.promise(
    "Containers reach PostgreSQL whether Docker or PostgreSQL starts first, and wherever "
    "docker0 moves, IPv6 included"
)
def test_postgresql_listens_whatever_starts_first_at_boot(
    server: Target, outsider: Container
) -> None:
    listening = server.psql("show listen_addresses").split(",")[1]
    server.run("systemctl disable --now docker.service docker.socket")
    server.reboot()
    sockets = f"ss -Hltn | grep -F '{listening}:5432'"
    eventually(lambda: server.call(sockets).returncode == 0, 60)
    assert server.call("systemctl is-active docker.service").returncode != 0
    assert server.call("ip link show docker0").returncode != 0
    server.run("systemctl enable --now docker.service docker.socket")
    case = [("api", password(server, "api"), "api", "select 1")]
    assert sessions(server, "bridge", case) == ["1"]
    eventually(lambda: {status for status, _ in get(outsider, server, 8)} == {200}, 60)
    # Units that wait for Docker at boot did not run.
    server.deploy(**DATA)
    assert changed(server.deploy(**DATA)) == []


@pytest.mark.promise("The next run restarts PostgreSQL if the connection broke before the restart")
def test_a_lost_connection_between_file_and_restart(server: Target) -> None:
    data = DATA | {"postgres_settings": {"max_wal_senders": 7}}
    cut = subprocess.Popen(
        ["docker", "exec", server.name, "bash", "-c",
         "until grep -q '^max_wal_senders = 7' /etc/postgresql/17/main/conf.d/terrafirma.conf;"
         " do :; done; pkill -9 -f '^sshd-session: root'"]
    )  # fmt: skip
    result = server.pyinfra.imported.call("-y", *options(data), *server.arguments(), POSTGRES)
    assert cut.wait(30) == 0
    assert result.returncode != 0
    assert server.psql("show max_wal_senders") == "10"
    announced = server.plan(POSTGRES, **data)
    assert RELOAD in announced or RESTART in announced
    assert RESTART in changed(server.deploy(POSTGRES, **data))
    assert server.psql("show max_wal_senders") == "7"
    assert changed(server.deploy(POSTGRES, **data)) == []
    server.deploy(POSTGRES, **DATA)


@pytest.mark.promise(
    "No request fails while a password is rotated, and the next run repairs a rotation that "
    "died half-way"
)
def test_a_rotated_password_costs_no_request(server: Target, outsider: Container) -> None:
    rotate = "commands/postgres_rotate.py"
    eventually(lambda: {status for status, _ in get(outsider, server, 8)} == {200}, 30)
    old = password(server, "api")
    with load(outsider, server, "/", "/visits/1", rate=200) as seen:
        time.sleep(1)
        server.deploy(rotate, **DATA, rotate="api")
        time.sleep(1)
    assert seen["failed"] == []
    assert seen["requests"] > 500
    new = password(server, "api")
    assert new != old
    first, second = sessions(
        server, "apps", [("api", old, "api", "select 1"), ("api", new, "api", "select 1")]
    )
    assert "password authentication failed" in first
    assert second == "1"
    assert server.psql("select count(*) from pg_roles where rolname like '%~'") == "0"
    assert changed(server.deploy(**DATA)) == []
    # New connections work as well.
    server.run("systemctl restart postgresql@17-main")
    eventually(lambda: {status for status, _ in get(outsider, server, 8)} == {200}, 30)


@pytest.mark.promise(like=test_a_rotated_password_costs_no_request)
@pytest.mark.long
def test_a_rotation_that_died_is_finished_by_the_next_run(
    server: Target, outsider: Container
) -> None:
    double = "/etc/terrafirma/secrets/postgres/api~"
    cut = subprocess.Popen(
        ["docker", "exec", server.name, "bash", "-c",
         "until grep -q 'api~' /etc/terrafirma/secrets/app/api/database_url; do :; done;"
         " sleep 2; pkill -9 -f '^sshd-session: root'"]
    )  # fmt: skip
    with load(outsider, server, rate=200) as seen:
        result = server.pyinfra.imported.call(
            "-y", *options(DATA | {"rotate": "api"}), *server.arguments(),
            "commands/postgres_rotate.py",
        )  # fmt: skip
        assert cut.wait(60) == 0
        assert result.returncode != 0
        server.run(f"test -e {double}")
        # The release that the run had started continues on the server.
        eventually(lambda: not is_releasing(server), 90)
        server.deploy(**DATA)
    assert seen["failed"] == []
    assert changed(server.deploy(**DATA)) == []
    assert "postgresql://api:" in server.run("cat /etc/terrafirma/secrets/app/api/database_url")
    server.deploy("commands/postgres_rotate.py", **DATA, rotate="api")
    assert server.call(f"test -e {double}").returncode != 0


MOVED = DATA | {
    "docker_daemon": {"ipv6": True, "fixed-cidr-v6": "fd00:c0de:1::/64"},
    "docker_address_pool": "10.98.0.0/16",
}
MOVE = """'s|"bip": .*|"bip": "10.99.0.1/24",|'"""


@pytest.mark.promise(like=test_postgresql_listens_whatever_starts_first_at_boot)
@pytest.mark.long
def test_postgresql_follows_another_docker0_another_pool_and_ipv6(
    server: Target, outsider: Container
) -> None:
    """
    Docker moves docker0 only when no container runs: at the next boot.

    PostgreSQL already listens on the new address, so it is reachable between the boot and a run.
    """
    before = server.psql("show listen_addresses").split(",")
    server.run(f"sed -i {MOVE} /etc/docker/daemon.json")
    server.deploy("tasks/docker.py", POSTGRES, **MOVED)
    assert server.psql("show listen_addresses").split(",") == [
        *before, "10.99.0.1", "fd00:c0de:1::1",
    ]  # fmt: skip
    eventually(lambda: {status for status, _ in get(outsider, server, 8)} == {200}, 30)
    server.reboot()
    eventually(lambda: server.call("docker info").returncode == 0, 60)
    assert networks(server)["bridge"] == "10.99.0.0/24"
    eventually(lambda: {status for status, _ in get(outsider, server, 8)} == {200}, 60)
    server.run("docker network create pooled")
    assert networks(server)["pooled"].startswith("10.98.")
    case = [("api", password(server, "api"), "api", "select host(inet_client_addr())")]
    for network, subnet in (("bridge", "10.99.0."), ("pooled", "10.98."), ("apps", "10.210.")):
        assert sessions(server, network, case)[0].startswith(subnet)
    (address,) = sessions(server, "bridge", case, "fd00:c0de:1::1")
    assert address.startswith("fd00:c0de:1:")
    server.run("docker network rm pooled")
    server.deploy("deploy.py", **MOVED)
    assert server.psql("show listen_addresses") == "localhost,10.99.0.1,fd00:c0de:1::1"
    assert changed(server.deploy("deploy.py", **MOVED)) == []


# --- networks of a compose project ----------------------------------------------------------------

PROJECT = """
services:
  worker:
    image: {image}
    entrypoint: ["sleep", "infinity"]
    init: true
    extra_hosts: ["host.docker.internal:host-gateway"]
networks:
  default:
    enable_ipv6: true
    ipam:
      config:
        - subnet: 10.78.0.0/24
        - subnet: fd00:78::/64
"""


@pytest.mark.promise(
    "The next run admits the networks of a new compose project, IPv6 included, and a dry "
    "run shows the rules"
)
@pytest.mark.long
def test_networks_of_a_compose_project_are_admitted_ipv6_too(server: Target) -> None:
    """Its containers are rejected at first, then in the plan, then admitted, over IPv4 and IPv6."""
    server.reboot()
    eventually(lambda: server.call("docker info").returncode == 0, 60)
    image = server.run("docker image ls --format '{{.ID}}' terrafirma/api | head -n 1")
    server.run("mkdir -p /root/far && cat > /root/far/compose.yaml",
               stdin=PROJECT.format(image=image))  # fmt: skip
    # No container has been in docker0's own network since the boot.
    assert "NO-CARRIER" in server.run("ip link show dev docker0")
    compose = "docker compose --project-directory /root/far"
    case = shlex.quote(json.dumps([("api", password(server, "api"), "api",
                                    "select host(inet_client_addr())")]))  # fmt: skip

    def answers() -> list[str]:
        said = (
            server.run(f"{compose} exec -T worker python3 - {address} {case}", stdin=SESSIONS)
            for address in ("host.docker.internal", "fd00:c0de:1::1")
        )
        return [json.loads(one)[0] for one in said]

    try:
        server.run(f"{compose} up --detach")
        rejected = answers()
        assert all(REJECTED in answer for answer in rejected), rejected
        arguments = ("--dry", "--diff", *options(MOVED), *server.arguments(), POSTGRES)
        planned = server.pyinfra.imported.call(*arguments).stderr
        for subnet in ("10.78.0.0/24", "fd00:78::/64"):
            assert f"+ host  api  api,api~  {subnet}  scram-sha-256" in planned
            assert f"+ host  shop  shop,shop~  {subnet}  scram-sha-256" in planned
        assert server.plan(POSTGRES, **MOVED) == [ACCESS, RELOAD]
        assert changed(server.deploy(POSTGRES, **MOVED)) == [ACCESS, RELOAD]
        four, six = answers()
        assert four.startswith("10.78.0.")
        assert six.startswith("fd00:78::")
        assert changed(server.deploy(POSTGRES, **MOVED)) == []
    finally:
        server.run(f"{compose} down --timeout 1; rm -r /root/far")
    assert changed(server.deploy(POSTGRES, **MOVED)) == [ACCESS, RELOAD]
    assert "10.78." not in server.run("cat /etc/postgresql/17/main/pg_hba.conf")

"""Recovery: everything comes back after a reboot or a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import backed_up
from tests.e2e.support import Container, Target, eventually, get

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def hosts(pyinfra: Pyinfra) -> Iterator[tuple[Target, dict[str, Any]]]:
    with backed_up(pyinfra, "tf-test-recovery", 2453) as server_and_data:
        yield server_and_data


def serves(server: Target, outsider: Container) -> bool:
    """Whether HTTPS answers from outside, and every replica reads from PostgreSQL."""
    serving = json.loads(server.run("cat /opt/terrafirma/api/serving.json"))
    replicas = " && ".join(
        f"curl --silent --fail --max-time 2 --output /dev/null http://127.0.0.1:{port}/healthz"
        for port in range(serving["port"], serving["port"] + serving["replicas"])
    )
    if server.call(replicas, timeout=20).returncode != 0:
        return False
    try:
        answers = get(outsider, server, 8)
    except AssertionError:
        return False
    return {status for status, _ in answers} == {200}


@pytest.mark.promise("Everything comes back after a reboot")
@pytest.mark.parametrize(
    "time", [1, *(pytest.param(time, marks=pytest.mark.long) for time in range(2, 6))]
)
def test_a_reboot(server: Target, outsider: Container, time: int) -> None:
    server.reboot()
    eventually(lambda: serves(server, outsider), 60)


@pytest.mark.promise(
    "A server that goes down in the middle of a release comes back with the previous release"
)
def test_a_reboot_in_the_middle_of_a_release(
    server: Target, outsider: Container, data: dict[str, Any]
) -> None:
    before = server.run("cat /opt/terrafirma/api/serving.json")
    server.run("systemd-run --quiet terrafirma restart api")
    eventually(lambda: "health" in server.call("cat /run/terrafirma/apps/api.json").stdout, 60)
    server.reboot()
    eventually(lambda: serves(server, outsider), 60)
    assert server.run("cat /opt/terrafirma/api/serving.json") == before

    def replicas() -> list[str]:
        names = server.run("docker ps --all --format '{{.Names}}'").split()
        return sorted(name for name in names if name.startswith("api-"))

    # Docker restarts containers of the new release, too; they are soon removed.
    eventually(lambda: len(replicas()) == 4, 60)
    slot = json.loads(before)["slot"]
    assert {name.split("-")[1] for name in replicas()} == {slot}
    assert server.deploy(**data)["results"]["totals"]["success"] == 0


VICTIMS = {
    "postmaster": "head -n 1 /var/lib/postgresql/17/main/postmaster.pid",
    "caddy": "systemctl show --value --property MainPID caddy.service",
    "dockerd": "systemctl show --value --property MainPID docker.service",
    "replica": "docker inspect --format '{{.State.Pid}}' "
    "$(docker ps --quiet --filter label=terrafirma.release | head -n 1)",
    "containerd": "systemctl show --value --property MainPID containerd.service",
    "sshd": "systemctl show --value --property MainPID ssh.service",
}


@pytest.mark.promise(
    "Everything comes back after a `kill -9` of the postmaster, Caddy, dockerd, a replica, "
    "containerd or sshd"
)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_kill(server: Target, outsider: Container, victim: str) -> None:
    pid = server.run(VICTIMS[victim])
    server.run(f"kill -9 {pid}")
    eventually(lambda: server.call(f"kill -0 {pid}").returncode != 0, 5)
    eventually(
        lambda: (
            serves(server, outsider)
            and server.call("docker ps && systemctl is-active ssh").returncode == 0
        ),
        30,
    )


def test_a_stopped_postgresql_stays_down(server: Target, outsider: Container) -> None:
    server.run("runuser -u postgres -- pg_ctlcluster 17 main stop -m fast")
    server.run("sleep 5")
    assert server.call("systemctl is-active postgresql@17-main").stdout.strip() == "inactive"
    # A run starts PostgreSQL again, and does nothing else.
    assert [step["name"] for step in server.deploy("tasks/postgres.py")["results"]["operations"]
            if step["success"]] == ["Run PostgreSQL"]  # fmt: skip
    eventually(lambda: serves(server, outsider), 60)


def test_a_run_changes_nothing_afterwards(server: Target, data: dict[str, Any]) -> None:
    assert server.deploy(**data)["results"]["totals"]["success"] == 0

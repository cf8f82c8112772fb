"""Features that Ubuntu's images have and Debian's lack, on a target with Debian 13's packages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.support import Container, Target, changed, eventually, get, open_ports, target

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.budget(minutes=5, why="a run on a bare server, and a boot"),
]

# Debian 13 has PostgreSQL 17, not Ubuntu 24.04's 16. root stays, because the tests log in as root.
DATA: dict[str, Any] = {"postgres_version": 17, "sshd_allow_users": ["root"]}


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with target(pyinfra, "tf-test-ubuntu", 2481, "ubuntu2404-like") as bare:
        home = "/home/ubuntu/.ssh"
        bare.run(
            f"install -d -m 700 -o ubuntu -g ubuntu {home} && "
            f"install -m 600 -o ubuntu -g ubuntu /root/.ssh/authorized_keys {home}/authorized_keys"
            # A version that the distribution does not ship is known by the package lists.
            " && apt-get update -q"
        )
        yield bare


def test_the_images_own_account_deploys(server: Target, outsider: Container) -> None:
    assert changed(server.deploy(user="ubuntu", **DATA))
    assert changed(server.deploy(user="ubuntu", **DATA)) == []
    assert server.plan(user="ubuntu", **DATA) == []
    assert {status for status, _ in get(outsider, server, 8)} == {200}
    assert open_ports(outsider, server, 22, 443, 5432) == [22, 443]


def test_sshd_is_started_by_its_socket_and_admits_keys(server: Target) -> None:
    assert server.run("systemctl is-enabled ssh.socket") == "enabled"
    assert server.call("systemctl is-enabled ssh.service").stdout.strip() == "disabled"
    # cloud-init's file says yes, but sshd reads it after Terrafirma's.
    rules = server.run("sshd -T -C user=ubuntu,host=x,addr=192.0.2.1").splitlines()
    assert "passwordauthentication no" in rules
    # A reload would end sshd, which loses the socket that systemd passed to it.
    reloaded = server.deploy("tasks/sshd.py", user="ubuntu", **DATA | {"sshd_allow_users": []})
    assert changed(reloaded) == [
        "Admit only the declared accounts and the deploying user",
        "Run sshd",
        "Prove that everybody still gets in",
    ]
    assert "ubuntu" in server.run("sshd -T -C user=ubuntu,host=x,addr=192.0.2.1 | grep allowusers")
    assert server.run("systemctl is-active ssh.service ssh.socket").split() == ["active", "active"]
    assert changed(server.deploy("tasks/sshd.py", user="ubuntu", **DATA))
    assert server.run("systemctl --failed --no-legend") == ""


def test_docker_from_snap_is_refused(server: Target) -> None:
    server.run("mkdir -p /snap/docker/current")
    try:
        words = server.refuse("tasks/docker.py", user="ubuntu", **DATA)
    finally:
        server.run("rm -r /snap/docker")
    assert "snap: the snap docker on the host" in words


def test_everything_runs_again_after_a_boot(server: Target, outsider: Container) -> None:
    server.reboot()
    eventually(lambda: server.call("systemctl is-active caddy docker").returncode == 0, 60)
    eventually(lambda: open_ports(outsider, server, 22) == [22], 30)

    def answers() -> bool:
        try:
            return [status for status, _ in get(outsider, server)] == [200]
        except AssertionError:
            return False

    eventually(answers, 90)
    assert changed(server.deploy(user="ubuntu", **DATA)) == []

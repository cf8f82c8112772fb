"""What Ubuntu's images have and Debian's lack; the packages are Debian 13's, the rest Ubuntu's."""

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

# 16 is Ubuntu 24.04's own. root stays, for those who only look.
DATA: dict[str, Any] = {"postgres_version": 17, "sshd_allow_users": ["root"]}


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with target(pyinfra, "tf-test-ubuntu", 2481, "ubuntu2404-like") as bare:
        home = "/home/ubuntu/.ssh"
        bare.run(
            f"install -d -m 700 -o ubuntu -g ubuntu {home} && "
            f"install -m 600 -o ubuntu -g ubuntu /root/.ssh/authorized_keys {home}/authorized_keys"
        )
        yield bare


def test_the_account_of_the_image_deploys_it_once(server: Target, outsider: Container) -> None:
    assert changed(server.deploy(user="ubuntu", **DATA))
    assert changed(server.deploy(user="ubuntu", **DATA)) == []
    assert server.plan(**DATA) == []
    assert {status for status, _ in get(outsider, server, 8)} == {200}
    assert open_ports(outsider, server, 22, 443, 5432) == [22, 443]


def test_sshd_is_started_by_its_socket_and_lets_keys_in(server: Target) -> None:
    assert server.run("systemctl is-enabled ssh.socket") == "enabled"
    assert server.call("systemctl is-enabled ssh.service").stdout.strip() == "disabled"
    # cloud-init's file says yes, and is read after ours.
    rules = server.run("sshd -T -C user=ubuntu,host=x,addr=192.0.2.1").splitlines()
    assert "passwordauthentication no" in rules
    # A reload would end it: it does not find the socket again that it was handed.
    reloaded = server.deploy("tasks/sshd.py", user="ubuntu", **DATA | {"sshd_allow_users": []})
    assert changed(reloaded) == [
        "Admit only the declared accounts and the deploying user",
        "Run sshd",
    ]
    assert "ubuntu" in server.run("sshd -T -C user=ubuntu,host=x,addr=192.0.2.1 | grep allowusers")
    assert server.run("systemctl is-active ssh.service ssh.socket").split() == ["active", "active"]
    assert changed(server.deploy("tasks/sshd.py", user="ubuntu", **DATA))
    assert server.run("systemctl --failed --no-legend") == ""


def test_an_engine_of_snapd_is_refused(server: Target) -> None:
    server.run("mkdir -p /snap/docker/current")
    try:
        words = server.refuse("tasks/docker.py", user="ubuntu", **DATA)
    finally:
        server.run("rm -r /snap/docker")
    assert "snap: the snap docker on the host" in words


def test_all_of_it_is_back_after_a_boot(server: Target, outsider: Container) -> None:
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

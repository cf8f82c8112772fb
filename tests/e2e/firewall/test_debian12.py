"""Firewall with Debian 12's engine (20.10), which routes to containers, and its nft (1.0)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Pyinfra
from tests.e2e.firewall.scans import route, scan, scan_from_container, with_ipv6
from tests.e2e.support import Container, Target, bystander, changed, eventually, target

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.budget(minutes=4, why="a run on a bare server, and scans of all ports"),
]

PAGES = ("tasks/apt.py", "tasks/docker.py", "tasks/firewall.py")
LISTEN = (
    "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 9000, Listen => 9); "
    "while (my $c = $s->accept) { close $c }"
)
V6 = "fd00:f2::2"


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with target(pyinfra, "tf-f-debian12", 2623, "debian12") as bare:
        bare.deploy(*PAGES, apps={})
        with_ipv6(bare, V6)
        bare.run(
            "docker run --detach --name published --restart always -p 9000:9000 debian:trixie"
            f" perl -e '{LISTEN}'"
        )
        yield bare


@pytest.fixture(scope="module")
def outsider() -> Iterator[Container]:
    with bystander("tf-f-outsider12") as one:
        with_ipv6(one, "fd00:f2::3")
        yield one


def inner(server: Target) -> str:
    words = "{{.NetworkSettings.Networks.bridge.IPAddress}}"
    return server.run(f"docker inspect --format '{words}' published")


def test_nothing_but_ssh_is_open(server: Target, outsider: Container) -> None:
    assert server.run("docker version --format '{{.Server.Version}}'").startswith("20.10")
    assert scan(server, inner(server), 9000) == [9000]
    assert scan(outsider, server.address) == [22]
    assert scan(outsider, V6) == [22]
    assert changed(server.deploy(*PAGES, apps={})) == []


def test_a_neighbour_with_a_route_reaches_nothing(server: Target, outsider: Container) -> None:
    with route(outsider, server, "10.210.0.0/16"):
        assert scan(outsider, inner(server), 9000) == []
        server.run("systemctl stop terrafirma-firewall && nft delete table inet terrafirma")
        assert scan(outsider, inner(server), 9000) == [9000]
        server.run("systemctl start terrafirma-firewall")
        assert scan(outsider, inner(server), 9000) == []


def test_a_container_reaches_nothing_of_the_host(server: Target) -> None:
    assert scan_from_container(server, "published", "10.210.0.1", *range(1, 9000)) == []


@pytest.mark.parametrize("kind", ["legacy", "nft"])
def test_the_kind_of_iptables_does_not_matter(
    server: Target, outsider: Container, kind: str
) -> None:
    server.run(f"update-alternatives --quiet --set iptables /usr/sbin/iptables-{kind}")
    server.run("docker stop published; systemctl restart docker; docker start published")
    eventually(lambda: scan(server, inner(server), 9000) == [9000], 20)
    assert scan(outsider, server.address, 22, 9000) == [22]
    mine = [{"port": 9000}]
    server.deploy("tasks/firewall.py", apps={}, firewall_open=mine)
    assert scan(outsider, server.address, 22, 9000) == [22, 9000]
    server.deploy("tasks/firewall.py", apps={})
    assert scan(outsider, server.address, 22, 9000) == [22]


def test_a_boot_opens_nothing_else(server: Target, outsider: Container) -> None:
    server.reboot()
    eventually(lambda: "Up" in server.call("docker ps --filter name=published").stdout, 90)
    with_ipv6(server, V6)
    assert scan(outsider, server.address) == [22]
    assert scan(outsider, V6) == [22]

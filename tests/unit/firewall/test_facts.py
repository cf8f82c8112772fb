"""The state of a host, from which its rules follow."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pyinfra.api import FactProcessError

from terrafirma.firewall.facts import Firewall
from terrafirma.firewall.seen import obstacles, plain, ssh_ports, subnets
from tests.unit.facts import text
from tests.unit.settings import server

OUTPUT = """\
ssh=22
ssh=2222
other=ufw
uplink=br0
inner=br-0123456789ab
inner=docker0
inner=mine
address=eth0 203.0.113.10
address=eth0 2001:db8::10
address=docker0 10.210.0.1
address=br0 192.0.2.4
listener=0.0.0.0:22 sshd
listener=[::]:2200 sshd
listener=*:443 caddy
listener=127.0.0.53%lo:53 systemd-resolve
listener=[::1]:25 master
listener=10.210.0.1:5432 postgres
listener=[fe80::1]%eth0:546\x20
NETWORKS
published=web-1 0.0.0.0:9000-9001->80-81/tcp, [::]:9000-9001->80-81/tcp, 5432/tcp, [::]:5->5/udp
published=api-1 127.0.0.1:8000->8000/tcp
published=worker-1\x20
there
in_force
failed=/etc/terrafirma/firewall.nft:3:1-4: Error: syntax error
"""


NAME = "com.docker.network.bridge.name"
NETWORKS: list[tuple[dict[str, str], list[str] | None, dict[str, str] | None]] = [
    ({NAME: "docker0"}, ["10.210.0.0/24"], {}),
    ({NAME: "mine"}, ["172.30.0.0/16", "fd00:1::/64"], None),
    ({NAME: "gone"}, None, None),
    # Of a release.
    ({}, ["10.210.9.0/24"], {"terrafirma.app": "api"}),
]


def lines() -> Iterator[str]:
    for line in OUTPUT.splitlines():
        if line != "NETWORKS":
            yield line
            continue
        for options, nets, labels in NETWORKS:
            ipam = None if nets is None else [{"Subnet": one} for one in nets]
            one = {"options": options, "ipam": ipam, "labels": labels}
            yield f"network={json.dumps(one)}"


def test_a_host_is_read() -> None:
    state = Firewall().process(list(lines()))
    assert state["ssh"] == [22, 2200, 2222]
    assert state["others"] == ["ufw"]
    assert state["uplinks"] == ["br0"]
    # Docker's own names begin like those that the rules know.
    assert state["bridges"] == ["mine"]
    assert state["subnets"] == ["10.210.0.0/24", "172.30.0.0/16", "fd00:1::/64"]
    assert state["addresses"] == ["203.0.113.10", "2001:db8::10", "192.0.2.4"]
    assert state["listeners"] == {
        22: "sshd", 2200: "sshd", 443: "caddy", 5432: "postgres", 546: "a program",
        9000: "the container web-1", 9001: "the container web-1",
    }  # fmt: skip
    assert state["there"]
    assert state["in_force"]
    assert state["failed"] == "/etc/terrafirma/firewall.nft:3:1-4: Error: syntax error"


@pytest.mark.parametrize(
    "line",
    [
        "nonsense", "ssh=", "ssh=x", "address=eth0", "address=eth0 x", "listener=x y",
        "network={", "network=[]", 'network={"options": {}}', "published=a 0.0.0.0:x->80/tcp",
    ],
)  # fmt: skip
def test_an_odd_answer_is_no_state(line: str) -> None:
    with pytest.raises(FactProcessError):
        Firewall().process([line])


def test_the_question_needs_no_program_of_ours() -> None:
    asked = text(Firewall)
    assert "test ! -x /usr/local/lib/terrafirma/firewall ||" in asked


def state(**fields: Any) -> Any:
    return Firewall.default() | fields


@pytest.mark.parametrize(
    ("seen", "connection", "ports"),
    [
        ([], "", [22]),
        ([2222], "192.0.2.1 50000 203.0.113.10 22", [22, 2222]),
        ([2222], "", [2222]),
        ([], "192.0.2.1 50000 203.0.113.10 2200", [2200]),
    ],
)
def test_ssh_is_open_where_sshd_listens_and_where_the_run_is_connected(
    seen: list[int], connection: str, ports: list[int]
) -> None:
    assert ssh_ports(state(ssh=seen), connection) == ports


def test_subnets_of_containers_to_come_are_those_of_the_pool() -> None:
    assert subnets(server(), state(subnets=["172.30.0.0/16"])) == ["10.210.0.0/16", "172.30.0.0/16"]


@pytest.mark.parametrize(
    ("address", "same"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:DB8::1", "2001:db8::1"),
    ],
)
def test_an_address_has_one_form(address: str, same: str) -> None:
    assert plain(address) == same


FROM = "::ffff:192.0.2.1 50000 ::ffff:203.0.113.10 2222"


@pytest.mark.parametrize(
    ("data", "seen", "message"),
    [
        ({}, {"others": ["ufw"]}, "firewall_enabled: ufw is active on the host, and two firewalls "
         "hide each other's mistakes; end it there: ufw disable; or set firewall_enabled to False"),
        ({}, {"others": ["firewalld"]}, "end it there: systemctl disable --now firewalld; or"),
        ({"firewall_open": [{"port": "2000-3000", "sources": ["192.0.2.9"]}]}, {},
         "firewall_open: 2000-3000/tcp: 2222 is sshd's, which is open already; "
         "firewall_ssh_sources limits from where"),
        ({"firewall_ssh_sources": ["192.0.2.2", "2001:db8::/32"]}, {},
         "firewall_ssh_sources: you are connected from 192.0.2.1, which is none of 192.0.2.2/32, "
         "2001:db8::/32; add it, or you lock yourself out"),
    ],
)  # fmt: skip
def test_rules_that_lock_out_or_hide_are_refused(
    data: dict[str, Any], seen: dict[str, Any], message: str
) -> None:
    (said,) = obstacles(server(**data), state(**seen), FROM)
    assert message in said


def test_what_locks_nobody_out_is_let_through() -> None:
    data: dict[str, Any] = {
        "firewall_ssh_sources": ["192.0.2.0/24"],
        "firewall_open": [
            {"port": 2222, "protocol": "udp"},
            {"port": 2222, "destinations": ["10.210.1.0/24"]},
            {"port": 2222, "clients": "containers"},
        ],
    }
    assert list(obstacles(server(**data), state(ssh=[2222]), FROM)) == []
    # Without SSH there is no address to lock out.
    only = server(firewall_ssh_sources=["192.0.2.0/24"])
    assert list(obstacles(only, state(), "")) == []

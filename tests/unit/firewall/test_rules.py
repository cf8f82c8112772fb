"""The rules for nft, from what is open."""

from ipaddress import ip_network

import pytest

from terrafirma.firewall.rules import rules
from terrafirma.firewall.settings import Opening
from tests.unit.settings import server
from tests.unit.templates import rendered, settled

POOL = ["10.210.0.0/16", "10.210.1.0/24", "fd00:1::/64"]
V4, V6 = ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")


def test_a_port_is_open_on_the_host_and_where_a_container_publishes_it() -> None:
    found = rules([Opening(port="9000-9001", protocol="udp", comment="games")], POOL)
    assert found.outside == ['udp dport 9000-9001 accept comment "games"']
    # A packet that a neighbour routes to a container was not translated by Docker.
    assert found.inward == [
        'ct status dnat meta l4proto udp ct original proto-dst 9000-9001 accept comment "games"'
    ]
    assert found.containers == []


def test_sources_are_asked_for_in_each_version() -> None:
    one = Opening(port="9000", sources=(V4, V6, ip_network("192.0.2.7/32")))
    assert rules([one], POOL).outside == [
        "ip saddr { 192.0.2.0/24 } tcp dport 9000 accept",
        "ip6 saddr { 2001:db8::/32 } tcp dport 9000 accept",
    ]
    # A list of one version opens nothing over the other.
    assert rules([Opening(port="9000", sources=(V4,))], POOL).outside == [
        "ip saddr { 192.0.2.0/24 } tcp dport 9000 accept"
    ]


def test_containers_reach_what_is_open_to_everyone_under_public_addresses_only() -> None:
    found = rules(server().openings([22]), POOL)
    assert 'tcp dport 5432 accept comment "PostgreSQL"' in found.containers
    assert 'ip daddr != { 10.210.0.0/16 } tcp dport 443 accept comment "Caddy"' in found.containers
    assert 'ip6 daddr != { fd00:1::/64 } udp dport 443 accept comment "Caddy"' in found.containers
    assert not [line for line in found.containers if "22" in line]
    assert not [line for line in found.outside + found.inward if "5432" in line]
    without = rules([Opening(port="80", clients="everyone")], ["10.210.0.0/16"]).containers
    assert without[1] == "meta nfproto ipv6 tcp dport 80 accept"


def test_a_rate_is_counted_for_each_source() -> None:
    found = rules([Opening(port="22"), Opening(port="9000", rate="10/hour", sources=(V4,))], POOL)
    assert [(one.name, one.type, one.seconds) for one in found.limits] == [
        ("limit1_4", "ipv4_addr", 7200), ("limit1_6", "ipv6_addr", 7200),
    ]  # fmt: skip
    limit, accept = found.outside[1:]
    assert limit == (
        "meta nfproto ipv4 ip saddr { 192.0.2.0/24 } tcp dport 9000 update @limit1_4 "
        "{ ip saddr limit rate over 10/hour burst 10 packets } counter drop"
    )
    assert accept == "ip saddr { 192.0.2.0/24 } tcp dport 9000 accept"
    both = rules([Opening(port="9000", rate="10/second")], POOL).outside
    assert len(both) == 3
    assert "{ ip6 saddr and ffff:ffff:ffff:ffff:: limit rate over 10/second" in both[1]


def test_addresses_of_containers_open_their_own_way_alone() -> None:
    one = Opening(port="80", destinations=(ip_network("2001:db8:1::/64"),), sources=(V4, V6))
    found = rules([one], POOL)
    assert found.outside == found.containers == []
    assert found.inward == [
        "ip6 saddr { 2001:db8::/32 } ip6 daddr { 2001:db8:1::/64 } tcp dport 80 accept"
    ]


@pytest.mark.parametrize("template", ["firewall.nft.j2", "firewall-ssh.nft.j2"])
def test_no_table_of_others_is_touched(template: str) -> None:
    text = rendered(f"firewall/{template}")
    assert "flush" not in text
    lines = [line for line in settled(text) if "table" in line]
    # Added and deleted in the transaction that makes it: there is no moment without it.
    assert lines == [
        "table inet terrafirma", "delete table inet terrafirma", "table inet terrafirma {",
    ]  # fmt: skip
    assert text.count("{") == text.count("}")


def test_every_chain_ends_with_a_refusal() -> None:
    lines = settled(rendered("firewall/firewall.nft.j2"))
    for chain, last in (
        ("input", "goto outside"),
        ("outside", "counter drop"),
        ("containers", "counter reject with icmpx admin-prohibited"),
        ("forward", 'meta oifkind "bridge" oifname != { "br0" } goto inward'),
        ("inward", "counter drop"),
    ):
        start = lines.index(f"chain {chain} {{")
        assert lines[lines.index("}", start) - 1] == last, chain


def test_a_bridge_that_is_an_uplink_is_outside() -> None:
    lines = settled(rendered("firewall/firewall.nft.j2", uplinks=["br0", "br-lan"]))
    first = lines.index('iifname "br-lan" goto outside')
    assert first < lines.index('iifname "mine" goto containers')
    assert first < lines.index('meta iifkind "bridge" iifname "br-*" goto containers')
    assert 'meta iifkind "bridge" iifname != { "br0", "br-lan" } accept' in lines
    assert 'meta oifkind "bridge" goto inward' in settled(
        rendered("firewall/firewall.nft.j2", uplinks=[])
    )


def test_established_connections_come_first() -> None:
    lines = settled(rendered("firewall/firewall.nft.j2"))
    for chain in ("input", "forward"):
        start = lines.index(f"chain {chain} {{")
        assert lines[start + 2] == "ct state established, related accept"


def test_the_rules_for_the_worst_case_open_ssh_alone() -> None:
    lines = settled(rendered("firewall/firewall-ssh.nft.j2"))
    assert [line for line in lines if line.startswith("tcp dport")] == [
        "tcp dport 22 accept", "tcp dport 2222 accept",
    ]  # fmt: skip

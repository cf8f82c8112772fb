"""
Broken paths to containers and away from them, in the answers of real hosts.

The samples come from targets after a run, with Docker 26.1, and with 20.10 and both kinds of
iptables. The tests change them as people change their hosts.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from terrafirma.docker.facts import ContainerReach
from terrafirma.docker.netfilter import Chain, Packet, ends, tables
from terrafirma.docker.reach import Reach, judge

SAMPLES = {path.stem: path.read_text() for path in (Path(__file__).parent / "reach").glob("*.txt")}
SERVES = {443: "Caddy"}
GUESTS = {5432: "PostgreSQL"}

Change = Callable[[str], str]


def judged(text: str) -> Reach:
    return judge(ContainerReach().process(text.splitlines())["seen"], SERVES, GUESTS)


def without(pattern: str) -> Change:
    """Remove the lines that match."""
    return lambda text: "".join(
        line for line in text.splitlines(keepends=True) if not re.search(pattern, line)
    )


def first(table: str, rule: str) -> Change:
    """Insert another program's rule before all others of its table."""
    return lambda text: re.sub(
        rf"(rule=\*{table}\n(rule=:.*\n)*)", rf"\1rule=-A {rule}\n", text, count=1
    )


def last(table: str, rule: str) -> Change:
    return lambda text: re.sub(
        rf"(rule=\*{table}\n(rule=[:-].*\n)*)", rf"\1rule=-A {rule}\n", text, count=1
    )


def policy(chain: str, what: str = "DROP") -> Change:
    return lambda text: re.sub(
        rf"(rule=\*filter\n(?:rule=:.*\n)*?rule=:{chain}) ACCEPT", rf"\1 {what}", text
    )


def kernel(name: str, value: str) -> Change:
    return lambda text: re.sub(rf"(?m)^(kernel={name}):.*$", rf"\1:{value}", text)


def instead(old: str, new: str) -> Change:
    def change(text: str) -> str:
        assert re.search(old, text), old
        return re.sub(old, new, text)

    return change


def both(*changes: Change) -> Change:
    def change(text: str) -> str:
        for one in changes:
            text = one(text)
        return text

    return change


FLUSHED = without("^rule=")
# ufw or another firewall that lacks a rule for the network of the containers.
CLOSED = both(
    policy("INPUT"),
    last("filter", "INPUT -i lo -j ACCEPT"),
    last("filter", "INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
    last("filter", "INPUT -p tcp -m tcp --dport 22 -j ACCEPT"),
)
OPEN = last("filter", "INPUT -p tcp -m multiport --dports 80,443,5000:6000 -j ACCEPT")


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_converged_host_has_nothing_wrong(sample: str) -> None:
    assert judged(SAMPLES[sample]) == Reach(settings=[], lost=[], blocked=[], notes=[])


# The newer names of Docker's chains, from its documentation.
NEWER = """\
rule=*filter
rule=:INPUT ACCEPT [0:0]
rule=:FORWARD DROP [0:0]
rule=:OUTPUT ACCEPT [0:0]
rule=:DOCKER - [0:0]
rule=:DOCKER-BRIDGE - [0:0]
rule=:DOCKER-CT - [0:0]
rule=:DOCKER-FORWARD - [0:0]
rule=:DOCKER-INTERNAL - [0:0]
rule=:DOCKER-USER - [0:0]
rule=-A FORWARD -j DOCKER-USER
rule=-A FORWARD -j DOCKER-FORWARD
rule=-A DOCKER ! -i docker0 -o docker0 -j DROP
rule=-A DOCKER ! -i br-ef2113498fa8 -o br-ef2113498fa8 -j DROP
rule=-A DOCKER-BRIDGE -o docker0 -j DOCKER
rule=-A DOCKER-BRIDGE -o br-ef2113498fa8 -j DOCKER
rule=-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
rule=-A DOCKER-CT -o br-ef2113498fa8 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
rule=-A DOCKER-FORWARD -j DOCKER-CT
rule=-A DOCKER-FORWARD -j DOCKER-INTERNAL
rule=-A DOCKER-FORWARD -j DOCKER-BRIDGE
rule=-A DOCKER-FORWARD -i docker0 -j ACCEPT
rule=-A DOCKER-FORWARD -i br-ef2113498fa8 -j ACCEPT
rule=COMMIT
"""


def newer(text: str) -> str:
    text = re.sub(r"rule=\*filter\n(rule=.*\n)*?rule=COMMIT\n", NEWER, text)
    return text.replace("127.0.0.1/32 -p", "127.0.0.1/32 ! -i br-ef2113498fa8 -p")


def test_newer_dockers_have_other_chains() -> None:
    text = newer(SAMPLES["docker-26.1"])
    assert "DOCKER-FORWARD" in text
    assert judged(text) == Reach(settings=[], lost=[], blocked=[], notes=[])
    for gone in ("FORWARD -j DOCKER-FORWARD", "-j DOCKER-CT", "DOCKER-FORWARD -i br-"):
        assert judged(without(gone)(text))["lost"], gone


# A change to a host; the kind of the fault; words of the message.
FAULTS: dict[str, tuple[Change, str, str]] = {
    "nat is flushed": (
        without("^rule=-A .*(DNAT|MASQUERADE|LOCAL -j DOCKER)"),
        "lost",
        "127.0.0.1:8000 does not lead to",
    ),
    "the tables are gone": (
        lambda text: without("^rule=")(text) + "rule=#\n",
        "lost",
        "127.0.0.1:8000 does not lead to",
    ),
    "only empty tables are left": (
        lambda text: without("^rule=")(text) + "rule=#\nrule=*nat\nrule=COMMIT\n",
        "lost",
        "127.0.0.1:8000 does not lead to",
    ),
    "one port has no rule": (without("--dport 8000 -j DNAT"), "lost", "127.0.0.1:8000 does not"),
    "a port leads to another container": (
        instead(r"(--dport 8000 -j DNAT --to-destination) \S+", r"\1 10.210.9.9:8000"),
        "lost",
        "10.210.9.9:8000",
    ),
    "another program has the port": (
        first("nat", "OUTPUT -p tcp -m tcp --dport 8000 -j REDIRECT --to-ports 9000"),
        "notes",
        "REDIRECT --to-ports 9000",
    ),
    "no jump from OUTPUT": (without("-A OUTPUT .*-j DOCKER"), "lost", "127.0.0.1:8000 does not"),
    "no way back for loopback": (
        without("src-type LOCAL -j MASQUERADE"),
        "lost",
        "do not get back to 127.0.0.1:8000",
    ),
    "no masquerading": (
        without(r"-s 10\.210\.\d\.0/24 .*MASQUERADE"),
        "lost",
        "have no way out (-P POSTROUTING ACCEPT)",
    ),
    "forwarding is flushed, and dropped by default": (
        both(without("^rule=-A FORWARD"), policy("FORWARD")),
        "lost",
        "are dropped (-P FORWARD DROP)",
    ),
    "a rule before Docker's": (
        first("filter", "FORWARD -j REJECT --reject-with icmp-port-unreachable"),
        "notes",
        "FORWARD -j REJECT",
    ),
    "no answers": (
        both(without("RELATED,ESTABLISHED"), policy("FORWARD")),
        "lost",
        "answers to containers of",
    ),
    "not among each other": (
        both(without(r"-A FORWARD -i (\S+) -o \1 "), policy("FORWARD")),
        "lost",
        "do not reach each other",
    ),
    "docker0 is down": (without("^up=docker0"), "lost", "docker0 of the network bridge is down"),
    "docker0 has no address": (
        without("^address=docker0"),
        "lost",
        "lacks its address 10.210.0.1",
    ),
    "the host forwards nothing": (
        both(kernel("net/ipv4/ip_forward", "0"), kernel("net/ipv4/conf/.*/forwarding", "0")),
        "settings",
        "net/ipv4/ip_forward=1",
    ),
    "a bridge forwards nothing": (
        kernel("net/ipv4/conf/docker0/forwarding", "0"),
        "settings",
        "net/ipv4/conf/docker0/forwarding=1",
    ),
    "the uplink forwards nothing": (
        kernel("net/ipv4/conf/eth0/forwarding", "0"),
        "settings",
        "net/ipv4/conf/eth0/forwarding=1",
    ),
    "loopback is not routed": (
        kernel("net/ipv4/conf/.*/route_localnet", "0"),
        "settings",
        "/route_localnet=1",
    ),
    "a VPN's route": (
        instead(r"(?m)^route=(\S+) \S+$", r"route=\1 tun0"),
        "blocked",
        "through tun0: remove that route",
    ),
    "a firewall without PostgreSQL": (
        CLOSED,
        "notes",
        "do not reach PostgreSQL at port 5432 (-P INPUT DROP)",
    ),
    "a chain of a firewall": (
        both(
            instead(r"(rule=\*filter\n)", r"\1rule=:block - [0:0]\n"),
            first("filter", "INPUT -g block"),
            last("filter", "block -i lo -j ACCEPT"),
            last("filter", "block -m limit --limit 3/min -j LOG"),
            last("filter", "block -j DROP"),
        ),
        "notes",
        "(-A block -j DROP)",
    ),
    "another web server": (
        first("nat", "PREROUTING -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.9.9.9:443"),
        "notes",
        "Caddy at port 443 are redirected",
    ),
}


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, sample: str) -> None:
    change, where, words = FAULTS[fault]
    text = change(SAMPLES[sample])
    assert text != SAMPLES[sample]
    found = dict(judged(text).items())
    assert any(words in one for one in cast("list[str]", found[where])), found
    assert not any(words for kind, words in found.items() if kind != where), found


# Changes to a host that are not faults.
FINE: dict[str, Change] = {
    "no container runs": without("^container=|^route="),
    "no iptables": FLUSHED,
    "no default route": without("^uplink="),
    "a firewall that lets in": both(CLOSED, OPEN),
    "a firewall that lets some in": both(
        CLOSED,
        last("filter", "INPUT -s 192.0.2.0/24 -p tcp -m tcp --dport 443 -j ACCEPT"),
        last("filter", "INPUT -m set --match-set admitted src -j ACCEPT"),
    ),
    "a limit": first("filter", "FORWARD -m hashlimit --hashlimit-name x -j DROP"),
    "one address is shut out": first("filter", "INPUT -s 198.51.100.7/32 -j DROP"),
    "a log": first("filter", "FORWARD -j LOG --log-prefix x"),
    "a program decides": first("filter", "INPUT -j NFQUEUE --queue-num 0"),
    "rules where they belong": first("filter", "DOCKER-USER -i docker0 -o eth0 -j DROP"),
    "rules in a chain of their own": both(
        instead(r"(rule=\*filter\n)", r"\1rule=:mine - [0:0]\n"),
        first("filter", "DOCKER-USER -j mine"),
        last("filter", "mine -i docker0 -j DROP"),
    ),
    "Caddy answers in a tunnel alone": both(
        first("filter", "INPUT -p tcp -m tcp --dport 443 -j DROP"),
        first("filter", "INPUT -i tailscale0 -p tcp -m tcp --dport 443 -j ACCEPT"),
    ),
    "the default route is a VPN's": both(
        CLOSED, instead("uplink=eth0", "uplink=wg0"), OPEN,
    ),
    "a floating address": both(
        first("filter", "INPUT -p tcp -m tcp --dport 443 -j DROP"),
        first("filter", "INPUT -d 192.0.2.7/32 -p tcp -m tcp --dport 443 -j ACCEPT"),
    ),
    "a mask with holes in it": first("filter", "INPUT -s 10.0.0.1/255.0.255.0 -j DROP"),
    "a port of another application is shut": both(
        instead('"HostIp":"127.0.0.1"', '"HostIp":"0.0.0.0"'),
        first("filter", "FORWARD -i eth0 -p tcp -m tcp --dport 8000 -j DROP"),
    ),
    "an empty network has no way out": both(
        without("^container=|^route="), first("filter", "FORWARD -i docker0 -o eth0 -j DROP")
    ),
    "a port without one of the host": instead(
        r'"HostIp":"127.0.0.1","HostPort":"\d+"', '"HostIp":"","HostPort":""'
    ),
    "a network that names no subnet": instead(r'"ipam": \[\{', '"ipam": [{"Gateway":"x"},{'),
    "port 80 is closed": first("filter", "INPUT -p tcp -m tcp --dport 80 -j DROP"),
    "a network without replicas has no PostgreSQL": both(
        without("^container=|^route="), first("filter", "INPUT -p tcp --dport 5432 -j DROP")
    ),
    "a bridge without an address": both(
        instead(
            r'"options": \{', '"options": {"com.docker.network.bridge.inhibit_ipv4":"true",'
        ),
        lambda text: text.replace('"true",}', '"true"}'),
        without(r"^address=docker0|^address=br-"),
    ),
    "invalid packets": first("filter", "INPUT -m conntrack --ctstate INVALID -j DROP"),
    "forwarding is dropped by default": policy("FORWARD"),
    "other ports lead elsewhere": first(
        "nat", "PREROUTING -p tcp -m tcp --dport 25 -j DNAT --to-destination 10.9.9.9:25"
    ),
    "a network without a way out": both(
        instead('"internal": false', '"internal": true'),
        without(r"-s 10\.210\.\d\.0/24 .*MASQUERADE"),
    ),
    "a network that is not masqueraded": both(
        instead(r'"options": \{\}', '"options": {"com.docker.network.bridge.enable_ip_masquerade": '
                '"false"}'),
        without(r"-s 10\.210\.1\.0/24 .*MASQUERADE"),
    ),
    "docker0 without an address of its own in the answer": instead(
        '"Gateway":"10.210.0.1","Subnet":"10.210.0.0/24"', '"Subnet":"10.210.0.0/24"'
    ),
}  # fmt: skip


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("case", FINE)
def test_an_intended_state_is_no_fault(case: str, sample: str) -> None:
    if "Gateway" not in SAMPLES[sample] and "without an address" in case:
        pytest.skip("says none")
    found = judged(FINE[case](SAMPLES[sample]))
    assert found == Reach(settings=[], lost=[], blocked=[], notes=[])


def test_without_iptables_the_rest_is_judged() -> None:
    text = both(FLUSHED, kernel("net/ipv4/ip_forward", "0"))(SAMPLES["docker-26.1"])
    assert judged(text)["settings"] == ["net/ipv4/ip_forward=1"]


def test_a_port_of_all_addresses_needs_a_rule_for_the_world() -> None:
    text = SAMPLES["docker-20.10"]
    assert judged(without("PREROUTING .*-j DOCKER")(text))["lost"] == [
        "0.0.0.0:8081 does not lead to web (10.210.0.2:81) (-P PREROUTING ACCEPT)"
    ]
    closed = both(policy("FORWARD"), without(r"-A DOCKER .*--dport 81 -j ACCEPT"))(text)
    (line,) = judged(closed)["lost"]
    assert line.startswith("packets to web at 0.0.0.0:8081 are dropped")


def test_a_network_with_ipv6_needs_that_forwarded() -> None:
    six = both(
        instead('"ipv6": false', '"ipv6": true'), kernel("net/ipv6/conf/all/forwarding", "0")
    )
    assert judged(six(SAMPLES["docker-26.1"]))["settings"] == ["net/ipv6/conf/all/forwarding=1"]


# --- the walk -------------------------------------------------------------------------------------


def verdicts(rules: str, packet: Packet) -> list[str]:
    table = tables(["*filter", ":FORWARD DROP [0:0]", *rules.splitlines()])["filter"]
    return [one.verdict for one in ends(table, "FORWARD", packet)]


HTTP = Packet(dst="10.0.0.2", port=80, src="192.0.2.1", into="eth0", out="br0")
WALKS: dict[str, tuple[str, list[str]]] = {
    "nothing": ("", ["DROP"]),
    "a return": ("-A FORWARD -j RETURN\n-A FORWARD -j ACCEPT", ["DROP"]),
    "a chain that comes back": (
        "-A FORWARD -j a\n-A a -j RETURN\n-A FORWARD -j ACCEPT",
        ["ACCEPT"],
    ),
    "a goto does not": ("-A FORWARD -g a\n-A a -j RETURN\n-A FORWARD -j ACCEPT", ["DROP"]),
    "not": ("-A FORWARD ! -i eth0 -j ACCEPT\n-A FORWARD ! -o eth0 -j ACCEPT", ["ACCEPT"]),
    "a wildcard": ("-A FORWARD -i eth+ -j ACCEPT", ["ACCEPT"]),
    "another protocol": ("-A FORWARD -p udp -j ACCEPT", ["DROP"]),
    "ports": ("-A FORWARD -p tcp -m multiport --dports 22,79:81 -j ACCEPT", ["ACCEPT"]),
    "ports above": ("-A FORWARD -p tcp -m tcp --dport 81: -j ACCEPT", ["DROP"]),
    "ports below": ("-A FORWARD -p tcp -m tcp --dport :80 -j ACCEPT", ["ACCEPT"]),
    "a comment": ('-A FORWARD -m comment --comment "drop -j DROP" -j ACCEPT', ["ACCEPT"]),
    "what is not known": ("-A FORWARD -m recent --update -j ACCEPT", ["ACCEPT", "DROP"]),
    "what is not known comes back": (
        "-A FORWARD -m mark --mark 0x1 -j a\n-A a -j DROP\n-A FORWARD -j ACCEPT",
        ["DROP", "ACCEPT"],
    ),
    "a loop": ("-A FORWARD -j a\n-A a -j a", ["DROP"]),
    "what only counts": ("-A FORWARD -s 192.0.2.0/24", ["DROP"]),
    "ping": ("-A FORWARD -p icmp -m icmp --icmp-type 8 -j ACCEPT", ["DROP"]),
}  # fmt: skip


@pytest.mark.parametrize("walk", WALKS)
def test_a_packet_is_walked_through_the_chains(walk: str) -> None:
    rules, expected = WALKS[walk]
    assert verdicts(rules, HTTP) == expected


def test_a_missing_chain_accepts() -> None:
    assert [one.verdict for one in ends({}, "INPUT", HTTP)] == ["ACCEPT"]
    assert [one.verdict for one in ends({"INPUT": Chain("DROP", [])}, "INPUT", HTTP)] == ["DROP"]

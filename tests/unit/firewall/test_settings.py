"""Settings of the firewall: what opens a port, and what is refused."""

from typing import Any

import pytest

from terrafirma.firewall.settings import Firewall, Opening, overlaps
from tests.unit.settings import API, keep_rules, numbered, of, refusal, refused, server

POOLED = {"pgbouncer_enabled": True}


def opening(**fields: Any) -> Opening:
    return of(Firewall, firewall_open=[{"port": 9000} | fields]).open[0]


@pytest.mark.parametrize(
    ("port", "text", "size"),
    [(9000, "9000", 1), ("9000", "9000", 1), ("9000-9002", "9000-9002", 3), ("7-7", "7", 1)],
)
def test_a_port_or_a_range(port: Any, text: str, size: int) -> None:
    one = opening(port=port)
    assert one.port == text
    assert len(one.range) == size
    assert (one.protocol, one.clients, one.sources, one.rate) == ("tcp", "internet", (), "")


def test_sources_admit_addresses_of_their_own_version() -> None:
    one = opening(sources=["192.0.2.0/24", "203.0.113.7", "2001:db8::/32"])
    for source in ("192.0.2.9", "203.0.113.7", "2001:db8::7"):
        assert one.admits(source)
    for source in ("192.0.3.9", "203.0.113.8", "2001:db9::7", "::ffff:192.0.2.9"):
        assert not one.admits(source)
    assert opening().admits("::1")


ENTRIES: list[tuple[Any, str]] = [
    ({"port": 0}, "firewall_open.0.port: 0: ports go from 1 to 65535, the lower one first"),
    ({"port": 65536}, "firewall_open.0.port: 65536: ports go from 1 to 65535"),
    ({"port": "9-8"}, "firewall_open.0.port: '9-8': ports go from 1 to 65535, the lower one first"),
    ({"port": "http"}, "firewall_open.0.port: 'http' is no port or range of ports, like 9000"),
    ({"port": "80; accept"}, "firewall_open.0.port: '80; accept' is no port or range of ports"),
    ({"port": "80,443"}, "firewall_open.0.port: '80,443' is no port or range of ports"),
    ({"port": True}, "firewall_open.0.port: True is no port or range of ports"),
    ({"port": -1}, "firewall_open.0.port: -1 is no port or range of ports"),
    ({"port": "٩٠"}, "firewall_open.0.port: '٩٠' is no port or range of ports"),
    ({"port": 9000, "protocol": "sctp"}, "firewall_open.0.protocol: Input should be 'tcp'"),
    ({"port": 9000, "protocol": "any"}, "firewall_open.0.protocol: Input should be 'tcp'"),
    ({"port": 9000, "source": []}, "firewall_open.0.source: there is no such key"),
    ({"port": 9000, "sources": ["2001:db8:::1"]},
     "firewall_open.0.sources.0: '2001:db8:::1' is no address or network, like '203.0.113.7'"),
    ({"port": 9000, "sources": ["2001:db8::/129"]},
     "firewall_open.0.sources.0: '2001:db8::/129' is no address or network"),
    ({"port": 9000, "sources": ["192.0.2.7/24"]},
     "firewall_open.0.sources.0: '192.0.2.7/24' has digits after the network's part: "
     "write '192.0.2.0/24'"),
    ({"port": 9000, "sources": ["2001:db8::7/64"]}, "write '2001:db8::/64'"),
    ({"port": 9000, "sources": ["office.acme.com"]},
     "firewall_open.0.sources.0: 'office.acme.com' is no address or network"),
    ({"port": 9000, "sources": [7]}, "firewall_open.0.sources.0: 7 is no text"),
    ({"port": 9000, "sources": "192.0.2.0/24"}, "firewall_open.0.sources: must be a list, not str"),
    ({"port": 9000, "rate": "10"}, "firewall_open.0.rate: '10' is no rate, like '10/minute'"),
    ({"port": 9000, "rate": "10/day"}, "firewall_open.0.rate: '10/day' is no rate"),
    ({"port": 9000, "rate": "0/minute"}, "firewall_open.0.rate: '0/minute' is no rate"),
    ({"port": 9000, "comment": 'a" accept'}, "firewall_open.0.comment: a comment has at most 100"),
    ({"port": 9000, "comment": "a\nb"}, "firewall_open.0.comment: has a line break"),
    ({"port": 9000, "comment": "x" * 101}, "firewall_open.0.comment: a comment has at most 100"),
    ({"port": 9000, "clients": "containers", "sources": ["192.0.2.0/24"]},
     "firewall_open.0: clients: containers: sources and destinations are for the internet alone"),
    ({}, "firewall_open.0.port: Field required"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "message"), numbered(ENTRIES, 1))
def test_an_entry_is_refused(entry: dict[str, Any], message: str) -> None:
    assert message in refusal(Firewall, firewall_open=[entry])


def test_sources_of_ssh_are_refused_likewise() -> None:
    said = refusal(Firewall, firewall_ssh_sources=["10.0.0.1/8"])
    assert said == (
        "firewall_ssh_sources.0: '10.0.0.1/8' has digits after the network's part: "
        "write '10.0.0.0/8'"
    )


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ({"port": 9000}, {"port": "8999-9000"}, True),
        ({"port": 9000}, {"port": 9000, "sources": ["192.0.2.0/24"]}, True),
        ({"port": 9000}, {"port": 9000, "clients": "everyone"}, True),
        ({"port": 9000}, {"port": 9000, "clients": "containers"}, False),
        ({"port": 9000}, {"port": 9000, "protocol": "udp"}, False),
        ({"port": 9000}, {"port": 9001}, False),
        ({"port": 9000}, {"port": 9000, "destinations": ["10.210.1.0/24"]}, False),
        (
            {"port": 9000, "destinations": ["10.210.0.0/16", "2001:db8::/64"]},
            {"port": 9000, "destinations": ["10.210.1.0/24"]},
            True,
        ),
        (
            {"port": 9000, "destinations": ["10.210.2.0/24"]},
            {"port": 9000, "destinations": ["10.210.1.0/24", "2001:db8::/64"]},
            False,
        ),
    ],
)
def test_two_entries_that_overlap_are_refused(
    one: dict[str, Any], other: dict[str, Any], both: bool
) -> None:
    assert overlaps(opening(**one), opening(**other)) is both
    assert overlaps(opening(**other), opening(**one)) is both
    if both:
        said = refusal(Firewall, firewall_open=[one, other])
        assert said.startswith("firewall_open: ")
        assert said.endswith("; write one entry with all its sources")
    else:
        of(Firewall, firewall_open=[one, other])


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        (
            {"firewall_open": [{"port": 443}]},
            {"firewall_open": [{"port": 444}]},
            "firewall_open: 443/tcp: 443 is open already, for Caddy; leave it out",
        ),
        (
            {"firewall_open": [{"port": "400-500", "protocol": "udp"}]},
            # Without an application nothing is open there.
            {"firewall_open": [{"port": 443}, {"port": 443, "protocol": "udp"}], "apps": {}},
            "firewall_open: 400-500/udp: 443 is open already, for Caddy; leave it out",
        ),
        (
            {"firewall_open": [{"port": 5432}]},
            {"firewall_open": [{"port": 5433}]},
            "firewall_open: 5432/tcp: 5432 (postgres_port) is not for clients from elsewhere: its "
            "program listens for this host alone; leave it out",
        ),
        (
            {"firewall_open": [{"port": 5432, "clients": "containers"}]},
            {
                "firewall_open": [{"port": 5432, "clients": "containers"}],
                "postgres_databases": [], "apps": {},
            },
            "firewall_open: 5432/tcp: 5432 is open already, for PostgreSQL; leave it out",
        ),
        (
            {"apps": {"api": API | {"port": 9000}}, "firewall_open": [{"port": "9100-9200"}]},
            {"apps": {"api": API | {"port": 9000}}, "firewall_open": [{"port": "9128-9200"}]},
            "firewall_open: 9100-9200/tcp: 9100 (apps.api.port) is not for clients from elsewhere",
        ),
    ],
)  # fmt: skip
def test_ports_of_the_platform_are_not_declared_again(
    wrong: dict[str, Any], right: dict[str, Any], message: str
) -> None:
    assert message in refused(**wrong)
    keep_rules(server(**right))


def shown(*openings: Opening) -> list[tuple[str, str, str]]:
    return [(one.port, one.protocol, one.clients) for one in openings]


def test_the_openings_of_a_host_are_those_of_its_sockets() -> None:
    caddy = [("80", "tcp", "everyone"), ("443", "tcp", "everyone"), ("443", "udp", "everyone")]
    database = ("5432", "tcp", "containers")
    assert shown(*server().openings([2222, 22])) == [
        ("22", "tcp", "internet"), ("2222", "tcp", "internet"), *caddy, database,
    ]  # fmt: skip
    more = server(firewall_open=[{"port": 9000, "protocol": "udp"}], **POOLED)
    assert shown(*more.openings([22]))[4:] == [
        database, ("6432", "tcp", "containers"), ("9000", "udp", "internet"),
    ]  # fmt: skip
    # Without applications no site is open, and declared databases are for any container.
    assert shown(*server(apps={}).openings([22])) == [("22", "tcp", "internet"), database]
    assert shown(*server(apps={}, postgres_databases=[]).openings([22])) == [
        ("22", "tcp", "internet")
    ]
    limited = server(firewall_ssh_sources=["192.0.2.0/24"]).openings([22])[0]
    assert list(map(str, limited.sources)) == ["192.0.2.0/24"]

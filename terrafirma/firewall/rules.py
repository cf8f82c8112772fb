"""Rules for nft, as text, from what a host opens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import collapse_addresses, ip_network
from typing import Any

from terrafirma.firewall.settings import RATE, Opening, collapsed

FAMILIES = {4: "ip", 6: "ip6"}
# One client has a whole /64 of IPv6 addresses.
_SOURCE = {4: "ip saddr", 6: "ip6 saddr and ffff:ffff:ffff:ffff::"}
_SECONDS = {"second": 1, "minute": 60, "hour": 3600}


@dataclass(frozen=True)
class Limit:
    """A set of nft in which the kernel counts the new connections of each source address."""

    name: str
    family: int
    rate: str
    count: int
    seconds: int

    @property
    def type(self) -> str:
        return f"ipv{self.family}_addr"


@dataclass
class Rules:
    """The lines of each chain, and the sets that they use."""

    outside: list[str] = field(default_factory=list)
    """For packets to the host from anywhere but its containers."""
    containers: list[str] = field(default_factory=list)
    """For packets to the host from its containers."""
    inward: list[str] = field(default_factory=list)
    """For packets to containers from anywhere but other containers."""
    limits: list[Limit] = field(default_factory=list)


def rules(openings: Sequence[Opening], subnets: Sequence[str]) -> Rules:
    """
    The rules for these openings.

    + subnets: of the containers. What is open to everyone is open to them under the host's public
      addresses, and not at its addresses in their own networks.
    """
    found = Rules()
    for number, one in enumerate(openings):
        limits = list(_limits(one, number))
        found.limits += limits
        port = f"{one.protocol} dport {one.port}"
        published = f"ct status dnat meta l4proto {one.protocol} ct original proto-dst {one.port}"
        if one.clients == "containers":
            found.containers += _admit(one, port, limits)
        elif one.destinations:
            for version, family in FAMILIES.items():
                if to := _among(f"{family} daddr", collapsed(one.destinations, version)):
                    found.inward += _admit(one, f"{to} {port}", limits, version)
        else:
            found.outside += _admit(one, port, limits)
            found.inward += _admit(one, published, limits)
            if one.clients == "everyone":
                found.containers += _as_everyone(one, port, subnets)
    return found


def _limits(one: Opening, number: int) -> Iterator[Limit]:
    if rate := RATE.fullmatch(one.rate):
        for version in FAMILIES:
            yield Limit(f"limit{number}_{version}", version, one.rate, int(rate[1]),
                        2 * _SECONDS[rate[2]])  # fmt: skip


def _admit(one: Opening, match: str, limits: Sequence[Limit], version: int = 0) -> Iterator[str]:
    """The rules that let in what `match` says, of one IP version or of both (0)."""
    wanted = [version] if version else [*FAMILIES]
    froms = {four: _among(f"{FAMILIES[four]} saddr", collapsed(one.sources, four))
             for four in wanted}  # fmt: skip
    if not one.sources:
        froms = {0: ""}
    comment = f' comment "{one.comment}"' if one.comment else ""
    for four, source in froms.items():
        if four and not source:
            continue
        where = f"{source} {match}".strip()
        for limit in limits:
            if (four or version) in (0, limit.family):
                yield (
                    f"meta nfproto ipv{limit.family} {where} update @{limit.name} "
                    f"{{ {_SOURCE[limit.family]} limit rate over {limit.rate} burst {limit.count} "
                    "packets } counter drop"
                )
        yield f"{where} accept{comment}"


def _among(what: str, networks: Sequence[str]) -> str:
    return f"{what} {{ {', '.join(networks)} }}" if networks else ""


def _as_everyone(one: Opening, port: str, subnets: Sequence[str]) -> Iterator[str]:
    for version, family in FAMILIES.items():
        inner = _of(subnets, version)
        to = _among(f"{family} daddr !=", inner) or f"meta nfproto ipv{version}"
        yield (
            f'{to} {port} accept comment "{one.comment}"' if one.comment else f"{to} {port} accept"
        )


def _of(subnets: Sequence[str], version: int) -> list[str]:
    nets: Any = [net for net in map(ip_network, subnets) if net.version == version]
    return list(map(str, collapse_addresses(nets)))

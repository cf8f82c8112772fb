"""Settings of the firewall, and what each of its openings lets in."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from terrafirma.fields import one_line
from terrafirma.settings import Model, Settings

Net = IPv4Network | IPv6Network
Protocol = Literal["tcp", "udp"]
RATE = re.compile(r"([1-9][0-9]{0,5})/(second|minute|hour)")


def network(value: Any) -> Net:
    """An address or a network; raises ValueError with what would be right."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text, like '203.0.113.7' or '2001:db8::/32'")
    try:
        return ip_network(value)
    except ValueError:
        pass
    try:
        whole = ip_network(value, strict=False)
    except ValueError:
        raise ValueError(
            f"{value[:60]!r} is no address or network, like '203.0.113.7' or '2001:db8::/32'"
        ) from None
    raise ValueError(f"{value!r} has digits after the network's part: write '{whole}'")


Network = Annotated[
    Net,
    BeforeValidator(network),
    PlainSerializer(str),
    Field(title="address or network, IPv4 or IPv6"),
]
Networks = tuple[Network, ...]


def ports(value: Any) -> str:
    """A port or a range of ports, as nft writes it: "443", "6000-6100"."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text, re.ASCII) if isinstance(
        text, str
    ) else None  # fmt: skip
    if not found:
        raise ValueError(f"{value!r} is no port or range of ports, like 9000 or '6000-6100'")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 1 <= first <= last <= 65535:
        raise ValueError(f"{value!r}: ports go from 1 to 65535, the lower one first")
    return f"{first}-{last}" if first < last else str(first)


def _rate(value: str) -> str:
    if value and not RATE.fullmatch(value):
        raise ValueError(f"{value[:40]!r} is no rate, like '10/minute': a number, and second, "
                         "minute or hour")  # fmt: skip
    return value


def _comment(value: str) -> str:
    one_line(value)
    if not re.fullmatch(r"[ -!#-\[\]-~]{0,100}", value):
        raise ValueError('a comment has at most 100 characters of ASCII, and no " or \\')
    return value


class Opening(Model):
    """Ports that new connections reach, and from where."""

    port: Annotated[str, BeforeValidator(ports), Field(title="port, or a range like `6000-6100`")]
    """Of the host, also where a container publishes it."""
    protocol: Protocol = "tcp"
    """HTTP/3 is `udp`."""
    clients: Literal["internet", "containers", "everyone"] = "internet"
    """Who may connect: all outside the host, the containers of its Docker networks, or both;
    `everyone` has containers use the host's public addresses."""
    sources: Networks = ()
    """Only from these; empty: from everywhere."""
    destinations: Networks = ()
    """Only to these addresses of containers, which neighbours reach by a route of their own."""
    rate: Annotated[
        str, AfterValidator(_rate), Field(title="number, `/`, and second, minute or hour; or empty")
    ] = ""
    """How many new connections one source address may open (one /64 of IPv6); empty: any number."""
    comment: Annotated[
        str, AfterValidator(_comment), Field(title="one line of ASCII, at most 100 characters")
    ] = ""
    """What the port is for; it stands in the rule."""

    @property
    def audience(self) -> set[str]:
        return {"internet", "containers"} if self.clients == "everyone" else {self.clients}

    @property
    def range(self) -> range:
        first, _, last = self.port.partition("-")
        return range(int(first), int(last or first) + 1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.clients != "internet" and (self.sources or self.destinations):
            raise ValueError(
                f"clients: {self.clients}: sources and destinations are for the internet alone"
            )
        return self

    def admits(self, source: str) -> bool:
        """Whether a client with this address may connect."""
        one = ip_network(source)
        return not self.sources or any(
            net.version == one.version and one.subnet_of(net)  # type: ignore[arg-type]
            for net in self.sources
        )


def collapsed(networks: Networks, version: int) -> list[str]:
    """The networks of one version, without any that is part of another."""
    of_version: Any = [net for net in networks if net.version == version]
    return list(map(str, collapse_addresses(of_version)))


def overlaps(one: Opening, other: Opening) -> bool:
    """Whether two openings decide about the same packets."""
    if one.protocol != other.protocol or not one.audience & other.audience:
        return False
    if bool(one.destinations) != bool(other.destinations):
        return False
    to_same = not one.destinations or any(
        mine.overlaps(theirs)
        for mine in one.destinations for theirs in other.destinations
        if mine.version == theirs.version
    )  # fmt: skip
    return to_same and one.range.start < other.range.stop and other.range.start < one.range.stop


class Firewall(Settings):
    prefix = "firewall"

    enabled: bool
    ssh_sources: Networks
    open: tuple[Opening, ...]
    proof: bool

    @model_validator(mode="after")
    def _check(self) -> Self:
        for number, one in enumerate(self.open):
            for other in self.open[:number]:
                if overlaps(one, other):
                    raise ValueError(
                        f"firewall_open: {one.port}/{one.protocol} overlaps {other.port}/"
                        f"{other.protocol}; write one entry with all its sources"
                    )
        return self

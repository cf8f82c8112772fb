"""
What must lead from the host to its containers, from them to the world and back: and what does not.

Docker makes rules, addresses and settings of the kernel once, as it starts and as a container
starts. Whoever takes them away is noticed here, not by Docker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_network
from typing import Any, TypedDict

from terrafirma.netfilter import Chain, End, Packet, ends

# Where Docker's documentation sends whoever wants rules of their own: what is dropped there is
# meant to be.
_OWN_RULES = "DOCKER-USER"
_EPHEMERAL = 40000


class Reach(TypedDict):
    """What is wrong, in words; `sysctl --write` takes the settings as they are."""

    settings: list[str]  # of the kernel, as they should be: "net/ipv4/ip_forward=1"
    lost: list[str]  # what the engine makes anew as it starts
    blocked: list[str]  # what somebody else's rules or routes do


@dataclass(frozen=True)
class Bridge:
    """A network of Docker's."""

    name: str
    device: str
    subnet: IPv4Network
    address: str  # the host's own in it
    internal: bool
    masquerades: bool
    talks: bool  # its containers may reach each other
    ipv6: bool

    @property
    def guest(self) -> str:
        """An address that a container may have."""
        return next(str(one) for one in self.subnet.hosts() if str(one) != self.address)


@dataclass(frozen=True)
class Port:
    """One that a container publishes."""

    container: str
    proto: str
    address: str  # of the host: "127.0.0.1", "0.0.0.0" …
    port: int
    targets: tuple[str, ...]  # "10.210.1.2:8000"
    bridges: tuple[str, ...]


@dataclass
class Seen:
    """What a host says of itself."""

    rules: Mapping[str, Mapping[str, Chain]] | None = None  # None: it has no iptables-save
    bridges: list[Bridge] = field(default_factory=list)
    ports: list[Port] = field(default_factory=list)
    kernel: dict[str, str] = field(default_factory=dict)  # "net/ipv4/ip_forward" → "1"
    addresses: set[tuple[str, str]] = field(default_factory=set)  # device, address
    up: set[str] = field(default_factory=set)  # devices
    routes: dict[str, str] = field(default_factory=dict)  # address of a container → device
    uplink: str = ""  # device of the default route


def bridge(network: Mapping[str, Any]) -> Bridge | None:
    """What `docker network inspect` says of one; None where it has no IPv4 subnet."""
    options = network["options"] or {}
    prefix = "com.docker.network.bridge."
    device = options.get(f"{prefix}name") or f"br-{network['id'][:12]}"
    for config in network["ipam"] or []:
        subnet = ip_network(config["Subnet"])
        if isinstance(subnet, IPv4Network) and subnet.prefixlen < 31:
            return Bridge(
                name=network["name"],
                device=device,
                subnet=subnet,
                # Docker 20.10 does not say docker0's before the first container.
                address=""
                if options.get(f"{prefix}inhibit_ipv4") == "true"
                or options.get(f"{prefix}gateway_mode_ipv4") == "isolated"
                else config.get("Gateway", "").partition("/")[0],
                internal=network["internal"],
                masquerades=options.get(f"{prefix}enable_ip_masquerade", "true") == "true"
                and options.get(f"{prefix}gateway_mode_ipv4", "nat") == "nat",
                talks=options.get(f"{prefix}enable_icc", "true") == "true",
                ipv6=network["ipv6"],
            )
    return None


def ports(container: Mapping[str, Any], bridges: Sequence[Bridge]) -> Iterator[Port]:
    """Those that `docker inspect` says a container publishes on IPv4."""
    by_name = {one.name: one for one in bridges}
    homes = [
        (by_name[name], network["IPAddress"])
        for name, network in (container["networks"] or {}).items()
        if name in by_name and network["IPAddress"]
    ]
    for inner, bindings in (container["ports"] or {}).items():
        number, _, proto = inner.partition("/")
        for binding in bindings or []:
            if homes and ":" not in binding["HostIp"]:
                yield Port(
                    container=container["name"].lstrip("/"),
                    proto=proto,
                    address=binding["HostIp"] or "0.0.0.0",
                    port=int(binding["HostPort"]),
                    targets=tuple(f"{address}:{number}" for _, address in homes),
                    bridges=tuple(one.device for one, _ in homes),
                )


def judge(seen: Seen, serves: Mapping[int, str], guests: Mapping[int, str]) -> Reach:
    """
    What is wrong.

    + serves: ports on which the host itself answers the world, and who answers
    + guests: ports on which it answers containers, likewise
    """
    wrong = Reach(settings=[], lost=[], blocked=[])
    wrong["settings"] = [
        f"{name}={value}"
        for name, value in _settings(seen).items()
        if seen.kernel.get(name, value) != value
    ]
    wrong["lost"] += _links(seen)
    wrong["blocked"] += _routes(seen)
    if seen.rules is not None:
        wrong["lost"] += _rules(seen)
        wrong["blocked"] += _foreign(seen, serves, guests)
    return wrong


def _settings(seen: Seen) -> dict[str, str]:
    wanted = {"net/ipv4/ip_forward": "1"} if seen.bridges else {}
    # One that is 0 for all says nothing of each.
    if seen.kernel.get("net/ipv4/ip_forward") == "1":
        outward = [one.device for one in seen.bridges if not one.internal]
        for device in [*outward, *([seen.uplink] if outward and seen.uplink else [])]:
            wanted[f"net/ipv4/conf/{device}/forwarding"] = "1"
    if seen.kernel.get("net/ipv4/conf/all/route_localnet") != "1":
        for port in seen.ports:
            if port.address.startswith("127."):
                for device in port.bridges:
                    wanted[f"net/ipv4/conf/{device}/route_localnet"] = "1"
    if any(one.ipv6 for one in seen.bridges):
        wanted["net/ipv6/conf/all/forwarding"] = "1"
    return wanted


def _links(seen: Seen) -> Iterator[str]:
    for one in seen.bridges:
        if one.device not in seen.up:
            yield f"{one.device} of the network {one.name} is down or not there"
        elif one.address and (one.device, one.address) not in seen.addresses:
            yield f"{one.device} of the network {one.name} has not its address {one.address}"


def _routes(seen: Seen) -> Iterator[str]:
    for one in seen.bridges:
        astray = [
            f"{address} by {device}"
            for address, device in seen.routes.items()
            if _is_in(address, one) and device != one.device
        ]
        if astray and one.device in seen.up:
            yield (
                f"the network {one.name} is at {one.device}, and the host sends {astray[0]}: take "
                "that route away, or give one of the two another subnet"
            )


def _is_in(address: str, network: Bridge) -> bool:
    return IPv4Network(address).subnet_of(network.subnet)


def _rules(seen: Seen) -> Iterator[str]:
    assert seen.rules is not None
    nat, filters = seen.rules.get("nat", {}), seen.rules.get("filter", {})
    for port in seen.ports:
        yield from _port(seen, nat, filters, port)
    for one in seen.bridges:
        if one.internal:
            continue
        guest, device = one.guest, one.device
        out = Packet(src=guest, into=device, out=seen.uplink, port=443)
        back = Packet(dst=guest, into=seen.uplink, out=device, state="ESTABLISHED")
        if seen.uplink and one.masquerades:
            yield from _unless(
                f"containers of {one.name} have no way out", ("MASQUERADE", "SNAT"),
                ends(nat, "POSTROUTING", out),
            )  # fmt: skip
        if seen.uplink:
            yield from _unless(
                f"what containers of {one.name} send out is dropped", ("ACCEPT",),
                ends(filters, "FORWARD", out),
            )  # fmt: skip
            yield from _unless(
                f"answers to containers of {one.name} are dropped", ("ACCEPT",),
                ends(filters, "FORWARD", back),
            )  # fmt: skip
        if one.talks:
            among = Packet(src=guest, dst=guest, into=device, out=device, port=_EPHEMERAL)
            yield from _unless(
                f"containers of {one.name} do not reach each other", ("ACCEPT",),
                ends(filters, "FORWARD", among),
            )  # fmt: skip


def _port(
    seen: Seen, nat: Mapping[str, Chain], filters: Mapping[str, Chain], port: Port
) -> Iterator[str]:
    local = port.address.startswith("127.")
    where = f"{port.address}:{port.port}"
    host = next((one for device, one in seen.addresses if device == seen.uplink), None)
    address = host if port.address == "0.0.0.0" else port.address
    to = Packet(
        dst=address, port=port.port, proto=port.proto, to_host=True, from_host=local,
        src=address if local else None, into="" if local else seen.uplink,
        out="lo" if local else "",
    )  # fmt: skip
    if not local and not (host and seen.uplink):
        return
    yield from _unless(
        f"{where} does not lead to {port.container} ({port.targets[0]})",
        tuple(f"DNAT {target}" for target in port.targets),
        ends(nat, "OUTPUT" if local else "PREROUTING", to),
    )
    inside = [
        Packet(
            dst=target.partition(":")[0], port=int(target.partition(":")[2]), proto=port.proto,
            out=device, from_host=local, src="127.0.0.1" if local else None,
            into="" if local else seen.uplink,
        )
        for target, device in zip(port.targets, port.bridges, strict=True)
    ]  # fmt: skip
    # Of several networks that a container is in, one leads to its port.
    if local:
        yield from _unless(
            f"answers of {port.container} do not find back to {where}", ("MASQUERADE", "SNAT"),
            [end for packet in inside for end in ends(nat, "POSTROUTING", packet)],
        )  # fmt: skip
    else:
        yield from _unless(
            f"what comes for {port.container} at {where} is dropped", ("ACCEPT",),
            [end for packet in inside for end in ends(filters, "FORWARD", packet)],
        )  # fmt: skip


def _foreign(seen: Seen, serves: Mapping[int, str], guests: Mapping[int, str]) -> Iterator[str]:
    """What no start of the engine would change."""
    assert seen.rules is not None
    nat, filters = seen.rules.get("nat", {}), seen.rules.get("filter", {})
    hint = "let it through in that firewall (with ufw: `ufw allow"
    loop = Packet(dst="127.0.0.1", src="127.0.0.1", into="lo", port=_EPHEMERAL, to_host=True)
    yield from _unless("the host does not reach itself at 127.0.0.1", ("ACCEPT",),
                       ends(filters, "INPUT", loop))  # fmt: skip
    host = next((one for device, one in seen.addresses if device == seen.uplink), None)
    for number, who in serves.items():
        packet = Packet(dst=host, port=number, into=seen.uplink, to_host=True)
        for end in ends(nat, "PREROUTING", packet):
            if end.verdict.startswith(("DNAT", "REDIRECT")):
                yield (
                    f"what comes for {who} at port {number} goes elsewhere ({end.rule}): stop "
                    "whoever publishes that port"
                )
                break
        for text in _unless(f"what comes for {who} at port {number} is dropped", ("ACCEPT",),
                            ends(filters, "INPUT", packet)):  # fmt: skip
            yield f"{text}: {hint} {number}/tcp`)"
    used = {device for port in seen.ports for device in port.bridges}
    for one in seen.bridges:
        # One without replicas may be shut out on purpose.
        if one.device not in seen.up or one.device not in used:
            continue
        for number, who in guests.items():
            packet = Packet(src=one.guest, into=one.device, port=number, to_host=True)
            for text in _unless(f"containers of {one.name} do not reach {who} at port {number}",
                                ("ACCEPT",), ends(filters, "INPUT", packet)):  # fmt: skip
                yield f"{text}: {hint} from {one.subnet} to any port {number} proto tcp`)"
        for port in (port for port in seen.ports if one.device in port.bridges):
            inner, _, number_text = port.targets[0].partition(":")
            sent = Packet(dst=inner, out=one.device, port=int(number_text), from_host=True,
                          src=one.address or None, proto=port.proto)  # fmt: skip
            yield from _unless(f"what the host sends to {port.container} is dropped", ("ACCEPT",),
                               ends(filters, "OUTPUT", sent))  # fmt: skip


def _unless(words: str, wanted: Sequence[str], found: Sequence[End]) -> Iterator[str]:
    """`words`, and the rule that is to blame, unless it may end as wanted."""
    if not any(one.verdict in wanted or one.chain == _OWN_RULES for one in found):
        yield f"{words} ({found[0].rule})"

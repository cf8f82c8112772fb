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

from terrafirma.docker.netfilter import Chain, End, Packet, ends

# Where Docker's documentation sends whoever wants rules of their own: what is dropped there is
# meant to be.
_OWN_RULES = "DOCKER-USER"
_EPHEMERAL = 40000


class Reach(TypedDict):
    """What is wrong, in words; `sysctl --write` takes the settings as they are."""

    settings: list[str]  # of the kernel, as they should be: "net/ipv4/ip_forward=1"
    lost: list[str]  # what the engine makes anew as it starts
    blocked: list[str]  # what somebody else's routes do
    notes: list[str]  # what somebody else's rules do: they may be meant


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
        if not config.get("Subnet"):
            continue
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
            # Where a network is routed, there is none of the host.
            if homes and binding["HostPort"] and ":" not in binding["HostIp"]:
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
    wrong = Reach(settings=[], lost=[], blocked=[], notes=[])
    wrong["settings"] = [
        f"{name}={value}"
        for name, value in _settings(seen).items()
        if seen.kernel.get(name, value) != value
    ]
    wrong["lost"] += _links(seen)
    wrong["blocked"] += _routes(seen)
    if seen.rules is not None:
        for fault in _rules(seen):
            if fault.dockers:
                wrong["lost"].append(fault.words)
            elif fault.ours:
                wrong["notes"].append(fault.words)
        wrong["notes"] += [fault.words for fault in _foreign(seen, serves, guests)]
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


@dataclass(frozen=True)
class Fault:
    words: str
    dockers: bool  # what Docker makes is not there; else a rule of somebody else's is to blame
    ours: bool = True  # it is about containers of the applications


def _rules(seen: Seen) -> Iterator[Fault]:
    assert seen.rules is not None
    used = {device for port in seen.ports for device in port.bridges if _local(port)}
    nat, filters = seen.rules.get("nat", {}), seen.rules.get("filter", {})
    for port in seen.ports:
        yield from _port(seen, nat, filters, port)
    for one in seen.bridges:
        if one.internal:
            continue
        guest, device, ours = one.guest, one.device, one.device in used
        out = Packet(src=guest, into=device, out=seen.uplink, port=443)
        back = Packet(dst=guest, into=seen.uplink, out=device, state="ESTABLISHED")
        if seen.uplink and one.masquerades:
            yield from _unless(
                f"containers of {one.name} have no way out", ("MASQUERADE", "SNAT"),
                ends(nat, "POSTROUTING", out), ours=ours,
            )  # fmt: skip
        if seen.uplink:
            yield from _unless(
                f"what containers of {one.name} send out is dropped", ("ACCEPT",),
                ends(filters, "FORWARD", out), ours=ours,
            )  # fmt: skip
            yield from _unless(
                f"answers to containers of {one.name} are dropped", ("ACCEPT",),
                ends(filters, "FORWARD", back), ours=ours,
            )  # fmt: skip
        if one.talks:
            among = Packet(src=guest, dst=guest, into=device, out=device, port=_EPHEMERAL)
            yield from _unless(
                f"containers of {one.name} do not reach each other", ("ACCEPT",),
                ends(filters, "FORWARD", among), ours=ours,
            )  # fmt: skip


def _port(
    seen: Seen, nat: Mapping[str, Chain], filters: Mapping[str, Chain], port: Port
) -> Iterator[Fault]:
    local = _local(port)
    where = f"{port.address}:{port.port}"
    to = Packet(
        # Any of the host's, where it is published on all of them.
        dst=None if port.address == "0.0.0.0" else port.address,
        port=port.port, proto=port.proto, to_host=True, from_host=local,
        src=port.address if local else None, into="" if local else seen.uplink,
        out="lo" if local else "",
    )  # fmt: skip
    if not local and not seen.uplink:
        return
    yield from _unless(
        f"{where} does not lead to {port.container} ({port.targets[0]})",
        tuple(f"DNAT {target}" for target in port.targets),
        ends(nat, "OUTPUT" if local else "PREROUTING", to), ours=local,
    )  # fmt: skip
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
            [end for packet in inside for end in ends(filters, "FORWARD", packet)], ours=False,
        )  # fmt: skip


def _local(port: Port) -> bool:
    """As our applications are published; what is open to the world is somebody else's."""
    return port.address.startswith("127.")


def _foreign(seen: Seen, serves: Mapping[int, str], guests: Mapping[int, str]) -> Iterator[Fault]:
    """What rules of somebody else's lead away, or keep from the host's own ports."""
    assert seen.rules is not None
    nat, filters = seen.rules.get("nat", {}), seen.rules.get("filter", {})
    for number, who in serves.items():
        found = ends(nat, "PREROUTING", Packet(port=number, into=None, to_host=True))
        if all(end.verdict.startswith(("DNAT", "REDIRECT")) for end in found):
            yield Fault(f"what comes for {who} at port {number} goes elsewhere ({found[0].rule})",
                        dockers=False)  # fmt: skip
    used = {device for port in seen.ports for device in port.bridges if _local(port)}
    for one in seen.bridges:
        # One without replicas may be shut out on purpose.
        if one.device not in seen.up or one.device not in used:
            continue
        for number, who in guests.items():
            packet = Packet(src=one.guest, into=one.device, port=number, to_host=True)
            yield from _unless(
                f"containers of {one.name} ({one.subnet}) do not reach {who} at port {number}",
                ("ACCEPT",), ends(filters, "INPUT", packet),
            )  # fmt: skip


def _unless(
    words: str, wanted: Sequence[str], found: Sequence[End], *, ours: bool = True
) -> Iterator[Fault]:
    """`words`, and the rule that is to blame, unless it may end as wanted."""
    if not any(one.verdict in wanted or one.chain == _OWN_RULES for one in found):
        # Whatever Docker's rules should have caught comes to the policy of the kernel's own chain.
        dockers = found[0].rule.startswith("-P ") or found[0].chain.startswith("DOCKER")
        yield Fault(f"{words} ({found[0].rule})", dockers, ours)

"""
Find broken paths between the host, its containers and the internet.

Docker makes the kernel's rules, addresses and settings once, when it starts and when a container
starts. If another program removes them later, Docker does not notice; this module does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_network
from typing import Any, TypedDict

from terrafirma.docker.netfilter import Chain, End, Packet, ends

# Docker's documentation reserves this chain for rules of one's own, so drops in it are intended.
_OWN_RULES = "DOCKER-USER"
_EPHEMERAL = 40000


class Reach(TypedDict):
    """Faults, in words, by kind; settings are in the form that `sysctl --write` takes."""

    settings: list[str]  # right values of wrong kernel settings: "net/ipv4/ip_forward=1"
    lost: list[str]  # faults that a restart of the engine repairs
    blocked: list[str]  # faults of another program's routes
    notes: list[str]  # effects of another program's rules, which may be intended


@dataclass(frozen=True)
class Bridge:
    """A bridge network of Docker."""

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
        """An example of a container's address in the network."""
        return next(str(one) for one in self.subnet.hosts() if str(one) != self.address)


@dataclass(frozen=True)
class Port:
    """A port that a container publishes."""

    container: str
    proto: str
    address: str  # of the host: "127.0.0.1", "0.0.0.0" …
    port: int
    targets: tuple[str, ...]  # "10.210.1.2:8000"
    bridges: tuple[str, ...]


@dataclass
class Seen:
    """The state of a host that decides what reaches its containers."""

    rules: Mapping[str, Mapping[str, Chain]] | None = None  # None: it has no iptables-save
    bridges: list[Bridge] = field(default_factory=list)
    ports: list[Port] = field(default_factory=list)
    kernel: dict[str, str] = field(default_factory=dict)  # "net/ipv4/ip_forward" → "1"
    addresses: set[tuple[str, str]] = field(default_factory=set)  # device, address
    up: set[str] = field(default_factory=set)  # devices
    routes: dict[str, str] = field(default_factory=dict)  # address of a container → device
    uplink: str = ""  # device of the default route


def bridge(network: Mapping[str, Any]) -> Bridge | None:
    """A network from `docker network inspect`; None without an IPv4 subnet."""
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
                # Empty for docker0 in Docker 20.10, before the first container.
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
    """The ports that a container publishes on IPv4, from `docker inspect`."""
    by_name = {one.name: one for one in bridges}
    homes = [
        (by_name[name], network["IPAddress"])
        for name, network in (container["networks"] or {}).items()
        if name in by_name and network["IPAddress"]
    ]
    for inner, bindings in (container["ports"] or {}).items():
        number, _, proto = inner.partition("/")
        for binding in bindings or []:
            # In a routed network a binding has no port of the host.
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
    Find all faults.

    + serves: ports on which the host answers the internet, with the program that answers there
    + guests: ports on which the host answers containers, likewise
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
    # While ip_forward is 0, all devices have 0, which says nothing about each of them.
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
            yield f"{one.device} of the network {one.name} is down or missing"
        elif one.address and (one.device, one.address) not in seen.addresses:
            yield f"{one.device} of the network {one.name} lacks its address {one.address}"


def _routes(seen: Seen) -> Iterator[str]:
    for one in seen.bridges:
        astray = [
            f"{address} through {device}"
            for address, device in seen.routes.items()
            if _is_in(address, one) and device != one.device
        ]
        if astray and one.device in seen.up:
            yield (
                f"the network {one.name} is at {one.device}, but the host sends {astray[0]}: "
                "remove that route, or give one of the two another subnet"
            )


def _is_in(address: str, network: Bridge) -> bool:
    return IPv4Network(address).subnet_of(network.subnet)


@dataclass(frozen=True)
class Fault:
    words: str
    dockers: bool  # a rule of Docker's is missing; otherwise another program's rule is to blame
    ours: bool = True  # the fault affects containers of the applications


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
                f"outgoing packets of containers of {one.name} are dropped", ("ACCEPT",),
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
        # A port that is published on all addresses may be reached at any of them.
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
    # If a container is in several networks, its port is reached through one of them.
    if local:
        yield from _unless(
            f"answers of {port.container} do not get back to {where}", ("MASQUERADE", "SNAT"),
            [end for packet in inside for end in ends(nat, "POSTROUTING", packet)],
        )  # fmt: skip
    else:
        yield from _unless(
            f"packets to {port.container} at {where} are dropped", ("ACCEPT",),
            [end for packet in inside for end in ends(filters, "FORWARD", packet)], ours=False,
        )  # fmt: skip


def _local(port: Port) -> bool:
    """Whether a port is published on loopback, like those of our applications, and no others."""
    return port.address.startswith("127.")


def _foreign(seen: Seen, serves: Mapping[int, str], guests: Mapping[int, str]) -> Iterator[Fault]:
    """Faults of rules that redirect or drop packets to the host's own ports."""
    assert seen.rules is not None
    nat, filters = seen.rules.get("nat", {}), seen.rules.get("filter", {})
    for number, who in serves.items():
        found = ends(nat, "PREROUTING", Packet(port=number, into=None, to_host=True))
        if all(end.verdict.startswith(("DNAT", "REDIRECT")) for end in found):
            yield Fault(f"packets to {who} at port {number} are redirected ({found[0].rule})",
                        dockers=False)  # fmt: skip
    used = {device for port in seen.ports for device in port.bridges if _local(port)}
    for one in seen.bridges:
        # A network without replicas may be shut out on purpose.
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
    """A fault with `words` and the rule to blame, unless one of the ends is a wanted one."""
    if not any(one.verdict in wanted or one.chain == _OWN_RULES for one in found):
        # A packet that no rule of Docker's caught reaches the policy of the built-in chain.
        dockers = found[0].rule.startswith("-P ") or found[0].chain.startswith("DOCKER")
        yield Fault(f"{words} ({found[0].rule})", dockers, ours)

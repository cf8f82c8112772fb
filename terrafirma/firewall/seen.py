"""What follows from the state of a host for its firewall."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address

from terrafirma.firewall.facts import FirewallState
from terrafirma.server import Server

_END = {"ufw": "ufw disable", "firewalld": "systemctl disable --now firewalld"}
SSH = 22


def plain(address: str) -> str:
    """The address without the form that IPv6 sockets give to one of IPv4, and without a device."""
    one = ip_address(address.partition("%")[0])
    inner = one.ipv4_mapped if isinstance(one, IPv6Address) else None
    return str(inner or one)


def ssh_ports(state: FirewallState, connection: str) -> list[int]:
    """The ports that sshd has; `connection` as SSH_CONNECTION, whose port is in use right now."""
    _, _, _, port = (connection.split() + [""] * 4)[:4]
    return sorted({*state["ssh"], *([int(port)] if port.isdigit() else [])}) or [SSH]


def subnets(server: Server, state: FirewallState) -> list[str]:
    """Subnets of containers, also of those to come."""
    return [str(server.docker.address_pool), *state["subnets"]]


def obstacles(server: Server, state: FirewallState, connection: str) -> Iterator[str]:
    """Why the rules must not be loaded, in words."""
    for name in state["others"]:
        yield (
            f"firewall_enabled: {name} is active on the host, and two firewalls hide each other's "
            f"mistakes; end it there: {_END[name]}; or set firewall_enabled to False"
        )
    ports = ssh_ports(state, connection)
    for one in server.firewall.open:
        if one.protocol == "tcp" and not one.destinations and "internet" in one.audience:
            for port in ports:
                if port in one.range:
                    yield (
                        f"firewall_open: {one.port}/tcp: {port} is sshd's, which is open already; "
                        "firewall_ssh_sources limits from where"
                    )
    client = connection.partition(" ")[0]
    sources = server.firewall.ssh_sources
    if client and sources and not server.openings(ports)[0].admits(plain(client)):
        yield (
            f"firewall_ssh_sources: you are connected from {plain(client)}, which is none of "
            f"{', '.join(map(str, sources))}; add it, or you lock yourself out"
        )

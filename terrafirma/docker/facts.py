"""Docker's networks and addresses, and everything that decides if containers are reached."""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from typing import Any, TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override

from terrafirma.docker.netfilter import tables
from terrafirma.docker.reach import Seen, bridge, ports

# A host without Docker is a valid answer; a Docker that does not answer is a failure.
_NO_DOCKER = "command -v docker > /dev/null || exit 0;"

# daemon.json, too, because docker0 moves to a new address there only when Docker starts without
# containers, at the next boot.
_DAEMON = r'printf "daemon=%s\n" "$(tr -d "\n" < /etc/docker/daemon.json 2> /dev/null)"'


def _declared(line: str) -> list[IPv4Interface | IPv6Interface]:
    """The addresses of docker0 that daemon.json declares."""
    daemon = json.loads(line.removeprefix("daemon=") or "{}")
    declared = [ip_interface(daemon["bip"])] if "bip" in daemon else []
    if daemon.get("ipv6") and "fixed-cidr-v6" in daemon:
        subnet = IPv6Network(daemon["fixed-cidr-v6"])
        declared.append(ip_interface(f"{next(subnet.hosts())}/{subnet.prefixlen}"))
    return declared


def _is_of_application(network: dict[str, Any]) -> bool:
    """Whether a release made it, or Compose made it for the stateful services of a project."""
    labels = network.get("Labels") or {}
    project = labels.get("com.docker.compose.project") or ""
    return "terrafirma.app" in labels or project.endswith("-state")


def _within(subnet: IPv4Network | IPv6Network, pool: IPv4Network | IPv6Network) -> bool:
    if isinstance(subnet, IPv4Network) and isinstance(pool, IPv4Network):
        return subnet.subnet_of(pool)
    if isinstance(subnet, IPv6Network) and isinstance(pool, IPv6Network):
        return subnet.subnet_of(pool)
    return False


class Network(TypedDict):
    name: str
    subnet: str  # "10.210.0.0/24"; one entry for each subnet, IPv4 or IPv6


class DockerNetworks(FactBase[list[Network]]):
    """
    Every subnet from which a container of this host may come; empty without Docker.

    docker0's come first, then those of other bridge networks by name, then future ones: docker0's
    declared subnet, and the address pools, from which Docker takes the subnets of new networks.
    Networks of applications come and go with releases, or come with their stateful services, so a
    pool stands for those in it.
    """

    default = list

    @override
    def command(self) -> str:
        return (
            f"{_NO_DOCKER} {_DAEMON}; "
            "docker info --format '{{json .DefaultAddressPools}}' || exit 1; "
            "ids=$(docker network ls -q --no-trunc --filter driver=bridge) || exit 1; "
            'test -z "$ids" || docker network inspect $ids'
        )

    @override
    def process(self, output: list[str]) -> list[Network]:
        try:
            pools = [ip_network(pool["Base"]) for pool in json.loads(output[1]) or []]
            networks = [
                Network(name=network["Name"], subnet=str(subnet))
                for network in json.loads("\n".join(output[2:]) or "[]")
                for config in network["IPAM"]["Config"] or []
                for subnet in [ip_network(config["Subnet"])]
                if not (
                    _is_of_application(network) and any(_within(subnet, pool) for pool in pools)
                )
            ]
            present = {network["subnet"] for network in networks}
            to_come = [
                Network(name="docker0 after the next boot", subnet=str(interface.network))
                for interface in _declared(output[0])
                if str(interface.network) not in present
            ]
            to_come += [Network(name="networks to come", subnet=str(pool)) for pool in pools]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise FactProcessError(f"docker network inspect answered {output[:3]!r}") from error
        networks.sort(key=lambda one: (one["name"] != "bridge", one["name"], one["subnet"]))
        return networks + to_come


class DockerAddresses(FactBase[list[str]]):
    """
    The host's own addresses on docker0, like "10.210.0.1/24"; none without Docker.

    Present addresses come first, then those that daemon.json declares for the next boot.
    """

    default = list

    @override
    def command(self) -> str:
        # Ask the bridge itself: Docker 20.10 does not show its gateway before the first container.
        return (
            f"{_NO_DOCKER} {_DAEMON}; bridge=$(docker network inspect bridge "
            "--format '{{index .Options \"com.docker.network.bridge.name\"}}') || exit 1; "
            'ip -4 -oneline address show dev "$bridge" scope global && '
            'ip -6 -oneline address show dev "$bridge" scope global'
        )

    @override
    def process(self, output: list[str]) -> list[str]:
        try:
            present = [ip_interface(line.split()[3]) for line in output[1:]]
            return list(dict.fromkeys(map(str, [*present, *_declared(output[0])])))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise FactProcessError(f"docker0 has no address: {output[:2]!r}") from error


# The part of `Seen` that comes from the kernel; each line begins with the name of its kind.
_KERNEL = r"""
# An empty `rule=#` shows that iptables-save is installed, even if no table is left to print.
! command -v iptables-save > /dev/null || { echo 'rule=#'; iptables-save | sed 's/^/rule=/'; }
(cd /proc/sys && grep -s . net/ipv4/ip_forward net/ipv6/conf/all/forwarding \
    net/ipv4/conf/*/forwarding net/ipv4/conf/*/route_localnet | sed 's/^/kernel=/')
ip -oneline link show up | sed 's/^[0-9]*: \([^:@]*\).*/up=\1/'
ip -4 -oneline address | awk '{ sub("/.*", "", $4); print "address=" $2, $4 }'
ip -4 route show default | sed -n 's/.* dev \([^ ]*\).*/uplink=\1/p'
grep -lsE '^ *-?net[./]ipv4[./](ip_forward|conf[./]all[./]forwarding) *= *0' \
    /etc/sysctl.conf /etc/sysctl.d/*.conf /run/sysctl.d/*.conf /usr/lib/sysctl.d/*.conf |
    sed 's/^/said_by=/'
"""
_NETWORK = (
    '{"name": {{json .Name}}, "id": {{json .Id}}, "internal": {{json .Internal}}, "ipv6": '
    '{{json .EnableIPv6}}, "options": {{json .Options}}, "ipam": {{json .IPAM.Config}}}'
)
_CONTAINER = (
    '{"name": {{json .Name}}, "ports": {{json .NetworkSettings.Ports}}, "networks": '
    "{{json .NetworkSettings.Networks}}}"
)


class ContainerReachState(TypedDict):
    missing: list[str]  # networks that were asked for and do not exist
    said_by: list[str]  # files that switch forwarding off
    seen: Seen


class ContainerReach(FactBase[ContainerReachState]):
    """
    The missing networks of `names`, and everything that decides if packets reach containers.

    Without Docker all networks are missing, and the rest is empty.
    """

    @staticmethod
    @override
    def default() -> ContainerReachState:
        return ContainerReachState(missing=[], said_by=[], seen=Seen())

    @override
    def command(self, names: Sequence[str]) -> StringCommand:
        return StringCommand(
            "known=$(! command -v docker > /dev/null || docker network ls --format '{{.Name}}')",
            "|| exit 1; for name in",
            *map(QuoteString, names),
            '; do printf "%s\\n" "$known" | grep -qxF -- "$name" || echo "missing=$name"; done;',
            _NO_DOCKER,
            # Ignore errors about networks and containers that disappear meanwhile.
            "ids=$(docker network ls -q --no-trunc --filter driver=bridge) || exit 1;",
            f"docker network inspect --format 'network={_NETWORK}' $ids 2> /dev/null;",
            'ids=$(docker ps -q --no-trunc) || exit 1; addresses=$(test -z "$ids" ||',
            f"docker inspect --format 'container={_CONTAINER}' $ids 2> /dev/null);",
            'test -z "$addresses" || printf "%s\\n" "$addresses";',
            'printf "%s\\n" "$addresses" | grep -oE \'"IPAddress":"[0-9.]+"\' |',
            "sed 's/.*:\"\\(.*\\)\"/route get \\1/' | ip -4 -oneline -batch - 2> /dev/null |",
            "sed -n 's/^\\([0-9.]*\\) .*dev \\([^ ]*\\).*/route=\\1 \\2/p';",
            _KERNEL,
        )  # fmt: skip

    @override
    def process(self, output: list[str]) -> ContainerReachState:
        found: dict[str, list[str]] = {}
        for line in output:
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
        try:
            bridges = [bridge(json.loads(one)) for one in found.get("network", [])]
            known = [one for one in bridges if one]
            containers = map(json.loads, found.get("container", []))
            seen = Seen(
                rules=tables(found["rule"]) if "rule" in found else None,
                bridges=known,
                ports=[port for one in containers for port in ports(one, known)],
                kernel=dict(_pair(line, ":") for line in found.get("kernel", [])),
                addresses={_pair(line, " ") for line in found.get("address", [])},
                up=set(found.get("up", [])),
                routes=dict(_pair(line, " ") for line in found.get("route", [])),
                uplink=found.get("uplink", [""])[0],
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise FactProcessError(f"cannot tell how containers are reached: {error}") from error
        return ContainerReachState(
            missing=found.get("missing", []), said_by=found.get("said_by", []), seen=seen
        )


def _pair(line: str, sign: str) -> tuple[str, str]:
    key, found, value = line.rpartition(sign)
    if not found:
        raise ValueError(f"{line!r} has no {sign!r}")
    return key, value

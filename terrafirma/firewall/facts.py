"""What the firewall has to know of a host, and what is reachable there."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError
from typing_extensions import override

from terrafirma.paths import FIREWALL, FIREWALL_UNIT


class FirewallState(TypedDict):
    ssh: list[int]  # the ports that sshd has, or is going to have
    others: list[str]  # other firewalls that are active: "ufw", "firewalld"
    uplinks: list[str]  # bridges through which the host reaches its network
    bridges: list[str]  # bridges of Docker's with names of their own
    subnets: list[str]  # of Docker's networks
    addresses: list[str]  # the host's own, except those of bridges for containers
    listeners: dict[int, str]  # TCP ports that others might reach, and the program at each
    there: bool  # there is a table of ours, or the unit that loads it
    in_force: bool  # the kernel has the rules of the present file, and nobody has changed them
    failed: str  # why the rules did not load, so that SSH alone is open


_PROBE = r"""
mkdir -p /run/sshd
sshd -T -C user=root,host=localhost,addr=127.0.0.1 2> /dev/null | sed -n 's/^port /ssh=/p'
! systemctl is-active --quiet ssh.socket 2> /dev/null ||
    systemctl show ssh.socket -p Listen --value | sed -n 's/.*:\([0-9]*\) (Stream).*/ssh=\1/p'
grep -qs '^ENABLED=yes' /etc/ufw/ufw.conf && command -v ufw > /dev/null && echo other=ufw
systemctl is-active --quiet firewalld.service 2> /dev/null && echo other=firewalld
# A bridge with a network card among its ports, or with a default route, has no containers.
routes=$(ip -4 route show default; ip -6 route show default)
for bridge in /sys/class/net/*/bridge; do
    device=${bridge%/bridge} device=${device##*/}
    case $device in *[!A-Za-z0-9_.-]*|'*') continue ;; esac
    uplink=
    case "$routes " in *" dev $device "*) uplink=yes ;; esac
    for port in /sys/class/net/"$device"/brif/*; do
        port=${port##*/}
        for sign in "/sys/class/net/$port/device" "/sys/class/net/$port/bonding" \
            "/proc/net/vlan/$port"; do test ! -e "$sign" || uplink=yes; done
    done
    test -z "$uplink" && echo "inner=$device" || echo "uplink=$device"
done
ip -oneline address show scope global | awk '{ sub("/.*", "", $4); print "address=" $2, $4 }'
ss -Hltnp | while read -r _ _ _ address _ users; do
    program=${users#*\"} program=${program%%\"*}
    echo "listener=$address $program"
done
if command -v docker > /dev/null && systemctl is-active --quiet docker.service; then
    ids=$(docker network ls -q --no-trunc --filter driver=bridge)
    test -z "$ids" || docker network inspect $ids --format 'network={"options": {{json .Options}},
 "ipam": {{json .IPAM.Config}}, "labels": {{json .Labels}}}' | tr -d '\n' |
        sed 's/network=/\nnetwork=/g'
    echo
    docker ps --format 'published={{.Names}} {{.Ports}}'
fi
"""


class Firewall(FactBase[FirewallState]):
    """The state of the firewall, and everything that its rules depend on."""

    @staticmethod
    @override
    def default() -> FirewallState:
        return FirewallState(
            ssh=[], others=[], uplinks=[], bridges=[], subnets=[], addresses=[], listeners={},
            there=False, in_force=False, failed="",
        )  # fmt: skip

    @override
    def command(self) -> str:
        return (
            f"{_PROBE}test ! -e /etc/systemd/system/{FIREWALL_UNIT} || echo there; "
            f"test ! -x {FIREWALL} || ! command -v nft > /dev/null || {FIREWALL} state"
        )

    @override
    def process(self, output: list[str]) -> FirewallState:
        state = self.default()
        inner: list[str] = []
        addresses: list[tuple[str, str]] = []
        try:
            for line in output:
                key, _, value = line.partition("=")
                match key:
                    case "ssh":
                        state["ssh"] = sorted({*state["ssh"], int(value)})
                    case "other":
                        state["others"].append(value)
                    case "uplink":
                        state["uplinks"].append(value)
                    case "inner":
                        inner.append(value)
                    case "address":
                        device, address = value.split()
                        addresses.append((device, str(ip_address(address))))
                    case "listener":
                        _listen(state, *value.split(" ", 1))
                    case "network":
                        _connect(state, json.loads(value))
                    case "published":
                        _publish(state, *value.split(" ", 1))
                    case "there":
                        state["there"] = True
                    case "in_force":
                        state["in_force"] = True
                    case "failed":
                        state["failed"] = value
                    case "":
                        pass
                    case _:
                        raise ValueError(line)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FactProcessError(f"cannot tell what is open: {error}") from error
        state["addresses"] = [address for device, address in addresses if device not in inner]
        state["bridges"] = sorted({*state["bridges"]} & {*inner})
        state["subnets"] = sorted({*state["subnets"]})
        return state


def _listen(state: FirewallState, address: str, program: str = "") -> None:
    host, _, port = address.rpartition(":")
    host = host.partition("%")[0].strip("[]")
    if host != "*" and ip_address(host).is_loopback:
        return
    state["listeners"].setdefault(int(port), program.strip() or "a program")
    if program.strip() == "sshd":
        state["ssh"] = sorted({*state["ssh"], int(port)})


# Docker's own names for bridges, which the rules know by their beginning.
_DOCKERS = ("br-", "docker")


def _connect(state: FirewallState, network: dict[str, dict[str, str]]) -> None:
    # Networks of releases come and go; their subnets are from the pool.
    if "terrafirma.app" in (network["labels"] or {}):
        return
    name = (network["options"] or {}).get("com.docker.network.bridge.name", "")
    if name and not name.startswith(_DOCKERS):
        state["bridges"].append(name)
    ipam: list[dict[str, str]] = network["ipam"] or []  # type: ignore[assignment]
    state["subnets"] += [str(ip_network(one["Subnet"])) for one in ipam if one.get("Subnet")]


def _publish(state: FirewallState, name: str, ports: str = "") -> None:
    """`docker ps` writes "0.0.0.0:9000-9001->80-81/tcp, [::]:9000->80/tcp, 5432/tcp"."""
    for one in ports.split(", "):
        outer, arrow, inner = one.partition("->")
        address, _, port = outer.rpartition(":")
        if not arrow or not inner.endswith("/tcp") or address.startswith("127."):
            continue
        first, _, last = port.partition("-")
        for number in range(int(first), int(last or first) + 1):
            state["listeners"][number] = f"the container {name}"

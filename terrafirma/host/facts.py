"""Facts about the machine: its system, hardware, networks and ports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Interface
from itertools import groupby
from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override


class MachineState(TypedDict):
    id: str  # "debian", "ubuntu" …
    version: str  # "13", "24.04" …
    source: str  # `apt_source` of the settings, once they are known; see terrafirma/site.py
    name: str  # as in PRETTY_NAME
    architecture: str  # dpkg's name: "amd64", "arm64" …
    user: str  # the connected user
    root: bool  # the connected user is root
    sudo: bool  # the connected user may become root without a password
    sudo_answer: str  # sudo's message if it does not make the connected user root
    openssh: tuple[int, int]  # its version; (0, 0) without it
    host_keys: dict[str, int]  # the kinds of sshd's keys, and the bits of each: "ED25519"
    connection: str  # address and port of the client and of the server, as SSH_CONNECTION has them
    missing: list[str]  # programs that our commands need
    systemd: bool
    free_gb: float  # on / or /var, whichever has less
    booting: bool  # cloud-init has not finished
    guarded: bool  # a change of another run is neither proved nor undone yet
    clusters: list[str]  # PostgreSQL's, like "17/main"
    own_clusters: list[str]  # the clusters that Terrafirma configured
    retired_clusters: list[str]  # own clusters that an upgrade, or the way back, left behind
    unfinished_clusters: list[str]  # own clusters that an upgrade has made, not in use yet
    upgrading: bool  # a major upgrade of PostgreSQL is going on
    postgres_offered: list[int]  # majors that are installed, or in the host's package lists
    foreign_engine: list[str]  # packages of another Docker engine
    snaps: list[str]  # conflicting snaps that are installed: "docker"
    masked: list[str]  # apt's timers that are masked, so that systemd refuses to start them
    foreign_caddyfile: bool  # there is a Caddyfile, neither ours nor the package's
    pooler: bool  # our PgBouncer runs, or starts at boot
    networks: list[str]  # IPv4 networks that the host shares with neighbours: "192.0.2.0/24"


# The programs that our commands need before any operation can install packages, and the package of
# each. Small images lack those of the first line.
PACKAGES = {
    "ip": "iproute2", "ss": "iproute2", "sysctl": "procps",
    "apt-get": "apt", "apt-cache": "apt", "dpkg-query": "dpkg", "awk": "mawk",
    "chage": "passwd", "cut": "coreutils", "df": "coreutils", "find": "findutils",
    "findmnt": "util-linux", "getent": "libc-bin", "grep": "grep", "id": "coreutils",
    "install": "coreutils", "lsblk": "util-linux", "mktemp": "coreutils", "nproc": "coreutils",
    "runuser": "util-linux", "sed": "sed", "sha256sum": "coreutils", "sort": "coreutils",
    "stat": "coreutils", "tail": "coreutils", "tar": "tar", "useradd": "passwd",
}  # fmt: skip
_PROBE = r"""
test ! -r /etc/os-release || . /etc/os-release
echo "id=$ID"; echo "version=$VERSION_ID"; echo "name=$PRETTY_NAME"
echo "architecture=$(dpkg --print-architecture 2> /dev/null || uname -m)"
echo "user=$(id -un)"
if test "$(id -u)" -eq 0; then echo root=yes
else
    # Call sudo as pyinfra does. sudo prints warnings first, and the reason last.
    answer=$(sudo -H -n sh -c 'echo "as uid $(id -u)"' 2>&1 < /dev/null | tail -n 1)
    if test "$answer" = 'as uid 0'; then echo sudo=yes; else echo "sudo_answer=$answer"; fi
fi
echo "connection=$SSH_CONNECTION"
echo "openssh=$(ssh -V 2>&1 | sed -n 's/^OpenSSH_\([0-9]*\.[0-9]*\).*/\1/p')"
for key in /etc/ssh/ssh_host_*_key.pub; do
    ssh-keygen -lf "$key" 2> /dev/null | sed -n 's/^\([0-9]*\) .*(\([A-Z0-9-]*\))$/host_key=\2 \1/p'
done
PROGRAMS
test ! -d /run/systemd/system || echo systemd=yes
df -Pk / /var | awk 'NR > 1 && (!n++ || $4 < free) { free = $4 } END { print "free_kb=" free }'
test ! -d /run/cloud-init -o -e /run/cloud-init/result.json -o -e /run/cloud-init/disabled ||
    echo booting=yes
# Whatever killed the run that began the change, its timer undoes it.
test ! -e /etc/systemd/system/terrafirma-guard.timer ||
    ! systemctl show -p ActiveState --value terrafirma-guard.timer terrafirma-guard.service \
        2> /dev/null | grep -qxE 'active|activating' || echo guarded=yes
for conf in /etc/postgresql/*/*/postgresql.conf; do
    test -e "$conf" || continue
    directory=${conf%/*}
    echo "cluster=${directory#/etc/postgresql/}"
    cluster=${directory#/etc/postgresql/}
    # Terrafirma makes this drop-in before the cluster, so a cluster of an interrupted run has it.
    unit=postgresql@${cluster%/*}-${cluster#*/}.service
    test ! -e "/etc/systemd/system/$unit.d/terrafirma.conf" || echo "own=$cluster"
    for mark in retired unfinished; do
        test ! -e "/etc/systemd/system/$unit.d/terrafirma-$mark.conf" || echo "$mark=$cluster"
    done
done
# This unit is transient: its file exists only while an upgrade runs.
test ! -e /run/systemd/transient/terrafirma-postgres-upgrade.service || echo upgrading=yes
# Reads the installed packages and the lists of the last refresh, without the network.
apt-cache pkgnames postgresql- 2> /dev/null | sed -n 's/^postgresql-\([0-9][0-9]*\)$/offered=\1/p'
dpkg-query -Wf '${db:Status-Status} ${Package}\n' docker-ce containerd.io podman-docker \
    2> /dev/null | sed -n 's/^installed /engine=/p'
# An engine from a snap has its own root file system, networks and rules, but the same socket.
for snap in docker; do test ! -e "/snap/$snap/current" || echo "snap=$snap"; done
for timer in apt-daily.timer apt-daily-upgrade.timer; do
    for link in /etc/systemd/system/$timer /run/systemd/system/$timer; do
        test "$(readlink "$link")" != /dev/null || { echo "masked=$timer"; break; }
    done
done
caddyfile=/etc/caddy/Caddyfile
# Only root and Caddy can read our Caddyfile, so recognise it by our drop-in instead.
ours=/etc/systemd/system/caddy.service.d/terrafirma.conf
if test -e "$caddyfile" && { test -r "$caddyfile" || test ! -e "$ours"; } &&
    ! grep -qs 'Managed by Terrafirma' "$caddyfile"; then
    # The package's own Caddyfile, unchanged since the installation, is not foreign.
    { dpkg-query -W caddy && ! dpkg --verify caddy | grep -q " $caddyfile\$"; } > /dev/null 2>&1 ||
        echo caddyfile=foreign
fi
if test -e /etc/systemd/system/pgbouncer.service.d/terrafirma.conf; then
    { ! systemctl is-active pgbouncer.service && ! systemctl is-enabled pgbouncer.service; } \
        > /dev/null 2>&1 || echo pooler=ours
fi
# Leave out bridges, since Docker's networks are bridges, but keep one with the default route.
uplink=$(ip -4 route show default 2> /dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -n 1)
ip -4 -oneline address 2> /dev/null | while read -r _ device _ address _; do
    case $device in
    lo) ;;
    "$uplink") echo "network=$address" ;;
    *) test -d "/sys/class/net/$device/bridge" || echo "network=$address" ;;
    esac
done
"""


class Machine(FactBase[MachineState]):
    """Everything that a run must know of a host first, asked as the connected user."""

    @staticmethod
    @override
    def default() -> MachineState:
        return Machine().process([])

    @override
    def command(self) -> str:
        return _PROBE.replace(
            "PROGRAMS",
            f"for program in {' '.join(PACKAGES)}; do command -v $program > /dev/null || "
            'echo "missing=$program"; done',
        )

    @override
    def process(self, output: list[str]) -> MachineState:
        pairs = [line.split("=", 1) for line in output if "=" in line]
        one = dict(pairs)
        if not (one.get("free_kb") or "0").isdigit():
            raise FactProcessError(f"df answered {one['free_kb']!r}")
        try:
            networks = {IPv4Interface(value).network for key, value in pairs if key == "network"}
        except ValueError as error:
            raise FactProcessError(f"ip answered what is no network: {error}") from error
        return MachineState(
            id=one.get("id", ""),
            version=one.get("version", ""),
            source="distro",
            name=one.get("name", "") or "an unknown system",
            architecture=one.get("architecture", ""),
            user=one.get("user", ""),
            root="root" in one,
            sudo="sudo" in one,
            sudo_answer=one.get("sudo_answer", ""),
            openssh=_version(one.get("openssh", "")),
            host_keys=dict(_host_key(value) for key, value in pairs if key == "host_key"),
            connection=one.get("connection", ""),
            missing=[value for key, value in pairs if key == "missing"],
            systemd="systemd" in one,
            free_gb=int(one.get("free_kb") or 0) / 1024**2,
            booting="booting" in one,
            guarded="guarded" in one,
            clusters=[value for key, value in pairs if key == "cluster"],
            own_clusters=[value for key, value in pairs if key == "own"],
            retired_clusters=[value for key, value in pairs if key == "retired"],
            unfinished_clusters=[value for key, value in pairs if key == "unfinished"],
            upgrading="upgrading" in one,
            postgres_offered=sorted(
                {int(value) for key, value in pairs if key == "offered" and value.isdigit()}
            ),
            foreign_engine=[value for key, value in pairs if key == "engine"],
            snaps=[value for key, value in pairs if key == "snap"],
            masked=[value for key, value in pairs if key == "masked"],
            foreign_caddyfile="caddyfile" in one,
            pooler="pooler" in one,
            networks=sorted(map(str, networks)),
        )


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def _host_key(text: str) -> tuple[str, int]:
    kind, _, bits = text.partition(" ")
    if not bits.isdigit():
        raise FactProcessError(f"ssh-keygen answered {text!r}")
    return kind, int(bits)


class HardwareState(TypedDict):
    memory: int  # kB
    cores: int
    ssd: bool  # False only for a disk that is known to rotate


class Hardware(FactBase[HardwareState | None]):
    """Memory, cores and the kind of disk below `path`, or below the nearest parent that exists."""

    @override
    def command(self, path: str) -> StringCommand:
        return StringCommand(
            StringCommand("path=", QuoteString(path), _separator=""),
            '; while test ! -e "$path"; do path=${path%/*}; path=${path:-/}; done;',
            "awk '/^MemTotal:/ { print \"memory=\" $2 }' /proc/meminfo;",
            # The memory limit of a container, if there is one: cgroup v2, then v1.
            "for limit in memory.max memory/memory.limit_in_bytes; do",
            "limit=/sys/fs/cgroup/$limit;",
            'test ! -r "$limit" || echo "limit=$(cat "$limit")"; done;',
            'echo "cores=$(nproc)"; device=$(findmnt -nro SOURCE -T "$path");',
            # Many virtual disks claim to rotate. They have no transport: believe only real disks.
            'lsblk -nso ROTA,TRAN "$device" 2> /dev/null |',
            "awk '$1 == 1 && $2 ~ /^(sata|sas|ata)$/ { print \"rotates\"; exit }'",
        )

    @override
    def process(self, output: list[str]) -> HardwareState:
        pairs = [line.partition("=")[::2] for line in output]
        limits = [int(value) // 1024 for key, value in pairs if key == "limit" and value.isdigit()]
        try:
            one = dict(pairs)
            return HardwareState(
                memory=min(int(one["memory"]), *limits, 2**62),
                cores=int(one["cores"]),
                ssd="rotates" not in one,
            )
        except (KeyError, ValueError) as error:
            raise FactProcessError(f"/proc/meminfo and nproc answered {output[:3]!r}") from error


class UsedNetworks(FactBase[list[str]]):
    """IPv4 networks in which the host has an address or a route, like "192.0.2.0/24"."""

    default = list

    @override
    def command(self) -> str:
        return "ip -4 -oneline address | awk '{ print $4 }'; ip -4 route | awk '{ print $1 }'"

    @override
    def process(self, output: list[str]) -> list[str]:
        try:
            return sorted(
                {str(IPv4Interface(line).network) for line in output if line[:1].isdigit()}
            )
        except ValueError as error:
            raise FactProcessError(f"ip answered {output!r}") from error


class Listener(TypedDict):
    port: int
    process: str  # name of the program
    unit: str  # its systemd unit, or ""


def _ranges(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The first and the last number of each consecutive run of numbers."""
    for _, row in groupby(enumerate(sorted({*numbers})), lambda pair: pair[1] - pair[0]):
        neighbours = [number for _, number in row]
        yield neighbours[0], neighbours[-1]


class Listeners(FactBase[list[Listener]]):
    """
    The programs that listen on TCP `ports`; for 443 also on UDP, which HTTP/3 uses.

    Needs root to see other users' processes.
    """

    default = list

    @override
    def command(self, ports: list[int]) -> str:
        wanted = " or ".join(
            f"sport >= :{first} and sport <= :{last}" for first, last in _ranges(ports)
        )
        quic = "ss -Hlunp '( sport = :443 )'; " if 443 in ports else ""
        return (
            f"{{ ss -Hltnp '( {wanted} )'; {quic}}} | while read -r _ _ _ address _ users; do "
            'process=${users#*\\"}; process=${process%%\\"*}; '
            "pid=${users#*pid=}; pid=${pid%%,*}; "
            "unit=$(sed -n 's|.*/\\([^/]*\\.service\\)\\(/.*\\)*$|\\1|p' \"/proc/$pid/cgroup\" "
            "2> /dev/null | head -n 1); "
            'echo "${address##*:}|$process|$unit"; done | sort -u'
        )

    @override
    def process(self, output: list[str]) -> list[Listener]:
        listeners = []
        for line in output:
            try:
                port, process, unit = line.split("|")
                listeners.append(Listener(port=int(port), process=process, unit=unit))
            except ValueError as error:
                raise FactProcessError(f"ss answered {line!r}") from error
        return listeners

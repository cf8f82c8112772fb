"""What kind of host this is."""

from __future__ import annotations

from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError
from typing_extensions import override


class MachineState(TypedDict):
    id: str  # "debian", "ubuntu" …
    version: str  # "13", "24.04" …
    name: str  # as in PRETTY_NAME
    architecture: str  # dpkg's name: "amd64", "arm64" …
    user: str  # who is connected
    root: bool  # that user is root
    sudo: bool  # that user may become root without a password
    systemd: bool
    free_gb: float  # on the fuller of / and /var
    booting: bool  # cloud-init has not finished
    clusters: list[str]  # PostgreSQL's, like "17/main"
    own_clusters: list[str]  # those of them that Terrafirma configured


_PROBE = r"""
test ! -r /etc/os-release || . /etc/os-release
echo "id=$ID"; echo "version=$VERSION_ID"; echo "name=$PRETTY_NAME"
echo "architecture=$(dpkg --print-architecture 2> /dev/null || uname -m)"
echo "user=$(id -un)"
if test "$(id -u)" -eq 0; then echo root=yes
elif sudo -n true 2> /dev/null; then echo sudo=yes; fi
test ! -d /run/systemd/system || echo systemd=yes
df -Pk / /var | awk 'NR > 1 && (!n++ || $4 < free) { free = $4 } END { print "free_kb=" free }'
test ! -d /run/cloud-init -o -e /run/cloud-init/result.json -o -e /run/cloud-init/disabled ||
    echo booting=yes
for conf in /etc/postgresql/*/*/postgresql.conf; do
    test -e "$conf" || continue
    directory=${conf%/*}
    echo "cluster=${directory#/etc/postgresql/}"
    test ! -e "$directory/conf.d/terrafirma.conf" || echo "own=${directory#/etc/postgresql/}"
done
"""


class Machine(FactBase[MachineState]):
    """All that must be known of a host before anything else, asked as the connected user."""

    @staticmethod
    @override
    def default() -> MachineState:
        return Machine().process([])

    @override
    def command(self) -> str:
        return _PROBE

    @override
    def process(self, output: list[str]) -> MachineState:
        pairs = [line.split("=", 1) for line in output if "=" in line]
        one = dict(pairs)
        if not (one.get("free_kb") or "0").isdigit():
            raise FactProcessError(f"df answered {one['free_kb']!r}")
        return MachineState(
            id=one.get("id", ""),
            version=one.get("version", ""),
            name=one.get("name", "") or "an unknown system",
            architecture=one.get("architecture", ""),
            user=one.get("user", ""),
            root="root" in one,
            sudo="sudo" in one,
            systemd="systemd" in one,
            free_gb=int(one.get("free_kb") or 0) / 1024**2,
            booting="booting" in one,
            clusters=[value for key, value in pairs if key == "cluster"],
            own_clusters=[value for key, value in pairs if key == "own"],
        )


class Listener(TypedDict):
    port: int
    process: str  # name of the program
    unit: str  # systemd unit it runs in, or ""


class Listeners(FactBase[list[Listener]]):
    """Who listens on TCP `ports`; needs root to see other users' processes."""

    default = list

    @override
    def command(self, ports: list[int]) -> str:
        wanted = " or ".join(f"sport = :{port}" for port in sorted(ports))
        return (
            f"ss -Hltnp '( {wanted} )' | while read -r _ _ _ address _ users; do "
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

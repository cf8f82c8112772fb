"""Facts about the machine, its hardware, networks and listeners."""

import getpass
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from terrafirma.host.facts import Hardware, Listeners, Machine, UsedNetworks
from tests.unit.facts import ask, shell, text
from tests.unit.programs import Program

# --- machine --------------------------------------------------------------------------------------

MACHINE = """\
id=debian
version=13
name=Debian GNU/Linux 13 (trixie)
architecture=amd64
user=root
root=yes
systemd=yes
free_kb=78453624
host_key=RSA 3072
host_key=ED25519 256
openssh=10.0
cluster=17/main
own=17/main
""".splitlines()


def test_a_host() -> None:
    state = Machine().process(MACHINE)
    assert state == {
        "free_gb": pytest.approx(74.8, abs=0.1),
        "id": "debian",
        "version": "13",
        "source": "distro",
        "name": "Debian GNU/Linux 13 (trixie)",
        "architecture": "amd64",
        "user": "root",
        "root": True,
        "sudo": False,
        "sudo_answer": "",
        "connection": "",
        "missing": [],
        "systemd": True,
        "booting": False,
        "guarded": False,
        "openssh": (10, 0),
        "host_keys": {"RSA": 3072, "ED25519": 256},
        "clusters": ["17/main"],
        "own_clusters": ["17/main"],
        "retired_clusters": [],
        "unfinished_clusters": [],
        "upgrading": False,
        "postgres_offered": [],
        "foreign_engine": [],
        "snaps": [],
        "masked": [],
        "foreign_caddyfile": False,
        "pooler": False,
        "networks": [],
    }


def test_a_host_on_its_first_day() -> None:
    state = Machine().process(
        [
            *("id=ubuntu", "version=24.04", "name=Ubuntu 24.04.3 LTS", "architecture=arm64"),
            *("user=ubuntu", "sudo=yes", "systemd=yes", "free_kb=7340032", "booting=yes"),
            *("cluster=14/main", "cluster=16/old"),
        ]
    )
    assert (state["root"], state["sudo"], state["booting"]) == (False, True, True)
    assert (state["free_gb"], state["clusters"], state["own_clusters"]) == (
        7,
        ["14/main", "16/old"],
        [],
    )


@pytest.fixture
def machine(tmp_path: Path, program: Program) -> Callable[..., Any]:
    """Asks a machine whose files are below `tmp_path`, and which knows no packages."""
    # The real apt-cache reads the lists of all packages, each time.
    without_packages = program("apt-cache", "exit 0")

    def read(programs: Path = without_packages) -> Any:
        command = text(Machine)
        for path in (
            "/etc/os-release",
            "/run/systemd/system",
            "/run/systemd/transient",
            "/run/cloud-init",
            "/etc/postgresql",
            "/etc/systemd/system",
            "/etc/caddy",
            "/sys/class/net",
            "/snap/",
        ):
            assert path in command
            command = command.replace(path, f"{tmp_path}{path}")
        return Machine().process(shell(command, programs))

    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "os-release").write_text(
        'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n'
    )
    return read


def test_an_engine_of_snapd(machine: Callable[..., Any], tmp_path: Path) -> None:
    assert machine()["snaps"] == []
    (tmp_path / "snap/docker/current").mkdir(parents=True)
    assert machine()["snaps"] == ["docker"]


@pytest.mark.parametrize("place", ["etc", "run"])
def test_masked_timers_are_found(machine: Callable[..., Any], tmp_path: Path, place: str) -> None:
    units = tmp_path / place / "systemd/system"
    units.mkdir(parents=True)
    (units / "apt-daily-upgrade.timer").write_text("[Timer]\n")
    assert machine()["masked"] == []
    (units / "apt-daily.timer").symlink_to("/dev/null")
    assert machine()["masked"] == ["apt-daily.timer"]


def test_this_machine(machine: Callable[..., Any]) -> None:
    state = machine(Path("/usr/bin"))
    assert (state["id"], state["version"], state["name"]) == (
        "debian",
        "12",
        "Debian GNU/Linux 12 (bookworm)",
    )
    assert state["user"] == getpass.getuser()
    assert state["root"] == (os.getuid() == 0)
    free = min(shutil.disk_usage(path).free for path in ("/", "/var")) / 1024**3
    assert state["free_gb"] == pytest.approx(free, abs=1)
    assert state["architecture"]
    assert (state["systemd"], state["booting"], state["clusters"]) == (False, False, [])


def test_a_machine_without_os_release(machine: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "etc" / "os-release").unlink()
    state = machine()
    assert (state["id"], state["name"]) == ("", "an unknown system")
    assert state["user"] == getpass.getuser()


def test_cloud_init_comes_and_goes(machine: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run" / "cloud-init").mkdir(parents=True)
    assert machine()["booting"]
    (tmp_path / "run" / "cloud-init" / "result.json").touch()
    assert not machine()["booting"]


def test_cloud_init_that_is_switched_off(machine: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run" / "cloud-init").mkdir(parents=True)
    (tmp_path / "run" / "cloud-init" / "disabled").touch()
    assert not machine()["booting"]


def test_systemd_and_clusters_are_seen(machine: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run" / "systemd" / "system").mkdir(parents=True)
    for cluster in ("15/main", "17/main"):
        directory = tmp_path / "etc" / "postgresql" / cluster
        directory.mkdir(parents=True)
        (directory / "postgresql.conf").touch()
    mark = tmp_path / "etc/systemd/system/postgresql@17-main.service.d/terrafirma.conf"
    mark.parent.mkdir(parents=True)
    mark.touch()
    state = machine()
    assert state["systemd"]
    assert (state["clusters"], state["own_clusters"]) == (["15/main", "17/main"], ["17/main"])


@pytest.mark.parametrize(
    ("mark", "active", "enabled", "pooler"),
    [
        (True, 0, 0, True),
        (True, 0, 1, True),
        (True, 3, 0, True),
        (True, 3, 1, False),
        # Another program's PgBouncer, or only the package.
        (False, 0, 0, False),
    ],
)
def test_a_pooler_of_ours_is_seen_while_it_runs_or_would(
    machine: Callable[..., Any],
    program: Program,
    tmp_path: Path,
    mark: bool,
    active: int,
    enabled: int,
    pooler: bool,
) -> None:
    if mark:
        drop_in = tmp_path / "etc/systemd/system/pgbouncer.service.d/terrafirma.conf"
        drop_in.parent.mkdir(parents=True)
        drop_in.touch()
    path = program(
        "systemctl", f'case "$*" in *is-active*) exit {active} ;; *) exit {enabled} ;; esac'
    )
    assert machine(path)["pooler"] is pooler


def test_a_cluster_is_ours_from_before_it_is_made(
    machine: Callable[..., Any], tmp_path: Path
) -> None:
    """Files in its directory do not mark it: a killed run may leave a cluster without them."""
    directory = tmp_path / "etc" / "postgresql" / "17" / "main"
    (directory / "conf.d").mkdir(parents=True)
    (directory / "postgresql.conf").touch()
    (directory / "conf.d" / "terrafirma.conf").touch()
    mark = tmp_path / "etc/systemd/system/postgresql@17-test.service.d/terrafirma.conf"
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert (machine()["clusters"], machine()["own_clusters"]) == (["17/main"], [])


@pytest.mark.parametrize(
    ("uplink", "networks"),
    [("eth0", ["10.0.0.0/20", "192.0.2.0/24"]), ("br-own", ["10.0.0.0/20", "172.20.0.0/16"])],
)
def test_networks_that_are_shared_with_neighbours_are_told_from_dockers(
    machine: Callable[..., Any], tmp_path: Path, program: Program, uplink: str, networks: list[str]
) -> None:
    """A bridge counts only if it leads to the internet."""
    for device in ("br-own", "docker0"):
        (tmp_path / "sys/class/net" / device / "bridge").mkdir(parents=True)
    ens = "echo '3: ens10    inet 10.0.3.7/20 brd 10.0.15.255 scope global ens10'"
    lan = {
        "eth0": "echo '2: eth0    inet 192.0.2.7/24 brd 192.0.2.255 scope global eth0'",
        "br-own": "echo '2: br-own    inet 172.20.0.7/16 brd 172.20.255.255 scope global br-own'",
    }
    path = program(
        "ip",
        f"""case "$*" in *route*) echo 'default via 192.0.2.1 dev {uplink} proto dhcp' ;; *)
        echo '1: lo    inet 127.0.0.1/8 scope host lo'; {lan[uplink]}; {ens}
        echo '4: docker0    inet 172.17.0.1/16 brd 172.17.255.255 scope global docker0' ;; esac""",
    )
    assert machine(path)["networks"] == networks


def test_another_docker_engine_is_seen_once_it_is_installed(
    machine: Callable[..., Any], program: Program
) -> None:
    """dpkg-query of Debian 13 prints no line for a package that it does not know."""
    path = program(
        "dpkg-query",
        """echo 'not-installed podman-docker'
        echo 'config-files docker-ce'
        echo 'installed containerd.io'
        echo 'dpkg-query: no packages found matching x' >&2; exit 1""",
    )
    assert machine(path)["foreign_engine"] == ["containerd.io"]
    path = program("dpkg-query", "echo 'not-installed docker-ce'; exit 1")
    assert machine(path)["foreign_engine"] == []
    path = program("dpkg-query", "echo 'installed docker-ce'; echo 'installed containerd.io'")
    assert machine(path)["foreign_engine"] == ["docker-ce", "containerd.io"]


@pytest.mark.parametrize(
    ("content", "known", "verify", "foreign"),
    [
        (None, True, "??5?????? c /etc/caddy/Caddyfile", False),
        ("# Managed by Terrafirma: tasks/caddy.py\n", True, "??5?????? c {caddyfile}", False),
        ("# Managed by Terrafirma: tasks/caddy.py\n", False, "", False),
        # The package's own Caddyfile, although another file of the package was changed.
        (":80 {\n}\n", True, "", False),
        (":80 {\n}\n", True, "??5?????? c /lib/systemd/system/caddy.service", False),
        (":80 {\n}\n", True, "??5?????? c {caddyfile}.d/x", False),
        (":80 {\n}\n", True, "??5?????? c {caddyfile}", True),
        # Caddy was not installed from a package.
        (":80 {\n}\n", False, "", True),
    ],
)
def test_a_foreign_caddyfile_is_seen(
    machine: Callable[..., Any],
    program: Program,
    tmp_path: Path,
    content: str | None,
    known: bool,
    verify: str,
    foreign: bool,
) -> None:
    caddyfile = tmp_path / "etc" / "caddy" / "Caddyfile"
    caddyfile.parent.mkdir()
    if content is not None:
        caddyfile.write_text(content)
    program("dpkg-query", f"exit {0 if known else 1}")
    path = program("dpkg", f'test "$1" != --verify || echo "{verify.format(caddyfile=caddyfile)}"')
    assert machine(path)["foreign_caddyfile"] is foreign


# --- hardware and networks ------------------------------------------------------------------------

HARDWARE = """\
memory=24684092
limit=9223372036854771712
cores=2
""".splitlines()


def test_the_hardware_of_a_host() -> None:
    """A target of the tests: without a limit, cgroup v1 has a huge number."""
    assert Hardware().process(HARDWARE) == {"memory": 24684092, "cores": 2, "ssd": True}
    rotates = ["memory=8148804", "limit=max", "cores=4", "rotates"]
    assert Hardware().process(rotates) == {"memory": 8148804, "cores": 4, "ssd": False}


def test_a_limit_of_a_container_is_its_memory() -> None:
    limited = ["memory=24684092", "limit=2147483648", "cores=2"]
    assert Hardware().process(limited) == {"memory": 2097152, "cores": 2, "ssd": True}


def hardware_below(directory: Path, path: Path | None, data: str) -> Any:
    """The hardware of a machine whose /proc and /sys are below `directory`."""
    command = text(Hardware, path=data)
    for one in ("/proc/meminfo", "/sys/fs/cgroup"):
        assert one in command
        command = command.replace(one, f"{directory}{one}")
    return Hardware().process(shell(command, path))


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    (tmp_path / "sys" / "fs" / "cgroup" / "memory").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(
        "MemTotal:       24684092 kB\nMemFree:         5512832 kB\nMemAvailable:   21893072 kB\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("limits", "memory"),
    [
        ({}, 24684092),
        ({"memory.max": "max"}, 24684092),
        ({"memory.max": "2147483648"}, 2097152),
        ({"memory.max": "1099511627776"}, 24684092),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, 24684092),
        ({"memory/memory.limit_in_bytes": "536870912"}, 524288),
    ],
)
def test_memory_is_what_the_machine_has_or_the_container_may_use(
    meminfo: Path, limits: dict[str, str], memory: int
) -> None:
    for name, limit in limits.items():
        (meminfo / "sys" / "fs" / "cgroup" / name).write_text(f"{limit}\n")
    assert hardware_below(meminfo, None, "/")["memory"] == memory


@pytest.mark.parametrize(
    ("lsblk", "ssd"),
    [
        # A partition and its disk: lsblk shows a transport for the disk only.
        ("echo '1       '; echo '1 sata  '", False),
        ("echo '1       '; echo '1 sas'", False),
        ("echo '0       '; echo '0 sata  '", True),
        ("echo '0       '; echo '0 nvme  '", True),
        # A virtual disk that claims to rotate.
        ("echo '1 virtio'", True),
        ("echo '1       '; echo '1       '", True),
        # A volume over two disks, one of which rotates.
        ("echo '1'; echo '0 nvme'; echo '1 ata'", False),
        ("echo 'lsblk: overlay: not a block device' >&2; exit 32", True),
    ],
)
def test_only_a_disk_that_is_known_to_rotate_is_none_without_seeks(
    meminfo: Path, program: Program, lsblk: str, ssd: bool
) -> None:
    program("findmnt", "echo /dev/sda1")
    assert hardware_below(meminfo, program("lsblk", lsblk), "/")["ssd"] is ssd


def test_the_disk_is_the_one_on_which_the_data_are_going_to_be(
    meminfo: Path, program: Program
) -> None:
    program("lsblk", "exit 32")
    path = program("findmnt", 'for word in "$@"; do :; done; echo "$word" > "$0.asked"')
    there = meminfo / "it's there"
    there.mkdir()
    hardware_below(meminfo, path, f"{there}/17/main")
    assert (path / "findmnt.asked").read_text() == f"{there}\n"
    hardware_below(meminfo, path, "/no-such/17/main")
    assert (path / "findmnt.asked").read_text() == "/\n"


def test_the_hardware_of_this_machine() -> None:
    known = Hardware().process(shell(text(Hardware, path="/var/lib/postgresql/17/main")))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024
    assert 0 < known["memory"] <= total
    assert known["cores"] == len(os.sched_getaffinity(0))
    assert isinstance(known["ssd"], bool)


ADDRESSES = """\
1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever
2: docker0    inet 10.210.0.1/24 brd 10.210.0.255 scope global docker0\\       valid_lft forever
180: eth0    inet 172.17.0.3/16 brd 172.17.255.255 scope global eth0\\       valid_lft forever
181: wg0    inet 10.8.0.2 peer 10.8.0.1/32 scope global wg0\\       valid_lft forever
"""
ROUTES = """\
default via 172.17.0.1 dev eth0
0.0.0.0/1 via 10.8.0.1 dev wg0
10.8.0.1 dev wg0 proto kernel scope link src 10.8.0.2
10.210.0.0/24 dev docker0 proto kernel scope link src 10.210.0.1 linkdown
172.17.0.0/16 dev eth0 proto kernel scope link src 172.17.0.3
192.168.7.0/24 proto static metric 50
\tnexthop via 172.17.0.1 dev eth0 weight 1
"""


def test_networks_that_are_used(program: Program) -> None:
    """The output of `ip` on a target of the tests, with a tunnel and a multipath route added."""
    path = program(
        "ip",
        f"""case "$*" in
        *address*) cat << 'END'\n{ADDRESSES}END
        ;; *) cat << 'END'\n{ROUTES}END
        esac""",
    )
    assert ask(UsedNetworks, path) == [
        *("0.0.0.0/1", "10.210.0.0/24", "10.8.0.1/32", "10.8.0.2/32"),
        *("127.0.0.0/8", "172.17.0.0/16", "192.168.7.0/24"),
    ]


@pytest.mark.skipif(not shutil.which("ip"), reason="no ip here")
def test_networks_of_this_machine() -> None:
    assert "127.0.0.0/8" in ask(UsedNetworks)


# --- listeners ------------------------------------------------------------------------------------


def test_listeners_of_a_host() -> None:
    assert Listeners().process(
        [
            "22|sshd|ssh.service",
            "443|caddy|caddy.service",
            "8000|docker-proxy|docker.service",
            "25||",
        ]
    ) == [
        {"port": 22, "process": "sshd", "unit": "ssh.service"},
        {"port": 443, "process": "caddy", "unit": "caddy.service"},
        {"port": 8000, "process": "docker-proxy", "unit": "docker.service"},
        {"port": 25, "process": "", "unit": ""},
    ]


def test_listeners_are_told_apart_by_program_and_unit(program: Program, tmp_path: Path) -> None:
    """Output of `ss -Hltnp` for two workers, for IPv6, and without the right to see processes."""
    (tmp_path / "proc" / "812").mkdir(parents=True)
    (tmp_path / "proc" / "812" / "cgroup").write_text(
        "1:name=systemd:/system.slice/nginx.service\n0::/system.slice/nginx.service\n"
    )
    (tmp_path / "proc" / "900").mkdir()
    (tmp_path / "proc" / "900" / "cgroup").write_text(
        "0::/system.slice/system-postgresql.slice/postgresql@17-main.service\n"
    )
    path = program(
        "ss",
        """cat << 'END'
LISTEN 0 511   0.0.0.0:80   0.0.0.0:* users:(("nginx",pid=812,fd=6),("nginx",pid=813,fd=6))
LISTEN 0 511      [::]:80      [::]:* users:(("nginx",pid=812,fd=7),("nginx",pid=813,fd=7))
LISTEN 0 200 127.0.0.1:5432 0.0.0.0:* users:(("postgres",pid=900,fd=7))
LISTEN 0 4096        *:443        *:*
END""",
    )
    command = text(Listeners, ports=[80, 443, 5432]).replace("/proc/", f"{tmp_path}/proc/")
    assert sorted(shell(command, path)) == [
        "443||",
        "5432|postgres|postgresql@17-main.service",
        "80|nginx|nginx.service",
    ]


@pytest.mark.skipif(not shutil.which("ss"), reason="no ss here")
def test_listeners_of_this_machine() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("127.0.0.1", 0)) as no,
    ):
        port, other = server.getsockname()[1], no.getsockname()[1]
        no.close()
        (listener,) = ask(Listeners, ports=[port, other])
    assert listener["port"] == port
    assert listener["process"] == Path("/proc/self/comm").read_text().strip()
    assert ask(Listeners, ports=[port]) == []

"""Firewall: from outside and from containers, exactly what is declared is open."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import DEPLOYED, clone, serves
from tests.e2e.firewall.scans import route, scan, scan_from_container, send, with_ipv6
from tests.e2e.support import (
    STATE,
    Container,
    Target,
    api,
    bystander,
    changed,
    eventually,
    get,
    options,
    output,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.budget(minutes=3, why="scans of all ports, and a few runs"),
]

PAGE = "tasks/firewall.py"
PROVED = "Prove that everybody still gets in"
WEB = [22, 80, 443]
# The container that publishes ports, as a compose project on the server would.
PUBLISHED = "published"
LISTEN = (
    "import http.server, socket, threading\n"
    "udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(('', 9001))\n"
    "def take():\n"
    "    while True:\n"
    "        udp.recvfrom(99); print('datagram', flush=True)\n"
    "threading.Thread(target=take, daemon=True).start()\n"
    "http.server.HTTPServer(('', 9000), http.server.BaseHTTPRequestHandler).serve_forever()"
)
SERVER_V6, OUTSIDER_V6 = "fd00:f1::2", "fd00:f1::3"


@dataclass(frozen=True)
class Setup:
    server: Target
    outsider: Container
    image: str

    def publish(self) -> None:
        self.server.run(f"docker rm --force {PUBLISHED} 2> /dev/null || true")
        self.server.run(
            f"docker run --detach --name {PUBLISHED} --restart always -p 9000:9000 -p 9001:9001/udp"
            f' --entrypoint python3 {self.image} -c "{LISTEN}"'
        )
        inside = self.container(PUBLISHED)
        eventually(lambda: self.server.call(f"curl -s http://{inside}:9000/").returncode == 0, 20)

    def container(self, name: str) -> str:
        words = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
        return self.server.run(f"docker inspect --format '{words}' {name}").split()[0]

    def run(self, **data: Any) -> list[str]:
        """The changes of a run, besides the proof that the change locks nobody out."""
        done = changed(self.server.deploy(PAGE, **data))
        assert not done or "firewall_enabled" in data or done.pop() == PROVED
        return done

    def drops(self) -> str:
        return self.server.run("nft list chain inet terrafirma inward")


@pytest.fixture(scope="module")
def setup(pyinfra: Pyinfra) -> Iterator[Setup]:
    with (
        clone(pyinfra, "tf-f-server", 2620, DEPLOYED) as server,
        bystander("tf-f-outsider") as outsider,
    ):
        image = server.run("docker ps --format '{{.Image}}' --filter label=terrafirma.release")
        one = Setup(server, outsider, image.split()[0])
        with_ipv6(server, SERVER_V6)
        with_ipv6(outsider, OUTSIDER_V6)
        one.publish()
        # A program that somebody started by hand, on IPv4 and IPv6.
        server.run(
            "systemd-run --quiet --unit=by-hand python3 -m http.server 7000 --bind :: "
            "--directory /run/systemd/system"
        )
        eventually(lambda: server.call("curl -s http://127.0.0.1:7000/").returncode == 0, 10)
        yield one


@pytest.mark.promise(
    "From another machine, of all 65,535 TCP ports over IPv4 and IPv6 only those of SSH and the "
    "sites are open, also while a container publishes a port on all addresses"
)
def test_all_ports_from_outside(setup: Setup) -> None:
    assert scan(setup.outsider, setup.server.address) == WEB
    assert scan(setup.outsider, SERVER_V6) == WEB
    assert {status for status, _ in get(setup.outsider, setup.server, 4)} == {200}


@pytest.mark.promise(like=test_all_ports_from_outside)
def test_datagrams_reach_no_container_from_outside(setup: Setup) -> None:
    send(setup.outsider, setup.server.address, 9001)
    assert "datagram" not in setup.server.run(f"docker logs {PUBLISHED} 2>&1")
    # What the host itself sends there arrives.
    send(setup.server, setup.container(PUBLISHED), 9001)
    logs = f"docker logs {PUBLISHED} 2>&1"
    eventually(lambda: "datagram" in setup.server.run(logs), 5)


@pytest.mark.promise(
    "A neighbour that routes to the containers' networks reaches no container, and no PostgreSQL"
)
def test_a_neighbour_with_a_route_reaches_nothing(setup: Setup) -> None:
    server, inside = setup.server, setup.container(PUBLISHED)
    docker0 = server.run("ip -4 -oneline address show dev docker0").split()[3].split("/")[0]

    def found() -> tuple[list[int], list[int]]:
        return (
            scan(setup.outsider, inside, 9000),
            scan(setup.outsider, docker0, 22, 5432, 7000),
        )

    with route(setup.outsider, server, "10.210.0.0/16"):
        assert found() == ([], [22])
        # Without the rules, this engine lets them through.
        server.run("systemctl stop terrafirma-firewall && nft delete table inet terrafirma")
        assert found() == ([9000], [22, 5432, 7000])
        assert setup.run() == ["Run the firewall"]
        assert found() == ([], [22])


@pytest.mark.promise(
    "A container reaches the databases that are declared, and nothing else of its host: not sshd, "
    "not Caddy's admin, not another application's ports"
)
def test_a_container_reaches_the_database_alone(setup: Setup) -> None:
    server = setup.server
    docker0 = server.run("ip -4 -oneline address show dev docker0").split()[3].split("/")[0]
    replica = server.run("docker ps --quiet --filter label=terrafirma.release").split()[0]
    gateway = server.run(
        "docker network inspect apps --format '{{(index .IPAM.Config 0).Gateway}}'"
    )
    assert scan_from_container(server, replica, docker0) == [5432]
    few = (22, 80, 443, 2019, 5432, 7000, *range(8000, 8008))
    # PostgreSQL listens on docker0's address alone.
    assert scan_from_container(server, replica, gateway, *few) == []
    assert scan_from_container(server, PUBLISHED, docker0, *few) == [5432]
    # The sites are open to it as to everyone, under the host's public address.
    assert scan_from_container(server, replica, server.address, 22, 80, 443, 5432, 7000) == [
        80,
        443,
    ]


@pytest.mark.promise("The rules survive `nft flush ruleset` and a restart of Docker")
def test_the_rules_come_back(setup: Setup) -> None:
    server = setup.server
    state = "/usr/local/lib/terrafirma/firewall state"
    server.run("nft flush ruleset")
    eventually(lambda: "in_force" in server.run(state), 2)
    server.run("systemctl restart docker")
    serves(server, DEPLOYED)
    assert scan(setup.outsider, server.address, *WEB, 2019, 5432, 7000, *range(8000, 9100)) == WEB
    assert "in_force" in server.run(state)
    # A rule of somebody's in our table: the next run removes it.
    server.run("nft insert rule inet terrafirma outside tcp dport 7000 accept")
    assert scan(setup.outsider, server.address, 7000) == [7000]
    assert setup.run() == ["Close everything else"]
    assert scan(setup.outsider, server.address, 7000) == []
    assert setup.run() == []


HOLD = """
import json, socket, sys
address, port = sys.argv[1], int(sys.argv[2])
one = socket.create_connection((address, port), 5)
print(json.dumps("connected"), flush=True)
sys.stdin = open("/tmp/go")
sys.stdin.readline()
one.sendall(b"HEAD / HTTP/1.0\\r\\n\\r\\n")
one.settimeout(5)
print(json.dumps(one.recv(12).decode()), flush=True)
"""


@pytest.mark.promise(
    "A port of `firewall_open` is open to its sources alone, and when it closes, connections that "
    "are established go on"
)
def test_a_declared_port_is_open_to_its_sources(setup: Setup) -> None:
    server, outsider = setup.server, setup.outsider
    mine = {"port": 9000, "sources": [f"{outsider.address}/32", f"{OUTSIDER_V6}/128"]}
    with bystander("tf-f-other") as other:
        assert setup.run(firewall_open=[mine]) == [
            "Declare what is open", "Run the firewall",
        ]  # fmt: skip
        assert setup.run(firewall_open=[mine]) == []
        assert scan(outsider, server.address, 7000, 9000) == [9000]
        assert scan(other, server.address, 22, 7000, 9000) == [22]
        # A neighbour's route is another way to the same container, which is not declared.
        with route(outsider, server, "10.210.0.0/16"):
            assert scan(outsider, setup.container(PUBLISHED), 9000) == []
        outsider.run("rm -f /tmp/go /tmp/said; mkfifo /tmp/go; cat > /tmp/hold.py", stdin=HOLD)
        outsider.run(f"python3 /tmp/hold.py {server.address} 9000 > /tmp/said 2>&1 < /dev/null &")
        eventually(lambda: "connected" in outsider.run("cat /tmp/said"), 5)
        setup.run()
        assert scan(outsider, server.address, 9000) == []
        outsider.run("echo > /tmp/go")
        eventually(lambda: "HTTP/1.0" in outsider.run("cat /tmp/said"), 5)


@pytest.mark.long
def test_a_rate_is_kept_for_each_source(setup: Setup) -> None:
    server, outsider = setup.server, setup.outsider
    setup.run(firewall_open=[{"port": 7000, "rate": "5/minute"}])
    with bystander("tf-f-other") as other:
        found = [scan(outsider, server.address, 7000) for _ in range(8)]
        assert found[:5] == [[7000]] * 5
        assert found[6:] == [[], []]
        assert scan(other, server.address, 7000) == [7000]
        # IPv6 is counted by itself.
        assert scan(outsider, SERVER_V6, 7000) == [7000]
    setup.run()


@pytest.mark.promise(
    "A run from a machine that reaches the server's own address proves from outside what is open, "
    "and fails where it is not what is declared, naming the program that listens"
)
def test_a_run_proves_what_is_open(setup: Setup, tmp_path: Path) -> None:
    server = setup.server
    known = tmp_path / "known_hosts"
    start = f"[127.0.0.1]:{server.port} "
    lines = (STATE / "known_hosts").read_text().splitlines()
    known.write_text(
        "".join(f"{server.address} {one.removeprefix(start)}\n" for one in lines
                if one.startswith(start))
    )  # fmt: skip

    def prove(page: str = "tasks/exposure.py", **data: Any) -> tuple[int, str]:
        result = server.pyinfra.imported.call(
            "-y", *options(data | {"ssh_known_hosts_file": str(known)}),
            "--user", "root", "--key", str(STATE / "id_ed25519"), server.address, page,
        )  # fmt: skip
        return result.returncode, result.stderr

    code, said = prove()
    assert code == 0, said
    assert "Not proved" not in said
    # Declared, and closed: a rule that somebody made drops it.
    server.run("nft add table inet mine; nft add chain inet mine in "
               "'{ type filter hook input priority 0; }'; "
               "nft add rule inet mine in tcp dport 443 drop")  # fmt: skip
    code, said = prove()
    server.run("nft delete table inet mine")
    assert code != 0
    assert f"443 at {server.address} (Caddy) is declared, and does not answer" in said
    # Open, and not declared.
    server.run("systemctl stop terrafirma-firewall && nft delete table inet terrafirma")
    code, said = prove()
    server.run("systemctl start terrafirma-firewall")
    assert code != 0
    assert f"7000 at {server.address} is open and is not declared (python3)" in said
    assert (
        f"9000 at {server.address} is open and is not declared (the container {PUBLISHED})" in said
    )
    # Behind a NAT, a run says that it could not.
    result = server.pyinfra.imported.call("-y", *server.arguments(), "tasks/exposure.py")
    assert result.returncode == 0
    assert f"Not proved from outside: the host is behind a NAT: 127.0.0.1 port {server.port}" in (
        result.stderr
    )


# A table of another program's, as soon as the file has the comment of an entry.
LOCK = """
table inet lock {
    chain input {
        type filter hook input priority 0; policy accept;
        ct state established accept
        tcp dport 22 drop
    }
}
"""
LOCKS = """
[Service]
ExecStartPost=-/usr/sbin/nft delete table inet lock
ExecStartPost=/bin/sh -c '! grep -q lockout /etc/terrafirma/firewall.nft || nft -f /root/lock.nft'
"""


@pytest.mark.long
@pytest.mark.promise("Rules with which nobody gets in are undone, and the run fails")
def test_rules_that_lock_out_are_undone(setup: Setup) -> None:
    server = setup.server
    drop_in = "/etc/systemd/system/terrafirma-firewall.service.d/lock.conf"
    server.run("cat > /root/lock.nft", stdin=LOCK)
    server.run(f"mkdir -p {drop_in.rpartition('/')[0]} && cat > {drop_in}", stdin=LOCKS)
    server.run("systemctl daemon-reload")
    before = server.run("sha256sum /etc/terrafirma/firewall.nft")
    data = {"firewall_open": [{"port": 9000, "comment": "lockout"}]}
    result = server.pyinfra.imported.call("-y", *options(data), *server.arguments(), PAGE)
    assert result.returncode != 0
    assert "ssh_user: root would no longer get in" in result.stderr
    assert "what is open: the state before is back" in result.stderr
    assert server.run("sha256sum /etc/terrafirma/firewall.nft") == before
    assert scan(setup.outsider, server.address, *WEB, 7000, 9000) == WEB
    server.run(f"rm -r {drop_in.rpartition('/')[0]} && systemctl daemon-reload")
    assert setup.run() == []


@pytest.mark.promise(
    "Rules that do not load leave SSH alone open, and the next run says so and repairs them"
)
def test_rules_that_do_not_load_leave_ssh_open(setup: Setup) -> None:
    server = setup.server
    server.run(
        "echo nonsense >> /etc/terrafirma/firewall.nft; systemctl restart terrafirma-firewall"
    )
    assert scan(setup.outsider, server.address, *WEB, 7000, 9000) == [22]
    result = server.pyinfra.imported.call("-y", *server.arguments(), PAGE)
    assert result.returncode == 0, result.stderr
    assert "the rules did not load at the last start, so SSH alone was open" in result.stderr
    assert scan(setup.outsider, server.address, *WEB, 7000, 9000) == WEB
    assert setup.run() == []


@pytest.mark.long
def test_the_rules_go_when_nobody_wants_them(setup: Setup) -> None:
    server = setup.server
    assert setup.run(firewall_enabled=False) == ["Remove the rules"]
    assert setup.run(firewall_enabled=False) == []
    assert "inet terrafirma" not in server.run("nft list tables")
    assert server.run("find /etc /run /usr/local -name '*firewall*' -path '*terrafirma*'") == ""
    assert scan(setup.outsider, server.address, 7000, 9000) == [7000, 9000]
    assert len(setup.run()) == 3
    assert scan(setup.outsider, server.address, 7000, 9000) == []


@pytest.mark.parametrize(
    ("active", "gone", "words"),
    [
        (
            "mkdir -p /etc/ufw; echo ENABLED=yes > /etc/ufw/ufw.conf;"
            " ln -sf /bin/true /usr/local/bin/ufw",
            "rm -r /etc/ufw /usr/local/bin/ufw",
            "firewall_enabled: ufw is active on the host, and two firewalls hide each other's "
            "mistakes; end it there: ufw disable; or",
        ),
    ],
)
def test_another_firewall_stops_the_run(setup: Setup, active: str, gone: str, words: str) -> None:
    setup.server.run(active)
    try:
        assert words in setup.server.refuse(PAGE)
    finally:
        setup.server.run(gone)


@pytest.mark.long
@pytest.mark.promise(like=test_all_ports_from_outside)
def test_nothing_else_opens_in_the_middle_of_a_release(setup: Setup) -> None:
    server = setup.server
    ports = [*WEB, 2019, 5432, 7000, *range(8000, 8128), 9000]
    found: set[int] = set()
    with ThreadPoolExecutor() as pool:
        for replicas in (2, 4):
            run = pool.submit(server.deploy, "tasks/app.py", **api(replicas=replicas))
            while not run.done():
                found |= {*scan(setup.outsider, server.address, *ports)}
            assert f"Release api, {replicas} replicas" in changed(run.result())
    assert sorted(found) == WEB


@pytest.mark.long
@pytest.mark.promise("The rules are in force before a booting server answers anything")
def test_a_boot_opens_nothing_else(setup: Setup) -> None:
    server, outsider = setup.server, setup.outsider
    ports = [*WEB, 2019, 5432, 7000, *range(8000, 8004), 9000]
    order = server.run("systemctl show -p Before --value terrafirma-firewall.service")
    assert "network-pre.target" in order
    found: set[int] = set()
    output("docker", "stop", "--time", "60", server.name)
    output("docker", "start", server.name)
    for _ in range(40):
        found |= {*scan(outsider, server.address, *ports)}
        if len(found) == len(WEB) and server.call(DEPLOYED.ready).returncode == 0:
            break
    assert sorted(found) == WEB
    with_ipv6(server, SERVER_V6)
    eventually(lambda: "Up" in server.run(f"docker ps --filter name={PUBLISHED}"), 60)
    assert scan(outsider, server.address) == WEB
    assert scan(outsider, SERVER_V6) == WEB
    assert setup.run() == []

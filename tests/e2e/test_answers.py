"""Answers: if something keeps a site from answering, a run plans and repairs it, or names it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import DEPLOYED, clone
from tests.e2e.support import Container, Target, api, bystander, changed, get, options, target

pytestmark = pytest.mark.e2e

DATA = api(replicas=2, drain_seconds=2)
TASKS = ("tasks/docker.py", "tasks/app.py")
CONNECT, RELEASE = "Connect the containers", "Release api, 2 replicas"
FIRST = "$(docker ps -q --filter label=terrafirma.release | head -n 1)"
PID = f"$(docker inspect --format '{{{{.State.Pid}}}}' {FIRST})"

# Settings with which the engine does not start: our own table knows the first, a check on the host
# finds the second, and the third is valid and fails only at the start.
UNDOING: dict[str, dict[str, Any]] = {
    "iptables": {"iptables": False},
    "a file that is not there": {"seccomp-profile": "/etc/docker/nowhere.json"},
    "a port that is taken": {"metrics-addr": "127.0.0.1:2019"},
}


@dataclass(frozen=True)
class Setup:
    server: Target
    outsider: Container

    def answers(self) -> bool:
        return {status for status, _ in get(self.outsider, self.server, 4)} == {200}

    def deploy(self) -> list[str]:
        return changed(self.server.deploy(*TASKS, **DATA))

    def fails(self) -> str:
        """The output of a run that must fail."""
        result = self.server.pyinfra.imported.call(
            "-y", *options(DATA), *self.server.arguments(), *TASKS
        )  # fmt: skip
        assert result.returncode != 0, result.stderr
        assert "Traceback" not in result.stderr
        return result.stderr


@pytest.fixture(scope="module")
def setup(pyinfra: Pyinfra) -> Iterator[Setup]:
    with (
        clone(pyinfra, "tf-v-answers", 2592, DEPLOYED) as server,
        bystander("tf-v-outsider") as outsider,
    ):
        server.deploy(*TASKS, **DATA)
        server.run("apt-get install -qy nftables")
        yield Setup(server, outsider)


@pytest.fixture
def serving(setup: Setup) -> Iterator[Setup]:
    assert setup.server.plan(*TASKS, **DATA) == []
    yield setup
    assert setup.deploy() == []
    assert setup.answers()


def test_a_bare_host_is_left_alone_by_settings_that_would_undo_the_design(pyinfra: Pyinfra) -> None:
    with target(pyinfra, "tf-v-bare", 2593) as bare:
        before = bare.digest()
        for what in ("iptables", "a file that is not there"):
            line = bare.refuse("tasks/docker.py", **DATA, docker_daemon=UNDOING[what])
            assert "docker_daemon: " in line, what
            assert bare.digest() == before, what


@pytest.mark.promise(
    "Engine settings that would break the platform are refused on any server, and the engine "
    "keeps running if it cannot start with new settings"
)
@pytest.mark.parametrize("what", UNDOING)
def test_an_engine_outlives_settings_with_which_it_would_not_start(
    serving: Setup, what: str
) -> None:
    server = serving.server
    before = server.digest()
    result = server.pyinfra.imported.call(
        "-y", *options(DATA | {"docker_daemon": UNDOING[what]}), *server.arguments(), TASKS[0]
    )
    assert result.returncode != 0
    assert "docker_daemon: " in result.stderr
    assert "Traceback" not in result.stderr
    assert server.digest() == before
    assert serving.answers()


def test_a_flag_of_the_unit_and_a_key_exclude_each_other(serving: Setup) -> None:
    server = serving.server
    before = server.digest()
    server.run("cp -p /etc/default/docker /root/docker && "
               "echo 'DOCKER_OPTS=\"--log-level=debug\"' >> /etc/default/docker")  # fmt: skip
    level = {"docker_daemon": {"log-level": "warn"}}
    try:
        result = server.pyinfra.imported.call(
            "-y", *options(DATA | level), *server.arguments(), TASKS[0]
        )  # fmt: skip
    finally:
        server.run("cp -p /root/docker /etc/default/docker")
    assert result.returncode != 0
    assert "specified both as a flag and in the configuration file: log-level" in result.stderr
    assert server.digest() == before


# The damage; the operations that a dry run then plans, and those that a run needs.
REPAIRED: dict[str, tuple[str, list[str], list[str]]] = {
    "a firewall that begins with a flush": ("nft flush ruleset", [CONNECT, RELEASE], [CONNECT]),
    "nat is flushed": ("iptables -t nat -F", [CONNECT, RELEASE], [CONNECT]),
    "a hardening": (
        "sysctl --quiet --write net.ipv4.ip_forward=0",
        [CONNECT, RELEASE],
        [CONNECT],
    ),
    "everything is flushed, and forwarding dropped": (
        "iptables -F; iptables -t nat -F; iptables -X; iptables -P FORWARD DROP",
        [CONNECT, RELEASE],
        [CONNECT],
    ),
    "a replica is paused": (f"docker pause {FIRST}", [RELEASE], [RELEASE]),
    "a replica is stopped by a signal": (
        f"pkill -STOP --nslist net --ns {PID} python3",
        [RELEASE],
        [RELEASE],
    ),
    "a replica is in no network": (f"docker network disconnect apps {FIRST}", [RELEASE], [RELEASE]),
    "a replica resolves no names": (
        f"nsenter --net --target {PID} iptables -t nat -F",
        [RELEASE],
        [RELEASE],
    ),
}
# Further cases of the same kinds, which take more than two minutes together.
LONG = (
    "a hardening",
    "a replica is in no network",
    "nat is flushed",
    "everything is flushed, and forwarding dropped",
    "a replica is stopped by a signal",
    "a replica resolves no names",
)


@pytest.mark.promise(
    "A dry run shows, and a run repairs, everything that keeps replicas from answering: flushed "
    "rules, forwarding switched off, replicas that are paused, hang or lost their network"
)
@pytest.mark.parametrize(
    "what",
    [pytest.param(one, marks=pytest.mark.long if one in LONG else ()) for one in REPAIRED],
)
def test_a_site_that_does_not_answer_is_repaired(serving: Setup, what: str) -> None:
    command, planned, done = REPAIRED[what]
    serving.server.run(command)
    assert serving.server.plan(*TASKS, **DATA) == planned
    assert serving.deploy() == done
    assert serving.answers()


# The obstacle, and how it is removed; the task that notices it, and its message.
REFUSED: dict[str, tuple[str, str, str, str]] = {
    "a foreign table drops forwarded packets": (
        "nft 'add table inet mine; add chain inet mine forward "
        "{ type filter hook forward priority 0; policy drop; }'",
        "nft delete table inet mine",
        RELEASE,
        "the chain forward of the table inet mine (nft) drops what it has no rule for",
    ),
    "a firewall without Caddy": (
        "iptables -I INPUT -p tcp --dport 443 -j DROP",
        "iptables -D INPUT -p tcp --dport 443 -j DROP",
        RELEASE,
        "does not answer (timed out) through Caddy, and the replicas answer",
    ),
    "a rule before Docker's": (
        "iptables -I FORWARD -j DROP",
        "iptables -D FORWARD -j DROP",
        RELEASE,
        "containers have no way out",
    ),
    "a VPN": (
        "ip route add 10.210.1.0/28 dev eth0",
        "ip route delete 10.210.1.0/28 dev eth0",
        CONNECT,
        "through eth0: remove that route",
    ),
    "a Caddy that hangs": (
        "pkill -STOP caddy",
        "pkill -CONT caddy",
        RELEASE,
        "`systemctl restart caddy` starts it anew",
    ),
}


@pytest.mark.promise(
    "A run fails and names the remedy if a firewall, a VPN or a Caddy that hangs keeps a "
    "site from answering"
)
@pytest.mark.parametrize(
    "what",
    [
        pytest.param(one, marks=pytest.mark.long if number else ())
        for number, one in enumerate(REFUSED)
    ],
)
def test_foreign_obstacles_are_named_with_a_remedy(serving: Setup, what: str) -> None:
    command, undo, where, words = REFUSED[what]
    serving.server.run(command)
    try:
        assert where in serving.server.plan(*TASKS, **DATA)
        assert words in serving.fails()
    finally:
        serving.server.run(undo)


def test_rules_in_docker_user_are_intended(serving: Setup) -> None:
    """Rules there that restrict containers are intended."""
    rule = "DOCKER-USER -s 10.210.0.0/16 -o eth0 -j DROP"
    serving.server.run(f"iptables -I {rule}")
    try:
        assert serving.server.plan(*TASKS, **DATA) == []
        assert serving.deploy() == []
    finally:
        serving.server.run(f"iptables -D {rule}")


def test_settings_that_are_read_again_leave_forwarding_on(serving: Setup) -> None:
    server = serving.server
    server.run("echo net.ipv4.ip_forward=0 > /etc/sysctl.d/99-hardening.conf")
    try:
        server.run("sysctl --system")
        assert server.run("cat /proc/sys/net/ipv4/ip_forward") == "1"
        assert serving.answers()
    finally:
        server.run("rm /etc/sysctl.d/99-hardening.conf")

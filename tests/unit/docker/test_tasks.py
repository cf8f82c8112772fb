"""What a run plans for Docker: its engine, docker0, and the paths to the containers."""

import json
import re
from collections.abc import Sequence
from subprocess import CompletedProcess
from typing import Any

import pytest
from pyinfra.facts.files import FileContents

from terrafirma.docker.facts import ContainerReach
from terrafirma.host.facts import UsedNetworks
from terrafirma.host.units import Unit
from terrafirma.paths import DOCKER_ENGINE
from tests.conftest import ROOT, Pyinfra
from tests.unit.fake_host import (
    DEBIAN_12,
    DEBIAN_13,
    DOCKER0,
    ON_172,
    SIX,
    Answers,
    command,
    commands,
    fake,
    machine,
    refusal,
    refuses,
    written,
)

DAEMON_JSON = command(FileContents, path="/etc/docker/daemon.json")
NETWORKS = command(UsedNetworks)


# --- refusals -------------------------------------------------------------------------------------

# The mistake; the task; the host; the key in the message, and what would be right.
REFUSALS: dict[str, tuple[str, list[str], Sequence[str]]] = {
    "a foreign daemon.json": (
        "tasks/docker",
        fake(machine() | {DAEMON_JSON: ["{", '  "bip": "172.26.0.1/16"', "}"]}),
        ("docker_daemon: ", "/etc/docker/daemon.json"),
    ),
    "a pool of addresses in which the server has neighbours": (
        "tasks/docker",
        fake(machine(DEBIAN_13, "network=10.0.0.0/8", "network=10.210.7.9/20")),
        ("docker_address_pool: 10.210.0.0/16 overlaps 10.0.0.0/8", "shares with its neighbours"),
    ),
    "another Docker engine": (
        "tasks/docker",
        fake(machine(DEBIAN_13, "engine=docker-ce", "engine=containerd.io")),
        ("apt_source: ", "docker-ce, containerd.io", "remove that first"),
    ),
    "an engine of snapd": (
        "deploy",
        fake(machine(DEBIAN_13, "snap=docker")),
        ("snap: ", "the snap docker on the host", "snap remove docker"),
    ),
    "another Docker engine below the platform": (
        "deploy",
        fake(machine(DEBIAN_13, "engine=podman-docker")),
        ("apt_source: ", "podman-docker"),
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses_in_one_line_before_anything_changes(
    refused: dict[str, CompletedProcess[str]], what: str
) -> None:
    refuses(refused[what], REFUSALS[what][2])


# --- the engine's configuration -------------------------------------------------------------------


def test_daemon_json_always_has_the_label_that_marks_it_as_ours(pyinfra: Pyinfra) -> None:
    labels = fake(machine(), docker_daemon={"labels": ["rack=7"]})
    result = pyinfra.call("@fake/host", "tasks/docker.py", "--dry", "--diff", *labels)
    if result.returncode:
        assert "docker_daemon" in refusal(result)
    else:
        assert "managed-by=terrafirma" in result.stderr


IPV6 = {"ipv6": True, "fixed-cidr-v6": "fd00:c0de:1::/64"}
DOCKER_DROP_IN = "/etc/systemd/system/docker.service.d/terrafirma.conf"


def test_the_workaround_for_docker0s_ipv6_address_needs_ipv6(pyinfra: Pyinfra) -> None:
    task = ("tasks/docker.py", "--dry", "--diff")
    with_it = pyinfra.call("@fake/host", *task, *fake(machine(), docker_daemon=IPV6))
    assert "ExecStartPost=-/bin/sh -c 'ip -6 " in written(with_it, DOCKER_DROP_IN)
    without = written(pyinfra.call("@fake/host", *task, *fake(machine())), DOCKER_DROP_IN)
    assert "ip -6" not in without


def test_settings_that_break_the_platform_are_refused(pyinfra: Pyinfra) -> None:
    """A bare host refuses them, too, although it has no engine to check them."""
    calls = {
        key: ("@fake/host", "tasks/docker.py", "-y", *fake(machine(), docker_daemon={key: value}))
        for key, value in {
            "hosts": ["tcp://0.0.0.0:2375"],
            "iptables": False,
            "data-root": "/srv/docker",
            "userns-remap": "default",
            "userland-proxy": True,
            "bip": "10.9.0.1/24",
        }.items()
    }
    for key, result in pyinfra.call_all(calls).items():
        assert f"docker_daemon: {key} cannot be set: " in refusal(result)


MISSING_PROFILE = {"seccomp-profile": "/etc/docker/seccomp.json"}


@pytest.mark.parametrize(
    ("kind", "settings", "more", "words"),
    [
        (DEBIAN_12, {"proxies": {}}, {}, "proxies is known to Docker 23.0 and newer"),
        (DEBIAN_13, MISSING_PROFILE, {}, "seccomp.json on the host is missing or not a profile"),
        (
            DEBIAN_13,
            MISSING_PROFILE,
            {command(FileContents, path="/etc/docker/seccomp.json"): ["{", "broken"]},
            "seccomp.json on the host is missing or not a profile",
        ),
        (
            DEBIAN_13,
            {"runtimes": {"crun": {"path": "/usr/bin/crun"}}},
            {},
            "/usr/bin/crun on the host is not a program",
        ),
    ],
)
def test_settings_that_do_not_suit_the_host_are_refused(
    pyinfra: Pyinfra, kind: dict[str, str], settings: Any, more: Answers, words: str
) -> None:
    host = fake(machine(kind) | more, docker_daemon=settings)
    line = refusal(pyinfra.call("@fake/host", "tasks/docker.py", "-y", *host))
    assert f"docker_daemon: {words}" in line or words in line


RUNNING = ["ActiveState=active", "UnitFileState=enabled", "started"]
# What systemd reports of the engine; whether the run starts or restarts it.
ENGINES: dict[str, tuple[list[str], bool]] = {
    "never_ran": ([], True),
    "stopped": (["ActiveState=inactive", "UnitFileState=enabled", "started"], True),
    "failed": (["ActiveState=failed", "UnitFileState=enabled", "started"], True),
    "with_an_old_file": (
        [*RUNNING, "stale=/etc/docker/daemon.json"],
        True,
    ),
    "current": (RUNNING, False),
}


def test_our_program_starts_the_engine_so_that_a_failure_is_undone(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    """It returns to the last proved file, even if the engine was down before."""
    question = command(
        Unit,
        unit="docker.service",
        unit_files=[DOCKER_DROP_IN],
        restart_on=["/etc/docker/daemon.json"],
    )
    hosts = inventory(
        **{name: (machine() | {question: said}, {}) for name, (said, _) in ENGINES.items()}
    )
    result = pyinfra.call(hosts, "tasks/docker.py", "-y", "-vv")
    for name, (_, starts) in ENGINES.items():
        done = commands(result, name)
        assert not [line for line in done if re.search(r"systemctl (re)?start ", line)]
        by_program = [line for line in done if line.endswith(f"{DOCKER_ENGINE} restart")]
        assert len(by_program) == (1 if starts else 0), name


REACH = command(ContainerReach, names=["apps"])
ON_A_TARGET = (ROOT / "tests/unit/docker/reach/docker-26.1.txt").read_text().splitlines()
FLUSHED = [line for line in ON_A_TARGET if "-A DOCKER" not in line]
HARDENED = [
    *(line for line in ON_A_TARGET if "ip_forward" not in line),
    "kernel=net/ipv4/ip_forward:0",
    "said_by=/etc/sysctl.d/99-hardening.conf",
]
# The state of a host; the command that repairs it; words of the message.
UNREACHED: dict[str, tuple[list[str], str, str]] = {
    "nothing": (ON_A_TARGET, "", ""),
    "flushed": (
        FLUSHED,
        "docker-engine restart",
        "127.0.0.1:8000 does not lead to",
    ),
    "hardened": (
        HARDENED,
        "sysctl --quiet --write net/ipv4/ip_forward=1 && /usr/local/lib/terrafirma/docker-engine",
        "/etc/sysctl.d/99-hardening.conf",
    ),
    "led away": (
        [re.sub(r"^route=(\S+) .*", r"route=\1 tun0", line) for line in ON_A_TARGET],
        "exit 1",
        "through tun0: remove that route",
    ),
    "shut on purpose": (
        [line.replace(":INPUT ACCEPT", ":INPUT DROP") for line in ON_A_TARGET],
        "",
        "A rule of your own, left alone: containers of apps",
    ),
    "without its network": (["missing=apps", *ON_A_TARGET], "docker network create apps", ""),
}


def test_broken_paths_to_containers_are_repaired(pyinfra: Pyinfra, inventory: Any) -> None:
    names = {what: re.sub(r"\W", "_", what) for what in UNREACHED}
    hosts = inventory(
        **{names[what]: (machine() | {REACH: seen}, {}) for what, (seen, _, _) in UNREACHED.items()}
    )
    planned = pyinfra.call(hosts, "tasks/docker.py", "--dry")
    (step,) = [
        one for one in json.loads(planned.stdout)["plan"] if one["name"] == "Connect the containers"
    ]
    # The plan also has the host where the run is going to fail.
    assert set(step["hosts_with_change"]) == {
        f"@fake/{names[what]}" for what, (_, done, _) in UNREACHED.items() if done
    }
    result = pyinfra.call(hosts, "tasks/docker.py", "-y", "-vv")
    for what, (_, done, words) in UNREACHED.items():
        sent = re.findall(rf"\[@fake/{names[what]}\] +>>> (.*)", result.stderr)
        _, _, after = "\n".join(sent).rpartition("iptables-save")
        assert done in after, what
        if words:
            assert words in planned.stderr, what


# Successive states of a host, of which the last one stays; whether all is right in the end.
IN_TURN: dict[str, tuple[list[list[str]], bool]] = {
    "settings_repaired": ([HARDENED, HARDENED, ON_A_TARGET], True),
    "settings_stay_wrong": ([HARDENED], False),
    "rules_made_anew": ([FLUSHED, FLUSHED, ON_A_TARGET], True),
    "rules_stay_away": ([FLUSHED], False),
}


def test_repairs_are_verified(pyinfra: Pyinfra, inventory: Any) -> None:
    fails = {"containers are not connected: ": {"success": False}}
    hosts = inventory(
        **{
            name: (machine() | {REACH: {"turns": turns}} | fails, {})
            for name, (turns, _) in IN_TURN.items()
        }
    )
    result = pyinfra.call(hosts, "tasks/docker.py", "-y")
    (step,) = [
        one
        for one in json.loads(result.stdout)["results"]["operations"]
        if one["name"] == "Connect the containers"
    ]
    right = {f"@fake/{name}" for name, (_, right) in IN_TURN.items() if right}
    assert set(step["success"]) == right
    assert set(step["error"]) == {f"@fake/{name}" for name in IN_TURN} - right


# --- docker0 --------------------------------------------------------------------------------------

BIP = ["{", '  "bip": "172.26.0.1/16",', '  "labels": ["managed-by=terrafirma"]', "}"]
WITHOUT_BIP = ["{", '  "labels": ["managed-by=terrafirma"]', "}"]
# The state of the host; the settings; where docker0 is going to be.
BRIDGES: dict[str, tuple[Answers, dict[str, Any], str]] = {
    "nothing": ({}, {}, "10.210.0.1/24"),
    "its first subnet is used": (
        {NETWORKS: ["192.0.2.7/24", "10.210.0.9/24"]},
        {},
        "10.210.1.1/24",
    ),
    "a route to more than its first subnet": ({NETWORKS: ["10.210.0.0/22"]}, {}, "10.210.4.1/24"),
    "an address in its first subnet": ({NETWORKS: ["10.210.0.200"]}, {}, "10.210.1.1/24"),
    "a hole between used ones": (
        {NETWORKS: ["10.210.0.0/24", "10.210.2.0/24"]},
        {},
        "10.210.1.1/24",
    ),
    "another pool": (
        {NETWORKS: ["172.30.0.1/16"]},
        {"docker_address_pool": "172.30.0.0/15", "docker_subnet_size": 26},
        "172.31.0.1/26",
    ),
    "an engine": (ON_172, {}, "172.17.0.1/16"),
    "an engine whose network is used, by itself": (
        ON_172 | {NETWORKS: ["172.17.0.0/16", "10.210.0.0/24"]},
        {},
        "172.17.0.1/16",
    ),
    "an engine with both kinds of addresses": (
        {DOCKER0: [*ON_172[DOCKER0], SIX]},
        {},
        "172.17.0.1/16",
    ),
    # Docker accepts only IPv4 in `bip`.
    "an engine with an address of IPv6 alone": ({DOCKER0: ["daemon=", SIX]}, {}, "10.210.0.1/24"),
    "a declared address": ({DAEMON_JSON: BIP}, {}, "172.26.0.1/16"),
    "a declared address and an engine that is elsewhere yet": (
        {DAEMON_JSON: BIP} | ON_172,
        {},
        "172.26.0.1/16",
    ),
    "a file of ours from before, and an engine": (
        {DAEMON_JSON: WITHOUT_BIP} | ON_172,
        {},
        "172.17.0.1/16",
    ),
}


def test_docker0_stays_where_it_is_or_takes_a_free_subnet(pyinfra: Pyinfra, inventory: Any) -> None:
    names = {what: re.sub(r"\W", "_", what) for what in BRIDGES}
    hosts = inventory(
        **{names[what]: (machine() | on, data) for what, (on, data, _) in BRIDGES.items()}
    )
    result = pyinfra.call(hosts, "tasks/docker.py", "--dry", "--diff")
    files = {
        what: json.loads(written(result, "/etc/docker/daemon.json", name))
        for what, name in names.items()
    }
    assert {what: content["bip"] for what, content in files.items()} == {
        what: bip for what, (_, _, bip) in BRIDGES.items()
    }
    for content in files.values():
        assert content["labels"] == ["managed-by=terrafirma"]

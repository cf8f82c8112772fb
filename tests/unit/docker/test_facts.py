"""What facts read of Docker's networks and docker0, with and without an engine."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api import FactBase

from terrafirma.docker.facts import ContainerReach, DockerAddresses, DockerNetworks
from terrafirma.docker.reach import Seen
from tests.unit.facts import ask, shell, text
from tests.unit.programs import Program

NETWORKS = """\
[
    {
        "Name": "apps",
        "Driver": "bridge",
        "EnableIPv6": false,
        "IPAM": {
            "Driver": "default",
            "Options": {},
            "Config": [
                {
                    "Subnet": "10.210.1.0/24",
                    "Gateway": "10.210.1.1"
                }
            ]
        },
        "Containers": {
            "0b7ca25ec7afd808c5d71ee3eb9daa17457d240ead15c865c8ee7cbcf6840c6c": {
                "Name": "api-api-1",
                "MacAddress": "02:42:0a:d2:01:02",
                "IPv4Address": "10.210.1.2/24",
                "IPv6Address": ""
            }
        },
        "Labels": {}
    },
    {
        "Name": "bridge",
        "Driver": "bridge",
        "IPAM": {
            "Driver": "default",
            "Options": null,
            "Config": [
                {
                    "Subnet": "10.210.0.0/24",
                    "Gateway": "10.210.0.1"
                }
            ]
        },
        "Options": {
            "com.docker.network.bridge.default_bridge": "true",
            "com.docker.network.bridge.name": "docker0"
        },
        "Labels": {}
    }
]
""".splitlines()
BRIDGE = {"name": "bridge", "subnet": "10.210.0.0/24"}
APPS = {"name": "apps", "subnet": "10.210.1.0/24"}
DAEMON = 'daemon={  "bip": "10.210.0.1/24",  "default-address-pools": []}'
MOVING = 'daemon={"bip": "10.9.0.1/24", "ipv6": true, "fixed-cidr-v6": "fd00:7::/64"}'
POOLS = '[{"Base":"10.210.0.0/16","Size":24}]'


def test_networks_of_a_host_begin_with_docker0_and_end_with_the_pools() -> None:
    assert DockerNetworks().process([DAEMON, POOLS, *NETWORKS]) == [
        BRIDGE,
        APPS,
        {"name": "networks to come", "subnet": "10.210.0.0/16"},
    ]


def test_a_pool_stands_for_the_networks_of_applications() -> None:
    """They come and go with releases, and a run after a release must change nothing."""
    labels = {"terrafirma.app": "shop"}
    state, foreign = (
        {"com.docker.compose.project": project, "com.docker.compose.network": "default"}
        for project in ("shop-state", "state")
    )
    networks = [
        {"Name": name, "Labels": told, "IPAM": {"Config": [{"Subnet": one} for one in subnets]}}
        for name, told, *subnets in (
            ("shop-blue", labels, "10.210.2.0/24"),
            ("theirs", None, "10.210.3.0/24"),
            ("shop-six", labels, "fd00:1::/64"),
            ("shop-other", labels, "172.20.0.0/16"),
            # Compose makes the networks of stateful services.
            ("shop-state_default", state, "10.210.4.0/24"),
            ("shop-state_six", state, "10.210.5.0/24", "fd00:2::/64"),
            ("shop-state_other", state, "172.21.0.0/16"),
            ("state_default", foreign, "10.210.6.0/24"),
        )
    ]
    answer = ["daemon=", POOLS, *json.dumps(networks, indent=4).splitlines()]
    assert [tuple(one.values()) for one in DockerNetworks().process(answer)] == [
        ("shop-other", "172.20.0.0/16"),
        ("shop-six", "fd00:1::/64"),
        ("shop-state_other", "172.21.0.0/16"),
        ("shop-state_six", "fd00:2::/64"),
        ("state_default", "10.210.6.0/24"),
        ("theirs", "10.210.3.0/24"),
        ("networks to come", "10.210.0.0/16"),
    ]


def test_an_engine_without_pools_of_its_own() -> None:
    assert DockerNetworks().process(["daemon=", "null", *NETWORKS]) == [BRIDGE, APPS]
    assert DockerNetworks().process(["daemon=", "null"]) == []


def test_a_network_may_have_two_subnets_or_none() -> None:
    config = [{"Subnet": "fd00:1::/64", "Gateway": "fd00:1::1/64"}, {"Subnet": "10.210.2.0/24"}]
    networks = [
        {"Name": "six", "IPAM": {"Config": config}},
        {"Name": "none", "IPAM": {"Config": None}},
        {"Name": "empty", "IPAM": {"Config": []}},
    ]
    assert DockerNetworks().process(
        ["daemon=", "null", *json.dumps(networks, indent=4).splitlines()]
    ) == [
        {"name": "six", "subnet": "10.210.2.0/24"},
        {"name": "six", "subnet": "fd00:1::/64"},
    ]


def test_the_order_of_networks_is_not_dockers() -> None:
    networks = json.loads("\n".join(NETWORKS))
    turned = json.dumps(networks[::-1]).splitlines()
    assert DockerNetworks().process(["daemon=", "null", *turned]) == [BRIDGE, APPS]


def test_the_addresses_of_docker0() -> None:
    four = "5: docker0    inet 10.210.0.1/24 brd 10.210.0.255 scope global docker0\\  valid_lft"
    six = "5: docker0    inet6 fd00:0:0::1/64 scope global nodad \\       valid_lft forever"
    assert DockerAddresses().process([DAEMON, four]) == ["10.210.0.1/24"]
    assert DockerAddresses().process(["daemon=", four, six]) == ["10.210.0.1/24", "fd00::1/64"]


def test_where_docker0_is_going_to_be() -> None:
    """docker0 moves at the next boot, so rules for its new address must exist before."""
    line = "5: docker0    inet 10.210.0.1/24 brd 10.210.0.255 scope global docker0\\  valid_lft"
    assert DockerAddresses().process([MOVING, line]) == [
        "10.210.0.1/24",
        "10.9.0.1/24",
        "fd00:7::1/64",
    ]
    assert DockerNetworks().process([MOVING, POOLS, *NETWORKS]) == [
        BRIDGE,
        APPS,
        {"name": "docker0 after the next boot", "subnet": "10.9.0.0/24"},
        {"name": "docker0 after the next boot", "subnet": "fd00:7::/64"},
        {"name": "networks to come", "subnet": "10.210.0.0/16"},
    ]


def test_docker0_that_stays_where_it_is_is_there_once() -> None:
    lines = [
        "5: docker0    inet 10.9.0.1/24 brd 10.9.0.255 scope global docker0\\  valid_lft",
        "5: docker0    inet6 fd00:7::1/64 scope global nodad \\       valid_lft forever",
    ]
    assert DockerAddresses().process([MOVING, *lines]) == ["10.9.0.1/24", "fd00:7::1/64"]
    config = [{"Subnet": "10.9.0.0/24"}, {"Subnet": "fd00:7::/64"}]
    bridge = json.dumps([{"Name": "bridge", "IPAM": {"Config": config}}])
    assert [one["name"] for one in DockerNetworks().process([MOVING, "null", bridge])] == [
        "bridge",
        "bridge",
    ]


@pytest.mark.parametrize(
    "daemon",
    [
        '{"fixed-cidr-v6": "fd00:7::/64"}',
        '{"ipv6": false, "fixed-cidr-v6": "fd00:7::/64"}',
        '{"ipv6": true}',
    ],
)
def test_docker0_has_no_ipv6_that_is_not_switched_on(daemon: str) -> None:
    assert DockerAddresses().process([f"daemon={daemon}"]) == []
    assert DockerNetworks().process([f"daemon={daemon}", "null"]) == []


@pytest.mark.parametrize(
    ("content", "daemon"),
    [
        (None, None),
        ("", None),
        ('{\n  "bip": "10.9.0.1/24",\n  "ipv6": false\n}\n', {"bip": "10.9.0.1/24", "ipv6": False}),
        # Escapes in a JSON text, which dash's echo would interpret.
        (
            '{"bip": "10.9.0.1/24", "log-opts": {"env-regex": "^a\\\\.b\\n"}}\n',
            {"bip": "10.9.0.1/24", "log-opts": {"env-regex": "^a\\.b\n"}},
        ),
    ],
)
def test_the_file_of_the_daemon_comes_as_one_line(
    program: Program, tmp_path: Path, content: str | None, daemon: Any
) -> None:
    program("docker", 'case "$*" in *Pools*) echo null ;; *bridge.name*) echo docker0 ;; esac')
    path = program("ip", "true")
    file = tmp_path / "daemon.json"
    if content is not None:
        file.write_text(content)
    for fact in (DockerAddresses, DockerNetworks):
        command = text(fact)
        assert "/etc/docker/daemon.json" in command
        first, *rest = shell(command.replace("/etc/docker/daemon.json", str(file)), path)
        assert rest == (["null"] if fact is DockerNetworks else [])
        if daemon is None:
            assert first == "daemon="
        else:
            assert json.loads(first.removeprefix("daemon=")) == daemon


def test_docker0_is_asked_for_ipv4_before_ipv6_and_only_for_what_others_reach(
    program: Program, tmp_path: Path
) -> None:
    """PostgreSQL cannot listen on a link-local address."""
    program("docker", "echo docker0")
    path = program(
        "ip",
        f"""echo "$*" >> {tmp_path}/asked
        case $1 in
        -4) echo '5: docker0    inet 10.210.0.1/24 brd 10.210.0.255 scope global docker0' ;;
        -6) echo '5: docker0    inet6 fd00:1::1/64 scope global' ;;
        esac""",
    )
    assert ask(DockerAddresses, path) == ["10.210.0.1/24", "fd00:1::1/64"]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split()[0] for line in asked] == ["-4", "-6"]
    for line in asked:
        assert line.endswith("dev docker0 scope global")


def test_networks_that_are_missing(program: Program) -> None:
    path = program(
        "docker", "case $* in 'network ls --format'*) printf '%s\n' bridge none apps ;; esac"
    )
    asked = ask(ContainerReach, path, names=["apps", "jobs", "app", "bridge"])
    assert asked["missing"] == ["jobs", "app"]
    assert ask(ContainerReach, path, names=[])["missing"] == []


def test_missing_tables_differ_from_a_missing_iptables(program: Program) -> None:
    """After `nft flush ruleset`, which removes the tables, iptables-save prints nothing."""
    program("docker", "")
    path = program("iptables-save", "")
    assert ask(ContainerReach, path, names=[])["seen"].rules == {}


def test_an_engine_that_does_not_answer_is_a_failure(program: Program) -> None:
    """Taken for an engine without containers, it would look as if nothing were broken."""
    for asked in ("network ls --format*", "network ls -q*", "ps*"):
        path = program("docker", f"case $* in {asked.replace(' ', chr(92) + ' ')}) exit 1 ;; esac")
        result = subprocess.run(
            ["sh", "-c", text(ContainerReach, names=["apps"])],
            env=os.environ | {"PATH": f"{path}:{os.environ['PATH']}"},
            capture_output=True,
            check=False,
        )
        assert result.returncode == 1, asked


WITHOUT_DOCKER: list[tuple[type[FactBase[Any]], dict[str, Any], Any]] = [
    (DockerAddresses, {}, []),
    (DockerNetworks, {}, []),
    (
        ContainerReach,
        {"names": ["apps", "jobs"]},
        {"missing": ["apps", "jobs"], "said_by": [], "seen": Seen()},
    ),
]


@pytest.mark.parametrize(("fact", "arguments", "answer"), WITHOUT_DOCKER)
def test_a_host_without_docker_is_an_answer(
    fact: type[FactBase[Any]], arguments: dict[str, Any], answer: Any, tmp_path: Path
) -> None:
    for tool in ("sh", "grep", "xargs"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    command = f"PATH={tmp_path}; {text(fact, **arguments)}"
    output = shell(command)
    assert (fact().process(output) if output else fact().default()) == answer


@pytest.mark.parametrize(("fact", "arguments", "answer"), WITHOUT_DOCKER)
def test_a_docker_that_does_not_answer_is_a_failure(
    fact: type[FactBase[Any]], arguments: dict[str, Any], answer: Any, program: Program
) -> None:
    """Without networks in the answer, PostgreSQL would be closed to all containers."""
    path = program("docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    with pytest.raises(AssertionError, match="Cannot connect"):
        shell(text(fact, **arguments), path)

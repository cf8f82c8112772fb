"""Questions to Docker, and the meaning of its answers; a script stands in for Docker."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import engine
from terrafirma_host.engine import Container, containers, lost_host
from terrafirma_host.shell import Failed

from tests.unit.programs import Program
from tests.unit.terrafirma_host.docker import inspected


def test_a_missing_object_is_no_failure_but_a_failing_docker_is(docker: Any) -> None:
    for words in ("Error: No such image: x", "Error response from daemon: network x not found"):
        docker(f"echo '{words}' >&2; echo '[]'; exit 1")
        assert engine.inspect("image", ["x"]) == []
    docker("echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    with pytest.raises(Failed, match="docker image inspect: Cannot connect"):
        engine.inspect("image", ["x"])


def test_the_containers_of_a_project(docker: Any) -> None:
    answer = [
        inspected("api-blue-api-1", Health={"Status": "healthy"}),
        # A container without a health check, and with few fields.
        inspected("api-blue-api-2", Status="exited", Health=None) | {"Config": {"Labels": {}}},
    ]
    answer[0]["Mounts"] = [{"Source": "/srv/a"}, {"Type": "tmpfs"}]
    asked = docker(f"case $1 in ps) echo one two ;; *) echo '{json.dumps(answer)}' ;; esac")
    first, second = containers("api-blue", "api")
    assert first == Container(
        id="id-api-blue-api-1", name="api-blue-api-1", service="api", release="0123456789ab",
        state="running", health="healthy", restarts=0, done=False,
        hosts="/var/lib/docker/api-blue-api-1/hosts", mounts=("/srv/a", ""),
    )  # fmt: skip
    assert (second.service, second.release, second.state, second.health) == ("", "", "exited", "")
    listed, inspect = asked.read_text().splitlines()
    # Stopped containers, too; only those of this project, without those of `run`, and without those
    # of a foreign project with the same name.
    assert "label=terrafirma.app" in listed.split()
    assert "--all" in listed.split()
    assert "label=com.docker.compose.project=api-blue" in listed.split()
    assert "label=com.docker.compose.oneoff=False" in listed.split()
    assert "label=com.docker.compose.service=api" in listed.split()
    assert inspect == "container inspect one two"


ONCE = {"RestartPolicy": {"Name": "no"}}


@pytest.mark.parametrize(
    ("host", "state", "done"),
    [
        (ONCE, {"Status": "exited", "ExitCode": 0}, True),
        ({"RestartPolicy": {"Name": ""}}, {"Status": "exited", "ExitCode": 0}, True),
        (ONCE, {"Status": "exited", "ExitCode": 1}, False),
        (ONCE, {"Status": "running", "ExitCode": 0}, False),
        # It was stopped by hand, and was meant to last.
        (
            {"RestartPolicy": {"Name": "unless-stopped"}},
            {"Status": "exited", "ExitCode": 0},
            False,
        ),
    ],
)
def test_a_service_that_may_end_is_done_after_a_success(
    host: dict[str, Any], state: dict[str, Any], done: bool
) -> None:
    answer = inspected("api-blue-seed-1", **state) | {"HostConfig": host}
    assert engine._container(answer).done is done


def test_a_port_without_one_of_the_host_is_none() -> None:
    """As in a routed network."""
    answer = inspected("api-blue-api-1")
    answer["NetworkSettings"] = {"Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": ""}]}}
    assert engine._container(answer).port == 0


def stamp(seconds: float) -> str:
    """The time so many seconds ago, as Docker writes it."""
    return f"{datetime.fromtimestamp(time.time() - seconds, UTC):%Y-%m-%dT%H:%M:%S}.123456789Z"


@pytest.mark.parametrize(
    ("began", "lasts"),
    [(1, False), (9, False), (12, True), (3600, True), (-3600, True)],
)
def test_a_start_in_the_future_was_before_a_correction_of_the_clock(
    began: float, lasts: bool
) -> None:
    assert engine._container(inspected("x", StartedAt=stamp(began))).lasts is lasts


@pytest.mark.parametrize("again", [False, True])
def test_a_restarted_container_has_to_prove_that_it_stays_up(
    again: bool, docker: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "STRETCH", 3)
    worker = inspected("api-blue-jobs-1", StartedAt=stamp(1)) | {"RestartCount": 5}
    later = inspected("api-blue-jobs-1", StartedAt=stamp(-3)) | {"RestartCount": 6}
    answer = json.dumps([later if again else worker])
    once = tmp_path / "once"
    docker(
        f"case $1 in ps) echo one; exit;; esac; test -e {once} && echo '{answer}' ||"
        f" echo '{json.dumps([worker])}'; touch {once}"
    )
    (one,) = engine.stable_containers("api-blue")
    assert one.up is not again


def test_a_project_without_containers_is_not_inspected(docker: Any) -> None:
    asked = docker("true")
    assert containers("api-green") == []
    assert len(asked.read_text().splitlines()) == 1


GATEWAY = "10.210.0.1\thost.docker.internal"
GATEWAY_6 = "fd00::1\thost.docker.internal"


@pytest.mark.parametrize(
    ("hosts", "lost"),
    [
        ([GATEWAY], False),
        ([GATEWAY_6, GATEWAY], False),
        (["10.210.0.1 host.docker.internal another"], False),
        # An address of docker0 before the last boot, and a longer name that only contains ours.
        (["172.17.0.1\thost.docker.internal"], True),
        ([GATEWAY_6, "172.17.0.1\thost.docker.internal"], True),
        (["10.210.0.11\thost.docker.internal"], True),
        (["0.210.0.1\thost.docker.internal"], True),
        # A container without that name, and one without the file.
        (["172.17.0.5\t0b7ca25ec7af"], False),
        ([GATEWAY_6], False),
        ([], False),
        (None, False),
    ],
)
def test_a_container_with_an_old_address_of_the_host_is_found(
    program: Program, roots: Path, monkeypatch: pytest.MonkeyPatch,
    hosts: list[str] | None, lost: bool,
) -> None:  # fmt: skip
    """It keeps the address that docker0 had at its start."""
    file = roots / "hosts"
    if hosts is not None:
        lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost", *hosts, ""]
        file.write_text("\n".join(lines))
    directory = program(
        "ip",
        """test "$*" = '-brief address' || exit 1
        echo 'lo               UNKNOWN        127.0.0.1/8 ::1/128'
        echo 'docker0          UP             10.210.0.1/24 fe80::42:1/64'""",
    )
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    answer = inspected("api") | {"HostsPath": str(file)}
    assert lost_host(engine._container(answer)) is lost


@pytest.mark.parametrize(
    ("since", "all_of_it", "words"),
    [
        ("echo now", "echo before; echo now", "now"),
        # It restarted a moment ago.
        (":", "echo no config", "no config"),
        (":", ":", "(none)"),
    ],
)
def test_the_last_words_of_a_container_that_has_just_begun_again_are_those_of_before(
    docker: Any, since: str, all_of_it: str, words: str
) -> None:
    docker(f'case "$*" in *--since*) {since} ;; *) {all_of_it} ;; esac')
    one = Container(
        id="1a2b", name="api-blue-api-1", service="api", release="0123456789ab",
        state="restarting", health="", restarts=3, done=False, hosts="", mounts=(), started=1e9,
    )  # fmt: skip
    assert engine.logs(one) == words

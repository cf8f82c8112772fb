"""Stateful services, their networks and volumes; a script stands in for Docker."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import stateful, volumes
from terrafirma_host.compose import Compose
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

from tests.unit.terrafirma_host.docker import inspected

ABSENT = "case $* in *inspect*) echo 'Error: No such thing' >&2; echo '[]'; exit 1 ;; esac"


def test_networks_and_volumes_are_made_as_the_files_say(docker: Any, app: Application) -> None:
    project: dict[str, Any] = {
        "name": "api",
        "services": {},
        "networks": {
            "default": {"name": "api_default", "ipam": {}},
            "inner": {
                "name": "api_inner",
                "internal": True,
                "enable_ipv6": True,
                "driver_opts": {"com.docker.network.driver.mtu": "1400"},
            },
            "theirs": {"name": "theirs", "external": True},
        },
        "volumes": {
            "data": {"name": "api_data"},
            "shared": {
                "name": "api_shared",
                "driver": "local",
                "driver_opts": {"type": "nfs", "o": "addr=nas,rw"},
            },
            "theirs": {"name": "theirs", "external": True},
        },
    }
    asked = docker(ABSENT)
    stateful.make_networks(app, project, "green")
    volumes.make(app, project)
    made = [line for line in asked.read_text().splitlines() if " create " in line]
    label = "--label terrafirma.app=api"
    assert made == [
        f"network create {label} api-green",
        f"network create {label} --opt=com.docker.network.driver.mtu=1400 --internal --ipv6"
        " api-green-inner",
        f"volume create {label} api_data",
        f"volume create {label} --opt=type=nfs --opt=o=addr=nas,rw --driver=local api_shared",
    ]
    # Existing ones are left as they are.
    asked = docker("echo '[{}]'")
    asked.unlink()
    stateful.make_networks(app, project, "green")
    volumes.make(app, project)
    assert " create " not in asked.read_text()


STATE = """\
case "$1 $2" in
"ps --all") test ! -e {up} || test -e {gone} || echo new ;;
"container inspect") echo '{answer}' ;;
"compose "*) case $* in *" up --detach "*) touch {up} ;; esac ;;
"rm --force") touch {gone} ;;
"logs "*) echo ModuleNotFoundError ;;
esac
"""


def test_a_stateful_service_that_was_never_up_is_made_anew_by_the_next_release(
    docker: Any, app: Application, tmp_path: Path
) -> None:
    """It has no data to keep, and its files may be repaired until then."""
    new = inspected("api-state-db-1", Status="restarting", ExitCode=3) | {"RestartCount": 5}
    new["Config"]["Labels"]["com.docker.compose.service"] = "db"
    up, gone = tmp_path / "up", tmp_path / "gone"
    asked = docker(STATE.format(up=up, gone=gone, answer=json.dumps([new | {"Id": "new"}])))
    files = {"name": "api", "services": {"api": {}, "db": {"build": "db"}}, "networks": {}}
    with pytest.raises(Failed) as failed:
        stateful.start(Compose(replace(app, stateful=("db",))), files)
    assert str(failed.value) == (
        "api-state-db-1 does not stay up (it ended, the last time with code 3, and was started 6 "
        "times); its log:\nModuleNotFoundError"
    )
    asked_for = asked.read_text().splitlines()
    assert gone.exists()
    assert "rm --force new" in asked_for
    # The image is the one in the current files.
    assert [line for line in asked_for if line.endswith(" build db")]

"""Questions and files of the tests of releases."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from terrafirma_host.compose import Compose
from terrafirma_host.layers import Project
from terrafirma_host.spec import Application, Release, Serving
from terrafirma_host.target import Target

from tests.unit.terrafirma_host.docker import inspected

Answering = Callable[..., Application]

RELEASE = "0123456789ab"


def target_of(app: Application, project: Project | None = None) -> Target:
    """The services of `RELEASE`."""
    compose = Compose(app)
    return Target(compose, project or compose.project(), RELEASE, "c0de")


def asked(host: Path) -> list[str]:
    return (host / "asked").read_text().splitlines()


def release_id(app: Application) -> str:
    return Target.described(app).id


def containers(host: Path, *states: dict[str, Any]) -> None:
    """Docker lists these containers in the slot blue."""
    answer = []
    for number, state in enumerate(states, 1):
        one = inspected(f"api-blue-api-{number}", Health={"Status": state.get("health", "healthy")})
        one["State"]["Status"] = state.get("state", "running")
        one["Config"]["Labels"] |= state.get("labels", {})
        one["HostsPath"] = state.get("hosts", "/no/where")
        one["RestartCount"] = state.get("restarts", 0)
        if "once" in state:
            one["HostConfig"]["RestartPolicy"]["Name"] = "no"
            one["State"]["ExitCode"] = state["once"]
        if "policy" in state:
            one["HostConfig"]["RestartPolicy"]["Name"] = state["policy"]
        answer.append(one)
    (host / "containers").write_text(json.dumps(answer))


FINE: dict[str, Any] = {}
WORKER = {"labels": {"com.docker.compose.service": "w"}}
# The project of an application that is one service.
ALONE: dict[str, Any] = {"services": {"api": {}}}


def uploaded(path: Path) -> str:
    """Create the source of an application."""
    path.mkdir(parents=True)
    (path / "Dockerfile").touch()
    return str(path)


def known(app: Application, release_id: str) -> Release:
    release = Release.load(app, release_id)
    assert release
    return release


def current(app: Application) -> tuple[str, str]:
    """The release that serves, and its slot."""
    serving = Serving.load(app)
    assert serving
    return serving.release, serving.slot


def migrations(host: Path) -> list[str]:
    return [line.split()[-2] for line in asked(host) if " run --rm " in line]


def files(host: Path) -> dict[str, str]:
    """All files of a host, without the log of questions to Docker."""
    found = (path for path in host.rglob("*") if path.is_file() and path.name != "asked")
    return {str(path.relative_to(host)): path.read_text() for path in found}


def only_questions(host: Path) -> bool:
    """Whether no question to Docker changes anything."""
    harmless = ("ps ", "container inspect ", "image inspect ", "manifest inspect ", "info ")
    return all(line.startswith(harmless) or " config " in line for line in asked(host))

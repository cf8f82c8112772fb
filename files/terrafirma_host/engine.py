"""Managed by Terrafirma. Questions and orders to the Docker engine about containers."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from terrafirma_host import images
from terrafirma_host.shell import Failed, ends, last, run
from terrafirma_host.spec import Application

# Seconds that the engine may take for a quick command, and for one that fetches or builds.
PROMPT = 120
PATIENT = 3600

# Seconds that `up` may take, beside the time that services wait for one another.
CREATING = 30

# Bytes of a container's log that show how it begins.
FIRST = 64 * 1024

# Docker waits longer before each restart of a container, until the container has run for so many
# seconds. One that ends sooner is in a restart loop.
STRETCH = 10
# A container with more restarts than this does not stay up.
RESTARTS = 2


@dataclass(frozen=True)
class Container:
    id: str
    name: str
    service: str
    release: str
    state: str  # "running", "exited", "restarting" …
    health: str  # "healthy", "starting", "unhealthy" or ""
    restarts: int
    done: bool  # it was allowed to end, and has ended with success
    hosts: str  # path of its /etc/hosts
    mounts: tuple[str, ...]  # paths of the host
    code: int = 0  # its last exit code
    memory: bool = False  # it was killed for lack of memory
    retried: bool = False  # restarted only when it fails
    started: float = 0  # when it last started, in seconds since the epoch
    pid: int = 0
    port: int = 0  # the host's port that leads to it
    inner: int = 0  # its own port, to which that one leads

    @property
    def lasts(self) -> bool:
        """It has run for longer than a container in a restart loop can."""
        # A start in the future was before a correction of the clock.
        return self.state == "running" and not -1 <= self.age < STRETCH

    @property
    def age(self) -> float:
        return time.time() - self.started

    @property
    def up(self) -> bool:
        """It runs, and was not restarted just now."""
        return self.state == "running" and (not self.restarts or self.lasts)


def asked(app: Application, one: Container | None) -> Application:
    """The application with the port on which this replica is asked."""
    inner = one.inner if one else 0
    return replace(app, container_port=inner or app.container_port or images.USUAL)


def containers(project: str, service: str = "") -> list[Container]:
    """The containers of a compose project in any state, without those of `docker compose run`."""
    words = ["docker", "ps", "--all", "--quiet", "--no-trunc"]
    words += ["--filter", f"label=com.docker.compose.project={project}"]
    words += [
        "--filter",
        "label=terrafirma.app",
        "--filter",
        "label=com.docker.compose.oneoff=False",
    ]
    if service:
        words += ["--filter", f"label=com.docker.compose.service={service}"]
    ids = run(*words, timeout=PROMPT).split()
    return inspected(ids)


def inspected(ids: Sequence[str]) -> list[Container]:
    """The containers with these ids that exist."""
    return [_container(one) for one in inspect("container", ids)]


def stable_containers(project: str) -> list[Container]:
    """
    The containers of a compose project, after a just restarted one had time to fail again.

    A container that ends each minute by design counts as up; one in a restart loop does not.
    """
    there = containers(project)
    fresh = [STRETCH - one.age for one in there if one.state == "running" and not one.up]
    if fresh:
        time.sleep(min(STRETCH, max(fresh)))
        there = containers(project)
    return there


def _container(one: Mapping[str, Any]) -> Container:
    labels, state = one["Config"]["Labels"], one["State"]
    policy = one.get("HostConfig", {}).get("RestartPolicy", {}).get("Name", "")
    published = one.get("NetworkSettings", {}).get("Ports") or {}
    # In a routed network a container has no port of the host.
    ports = [(int(two["HostPort"]), int(one.partition("/")[0])) for one, both in published.items()
             for two in both or () if two["HostPort"]]  # fmt: skip
    return Container(
        id=one["Id"],
        name=one["Name"].lstrip("/"),
        service=labels.get("com.docker.compose.service", ""),
        release=labels.get("terrafirma.release", ""),
        state=state["Status"],
        health=(state.get("Health") or {}).get("Status", ""),
        restarts=one["RestartCount"],
        done=state["Status"] == "exited"
        and state.get("ExitCode") == 0
        and policy in ("no", "", "on-failure"),
        hosts=one["HostsPath"],
        mounts=tuple(mount.get("Source", "") for mount in one.get("Mounts", [])),
        code=state.get("ExitCode", 0),
        memory=state.get("OOMKilled", False),
        retried=policy == "on-failure",
        started=_time(state.get("StartedAt", "")),
        pid=state.get("Pid", 0),
        port=ports[0][0] if ports else 0,
        inner=ports[0][1] if ports else 0,
    )


def _time(text: str) -> float:
    """A time as Docker writes it, in seconds since the epoch; 0: never."""
    try:
        # In UTC, with nine digits after the point.
        return datetime.fromisoformat(f"{text[:19]}+00:00").timestamp()
    except ValueError:
        return 0


def stop(app: Application, ids: Sequence[str]) -> None:
    """Ask containers to stop; each has the time that its release gave it (stop_grace_period)."""
    if ids:
        own = [one.get("Config", {}).get("StopTimeout") or 0 for one in inspect("container", ids)]
        run("docker", "stop", *ids, timeout=max([app.stop_seconds, *own]) + PROMPT)


def lost_host(container: Container) -> bool:
    """Whether its host.docker.internal is no longer an address of this host: docker0 has moved."""
    try:
        lines = Path(container.hosts).read_text().splitlines()
    except OSError:
        return False
    known = [line.split()[0] for line in lines if "host.docker.internal" in line.split()[1:]]
    here = run("ip", "-brief", "address").split()
    return any("." in one and not any(it.startswith(f"{one}/") for it in here) for one in known)


def inspect(kind: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """`docker inspect` of those objects that exist."""
    if not names:
        return []
    result = subprocess.run(
        ["docker", kind, "inspect", *names],
        capture_output=True, text=True, errors="replace", timeout=PROMPT, check=False,
    )  # fmt: skip
    absent = "no such", "not found"
    if result.returncode and not any(words in result.stderr.lower() for words in absent):
        raise Failed(f"docker {kind} inspect: {last(result.stderr)}")
    found: list[dict[str, Any]] = json.loads(result.stdout or "[]")
    return found


def image_config(image: str) -> dict[str, Any]:
    """What an image on this host says about its containers; empty where it is not here."""
    found = inspect("image", [image])
    config: dict[str, Any] = (found[0].get("Config") or {}) if found else {}
    return config


def unit_runs(unit: str) -> bool:
    state = run("systemctl", "show", "--property", "ActiveState", "--value", unit)
    return state.strip() in ("active", "activating", "deactivating")


def logs(container: Container) -> str:
    """
    The first and the last log lines of a container since its last start, from both streams.

    A container that has just restarted has no lines yet: then the lines are from before that.
    """
    since = ["--since", str(int(container.started))] if container.started > 0 else []
    return _logs(container, since) or _logs(container, ["--tail", "20"]) or "(none)"


def _logs(container: Container, part: list[str]) -> str:
    words = ["docker", "logs", *part]
    with subprocess.Popen(
        [*words, container.id], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout
        # The log may have gigabytes.
        said = process.stdout.read(FIRST)
        process.kill()
    if len(said) == FIRST:
        result = subprocess.run(
            [*words, "--tail", "20", container.id],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PROMPT, check=False,
        )  # fmt: skip
        said += b"\n" + result.stdout
    return ends(said.decode(errors="replace"))

"""What the Docker engine runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override

# No Docker is a valid answer: nothing runs there. A Docker that does not answer is none.
_NO_DOCKER = "command -v docker > /dev/null || exit 0;"


class Network(TypedDict):
    name: str
    subnet: str  # "10.210.0.0/24"; one entry for each subnet, IPv4 or IPv6
    gateway: str  # the host's own address in it, or ""
    default: bool  # this is docker0


class DockerNetworks(FactBase[list[Network]]):
    """Every subnet of every bridge network, docker0's first, then by name; empty without Docker."""

    default = list

    @override
    def command(self) -> str:
        return (
            f"{_NO_DOCKER} docker network ls -q --no-trunc --filter driver=bridge "
            "| xargs -r docker network inspect"
        )

    @override
    def process(self, output: list[str]) -> list[Network]:
        try:
            networks = [
                Network(
                    name=network["Name"],
                    subnet=config["Subnet"],
                    # Docker keeps "Gateway" empty until the bridge is up where none was configured.
                    gateway=config.get("Gateway", "").split("/")[0],
                    default=network["Name"] == "bridge",
                )
                for network in json.loads("\n".join(output))
                for config in network["IPAM"]["Config"] or []
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise FactProcessError(f"docker network inspect answered {output[:3]!r}") from error
        return sorted(networks, key=lambda one: (not one["default"], one["name"], one["subnet"]))


class Container(TypedDict):
    name: str
    release: str  # label terrafirma.release
    state: str  # "running", "exited" …
    health: str  # "healthy", "starting", "unhealthy" or ""


class ProjectContainers(FactBase[list[Container]]):
    """The containers of a compose project, whatever their state; empty without Docker."""

    default = list

    @override
    def command(self, project: str) -> StringCommand:
        return StringCommand(
            _NO_DOCKER,
            "docker ps --all --no-trunc --filter",
            QuoteString(f"label=com.docker.compose.project={project}"),
            "--format",
            QuoteString('{{.Names}}|{{.Label "terrafirma.release"}}|{{.State}}|{{.Status}}'),
        )

    @override
    def process(self, output: list[str]) -> list[Container]:
        containers = []
        for line in output:
            name, release, state, status = line.split("|")
            health = status.rpartition("(")[2].rstrip(")").removeprefix("health: ")
            containers.append(
                Container(
                    name=name,
                    release=release,
                    state=state,
                    health=health if health in ("healthy", "starting", "unhealthy") else "",
                )
            )
        return containers


class MissingNetworks(FactBase[list[str]]):
    """Those of `names` that are no Docker network; all of them without Docker."""

    default = list

    @override
    def command(self, names: Sequence[str]) -> StringCommand:
        return StringCommand(
            "known=$(! command -v docker > /dev/null || docker network ls --format '{{.Name}}')",
            "|| exit 1; for name in",
            *map(QuoteString, names),
            '; do printf "%s\\n" "$known" | grep -qxF -- "$name" || echo "$name"; done',
        )

    @override
    def process(self, output: list[str]) -> list[str]:
        return output

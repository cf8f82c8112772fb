"""Answers of Docker about images and containers."""

from typing import Any

DIGEST = f"sha256:{'a1' * 32}"


def inspected(name: str, **state: Any) -> dict[str, Any]:
    """The parts of `docker container inspect` that the program reads."""
    labels = {"com.docker.compose.service": "api", "terrafirma.release": "0123456789ab"}
    return {
        "Id": f"id-{name}",
        "Name": f"/{name}",
        "Config": {"Labels": labels},
        "State": {"Status": "running"} | state,
        "RestartCount": 0,
        "HostConfig": {"RestartPolicy": {"Name": "unless-stopped"}},
        "Mounts": [],
        "HostsPath": f"/var/lib/docker/{name}/hosts",
    }

"""
Managed by Terrafirma. Directories of the web service that the settings make writable or lasting.

Pure functions of the application's description and of `docker compose config`.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from terrafirma_host import kinds
from terrafirma_host.kinds import Service
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

# Docker's own options for memory are noexec, and the mode of the image's directory.
IN_MEMORY = "mode=1777,exec"


def add(app: Application, project: dict[str, Any]) -> None:
    """Add the directories to a project; raises Failed where its files mount something there."""
    service = project["services"][app.service]
    taken = dict(_mounted(service))
    wanted = {**dict.fromkeys(app.writable, "writable")}
    wanted |= dict.fromkeys(app.volumes.values(), "volumes")
    for path, key in wanted.items():
        if what := taken.get(path):
            raise Failed(f"{key}: {app.service} has {what} at {path} in the compose files: leave "
                         f"{path} out of {key}, or out of the files")  # fmt: skip
    volumes = project.setdefault("volumes", {})
    for key in app.volumes:
        if key in volumes:
            raise Failed(f"volumes: the compose files have a volume {key!r}: take another name, or "
                         f'mount that one there, with shared = ["{key}"]')  # fmt: skip
        volumes[key] = {"name": f"{app.name}_{key}"}
    if app.read_only:
        service["read_only"] = True
    if memory := _memory(app, service):
        service["tmpfs"] = [*kinds.words_of(service, "tmpfs"), *memory]
    if app.volumes:
        # A volume without a name there is replaced, as Compose does in a merge.
        kept = [one for one in service.get("volumes") or []
                if _normal(one["target"]) not in app.volumes.values()]  # fmt: skip
        service["volumes"] = [*kept, *_volumes(app)]


def replace_mounts(app: Application, project: dict[str, Any]) -> Iterator[str]:
    """Leave out directories of the host that a volume of the settings replaces; lines about it."""
    service = project["services"][app.service]
    named = {path: key for key, path in app.volumes.items()}
    kept = []
    for mount in service.get("volumes") or []:
        key = named.get(_normal(mount["target"]))
        if key and mount["type"] == "bind":
            word = mount["source"]
            if app.source and PurePosixPath(word).is_relative_to(app.source):
                word = f"./{posixpath.relpath(word, app.source)}"
            yield f"{app.service}: {_normal(mount['target'])} is the volume {key}, not {word}"
        else:
            kept.append(mount)
    if "volumes" in service:
        service["volumes"] = kept


def layer(app: Application, service: Service) -> dict[str, str]:
    """The keys that a slot's layer has for the web service, by `add`'s project."""
    found = {}
    if app.read_only:
        found["read_only"] = "true"
    ours = [one for one in service.get("tmpfs") or [] if one.endswith(f":{IN_MEMORY}")]
    if ours:
        found["tmpfs"] = json.dumps(ours)
    if app.volumes:
        found["volumes"] = json.dumps(_volumes(app))
    return found


def _memory(app: Application, service: Service) -> list[str]:
    paths = list(app.writable)
    # The id of an account has no home in the image, so its HOME is /tmp (layer_variables.home).
    if app.read_only or (app.user and not app.compose):
        taken = {*dict(_mounted(service)), *app.writable, *app.volumes.values()}
        paths += {"/tmp"} - taken
    return [f"{path}:{IN_MEMORY}" for path in paths]


def _volumes(app: Application) -> list[dict[str, Any]]:
    return [
        # volumes.prepare has copied the image's content once: Docker would do so, with the image's
        # owner, each time a container is created while the volume is empty.
        {"type": "volume", "source": key, "target": path, "volume": {"nocopy": True}}
        for key, path in app.volumes.items()
    ]


def _mounted(service: Service) -> Iterator[tuple[str, str]]:
    """The paths at which a service mounts something, each with a few words about it."""
    for mount in service.get("volumes") or []:
        source = mount.get("source") or ""
        if mount["type"] == "volume" and not source:
            continue
        yield _normal(mount["target"]), f"{source or mount['type']}"
    for one in kinds.words_of(service, "tmpfs"):
        yield _normal(one.partition(":")[0]), "tmpfs"


def _normal(path: str) -> str:
    return posixpath.normpath(path)

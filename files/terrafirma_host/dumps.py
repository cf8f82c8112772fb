"""
Managed by Terrafirma. What the settings say about backups: commands in containers, and volumes.

Pure functions of an application's description and of `docker compose config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from terrafirma_host import layers
from terrafirma_host.layers import Project
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

# Seconds for a command of a description that says nothing about it.
USUAL = 3600


@dataclass(frozen=True)
class Dump:
    """Commands in a container of a service, before a backup reads the volumes and afterwards."""

    app: str
    service: str
    command: tuple[str, ...]
    after: tuple[str, ...]
    seconds: int

    def __str__(self) -> str:
        return f"{self.app}/{self.service}"


def of(app: Application) -> list[Dump]:
    """The commands of an application; its own ones run in the web service."""
    found = []
    for name in dict.fromkeys([app.service, *(app.services or {})]):
        own: Mapping[str, Any] = (app.services or {}).get(name) or {}
        if not own.get("backup_command") and name == app.service:
            own = {**own, "backup_command": app.backup_command, "backup_after": app.backup_after}
        if command := own.get("backup_command"):
            after = tuple(own.get("backup_after") or ())
            seconds = own.get("backup_seconds") or app.backup_seconds or USUAL
            found.append(Dump(app.name, name, tuple(command), after, int(seconds)))
    return found


def refuse(app: Application, project: Project) -> None:
    """Raise Failed where a backup would find no container, or no volume, that the settings name."""
    lasting = {*layers.lasting(app, project), *app.stateful}
    for one in of(app):
        if one.service not in lasting:
            why = "it ends by itself" if one.service in layers.once(app, project) else (
                "no release starts it")  # fmt: skip
            raise Failed(f"services: {one.service} has a backup_command, and no container of it "
                         f"runs during a backup: {why}; take the command out, or name another "
                         "service")  # fmt: skip
    known = volumes(app, project)
    for entry in app.backup_leave_out:
        if entry not in known:
            raise Failed(f"backup_leave_out: there is no volume {entry!r} "
                         f"({', '.join(known) or 'none'})")  # fmt: skip


def volumes(app: Application, project: Project) -> list[str]:
    """The volumes by their keys, or by the names that the files give to them."""
    own = layers.volume_names(app, project)
    found = []
    for key, volume in (project.get("volumes") or {}).items():
        real = own.get(key) or (volume or {}).get("name") or key
        found.append(key if real == f"{app.name}_{key}" else real)
    return found


def left_out(data: Mapping[str, Any], volume: str) -> bool:
    """Whether a description says that backups leave out a volume of the host."""
    return any(
        volume in (entry, f"{data.get('name')}_{entry}")
        for entry in data.get("backup_leave_out") or ()
    )

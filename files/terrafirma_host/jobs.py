"""Managed by Terrafirma. The scheduled commands of an application, as its description has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from terrafirma_host import layers
from terrafirma_host.layers import Project
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application


@dataclass(frozen=True)
class Job:
    """A command that runs by a schedule in the environment of the release that serves."""

    app: str
    name: str
    schedule: str  # systemd's OnCalendar
    command: tuple[str, ...]
    service: str  # in whose image and environment; empty: the web service's
    timeout_seconds: int

    @property
    def unit(self) -> str:
        """The name of its units: neither part has a dot."""
        return f"terrafirma-cron-{self.app}.{self.name}"

    @property
    def container(self) -> str:
        return f"{self.app}.cron.{self.name}"


def of(app: Application) -> list[Job]:
    return read(app.name, app.cron or {})


def read(app: str, data: Mapping[str, Mapping[str, Any]]) -> list[Job]:
    """The jobs in a part of a description."""
    return [
        Job(
            app, name, one["schedule"], tuple(one["command"]), one["service"],
            one["timeout_seconds"],
        )
        for name, one in sorted(data.items())
    ]  # fmt: skip


def told(app: Application) -> str:
    """The jobs as a text to compare."""
    return json.dumps(app.cron or {}, indent=2, sort_keys=True) + "\n"


def refuse_unknown_services(app: Application, project: Project) -> None:
    """Raise Failed where a job names a service that no release starts, and so has no image."""
    known = {*layers.slot_services(app, project)}
    for job in of(app):
        if job.service and job.service not in known:
            raise Failed(
                f"cron: {job.name}: service: the releases start no service {job.service!r} "
                f"({', '.join(sorted(known))})"
            )

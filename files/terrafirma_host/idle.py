"""Managed by Terrafirma. Settings without effect, each with a line that says so."""

from __future__ import annotations

from collections.abc import Iterator

from terrafirma_host import mounts
from terrafirma_host.layers import Project
from terrafirma_host.spec import Application

USUAL = "/healthz"
"""The path of a health check where the settings name none."""


def lines(app: Application, project: Project) -> Iterator[str]:
    for front in app.fronts:
        if front.health != "http":
            where = f"services: {front.front}: " if front.front else ""
            kind = front.health if isinstance(front.health, str) else "a command"
            named = {"health_path": front.health_path != USUAL,
                     "health_headers": bool(front.health_headers)}  # fmt: skip
            for key in (one for one, is_set in named.items() if is_set):
                yield f"{where}{key}: no effect, because health is {kind}: leave it out"
    for name in app.docker_socket:
        if not mounts.has_socket(project["services"][name]):
            yield (f"docker_socket: no effect, because {name} does not mount Docker's socket: "
                   f"leave {name} out")  # fmt: skip

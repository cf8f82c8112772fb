"""Managed by Terrafirma. How the images of a release are built: names, labels, and from where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from terrafirma_host import layers
from terrafirma_host.layer_keys import as_json
from terrafirma_host.layers import Project
from terrafirma_host.spec import Application


def layer(app: Application, project: Project, release: str, *, source: str = "") -> str:
    """
    Names and labels for the images that are built here.

    + source: a link to the source, from which they are built. The builder keeps the files of a
      directory by its path, and gets only those that have changed the next time.
    """
    started = [
        *layers.slot_services(app, project),
        *app.migrate * layers.migrates_by_service(app, project),
    ]
    services = {
        name: {
            "image": layers.image_name(app, name, release),
            "build": {"labels": {"terrafirma.app": app.name}}
            | (_moved(app, project["services"][name]["build"], source) if source else {}),
        }
        for name in layers.built(project, started)
    }
    return f"services: {as_json(services)}\n"


def _moved(app: Application, build: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The directories of a build, with another path of the source."""

    def moved(path: str) -> str:
        inside = path == app.source or path.startswith(f"{app.source}/")
        return f"{source}{path[len(app.source) :]}" if inside else path

    further = build.get("additional_contexts") or {}
    return {
        **({"context": moved(build["context"])} if build.get("context") else {}),
        **({"additional_contexts": {k: moved(v) for k, v in further.items()}} if further else {}),
    }


def lead(app: Application) -> str:
    """Let the link that is the same for all releases lead to the source; returns its path."""
    link = app.directory / "building"
    new = link.with_name(".building")
    new.unlink(missing_ok=True)
    new.symlink_to(app.source)
    new.replace(link)
    return str(link)

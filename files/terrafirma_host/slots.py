"""Managed by Terrafirma. The two slots of an application: their setup, start and end."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

from terrafirma_host import engine, holders, layers, volumes
from terrafirma_host.compose import Compose
from terrafirma_host.images import as_built, with_ports
from terrafirma_host.shell import Expired, Failed, run
from terrafirma_host.spec import Application
from terrafirma_host.target import Target
from terrafirma_host.uptime import Watch


def other_slot(app: Application, slot: str) -> str:
    return next(one for one in app.slots if one != slot)


def start(target: Target, images: Mapping[str, str], slot: str, *options: str) -> None:
    """Start all containers of a slot; `Watch` tells whether they stay up."""
    app = target.app
    layer = set_up(target, images, slot)
    try:
        target.compose.run(
            app.project(slot), layer, "up", "--detach", "--no-build", "--pull", "never",
            "--remove-orphans", *options, timeout=app.start_seconds + engine.CREATING,
        )  # fmt: skip
    except Expired:
        raise
    except Failed:
        # The cause may be a container that others depend on, and its log says more than Compose.
        Watch(app, target.project, target.id, slot).refuse_awaited()
        raise


def set_up(target: Target, images: Mapping[str, str], slot: str) -> str:
    """A slot has its networks, volumes, secrets and stateful services. Returns its layer's path."""
    app, project = target.app, target.project
    holders.refuse_images(app, project, images)
    holders.start_state(target.compose, project, slot)
    link_secrets(target.compose, slot)
    web = images[app.service]
    volumes.prepare(app, project, web)
    built = as_built(app, project["services"][app.service], engine.image_config(web))
    configs = {name: engine.image_config(images[name]) for name in app.public}
    built = with_ports(built, project["services"], configs)
    text = layers.slot_layer(
        built, project, slot=slot, release=target.id, replicas=app.replicas, images=images,
        owner=app.owner(),
    )  # fmt: skip
    return target.compose.layer(slot, text)


def link_secrets(compose: Compose, slot: str) -> None:
    """
    A slot's containers keep the secrets of their release, however often Docker restarts them.

    Each secret is a hard link. A changed secret is a new file under the old name, so the link keeps
    the old value.
    """
    app = compose.app
    directory = app.slot_secrets(slot)
    directory.mkdir(parents=True, exist_ok=True)
    for name, path in app.secrets.items():
        link = directory / name
        if not (link.exists() and link.samefile(path)):
            link.unlink(missing_ok=True)
            link.hardlink_to(path)
        if link.read_text() != compose.secrets[name]:
            raise Failed(f"the secret {name} was changed during this release: run it again")


def settle_policies(app: Application, project: layers.Project, slot: str) -> None:
    """
    Services without a restart policy that still run are started again after each end from now on.

    Those that have ended with success have done their work: they stay as they are.
    """
    untold = layers.untold(app, project)
    there = engine.containers(app.project(slot)) if untold else []
    runs = [one.id for one in there if one.service in untold and one.retried and not one.done]
    if runs:
        run("docker", "update", "--restart", "unless-stopped", *runs, timeout=engine.PROMPT)


def clear(app: Application, slot: str) -> None:
    """A slot has no container and no secret; each container is asked to stop first."""
    # Find containers by their project: a killed migration leaves a container there, too.
    stop(app, run(
        "docker", "ps", "--all", "--quiet", "--no-trunc", "--filter",
        f"label=com.docker.compose.project={app.project(slot)}",
    ).split())  # fmt: skip
    shutil.rmtree(app.slot_secrets(slot), ignore_errors=True)


def stop(app: Application, containers: Sequence[str]) -> None:
    """Stop and remove these containers."""
    if containers:
        engine.stop(app, containers)
        run("docker", "rm", "--force", *containers)

"""Managed by Terrafirma. The two slots of an application: what a slot needs, its start, its end."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

from terrafirma_host import engine, holders, layers
from terrafirma_host.engine import Compose
from terrafirma_host.shell import Expired, Failed, run
from terrafirma_host.spec import Application
from terrafirma_host.target import Target
from terrafirma_host.uptime import Watch


def other_slot(app: Application, slot: str) -> str:
    return next(one for one in app.slots if one != slot)


def start(target: Target, images: Mapping[str, str], slot: str, *options: str) -> None:
    """Everything that a slot runs is started; whether it stays up is `Watch`'s question."""
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
        # A container that others wait for may be to blame, and its own words say more.
        Watch(app, target.project, target.id, slot).refuse_awaited()
        raise


def set_up(target: Target, images: Mapping[str, str], slot: str) -> str:
    """A slot has its networks, volumes, secrets and stateful services; returns its layer's path."""
    app, project = target.app, target.project
    holders.refuse_images(app, project, images)
    holders.start_state(target.compose, project, slot)
    link_secrets(target.compose, slot)
    text = layers.slot_layer(
        app, project, slot=slot, release=target.id, replicas=app.replicas, images=images,
        owner=app.owner(),
    )  # fmt: skip
    return target.compose.layer(slot, text)


def link_secrets(compose: Compose, slot: str) -> None:
    """
    A slot's containers keep the secrets of their release, however often Docker restarts them.

    Each is a hard link: a new value is a new file under the old name, and the link keeps the old.
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
            raise Failed(f"the secret {name} was changed while this was under way: run it again")


def clear(app: Application, slot: str) -> None:
    """A slot has no container and no secret; each container is asked to stop first."""
    # All of its project: a migration that was killed leaves a container there, too.
    stop(app, run(
        "docker", "ps", "--all", "--quiet", "--no-trunc", "--filter",
        f"label=com.docker.compose.project={app.project(slot)}",
    ).split())  # fmt: skip
    shutil.rmtree(app.slot_secrets(slot), ignore_errors=True)


def stop(app: Application, containers: Sequence[str]) -> None:
    """These containers are stopped, and removed."""
    if containers:
        patience = app.stop_seconds + engine.PROMPT
        run("docker", "stop", "--time", str(app.stop_seconds), *containers, timeout=patience)
        run("docker", "rm", "--force", *containers)

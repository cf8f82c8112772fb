"""Managed by Terrafirma. A release's images and migration, while the one before serves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from terrafirma_host import builds, engine, kinds, layers, pulls, slots, stores
from terrafirma_host.shell import Failed, ends, run, say
from terrafirma_host.spec import Application
from terrafirma_host.target import Target


def provide_images(target: Target) -> tuple[dict[str, str], tuple[str, ...]]:
    """Build or fetch the images of a release. Returns them by service, and the fetched ones."""
    app, project = target.app, target.project
    app.directory.mkdir(parents=True, exist_ok=True)
    images: dict[str, str] = {}
    fetched: list[str] = []
    started = stores.started(app, project)
    built = layers.built(project, started)
    if built:
        refuse_dockerfile(app)
        say(f"building release {target.id} of {app.name}")
        source = builds.lead(app) if app.source else ""
        text = builds.layer(app, project, target.id, source=source)
        layer = target.compose.layer("build", text)
        try:
            target.compose.fetch(app.project("build"), layer, "build", *built)
        except Failed as error:
            raise Failed(f"the image does not build: {error}") from None
    for name in started:
        images[name] = layers.image_name(app, name, target.id)
        if made := kinds.builder(project["services"], name):
            if made != name:
                run("docker", "tag", layers.image_name(app, made, target.id), images[name])
        else:
            reference = target.others.get(name, target.image)
            if pulls.pull(app, reference):
                fetched.append(reference)
            run("docker", "tag", reference, images[name])
    return images, tuple(fetched)


def refuse_dockerfile(app: Application) -> None:
    """Raise Failed where a link in the source leads to a Dockerfile elsewhere on the host."""
    name = app.dockerfile or "Dockerfile"
    real, source = Path(app.source, name).resolve(), Path(app.source).resolve()
    if not app.compose and not real.is_relative_to(source):
        raise Failed(f"dockerfile: {name} is a link that leads out of the source")


def migrate(target: Target, images: Mapping[str, str], slot: str) -> None:
    """Run the migration once, in a container of its own in the free slot."""
    app = target.app
    say(f"migrating: {' '.join(app.migrate)}")
    layer = slots.set_up(target, images, slot)
    words = (
        [app.migrate[0]]
        if layers.migrates_by_service(app, target.project)
        # Replace the entry point: the image's own may be the server.
        else ["--entrypoint", app.migrate[0], app.service, *app.migrate[1:]]
    )
    try:
        said = target.compose.run(
            app.project(slot), layer, "run", "--rm", "--no-deps", "--no-TTY", "--interactive=false",
            *words, timeout=engine.PATIENT,
        )  # fmt: skip
    except Failed as error:
        raise Failed(f"the migration failed: {error}") from None
    if said.strip():
        say(ends(said))

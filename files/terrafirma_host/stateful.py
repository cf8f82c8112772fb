"""Managed by Terrafirma. Stateful services, which run beside all releases, in their networks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from terrafirma_host import engine, layers
from terrafirma_host.compose import Compose
from terrafirma_host.layers import Project
from terrafirma_host.shell import Failed, run, say, succeeds
from terrafirma_host.spec import Application


def make_networks(app: Application, project: Project, slot: str) -> None:
    """Create the networks of a slot that are not there yet."""
    for key, name in layers.network_names(app, project, slot).items():
        if not engine.inspect("network", [name]):
            network = project["networks"][key]
            options = [f"--opt={k}={v}" for k, v in (network.get("driver_opts") or {}).items()]
            options += ["--internal"] if network.get("internal") else []
            options += ["--ipv6"] if network.get("enable_ipv6") else []
            run("docker", "network", "create", "--label", f"terrafirma.app={app.name}", *options,
                name)  # fmt: skip


def start(compose: Compose, project: Project) -> None:
    """Start the stateful services that do not run; running ones are left as they are."""
    app = compose.app
    if not app.stateful:
        return
    before = engine.containers(app.project("state"))
    there = {one.service for one in before if one.up or one.done}
    # Only these: a service that has done its work would do it again beside the running ones.
    missing = [name for name in app.stateful if name not in there]
    try:
        if missing:
            _start_missing(compose, project, missing, {one.service for one in before})
        _await(app, {one.id: one.restarts for one in before})
    except BaseException:
        # A container that was never up has no data to keep: the next release makes a new one.
        ids = {one.id for one in before}
        for one in engine.containers(app.project("state")):
            if one.id not in ids:
                succeeds("docker", "rm", "--force", one.id)
        raise


def _start_missing(
    compose: Compose, project: Project, missing: Sequence[str], known: set[str]
) -> None:
    app = compose.app
    layer = compose.layer("state", layers.state_layer(app, project))
    # Fetching and building may take long; waiting for one another may not.
    new = [one for one in missing if one not in known and layers.built(project, [one])]
    if new:
        compose.fetch(app.project("state"), layer, "build", *new)
    compose.fetch(app.project("state"), layer, "up", "--no-start", "--no-recreate", *missing)
    compose.run(app.project("state"), layer, "up", "--detach", "--no-recreate", *missing,
                timeout=app.start_seconds + engine.CREATING)  # fmt: skip


def _await(app: Application, restarts: Mapping[str, int]) -> None:
    # Compose's own `--wait` fails where a file takes away an image's health check.
    deadline = time.monotonic() + app.start_seconds
    while waiting := [
        one for one in engine.containers(app.project("state"))
        if not one.done and not (one.health == "healthy" or (not one.health and one.lasts))
    ]:  # fmt: skip
        one = waiting[0]
        if one.restarts > restarts.get(one.id, 0) + engine.RESTARTS:
            raise Failed(f"{one.name} does not stay up (it ended, the last time with code "
                         f"{one.code}, and was started {one.restarts + 1} times); its log:\n"
                         f"{engine.logs(one)}")  # fmt: skip
        # A container without a health check has to run for a while to show that it stays up.
        if time.monotonic() > deadline and not (one.up and not one.health):
            raise Failed(f"{one.name} is not healthy within {app.start_seconds} s "
                         f"(start_seconds); its log:\n{engine.logs(one)}")  # fmt: skip
        time.sleep(0.2)


def join(app: Application, project: Project, slot: str) -> None:
    """Connect the stateful services to a slot's networks, under their names."""
    named = layers.network_names(app, project, slot)
    for container in engine.containers(app.project("state")) if app.stateful else []:
        service = project["services"].get(container.service)
        if service is None:
            say(f"{container.name} is no longer in a compose file; it is left alone")
            continue
        connected = engine.inspect("container", [container.id])[0]["NetworkSettings"]["Networks"]
        for key in service.get("networks", {"default": None}):
            if key in named and named[key] not in connected:
                known = layers.aliases(project, container.service, key)
                words = [f"--alias={alias}" for alias in known]
                run("docker", "network", "connect", *words, named[key], container.id)

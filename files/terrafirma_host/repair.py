"""Managed by Terrafirma. Whether the release that serves is complete, and its repair in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from terrafirma_host import engine, layers, proxy, slots
from terrafirma_host.lease import Lease
from terrafirma_host.plan import Plan, Step
from terrafirma_host.shell import say
from terrafirma_host.spec import Application, Release, Serving
from terrafirma_host.target import Target
from terrafirma_host.uptime import Watch

# --- questions: none of them changes anything -----------------------------------------------------


def is_serving(target: Target, serving: Serving) -> bool:
    """Whether serving.json names the target's release, on the described ports."""
    return serving.release == target.id and has_described_ports(target.app, serving)


def has_described_ports(app: Application, serving: Serving) -> bool:
    return serving.ports == app.all_ports(serving.slot)


def is_complete(app: Application, project: layers.Project, serving: Serving) -> bool:
    """Whether all containers run that should, and Caddy sends requests to them."""
    containers = engine.stable_containers(app.project(serving.slot))
    return (
        _all_services_run(app, project, serving, containers)
        and not engine.containers(app.project(slots.other_slot(app, serving.slot)))
        and has_described_ports(app, serving)
        and proxy.slot_of(app) == serving.slot
        and proxy.expects(app, serving.slot)
        and not _is_lost(app, containers)
    )


def _all_services_run(
    app: Application,
    project: layers.Project,
    serving: Serving,
    containers: Sequence[engine.Container],
) -> bool:
    once, untold = layers.once(app, project), layers.untold(app, project)
    # A service whose files do not say that it may end, and that has done its work.
    ended = {one.service for one in containers if one.service in untold and one.done}
    expected = [one for one in containers if one.service not in once | ended]
    lasting = [name for name in layers.lasting(app, project) if name not in ended]
    healthy = [
        one.service for one in expected
        if one.release == serving.release and one.up and one.health != "unhealthy"
    ]  # fmt: skip
    return (
        sorted(healthy) == sorted(one.service for one in expected) == lasting
        # A killed release has not settled how these are started again.
        and not any(one.service in untold and one.retried and not one.done for one in expected)
        # A container that has done its work may have been removed.
        and all(one.done or one.up for one in containers if one.service in once)
        and _stateful_services_run(app)
    )


def _stateful_services_run(app: Application) -> bool:
    if not app.stateful:
        return True
    containers = engine.stable_containers(app.project("state"))
    return {one.service for one in containers if one.up or one.done} >= {*app.stateful}


def needs_replacement(app: Application, serving: Serving) -> bool:
    """
    Whether a replica cannot be repaired in place, so that new replicas take over as in a release.

    Such a replica is paused, looks for the host at an address that the host has lost, or fails its
    own health check. An unhealthy one goes on to serve until then: it may be better than none.
    """
    return _is_lost(app, engine.containers(app.project(serving.slot)))


def _is_lost(app: Application, containers: Sequence[engine.Container]) -> bool:
    public = {front.service for front in app.fronts}
    sick = any(one.service in public and one.health == "unhealthy" for one in containers)
    return sick or any(one.state == "paused" or engine.lost_host(one) for one in containers)


# --- the repair -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repair:
    """Start containers that were stopped, broken or removed; those that serve keep running."""

    target: Target
    release: Release
    serving: Serving
    lease: Lease

    def plan(self) -> Plan:
        app, slot = self.target.app, self.serving.slot
        return Plan(
            takeover=(
                Step("start", f"start missing containers in {slot}; others stay", self.start),
                Step(
                    "health",
                    f"wait until {len(app.all_ports(slot))} replicas answer",
                    self.await_health,
                ),
            )
        )

    def run(self) -> None:
        app, release, slot = self.target.app, self.serving.release, self.serving.slot
        say(f"repairing release {release} of {app.name}")
        for step in self.plan().steps:
            step.take(self.lease)
        say(f"release {release} of {app.name} serves with {len(app.all_ports(slot))} replicas")

    def start(self) -> None:
        app, slot = self.target.app, self.serving.slot
        containers = engine.containers(app.project(slot))
        slots.stop(app, [one.id for one in containers if one.health == "unhealthy"])
        # Running containers stay, even where Compose would recreate them for a changed setting.
        slots.start(self.target, self.release.images, slot, "--no-recreate")

    def await_health(self) -> None:
        slot = self.serving.slot
        # Check the path that Caddy checks now: a changed path is for the next release.
        app = proxy.as_asked(self.target.app, slot)
        Watch(app, self.target.project, self.target.id, slot).until_up()
        slots.settle_policies(app, self.target.project, slot)
        proxy.expect(app, slot)

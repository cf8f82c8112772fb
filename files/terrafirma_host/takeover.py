"""
Managed by Terrafirma. A takeover: all requests go to the old replicas, or all go to the new ones.

serving.json decides which replicas serve. Before `commit` writes that file, a failure undoes every
step, and after a kill `terrafirma recover` makes Caddy and the containers agree with the file.
From `commit` on the new replicas serve, and the next release stops any that are left of the old.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from terrafirma_host import cron, engine, images, keep, layers, preparation, proxy, slots, stores
from terrafirma_host.lease import Lease
from terrafirma_host.plan import Plan, Step
from terrafirma_host.repair import has_described_ports
from terrafirma_host.shell import BROKEN, Failed, say
from terrafirma_host.spec import (
    Release,
    Serving,
    append_history,
    is_withdrawn,
    now,
    set_withdrawn,
)
from terrafirma_host.target import Target
from terrafirma_host.uptime import Watch


class Takeover:
    """
    The replicas of a target start beside those that serve, and then serve in their place.

    A release first prepares images and runs its migration. A rollback, a restart and a refresh have
    images already, and never migrate.
    """

    def __init__(
        self, target: Target, release: Release, serving: Serving | None, lease: Lease
    ) -> None:
        self.target = target
        self.release = release  # the record that `commit` saves
        self.serving = serving  # the release that serves until `commit`
        self.lease = lease
        self.app = target.app
        self.old = Release.load(self.app, serving.release) if serving else None
        self.slot = slots.other_slot(self.app, serving.slot if serving else "green")
        self.watch = Watch(self.app, target.project, target.id, self.slot)
        self.reloaded = 0.0  # when Caddy was reloaded for the new replicas, if it was
        self.answered = 0.0  # when the new replicas first answered through Caddy

    # --- the plan: making it changes nothing ------------------------------------------------------

    def plan(self) -> Plan:
        return Plan(self._preparation(), self._takeover(), self._completion())

    def _preparation(self) -> tuple[Step, ...]:
        if self.lease.what != "release":
            return ()
        names = ", ".join(stores.started(self.app, self.target.project))
        images = "use" if self.release.images else "build or fetch"
        prepare = Step("prepare", f"{images} the images of {names}", self.prepare)
        return prepare, *self._migration()

    def _migration(self) -> tuple[Step, ...]:
        if self.lease.what != "release" or not self.needs_migration():
            return ()
        undo = (self.clear, self.remove_images)
        return (Step("migrate", f"run `{' '.join(self.app.migrate)}`", self.migrate, undo=undo),)

    def _takeover(self) -> tuple[Step, ...]:
        app, slot, release = self.app, self.slot, self.target.id
        start = f"start {app.counted} of release {release} in {slot}"
        pages = ", ".join(f"https://{one.domain}{one.page}" for one in app.fronts)
        emptied = (self.clear, self.remove_images)
        back = (self.switch_back, self.drain_new)
        return (
            Step("start", start, self.start, undo=emptied),
            Step("health", f"wait until each {app.checked}", self.await_health),
            Step("switch", f"let Caddy send requests to {slot}", self.switch, undo=back),
            Step("smoke", f"request {pages}", self.smoke),
            Step("commit", f"record that {slot} serves", self.commit, undo=(self.reinstate_old,)),
        )

    def _completion(self) -> tuple[Step, ...]:
        app, old = self.app, self.serving
        prune = Step("prune", f"keep {app.keep} earlier releases", lambda: keep.prune(app))
        if not old:
            return (prune,)
        drain = f"wait for requests under way in {old.slot}, at most {app.drain_seconds} s"
        return (
            Step("drain", drain, lambda: proxy.drain(old.ports, app.drain_seconds)),
            Step("stop", f"stop the replicas in {old.slot}", lambda: slots.clear(app, old.slot)),
            prune,
        )

    def needs_migration(self) -> bool:
        """Whether the target has other code, or another migration, than the release that serves."""
        ran = (self.old.code, self.old.migrate) if self.old else None
        return bool(self.app.migrate) and ran != (self.target.code, " ".join(self.app.migrate))

    def is_same_release(self) -> bool:
        """Whether new replicas of the release that serves take over, as in a repair."""
        return self.serving is not None and self.serving.release == self.target.id

    def is_committed(self) -> bool:
        """Whether serving.json names the new replicas: then no later failure undoes the release."""
        serving = Serving.load(self.app)
        named = (serving.release, serving.slot) if serving else None
        return named == (self.target.id, self.slot)

    # --- the run ----------------------------------------------------------------------------------

    def run(self) -> None:
        plan = self.plan()
        self._run_preparation(plan.preparation)
        self._run_takeover(plan.takeover)
        self._announce()
        self._run_completion(plan.completion)

    def _run_preparation(self, steps: Sequence[Step]) -> None:
        try:
            for step in steps:
                step.take(self.lease)
        except BROKEN:
            self.remove_images()
            raise
        if steps and not self.is_same_release():
            self.release = replace(self.release, at=now())

    def _run_takeover(self, steps: Sequence[Step]) -> None:
        tried: list[Step] = []
        try:
            for step in steps:
                tried.append(step)
                step.take(self.lease)
        except BROKEN as error:
            failed = self.lease.current
            if self.is_committed():
                say(f"warning: {error}")
            else:
                self.undo(tried)
                raise Failed(f"at the step {failed!r}: {error}") from None

    def undo(self, steps: Sequence[Step]) -> None:
        """Undo these steps. A step that cannot be undone is a warning, and the others still are."""
        for step in reversed(steps):
            for undo in step.undo:
                try:
                    undo()
                except BROKEN as error:
                    say(f"warning: {error}")
        if not self.serving:
            say(f"nothing serves: {self.app.name} had no release before")

    def _announce(self) -> None:
        release, action = self.release, self.lease.what
        say(f"release {release.id} of {self.app.name} serves")
        if action in ("release", "refresh") and self.serving and self.is_same_release():
            action = "repair" if has_described_ports(self.app, self.serving) else "scale"
        with suppress(OSError):
            append_history(
                self.app, action, release.id, release.revision, self.lease.holder, **self._more()
            )
            set_withdrawn(self.app, release.code, withdrawn=False)

    def _more(self) -> dict[str, str]:
        """What else the history tells of this takeover."""
        return {}

    def _run_completion(self, steps: Sequence[Step]) -> None:
        try:
            for step in steps:
                step.take(self.lease)
            slots.settle_policies(self.app, self.target.project, self.slot)
            for line in self.watch.notes():
                say(line)
        except BROKEN as error:
            # The next release, or the next boot, stops and removes the old containers.
            say(f"warning: {error}")

    # --- the steps, each followed by what undoes it -----------------------------------------------

    def prepare(self) -> None:
        compose = self.target.compose
        for line in compose.notes:
            say(line)
        compose.agree(self.target.project)
        if not self.release.images:
            images, pulled = preparation.provide_images(self.target)
            self.release = replace(self.release, images=images, pulled=pulled, at=now())

    def remove_images(self) -> None:
        keep.remove_unused_images(self.app)

    def migrate(self) -> None:
        with cron.paused(self.app):
            preparation.migrate(self.target, self.release.images, self.slot)

    def start(self) -> None:
        app, project = self.app, self.target.project
        say(f"starting {app.counted} of release {self.target.id} in {self.slot}")
        web = engine.image_config(self.release.images[app.service])
        said = images.said(app, project["services"][app.service], web)
        for one in app.fronts[1:]:
            config = engine.image_config(self.release.images[one.service])
            said += images.said(one, project["services"][one.service], config)
        for line in (*layers.mended(app, project), *layers.limited(app, project), *said):
            say(line)
        slots.start(self.target, self.release.images, self.slot)

    def clear(self) -> None:
        slots.clear(self.app, self.slot)

    def await_health(self) -> None:
        self.watch.until_up()
        if proxy.expect(self.app, self.slot):
            self.reloaded = time.monotonic()
        time.sleep(self._noticed())

    def _noticed(self) -> float:
        """Seconds in which Caddy checks each replica once more, and gets its answer."""
        return proxy.NOTICED + self.watch.slowest

    def switch(self) -> None:
        proxy.point(self.app, self.slot)

    def switch_back(self) -> None:
        proxy.point(self.app, self.serving.slot if self.serving else "blue")

    def drain_new(self) -> None:
        proxy.drain(self.app.all_ports(self.slot), self.app.drain_seconds)

    def smoke(self) -> None:
        requested = proxy.smoke(self.app)
        self.answered = time.monotonic()
        if requested:
            # Caddy checks every replica once more; after a reload its first check takes longer.
            settled = self.reloaded + proxy.SETTLED - time.monotonic()
            proxy.watch(self.app, max(self._noticed(), settled))
        self.watch.still_up()

    def commit(self) -> None:
        self.release.save(self.app)
        rolled_back = self.old if self.lease.what == "rollback" else None
        # A rollback to withdrawn code undoes the earlier rollback, and withdraws nothing: the next
        # rollback can go back to the release that serves now.
        undoes = is_withdrawn(self.app, self.release.code)
        if rolled_back and not undoes and rolled_back.code != self.release.code:
            set_withdrawn(self.app, rolled_back.code, withdrawn=True)
        new = Serving.of(self.app, self.target.id, self.slot)
        # This write decides: before it the old replicas serve, after it the new ones do.
        new.save(self.app)

    def reinstate_old(self) -> None:
        if self.old:
            set_withdrawn(self.app, self.old.code, withdrawn=False)

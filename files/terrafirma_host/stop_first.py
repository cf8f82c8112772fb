"""
Managed by Terrafirma. A takeover in which the old release stops before the new one starts.

It is for applications of which only one instance may run, and so they do not answer meanwhile. New
requests wait in Caddy, and go on to whichever release runs then. Before `commit` a failure, or the
recovery after a kill, removes the new containers first and starts the stopped ones again: the two
releases never run at once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from terrafirma_host import checks, cron, engine, health, holders, preparation, proxy, slots
from terrafirma_host.lease import Lease
from terrafirma_host.plan import Step
from terrafirma_host.shell import Expired, Failed, run, say, write
from terrafirma_host.spec import Application, Release, Serving, history
from terrafirma_host.takeover import Takeover
from terrafirma_host.target import Target

# Seconds that requests under way have to finish before the old release stops: new ones wait then.
FINISH = 5
# Seconds in which a container is gone that Docker kills.
KILLED = 5
# Seconds that Caddy lets a request wait, as in templates/caddy/Caddyfile.j2.
HELD = 30


def takeover(target: Target, release: Release, serving: Serving | None, lease: Lease) -> Takeover:
    """The takeover as the application's strategy has it."""
    kind = StopFirst if target.app.stops_first and serving else Takeover
    return kind(target, release, serving, lease)


class StopFirst(Takeover):
    """The replicas that serve stop, and those of a target start and serve in their place."""

    def __init__(
        self, target: Target, release: Release, serving: Serving | None, lease: Lease
    ) -> None:
        assert serving
        super().__init__(target, release, serving, lease)
        self.stopping: Serving = serving
        self.silent = 0.0  # since when nothing answers

    # --- the plan ---------------------------------------------------------------------------------

    def _preparation(self) -> tuple[Step, ...]:
        # The migration follows the stop: it may write the same store.
        return super()._preparation()[:1]

    def _takeover(self) -> tuple[Step, ...]:
        finish = f"let new requests wait, and those under way finish, at most {self._finish} s"
        stop = f"stop the replicas in {self.stopping.slot}"
        return (
            Step("hold", finish, self.hold, undo=(self.let_through,)),
            Step("stop", stop, self.stop_old, undo=(self.start_old,)),
            *self._migration(),
            *super()._takeover(),
        )

    def _completion(self) -> tuple[Step, ...]:
        *_, prune = super()._completion()
        remove = f"remove the stopped replicas in {self.stopping.slot}"
        return Step("remove", remove, self.remove_old), prune

    # --- the run ----------------------------------------------------------------------------------

    def _run_takeover(self, steps: Sequence[Step]) -> None:
        with cron.paused(self.app):
            super()._run_takeover(steps)

    def undo(self, steps: Sequence[Step]) -> None:
        super().undo(steps)
        if self.silent:
            seconds = time.monotonic() - self.silent
            back = "does not run" if self.app.stopped.exists() else "is back"
            say(f"release {self.stopping.release} {back}; nothing answered for {seconds:.1f} s")

    def _announce(self) -> None:
        super()._announce()
        say(f"nothing answered for {self._silent_seconds} s")

    def _more(self) -> dict[str, str]:
        return {"silent_seconds": self._silent_seconds}

    @property
    def _silent_seconds(self) -> str:
        return f"{self.answered - self.silent:.1f}"

    # --- the steps --------------------------------------------------------------------------------

    @property
    def _finish(self) -> int:
        return min(FINISH, self.app.drain_seconds)

    def hold(self) -> None:
        app, leaves = self.app, self.app.project(self.stopping.slot)
        # All that can be done or refused before is: from here on nothing answers.
        holders.start_state(self.target.compose, self.target.project, self.slot, leaves)
        # A reload ends the waiting of requests.
        if proxy.expect(app, self.slot):
            self.reloaded = time.monotonic()
        for line in self.warning():
            say(line)
        self.silent = time.monotonic()
        proxy.hold(app)
        proxy.drain(self.stopping.ports, self._finish)

    def warning(self) -> list[str]:
        """Lines about how long nothing is going to answer."""
        app = self.app
        most = self._finish + app.slowest_stop + app.start_seconds
        more = ", and as long as the migration takes" if self._migration() else ""
        before = next((one["silent_seconds"] for one in history(app) if "silent_seconds" in one),
                      "")  # fmt: skip
        last = f"; the last time it took {before} s" if before else ""
        return [
            f"release {self.stopping.release} stops before release {self.target.id} starts: "
            f"nothing answers for at most {most} s{more}{last}",
            f"requests wait for that in Caddy, at most {HELD} s each",
        ]

    def let_through(self) -> None:
        proxy.let_through(self.app)

    def stop_old(self) -> None:
        say(f"stopping release {self.stopping.release} in {self.stopping.slot}")
        stop(self.app, self.stopping.slot)

    def start_old(self) -> None:
        bring_back(self.app, self.stopping)

    def migrate(self) -> None:
        preparation.migrate(self.target, self.release.images, self.slot)

    def await_health(self) -> None:
        # No request waits for Caddy to notice the replicas that were there before: there are none.
        self.watch.until_up()

    def switch(self) -> None:
        super().switch()
        proxy.let_through(self.app)

    def switch_back(self) -> None:
        proxy.hold(self.app)
        super().switch_back()

    def drain_new(self) -> None:
        proxy.drain(self.app.all_ports(self.slot), self._finish)

    def remove_old(self) -> None:
        slots.clear(self.app, self.stopping.slot)
        forget(self.app)


# --- the containers that a takeover stops, also for the recovery after a kill ---------------------


def stop(app: Application, slot: str) -> None:
    """Stop the containers of a slot without removing them."""
    there = engine.containers(app.project(slot))
    ids = [one.id for one in there if one.state in ("running", "paused", "restarting")]
    # Noted before the first one stops: after a kill, the recovery knows which ones to start.
    write(app.stopped, "".join(f"{one}\n" for one in ids), 0o600)
    engine.stop(app, ids)


def stopped(app: Application, serving: Serving) -> list[str]:
    """
    The containers of the release that serves which a takeover has stopped.

    Docker goes on to stop a container when the program that asked for it is interrupted: until that
    has ended, the container still runs.
    """
    try:
        noted, at = {*app.stopped.read_text().split()}, app.stopped.stat().st_mtime
    except FileNotFoundError:
        return []
    while True:
        there = [one for one in engine.containers(app.project(serving.slot)) if one.id in noted]
        # One that was started since then runs again.
        ending = [one for one in there if one.state == "running" and one.started < at]
        if not ending or time.time() > at + app.slowest_stop + KILLED:
            return [one.id for one in there if one.state != "running"]
        time.sleep(0.2)


def recover(app: Application, serving: Serving) -> None:
    """Bring the release back that serves, if a takeover was killed while that was stopped."""
    if stopped(app, serving):
        proxy.hold(app)
        # The new release may have answered already.
        for slot in app.slots:
            if slot != serving.slot and (there := engine.containers(app.project(slot))):
                ports = [one.port for one in there if one.port]
                proxy.drain(ports, min(FINISH, app.drain_seconds))
        bring_back(app, serving)


def bring_back(app: Application, serving: Serving) -> None:
    """Start the containers again that a takeover stopped, once no other release runs."""
    for slot in app.slots:
        if slot != serving.slot:
            slots.clear(app, slot)
    if ids := stopped(app, serving):
        say(f"starting release {serving.release} of {app.name} again")
        try:
            run("docker", "start", *ids, timeout=engine.PROMPT)
        except Expired:
            raise
        except Failed as error:
            # A recovery goes before each release, which must be able to replace them.
            say(f"warning: {error}")
            return
        _await_answers(app, serving)
    forget(app)


def _await_answers(app: Application, serving: Serving) -> None:
    asked = proxy.as_asked(app, serving.slot)
    deadline = time.monotonic() + app.start_seconds
    while bad := [one for one in _asked(asked, serving) if not one.good]:
        if time.monotonic() > deadline:
            why = health.words(asked, bad[0])
            say(f"warning: release {serving.release} runs again, but does not answer: {why}")
            return
        time.sleep(0.2)


def forget(app: Application) -> None:
    app.stopped.unlink(missing_ok=True)


def _asked(app: Application, serving: Serving) -> list[health.Answer]:
    there = engine.containers(app.project(serving.slot)) if app.routed else []
    return [
        answer
        for front in app.fronts
        if not front.front or front.front in serving.public
        for answer in checks.ask_all(front, serving.ports_of(front.front), there)
    ]

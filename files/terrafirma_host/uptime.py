"""
Managed by Terrafirma. Whether the containers of a release are up, and stay up.

A running container proves little: Docker restarts one that has died. So a replica is up when it
answers; a container with a health check, when the check passes; one without, when it has run for
longer than a container in a restart loop can; and one that may end, when it has ended with 0.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from terrafirma_host import checks, engine, health, layers
from terrafirma_host.engine import Container
from terrafirma_host.shell import Failed, plain
from terrafirma_host.spec import Application

# A lasting answer like 404 is final when it has been the same for a sixth of start_seconds, and for
# at least so many seconds: some frameworks have no routes yet at first.
SAME = 5


@dataclass
class Watch:
    """The containers of a starting slot: wait with `until_up`, and check `still_up` later."""

    app: Application
    project: layers.Project
    release: str  # its ID
    slot: str
    restarts: dict[str, int] = field(default_factory=dict)  # earlier restarts, by container
    codes: dict[str, int] = field(default_factory=dict)  # the last exit code, by container
    answers: dict[int, health.Answer] = field(default_factory=dict)  # the last one, by port
    since: dict[int, float] = field(default_factory=dict)  # time of the first such answer, by port

    @property
    def slowest(self) -> float:
        """Seconds that the slowest replica took to answer."""
        return max((one.seconds for one in self.answers.values()), default=0)

    def until_up(self) -> None:
        """Wait until all are up; raises Failed with the cause, and the log of the container."""
        deadline = time.monotonic() + self.app.start_seconds
        # A container that has served for months may have restarted before.
        self.restarts = {one.id: one.restarts for one in self.look()}
        while True:
            there = self.look()
            self._refuse_dead(there)
            self._ask(there)
            waiting = [one for one in there if self._waits(one)]
            if not waiting and all(one.good for one in self.answers.values()):
                self.restarts = {one.id: one.restarts for one in there}
                return
            late = time.monotonic() > deadline
            self._refuse_answers(there, late=late)
            for one in waiting:
                # A running container without a health check may take its time to prove itself.
                if late and (one.state != "running" or one.health or self._again(one)):
                    self._refuse(one, f"is not healthy within {self.app.start_seconds} s")
            time.sleep(0.2)

    def still_up(self) -> None:
        """Raise Failed if a container has ended since `until_up`."""
        there = self.look()
        self._refuse_dead(there)
        for one in there:
            if self._waits(one) or self._again(one):
                self._refuse(one, "does not stay up")

    def refuse_awaited(self) -> None:
        """Raise Failed about a container that others depend on, if one did not do its part."""
        ends = layers.awaited(self.project, "service_completed_successfully")
        lasts = layers.awaited(self.project, "service_healthy")
        within = f"within {self.app.start_seconds} s"
        for one in self.look():
            if one.done or one.state == "created" or one.service not in ends | lasts:
                continue
            if one.service in lasts and one.health != "healthy":
                self._refuse(one, f"is not healthy {within}")
            if one.service in ends and one.state == "exited":
                self._refuse(one, f"failed with code {one.code}")
            if one.service in ends:
                within += " (start_seconds)"
                self._refuse(one, f"has not done its work {within}, and others wait for that")

    def notes(self) -> list[str]:
        """Lines about containers that may end, but go on to run: they may be meant to last."""
        ends = layers.once(self.app, self.project)
        return [
            f"{one.name} runs on, and may end: to have it started again, and after each boot, "
            "give it `restart: unless-stopped`"
            for one in self.look()
            if one.service in ends and one.state == "running"
        ]

    def look(self) -> list[Container]:
        there = engine.containers(self.app.project(self.slot))
        self.codes |= {one.id: one.code for one in there if one.state in ("restarting", "exited")}
        return there

    def _again(self, one: Container) -> int:
        """How often it has restarted since `until_up` began."""
        return one.restarts - self.restarts.get(one.id, 0)

    def _waits(self, one: Container) -> bool:
        """Whether a container has yet to prove that it is up."""
        if one.done:
            return False
        if one.state != "running" or one.health not in ("", "healthy"):
            return True
        answers = one.health or one.service in {front.service for front in self.app.fronts}
        return not one.lasts and (self._again(one) > 0 or not answers)

    def _refuse_dead(self, there: Sequence[Container]) -> None:
        ends = layers.once(self.app, self.project)
        for one in there:
            over = one.state in ("exited", "dead") and not one.done
            if over and one.service in ends:
                self._refuse(one, f"failed with code {one.code}")
            # A container with the policy on-failure may fail until start_seconds are over.
            patient = one.retried and one.service in ends
            if over or (self._again(one) > engine.RESTARTS and not patient):
                self._refuse(one, "does not stay up")

    def _ask(self, there: Sequence[Container]) -> None:
        """Check the replicas whose last answer was not good, or is too old."""
        now = time.monotonic()
        for front in self.app.fronts:
            if why := checks.final(front, there):
                self._refuse(next(one for one in there if one.service == front.service), why)
            wanted = [
                port
                for port in front.ports(self.slot, front.replicas)
                if not (
                    port in self.answers
                    and self.answers[port].good
                    and now - self.since[port] < health.INTERVAL
                )
            ]
            for answer in checks.ask_all(front, wanted, there):
                last = self.answers.get(answer.port)
                if answer.good or not last or last.status != answer.status:
                    self.since[answer.port] = now
                self.answers[answer.port] = answer

    def _refuse_answers(self, there: Sequence[Container], *, late: bool) -> None:
        patience = max(SAME, self.app.start_seconds / 6)
        within = f" within {self.app.start_seconds} s" if late else ""
        fronts = {
            port: front
            for front in self.app.fronts for port in front.ports(self.slot, front.replicas)
        }  # fmt: skip
        for port, answer in self.answers.items():
            front = fronts[port]
            held = time.monotonic() - self.since[port]
            if not answer.good and (late or (answer.final and held > patience)):
                one = next((one for one in there if one.port == port), None)
                app = engine.asked(front, one)
                why = health.words(app, answer, one.pid if one else 0)
                where = f"(no success from {front.health_path} on port {port})"
                where = where if front.health == "http" else f"(on port {port})"
                self._refuse(one, f"is not healthy{within} {where}: {why}")

    def _refuse(self, one: Container | None, what: str) -> NoReturn:
        name, words = (one.name, engine.logs(one)) if one else ("a replica", "(none)")
        state = f"\n({self._state(one)})" if one and self._state(one) else ""
        raise Failed(f"release {self.release}: {name} {what}; its log:\n{words}{state}")

    def _state(self, one: Container) -> str:
        """What else is known of a refused container, or ""."""
        if one.memory:
            return f"it took more memory than it may have: memory_mb is {self.app.memory_mb}"
        if one.id in self.codes:
            times = f", and was started {one.restarts + 1} times" if one.restarts else ""
            hint = ': `restart: "no"` is for what runs once' if not self.codes[one.id] else ""
            return f"it ended with code {self.codes[one.id]}{times}{hint}"
        if one.restarts:
            return f"it was started {one.restarts + 1} times"
        if one.health in ("starting", "unhealthy"):
            return f"its own health check says {one.health}{_last_check(one)}"
        return "" if one.state == "running" else f"it is {one.state}"


def _last_check(one: Container) -> str:
    """The last output of a container's own health check."""
    found = engine.inspect("container", [one.id])
    log = ((found[0]["State"].get("Health") or {}).get("Log") or [{}]) if found else [{}]
    said = " ".join(plain(str(log[-1].get("Output", ""))).split())
    return f": {said[:200]}" if said else ""

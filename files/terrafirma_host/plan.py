"""
Managed by Terrafirma. A plan: the steps of a release, to read before any of them runs.

Making a plan changes nothing on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from terrafirma_host.lease import Lease


@dataclass(frozen=True)
class Step:
    name: str  # the lease shows it while the step runs
    what: str  # a line for the reader of the plan
    run: Callable[[], object]
    # Run in this order if the release fails; each is harmless where the step has done nothing.
    undo: tuple[Callable[[], object], ...] = ()

    def take(self, lease: Lease) -> None:
        lease.step(self.name)
        self.run()


@dataclass(frozen=True)
class Plan:
    """The steps in their order, in three parts that handle a failure differently."""

    preparation: tuple[Step, ...] = ()  # does not affect the containers that serve
    takeover: tuple[Step, ...] = ()  # a failure of any step undoes all of them
    completion: tuple[Step, ...] = ()  # the release serves already: a failure is a warning

    @property
    def steps(self) -> tuple[Step, ...]:
        return (*self.preparation, *self.takeover, *self.completion)

    def __str__(self) -> str:
        width = max((len(step.name) for step in self.steps), default=0)
        return "\n".join(f"{step.name:{width}}  {step.what}" for step in self.steps)

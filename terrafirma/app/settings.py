"""An application's settings: where it comes from, what it needs, and who may see it."""

from __future__ import annotations

from typing import Any, Self

from pydantic import PrivateAttr, model_validator

from terrafirma.app.compose import default_file
from terrafirma.app.fields import OF_COMPOSE, Fields
from terrafirma.app.public import SLOT_PORTS
from terrafirma.app.registries import refuse_old_keys
from terrafirma.app.rules import RULES
from terrafirma.fields import here, is_file
from terrafirma.paths import SECRETS


class Application(Fields):
    """A web application in containers behind Caddy."""

    _public_ports: dict[str, int] = PrivateAttr(default_factory=dict)

    @property
    def public_ports(self) -> dict[str, int]:
        """The first port of each public service, once the host has one for it."""
        return self._public_ports

    def with_ports(self, port: int, public: dict[str, int]) -> Self:
        placed = self.model_copy(update={"port": port})
        placed._public_ports = public
        return placed

    @property
    def overlap(self) -> int:
        """Releases that run at the same time while a new one takes over."""
        return 1 if self.stops_first else 2

    @property
    def room(self) -> int:
        """Replicas that Caddy looks for in each slot: scaling up to it needs no reload of Caddy."""
        return 1 if self.stops_first else _room(self.replicas)

    @property
    def page(self) -> str:
        """Path that a release requests through Caddy."""
        return self.smoke_path or (self.health_path if self.health == "http" else "/")

    @property
    def containers(self) -> int:
        """How many replicas it has, with those of its other public services."""
        return self.replicas + sum(one.containers for one in self.public.values())

    @property
    def needs_routes(self) -> bool:
        """Whether each release has to write how Caddy reaches it."""
        return bool(self.public) or self.protocol != "http" or self.health != "http"

    @property
    def blocks(self) -> dict[str, int]:
        """The first port of the application and of each public service that has one yet."""
        return ({self.name: self.port} if self.port else {}) | {
            f"{self.name}/{service}": first for service, first in self.public_ports.items()
        }

    @property
    def ports(self) -> list[int]:
        """All ports that Caddy tries; it sends requests to those where a replica answers."""
        rooms = {f"{self.name}/{name}": _room(one.containers) for name, one in self.public.items()}
        return [
            first + slot + number
            for block, first in self.blocks.items()
            for slot in (0, SLOT_PORTS)
            for number in range(rooms.get(block, self.room))
        ]

    @property
    def directory(self) -> str:
        return f"/opt/terrafirma/{self.name}"

    @property
    def secrets_directory(self) -> str:
        return f"{SECRETS}/app/{self.name}"

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_keys(cls, data: Any) -> Any:
        refuse_old_keys(data)
        return data

    @model_validator(mode="before")
    @classmethod
    def _one_instance(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("strategy") == "stop-first":
            return {"replicas": 1} | data
        return data

    @model_validator(mode="before")
    @classmethod
    def _find_compose_file(cls, data: Any) -> Any:
        """Without `compose`, a source has the compose file that Compose itself would take."""
        source = data.get("source") if isinstance(data, dict) else None
        if not isinstance(source, str) or not source or data.get("compose"):
            return data
        wanted = any(data.get(key) for key in OF_COMPOSE)
        found = default_file(here(source))
        built = data.get("dockerfile") or is_file(here(source) / "Dockerfile")
        if found and (wanted or not built):
            return {**data, "compose": (found,)}
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        for rule in RULES:
            rule(self)
        return self


def _room(replicas: int) -> int:
    return min(SLOT_PORTS, max(8, 2 * replicas))

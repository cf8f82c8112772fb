"""Managed by Terrafirma. A public service of a project, beside the one of the application."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Public:
    """A public service in the description of an application."""

    domain: str  # "": that of the application
    paths: tuple[str, ...]  # for Caddy, the shortest first; empty: the whole domain
    prefix: str  # removed from the path of a request
    container_port: int
    replicas: int
    slots: Mapping[str, int]  # "blue" → first port
    protocol: str
    health: str | tuple[str, ...]
    health_path: str
    health_headers: Mapping[str, str]
    smoke_path: str  # answers 2xx or 3xx through Caddy; or ""
    any_path: str  # answers through Caddy, with whatever status; or ""
    guarded: bool

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
        return cls(**{**data, **lists})

    @property
    def rank(self) -> tuple[int, bool]:
        """Where it comes among others on its domain: of several paths, the most exact counts."""
        last = self.paths[-1] if self.paths else ""
        return -len(last.rstrip("*")), last.endswith("*")

    def as_fields(self) -> dict[str, Any]:
        """The fields that an application has, too."""
        ours = {"paths", "prefix"}
        return {name: value for name, value in asdict(self).items() if name not in ours}

"""Managed by Terrafirma. A public service of a project, beside the one of the application."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
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
    guarded: bool

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
        # Other versions of this program may have written further fields.
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in {**data, **lists}.items() if name in known})

    @property
    def rank(self) -> tuple[int, bool]:
        """Where it comes among others on its domain: of several paths, the most exact counts."""
        last = self.paths[-1] if self.paths else ""
        return -len(last.rstrip("*")), last.endswith("*")

    def as_fields(self) -> dict[str, Any]:
        """The fields that an application has, too."""
        page, good = self.page
        pages = {"smoke_path": page if good else "", "any_path": "" if good else page}
        found: dict[str, Any] = asdict(self) | pages
        return {name: value for name, value in found.items() if name not in ("paths", "prefix")}

    @property
    def page(self) -> tuple[str, bool]:
        """Path to request through Caddy, and whether its answer has to be good."""
        known = self.health == "http"
        if self.prefix:
            return self.prefix + (self.health_path if known else "/"), known
        asked = self.health_path.lower()
        if known and (not self.paths or any(fnmatchcase(asked, one.lower()) for one in self.paths)):
            return self.health_path, True
        return (self.paths[0].rstrip("*") if self.paths else "/"), False

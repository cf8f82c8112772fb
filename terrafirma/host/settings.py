"""Settings of preflight and apt: the requirements for a host, and its packages."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
)

from terrafirma.fields import PackageName
from terrafirma.settings import Settings


class Preflight(Settings):
    prefix = "preflight"

    free_disk_gb: int = Field(ge=0)
    wait_seconds: int = Field(ge=1, le=7200)


class Apt(Settings):
    prefix = "apt"

    source: Literal["distro", "upstream"]
    cache_hours: int = Field(ge=1)
    packages: tuple[PackageName, ...]

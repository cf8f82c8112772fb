"""Settings of preflight: the requirements for a host."""

from __future__ import annotations

from pydantic import (
    Field,
)

from terrafirma.settings import Settings


class Preflight(Settings):
    prefix = "preflight"

    free_disk_gb: int = Field(ge=0)
    wait_seconds: int = Field(ge=1, le=7200)

"""Settings of the guard."""

from __future__ import annotations

from pydantic import Field

from terrafirma.settings import Settings


class Guard(Settings):
    prefix = "guard"

    seconds: int = Field(ge=15, le=600)

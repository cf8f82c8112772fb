"""Certificates and logs of the sites."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import (
    Field,
    model_validator,
)

from terrafirma.fields import Line, VersionPrefix, here, is_file
from terrafirma.settings import Settings


class Caddy(Settings):
    prefix = "caddy"

    version: VersionPrefix
    email: Annotated[
        str, Field(pattern=r"^$|^[^\s@{}\"]+@[^\s@{}\"]+$", title="e-mail address, or empty")
    ]
    acme_ca: Annotated[
        str, Field(pattern=r"^$|^https://[^\s{}\"]+$", title="`https://` URL, or empty")
    ]
    acme_ca_root: Line
    log_size_mb: int = Field(ge=1)
    log_files: int = Field(ge=1)
    snippet: Line

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.acme_ca_root and not self.acme_ca:
            raise ValueError(
                "caddy_acme_ca_root: caddy_acme_ca is empty: set it to the URL of the authority "
                "that this root certificate belongs to"
            )
        for key in ("acme_ca_root", "snippet"):
            name = getattr(self, key)
            if name and not is_file(here(name)):
                raise ValueError(f"caddy_{key}: cannot read {name!r}")
        return self

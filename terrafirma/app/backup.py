"""Settings of what backups do in the containers of an application."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

LeftOut = Annotated[
    str,
    Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,254}$", title="key or name of a volume"),
]
Patience = Annotated[int, Field(strict=True, ge=1, le=86_400)]


def refuse_alone(command: Sequence[str], after: Sequence[str]) -> None:
    """Raise ValueError where a command that ends something has nothing to end."""
    if after and not command:
        raise ValueError("backup_after: there is no backup_command: set that, or leave it out")

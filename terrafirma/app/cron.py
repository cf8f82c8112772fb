"""Scheduled commands of an application."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from terrafirma.app.container import Command
from terrafirma.fields import Line
from terrafirma.settings import Model


def _calendar(value: str) -> str:
    if re.fullmatch(r"\s*([\d*/,-]+\s+){4}[\w*/,-]+\s*", value):
        raise ValueError(
            f"{value!r} is a line of a crontab: write it as OnCalendar of systemd, like 'hourly', "
            "'*:0/15' (each quarter of an hour) or 'Mon..Fri 03:30'"
        )
    # systemd replaces what follows a `%` in its units.
    if not re.fullmatch(r"[\w*:.,~/ +-]+", value, re.ASCII):
        raise ValueError(f"{value!r} is no OnCalendar of systemd, like 'hourly' or 'Mon 03:30'")
    return value


JobName = Annotated[
    str,
    Field(
        pattern=r"^[a-z](-?[a-z0-9_]){0,30}$",
        title="a-z, 0-9, `_` and single `-`, first a letter",
    ),
]


class Job(Model):
    """A command that runs by a schedule in a container of the release that serves."""

    schedule: Annotated[
        Line, AfterValidator(_calendar), Field(title="systemd's OnCalendar, like `hourly`")
    ]
    """When it runs, in the time zone of the server unless it names another."""
    command: Command = Field(min_length=1)
    """Command, as a list of words. It replaces the image's entry point."""
    service: Annotated[
        str,
        Field(pattern=r"^([a-zA-Z0-9][a-zA-Z0-9._-]{0,62})?$", title="name of a service, or empty"),
    ] = ""
    """Compose service in whose image, environment and networks it runs; empty: the one that serves
    HTTP."""
    timeout_seconds: int = Field(default=3600, ge=1, le=86_400)
    """How long it may take; then it is stopped, and has failed."""

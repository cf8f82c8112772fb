"""The settings of automatic updates, and of the windows for restarts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from terrafirma.fields import Line
from terrafirma.settings import Settings

# tasks/updates.py asks systemd on the host whether the value is valid.
Window = Annotated[Line, Field(title="systemd's OnCalendar, or empty")]


class Updates(Settings):
    prefix = "updates"

    security: bool
    postgres: Window
    reboot: Window

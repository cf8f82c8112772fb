"""What a server installs by itself, and when it may be restarted for that."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from terrafirma.fields import Line
from terrafirma.settings import Settings

# Whether it is one, systemd says on the host: tasks/updates.py.
Window = Annotated[Line, Field(title="systemd's OnCalendar, or empty")]


class Updates(Settings):
    prefix = "updates"

    security: bool
    postgres: Window
    reboot: Window

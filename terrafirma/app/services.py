"""What is set for single services of a compose project."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from terrafirma.app.backup import Patience, refuse_alone
from terrafirma.app.container import Command, Memory
from terrafirma.app.environment import EnvironmentValue, text_of
from terrafirma.app.public import Public
from terrafirma.fields import Seconds

EnvironmentName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", title="letters, digits and `_`, first no digit"),
]


class Service(Public):
    """
    One service of a compose project: what differs from the application and from the files.

    One with a `domain` or a `path` is public.
    """

    env: dict[EnvironmentName, EnvironmentValue] = Field(default={})
    """Further environment variables of this service; they replace those of the application."""
    memory_mb: Memory | None = None
    """Memory limit of one container, in MB; 0: no limit. None: that of the application."""
    cpus: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Processor limit of one container; 0: no limit. None: that of the application."""
    stop_signal: Annotated[
        str,
        Field(pattern=r"^(SIG[A-Z0-9+]{2,12}|[1-9][0-9]?)?$", title="signal, like `SIGINT`"),
    ] = ""
    """Signal that asks a container to stop; empty: as the files and the image say."""
    stop_seconds: Seconds | None = None
    """How long a container may take to stop; None: `stop_seconds` of the application."""
    command: Command = ()
    """Command in place of that in the files, as a list of words; empty: as the files say."""
    backup_command: Command = ()
    """Command, as a list of words, that runs in the service's container before each backup reads
    the volumes, for example to write a dump there."""
    backup_after: Command = ()
    """Command that runs there once the volumes are read, also if `backup_command` failed."""
    backup_seconds: Patience | None = None
    """How long each of the two may take; None: `backup_seconds` of the application."""

    @model_validator(mode="after")
    def _check_backup(self) -> Self:
        refuse_alone(self.backup_command, self.backup_after)
        return self

    def told(self) -> dict[str, Any]:
        """Its fields for the program on the host, without those that say nothing."""
        public = {*Public.model_fields} - {"replicas"}
        data = self.model_dump(exclude_defaults=True, exclude=public)
        if self.env:
            data["env"] = {name: text_of(value) for name, value in self.env.items()}
        return data

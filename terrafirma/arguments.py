"""The arguments that a command of `commands/` takes with --data, besides the host's settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from terrafirma.fields import Line
from terrafirma.postgres.settings import NameOrEmpty
from terrafirma.settings import Model


class Rollback(Model):
    """For commands/rollback.py."""

    rollback: Annotated[
        str,
        Field(
            pattern=r"^([a-z][a-z0-9-]*(:[0-9a-f]{6,12})?)?$",
            title="application, perhaps `:` and a release, or empty",
        ),
    ] = ""
    """The application, or `APPLICATION:RELEASE`."""


class Rotate(Model):
    """For commands/postgres_rotate.py."""

    rotate: NameOrEmpty = ""
    """The role that gets a new password."""


class Drop(Model):
    """For commands/postgres_drop.py."""

    drop: NameOrEmpty = ""
    """The database to drop."""
    drop_role: NameOrEmpty = ""
    """The role to drop."""
    confirm: str = ""
    """The same name once more."""


class Upgrade(Model):
    """For commands/postgres_upgrade.py."""

    upgrade: Literal["", "back", "clean"] = ""
    """Empty: upgrade to the version that the settings ask for. `back`: return to the cluster from
    before the upgrade. `clean`: remove the cluster that is no longer used."""


class Check(Model):
    """For commands/check.py."""

    check: Line = ""
    """An application of `apps`, or the directory of a project that no settings name yet. Empty: all
    applications."""


ARGUMENTS: tuple[type[Model], ...] = (Rollback, Rotate, Drop, Upgrade, Check)

"""Passwords of roles that the caller brings along."""

from __future__ import annotations

import os
import re

from pyinfra.api import DeployError, Host

from terrafirma.postgres.settings import Postgres


def passwords(host: Host, settings: Postgres) -> dict[str, str]:
    """
    The passwords of those roles that name a variable of the environment, by role.

    Raises DeployError, which names the variable and never its value, when it is missing or could
    not stand in a URL as it is.
    """
    given = {}
    for role in settings.roles:
        if not role.password:
            continue
        variable = role.password.removeprefix("env:")
        value = os.environ.get(variable, "")
        if not re.fullmatch(r"[A-Za-z0-9._~-]{16,200}", value):
            wrong = "is not set" if not value else "is too short, or would need quotes in a URL"
            raise DeployError(
                f"{host.name}: postgres_roles: {role.name}: {variable} {wrong}; give it 16 to 200 "
                "letters, digits and - . _ ~, or leave `password` out: then one is generated there"
            )
        given[role.name] = value
    return given

"""Passwords that the user passes for roles, in environment variables."""

from __future__ import annotations

import os
import re

from pyinfra.api import DeployError, Host

from terrafirma.postgres.settings import Postgres


def passwords(host: Host, settings: Postgres) -> dict[str, str]:
    """
    The passwords of the roles that name an environment variable, by role.

    Raises DeployError when a variable is missing, or when its value would need quoting in a URL.
    The error names the variable, and never shows its value.
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
                "letters, digits and - . _ ~, or leave `password` out to have one generated there"
            )
        given[role.name] = value
    return given

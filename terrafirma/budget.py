"""Whether PostgreSQL accepts all the connections that the applications are going to open."""

from __future__ import annotations

from pyinfra.api import DeployError, Host

from terrafirma.settings import App, Application, Postgres

RESERVED = 10
"""Connections that are left for a backup, a deploy, whoever looks around, and the superuser."""

OVERLAP = 2
"""Releases of an application that run at once while one takes over from the other."""


def refuse_overdraft(host: Host) -> None:
    """Raise DeployError, with the numbers, when a limit is lower than what may be opened."""
    postgres, applications = Postgres.of(host), App.of(host).applications
    needed = sum(map(connections, applications))
    sums = ", ".join(
        f"{app.name} {app.replicas} replicas x {app.connections} x {OVERLAP} releases = "
        f"{connections(app)}"
        for app in applications
    )
    if needed + RESERVED > postgres.max_connections:
        raise DeployError(
            f"{host.name}: postgres_max_connections: {postgres.max_connections} is too few: "
            f"{sums}, reserved {RESERVED}; set it to {needed + RESERVED} or more, or lower "
            "app_connections"
        )
    for what, limits, whose in (
        (
            "postgres_databases",
            {one.name: one.connection_limit for one in postgres.databases},
            lambda app: app.database,
        ),
        (
            "postgres_roles",
            {one.name: one.connection_limit for one in postgres.roles},
            postgres.role_of,
        ),
    ):
        for name, limit in limits.items():
            users = [app for app in applications if whose(app) == name]
            needed = sum(map(connections, users))
            if 0 <= limit < needed:
                raise DeployError(
                    f"{host.name}: {what}: {name}: connection_limit {limit} is too low for "
                    f"{', '.join(app.name for app in users)}: set it to {needed} or more"
                )


def connections(app: Application) -> int:
    """How many connections `app` opens at most."""
    return app.replicas * app.connections * OVERLAP

"""Whether PostgreSQL accepts all the connections that the applications are going to open."""

from __future__ import annotations

from pyinfra.api import DeployError, Host

from terrafirma.pooler import pool_sizes
from terrafirma.settings import App, Application, PgBouncer, Postgres

RESERVED = 10
"""Connections that are left for a backup, a deploy, whoever looks around, and the superuser."""

OVERLAP = 2
"""Releases of an application that run at once while one takes over from the other."""


def refuse_overdraft(host: Host) -> None:
    """Raise DeployError, with the numbers, when a limit is lower than what may be opened."""
    postgres, pgbouncer = Postgres.of(host), PgBouncer.of(host)
    direct = [app for app in App.of(host).applications if not app.pgbouncer]
    pools = pool_sizes(pgbouncer, postgres)
    sums = [
        f"{app.name} {app.replicas} replicas x {app.connections} x {OVERLAP} releases = "
        f"{connections(app)}"
        for app in direct
    ]
    if pools:
        sums.append(f"{len(pools)} pools of PgBouncer = {sum(pools)}")
    needed = sum(map(connections, direct)) + sum(pools) + RESERVED
    if needed > postgres.max_connections:
        lower = " and ".join(
            [*(["app_connections"] if direct else []), *(["pgbouncer_pool_size"] if pools else [])]
        )
        raise DeployError(
            f"{host.name}: postgres_max_connections: {postgres.max_connections} is too few: "
            f"{', '.join(sums)}, reserved {RESERVED}; set it to {needed} or more, or lower {lower}"
        )
    for key, limited, whose in (
        ("postgres_databases", postgres.databases, lambda app: app.database),
        ("postgres_roles", postgres.roles, postgres.role_of),
    ):
        for one in limited:
            users = [app for app in direct if whose(app) == one.name]
            needed = sum(map(connections, users))
            if 0 <= one.connection_limit < needed:
                raise DeployError(
                    f"{host.name}: {key}: {one.name}: connection_limit {one.connection_limit} is "
                    f"too low for {', '.join(app.name for app in users)}: set it to {needed} or "
                    "more"
                )


def connections(app: Application) -> int:
    """How many connections `app` opens at most."""
    return app.replicas * app.connections * OVERLAP

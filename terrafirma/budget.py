"""Whether PostgreSQL accepts all the connections that the applications are going to open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pyinfra.api import DeployError, Host

from terrafirma.pooler import pool_sizes
from terrafirma.settings import App, Application, Database, PgBouncer, Postgres, Role

RESERVED = 10
"""Connections that are left for a backup, a deploy, whoever looks around, and the superuser."""

OVERLAP = 2
"""Releases of an application that run at once while one takes over from the other."""


def refuse_overdraft(host: Host) -> None:
    """Raise DeployError, with the numbers, when a limit is lower than what may be opened."""
    postgres, pgbouncer = Postgres.of(host), PgBouncer.of(host)
    applications = App.of(host).applications
    direct = [app for app in applications if not app.pgbouncer]
    pools = pool_sizes(pgbouncer, postgres)
    sums = [
        f"{app.name} {app.replicas} replicas x {app.connections} x {OVERLAP} releases = "
        f"{connections(app)}"
        for app in direct
    ]
    needed = sum(map(connections, direct)) + RESERVED
    if pools:
        of_roles: Counter[str] = Counter()
        for (_, role), size in pools.items():
            of_roles[role] += size
        # A role has two logins while its password is renewed.
        spare = max(of_roles.values())
        sums.append(f"{len(pools)} pools of PgBouncer = {sum(pools.values())}")
        sums.append(f"{spare} while a password is renewed")
        needed += sum(pools.values()) + spare
    if needed > postgres.max_connections:
        lower = " and ".join(
            [*(["app_connections"] if direct else []), *(["pgbouncer_pool_size"] if pools else [])]
        )
        raise DeployError(
            f"{host.name}: postgres_max_connections: {postgres.max_connections} is too few: "
            f"{', '.join(sums)}, reserved {RESERVED}; set it to {needed} or more, or lower {lower}"
        )
    pooled = {(app.database, postgres.role_of(app)) for app in applications if app.pgbouncer}
    for database in postgres.databases:
        users = [app for app in applications if app.database == database.name]
        needed = sum(connections(app) for app in users if not app.pgbouncer)
        needed += sum(pools.get(pair, 0) for pair in pooled if pair[0] == database.name)
        _refuse_low(host, "postgres_databases", database, users, needed)
    for one in postgres.roles:
        users = [app for app in applications if postgres.role_of(app) == one.name]
        needed = sum(connections(app) for app in users if not app.pgbouncer)
        if needed:
            # PgBouncer keeps to the limit of a role, but does not know who comes beside it.
            needed += sum(pools.get(pair, 0) for pair in pooled if pair[1] == one.name)
        _refuse_low(host, "postgres_roles", one, users, needed)


def _refuse_low(
    host: Host, key: str, one: Database | Role, users: Sequence[Application], needed: int
) -> None:
    if 0 <= one.connection_limit < needed:
        raise DeployError(
            f"{host.name}: {key}: {one.name}: connection_limit {one.connection_limit} is too low "
            f"for {', '.join(app.name for app in users)}: set it to {needed} or more"
        )


def connections(app: Application) -> int:
    """How many connections `app` opens at most."""
    return app.replicas * app.connections * OVERLAP

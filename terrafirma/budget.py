"""Whether the host has what the applications are going to take: connections, memory, processors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pyinfra.api import DeployError, Host

from terrafirma.facts.machine import Hardware
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


def refuse_overload(host: Host) -> None:
    """
    Raise DeployError, with the numbers, when memory or processors are fewer than may be taken.

    What has no limit of its own counts as nothing: nobody knows what it takes.
    """
    applications = App.of(host).applications
    limited = [app for app in applications if app.memory_mb]
    if not limited and not any(app.cpus for app in applications):
        return
    known = host.get_fact(Hardware, path="/")
    if known is None:
        return
    for app in applications:
        if app.cpus > known["cores"]:
            raise DeployError(
                f"{host.name}: app_cpus: a container of {app.name} may take {app.cpus:g}, but the "
                f"host has {known['cores']}; set it to {known['cores']} or less"
            )
    total = known["memory"] // 1024
    percent = Postgres.of(host).memory_percent
    share = total * percent // 100
    needed = sum(map(memory_mb, limited))
    if needed + share <= total:
        return
    sums = [
        f"{app.name} {app.replicas} replicas x {app.memory_mb} MB x {OVERLAP} releases = "
        f"{memory_mb(app)} MB"
        for app in limited
    ]
    fits = (total - needed) * 100 // total
    # The least that the setting takes.
    right = f", or postgres_memory_percent to {fits}" if fits >= 5 else ""
    raise DeployError(
        f"{host.name}: app_memory_mb: {total} MB of memory are too few: {', '.join(sums)}, "
        f"PostgreSQL {percent} % = {share} MB; lower app_memory_mb or app_replicas until the "
        f"applications take {total - share} MB{right}"
    )


def memory_mb(app: Application) -> int:
    """How much memory the containers of `app` take at most, in MB."""
    return app.replicas * app.memory_mb * OVERLAP

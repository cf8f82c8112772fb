"""What PgBouncer shares with PostgreSQL and the applications, and whether it all fits."""

from __future__ import annotations

from collections.abc import Mapping

from pyinfra.api import DeployError, Host

from terrafirma.settings import App, PgBouncer, Postgres


def pooler(host: Host) -> PgBouncer:
    """
    PgBouncer's settings for this host.

    Raises DeployError where they do not fit those of PostgreSQL and the applications.
    """
    settings, postgres = PgBouncer.of(host), Postgres.of(host)
    applications = App.of(host).applications
    if not settings.enabled:
        for app in applications:
            if app.pgbouncer:
                raise DeployError(
                    f"{host.name}: app_pgbouncer: {app.name} is to use PgBouncer, but "
                    "pgbouncer_enabled is False; set that to True, or this to False"
                )
        return settings
    if settings.port == postgres.port:
        raise DeployError(
            f"{host.name}: pgbouncer_port: {settings.port} is PostgreSQL's (postgres_port); "
            "take another"
        )
    for app in applications:
        if settings.port in (ports := app.reserved_ports):
            raise DeployError(
                f"{host.name}: pgbouncer_port: {settings.port} is one of {app.name}'s "
                f"{ports[0]}-{ports[-1]} (app_port); take another"
            )
    if any(database == "pgbouncer" for database, _ in postgres.visitors):
        raise DeployError(
            f"{host.name}: postgres_databases: 'pgbouncer' is the name of PgBouncer's console; "
            "take another, or set pgbouncer_enabled to False"
        )
    return settings


def pool_sizes(settings: PgBouncer, postgres: Postgres) -> dict[tuple[str, str], int]:
    """Connections that each pair of a database and a role may take there; none when it is off."""
    limits = role_limits(postgres)
    return {
        (database, role): min(settings.pool_size, limits.get(role, settings.pool_size))
        for database, role in postgres.visitors
        if settings.enabled
    }


def role_limits(postgres: Postgres) -> Mapping[str, int]:
    """Connections that a role may hold at once, for the roles that have such a limit."""
    visiting = {role for _, role in postgres.visitors}
    # 0 would be none to PgBouncer; PostgreSQL lets such a role in nowhere anyway.
    return {
        role.name: role.connection_limit
        for role in postgres.roles
        if role.name in visiting and role.connection_limit > 0
    }

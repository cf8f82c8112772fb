"""How many connections PgBouncer may take of PostgreSQL's."""

from __future__ import annotations

from collections.abc import Mapping

from terrafirma.pgbouncer.settings import PgBouncer
from terrafirma.postgres.settings import Postgres


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

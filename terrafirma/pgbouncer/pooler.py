"""How many of PostgreSQL's connections PgBouncer may use."""

from __future__ import annotations

from collections.abc import Mapping

from terrafirma.pgbouncer.settings import PgBouncer
from terrafirma.postgres.settings import Postgres


def pool_sizes(settings: PgBouncer, postgres: Postgres) -> dict[tuple[str, str], int]:
    """The pool size of each (database, role); empty if PgBouncer is not enabled."""
    limits = role_limits(postgres)
    return {
        (database, role): min(settings.pool_size, limits.get(role, settings.pool_size))
        for database, role in postgres.visitors
        if settings.enabled
    }


def role_limits(postgres: Postgres) -> Mapping[str, int]:
    """The connection limit of each role that has one and may connect to a database."""
    visiting = {role for _, role in postgres.visitors}
    # A limit of 0 is left out: PgBouncer would read it as no limit, and PostgreSQL refuses the role
    # anyway.
    return {
        role.name: role.connection_limit
        for role in postgres.roles
        if role.name in visiting and role.connection_limit > 0
    }

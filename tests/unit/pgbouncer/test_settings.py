"""Which settings of PgBouncer are refused, and the sizes of its pools."""

from typing import Any

import pytest

from terrafirma.pgbouncer.pooler import pool_sizes, role_limits
from terrafirma.pgbouncer.settings import PgBouncer
from terrafirma.postgres.settings import Postgres
from terrafirma.settings import Settings
from tests.unit.settings import POOLS, numbered, of, refusal

# --- bad data -------------------------------------------------------------------------------------

BAD: list[tuple[type[Settings], dict[str, Any], str, str]] = [
    # the settings; the key that the message names; what would be right
    (PgBouncer, {"pgbouncer_enabled": "maybe"}, "pgbouncer_enabled", "valid boolean"),
    (PgBouncer, {"pgbouncer_port": 443}, "pgbouncer_port", "greater than or equal to 1024"),
    (PgBouncer, {"pgbouncer_pool_size": 0}, "pgbouncer_pool_size", "greater than or equal to 1"),
    (PgBouncer, {"pgbouncer_max_clients": 60_000}, "pgbouncer_max_clients", "50000"),
    (
        PgBouncer,
        {"pgbouncer_poolsize": 9},
        "pgbouncer_poolsize",
        "did you mean pgbouncer_pool_size",
    ),
    (
        PgBouncer,
        {"pgbouncer_settings": {"listen_addr": "*"}},
        "pgbouncer_settings",
        "listen_addr is derived; it cannot be set here",
    ),
    (
        PgBouncer,
        {"pgbouncer_settings": {"auth_type": "any"}},
        "pgbouncer_settings",
        "auth_type is derived",
    ),
    (
        PgBouncer,
        {"pgbouncer_settings": {"admin_users": "api"}},
        "pgbouncer_settings",
        "admin_users is derived",
    ),
    (
        PgBouncer,
        {"pgbouncer_settings": {"query_wait_timeout": "5\nauth_type = any"}},
        "pgbouncer_settings.query_wait_timeout",
        "line break",
    ),
    (PgBouncer, {"pgbouncer_settings": {"%include /x": 1}}, "pgbouncer_settings", "does not match"),
    (PgBouncer, {"pgbouncer_settings": {"verbose": None}}, "pgbouncer_settings.verbose", "valid"),
]


@pytest.mark.parametrize(("section", "data", "key", "right"), numbered(BAD, 2))
def test_bad_data_names_the_key_and_what_would_be_right(
    section: type[Settings], data: dict[str, Any], key: str, right: str
) -> None:
    message = refusal(section, **data)
    assert key in message
    assert right in message


# --- pools ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        # One pool for each pair of a database and a role, no larger than the role's limit.
        ({}, [20, 7, 20]),
        ({"pgbouncer_pool_size": 5}, [5, 5, 5]),
        ({"postgres_databases": []}, []),
        ({"pgbouncer_enabled": False}, []),
    ],
)
def test_the_size_of_each_pool(data: dict[str, Any], sizes: list[int]) -> None:
    data = POOLS | data
    found = pool_sizes(of(PgBouncer, **data), of(Postgres, **data))
    assert list(found.values()) == sizes


def test_a_connection_limit_of_0_is_left_out() -> None:
    """PgBouncer would read it as no limit."""
    data = POOLS | {"postgres_roles": [{"name": "api", "connection_limit": 0}, {"name": "web"}]}
    assert role_limits(of(Postgres, **data)) == {}
    assert role_limits(of(Postgres, **POOLS)) == {"web": 7}


def test_settings_of_the_pooler_go_to_the_file_that_applies_them() -> None:
    settings = {"so_reuseport": True, "query_wait_timeout": 1.5, "track_extra_parameters": "x, y"}
    read = of(PgBouncer, pgbouncer_settings=settings)
    assert read.chosen(at_start=True) == {"so_reuseport": "1", "track_extra_parameters": "x, y"}
    assert read.chosen(at_start=False) == {"query_wait_timeout": "1.5"}

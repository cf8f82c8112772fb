"""Which package of Debian and Ubuntu ships each PostgreSQL extension."""

from __future__ import annotations

from collections.abc import Iterable

CONTRIB = frozenset(
    """
    amcheck autoinc bloom btree_gin btree_gist citext cube dblink dict_int dict_xsyn earthdistance
    file_fdw fuzzystrmatch hstore insert_username intagg intarray isn lo ltree moddatetime
    pageinspect pg_buffercache pg_freespacemap pg_prewarm pg_stat_statements pg_surgery pg_trgm
    pg_visibility pg_walinspect pgcrypto pgrowlocks pgstattuple plpgsql postgres_fdw refint seg
    sslinfo tablefunc tcn tsm_system_rows tsm_system_time unaccent uuid-ossp xml2
    """.split()
)
"""Extensions that come with the server itself."""

EXTENSION_PACKAGES = {
    "address_standardizer": "postgresql-{}-postgis-3",
    "hll": "postgresql-{}-hll",
    "hypopg": "postgresql-{}-hypopg",
    "ip4r": "postgresql-{}-ip4r",
    "orafce": "postgresql-{}-orafce",
    "pg_cron": "postgresql-{}-cron",
    "pg_partman": "postgresql-{}-partman",
    "pg_repack": "postgresql-{}-repack",
    "pgaudit": "postgresql-{}-pgaudit",
    "plperl": "postgresql-plperl-{}",
    "plpython3u": "postgresql-plpython3-{}",
    "pltcl": "postgresql-pltcl-{}",
    "postgis": "postgresql-{}-postgis-3",
    "postgis_raster": "postgresql-{}-postgis-3",
    "postgis_tiger_geocoder": "postgresql-{}-postgis-3",
    "postgis_topology": "postgresql-{}-postgis-3",
    "prefix": "postgresql-{}-prefix",
    "rum": "postgresql-{}-rum",
    "vector": "postgresql-{}-pgvector",
}
"""The package of each other extension, with `{}` for the server's major version."""

PRELOADED = frozenset({"pg_cron", "pg_stat_statements", "pgaudit"})
"""Extensions that work only if the server loads them when it starts."""


def packages_of(extensions: Iterable[str], version: int) -> list[str]:
    """The packages that ship `extensions` for major version `version`, each once."""
    packages = {EXTENSION_PACKAGES[name] for name in extensions if name in EXTENSION_PACKAGES}
    return sorted(package.format(version) for package in packages)

"""Remove a database or a role that the data no longer names: --data postgres_drop=NAME …"""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.machine import postgres_version, ready
from terrafirma.operations.postgres import drop_database, drop_role
from terrafirma.settings import Postgres

ready(host)
settings = Postgres.of(host)
version = postgres_version(host, settings)

if not settings.drop and not settings.drop_role:
    raise DeployError(
        f"{host.name}: postgres_drop: empty; name the database with --data postgres_drop=NAME, or "
        "the role with --data postgres_drop_role=NAME"
    )
if settings.confirm != (settings.drop or settings.drop_role):
    raise DeployError(
        f"{host.name}: postgres_confirm: {settings.confirm!r} is not "
        f"{settings.drop or settings.drop_role!r}: give the name once more, with --data "
        f"postgres_confirm={settings.drop or settings.drop_role}"
    )
for key, name, declared in (
    ("postgres_databases", settings.drop, {one.name for one in settings.databases}),
    ("postgres_roles", settings.drop_role, {one.name for one in settings.roles}),
):
    if name in declared:
        raise DeployError(
            f"{host.name}: postgres_drop: {name} is in {key}: take it out of the data first, and "
            "run deploy.py"
        )

if settings.drop:
    drop_database(
        name=f"Dump and drop the database {settings.drop}", version=version, database=settings.drop
    )

if settings.drop_role:
    drop_role(name=f"Drop the role {settings.drop_role}", version=version, role=settings.drop_role)

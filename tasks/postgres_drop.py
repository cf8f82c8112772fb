"""Remove a database or a role that the data no longer names: --data postgres_drop=NAME."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.machine import postgres_version, ready
from terrafirma.operations.postgres import drop_database, drop_role
from terrafirma.settings import Postgres

ready(host)
settings = Postgres.of(host)
version = postgres_version(host, settings)

name = settings.drop or settings.drop_role
key = "postgres_drop" if settings.drop else "postgres_drop_role"
declared = settings.databases if settings.drop else settings.roles

if bool(settings.drop) == bool(settings.drop_role):
    raise DeployError(
        f"{host.name}: postgres_drop: name one database with --data postgres_drop=NAME, or one "
        "role with --data postgres_drop_role=NAME"
    )
if settings.confirm != name:
    raise DeployError(
        f"{host.name}: postgres_confirm: {settings.confirm!r} is not {name!r}: give the name once "
        f"more, with --data postgres_confirm={name}"
    )
if name in {one.name for one in declared}:
    raise DeployError(
        f"{host.name}: {key}: {name} is in the data: take it out first, and run deploy.py"
    )

if settings.drop:
    drop_database(
        name=f"Dump and drop the database {settings.drop}", version=version, database=settings.drop
    )

if settings.drop_role:
    drop_role(
        name=f"Drop the role {settings.drop_role}",
        version=version,
        # A rotation that died left a second login.
        names=[f"{settings.drop_role}~", settings.drop_role],
    )

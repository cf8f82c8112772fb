"""Drop a database or a role that your settings no longer name: --data drop=NAME."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.arguments import Drop
from terrafirma.postgres.operations import drop_database, drop_role
from terrafirma.postgres.version import postgres_version
from terrafirma.site import arguments, begin

server, machine = begin(host)
given = arguments(host, Drop)
version = postgres_version(host, server.postgres, machine)

name = given.drop or given.drop_role
key = "drop" if given.drop else "drop_role"
declared = server.postgres.databases if given.drop else server.postgres.roles

if bool(given.drop) == bool(given.drop_role):
    raise DeployError(
        f"{host.name}: drop: name one database with --data drop=NAME, or one "
        "role with --data drop_role=NAME"
    )
if given.confirm != name:
    raise DeployError(
        f"{host.name}: confirm: {given.confirm!r} is not {name!r}: give the name once "
        f"more, with --data confirm={name}"
    )
if name in {one.name for one in declared}:
    raise DeployError(
        f"{host.name}: {key}: {name} is in your settings: take it out first, and run deploy.py"
    )

if given.drop:
    drop_database(
        name=f"Dump and drop the database {given.drop}", version=version, database=given.drop
    )

if given.drop_role:
    drop_role(
        name=f"Drop the role {given.drop_role}",
        version=version,
        # A rotation that died may have left a second login.
        names=[f"{given.drop_role}~", given.drop_role],
    )

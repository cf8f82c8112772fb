"""A new password for a role, without a failed connection: --data rotate=ROLE."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.app.description import deployer
from terrafirma.app.operations import database_url, refresh
from terrafirma.arguments import Rotate
from terrafirma.host import program
from terrafirma.host.files import put
from terrafirma.host.units import unit
from terrafirma.paths import POOLER_USERS
from terrafirma.pgbouncer.operations import user_list
from terrafirma.postgres.operations import drop_role, passwords, twin
from terrafirma.postgres.version import postgres_version
from terrafirma.site import arguments, begin

server, machine = begin(host)
postgres = server.postgres
wanted = arguments(host, Rotate).rotate
version = postgres_version(host, postgres, machine)
role = next((one for one in postgres.roles if one.name == wanted), None)

if role is None or not role.login:
    names = ", ".join(one.name for one in postgres.roles if one.login)
    raise DeployError(
        f"{host.name}: rotate: {wanted!r} is no role that logs in; give one of "
        f"{names} with --data rotate=ROLE"
    )
if role.password:
    raise DeployError(
        f"{host.name}: rotate: the password of {role.name} is given ({role.password}): "
        "change it there, then run deploy.py"
    )

double = f"{role.name}~"
applications = [app for app in server.apps if role.name in server.roles_of(app).values()]


def update_pgbouncer() -> None:
    if server.pgbouncer.enabled:
        users = user_list(
            name="Give PgBouncer the verifiers", version=version, roles=postgres.pooled_roles
        )
        unit(
            name="Reload PgBouncer",
            unit="pgbouncer.service",
            reload_on={POOLER_USERS: users},
        )


put(name="Install the command terrafirma", entries=program.entries())

twin(name=f"Create the second login {double}", version=version, role=role, settings=postgres)

for login in host.loop([double, role.name]):
    passwords(
        name=f"Give {login} a new password",
        version=version,
        roles=[login],
        given={},
        # A second login that an earlier rotation left may be in use: it keeps its password.
        renew=login == role.name,
    )

    update_pgbouncer()

    for app in host.loop(applications):
        for database, connects in server.roles_of(app).items():
            if connects == role.name:
                where = "" if database == app.database else f" to {database}"
                database_url(
                    name=f"Set {app.name} to connect{where} as {login}",
                    path=f"{app.secrets_directory}/{app.database_urls[database]}",
                    url=server.database_url(app, database, login),
                    role=login,
                    user=app.user,
                )

        refresh(name=f"Release {app.name} to connect as {login}", app=app.name, by=deployer())

drop_role(name=f"Remove the second login {double}", version=version, names=[double])

update_pgbouncer()

"""A new password for a role while its applications serve: --data postgres_rotate=ROLE."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.machine import postgres_version, ready
from terrafirma.operations.pgbouncer import user_list
from terrafirma.operations.postgres import drop_role, passwords, twin
from terrafirma.operations.release import refresh
from terrafirma.operations.secrets import database_url
from terrafirma.operations.services import unit
from terrafirma.paths import POOLER_USERS
from terrafirma.pooler import pooler
from terrafirma.release import deployer
from terrafirma.settings import App, Postgres

ready(host)
postgres, settings = Postgres.of(host), App.of(host)
pgbouncer = pooler(host)
version = postgres_version(host, postgres)
role = next((one for one in postgres.roles if one.name == postgres.rotate), None)

if role is None or not role.login:
    names = ", ".join(one.name for one in postgres.roles if one.login)
    raise DeployError(
        f"{host.name}: postgres_rotate: {postgres.rotate!r} is no role that logs in; give one of "
        f"{names} with --data postgres_rotate=ROLE"
    )
if role.password:
    raise DeployError(
        f"{host.name}: postgres_rotate: the password of {role.name} is given ({role.password}): "
        "change it there, then run deploy.py"
    )

double = f"{role.name}~"
applications = [app for app in settings.applications if postgres.role_of(app) == role.name]


def tell_pgbouncer() -> None:
    if pgbouncer.enabled:
        users = user_list(
            name="Give PgBouncer the verifiers", version=version, roles=postgres.pooled_roles
        )
        unit(
            name="Let PgBouncer read them",
            unit="pgbouncer.service",
            reload_on={POOLER_USERS: users},
        )


twin(name=f"Let {double} log in as well", version=version, role=role, settings=postgres)

for login in host.loop([double, role.name]):
    passwords(
        name=f"Give {login} a new password",
        version=version,
        roles=[login],
        given={},
        # One that a rotation left behind may be in use: it keeps its password.
        renew=login == role.name,
    )

    tell_pgbouncer()

    for app in host.loop(applications):
        database_url(
            name=f"Tell {app.name} to come as {login}",
            path=app.database_url,
            url=postgres.url(app, login, pgbouncer),
            role=login,
            user=app.user,
        )

        refresh(name=f"Let {app.name} come as {login}", app=app.name, by=deployer())

drop_role(name=f"Remove {double}", version=version, names=[double])

tell_pgbouncer()

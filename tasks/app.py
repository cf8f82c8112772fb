"""The applications: N replicas of each on loopback ports, released without a failed request."""

from pyinfra import host
from pyinfra.api import DeployError
from pyinfra.facts.files import FindFiles

from terrafirma.budget import refuse_overdraft
from terrafirma.given import registry_password, secrets
from terrafirma.left_out import refuse_files_left_out
from terrafirma.machine import distribution, ready
from terrafirma.operations.docker import upload_source
from terrafirma.operations.files import Directory, File, put, source, template
from terrafirma.operations.release import release
from terrafirma.operations.secrets import app_secrets, database_url
from terrafirma.operations.services import unit
from terrafirma.paths import (
    APPLICATIONS,
    HOST_LIBRARY,
    HOST_PROGRAM,
    RECOVERY_UNIT,
    SECRETS,
    SECRETS_PROGRAM,
)
from terrafirma.pooler import pooler
from terrafirma.release import (
    deployer,
    description,
    refuse_further_files,
    revision,
    uploaded_source,
)
from terrafirma.settings import ROOT, App, Docker, Postgres, Users

machine = ready(host)
settings = App.of(host)
postgres = Postgres.of(host)
pgbouncer = pooler(host)
users = Users.of(host)
accounts = {account.name for account in users.accounts}

refuse_overdraft(host)
for app in settings.applications:
    if postgres.port in app.reserved_ports:
        raise DeployError(
            f"{host.name}: app_port: {app.name} needs {app.reserved_ports[0]}-"
            f"{app.reserved_ports[-1]}, but {postgres.port} is PostgreSQL's (postgres_port)"
        )
    if not distribution(machine).compose:
        raise DeployError(
            f"{host.name}: app_source: {machine['name']}'s archive has no Docker Compose v2; "
            "use Debian 13 or Ubuntu 24.04, or set app_source empty"
        )
    refuse_further_files(host, app, users)
    refuse_files_left_out(host, app)
    for key, value, known, where in (
        ("app_database", app.database, postgres.owners, "postgres_databases"),
        (
            "app_role",
            app.database and postgres.role_of(app),
            [role for database, role in postgres.visitors if database == app.database],
            f"the roles that log in to {app.database}",
        ),
        ("app_user", app.user, accounts, "users_accounts"),
        ("app_network", settings.network, Docker.of(host).networks, "docker_networks"),
    ):
        if value and value not in known:
            raise DeployError(
                f"{host.name}: {key}: {value!r} of {app.name} is not in {where} "
                f"({', '.join(sorted(known)) or 'empty'})"
            )

described = {path.rpartition("/")[2] for path in host.get_fact(FindFiles, path=APPLICATIONS)}
for name in sorted(described - {f"{app.name}.json" for app in settings.applications}):
    other = name.removesuffix(".json")
    host.log(
        f"Not in the data, left alone: {other}; `terrafirma remove {other}` on the host ends it"
    )

put(
    name="Install the command terrafirma",
    entries=[
        Directory(HOST_LIBRARY),
        *(
            source(f"terrafirma_host/{path.name}", f"{HOST_LIBRARY}/{path.name}")
            for path in sorted((ROOT / "files/terrafirma_host").glob("*.py"))
        ),
        source("terrafirma", HOST_PROGRAM, mode="755"),
        source("app/app-secrets", SECRETS_PROGRAM, mode="755"),
        Directory(SECRETS, "700"),
        Directory(APPLICATIONS, "700"),
    ],
)

for app in host.loop(settings.applications):
    told = []
    if app.secrets or app.registry_password:
        told += [
            app_secrets(
                name=f"Give {app.name} its secrets",
                directory=app.secrets_directory,
                secrets=app.secrets,
                given=secrets(host, app),
                user=app.user,
                registry_password=registry_password(host, app),
            )
        ]
    if app.database:
        told += [
            database_url(
                name=f"Give {app.name} the address of its database",
                path=app.database_url,
                url=postgres.url(app, postgres.role_of(app), pgbouncer),
                role=postgres.role_of(app),
                user=app.user,
            )
        ]
    if app.source:
        told += [
            upload_source(
                name=f"Upload the source of {app.name}",
                directory=app.source_directory,
                dest=uploaded_source(app),
            )
        ]
    words = description(app, settings, users)
    told += [
        put(
            name=f"Describe {app.name}",
            entries=[File(f"{APPLICATIONS}/{app.name}.json", words, mode="600")],
        )
    ]

    release(
        name=f"Release {app.name}, {app.replicas} replicas",
        app=app.name,
        description=words,
        revision=revision(app.source_directory) if app.source else "",
        by=deployer(),
        after=told,
    )

# After the descriptions, which it reads.
recovery = f"/etc/systemd/system/{RECOVERY_UNIT}"
unit(
    name="Put right at boot what a release left",
    unit=RECOVERY_UNIT,
    unit_files={
        recovery: put(
            name="Describe what is put right at boot",
            entries=[template("app/recover.service.j2", recovery)],
        )
    },
)

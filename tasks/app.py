"""The applications: N replicas of each on loopback ports, built on the host, unprivileged."""

from functools import partial
from hashlib import sha256

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.budget import refuse_overdraft
from terrafirma.facts.accounts import Accounts
from terrafirma.machine import distribution, ready
from terrafirma.operations.docker import compose_up, upload_source
from terrafirma.operations.files import File, put, template, tree_digest
from terrafirma.operations.packages import packages
from terrafirma.operations.secrets import database_url
from terrafirma.pooler import pooler
from terrafirma.settings import App, Application, Docker, Postgres, Users

machine = ready(host)
settings = App.of(host)
postgres = Postgres.of(host)
pgbouncer = pooler(host)
accounts = {account.name for account in Users.of(host).accounts}

refuse_overdraft(host)
for app in settings.applications:
    if postgres.port in app.ports:
        raise DeployError(
            f"{host.name}: app_port: {app.name} needs {app.ports[0]}-{app.ports[-1]}, but "
            f"{postgres.port} is PostgreSQL's (postgres_port)"
        )
    if not distribution(machine).compose:
        raise DeployError(
            f"{host.name}: app_source: {machine['name']}'s archive has no Docker Compose v2; "
            "use Debian 13 or Ubuntu 24.04, or set app_source empty"
        )
    for key, value, known, where in (
        ("app_database", app.database, postgres.owners, "postgres_databases"),
        (
            "app_role",
            postgres.role_of(app),
            [role for database, role in postgres.visitors if database == app.database],
            f"the roles that log in to {app.database}",
        ),
        ("app_user", app.user, accounts, "users_accounts"),
        ("app_network", settings.network, Docker.of(host).networks, "docker_networks"),
    ):
        if value not in known:
            raise DeployError(
                f"{host.name}: {key}: {value!r} of {app.name} is not in {where} "
                f"({', '.join(sorted(known)) or 'empty'})"
            )


# The ids of the account are known once it exists, perhaps since earlier in this same run.
def compose_file(app: Application, release: str, source: str) -> list[File]:
    account = host.get_fact(Accounts, names=[app.user]).get(app.user)
    data = {
        "app": app,
        "release": release,
        "source": source,
        "network": settings.network,
        "uid": account and account["uid"],
        "gid": account and account["gid"],
    }
    return [template("app/compose.yaml.j2", f"{app.directory}/compose.yaml", data=data)]


packages(name="Install what asks the replicas how they are", packages=["curl"])

for app in host.loop(settings.applications):
    digest = tree_digest(app.source_directory)[:12]
    source = f"{app.directory}/source-{digest}"
    # What its containers depend on: no other application, nothing that Caddy or PostgreSQL see to.
    # The way to the database is a file, which they follow without a release.
    beside = {"domain", "health_path", "role", "connections", "pgbouncer"}
    fields = set(Application.model_fields) - beside
    description = app.model_dump_json(include=fields)
    release = sha256(f"{digest}{description}{settings.network}".encode()).hexdigest()[:12]

    database_url(
        name=f"Give {app.name} the address of its database",
        path=app.database_url,
        url=postgres.url(app, postgres.role_of(app), pgbouncer),
        role=postgres.role_of(app),
        user=app.user,
    )

    upload_source(
        name=f"Upload the source of {app.name}", directory=app.source_directory, dest=source
    )

    put(
        name=f"Describe the replicas of {app.name}",
        entries=partial(compose_file, app, release, source),
    )

    compose_up(
        name=f"Run {app.replicas} replicas of {app.name}",
        project=app.name,
        directory=app.directory,
        release=release,
        replicas=app.replicas,
        service=app.name,
        secrets=[app.database_url],
        health_urls=app.health_urls,
        timeout=settings.start_seconds,
    )

"""PgBouncer, if it is enabled: many clients share few connections to PostgreSQL."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.docker.facts import DockerAddresses, DockerNetworks
from terrafirma.host.asking import ask
from terrafirma.host.files import File, put, source, template
from terrafirma.host.machine import distribution
from terrafirma.host.packages import packages
from terrafirma.host.units import unit
from terrafirma.paths import POOLER_CHECK, POOLER_CONFIG, POOLER_DROP_IN, POOLER_USERS
from terrafirma.pgbouncer.facts import ForeignPooler
from terrafirma.pgbouncer.operations import stop, user_list
from terrafirma.pgbouncer.pooler import role_limits
from terrafirma.postgres.version import postgres_version
from terrafirma.site import begin

server, machine = begin(host)
settings = server.pgbouncer
postgres = server.postgres
service = "pgbouncer.service"
pools = "/etc/pgbouncer/terrafirma.ini"
hba = "/etc/pgbouncer/hba.conf"
# The service runs as the user postgres: it can read its configuration, and not change it.
readable = {"mode": "640", "user": "root", "group": "postgres"}
check = f'{POOLER_CHECK} "$new" "$path"'


# Asked when the files are written: Docker may be installed earlier in this same run.
def client_access() -> list[File]:
    data = {"visitors": postgres.visitors, "networks": ask(host, DockerNetworks)}
    return [template("pgbouncer/hba.conf.j2", hba, data=data, **readable)]


def listening() -> list[File]:
    data = {
        "addresses": [
            "localhost",
            *(address.partition("/")[0] for address in ask(host, DockerAddresses)),
        ],
        "port": settings.port,
        "settings": settings.chosen(at_start=True),
    }
    return [template("pgbouncer/pgbouncer.ini.j2", POOLER_CONFIG, data=data, **readable)]


if not settings.enabled:
    if machine["pooler"]:
        stop(name="Stop PgBouncer, which is no longer enabled", unit=service)
else:
    version = postgres_version(host, postgres, machine)

    if host.get_fact(ForeignPooler):
        raise DeployError(
            f"{host.name}: pgbouncer_enabled: {POOLER_CONFIG} on the host is not ours, and its "
            "databases would be gone; move it away"
        )

    policy = put(
        name="Prepare the host",
        entries=[
            template("pgbouncer/restart.conf.j2", POOLER_DROP_IN),
            source("pgbouncer/pgbouncer-check", POOLER_CHECK, mode="755"),
        ],
    )

    packages(name="Install PgBouncer", packages=["pgbouncer"])

    users = user_list(
        name="Let PostgreSQL's roles log in",
        version=version,
        roles=postgres.pooled_roles,
    )

    access = put(name="Configure client access", entries=client_access, check=check)

    pooling = put(
        name="Configure the pools",
        entries=[
            template(
                "pgbouncer/terrafirma.ini.j2",
                pools,
                data={
                    "pool_size": settings.pool_size,
                    "max_clients": settings.max_clients,
                    "prepared_statements": distribution(machine).pooled_statements,
                    "settings": settings.chosen(at_start=False),
                    "databases": sorted({database for database, _ in postgres.visitors}),
                    "server_port": postgres.port,
                    "limits": role_limits(postgres),
                },
                **readable,
            )
        ],
        check=check,
    )

    configuration = put(name="Configure where PgBouncer listens", entries=listening, check=check)

    unit(
        name="Run PgBouncer",
        unit=service,
        unit_files={POOLER_DROP_IN: policy},
        restart_on={POOLER_CONFIG: configuration},
        reload_on={POOLER_USERS: users, hba: access, pools: pooling},
    )

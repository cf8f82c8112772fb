"""PostgreSQL with the declared databases, for containers and the host itself, and nobody else."""

from pyinfra import host
from pyinfra.operations import server

from terrafirma.facts.docker import DockerAddress, DockerNetworks
from terrafirma.machine import postgres_version, ready
from terrafirma.operations.files import Directory, File, put, source, template
from terrafirma.operations.packages import packages
from terrafirma.operations.postgres import cluster, databases, passwords, roles
from terrafirma.operations.services import unit
from terrafirma.paths import PASSWORDS, PASSWORDS_PROGRAM, SECRETS
from terrafirma.settings import Postgres

ready(host)
settings = Postgres.of(host)
version = postgres_version(host, settings.version)
service = f"postgresql@{version}-main.service"
directory = f"/etc/postgresql/{version}/main"
drop_in = f"/etc/systemd/system/{service}.d/terrafirma.conf"
server_conf = f"{directory}/conf.d/terrafirma.conf"
hba = f"{directory}/pg_hba.conf"
postgres_file = {"mode": "640", "user": "postgres", "group": "postgres"}


# Docker may be installed earlier in this same run: both are asked when the files are written.
def server_settings() -> list[File]:
    data = {
        "addresses": ["localhost", *filter(None, [host.get_fact(DockerAddress)])],
        "port": settings.port,
        "max_connections": settings.max_connections,
        "settings": settings.settings,
    }
    return [template("postgres/terrafirma.conf.j2", server_conf, data=data, **postgres_file)]


def client_access() -> list[File]:
    data = {"databases": settings.databases, "networks": host.get_fact(DockerNetworks)}
    return [template("postgres/pg_hba.conf.j2", hba, data=data, **postgres_file)]


put(
    name="Prepare the host",
    entries=[
        Directory(SECRETS, "700"),
        Directory(PASSWORDS, "700"),
        source("postgres/postgres-passwords", PASSWORDS_PROGRAM, mode="755"),
        template("postgres/sysctl.conf.j2", "/etc/sysctl.d/60-terrafirma-postgres.conf"),
        template(
            "postgres/createcluster.conf.j2",
            "/etc/postgresql-common/createcluster.d/terrafirma.conf",
        ),
    ],
)

policy = put(
    name="Restart PostgreSQL after a crash",
    entries=[template("postgres/restart.conf.j2", drop_in)],
)

server.sysctl(name="Let it listen before Docker is up", key="net.ipv4.ip_nonlocal_bind", value=1)

packages(name="Install PostgreSQL", packages=[f"postgresql-{version}", "python3"])

cluster(name="Create the cluster", version=version)

configuration = put(name="Configure the server", entries=server_settings)

access = put(name="Configure client access", entries=client_access)

unit(
    name="Run PostgreSQL",
    unit=service,
    unit_files={drop_in: policy},
    restart_on={server_conf: configuration},
    reload_on={hba: access},
)

roles(name="Create the roles", version=version, roles=settings.roles)

passwords(name="Give the roles their passwords", version=version, roles=settings.roles)

databases(name="Create the databases", version=version, databases=settings.databases)

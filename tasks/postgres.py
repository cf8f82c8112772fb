"""PostgreSQL with the declared databases, reachable from containers and the host itself only."""

from typing import Any

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.apt.operations import install, look
from terrafirma.docker.facts import DockerAddresses, DockerNetworks
from terrafirma.host import program
from terrafirma.host.asking import ask
from terrafirma.host.facts import Hardware
from terrafirma.host.files import Absent, Directory, File, put, template
from terrafirma.host.kernel import sysctl
from terrafirma.host.packages import packages
from terrafirma.host.units import unit
from terrafirma.paths import PASSWORDS, POSTGRES_CHECK, SECRETS
from terrafirma.postgres.extensions import PRELOADED, packages_of
from terrafirma.postgres.given import passwords as passwords_given
from terrafirma.postgres.operations import (
    apply_restart,
    cluster,
    contents,
    databases,
    passwords,
    roles,
    undo_by_hand,
)
from terrafirma.postgres.tuning import (
    LOGGING,
    DoesNotFit,
    Tuned,
    hardware,
    huge_pages,
    literal,
    tune,
)
from terrafirma.postgres.upgrade import upgrading
from terrafirma.postgres.upgrade_operations import move_data, new_cluster
from terrafirma.postgres.version import postgres_version
from terrafirma.site import begin

server, machine = begin(host)
settings = server.postgres
version = postgres_version(host, settings, machine)
upgrade = upgrading(host)  # None, unless commands/postgres_upgrade.py runs this task
look(host, server, machine, "postgres", version)
service = f"postgresql@{version}-main.service"
directory = f"/etc/postgresql/{version}/main"
drop_in = f"/etc/systemd/system/{service}.d/terrafirma.conf"
server_conf = f"{directory}/conf.d/terrafirma.conf"
hba = f"{directory}/pg_hba.conf"
data_directory = f"/var/lib/postgresql/{version}/main"
programs = f"/usr/lib/postgresql/{version}/bin"
# The directory belongs to the user postgres, who could put a link there: root must not follow it.
owned: dict[str, Any] = {"user": "postgres", "group": "postgres", "as_owner": True}
postgres_file = owned | {"mode": "640"}


given = passwords_given(host, settings)

# Settings that do not fit the hardware stop the run here, before anything is installed.
share = hardware(
    host.get_fact(Hardware, path=data_directory), settings.memory_percent, settings.disk
)
try:
    tuned = tune(
        share,
        max_connections=settings.max_connections,
        version=version,
    )
except DoesNotFit as error:
    raise DeployError(f"{host.name}: postgres_max_connections: {error}") from None


# No huge pages for shared memory of a size that your settings choose: its needs are unknown.
pages = 0 if {"shared_buffers", "huge_pages"} & set(settings.settings) else huge_pages(share)


# Asked when the files are written: Docker may be installed earlier in this same run.
def server_settings() -> dict[str, Tuned]:
    docker0 = ask(host, DockerAddresses)
    addresses = ["localhost", *(address.partition("/")[0] for address in docker0)]
    derived = {
        "listen_addresses": Tuned(literal(",".join(addresses)), ""),
        "port": Tuned(literal(settings.port), ""),
        "max_connections": Tuned(literal(settings.max_connections), "postgres_max_connections"),
        "password_encryption": Tuned(literal("scram-sha-256"), "nothing weaker is stored"),
        "shared_preload_libraries": Tuned(
            literal(",".join(sorted({"pg_stat_statements", *settings.extensions} & PRELOADED))),
            "statement statistics, and libraries of extensions",
        ),
    }
    chosen = {
        name: Tuned(literal(value), "postgres_settings")
        for name, value in settings.settings.items()
    }
    return derived | tuned | LOGGING | chosen


def server_values() -> dict[str, str]:
    return {name: setting.value for name, setting in server_settings().items()}


def server_file() -> list[File]:
    data = {"settings": server_settings()}
    return [template("postgres/terrafirma.conf.j2", server_conf, data=data, **postgres_file)]


def client_access() -> list[File]:
    data = {"visitors": settings.visitors, "networks": ask(host, DockerNetworks)}
    return [template("postgres/pg_hba.conf.j2", hba, data=data, **postgres_file)]


put(
    name="Prepare the host",
    entries=[
        Directory(SECRETS, "700"),
        Directory(PASSWORDS, "700"),
        *program.entries(),
        # Programs of earlier versions, now parts of the command terrafirma.
        *(
            Absent(f"/usr/local/lib/terrafirma/postgres-{name}")
            for name in ("passwords", "check", "upgrade")
        ),
        template(
            "postgres/sysctl.conf.j2",
            "/etc/sysctl.d/60-terrafirma-postgres.conf",
            data={"huge_pages": pages},
        ),
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

sysctl(
    name="Let the server listen before Docker is up",
    values={"net.ipv4.ip_nonlocal_bind": 1, "net.ipv6.ip_nonlocal_bind": 1},
)

install(name="Install PostgreSQL", server=server, machine=machine, engine="postgres", major=version)

packages(
    name="Install the packages beside PostgreSQL",
    packages=[
        # Debian's /etc/logrotate.d/postgresql-common rotates the server's log with this.
        "logrotate",
        "python3",
        *packages_of(settings.extensions, version),
        *settings.packages,
    ],
)

if upgrade:
    new_cluster(name="Create the new cluster", upgrade=upgrade)
else:
    cluster(name="Create the cluster", version=version)

put(
    name="Start the cluster at boot",
    entries=[template("postgres/start.conf.j2", f"{directory}/start.conf", mode="644", **owned)],
)

# The check starts a PostgreSQL with the whole configuration, before the new file replaces the old.
configuration = put(
    name="Configure the server",
    entries=server_file,
    check=f'{POSTGRES_CHECK} {version} "$new" "$path"',
)

# The check asks a temporary, empty server about the new file. The live server could only check the
# file it has in place, and a file takes that place after the check.
access = put(
    name="Configure client access",
    entries=client_access,
    check='cd /; scratch=$(mktemp -d) && trap "rm -rf \\"$scratch\\"" EXIT && '
    f'{programs}/initdb -D "$scratch/data" --auth trust --locale C --encoding UTF8 '
    "--no-sync --wal-segsize 1 > /dev/null && answer=$(echo "
    "'select count(*) as wrong, string_agg(format($$line %s: %s$$, line_number, error), $$; $$) "
    "as why from pg_hba_file_rules where error is not null' | "
    f'{programs}/postgres --single -D "$scratch/data" -c shared_buffers=1MB '
    '-c hba_file="$new" postgres 2>&1); '
    """case ${answer-} in *'wrong = "0"'*) ;; *) echo "${answer-}" >&2; exit 1 ;; esac""",
)

if upgrade:
    move_data(name="Move the data to the new cluster", upgrade=upgrade)

unit(
    name="Run PostgreSQL",
    unit=service,
    unit_files={drop_in: policy},
    reload_on={server_conf: configuration, hba: access},
)

undo_by_hand(
    name="Undo what ALTER SYSTEM set",
    version=version,
    settings=server_values,
)

apply_restart(
    name="Restart the server if a setting needs it",
    version=version,
    unit=service,
    path=server_conf,
    settings=server_values,
)

roles(name="Create the roles", version=version, settings=settings)

passwords(
    name="Give the roles their passwords",
    version=version,
    roles=[role.name for role in settings.roles if role.login],
    given=given,
)

databases(name="Create the databases", version=version, settings=settings)

contents(name="Create extensions and give access", version=version, settings=settings)

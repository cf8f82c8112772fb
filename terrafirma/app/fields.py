"""The fields of an application in the settings, and what follows from them alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from terrafirma_host import image_names, values

from terrafirma.app.backup import LeftOut, Patience
from terrafirma.app.container import (
    Command,
    ContainerDirectory,
    Memory,
    SourceFile,
    StageName,
    VolumeName,
)
from terrafirma.app.cron import Job, JobName
from terrafirma.app.environment import EnvironmentValue
from terrafirma.app.public import (
    SLOT_PORTS,
    Guard,
    HeaderName,
    Health,
    HealthHeaders,
    HealthPath,
    Protocol,
    Public,
    SitePath,
)
from terrafirma.app.registries import Logins
from terrafirma.app.secret_source import SecretSource
from terrafirma.app.services import EnvironmentName, Service
from terrafirma.fields import (
    AbsolutePath,
    ApplicationName,
    Domain,
    Line,
    NetworkName,
    Seconds,
    Setting,
    UserPort,
    here,
    one_line,
)
from terrafirma.postgres.settings import DatabaseName, NameOrEmpty
from terrafirma.settings import Model

# A service of a compose project, and a file that describes one.
SharedPlace = Annotated[
    str,
    Field(
        pattern=r"^([a-zA-Z0-9][a-zA-Z0-9._-]{0,62}|(/[^/\s:,]+)+/?)$",
        title="key of a volume, or absolute path",
    ),
]
ServiceName = Annotated[
    str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$", title="name of a service")
]
ComposeFile = Annotated[
    str,
    Field(
        pattern=r"^\w[\w-]*([./]\w[\w-]*)*\.ya?ml$",
        title="relative path that ends in `.yaml` or `.yml`",
    ),
]
SecretName = Annotated[
    str,
    Field(
        pattern=r"^[a-z][a-z0-9_]{0,62}$",
        title="a-z, 0-9 and `_`, first a letter, at most 63",
    ),
]


def _image(value: str) -> str:
    if value and not re.fullmatch(image_names.NAME, value):
        raise ValueError(f"{value!r} is no image, like registry.example.com/team/api:1.2")
    return value


def _header(value: str) -> str:
    # The Caddyfile has the value between backticks, and Caddy fills in {$VARIABLES} even there.
    if "`" in value or "{$" in value:
        raise ValueError(f"{value[:40]!r} has a backtick or '{{$' in it, which Caddy would read")
    return one_line(value)


OF_COMPOSE = (
    *("service", "stateful", "shared", "profiles", "leave_out", "docker_socket", "services"),
    "database_replaces",
)
"""Fields that only a compose project has."""


class Fields(Model):
    """An entry of `apps`; terrafirma/app/rules.py has the rules between its fields."""

    name: ApplicationName
    """Name of the compose projects, the images and the directory on the host."""
    source: Line = ""
    """Directory on this machine with the Dockerfile, or with the files of `compose`."""
    image: Annotated[
        str,
        AfterValidator(_image),
        Field(title="image, like `registry.example.com/team/api:1.2`, or empty"),
    ] = ""
    """Instead of a source: an image of a registry, with a tag or a digest."""
    dockerfile: SourceFile = ""
    """Path of the Dockerfile in `source`, whose root stays the context; empty: `Dockerfile`."""
    target: StageName = ""
    """Stage of the Dockerfile to build; empty: the last one."""
    build_args: dict[EnvironmentName, Setting] = {}
    """Values for the `ARG`s of the Dockerfile; nothing secret, since the image shows them."""
    compose: tuple[ComposeFile, ...] = ()
    """Paths of the compose files of a project in `source`; each file overrides those before it, and
    relative paths in them begin at the directory of the first. Empty: without a Dockerfile in
    `source`, the file there that Compose itself would take (`compose.yaml`,
    `docker-compose.yml`, …)."""
    service: Annotated[
        str,
        Field(pattern=r"^([a-zA-Z0-9][a-zA-Z0-9._-]{0,62})?$", title="name of a service, or empty"),
    ] = ""
    """Compose service that serves HTTP; empty: the service with the name of the application."""
    stateful: tuple[ServiceName, ...] = ()
    """Compose services whose data must last. One container of each runs, and no release recreates
    it."""
    shared: tuple[SharedPlace, ...] = ()
    """Volumes, by their keys in the compose files, and directories of the host that several
    containers may write at once, for example uploads. Never those of a database."""
    scratch: tuple[ServiceName, ...] = ()
    """Services that may start each release with an empty store, for example caches."""
    profiles: tuple[ServiceName, ...] = ()
    """Profiles of the compose files whose services run."""
    leave_out: tuple[ServiceName, ...] = ()
    """Compose services that are never built or started, for example a proxy, which Caddy is
    here."""
    docker_socket: tuple[ServiceName, ...] = ()
    """Compose services that may have Docker's socket: with it, a container can do anything on the
    host as root."""
    services: dict[ServiceName, Service] = {}
    """What is set for single services of a compose project, by their names."""
    migrate: Command = ()
    """Command, as a list of words, that runs once before a release in a container of its own. In a
    compose project, a single word that is the name of a service runs that service."""
    cron: dict[JobName, Job] = {}
    """Commands that run by a schedule, by name: `{"cleanup": {"schedule": "hourly", "command":
    ["manage.py", "clearsessions"]}}`."""
    env: dict[EnvironmentName, EnvironmentValue] = {}
    """Environment variables; nothing secret. A reference is filled in on the host:
    `{database.url}`, `{database.url:postgresql+psycopg}` with another scheme, `{database.host}`,
    `.port`, `.name`, `.user`, `.password`, `{secrets.NAME}`. Such a value is kept secret."""
    secrets: dict[SecretName, SecretSource] = {}
    """Secrets, each in the file `/run/secrets/NAME`: `generated` (random, on the server),
    `env:NAME` (from pyinfra's environment), `command:…` (the output of a command on this
    machine)."""
    env_file: tuple[Annotated[Line, Field(pattern=r"^.+$", title="file")], ...] = ()
    """Files of variables on this machine, like `.env.production`, each over those before it. Their
    values are secrets: they are in no source, and every container has them, where neither `env`
    nor its compose file sets the variable."""
    secrets_env: bool = False
    """Whether the secrets are also environment variables, in capital letters, unless `env` has a
    variable of that name; `docker inspect` then shows them to root."""
    registries: Logins = {}
    """Logins to registries of images, by host, as `ghcr.io` or `docker.io`: for `image`, the base
    images of a Dockerfile, and the images in compose files."""
    domain: Domain
    """Domain under which Caddy serves the application."""
    redirects: tuple[Domain, ...] = ()
    """Further domains that Caddy redirects to `domain`: for example the one with `www.`."""
    hsts_seconds: int = Field(default=31_536_000, ge=0)
    """How long a browser insists on HTTPS after a visit; 0: never."""
    headers: dict[
        HeaderName,
        Annotated[str, AfterValidator(_header), Field(title="one line without a backtick")],
    ] = {}
    """Further headers of every answer; an empty value removes a header."""
    max_upload_mb: int = Field(default=100, ge=1)
    """Largest body of a request, in MB."""
    timeout_seconds: Seconds = 60
    """How long a replica may take until its answer begins."""
    guards: tuple[Guard, ...] = ()
    """Parts that ask for a password, or that only some addresses may see."""
    static: dict[SitePath, AbsolutePath] = {}
    """Directories on the host that Caddy serves itself, by path: `{"/assets/*": "/srv/assets"}`."""
    snippet: Line = ""
    """File on this machine with further Caddyfile lines for the site."""
    database: NameOrEmpty = ""
    """Database of the application, one of `postgres_databases`; its URL is in the file
    `/run/secrets/database_url`. Empty: no database."""
    databases: tuple[DatabaseName, ...] = ()
    """Further databases of `postgres_databases`, each with its URL in the file
    `/run/secrets/database_url_NAME`, and as `{databases.NAME.url}` in `env`."""
    database_replaces: Annotated[
        str,
        Field(pattern=r"^([a-zA-Z0-9][a-zA-Z0-9._-]{0,62})?$", title="name of a service, or empty"),
    ] = ""
    """Compose service with a PostgreSQL of the project's own that never starts: `database` is in
    its place, under its name. Variables of other services that name it get the address, role and
    password of `database`."""
    role: NameOrEmpty = ""
    """Role with which the application connects, one of `postgres_roles`; empty: the owner of the
    database. The role connects to `databases`, too, where it may; the owner to others."""
    connections: int = Field(default=5, strict=True, ge=1, le=1000)
    """Largest number of connections of one replica to each database: the size of its pool."""
    strategy: Literal["start-first", "stop-first"] = "start-first"
    """`stop-first`: only one instance runs (`replicas` is 1), so the old release stops before the
    new one starts, and nothing answers meanwhile."""
    replicas: int = Field(default=4, strict=True, ge=1, le=SLOT_PORTS)
    """Containers that run at once."""
    port: UserPort = 0
    """First of the application's 128 loopback ports: 64 for each of its two slots, one for each
    replica. Left out: the first free ports at the first deploy, which then stay the same."""
    container_port: int = Field(default=0, ge=0, le=65535)
    """Port on which the application listens in its container; 0: the one that the compose files
    or the image name, else 8000."""
    protocol: Protocol = "http"
    """What the application speaks: HTTP/1.1; `h2c`: HTTP/2 without TLS, as gRPC does; `https`: TLS,
    whose certificate is not checked."""
    health: Health = "http"
    """When a replica is healthy: it answers a GET of `health_path`; `tcp`: it accepts connections;
    `container`: the HEALTHCHECK of its image or service passes; or a command in the container
    succeeds."""
    health_path: HealthPath = "/healthz"
    """Path that answers a GET with 2xx, without a redirect, when a replica can serve."""
    health_headers: HealthHeaders = {}
    """Headers of that request, for example another `Host`."""
    smoke_path: Annotated[
        str,
        Field(pattern=r"^(/[A-Za-z0-9/_.-]*)?$", title="path that starts with `/`, or empty"),
    ] = ""
    """Path that a release requests through Caddy before it counts; empty: `health_path`."""
    user: Annotated[
        str, Field(pattern=r"^([a-z_][a-z0-9_-]{0,31})?$", title="name of an account, or empty")
    ] = ""
    """Account on the host, one of `users_accounts`, under whose id the containers run, without any
    capability. Empty: as the images say."""
    read_only: bool = False
    """Whether the file system of the web service's containers is read-only, except `/tmp`,
    `writable` and `volumes`."""
    writable: tuple[ContainerDirectory, ...] = ()
    """Directories in the web service's containers that any user may write: in memory, and empty at
    each start."""
    volumes: dict[VolumeName, ContainerDirectory] = {}
    """Directories of the web service that last, by the names of their volumes: all replicas and
    releases share them, and backups have them. `{"uploads": "/app/uploads"}` is the volume
    `NAME_uploads`."""
    backup_command: Command = ()
    """Command, as a list of words, that runs in a container of the web service before each backup
    reads the volumes, for example to write a copy of an SQLite file."""
    backup_after: Command = ()
    """Command that runs there once the volumes are read, also if `backup_command` failed."""
    backup_seconds: Patience = 3600
    """How long each of the two may take; then it is ended, and has failed."""
    backup_leave_out: tuple[LeftOut, ...] = ()
    """Volumes that backups leave out, for example caches: by their keys in `volumes` or in the
    compose files, or by the `name` that a file gives to one."""
    memory_mb: Memory = 0
    """Memory limit of one container, in MB; 0: no limit."""
    cpus: float = Field(default=0, ge=0, allow_inf_nan=False)
    """Processor limit of one container; 0: no limit."""
    start_seconds: Seconds = 120
    """How long the replicas of a release may take to become healthy."""
    drain_seconds: Seconds = 30
    """How long requests under way may take to finish when another release takes over."""
    stop_seconds: Seconds = 10
    """How long a container may take to stop, once it gets no more requests."""
    pgbouncer: bool = False
    """Whether the database's URL leads through PgBouncer; `True` needs `pgbouncer_enabled`."""
    network: NetworkName = "apps"
    """Docker network of the containers, one of `docker_networks`."""
    keep_releases: int = Field(default=5, ge=1, le=100)
    """Releases that `commands/rollback.py` can go back to."""

    def key(self, field: str) -> str:
        """How a message names a field of this application."""
        return f"apps.{self.name}.{field}"

    @property
    def source_directory(self) -> Path:
        return here(self.source)

    @property
    def stops_first(self) -> bool:
        return self.strategy == "stop-first"

    @property
    def public(self) -> dict[str, Public]:
        """The public services beside the application's own, by name."""
        return {name: one for name, one in self.services.items() if one.is_public}

    @property
    def slots(self) -> dict[str, int]:
        """First loopback port of each of the two releases that run while one takes over."""
        return {"blue": self.port, "green": self.port + SLOT_PORTS}

    @property
    def reserved_ports(self) -> range:
        """All ports of its slots, whatever the number of replicas."""
        return range(self.port, self.port + len(self.slots) * SLOT_PORTS)

    @property
    def database_urls(self) -> dict[str, str]:
        """The secret with the URL of each database, by the name of the database."""
        own = {self.database: values.DATABASE_URL} if self.database else {}
        return own | {name: values.secret_of(name) for name in self.databases}

"""An application's settings: where it comes from, what it needs, and who may see it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    model_validator,
)
from terrafirma_host import image_names, values

from terrafirma.app.compose import default_file
from terrafirma.app.container import (
    ContainerDirectory,
    SourceFile,
    StageName,
    VolumeName,
    refuse_same_place,
    refuse_unknown_stage,
)
from terrafirma.app.cron import Job, JobName
from terrafirma.app.environment import EnvironmentValue, refuse_unknown
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
    mistakes,
)
from terrafirma.app.registries import Logins, refuse_old_keys
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
    is_file,
    one_line,
    refuse_duplicates,
)
from terrafirma.paths import SECRETS
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


LARGEST_COMPOSE_FILE = 2**20

OF_COMPOSE = (
    *("service", "stateful", "shared", "profiles", "leave_out", "docker_socket", "services"),
    "database_replaces",
)
"""Fields that only a compose project has."""


class Application(Model):
    """A web application in containers behind Caddy."""

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
    migrate: tuple[Line, ...] = ()
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
    memory_mb: int = Field(default=0, ge=0)
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

    _public_ports: dict[str, int] = PrivateAttr(default_factory=dict)

    @property
    def public_ports(self) -> dict[str, int]:
        """The first port of each public service, once the host has one for it."""
        return self._public_ports

    def with_ports(self, port: int, public: dict[str, int]) -> Self:
        placed = self.model_copy(update={"port": port})
        placed._public_ports = public
        return placed

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
    def overlap(self) -> int:
        """Releases that run at the same time while a new one takes over."""
        return 1 if self.stops_first else 2

    @property
    def slots(self) -> dict[str, int]:
        """First loopback port of each of the two releases that run while one takes over."""
        return {"blue": self.port, "green": self.port + SLOT_PORTS}

    @property
    def room(self) -> int:
        """Replicas that Caddy looks for in each slot: scaling up to it needs no reload of Caddy."""
        return 1 if self.stops_first else _room(self.replicas)

    @property
    def public(self) -> dict[str, Public]:
        """The public services beside the application's own, by name."""
        return {name: one for name, one in self.services.items() if one.is_public}

    @property
    def page(self) -> str:
        """Path that a release requests through Caddy."""
        return self.smoke_path or (self.health_path if self.health == "http" else "/")

    @property
    def containers(self) -> int:
        """How many replicas it has, with those of its other public services."""
        return self.replicas + sum(one.containers for one in self.public.values())

    @property
    def needs_routes(self) -> bool:
        """Whether each release has to write how Caddy reaches it."""
        return bool(self.public) or self.protocol != "http" or self.health != "http"

    @property
    def blocks(self) -> dict[str, int]:
        """The first port of the application and of each public service that has one yet."""
        return ({self.name: self.port} if self.port else {}) | {
            f"{self.name}/{service}": first for service, first in self.public_ports.items()
        }

    @property
    def ports(self) -> list[int]:
        """All ports that Caddy tries; it sends requests to those where a replica answers."""
        rooms = {f"{self.name}/{name}": _room(one.containers) for name, one in self.public.items()}
        return [
            first + slot + number
            for block, first in self.blocks.items()
            for slot in (0, SLOT_PORTS)
            for number in range(rooms.get(block, self.room))
        ]

    @property
    def reserved_ports(self) -> range:
        """All ports of its slots, whatever the number of replicas."""
        return range(self.port, self.port + len(self.slots) * SLOT_PORTS)

    @property
    def directory(self) -> str:
        return f"/opt/terrafirma/{self.name}"

    @property
    def secrets_directory(self) -> str:
        return f"{SECRETS}/app/{self.name}"

    @property
    def database_urls(self) -> dict[str, str]:
        """The secret with the URL of each database, by the name of the database."""
        own = {self.database: values.DATABASE_URL} if self.database else {}
        return own | {name: values.secret_of(name) for name in self.databases}

    @property
    def volume_names(self) -> list[str]:
        """The names on the host of its lasting volumes."""
        return [f"{self.name}_{key}" for key in self.volumes]

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_keys(cls, data: Any) -> Any:
        refuse_old_keys(data)
        return data

    @model_validator(mode="before")
    @classmethod
    def _one_instance(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("strategy") == "stop-first":
            return {"replicas": 1} | data
        return data

    @model_validator(mode="after")
    def _check_strategy(self) -> Self:
        if self.stops_first and self.replicas != 1:
            raise ValueError(
                f"replicas: {self.name} has strategy 'stop-first', for which one instance runs: "
                "leave replicas out"
            )
        for name, job in self.cron.items():
            if job.service and not self.compose:
                raise ValueError(
                    f"cron: {name}: service: {self.name} has no compose files, so only one "
                    "service: leave it out"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _find_compose_file(cls, data: Any) -> Any:
        """Without `compose`, a source has the compose file that Compose itself would take."""
        source = data.get("source") if isinstance(data, dict) else None
        if not isinstance(source, str) or not source or data.get("compose"):
            return data
        wanted = any(data.get(key) for key in OF_COMPOSE)
        found = default_file(here(source))
        built = data.get("dockerfile") or is_file(here(source) / "Dockerfile")
        if found and (wanted or not built):
            return {**data, "compose": (found,)}
        return data

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.source and self.image:
            raise ValueError(f"image: {self.name} has a source too: set only one of the two")
        if not self.source and not self.image:
            raise ValueError(f"source: {self.name} has neither source nor image")
        if self.compose and not self.source:
            raise ValueError(
                f"compose: {self.name} has no source: set it to the directory of the project"
            )
        if not self.compose:
            for key in OF_COMPOSE:
                if getattr(self, key):
                    raise ValueError(
                        f"{key}: {self.name} has no compose files, so only one service: leave "
                        f"{key} out"
                    )
            if any(one != self.name for one in self.scratch):
                raise ValueError(f"scratch: {self.name} has no compose files: its only service is "
                                 f"{self.name!r}")  # fmt: skip
        for key in ("dockerfile", "target", "build_args"):
            if getattr(self, key) and (self.compose or not self.source):
                what = "compose files, which say how to build" if self.compose else "no source"
                raise ValueError(f"{key}: {self.name} has {what}: leave {key} out")
        return self

    @model_validator(mode="after")
    def _check_services(self) -> Self:
        for line in mistakes(self, self.services):
            raise ValueError(line)
        return self

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
        for derived in (values.DATABASE_URL, *self.database_urls.values()):
            if derived in self.secrets:
                raise ValueError(f"secrets: {derived} is derived; it cannot be set here")
        refuse_duplicates("databases", self.databases)
        if self.database in self.databases:
            raise ValueError(
                f"databases: {self.database!r} is the database of {self.name} already: leave it out"
            )
        if self.role and not self.database_urls:
            raise ValueError(f"role: {self.name} has no database: set one, or leave role out")
        for key in ("stateful", "shared", "scratch", "profiles", "leave_out", "docker_socket"):
            refuse_duplicates(key, getattr(self, key))
        if self.database_replaces and not self.database:
            raise ValueError(
                f"database_replaces: {self.name} has no database that could be in the place of "
                f"{self.database_replaces}: set database"
            )
        for key in ("stateful", "scratch", "docker_socket", "services", "leave_out"):
            if self.database_replaces and self.database_replaces in getattr(self, key):
                raise ValueError(
                    f"database_replaces: {self.database_replaces!r} is in {key} too: one of the two"
                )
        for key in ("stateful", "scratch", "docker_socket", "services"):
            if both := sorted({*getattr(self, key)} & {*self.leave_out}):
                raise ValueError(f"leave_out: {both[0]!r} is in {key} too: one of the two")
        web = self.services.get(self.service or self.name)
        if web and web.replicas:
            raise ValueError(
                f"services: {self.service or self.name} serves HTTP: its replicas are those of "
                "the application"
            )
        if both := sorted({*self.stateful} & {*self.scratch}):
            raise ValueError(
                f"scratch: {both[0]!r} is in stateful too: its data either lasts or does not"
            )
        refuse_same_place(self.writable, self.volumes)
        refuse_duplicates("redirects", (self.domain, *self.redirects))
        if self.port and self.reserved_ports[-1] > 65535:
            raise ValueError(
                f"port: {self.name} has {self.reserved_ports[0]} to {self.reserved_ports[-1]}, but "
                "65535 is the last port"
            )
        return self

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        refuse_unknown(self)
        return self

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if self.source and not self.compose:
            if self.dockerfile and not is_file(self.source_directory / self.dockerfile):
                raise ValueError(f"dockerfile: {self.source!r} has no file {self.dockerfile!r}")
            if not self.dockerfile and not is_file(self.source_directory / "Dockerfile"):
                raise ValueError(f"source: {self.source!r} is not a directory with a Dockerfile")
            file = self.source_directory / (self.dockerfile or "Dockerfile")
            refuse_unknown_stage(file.read_text(errors="replace"), self.target)
        for name in self.compose:
            if not is_file(self.source_directory / name):
                raise ValueError(f"compose: {self.source!r} has no file {name!r}")
            if (self.source_directory / name).stat().st_size > LARGEST_COMPOSE_FILE:
                raise ValueError(f"compose: {name!r} has more than 1 MB, which no compose file has")
        if self.snippet and not is_file(here(self.snippet)):
            raise ValueError(f"snippet: cannot read {self.snippet!r}")
        return self


def _room(replicas: int) -> int:
    return min(SLOT_PORTS, max(8, 2 * replicas))

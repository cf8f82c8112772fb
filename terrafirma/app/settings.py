"""An application: where it comes from, what it needs, and who may see it."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from terrafirma.fields import (
    AbsolutePath,
    ApplicationName,
    Domain,
    Line,
    NetworkName,
    Port,
    Seconds,
    Setting,
    UserPort,
    here,
    is_file,
    one_line,
    refuse_duplicates,
)
from terrafirma.paths import SECRETS
from terrafirma.postgres.settings import NameOrEmpty
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
EnvironmentName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", title="letters, digits and `_`, first no digit"),
]
SecretName = Annotated[
    str,
    Field(
        pattern=r"^[a-z][a-z0-9_]{0,62}$",
        title="a-z, 0-9 and `_`, first a letter, at most 63",
    ),
]
UserName = Annotated[
    str, Field(pattern=r"^[\w.@-]+$", title="letters, digits, `_`, `.`, `@` and `-`")
]
HeaderName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$", title="letters, digits and `-`, first a letter"),
]
SitePath = Annotated[
    str,
    Field(
        pattern=r"^/[A-Za-z0-9/_.-]*\*?$",
        title="path that starts with `/`, perhaps with `*` at its end",
    ),
]

# An image of a registry: host, path, and a tag or a digest.
_IMAGE = r"[a-z0-9][a-z0-9._:-]*(/[a-z0-9._-]+)*(:[\w.-]{1,128})?(@sha256:[0-9a-f]{64})?"


def _image(value: str) -> str:
    if value and not re.fullmatch(_IMAGE, value):
        raise ValueError(f"{value!r} is no image, like registry.example.com/team/api:1.2")
    return value


def _registry(value: str) -> str:
    # Docker takes a name without a dot, a port or localhost for one of its own registry.
    if value and not re.fullmatch(
        r"localhost|[a-z0-9-]+(\.[a-z0-9-]+)+(:[0-9]{1,5})?|[a-z0-9-]+:[0-9]{1,5}", value
    ):
        raise ValueError(f"{value!r} is no host of a registry, like registry.example.com:5000")
    return value


def _secret_source(value: str) -> str:
    if value.startswith("command:") and "\n" in value:
        raise ValueError("has a line break: a command is one line")
    if value != "generated" and not re.fullmatch(r"env:[A-Za-z_]\w*|command:[^\s].*", value):
        # Not repeated: it may be the secret itself.
        raise ValueError(
            "is no source of a secret: use 'generated' (made on the server), 'env:NAME' "
            "(of the environment of pyinfra) or 'command:…' (what a command prints here)"
        )
    return one_line(value)


SecretSource = Annotated[
    str, AfterValidator(_secret_source), Field(title="`generated`, `env:NAME` or `command:…`")
]


def _secret_source_or_empty(value: str) -> str:
    return value and _secret_source(value)


def _address_range(value: str) -> str:
    try:
        return str(ip_network(value))
    except ValueError:
        raise ValueError(f"{value!r} is no address or network, like 203.0.113.0/24") from None


AddressRange = Annotated[str, AfterValidator(_address_range), Field(title="address or network")]


def _bcrypt(value: str) -> str:
    if not re.fullmatch(r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}", value):
        raise ValueError("is no bcrypt hash; `caddy hash-password` on the server makes one")
    return value


def _header(value: str) -> str:
    # In the Caddyfile a value stands between backticks, and Caddy fills in {$VARIABLES} even there.
    if "`" in value or "{$" in value:
        raise ValueError(f"{value[:40]!r} has a backtick or '{{$' in it, which Caddy would read")
    return one_line(value)


def _guarded(value: str) -> str:
    # Caddy compares it with a path that it has cleaned of these.
    if "//" in value or {".", ".."} & set(value.removesuffix("*").split("/")):
        raise ValueError(f"{value!r} is no path that a request could have: it would guard nothing")
    return value


class Guard(Model):
    """A part of a site that not everybody may see."""

    path: Annotated[SitePath, AfterValidator(_guarded)] = "/*"
    """Which requests: a path, with `*` at its end for whatever follows."""
    allow: tuple[AddressRange, ...] = ()
    """Addresses and networks that may see it; everybody else is answered 403. Empty: all may."""
    users: dict[UserName, Annotated[str, AfterValidator(_bcrypt), Field(title="bcrypt hash")]] = {}
    """User names and the bcrypt hashes of their passwords (`caddy hash-password`); empty: no
    password is asked for."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.allow and not self.users:
            raise ValueError(f"{self.path}: neither allow nor users: it guards nothing")
        return self


SLOT_PORTS = 64
"""Loopback ports of each of the two slots of an application: as many as it may have replicas."""


class Application(Model):
    """A web application in containers behind Caddy."""

    name: ApplicationName
    """Name of the compose projects, the images and the directory on the host."""
    source: Line = ""
    """Directory on this machine with its Dockerfile, or with the compose files of `compose`."""
    image: Annotated[
        str,
        AfterValidator(_image),
        Field(title="image, like `registry.example.com/team/api:1.2`, or empty"),
    ] = ""
    """Instead of a source: image of a registry, with a tag or a digest."""
    compose: tuple[ComposeFile, ...] = ()
    """Compose files of a project of its own below `source`, each layered over those before it."""
    service: Annotated[
        str,
        Field(pattern=r"^([a-zA-Z0-9][a-zA-Z0-9._-]{0,62})?$", title="name of a service, or empty"),
    ] = ""
    """The service of that project which serves HTTP; empty: the one called like the application."""
    stateful: tuple[ServiceName, ...] = ()
    """Services of that project which no release recreates: what they hold must last, and each runs
    once."""
    shared: tuple[SharedPlace, ...] = ()
    """Volumes of that project, by their keys in its files, and directories of the host that several
    containers may write at once: uploads, say. Never those of a database."""
    scratch: tuple[ServiceName, ...] = ()
    """Services of which each release may have its own, empty store: caches, say."""
    migrate: tuple[Line, ...] = ()
    """Command, in words, that runs once before a release, in a container of its own; in a project
    of its own, one word that names a service runs that."""
    env: dict[EnvironmentName, Setting] = {}
    """Variables of its environment; nothing secret."""
    secrets: dict[SecretName, SecretSource] = {}
    """Secrets, each the file `/run/secrets/NAME`: `generated` (random, made on the server),
    `env:NAME` (of the environment of pyinfra), `command:…` (what that prints on this machine)."""
    secrets_env: bool = False
    """Whether the secrets are variables of the environment too, in capital letters; `docker
    inspect` then shows them to root."""
    registry: Annotated[
        str,
        AfterValidator(_registry),
        Field(title="host of a registry, like `registry.example.com:5000`, or empty"),
    ] = ""
    """With a source: host of the registry that its base images, or those of its compose files,
    come from, when it asks for a password. Of `image` it is known."""
    registry_user: Line = ""
    """Who logs in to that registry; empty: nobody has to."""
    registry_password: Annotated[
        str,
        AfterValidator(_secret_source_or_empty),
        Field(title="`env:NAME` or `command:…`, or empty"),
    ] = ""
    """Its password, `env:NAME` or `command:…`."""
    domain: Domain
    """Name under which Caddy serves it."""
    redirects: tuple[Domain, ...] = ()
    """Further names, from which Caddy sends clients to `domain`: `www.`, or the one without it."""
    hsts_seconds: int = Field(default=31_536_000, ge=0)
    """How long a browser insists on HTTPS after a visit; 0: not at all."""
    headers: dict[
        HeaderName,
        Annotated[str, AfterValidator(_header), Field(title="one line without a backtick")],
    ] = {}
    """Headers of every answer, beside the usual ones; an empty value takes one away."""
    max_upload_mb: int = Field(default=100, ge=1)
    """Largest body of a request, in MB."""
    timeout_seconds: Seconds = 60
    """How long a replica may take until its answer begins."""
    guards: tuple[Guard, ...] = ()
    """Parts that ask for a password, or that only some addresses may see."""
    static: dict[SitePath, AbsolutePath] = {}
    """Directories on the host that Caddy serves by itself: `{"/assets/*": "/srv/assets"}`."""
    snippet: Line = ""
    """File on this machine with further lines for the site, as the Caddyfile has them."""
    database: NameOrEmpty = ""
    """Its database, one of `postgres_databases`; the URL reaches it as the file
    `/run/secrets/database_url`. Empty: it has none."""
    role: NameOrEmpty = ""
    """Role as which it connects, one of `postgres_roles`; empty: the owner of its database."""
    connections: int = Field(default=5, strict=True, ge=1, le=1000)
    """Connections to the database that one replica holds at most: the size of its pool."""
    replicas: int = Field(default=4, strict=True, ge=1, le=SLOT_PORTS)
    """Containers that run at once."""
    port: UserPort = 0
    """First of its 128 loopback ports: 64 for each of its two slots, one for each replica. Left
    out: the first that are free when the application is first deployed; they stay the same."""
    container_port: Port = 8000
    """Port on which it listens in its container."""
    health_path: Annotated[
        str,
        Field(
            pattern=r"^/([A-Za-z0-9_.-][A-Za-z0-9/_.-]*)?$", title="path that starts with one `/`"
        ),
    ] = "/healthz"
    """Path that answers a GET with 2xx, and no redirect, when a replica can serve."""
    smoke_path: Annotated[
        str,
        Field(pattern=r"^(/[A-Za-z0-9/_.-]*)?$", title="path that starts with `/`, or empty"),
    ] = ""
    """Path that is asked through Caddy before a release counts; empty: `health_path`."""
    user: Annotated[
        str, Field(pattern=r"^([a-z_][a-z0-9_-]{0,31})?$", title="name of an account, or empty")
    ] = "prod"
    """Account on the host, one of `users_accounts`, under whose id the containers run; empty, in a
    project of its own: as the images say."""
    memory_mb: int = Field(default=0, ge=0)
    """Memory that one container may take, in MB; 0: no limit."""
    cpus: float = Field(default=0, ge=0)
    """Processors that one container may take; 0: no limit."""
    start_seconds: Seconds = 120
    """How long the replicas of a release may take to become healthy."""
    drain_seconds: Seconds = 30
    """How long requests that are under way may take when another release takes over."""
    stop_seconds: Seconds = 10
    """How long a container may take to stop, once nothing more reaches it."""
    pgbouncer: bool = False
    """Whether its URL leads through PgBouncer; `pgbouncer_enabled` must be `True` then."""
    network: NetworkName = "apps"
    """Docker network of its containers, one of `docker_networks`."""
    keep_releases: int = Field(default=5, ge=1, le=100)
    """Releases that `commands/rollback.py` can go back to."""

    def key(self, field: str) -> str:
        """How a message names a field of this application."""
        return f"apps.{self.name}.{field}"

    @property
    def source_directory(self) -> Path:
        return here(self.source)

    @property
    def slots(self) -> dict[str, int]:
        """First loopback port of each of the two releases that run while one takes over."""
        return {"blue": self.port, "green": self.port + SLOT_PORTS}

    @property
    def room(self) -> int:
        """Replicas that Caddy looks for in each slot; to scale within it, nothing is reloaded."""
        return min(SLOT_PORTS, max(8, 2 * self.replicas))

    @property
    def ports(self) -> list[int]:
        """All ports to which Caddy sends requests, where something answers."""
        return [first + number for first in self.slots.values() for number in range(self.room)]

    @property
    def reserved_ports(self) -> range:
        """All ports that its slots have, whatever the number of replicas."""
        return range(self.port, self.port + len(self.slots) * SLOT_PORTS)

    @property
    def directory(self) -> str:
        return f"/opt/terrafirma/{self.name}"

    @property
    def secrets_directory(self) -> str:
        return f"{SECRETS}/app/{self.name}"

    @property
    def database_url(self) -> str:
        return f"{self.secrets_directory}/database_url"

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.source and self.image:
            raise ValueError(f"image: {self.name} has a source too: it is one or the other")
        if not self.source and not self.image:
            raise ValueError(f"source: {self.name} has neither source nor image")
        if self.compose and not self.source:
            raise ValueError(
                f"compose: {self.name} has no source: name the directory of the project"
            )
        if not self.compose:
            for key in ("service", "stateful", "shared"):
                if getattr(self, key):
                    raise ValueError(
                        f"{key}: {self.name} has no compose files: there is one service"
                    )
            if any(one != self.name for one in self.scratch):
                raise ValueError(f"scratch: {self.name} has no compose files: its one service is "
                                 f"{self.name!r}")  # fmt: skip
            if not self.user:
                raise ValueError(f"user: {self.name} has none: name one of users_accounts")
        return self

    @model_validator(mode="after")
    def _check_registry(self) -> Self:
        if bool(self.registry_user) != bool(self.registry_password):
            raise ValueError("registry_password: registry_user and this belong together")
        if self.registry and self.image:
            raise ValueError(f"registry: {self.name} has an image, whose name says it")
        if self.registry_user and not (self.registry or self.image):
            raise ValueError(
                f"registry: {self.name} has no image: name the host that registry_user logs in to"
            )
        if self.registry and not self.registry_user:
            raise ValueError(f"registry_user: {self.name} has a registry, and nobody to log in")
        if self.registry_password == "generated":
            raise ValueError("registry_password: the registry knows it already: env:… or command:…")
        return self

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
        if "database_url" in self.secrets:
            raise ValueError("secrets: database_url is derived; it cannot be set here")
        if self.role and not self.database:
            raise ValueError(f"role: {self.name} has no database in which it could act")
        for key in ("stateful", "shared", "scratch"):
            refuse_duplicates(key, getattr(self, key))
        if both := sorted({*self.stateful} & {*self.scratch}):
            raise ValueError(
                f"scratch: {both[0]!r} is in stateful too: what it holds lasts, or not"
            )
        refuse_duplicates("redirects", (self.domain, *self.redirects))
        if self.port and self.reserved_ports[-1] > 65535:
            raise ValueError(
                f"port: {self.name} has {self.reserved_ports[0]} to {self.reserved_ports[-1]}, but "
                "65535 is the last there is"
            )
        return self

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if self.source and not self.compose and not is_file(self.source_directory / "Dockerfile"):
            raise ValueError(f"source: {self.source!r} is not a directory with a Dockerfile")
        for name in self.compose:
            if not is_file(self.source_directory / name):
                raise ValueError(f"compose: {self.source!r} has no file {name!r}")
        if self.snippet and not is_file(here(self.snippet)):
            raise ValueError(f"snippet: cannot read {self.snippet!r}")
        return self

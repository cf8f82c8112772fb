"""What makes a service public: its address, who may see it, how it is reached, and its health."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from ipaddress import ip_network
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from terrafirma.app.container import named
from terrafirma.fields import Domain, one_line
from terrafirma.settings import Model

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
HealthPath = Annotated[
    str,
    Field(pattern=r"^/([A-Za-z0-9_.-][A-Za-z0-9/_.-]*)?$", title="path that starts with one `/`"),
]


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


def _guarded(value: str) -> str:
    # Caddy removes these from the path of a request before it compares.
    if "//" in value or {".", ".."} & set(value.removesuffix("*").split("/")):
        raise ValueError(f"{value!r} is no path that a request could have: it would guard nothing")
    return value


class Guard(Model):
    """A part of a site with restricted access."""

    path: Annotated[SitePath, AfterValidator(_guarded)] = "/*"
    """Path of the requests to guard; a `*` at its end stands for any rest."""
    allow: tuple[AddressRange, ...] = ()
    """Addresses and networks that may see it; all others get 403. Empty: every address may."""
    users: dict[UserName, Annotated[str, AfterValidator(_bcrypt), Field(title="bcrypt hash")]] = {}
    """User names and the bcrypt hashes of their passwords (`caddy hash-password`); empty: no
    password is asked for."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.allow and not self.users:
            raise ValueError(f"{self.path}: neither allow nor users: it guards nothing")
        return self


# --- how a replica is reached, and when it is healthy ---------------------------------------------

Protocol = Literal["http", "h2c", "https"]

KINDS = ("http", "tcp", "container")


def _health(value: Any) -> Any:
    command = isinstance(value, list | tuple) and value and all(isinstance(w, str) for w in value)
    if value not in KINDS and not command:
        raise ValueError(
            f"{value!r} is no health check: use 'http', 'tcp', 'container' (its own HEALTHCHECK), "
            "or a command as a list of words, like ['pg_isready', '-q']"
        )
    return named(tuple(map(one_line, value))) if command else value


Health = Annotated[
    str | tuple[str, ...],
    BeforeValidator(_health),
    Field(title="`http`, `tcp`, `container`, or a command as a list of words"),
]


def _sent(value: str) -> str:
    # The Caddyfile has the value between backticks, and Caddy fills in placeholders in braces.
    if "`" in value or "{" in value:
        raise ValueError(f"{value[:40]!r} has a backtick or a brace in it, which Caddy would read")
    if value != value.strip() or not value.isascii() or not value:
        raise ValueError(
            f"{value[:40]!r} is no value of a header: no space at its ends, ASCII only"
        )
    return one_line(value)


HealthHeaders = dict[
    HeaderName,
    Annotated[str, AfterValidator(_sent), Field(title="one line without backticks and braces")],
]


def _routed(value: str) -> str:
    if value in ("/", "/*", "/**"):
        raise ValueError(f"{value!r} is the whole domain: leave path out, and set domain")
    return _guarded(value) if value else value


PublicPath = Annotated[
    str,
    Field(
        pattern=r"^(/[A-Za-z0-9/_.-]*\*?)?$",
        title="path that starts with `/`, perhaps with `*` at its end, or empty",
    ),
    AfterValidator(_routed),
]


def _domain_or_empty(value: Any) -> Any:
    return value or None


SLOT_PORTS = 64
"""Loopback ports of a public service in each of the two slots: as many as it may have replicas."""


class Public(Model):
    """A service of a compose project; one with a `domain` or a `path` is public."""

    domain: Annotated[Domain | None, BeforeValidator(_domain_or_empty)] = None
    """Domain under which Caddy serves the service, beside that of the application. With `path`
    alone, the service has a part of the application's domain."""
    path: PublicPath = ""
    """Path of the requests that the service answers: `/api/*` has `/api` and everything below.
    Empty: all requests for its `domain`."""
    strip: bool = False
    """Whether the service gets the path without the part before `/*`, which then is in the header
    `X-Forwarded-Prefix`."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port on which a public service listens in its container; 0: the one that the compose files
    or the image name, else 8000."""
    replicas: int | None = Field(default=None, strict=True, ge=1, le=SLOT_PORTS)
    """Containers of this service; None: two of a public service, of another one as many as the
    files say. The web service has the application's `replicas`."""
    guards: tuple[Guard, ...] = ()
    """Parts that ask for a password, or that only some addresses may see, as visitors know their
    paths. The path `/*` stands for all of the service."""
    protocol: Protocol = "http"
    """What it speaks: HTTP/1.1; `h2c`: HTTP/2 without TLS, as gRPC does; `https`: TLS, whose
    certificate is not checked."""
    health: Health = "http"
    """When a replica is healthy: it answers a GET of `health_path`; `tcp`: it accepts connections;
    `container`: the HEALTHCHECK of its image or service passes; or a command in the container
    succeeds."""
    health_path: HealthPath = "/healthz"
    """With the health `http`: path that answers a GET with 2xx, without a redirect."""
    health_headers: HealthHeaders = {}
    """Headers of that request, for example another `Host`."""

    @property
    def is_public(self) -> bool:
        return bool(self.domain or self.path)

    @property
    def paths(self) -> list[str]:
        return matched(self.path) if self.path else []

    @property
    def prefix(self) -> str:
        """What is removed from the path of a request."""
        return self.path.removesuffix("/*") if self.strip else ""

    @property
    def containers(self) -> int:
        return self.replicas or (2 if self.is_public else 1)

    @property
    def page(self) -> tuple[str, bool]:
        """Path to request through Caddy, and whether its answer has to be good."""
        known = self.health == "http"
        if self.prefix:
            return self.prefix + (self.health_path if known else "/"), known
        if known and (not self.path or covers(self.paths, self.health_path)):
            return self.health_path, True
        return (self.paths[0].rstrip("*") if self.path else "/"), False

    def guards_of(self) -> Iterator[Guard]:
        """Its guards, with the paths that they have on the domain."""
        for guard in self.guards:
            for path in self.paths if self.path and guard.path == "/*" else [guard.path]:
                yield guard.model_copy(update={"path": path})

    @model_validator(mode="after")
    def _check_public(self) -> Self:
        if not self.is_public:
            for key in sorted(_OF_PUBLIC & self.model_fields_set):
                raise ValueError(f"{key}: it is not public: set domain or path too, or leave {key} "
                                 "out")  # fmt: skip
            return self
        if self.strip and not self.path.endswith("/*"):
            raise ValueError(f"strip: its path is {self.path!r}, and there is only something to "
                             "strip before /*, as in '/api/*'")  # fmt: skip
        for guard in self.guards:
            bare = guard.path.removesuffix("*")
            if self.path and guard.path != "/*" and not covers(self.paths, bare):
                raise ValueError(f"guards: {guard.path!r} is outside of its path {self.path!r}")
        return self


_OF_PUBLIC = frozenset(
    {"strip", "port", "guards", "protocol", "health", "health_path", "health_headers"}
)


def matched(path: str) -> list[str]:
    """
    The paths for Caddy that stand for a path in settings.

    Caddy does not match /admin by /admin/*, nor by /admin/.
    """
    bare = path.removesuffix("/*").rstrip("/")
    if not bare:
        return [path]
    if path.endswith("*"):
        return [path] if bare == path else [bare, path]
    return [bare, f"{bare}/"]


def covers(paths: list[str], path: str) -> bool:
    """Whether Caddy applies a matcher of these paths to a path."""
    bare = path.partition("?")[0].lower()
    return any(fnmatchcase(bare, one.lower()) for one in paths)

"""Managed by Terrafirma. The description of an application, and the records of its releases."""

from __future__ import annotations

import hmac
import json
import posixpath
import pwd
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terrafirma_host.public import Public
from terrafirma_host.shell import Failed, write

if TYPE_CHECKING:
    from typing_extensions import Self

SPECS = Path("/etc/terrafirma/apps")
ROOT = Path("/opt/terrafirma")
KEY = Path("/etc/terrafirma/secrets/release-key")
RUNTIME = Path("/run/terrafirma/apps")
SECRETS = Path("/etc/terrafirma/secrets/app")
SLOT_SECRETS = Path("/etc/terrafirma/secrets/slots")


@dataclass(frozen=True)
class Application:
    """The description in /etc/terrafirma/apps/NAME.json, which tasks/app.py writes."""

    name: str
    source: str  # directory on the host, named after the digest of its content; or ""
    selection: Mapping[str, Any]  # which files of a source count: sources.Selection
    image: str  # of a registry; or ""
    dockerfile: str  # path in the source; or ""
    target: str  # stage of the Dockerfile; or ""
    build_args: Mapping[str, str]
    compose: tuple[str, ...]  # files in the source
    service: str  # the service that serves HTTP
    stateful: tuple[str, ...]
    shared: tuple[str, ...]  # volumes and paths that several containers may write at once
    scratch: tuple[str, ...]  # services that may begin with an empty store in each release
    profiles: tuple[str, ...]  # of the compose files
    leave_out: tuple[str, ...]  # services that never start
    database_replaces: str  # service in whose place the host's database is; or ""
    docker_socket: tuple[str, ...]  # services that may have the engine's socket
    services: Mapping[str, Mapping[str, Any]]  # what is set for single services, by their names
    migrate: tuple[str, ...]
    cron: Mapping[str, Mapping[str, Any]]  # name → schedule, command, service, timeout_seconds
    env: Mapping[str, str]
    secrets: Mapping[str, str]  # name → file on the host
    secrets_env: bool
    variables: tuple[str, ...]  # names of those in `env_file`
    env_file: str  # file on the host with their values, as JSON; or ""
    env_files: Mapping[str, tuple[Any, ...]]  # service → entries of its env_file that are there
    registries: Mapping[str, Mapping[str, str]]  # by host: user, password (a file on this host)
    domain: str
    smoke_path: str
    guarded: bool  # Caddy asks for a login at that path, or admits some addresses only
    protocol: str  # "http", "h2c" or "https"
    health: str | tuple[str, ...]  # "http", "tcp", "container", or a command
    health_path: str
    health_headers: Mapping[str, str]
    container_port: int  # 0: as the compose files or the image say
    strategy: str  # "start-first" or "stop-first"
    replicas: int
    slots: Mapping[str, int]  # "blue" → first port
    network: str
    user: str
    read_only: bool
    writable: tuple[str, ...]  # directories of the web service in memory
    volumes: Mapping[str, str]  # key of a lasting volume of the web service → directory
    backup_command: tuple[str, ...]  # of the web service, before a backup reads the volumes
    backup_after: tuple[str, ...]
    backup_seconds: int
    backup_leave_out: tuple[str, ...]  # keys or names of volumes
    memory_mb: int
    cpus: float
    timeout_seconds: int  # of an answer, for Caddy
    start_seconds: int
    drain_seconds: int
    stop_seconds: int
    keep: int
    automated: bool  # a deploy key sends its code
    routed: bool  # each release writes how Caddy reaches it
    public: Mapping[str, Public]  # public services beside `service`
    compose_in: str = ""  # directory of its compose files, if not the source; in no description
    # The public service whose view this is, and a path that the service answers with whatever
    # status; both in no description.
    front: str = ""
    any_path: str = ""
    root: str = ""  # on a machine that only reads projects, what stands for ROOT; in no description
    own_init: bool = False  # its image begins with an init; in no description

    @classmethod
    def load(cls, name: str) -> Self:
        return cls.of(description(name))

    @classmethod
    def of(cls, data: dict[str, Any]) -> Self:
        data = {key: value for key, value in data.items() if key != "managed by Terrafirma"}
        if data.keys() != cls.required_fields():
            other = ", ".join(sorted(data.keys() ^ cls.required_fields()))
            raise Failed(
                f"{data.get('name')} is described for another version ({other}): run deploy.py"
            )
        lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
        public = {name: Public.of(one) for name, one in (data["public"] or {}).items()}
        return cls(**(data | lists | {"public": public}))

    @classmethod
    def of_any_version(cls, name: str) -> Self:
        """An application that left the settings, perhaps described by another version."""
        blank = dict.fromkeys(cls.required_fields(), "") | {"stop_seconds": 10}
        known = description(name)
        return cls.of(blank | {key: known[key] for key in blank.keys() & known.keys()})

    @classmethod
    def required_fields(cls) -> set[str]:
        """The fields that a description must have."""
        return {field.name for field in fields(cls) if field.default is MISSING}

    @property
    def project_directory(self) -> str:
        """The directory where relative paths of the compose files begin: that of the first file."""
        first = posixpath.dirname(self.compose[0]) if self.compose else ""
        return posixpath.join(self.source, first).rstrip("/") if self.source else ""

    @property
    def absent(self) -> set[str]:
        """The services that never start."""
        return {*self.leave_out, *([self.database_replaces] if self.database_replaces else [])}

    @property
    def slowest_stop(self) -> int:
        """Seconds that the slowest of its containers may take to stop."""
        own = [one.get("stop_seconds") or 0 for one in (self.services or {}).values()]
        return max([self.stop_seconds, *own])

    def setting(self, service: str, name: str) -> Any:
        """What is set for a service; None: nothing, so that the application's setting counts."""
        return (self.services.get(service) or {}).get(name)

    @property
    def directory(self) -> Path:
        return Path(self.root or ROOT) / self.name

    @property
    def releases(self) -> Path:
        return self.directory / "releases"

    @property
    def stops_first(self) -> bool:
        """Whether one release stops before the next one starts: two never run at once."""
        return self.strategy == "stop-first"

    @property
    def stopped(self) -> Path:
        """A list of the containers that a takeover has stopped; it is there until that ends."""
        return self.directory / "stopped"

    def project(self, slot: str) -> str:
        return f"{self.name}-{slot}"

    def ports(self, slot: str, replicas: int) -> range:
        return range(self.slots[slot], self.slots[slot] + replicas)

    @property
    def fronts(self) -> tuple[Self, ...]:
        """
        The application as seen from each of its public services: as if that were the only one.

        The first is the application itself.
        """
        return self, *(
            replace(self, **one.as_fields() | {
                "domain": one.domain or self.domain, "service": name, "front": name, "public": {},
            })
            for name, one in self.public.items()
        )  # fmt: skip

    def all_ports(self, slot: str) -> list[int]:
        """The ports of all replicas, those of other public services included."""
        return [port for one in self.fronts for port in one.ports(slot, one.replicas)]

    @property
    def counted(self) -> str:
        """The replicas that it has, in words."""
        others = "".join(f", {one.replicas} of {one.service}" for one in self.fronts[1:])
        return f"{self.replicas} replicas{f' of {self.service}{others}' if others else ''}"

    @property
    def healthy(self) -> str:
        """What a healthy replica does, in words."""
        known = {"http": f"answers {self.health_path}", "tcp": "accepts connections"}
        return known.get(str(self.health), "passes its health check")

    @property
    def checked(self) -> str:
        """What healthy replicas of all its public services do, in words."""
        return " or ".join(dict.fromkeys(one.healthy for one in self.fronts))

    @property
    def page(self) -> str:
        """The path to request through Caddy."""
        known = self.health_path if self.health == "http" else "/"
        return self.smoke_path or self.any_path or known

    @property
    def page_is_good(self) -> bool:
        """Whether that page has to answer 2xx or 3xx; if not, any answer of a replica will do."""
        return bool(self.smoke_path) or (self.health == "http" and not self.any_path)

    def slot_secrets(self, slot: str) -> Path:
        """The directory with the secrets of a slot's containers."""
        return SLOT_SECRETS / self.name / slot

    def owner(self) -> str:
        """User and group id of its containers; empty: as their images say."""
        if not self.user:
            return ""
        if self.root:
            # The account is on the host.
            return "1000:1000"
        try:
            account = pwd.getpwnam(self.user)
        except KeyError:
            raise Failed(f"there is no account {self.user!r}; run tasks/users.py") from None
        return f"{account.pw_uid}:{account.pw_gid}"

    def values(self) -> dict[str, str]:
        """The secrets by name."""
        try:
            return {name: Path(path).read_text() for name, path in self.secrets.items()}
        except FileNotFoundError as error:
            raise Failed(f"the secret {error.filename} is missing; run deploy.py") from None

    def further_variables(self) -> dict[str, str]:
        """The variables of `env_file`, with their values."""
        try:
            found: dict[str, str] = json.loads(Path(self.env_file).read_text())
            return {name: found[name] for name in self.variables}
        except (FileNotFoundError, KeyError):
            raise Failed(f"variables are missing in {self.env_file}; run deploy.py") from None

    def with_source(self, source: Path) -> Self:
        """
        The application with other code.

        Compose files decide what a container may do on the host. So where a deploy key sends the
        code, the files are those of the deploy, and root does not even read the sent ones.
        """
        compose_in = (self.compose_in or self.source) if self.automated else ""
        return replace(self, source=str(source), image="", compose_in=compose_in)

    def with_image(self, image: str) -> Self:
        return replace(self, source="", image=image)


def description(name: str) -> dict[str, Any]:
    """The description of an application as it was written; raises Failed without one."""
    known = f"there are: {', '.join(names()) or 'none'}"
    if not re.fullmatch(r"[a-z](-?[a-z0-9]){0,30}", name):
        raise Failed(f"{name!r} is no application; {known}")
    try:
        data: dict[str, Any] = json.loads((SPECS / f"{name}.json").read_text())
    except FileNotFoundError:
        raise Failed(f"there is no application {name!r}; {known}") from None
    return data


def names() -> list[str]:
    return sorted(path.stem for path in SPECS.glob("*.json"))


@dataclass(frozen=True)
class Release:
    """A release that can be run again: /opt/terrafirma/NAME/releases/ID.json."""

    id: str
    source: str
    image: str  # as it was requested
    images: Mapping[str, str]  # service → image on this host
    pulled: tuple[str, ...]  # images from a registry, which are removed with it
    code: str  # digest of the code, without settings and secrets
    migrate: str  # the migration that ran for it
    revision: str
    by: str
    at: str  # when it last began to serve: "2026-01-31T12:00:00.000Z"
    withdrawn: bool  # it was rolled back
    compose: tuple[str, ...] = ()  # files in the source

    @classmethod
    def load(cls, app: Application, release: str) -> Self | None:
        try:
            data = json.loads((app.releases / f"{release}.json").read_text())
        except FileNotFoundError:
            return None
        lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
        return cls(**(data | lists))

    def save(self, app: Application) -> None:
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        write(app.releases / f"{self.id}.json", json.dumps(data, indent=2) + "\n", 0o600)


def known_releases(app: Application) -> list[Release]:
    """The releases that can be run again, the newest first."""
    found = (Release.load(app, path.stem) for path in app.releases.glob("*.json"))
    return sorted((one for one in found if one), key=lambda one: (one.at, one.id), reverse=True)


def is_withdrawn(app: Application, code: str) -> bool:
    """Whether that code was rolled back, under any settings."""
    return any(one.withdrawn for one in known_releases(app) if one.code == code)


def set_withdrawn(app: Application, code: str, *, withdrawn: bool) -> None:
    for one in known_releases(app):
        if one.code == code and one.withdrawn != withdrawn:
            replace(one, withdrawn=withdrawn).save(app)


def revision_of(app: Application, code: str) -> str:
    """The revision in the newest release of that code that has one; or ""."""
    known = (one.revision for one in known_releases(app) if one.code == code)
    return next((revision for revision in known if revision), "")


@dataclass(frozen=True)
class Serving:
    """The slot that serves: /opt/terrafirma/NAME/serving.json, which decides after a crash."""

    release: str
    slot: str
    replicas: int
    port: int  # the first replica's; the description may have other ports by now
    # First port and replicas of each public service beside the application's own.
    public: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def ports(self) -> list[int]:
        """The ports of all replicas, those of other public services included."""
        blocks = ((self.port, self.replicas), *self.public.values())
        return [first + number for first, replicas in blocks for number in range(replicas)]

    def ports_of(self, front: str) -> range:
        """The ports of one public service; the application's own is ""."""
        first, replicas = self.public[front] if front else (self.port, self.replicas)
        return range(first, first + replicas)

    @classmethod
    def of(cls, app: Application, release: str, slot: str) -> Self:
        """The replicas of a release in a slot, on the ports of the description."""
        public = {one.front: (one.slots[slot], one.replicas) for one in app.fronts if one.front}
        return cls(release, slot, app.replicas, app.slots[slot], public)

    @classmethod
    def load(cls, app: Application) -> Self | None:
        try:
            return cls(**json.loads((app.directory / "serving.json").read_text()))
        except FileNotFoundError:
            return None

    def save(self, app: Application) -> None:
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        if not self.public:
            # Earlier versions of this program know no such field.
            del data["public"]
        write(app.directory / "serving.json", json.dumps(data) + "\n")


def serving_release(app: Application) -> tuple[Serving, Release]:
    """The slot and the release that serve; raises Failed where none does."""
    serving = Serving.load(app)
    release = Release.load(app, serving.release) if serving else None
    if not serving or not release:
        raise Failed(f"{app.name} has no release yet")
    return serving, release


def append_history(
    app: Application, action: str, release: str, revision: str, by: str, **more: str
) -> None:
    """Add a line to the history: which release began to serve, when, and for whom."""
    line = {"at": now(), "action": action, "release": release, "revision": revision, "by": by}
    line |= more
    path = app.directory / "history.jsonl"
    # A full disk or a power cut may have torn the last line: begin a new one after it.
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a") as history:
        history.write("\n" * torn + json.dumps(line) + "\n")


def history(app: Application) -> list[dict[str, str]]:
    """The lines of the history, the newest first."""
    try:
        lines = (app.directory / "history.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in reversed(lines):
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def make_key() -> None:
    """Generate the host's key for `identity`, once; of two at the same moment, the first wins."""
    if not KEY.exists():
        new = KEY.with_name(f"{KEY.name}.{secrets.token_hex(4)}")
        write(new, secrets.token_hex(32), 0o600)
        with suppress(FileExistsError):
            KEY.hardlink_to(new)
        new.unlink()


def identity(*parts: str) -> str:
    """
    A digest of all that makes a release, its secrets included.

    It is keyed, and the key never leaves the host: so a reader of the digest cannot test guesses of
    a secret.
    """
    try:
        key = KEY.read_bytes()
    except FileNotFoundError:
        raise Failed("there was no release yet on this host") from None
    digest = hmac.new(key, digestmod="sha256")
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()[:12]

"""All typed settings of one host, and values that follow from several of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from terrafirma.app.public import SLOT_PORTS
from terrafirma.app.settings import Application
from terrafirma.apt.settings import Apt
from terrafirma.arguments import ARGUMENTS
from terrafirma.borg.settings import Borg
from terrafirma.caddy.settings import Caddy
from terrafirma.docker.settings import Docker
from terrafirma.fields import ApplicationName
from terrafirma.firewall.settings import Firewall, Opening, Protocol
from terrafirma.guard.settings import Guard
from terrafirma.host.settings import Preflight
from terrafirma.pgbouncer.settings import PgBouncer
from terrafirma.postgres.settings import Postgres
from terrafirma.settings import Refused, Settings, build
from terrafirma.sshd.settings import Sshd
from terrafirma.updates.settings import Updates
from terrafirma.users.settings import Users

SECTIONS: tuple[type[Settings], ...] = (
    *(Preflight, Apt, Users, Sshd, Guard, Docker, Firewall, Postgres, PgBouncer, Caddy, Borg),
    Updates,
)
ROLES = ("proxy", "app", "db")
"""Groups of the inventory; a host in none of them has all three roles, so far the only choice."""

FIRST_PORT = 8000
"""The first port for applications whose settings choose none."""
PORTS = 2 * SLOT_PORTS
"""How many ports each application has."""


Clients = Literal["internet", "containers", "host"]


# Who may connect to a port, for the firewall.
_AUDIENCES: dict[Clients, Literal["", "containers", "everyone"]] = {
    "internet": "everyone", "containers": "containers", "host": "",
}  # fmt: skip
_DATABASES = ("postgres_port", "pgbouncer_port")


class Socket(NamedTuple):
    """
    A port on which a program of the platform listens, and its clients.

    Preflight and the rules keep the port free for the unit, tasks/docker.py makes sure that the
    clients reach the port, tasks/firewall.py lets them in, and tasks/exposure.py tries.
    """

    port: int
    unit: str
    key: str
    """The setting that decides the port; for a fixed port, its protocol."""
    program: str
    clients: Clients
    protocols: tuple[Protocol, ...] = ("tcp",)


@dataclass(frozen=True)
class Server:
    """One host of the site."""

    name: str
    roles: tuple[str, ...]
    address: str
    """The address by which other hosts reach this one, as far as the inventory knows."""
    preflight: Preflight
    apt: Apt
    users: Users
    sshd: Sshd
    guard: Guard
    docker: Docker
    firewall: Firewall
    postgres: Postgres
    pgbouncer: PgBouncer
    apps: tuple[Application, ...]
    caddy: Caddy
    borg: Borg
    updates: Updates

    @classmethod
    def of(cls, name: str, data: Mapping[str, Any], groups: Collection[str] = ()) -> Server:
        """The host `name` with the settings in `data`; raises Refused, which lists all mistakes."""
        if odd := [key for key in data if not isinstance(key, str)]:
            raise Refused(*(f"{key!r}: a key is text, like 'postgres_port'" for key in odd))
        wrong = list(_unknown_keys(data))
        data = {key: value for key, value in data.items() if key not in _RENAMED}
        sections: dict[str, Any] = {}
        for section in SECTIONS:
            try:
                sections[section.prefix] = section.of(data)
            except Refused as error:
                wrong += error.words
        try:
            sections["apps"] = applications(data)
        except Refused as error:
            wrong += error.words
        if wrong:
            raise Refused(*wrong)
        return cls(
            name=name,
            roles=tuple(role for role in ROLES if role in groups) or ROLES,
            address=str(data.get("ssh_hostname") or name),
            **sections,
        )

    def roles_of(self, app: Application) -> dict[str, str]:
        """
        The role with which `app` connects to each of its databases; empty where none is declared.

        To a further database it connects with the role of its own, if that has rights there.
        """
        owners = self.postgres.owners
        own = app.role or owners.get(app.database, "")
        visitors = {*self.postgres.visitors}
        further = {
            name: own if (name, own) in visitors else owners.get(name, "") for name in app.databases
        }
        return ({app.database: own} if app.database else {}) | further

    def database_url(self, app: Application, database: str, login: str) -> str:
        """The address of a database of `app` for `login`, with `*` for the password."""
        port = self.pgbouncer.port if app.pgbouncer else self.postgres.port
        return f"postgresql://{login}:*@host.docker.internal:{port}/{database}"

    @property
    def sockets(self) -> tuple[Socket, ...]:
        """Every port on which the platform listens; of applications, those that have a port yet."""
        return tuple(self._sockets())

    def _sockets(self) -> Iterator[Socket]:
        world: Clients = "internet" if self.apps else "host"
        yield Socket(80, "caddy.service", "HTTP", "Caddy", world)
        yield Socket(443, "caddy.service", "HTTPS", "Caddy", world, ("tcp", "udp"))
        ways = {app.pgbouncer for app in self.apps if app.database_urls}
        direct: Clients = "containers" if False in ways else "host"
        yield Socket(self.postgres.port, "postgresql", "postgres_port", "PostgreSQL", direct)
        if self.pgbouncer.enabled:
            pooled: Clients = "containers" if True in ways else "host"
            yield Socket(
                self.pgbouncer.port, "pgbouncer.service", "pgbouncer_port", "PgBouncer", pooled
            )
        for app in self.apps:
            for port in app.ports:
                yield Socket(port, "docker.service", app.key("port"), app.name, "host")

    def openings(self, ssh: Collection[int]) -> tuple[Opening, ...]:
        """What the firewall lets in; `ssh` are the ports that sshd has."""
        found = [
            Opening(port=str(port), sources=self.firewall.ssh_sources, comment="sshd")
            for port in sorted(ssh)
        ]
        for socket in self.sockets:
            clients = _AUDIENCES[socket.clients]
            # Containers that are none of `apps` use declared databases, too.
            if socket.key in _DATABASES and self.postgres.databases:
                clients = "containers"
            if clients:
                found += [
                    Opening(
                        port=str(socket.port), protocol=one, clients=clients, comment=socket.program
                    )
                    for one in socket.protocols
                ]
        return (*found, *self.firewall.open)

    @property
    def reserved(self) -> dict[str, list[int]]:
        """The ports that each setting claims for its program alone."""
        ports: dict[str, list[int]] = {}
        for socket in self.sockets:
            ports.setdefault(socket.key, []).append(socket.port)
        for app in self.apps:
            for block, first in app.blocks.items():
                ports[_key(block)] = [*_range(first)]
        return ports

    def with_ports(self, kept: Mapping[str, int]) -> Server:
        """
        The server with ports for each application, and for each public service beside its own.

        `kept` has the first port that each already has on the host, and keeps: those of a public
        service as APPLICATION/SERVICE. A new one gets the first free ports. Raises Refused if the
        settings now give a kept port to another program.
        """
        blocks = [app.name for app in self.apps if not app.port]
        blocks += [f"{app.name}/{name}" for app in self.apps for name in app.public]
        declared = {app.name for app in self.apps}
        ports = {block: kept[block] for block in blocks if block in kept}
        left = {block: first for block, first in kept.items()
                if block.partition("/")[0] not in declared}  # fmt: skip
        taken = {port: key for key, ports in self.reserved.items() for port in ports}
        for block, first in (ports | left).items():
            for port in _range(first):
                if port in taken:
                    end = f", or end {block} on the host: terrafirma remove {block}"
                    raise Refused(
                        f"{taken[port]}: {port} belongs to {block}, which has had {first} to "
                        f"{_range(first)[-1]} since its first release; take another"
                        f"{end if block in left and '/' not in block else ''}"
                    )
            if block in ports:
                taken |= dict.fromkeys(_range(first), _key(block))
        # What moves to a port of the settings, or is no longer public, holds its ports until then.
        used = {*taken, *(port for first in kept.values() for port in _range(first))}
        for block in blocks:
            if block not in ports:
                ports[block] = _first_free(block, used)
                used |= {*_range(ports[block])}
        apps = (
            app.with_ports(
                ports.get(app.name, app.port),
                {name: ports[f"{app.name}/{name}"] for name in app.public},
            )
            for app in self.apps
        )
        return replace(self, apps=tuple(apps))


def _key(block: str) -> str:
    """How a message names the setting that decides these ports."""
    app, _, service = block.partition("/")
    return f"apps.{app}.services.{service}" if service else f"apps.{app}.port"


def _first_free(block: str, used: Collection[int]) -> int:
    for first in range(FIRST_PORT, 2**16 - PORTS + 1, PORTS):
        if not any(port in used for port in _range(first)):
            return first
    key = f"apps.{block.partition('/')[0]}.port"
    raise Refused(f"{key}: from {FIRST_PORT} on no {PORTS} ports are left; set it")


def _range(first: int) -> range:
    return range(first, first + PORTS)


# --- applications ---------------------------------------------------------------------------------


def applications(data: Mapping[str, Any]) -> tuple[Application, ...]:
    """
    The applications in the settings of a host: the entries of `apps`, each under its name.

    A key `apps.NAME.FIELD`, as --data can set it, replaces one field of one application.
    """
    entries = data.get("apps", {})
    if not isinstance(entries, dict):
        raise Refused(
            f"apps: must be a dictionary, not {type(entries).__name__}: "
            '{"api": {"source": …, "domain": …}}'
        )
    entries = {name: entry.copy() if isinstance(entry, dict) else entry
               for name, entry in entries.items()}  # fmt: skip
    wrong = []
    for key, value in data.items():
        if not key.startswith("apps."):
            continue
        name, _, field = key.removeprefix("apps.").partition(".")
        if not field or "." in field:
            wrong.append(f"{key}: write apps.NAME.FIELD; it replaces the whole field")
        elif name not in entries:
            wrong.append(f"{key}: {_no_application(name, list(filter(_is_name, entries)))}")
        elif isinstance(entry := entries[name], dict):
            entry[field] = value
    found = []
    for name, entry in entries.items():
        if not _is_name(name):
            wrong.append(
                f"apps: {name!r} is not an application name, like 'api' or 'web-2': small "
                "letters and digits, at most 31, with single hyphens between them"
            )
        elif not isinstance(entry, dict):
            wrong.append(f"apps.{name}: must be a dictionary, not {type(entry).__name__}")
        elif "name" in entry:
            wrong.append(
                f"apps.{name}.name: an application has its name from its key in apps; leave it out"
            )
        else:
            try:
                found.append(build(Application, {"name": name, **entry}, f"apps.{name}."))
            except Refused as error:
                wrong += error.words
    if wrong:
        raise Refused(*wrong)
    return tuple(found)


_NAME: TypeAdapter[str] = TypeAdapter(ApplicationName)


def _is_name(name: object) -> bool:
    try:
        _NAME.validate_python(name, strict=True)
    except ValidationError:
        return False
    return True


def _no_application(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"apps has {', '.join(known) or 'none'}"
    return f"there is no application {name!r}, {hint}"


# --- keys -----------------------------------------------------------------------------------------

# Prefixes of the keys that pyinfra itself reads, and `x_` for a user's own tasks.
_FOREIGN_PREFIXES = ("_", "ssh_", "vagrant_", "podman_", "fake_", "x_")
# Keys of earlier versions, and their replacements.
_RENAMED = {
    "app_name": 'the key of its entry in apps: apps = {"api": {"source": …, "domain": …}}',
    "app_rollback": "commands/rollback.py --data rollback=APPLICATION",
    "app_more": 'the entries of apps, by name: apps = {"web": {"source": …, "domain": …}}',
    "postgres_rotate": "commands/postgres_rotate.py --data rotate=ROLE",
    "postgres_drop": "commands/postgres_drop.py --data drop=DATABASE --data confirm=DATABASE",
    "postgres_drop_role": "commands/postgres_drop.py --data drop_role=ROLE --data confirm=ROLE",
    "postgres_confirm": "commands/postgres_drop.py --data confirm=NAME",
    "postgres_upgrade": "commands/postgres_upgrade.py --data upgrade=back or clean",
}


def _unknown_keys(data: Mapping[str, Any]) -> Iterator[str]:
    """Refuse keys that nothing reads: typing errors ("postgress_version"), and renamed keys."""
    ours = {f"{section.prefix}_{name}" for section in SECTIONS for name in section.model_fields}
    known = sorted(ours | {"apps"} | {name for model in ARGUMENTS for name in model.model_fields})
    prefixes = (*(f"{section.prefix}_" for section in SECTIONS), "apps.", *_FOREIGN_PREFIXES)
    for key in data:
        if key in _RENAMED:
            yield f"{key}: there is no such key any more, write {_RENAMED[key]}"
        elif key.startswith("app_") and (field := _field_like(key.removeprefix("app_"))):
            name = data.get("app_name")
            yield (
                f"{key}: there is no such key any more, write it into the entry of apps: "
                f'apps = {{"{name if _is_name(name) else "api"}": {{"{field}": …}}}}'
            )
        elif any(key == section.prefix for section in SECTIONS):
            like = sorted(one for one in ours if one.startswith(f"{key}_"))
            inner = data[key] if isinstance(data[key], dict) else {}
            given = [one for one in like if one.removeprefix(f"{key}_") in inner] or like[:1]
            yield f"{key}: there is no such key, write each setting by itself, like {given[0]}"
        elif key not in known and not key.startswith(prefixes):
            close = get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}?" if close else "keys of your own tasks start with x_"
            yield f"{key}: there is no such key, {hint}"


def _field_like(name: str) -> str:
    """The field of an application with this name or a similar one; empty if there is none."""
    return next(iter(get_close_matches(name, Application.model_fields, 1)), "")

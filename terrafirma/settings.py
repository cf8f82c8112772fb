"""
Typed views of host data: each task reads its own flat `<prefix>_*` keys, once, validated.

The defaults are in `group_data/all.py`; here are the shapes. An unknown key or a wrong value stops
the run before any change, in one line that names the host, the key and what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from ipaddress import IPv4Network, ip_address, ip_network
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pyinfra.api import DeployError, Host
from typing_extensions import override

from terrafirma import daemon, keys
from terrafirma.extensions import CONTRIB, EXTENSION_PACKAGES
from terrafirma.paths import SECRETS

ROOT = Path(__file__).parent.parent

# Names that end up in SQL, in file names, in unit names and in Docker's labels: nothing to quote.
Identifier = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]
ApplicationName = Annotated[str, Field(pattern=r"^[a-z](-?[a-z0-9]){0,30}$")]
AccountName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
# Below are the ports of the system's own services: SSH, HTTP, HTTPS …
UserPort = Annotated[int, Field(ge=1024, le=65535)]


def _absolute(path: str) -> str:
    if not re.fullmatch(r"/[\w.@/+-]*", path):
        raise ValueError(f"{path!r} is not an absolute path of letters, digits and . _ - + @ /")
    return path


def _absolute_or_empty(path: str) -> str:
    return path and _absolute(path)


AbsolutePath = Annotated[str, AfterValidator(_absolute)]


def _one_line(text: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError("has a line break or another control character")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
PackageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]


def _public_key(value: str) -> str:
    """The key itself, or the content of the file on this machine that `value` names."""
    text = value
    if not re.search(r"(^|\s)(sk-)?(ssh|ecdsa)-\S+\s|PRIVATE KEY|\n", value):
        try:
            text = Path(value).expanduser().read_text()
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: no such user's home
            reason = getattr(error, "strerror", None) or "not a text file"
            raise ValueError(
                f"cannot read {value[:40]!r} ({reason}): name a public key file on this machine, "
                "or write the key itself ('ssh-ed25519 AAAA…')"
            ) from None
    try:
        return keys.parse(text).text
    except ValueError as error:
        shown = "what is there" if "PRIVATE KEY" in value else repr(value[:40])
        raise ValueError(
            f"{shown} does not hold one SSH public key ('ssh-ed25519 AAAA…') but {error}"
        ) from None


PublicKey = Annotated[str, AfterValidator(_public_key)]


def _known_host(line: str) -> str:
    """ssh passes over a line that it cannot read, and would then trust nothing."""
    _, _, key = line.removeprefix("@cert-authority ").strip().partition(" ")
    try:
        keys.parse(key)
    except ValueError as error:
        raise ValueError(
            f"{line[:40]!r} is no line of a known_hosts file ('HOST ssh-ed25519 AAAA…'): after "
            f"the name there is {error}"
        ) from None
    return line


KnownHost = Annotated[Line, AfterValidator(_known_host)]

# Domain names that no public authority signs (RFC 2606, 6761, 6762, 8375, ICANN's .internal).
_PRIVATE_DOMAINS = ("localhost", "test", "example", "invalid", "local", "internal", "home.arpa")
_EXAMPLE_DOMAINS = ("example.com", "example.net", "example.org")


def is_public(domain: str) -> bool:
    """Whether a public authority could sign a certificate for `domain`."""
    try:
        ip_address(domain)
    except ValueError:
        private = (*_PRIVATE_DOMAINS, *_EXAMPLE_DOMAINS)
        return "." in domain and not any(
            domain == name or domain.endswith(f".{name}") for name in private
        )
    return False


def _domain(value: str) -> str:
    label = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
    if len(value) > 253 or not re.fullmatch(rf"{label}(\.{label})*", value):
        raise ValueError(f"{value!r} is not a domain name in lower case, like api.example.com")
    return value


Domain = Annotated[str, AfterValidator(_domain)]


class Model(BaseModel):
    """A frozen, closed part of the data; a field's docstring is its line in the reference."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=False, use_attribute_docstrings=True
    )


class Settings(Model):
    """The keys of one task: those of host data that start with its prefix."""

    prefix: ClassVar[str]

    @classmethod
    def of(cls, host: Host) -> Self:
        """The settings of `host`; raises DeployError, one line for all that is wrong."""
        refuse_unknown_keys(host)
        start = f"{cls.prefix}_"
        data = {
            key.removeprefix(start): value
            for key, value in host.data.dict().items()
            if key.startswith(start) and key not in CONNECTOR_KEYS
        }
        try:
            return cls(**data)
        except ValidationError as error:
            raise DeployError(
                f"{host.name}: " + "; ".join(_explain(start, error, tuple(cls.model_fields)))
            ) from None


# Errors whose offending value is short and safe to print.
_NUMBERS = ("int_", "float_", "bool_", "greater_than", "less_than")


def _explain(start: str, error: ValidationError, fields: tuple[str, ...]) -> Iterator[str]:
    for one in error.errors():
        message = one["msg"].removeprefix("Value error, ")
        location = ".".join(
            part if re.fullmatch(r"[\w.-]+", part) else repr(part)
            for part in map(str, one["loc"])
            if part != "[key]"
        )
        if one["type"] == "extra_forbidden":
            close = get_close_matches(location, fields, 1) if len(one["loc"]) == 1 else []
            hint = f", did you mean {start}{close[0]}?" if close else ""
            message = f"there is no such key{hint}"
        elif one["type"] == "string_pattern_mismatch":
            # Who writes a password there by mistake does not want to see it in a log.
            given = "what is there" if one["loc"][-1] == "password" else repr(one["input"])
            message = f"{given} does not match {one['ctx']['pattern']}"
        elif one["type"] == "tuple_type":
            message = f"must be a list, not {type(one['input']).__name__}"
        elif one["type"].startswith(_NUMBERS) and re.fullmatch(r".{1,40}", str(one["input"])):
            message += f", not {one['input']!r}"
        # A rule over the whole model has no location: its message names the keys itself.
        if not location and message.partition(":")[0] not in fields:
            start = ""
        yield f"{start}{location and location + ': '}{message}"


# Keys of pyinfra's own connectors that share a prefix with a task of ours.
CONNECTOR_KEYS = frozenset({"docker_identifier", "docker_platform", "docker_architecture"})
# What pyinfra itself reads from host data, and `x_` for a user's own tasks.
_FOREIGN_PREFIXES = ("_", "ssh_", "vagrant_", "podman_", "fake_", "x_")


def refuse_unknown_keys(host: Host) -> None:
    """A key under no known prefix is a typing error ("postgress_version"): say so."""
    prefixes = tuple(f"{cls.prefix}_" for cls in ALL_SETTINGS)
    for key in host.data.dict():
        if key in CONNECTOR_KEYS or key.startswith(_FOREIGN_PREFIXES + prefixes):
            continue
        known = [f"{cls.prefix}_{field}" for cls in ALL_SETTINGS for field in cls.model_fields]
        close = get_close_matches(key, known, 1)
        hint = f"did you mean {close[0]}?" if close else "keys of your own tasks start with x_"
        raise DeployError(f"{host.name}: {key}: there is no such key, {hint}")


class Preflight(Settings):
    prefix = "preflight"

    free_disk_gb: int = Field(ge=0)
    wait_seconds: int = Field(ge=1, le=7200)


class Apt(Settings):
    prefix = "apt"

    source: Literal["distro", "upstream"]
    cache_hours: int = Field(ge=1)
    packages: tuple[PackageName, ...]


# Users and groups of the base system and of the packages that the platform is made of. An account
# of that name would be in the group, which is root by another name for some (docker, disk, sudo).
_SYSTEM_NAMES = frozenset(
    """
    daemon bin sys adm tty disk lp mail news uucp man proxy kmem dialout fax voice cdrom floppy tape
    sudo wheel audio dip www-data backup operator list irc src shadow utmp video sasl plugdev staff
    games users nogroup nobody sync gnats _apt input sgx kvm render netdev crontab messagebus
    polkitd sshd _ssh ssh ssl-cert docker lxd incus libvirt postgres pgbouncer caddy syslog uuidd
    tcpdump _chrony ntpsec tss dhcpcd landscape pollinate fwupd-refresh
    """.split()
)


class Account(Model):
    """One login on the host."""

    name: AccountName
    """Login name."""
    shell: AbsolutePath = "/bin/bash"
    """Login shell."""
    home: Annotated[str, AfterValidator(_absolute_or_empty)] = ""
    """Home directory; empty: `/home/<name>`."""
    keys: tuple[PublicKey, ...] = ()
    """All the SSH public keys that may log in: the keys themselves, or files on this machine. A key
    that is not listed is removed from the host."""
    groups: tuple[AccountName, ...] = ()
    """All the groups besides the account's own. `docker` is root by another name."""
    sudo: tuple[Line, ...] = ()
    """Commands it may run as root without a password, by absolute path; `ALL` for every one."""
    releases: tuple[ApplicationName, ...] = ()
    """Applications that its keys may release, and do nothing else: for an automated deployment."""

    @property
    def directory(self) -> str:
        return self.home or f"/home/{self.name}"

    @property
    def login_shell(self) -> str:
        """The shell; one that only releases has one that reads no file of the account's first."""
        return "/bin/sh" if self.releases else self.shell

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name == "root":
            raise ValueError("root exists already and is not managed here")
        if self.name in _SYSTEM_NAMES or self.name.startswith("systemd-"):
            raise ValueError(f"{self.name} is a name of the system's own; take another")
        _refuse_duplicates("groups", (self.name, *self.groups))
        for command in self.sudo:
            if command != "ALL" and not command.startswith("/"):
                raise ValueError(f"sudo: {command!r} is neither ALL nor an absolute path")
            if re.search(r"(?<!\\)[,#]", command):
                raise ValueError(
                    f"sudo: {command!r} has a comma or a # in it, where sudo begins something "
                    "else; write each command by itself, and a backslash before such a character"
                )
        _refuse_duplicates("releases", self.releases)
        if self.releases:
            for key in ("sudo", "groups", "shell"):
                if key in self.model_fields_set and getattr(self, key):
                    raise ValueError(
                        f"releases: {self.name} releases applications and does nothing else: leave "
                        f"{key} out, or take another account for that"
                    )
        return self


class Users(Settings):
    prefix = "users"

    accounts: tuple[Account, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_duplicates("users_accounts", (account.name for account in self.accounts))
        return self


class Sshd(Settings):
    prefix = "sshd"

    password_authentication: bool
    allow_users: tuple[AccountName, ...]


_PRIVATE_NETWORKS = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))


class Docker(Settings):
    prefix = "docker"

    address_pool: IPv4Network
    subnet_size: int = Field(ge=16, le=29)
    log_max_size: Annotated[str, Field(pattern=r"^[1-9][0-9]*[kmg]$")]
    log_max_files: int = Field(ge=1, le=1000)
    networks: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")], ...]
    daemon: dict[str, Any]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.subnet_size <= self.address_pool.prefixlen:
            raise ValueError(
                f"docker_subnet_size: /{self.subnet_size} is not smaller than the pool "
                f"{self.address_pool}: use a number above {self.address_pool.prefixlen}"
            )
        if not any(self.address_pool.subnet_of(private) for private in _PRIVATE_NETWORKS):
            raise ValueError(
                f"docker_address_pool: {self.address_pool} is not a private network (RFC 1918)"
            )
        if wrong := list(daemon.refuse(self.daemon)):
            raise ValueError(f"docker_daemon: {'; '.join(wrong)}")
        _refuse_duplicates("docker_networks", self.networks)
        for reserved in sorted({"bridge", "host", "none", "default"} & set(self.networks)):
            raise ValueError(f"docker_networks: {reserved!r} is Docker's own")
        return self


# Key words that SQL reserves (PostgreSQL's documentation, appendix C): as a name, each would have
# to be quoted wherever somebody types it.
_KEY_WORDS = frozenset(
    """
    all analyse analyze and any array as asc asymmetric both case cast check collate column
    constraint create current_catalog current_date current_role current_time current_timestamp
    current_user default deferrable desc distinct do else end except false fetch for foreign from
    grant group having in initially intersect into lateral leading limit localtime localtimestamp
    not null offset on only or order placing primary references returning select session_user some
    symmetric system_user table then to trailing true union unique user using variadic when where
    window with
    """.split()
)
# What PostgreSQL itself makes, and what pg_hba.conf takes for something else than a name.
_TAKEN = frozenset(
    "postgres public none template0 template1 sameuser samerole samegroup replication".split()
)


def _not_reserved(name: str) -> str:
    if name in _KEY_WORDS | _TAKEN or name.startswith("pg_"):
        raise ValueError(f"{name!r} is reserved by PostgreSQL")
    return name


def _schema(name: str) -> str:
    return name if name == "public" else _not_reserved(name)


def _name_or_empty(name: str) -> str:
    if name and not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name):
        raise ValueError(f"{name!r} is no name of a role or database")
    return name and _not_reserved(name)


DatabaseName = Annotated[Identifier, AfterValidator(_not_reserved)]
SchemaName = Annotated[Identifier, AfterValidator(_schema)]
# An extension's settings have its name before a dot: auto_explain.log_min_duration.
SettingName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$")]


def _setting(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"{value!r} is no valid value: use True, False, a number or text")
    return _one_line(value) if isinstance(value, str) else value


ServerSettings = dict[SettingName, Annotated[Any, AfterValidator(_setting)]]

# Built-in roles that may be granted: the monitoring ones, and `pg_signal_backend`. Roles that write
# files, run programs or read every table are a superuser by another name.
_WATCHERS = frozenset(
    """
    pg_monitor pg_read_all_settings pg_read_all_stats pg_stat_scan_tables pg_signal_backend
    """.split()
)


def _group(name: str) -> str:
    return name if name in _WATCHERS else _not_reserved(name)


class Role(Model):
    """A role, and what it may do in the cluster; what it may do in a database is said there."""

    name: DatabaseName
    """Role name."""
    login: bool = True
    """False: a group, or an owner as which nobody logs in."""
    member_of: tuple[Annotated[Identifier, AfterValidator(_group)], ...] = ()
    """Roles whose rights it has as well: others of `postgres_roles`, or PostgreSQL's `pg_monitor`,
    `pg_read_all_settings`, `pg_read_all_stats`, `pg_stat_scan_tables`, `pg_signal_backend`."""
    connection_limit: int = Field(default=-1, ge=-1)
    """How many connections it may hold at once; -1: no limit of its own."""
    settings: ServerSettings = {}
    """Settings of its sessions, as `ALTER ROLE … SET` takes them."""
    password: Annotated[str, Field(pattern=r"^$|^env:[A-Za-z_][A-Za-z0-9_]*$")] = ""
    """Empty: born on the server. `env:NAME`: that variable of the environment of pyinfra."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.name) > 62:
            raise ValueError(f"name: {self.name!r} is too long: 62 characters fit")
        _refuse_duplicates("member_of", self.member_of)
        if self.password and not self.login:
            raise ValueError(f"password: {self.name} does not log in: it needs none")
        return self


Access = Literal["read", "write", "migrate"]


class Database(Model):
    """A database, who owns it, who else comes in, and what is in it before the first row."""

    name: DatabaseName
    """Database name."""
    owner: DatabaseName
    """Role that owns it; one of `postgres_roles`."""
    access: dict[DatabaseName, Access] = {}
    """Further roles that come in. `read`: reads all tables. `write`: reads and writes rows, but
    changes no table. `migrate`: acts as the owner, so that what it makes is the owner's; in all
    databases of this owner, or in none."""
    schemas: tuple[SchemaName, ...] = ("public",)
    """Schemas that `access` is about; a missing one is made, and is the owner's. In others no role
    of `postgres_roles` has rights, except their owners."""
    extensions: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")], ...] = ()
    """Extensions; the packages that ship them are installed."""
    encoding: Literal["UTF8", "LATIN1", "LATIN9", "WIN1252", "SQL_ASCII"] = "UTF8"
    """Encoding; decided when the database is made."""
    locale: Annotated[str, Field(pattern=r"^(C|C\.UTF-8|[a-z]{2,3}(-[A-Za-z0-9]{2,8})*)$")] = (
        "C.UTF-8"
    )
    """Order of text, decided when the database is made: `C.UTF-8` or `C` (by code point), or a
    language of ICU, like `de-DE`."""
    connection_limit: int = Field(default=-1, ge=-1)
    """How many connections it takes at once; -1: no limit of its own."""
    settings: ServerSettings = {}
    """Settings of its sessions, as `ALTER DATABASE … SET` takes them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_duplicates("schemas", self.schemas)
        _refuse_duplicates("extensions", self.extensions)
        if self.owner in self.access:
            raise ValueError(f"access: {self.owner!r} owns {self.name}: it has every right already")
        if self.encoding != "UTF8" and self.locale != "C":
            raise ValueError(f"encoding: {self.encoding} needs the locale C, not {self.locale}")
        return self


# What tasks/postgres.py says itself, or takes to be where Debian has it; what would read further
# files; and what would make another name of every role.
_SERVER_DERIVED = frozenset(
    {"listen_addresses", "port", "max_connections", "password_encryption", "data_directory"}
    | {"config_file", "hba_file", "ident_file", "external_pid_file"}
    | {"include", "include_dir", "include_if_exists", "db_user_namespace"}
)


class Postgres(Settings):
    prefix = "postgres"

    version: int | None = Field(ge=15, le=30)
    upgrade: Literal["", "back", "clean"]
    adopt: bool
    port: UserPort
    roles: tuple[Role, ...]
    databases: tuple[Database, ...]
    packages: tuple[PackageName, ...]
    max_connections: int = Field(ge=20, le=10_000)
    memory_percent: int = Field(ge=5, le=90)
    disk: Literal["", "ssd", "hdd"]
    settings: ServerSettings
    rotate: Annotated[str, AfterValidator(_name_or_empty)]
    drop: Annotated[str, AfterValidator(_name_or_empty)]
    drop_role: Annotated[str, AfterValidator(_name_or_empty)]
    confirm: str

    @property
    def owners(self) -> dict[str, str]:
        """Owner of each database."""
        return {database.name: database.owner for database in self.databases}

    @property
    def pooled_roles(self) -> list[str]:
        """The roles that come in somewhere, each once."""
        return sorted({role for _, role in self.visitors})

    def role_of(self, app: Application) -> str:
        """The role as which `app` connects; empty where its database is not declared."""
        return app.role or self.owners.get(app.database, "")

    def url(self, app: Application, login: str, pooler: PgBouncer) -> str:
        """The address of the database of `app` for `login`, with `*` for the password."""
        port = pooler.port if app.pgbouncer else self.port
        return f"postgresql://{login}:*@host.docker.internal:{port}/{app.database}"

    @property
    def extensions(self) -> tuple[str, ...]:
        """All extensions of all databases, each once."""
        return tuple(sorted({name for database in self.databases for name in database.extensions}))

    def groups(self, role: Role) -> tuple[str, ...]:
        """The roles that `role` is a member of: by itself, and for the databases it migrates."""
        owners = (one.owner for one in self.databases if one.access.get(role.name) == "migrate")
        return tuple(sorted({*role.member_of, *owners}))

    @property
    def visitors(self) -> tuple[tuple[str, str], ...]:
        """(database, role) for each role that logs in and has rights in that database."""
        groups = {role.name: self.groups(role) for role in self.roles}

        def reaches(name: str, entitled: set[str]) -> bool:
            return name in entitled or any(
                reaches(group, entitled) for group in groups.get(name, ())
            )

        return tuple(
            (database.name, role.name)
            for database in self.databases
            for role in self.roles
            if role.login and reaches(role.name, {database.owner, *database.access})
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_duplicates("postgres_roles", (role.name for role in self.roles))
        _refuse_duplicates("postgres_databases", (database.name for database in self.databases))
        roles = {role.name for role in self.roles}
        known = f"which is not in postgres_roles ({', '.join(sorted(roles)) or 'empty'})"
        for role in self.roles:
            for group in sorted(set(role.member_of) - roles - _WATCHERS):
                raise ValueError(f"postgres_roles: {role.name} is a member of {group!r}, {known}")
        for database in self.databases:
            if database.owner not in roles:
                raise ValueError(
                    f"postgres_databases: {database.name} is owned by {database.owner!r}, {known}"
                )
            for name in sorted(set(database.access) - roles):
                raise ValueError(
                    f"postgres_databases: {database.name} gives access to {name!r}, {known}"
                )
            for name in database.extensions:
                if name not in CONTRIB | set(EXTENSION_PACKAGES) and not self.packages:
                    close = get_close_matches(name, (*CONTRIB, *EXTENSION_PACKAGES), 1)
                    hint = f"did you mean {close[0]}?" if close else "name it in postgres_packages"
                    raise ValueError(
                        f"postgres_databases: {database.name}: no known package has the extension "
                        f"{name!r}, {hint}"
                    )
        self._refuse_cycles()
        self._refuse_ways_round()
        for key in sorted(_SERVER_DERIVED & set(self.settings)):
            raise ValueError(f"postgres_settings: {key} is derived; it cannot be set here")
        if "allow_alter_system" in self.settings:
            raise ValueError(
                "postgres_settings: allow_alter_system cannot be set here: what ALTER SYSTEM set "
                "is undone by ALTER SYSTEM"
            )
        sockets = self.settings.get("unix_socket_directories", "/")
        if not re.fullmatch(r"/[^,]*(,\s*/[^,]*)*", str(sockets)):
            raise ValueError(
                f"postgres_settings: unix_socket_directories: {sockets!r} is no list of absolute "
                "paths: the superuser comes in through the socket alone"
            )
        return self

    def _refuse_ways_round(self) -> None:
        """Whoever migrates one database is a member of its owner, so of all its databases."""
        migrate = {
            database.name: {role for role, one in database.access.items() if one == "migrate"}
            for database in self.databases
        }
        for one in self.databases:
            for other in self.databases:
                if one.owner == other.owner and (more := migrate[one.name] - migrate[other.name]):
                    raise ValueError(
                        f"postgres_databases: {min(more)!r} migrates {one.name} as {one.owner!r}, "
                        f"who owns {other.name} as well: give {other.name} another owner, or "
                        f"{min(more)!r} migrate there, too"
                    )

    def _refuse_cycles(self) -> None:
        groups = {role.name: self.groups(role) for role in self.roles}
        try:
            TopologicalSorter(groups).prepare()
        except CycleError as error:
            raise ValueError(
                "postgres_roles: a role cannot be a member of itself: "
                f"{' in '.join(reversed(error.args[1]))} (member_of, or access to migrate)"
            ) from None


# What PgBouncer reads only as it starts; everything else follows a reload.
_READ_AT_START = frozenset(
    {"disable_pqexec", "listen_backlog", "pkt_buf", "resolv_conf", "so_reuseport"}
    | {"track_extra_parameters", "unix_socket_group", "unix_socket_mode"}
)
# What tasks/pgbouncer.py says itself, and what would open a way past it.
_POOLER_DERIVED = frozenset(
    {"listen_addr", "listen_port", "unix_socket_dir", "default_pool_size", "max_client_conn"}
    | {"admin_users", "stats_users", "conffile", "job_name", "service_name", "user"}
    | {"logfile", "pidfile"}
)


class PgBouncer(Settings):
    prefix = "pgbouncer"

    enabled: bool
    port: UserPort
    pool_size: int = Field(ge=1, le=1000)
    # LimitNOFILE in templates/pgbouncer/restart.conf.j2 has room for them and the pools.
    max_clients: int = Field(ge=1, le=50_000)
    settings: dict[Identifier, Annotated[Any, AfterValidator(_setting)]]

    def chosen(self, *, at_start: bool) -> dict[str, str]:
        """Those of `settings` that only a start reads, or the others, as PgBouncer writes them."""
        return {
            name: str(int(value) if isinstance(value, bool) else value)
            for name, value in self.settings.items()
            if (name in _READ_AT_START) == at_start
        }

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in sorted(self.settings):
            if key in _POOLER_DERIVED or key.startswith("auth_"):
                raise ValueError(f"pgbouncer_settings: {key} is derived; it cannot be set here")
        return self


# A service of a compose project, and a file that describes one.
SharedPlace = Annotated[str, Field(pattern=r"^([a-zA-Z0-9][a-zA-Z0-9._-]{0,62}|(/[^/\s:,]+)+/?)$")]
ServiceName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$")]
ComposeFile = Annotated[str, Field(pattern=r"^\w[\w-]*([./]\w[\w-]*)*\.ya?ml$")]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
SecretName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Seconds = Annotated[int, Field(strict=True, ge=1, le=3600)]

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
    if value != "born" and not re.fullmatch(r"env:[A-Za-z_]\w*|command:[^\s].*", value):
        # Not repeated: it may be the secret itself.
        raise ValueError(
            "is no source of a secret: use 'born' (made on the server), 'env:NAME' "
            "(of the environment of pyinfra) or 'command:…' (what a command prints here)"
        )
    return _one_line(value)


SecretSource = Annotated[str, AfterValidator(_secret_source)]


def _secret_source_or_empty(value: str) -> str:
    return value and _secret_source(value)


def _address_range(value: str) -> str:
    try:
        return str(ip_network(value))
    except ValueError:
        raise ValueError(f"{value!r} is no address or network, like 203.0.113.0/24") from None


AddressRange = Annotated[str, AfterValidator(_address_range)]


def _bcrypt(value: str) -> str:
    if not re.fullmatch(r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}", value):
        raise ValueError("is no bcrypt hash; `caddy hash-password` on the server makes one")
    return value


def _header(value: str) -> str:
    # In the Caddyfile a value stands between backticks, and Caddy fills in {$VARIABLES} even there.
    if "`" in value or "{$" in value:
        raise ValueError(f"{value[:40]!r} has a backtick or '{{$' in it, which Caddy would read")
    return _one_line(value)


def _guarded(value: str) -> str:
    # Caddy compares it with a path that it has cleaned of these.
    if "//" in value or {".", ".."} & set(value.removesuffix("*").split("/")):
        raise ValueError(f"{value!r} is no path that a request could have: it would guard nothing")
    return value


class Guard(Model):
    """A part of a site that not everybody may see."""

    path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9/_.-]*\*?$"), AfterValidator(_guarded)] = "/*"
    """Which requests: a path, with `*` at its end for whatever follows."""
    allow: tuple[AddressRange, ...] = ()
    """Addresses and networks that may come in; everybody else is answered 403. Empty: all may."""
    users: dict[
        Annotated[str, Field(pattern=r"^[\w.@-]+$")], Annotated[str, AfterValidator(_bcrypt)]
    ] = {}
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
    image: Annotated[str, AfterValidator(_image)] = ""
    """Instead of a source: image of a registry, with a tag or a digest."""
    compose: tuple[ComposeFile, ...] = ()
    """Compose files of a project of its own below `source`, each layered over those before it."""
    service: Annotated[str, Field(pattern=r"^([a-zA-Z0-9][a-zA-Z0-9._-]{0,62})?$")] = ""
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
    env: dict[EnvironmentName, Line | bool | int | float] = {}
    """Variables of its environment; nothing secret."""
    secrets: dict[SecretName, SecretSource] = {}
    """Secrets, each the file `/run/secrets/NAME`: `born` (random, made on the server), `env:NAME`
    (of the environment of pyinfra), `command:…` (what that prints on this machine)."""
    secrets_env: bool = False
    """Whether the secrets are variables of the environment too, in capital letters; `docker
    inspect` then shows them to root."""
    registry: Annotated[str, AfterValidator(_registry)] = ""
    """With a source: host of the registry that its base images, or those of its compose files,
    come from, when it asks for a password. Of `image` it is known."""
    registry_user: Line = ""
    """Who logs in to that registry; empty: nobody has to."""
    registry_password: Annotated[str, AfterValidator(_secret_source_or_empty)] = ""
    """Its password, `env:NAME` or `command:…`."""
    domain: Domain
    """Name under which Caddy serves it."""
    redirects: tuple[Domain, ...] = ()
    """Further names, from which Caddy sends clients to `domain`: `www.`, or the one without it."""
    hsts_seconds: int = Field(default=31_536_000, ge=0)
    """How long a browser insists on HTTPS after a visit; 0: not at all."""
    headers: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$")],
        Annotated[str, AfterValidator(_header)],
    ] = {}
    """Headers of every answer, beside the usual ones; an empty value takes one away."""
    max_upload_mb: int = Field(default=100, ge=1)
    """Largest body of a request, in MB."""
    timeout_seconds: Seconds = 60
    """How long a replica may take until its answer begins."""
    guards: tuple[Guard, ...] = ()
    """Parts that ask for a password, or that only some addresses may see."""
    static: dict[Annotated[str, Field(pattern=r"^/[A-Za-z0-9/_.-]*\*?$")], AbsolutePath] = {}
    """Directories on the host that Caddy serves by itself: `{"/assets/*": "/srv/assets"}`."""
    snippet: Line = ""
    """File on this machine with further lines for the site, as the Caddyfile has them."""
    database: Annotated[str, AfterValidator(_name_or_empty)] = ""
    """Its database, one of `postgres_databases`; the URL reaches it as the file
    `/run/secrets/database_url`. Empty: it has none."""
    role: Annotated[str, AfterValidator(_name_or_empty)] = ""
    """Role as which it connects, one of `postgres_roles`; empty: the owner of its database."""
    connections: int = Field(default=5, strict=True, ge=1, le=1000)
    """Connections to the database that one replica holds at most: the size of its pool."""
    replicas: int = Field(default=4, strict=True, ge=1, le=SLOT_PORTS)
    """Containers that run at once."""
    port: UserPort = 8000
    """First of its loopback ports: 64 for each of its two slots, one for each replica."""
    container_port: Port = 8000
    """Port on which it listens in its container."""
    health_path: Annotated[str, Field(pattern=r"^/([A-Za-z0-9_.-][A-Za-z0-9/_.-]*)?$")] = "/healthz"
    """Path that answers a GET with 2xx, and no redirect, when a replica can serve."""
    smoke_path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9/_.-]*)?$")] = ""
    """Path that is asked through Caddy before a release counts; empty: `health_path`."""
    user: Annotated[str, Field(pattern=r"^([a-z_][a-z0-9_-]{0,31})?$")] = "prod"
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

    @property
    def source_directory(self) -> Path:
        return _here(self.source)

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
        if self.registry_password == "born":
            raise ValueError("registry_password: the registry knows it already: env:… or command:…")
        if "database_url" in self.secrets:
            raise ValueError("secrets: database_url is derived; it cannot be set here")
        if self.role and not self.database:
            raise ValueError(f"role: {self.name} has no database in which it could act")
        for key in ("stateful", "shared", "scratch"):
            _refuse_duplicates(key, getattr(self, key))
        if both := sorted({*self.stateful} & {*self.scratch}):
            raise ValueError(
                f"scratch: {both[0]!r} is in stateful too: what it holds lasts, or not"
            )
        _refuse_duplicates("redirects", (self.domain, *self.redirects))
        return self


class App(Application, Settings):
    prefix = "app"

    network: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
    keep_releases: int = Field(ge=1, le=100)
    rollback: Annotated[str, Field(pattern=r"^([a-z][a-z0-9-]*(:[0-9a-f]{6,12})?)?$")]
    more: tuple[Application, ...]

    @property
    def applications(self) -> tuple[Application, ...]:
        """The application of the flat keys, if there is one, and those of `app_more`."""
        return (self, *self.more) if self.source or self.image else self.more

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_duplicates("app_name", (one.name for one in self.applications))
        names = (name for one in self.applications for name in (one.domain, *one.redirects))
        _refuse_duplicates("app_domain", names)
        in_order = sorted(self.applications, key=lambda one: one.port)
        for one, following in pairwise(in_order):
            taken = one.reserved_ports
            if following.port in taken:
                raise ValueError(
                    f"app_port: {following.name} begins at {following.port}, but {one.name} has "
                    f"{taken[0]} to {taken[-1]}; set it to {taken[-1] + 1} or more"
                )
        for one in self.applications:
            if one.reserved_ports[-1] > 65535:
                raise ValueError(
                    f"app_port: {one.name} has {one.reserved_ports[0]} to "
                    f"{one.reserved_ports[-1]}, but 65535 is the last there is"
                )
            if not one.source and not one.image:
                raise ValueError(f"app_source: {one.name} has neither source nor image")
            if one.source:
                _refuse_missing(one)
            if one.snippet and not _is_file(_here(one.snippet)):
                raise ValueError(f"app_snippet: {one.name}: cannot read {one.snippet!r}")
        return self


def _refuse_missing(one: Application) -> None:
    for name in one.compose:
        if not _is_file(one.source_directory / name):
            raise ValueError(f"app_compose: {one.source!r} has no file {name!r}")
    if not one.compose and not _is_file(one.source_directory / "Dockerfile"):
        raise ValueError(f"app_source: {one.source!r} is not a directory with a Dockerfile")


def _here(path: str) -> Path:
    """A path of this machine, below the project if it is not absolute."""
    try:
        return ROOT / Path(path).expanduser()
    except RuntimeError:
        # There is no such user's home, and no such file.
        return ROOT / path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


class Caddy(Settings):
    prefix = "caddy"

    email: Annotated[str, Field(pattern=r"^$|^[^\s@{}\"]+@[^\s@{}\"]+$")]
    acme_ca: Annotated[str, Field(pattern=r"^$|^https://[^\s{}\"]+$")]
    acme_ca_root: Line
    log_size_mb: int = Field(ge=1)
    log_files: int = Field(ge=1)
    snippet: Line

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.acme_ca_root and not self.acme_ca:
            raise ValueError(
                "caddy_acme_ca_root: caddy_acme_ca is empty: name the authority whose address "
                "this is to vouch for"
            )
        for key in ("acme_ca_root", "snippet"):
            name = getattr(self, key)
            if name and not _is_file(_here(name)):
                raise ValueError(f"caddy_{key}: cannot read {name!r}")
        return self


_REPOSITORY = r"^$|^ssh://[^\s@]+@[^\s/@]+/\S+$"
RepositoryId = Annotated[str, Field(pattern=r"^$|^[0-9a-f]{64}$")]


_LOST_WITH_IT = (
    "is the server itself, and a backup there is lost with it: name another host, "
    "ssh://user@host:port/./path"
)


def _repository(value: Any) -> Any:
    text = str(value)
    if re.match(r"[\w+-]+://[^@]*:[^@]*@", text):
        # Not repeated: it is on its way to a log.
        raise ValueError(
            "has a password in it: a key opens the backup host, which tasks/borg_key.py shows; "
            "write ssh://user@host:port/./path"
        )
    if ".." in text.split("/"):
        raise ValueError(f"{text!r}: write the path without '..'")
    name = repository_host(text)
    if _is_this_machine(name):
        raise ValueError(f"{name} {_LOST_WITH_IT}")
    return value


def repository_host(repository: str) -> str:
    """The host of an ssh:// URL; empty for other text."""
    found = re.match(r"ssh://[^@]+@(\[[^]]*\]|[^/:@]*)", repository)
    return found[1].strip("[]").rstrip(".").lower() if found else ""


def _is_this_machine(name: str) -> bool:
    try:
        address = ip_address(name)
    except ValueError:
        # 127.1 is an address for those who resolve it.
        return bool(re.fullmatch(r"localhost|.+\.(localhost|localdomain)|127(\.\d+)*|0+", name))
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


class Borg(Settings):
    prefix = "borg"

    @classmethod
    @override
    def of(cls, host: Host) -> Self:
        settings = super().of(host)
        name = repository_host(settings.repository)
        if name in (host.name.lower(), str(host.data.dict().get("ssh_hostname")).lower()):
            raise DeployError(f"{host.name}: borg_repository: {name} {_LOST_WITH_IT}")
        return settings

    repository: Annotated[str, BeforeValidator(_repository), Field(pattern=_REPOSITORY)]
    remote_path: Annotated[str, Field(pattern=r"^$|^[A-Za-z0-9_./~][A-Za-z0-9_./+~-]*$")]
    repository_id: RepositoryId
    repository_replaces: RepositoryId
    known_hosts: tuple[KnownHost, ...]
    directories: tuple[AbsolutePath, ...] = Field(min_length=1)
    exclude: tuple[Line, ...]
    exclude_databases: tuple[Line, ...]
    keep_daily: int = Field(ge=1)
    keep_weekly: int = Field(ge=0)
    keep_monthly: int = Field(ge=0)
    schedule: Line = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.repository and not self.known_hosts:
            raise ValueError(
                "borg_known_hosts: empty; list the backup host's SSH host keys, as your provider "
                "publishes them or as `ssh-keyscan` prints them after you compared them"
            )
        return self


def _refuse_duplicates(key: str, names: Any) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{key}: {name!r} is there twice")
        seen.add(name)


ALL_SETTINGS: tuple[type[Settings], ...] = (
    Preflight, Apt, Users, Sshd, Docker, Postgres, PgBouncer, App, Caddy, Borg,
)  # fmt: skip

"""Settings of PostgreSQL: roles, databases, and who may do what in them."""

from __future__ import annotations

import re
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from terrafirma.fields import (
    Identifier,
    PackageName,
    ServerSettings,
    UserPort,
    refuse_duplicates,
    version_prefix,
)
from terrafirma.postgres.extensions import CONTRIB, EXTENSION_PACKAGES
from terrafirma.settings import Model, Settings

# Key words that SQL reserves (PostgreSQL's documentation, appendix C): used as a name, each would
# need quotes wherever a person types it.
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
# Names that PostgreSQL itself uses, and key words of pg_hba.conf.
_TAKEN = frozenset(
    "postgres public none template0 template1 sameuser samerole samegroup replication".split()
)


def _not_reserved(name: str) -> str:
    if name in _KEY_WORDS | _TAKEN or name.startswith("pg_"):
        raise ValueError(f"{name!r} is reserved by PostgreSQL")
    return name


def _schema(name: str) -> str:
    return name if name == "public" else _not_reserved(name)


def name_or_empty(name: str) -> str:
    if name and not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name):
        raise ValueError(f"{name!r} is no name of a role or database")
    return name and _not_reserved(name)


_NAME = "a-z, 0-9 and `_`, no digit first, 63 characters at most; no name that PostgreSQL reserves"
DatabaseName = Annotated[Identifier, AfterValidator(_not_reserved), Field(title=_NAME)]
SchemaName = Annotated[Identifier, AfterValidator(_schema), Field(title=f"`public`, or {_NAME}")]
NameOrEmpty = Annotated[str, AfterValidator(name_or_empty), Field(title=f"{_NAME}; or empty")]

# Built-in roles that may be granted: the monitoring ones, and `pg_signal_backend`. Those that write
# files, run programs or read every table are a superuser by another name.
_WATCHERS = frozenset(
    """
    pg_monitor pg_read_all_settings pg_read_all_stats pg_stat_scan_tables pg_signal_backend
    """.split()
)


def _group(name: str) -> str:
    return name if name in _WATCHERS else _not_reserved(name)


OLDEST, NEWEST = 15, 30
"""The major versions that the settings accept."""


def _version(value: Any) -> int | str | None:
    """A major version, or the text of a minor one."""
    if value is None:
        return None
    if isinstance(value, float):
        # Python and JSON read 17.10 as 17.1.
        raise ValueError(f"write {value!r} as text, in quotes: '17.5'")
    text = version_prefix(value, "'17' or '17.5', or None")
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise ValueError(
            f"{text!r} is neither a major version, like 17, nor a minor one, '17.5', nor None"
        )
    major = int(text.partition(".")[0])
    if not OLDEST <= major <= NEWEST:
        raise ValueError(f"a major version is {OLDEST} to {NEWEST}, not {major}")
    return text if "." in text else major


PostgresVersion = Annotated[
    int | str | None,
    BeforeValidator(_version),
    Field(title=f"integer; {OLDEST} to {NEWEST}, or text like `17.5`, or `None`"),
]


class Role(Model):
    """A role and its attributes in the cluster; a database has the rights of roles in it."""

    name: DatabaseName
    """Role name."""
    login: bool = True
    """False: a group, or an owner that cannot log in."""
    member_of: tuple[Annotated[Identifier, AfterValidator(_group), Field(title=_NAME)], ...] = ()
    """Roles whose rights it inherits: others of `postgres_roles`, or PostgreSQL's `pg_monitor`,
    `pg_read_all_settings`, `pg_read_all_stats`, `pg_stat_scan_tables`, `pg_signal_backend`."""
    connection_limit: int = Field(default=-1, ge=-1)
    """How many connections it may hold at once; -1: no limit of its own."""
    settings: ServerSettings = {}
    """Settings of its sessions, as `ALTER ROLE … SET` takes them."""
    password: Annotated[
        str, Field(pattern=r"^$|^env:[A-Za-z_][A-Za-z0-9_]*$", title="`env:NAME`, or empty")
    ] = ""
    """Empty: generated on the server. `env:NAME`: the variable NAME in pyinfra's environment."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.name) > 62:
            raise ValueError(f"name: {self.name!r} is too long: 62 characters fit")
        refuse_duplicates("member_of", self.member_of)
        if self.password and not self.login:
            raise ValueError(f"password: {self.name} does not log in: it needs none")
        return self


ExtensionName = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$", title="name of an extension")
]
Access = Literal["read", "write", "migrate"]


class Database(Model):
    """A database, its owner, who else may use it, and its schemas and extensions."""

    name: DatabaseName
    """Database name."""
    owner: DatabaseName
    """Role that owns it; one of `postgres_roles`."""
    access: dict[DatabaseName, Access] = {}
    """Further roles that may connect. `read`: reads all tables. `write`: reads and writes rows, but
    changes no table. `migrate`: acts as the owner, so that the owner owns what it creates; give it
    in all databases of this owner, or in none."""
    schemas: tuple[SchemaName, ...] = ("public",)
    """Schemas that `access` covers; a missing one is created, owned by `owner`. In other schemas
    a role of `postgres_roles` has rights only if it owns the schema."""
    extensions: tuple[ExtensionName, ...] = ()
    """Extensions; the packages that ship them are installed."""
    encoding: Literal["UTF8", "LATIN1", "LATIN9", "WIN1252", "SQL_ASCII"] = "UTF8"
    """Encoding; fixed when the database is created."""
    locale: Annotated[
        str,
        Field(
            pattern=r"^(C|C\.UTF-8|[a-z]{2,3}(-[A-Za-z0-9]{2,8})*)$",
            title="`C.UTF-8`, `C`, or a language of ICU, like `de-DE`",
        ),
    ] = "C.UTF-8"
    """Sort order of text; fixed when the database is created. `C.UTF-8` and `C` sort by code
    point."""
    connection_limit: int = Field(default=-1, ge=-1)
    """How many connections it takes at once; -1: no limit of its own."""
    settings: ServerSettings = {}
    """Settings of its sessions, as `ALTER DATABASE … SET` takes them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_duplicates("schemas", self.schemas)
        refuse_duplicates("extensions", self.extensions)
        if self.owner in self.access:
            raise ValueError(f"access: {self.owner!r} owns {self.name}: it has every right already")
        if self.encoding != "UTF8" and self.locale != "C":
            raise ValueError(f"encoding: {self.encoding} needs the locale C, not {self.locale}")
        return self


# Settings that tasks/postgres.py writes, or whose Debian default it relies on; settings that read
# further files; and one that changes the name of every role.
_SERVER_DERIVED = frozenset(
    {"listen_addresses", "port", "max_connections", "password_encryption", "data_directory"}
    | {"config_file", "hba_file", "ident_file", "external_pid_file"}
    | {"include", "include_dir", "include_if_exists", "db_user_namespace"}
)


class Postgres(Settings):
    prefix = "postgres"

    version: PostgresVersion
    adopt: bool
    port: UserPort
    roles: tuple[Role, ...]
    databases: tuple[Database, ...]
    packages: tuple[PackageName, ...]
    max_connections: int = Field(ge=20, le=10_000)
    memory_percent: int = Field(ge=5, le=90)
    disk: Literal["", "ssd", "hdd"]
    settings: ServerSettings

    @property
    def major(self) -> int | None:
        """The major version that is asked for; None: the distribution's."""
        return None if self.version is None else int(str(self.version).partition(".")[0])

    @property
    def prefix_of_version(self) -> str:
        """The version, or its beginning, that is asked for; empty: any of the major."""
        return str(self.version or "")

    @property
    def owners(self) -> dict[str, str]:
        """Owner of each database."""
        return {database.name: database.owner for database in self.databases}

    @property
    def pooled_roles(self) -> list[str]:
        """The roles that may connect to at least one database, each once."""
        return sorted({role for _, role in self.visitors})

    @property
    def extensions(self) -> tuple[str, ...]:
        """All extensions of all databases, each once."""
        return tuple(sorted({name for database in self.databases for name in database.extensions}))

    def groups(self, role: Role) -> tuple[str, ...]:
        """The roles that `role` is a member of: its `member_of`, and owners it migrates for."""
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
        refuse_duplicates("postgres_roles", (role.name for role in self.roles))
        refuse_duplicates("postgres_databases", (database.name for database in self.databases))
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
                "paths: the superuser connects through a socket only"
            )
        return self

    def _refuse_ways_round(self) -> None:
        """A role that migrates one database is a member of its owner: it owns the others, too."""
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

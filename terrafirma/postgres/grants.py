"""
The SQL that brings a PostgreSQL cluster to the declared state.

Pure functions of a fact's answer and your settings. A role that your settings do not name is never
changed, and nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from terrafirma.host.files import render
from terrafirma.postgres.facts import ContentState, DatabaseState, RoleState, SchemaState
from terrafirma.postgres.settings import Access, Database, Role
from terrafirma.postgres.tuning import plain

Acl = Iterable[tuple[str, str]]

OWN = frozenset({"CREATE", "CONNECT", "TEMPORARY"})
"""The rights of an owner on its database."""

# (kind, right): the rights on a database that PUBLIC must not have.
_NOT_OF_PUBLIC = frozenset(("", right) for right in OWN)

# `migrate` needs no grants, since the role is a member of the owner.
_ON_DATABASE: dict[Access, frozenset[str]] = {
    "read": frozenset({"CONNECT"}),
    "write": frozenset({"CONNECT", "TEMPORARY"}),
    "migrate": frozenset(),
}
_ON_SCHEMA: dict[Access, frozenset[str]] = {
    "read": frozenset({"USAGE"}),
    "write": frozenset({"USAGE"}),
    "migrate": frozenset(),
}
_ON_TABLES: dict[Access, frozenset[str]] = {
    "read": frozenset({"SELECT"}),
    "write": frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"}),
    "migrate": frozenset(),
}
_ON_SEQUENCES: dict[Access, frozenset[str]] = {
    "read": frozenset({"SELECT"}),
    "write": frozenset({"SELECT", "USAGE", "UPDATE"}),
    "migrate": frozenset(),
}

# Settings whose value PostgreSQL stores as a list of names.
_LISTS = frozenset(
    {"local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces"}
)


def role_sql(role: Role, now: RoleState | None) -> Iterator[str]:
    """SQL that gives `role` exactly its declared attributes, connection limit and settings."""
    wanted = {
        "login": role.login,
        "superuser": False,
        "create_database": False,
        "create_role": False,
        "replication": False,
        "bypass_rls": False,
        "inherit": True,
        "expires": False,
        "connection_limit": role.connection_limit,
    }
    if now is None or not wanted.items() <= now.items():
        yield (
            f'{"alter" if now else "create"} role "{role.name}" {"" if role.login else "no"}login '
            "nosuperuser nocreatedb nocreaterole noreplication nobypassrls inherit "
            f"connection limit {role.connection_limit} valid until 'infinity';"
        )
    yield from _settings_sql(f'role "{role.name}"', role.settings, now["settings"] if now else [])


def membership_sql(role: str, groups: Sequence[str], now: RoleState | None) -> Iterator[str]:
    """
    SQL that makes `role` a member of exactly `groups`, granted by PostgreSQL's superuser alone.

    A membership with ADMIN would let the role admit others, and one granted by another role would
    end when that role is dropped.
    """
    known = now["member_of"] if now else []
    right = {group for group, grantor, plain in known if group in groups and not grantor and plain}
    wrong = [(group, grantor) for group, grantor, plain in known
             if group not in right or grantor or not plain]  # fmt: skip
    missing = [group for group in groups if group not in right]
    # In one transaction, so that open sessions never briefly lose a membership they keep.
    together = {group for group, _ in wrong} & set(missing)
    if together:
        yield "begin;"
    for group, grantor in wrong:
        by = f" granted by {_quoted(grantor)}" if grantor else ""
        # `cascade` also revokes the memberships that this role granted through its own.
        yield f'revoke {_quoted(group)} from "{role}"{by} cascade;'
    yield from (f'grant "{group}" to "{role}";' for group in missing)
    if together:
        yield "commit;"


def database_sql(
    database: Database, now: DatabaseState | None, declared: AbstractSet[str]
) -> Iterator[str]:
    """SQL that brings `database` to its declared owner, limit, settings and rights to connect."""
    name, owner = database.name, database.owner
    if now is None:
        # From template0: objects that were added to template1 stay out of new databases.
        yield (
            f'create database "{name}" owner "{owner}" template template0 '
            f"encoding '{database.encoding}' {_locale(database.locale)} "
            f"connection limit {database.connection_limit};"
        )
        acl: Acl = [("public", "CONNECT"), ("public", "TEMPORARY"), *((owner, one) for one in OWN)]
    else:
        # First, because the hand-over connects to it.
        if not now["connectable"]:
            yield f'alter database "{name}" allow_connections true;'
        if now["template"]:
            # A template can be copied by any role that may create databases.
            yield f'alter database "{name}" is_template false;'
        # Before the hand-over, which makes the old owner's grants those of the new owner.
        handed = [("", *one) for one in now["handed"]]
        places = {"": f'on database "{name}"'}
        yield from _handed_sql(handed, declared - {owner}, places, _NOT_OF_PUBLIC)
        acl = now["acl"]
        if now["owner"] != owner:
            yield from render(
                "postgres/hand_over.sql.j2", database=name, old=_literal(now["owner"]), new=owner
            ).splitlines()
            acl = [(owner if role == now["owner"] else role, right) for role, right in acl]
        if now["connection_limit"] != database.connection_limit:
            yield f'alter database "{name}" connection limit {database.connection_limit};'
    yield from _settings_sql(
        f'database "{name}"', database.settings, now["settings"] if now else []
    )
    of_roles = now["role_settings"] if now else {}
    seen = {role for role, _ in acl} | of_roles.keys()
    for role in ("public", *sorted(declared & seen | database.access.keys() | {owner})):
        acts_as = {"role": owner} if database.access.get(role) == "migrate" else {}
        yield from _settings_sql(
            f'role "{role}" in database "{name}"', acts_as, of_roles.get(role, [])
        )
        access = database.access.get(role)
        wanted = OWN if role == owner else _ON_DATABASE[access] if access else frozenset()
        has = {right for one, right in acl if one == role}
        yield from _grant_sql(f'on database "{name}"', role, wanted, has)


def closed_sql(name: str, now: DatabaseState | None, declared: AbstractSet[str]) -> Iterator[str]:
    """SQL that closes the maintenance database to all roles but superusers."""
    acl = now["acl"] if now else [("public", "CONNECT"), ("public", "TEMPORARY")]
    if now:
        handed = [("", *one) for one in now["handed"]]
        yield from _handed_sql(handed, declared, {"": f'on database "{name}"'}, _NOT_OF_PUBLIC)
    for role in ("public", *sorted(declared & {role for role, _ in acl})):
        has = {right for one, right in acl if one == role}
        yield from _grant_sql(f'on database "{name}"', role, frozenset(), has)


def content_sql(
    database: Database, now: ContentState | None, declared: AbstractSet[str]
) -> Iterator[str]:
    """SQL that gives `database` its extensions and schemas, and the roles their rights there."""
    schemas = now["schemas"] if now else {"public": _NEW_PUBLIC}
    for name in database.schemas:
        if name not in schemas:
            yield f'create schema "{name}" authorization "{database.owner}";'
            yield from _schema_sql(database, name, _NEW, declared)
            continue
        # `public` belongs to the owner of the database, through the role pg_database_owner.
        wanted = "pg_database_owner" if name == "public" else database.owner
        if schemas[name]["owner"] not in (wanted, database.owner):
            yield f'alter schema "{name}" owner to "{wanted}";'
        yield from _schema_sql(database, name, schemas[name], declared)
    # In a schema that the settings do not name, or no longer name, declared roles have no rights.
    for name in sorted(schemas.keys() - set(database.schemas)):
        if not schemas[name]["of_extension"]:
            yield from _schema_sql(database, name, schemas[name], declared)
    for letter, kind in (("r", "tables"), ("S", "sequences"), ("n", "schemas")):
        coming = [
            (role, right)
            for maker, one, role, right in (now["default_acl"] if now else [])
            if (maker, one) == (database.owner, letter)
        ]
        for role in sorted(declared & {role for role, _ in coming}):
            has = {right for one, right in coming if one == role}
            prefix = f'alter default privileges for role "{database.owner}" '
            yield from _grant_sql(f"on {kind}", role, frozenset(), has, prefix)
    known = now["extensions"] if now else []
    if missing := [name for name in database.extensions if name not in known]:
        # Our sessions search only pg_catalog; extensions are created in the first schema searched.
        yield f'set local search_path to "{database.schemas[0]}";'
        yield from (f'create extension "{name}" cascade;' for name in missing)


_NEW = SchemaState(
    owner="", of_extension=False, acl=[], tables=0, sequences=0, table_acl=[], sequence_acl=[],
    handed=[], default_acl=[], strangers=[],
)  # fmt: skip
_NEW_PUBLIC = SchemaState({**_NEW, "owner": "pg_database_owner", "acl": [("public", "USAGE")]})


def _schema_sql(
    database: Database, name: str, now: SchemaState, declared: AbstractSet[str]
) -> Iterator[str]:
    listed = name in database.schemas
    places = {
        "n": f"on schema {_quoted(name)}",
        "r": f"on all tables in schema {_quoted(name)}",
        "S": f"on all sequences in schema {_quoted(name)}",
    }
    # The owner of a schema that is not listed keeps all rights in it.
    others = declared - {database.owner, "" if listed else now["owner"]}
    closed = {("n", "CREATE")} if listed else set()
    yield from _handed_sql(now["handed"], others, places, closed, schema=name)
    if listed:
        public = {right for role, right in now["acl"] if role == "public"}
        # Before PostgreSQL 15, PUBLIC could create tables in the schema public.
        yield from _grant_sql(places["n"], "public", public - {"CREATE"}, public)
    # A role that is no longer in `access` loses its grants: it may still be able to connect, as a
    # member of another role.
    granted = {role for role, _ in now["acl"]} | {role for _, _, role, *_ in now["default_acl"]}
    granted |= {role for role, _, _ in (*now["table_acl"], *now["sequence_acl"])}
    allowed = database.access if listed else {}
    for role in sorted(allowed.keys() | (granted & others)):
        access = allowed.get(role, "migrate")
        has = {right for one, right in now["acl"] if one == role}
        yield from _grant_sql(places["n"], role, _ON_SCHEMA[access], has)
        for kind, letter, rights, total, acl in (
            ("tables", "r", _ON_TABLES, now["tables"], now["table_acl"]),
            ("sequences", "S", _ON_SEQUENCES, now["sequences"], now["sequence_acl"]),
        ):
            counts = {right: times for one, right, times in acl if one == role}
            wanted = rights[access]
            # Tables that the role owns itself need no grant.
            own = sum(times for one, its, times in now["strangers"] if (one, its) == (role, letter))
            complete = {right for right in wanted if counts.get(right, 0) + own == total}
            has = complete | (counts.keys() - wanted)
            yield from _grant_sql(places[letter], role, wanted, has)
            # The same rights on objects that the owner will create.
            coming = {
                right: handed_on
                for maker, one, grantee, right, handed_on in now["default_acl"]
                if (maker, one, grantee) == (database.owner, letter, role)
            }
            prefix = (
                f'alter default privileges for role "{database.owner}" in schema {_quoted(name)} '
            )
            for right in sorted(right for right, handed_on in coming.items() if handed_on):
                yield f'{prefix}revoke grant option for {right.lower()} on {kind} from "{role}";'
            yield from _grant_sql(f"on {kind}", role, wanted, coming, prefix)


def _handed_sql(
    handed: Iterable[tuple[str, str, str, str]],
    declared: AbstractSet[str],
    places: Mapping[str, str],
    closed: AbstractSet[tuple[str, str]],
    *,
    schema: str = "",
) -> Iterator[str]:
    """
    SQL after which no declared role can grant rights, or has one from anyone but the owner.

    The same holds for the rights in `closed` that PUBLIC has: through PUBLIC, each declared role
    has them.

    Grants form a chain that begins at the owner. If a declared role is part of the chain of a
    right, the owner revokes the grant option, and with `cascade` all that was granted through it.
    Other roles in the chain keep the right: the owner first grants it to them directly, on each
    object that they have it on.
    """
    handed = list(handed)
    concerned = {
        (kind, right)
        for kind, holder, taker, right in handed
        if (taker or holder) in declared or (taker == "public" and (kind, right) in closed)
    }
    others: dict[tuple[str, str], set[str]] = {}
    for kind, _, taker, right in handed:
        outside = (kind, right) not in closed if taker == "public" else taker not in declared
        if taker and outside and (kind, right) in concerned:
            others.setdefault((kind, right), set()).add(taker)
    for (kind, right), takers in sorted(others.items()):
        if kind in ("r", "S"):
            yield _keep_sql(schema, kind, right, sorted(takers))
        else:
            for taker in sorted(takers):
                who = taker if taker == "public" else _quoted(taker)
                yield f"grant {right.lower()} {places[kind]} to {who};"
    for kind, right, holder in sorted(
        {(kind, right, holder) for kind, holder, _, right in handed if (kind, right) in concerned}
    ):
        yield (
            f"revoke grant option for {right.lower()} {places[kind]} "
            f"from {_quoted(holder)} cascade;"
        )


def _keep_sql(schema: str, kind: str, right: str, takers: Sequence[str]) -> str:
    """SQL by which the owners of tables or sequences grant what `takers` have from others."""
    what, kinds = ("sequence", "'S'") if kind == "S" else ("table", "'r', 'p', 'v', 'm', 'f'")
    return (
        f"select format('grant {right.lower()} on {what} %s to %s;', pg_class.oid::regclass, who) "
        "from pg_class, aclexplode(relacl), lateral (select case grantee when 0 then 'public' "
        "else quote_ident(pg_get_userbyid(grantee)) end) one (who) "
        f"where relnamespace = (select oid from pg_namespace where nspname = {_literal(schema)}) "
        f"and relkind in ({kinds}) and grantor <> relowner and grantee <> relowner "
        f"and privilege_type = '{right}' and case grantee when 0 then 'public' "
        f"else pg_get_userbyid(grantee) end in ({', '.join(map(_literal, takers))}) \\gexec"
    )


def _grant_sql(
    what: str, role: str, wanted: Collection[str], has: Collection[str], prefix: str = ""
) -> Iterator[str]:
    who = role if role == "public" else f'"{role}"'
    if missing := sorted(set(wanted) - set(has)):
        yield f"{prefix}grant {', '.join(missing).lower()} {what} to {who};"
    if excess := sorted(set(has) - set(wanted)):
        yield f"{prefix}revoke {', '.join(excess).lower()} {what} from {who};"


def _settings_sql(
    whose: str, wanted: Mapping[str, bool | int | float | str], known: Sequence[str]
) -> Iterator[str]:
    # PostgreSQL has its own spelling of some names, such as TimeZone.
    pairs = [line.split("=", 1) for line in known]
    now = {name.lower(): _items(value) if name in _LISTS else value for name, value in pairs}
    for name, value in sorted(wanted.items()):
        text = plain(value)
        if name in _LISTS:
            if now.get(name) != (items := _items(text)):
                yield f"alter {whose} set {name} to {', '.join(map(_literal, items))};"
        elif now.get(name) != text:
            yield f"alter {whose} set {name} to {_literal(text)};"
    for name in sorted(name for name, _ in pairs if name.lower() not in wanted):
        # A setting PostgreSQL does not know keeps its spelling, so quote it.
        yield f"alter {whose} reset {'.'.join(map(_quoted, name.split('.')))};"


def _items(value: str) -> list[str]:
    return [item.strip().strip('"') for item in value.split(",")]


def _locale(locale: str) -> str:
    if locale in ("C", "C.UTF-8"):
        return f"locale '{locale}'"
    return f"locale 'C.UTF-8' locale_provider icu icu_locale '{locale}'"


def _quoted(name: str) -> str:
    """Quote a name that may hold any character; names in your settings hold no quotes."""
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"

"""
What has to be said to a PostgreSQL cluster so that it is as declared: SQL, made of plain data.

Functions of what a fact saw and of what the settings say; no host is asked here. A role that the
data does not name is never touched, and nothing is dropped.
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
"""What an owner may do with its database."""

# Of PUBLIC in a database.
_OF_NOBODY = frozenset(("", right) for right in OWN)

# `migrate` needs no grants, since the role is a member of the owner. A role without access gets
# none either.
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

# Their value is a list of names, and PostgreSQL keeps it as one.
_LISTS = frozenset(
    {"local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces"}
)


def role_sql(role: Role, now: RoleState | None) -> Iterator[str]:
    """What makes `role` log in or not, with its limit and settings, and do no more than that."""
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
    What makes `role` a member of exactly `groups`, by nobody's grace but PostgreSQL's.

    Whoever has ADMIN lets others in, and what somebody else granted ends when that one leaves.
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
        # With what this role granted on the strength of it.
        yield f'revoke {_quoted(group)} from "{role}"{by} cascade;'
    yield from (f'grant "{group}" to "{role}";' for group in missing)
    if together:
        yield "commit;"


def database_sql(
    database: Database, now: DatabaseState | None, declared: AbstractSet[str]
) -> Iterator[str]:
    """What makes `database` as declared: owner, limit, settings, and who may connect."""
    name, owner = database.name, database.owner
    if now is None:
        # template0: what somebody put into template1 is not copied into each new database.
        yield (
            f'create database "{name}" owner "{owner}" template template0 '
            f"encoding '{database.encoding}' {_locale(database.locale)} "
            f"connection limit {database.connection_limit};"
        )
        acl: Acl = [("public", "CONNECT"), ("public", "TEMPORARY"), *((owner, one) for one in OWN)]
    else:
        # First: a hand-over looks into it.
        if not now["connectable"]:
            yield f'alter database "{name}" allow_connections true;'
        if now["template"]:
            # Whoever may make databases could copy it.
            yield f'alter database "{name}" is_template false;'
        # By whoever owns it now: a new owner's grants are the old one's.
        handed = [("", *one) for one in now["handed"]]
        places = {"": f'on database "{name}"'}
        yield from _handed_sql(handed, declared - {owner}, places, _OF_NOBODY)
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
    """What closes the maintenance database to everybody: there is nothing to look at for them."""
    acl = now["acl"] if now else [("public", "CONNECT"), ("public", "TEMPORARY")]
    if now:
        handed = [("", *one) for one in now["handed"]]
        yield from _handed_sql(handed, declared, {"": f'on database "{name}"'}, _OF_NOBODY)
    for role in ("public", *sorted(declared & {role for role, _ in acl})):
        has = {right for one, right in acl if one == role}
        yield from _grant_sql(f'on database "{name}"', role, frozenset(), has)


def content_sql(
    database: Database, now: ContentState | None, declared: AbstractSet[str]
) -> Iterator[str]:
    """What gives `database` its extensions and schemas, and its roles their rights in them."""
    schemas = now["schemas"] if now else {"public": _NEW_PUBLIC}
    for name in database.schemas:
        if name not in schemas:
            yield f'create schema "{name}" authorization "{database.owner}";'
            yield from _schema_sql(database, name, _NEW, declared)
            continue
        # A database's own schema belongs to whoever owns the database.
        wanted = "pg_database_owner" if name == "public" else database.owner
        if schemas[name]["owner"] not in (wanted, database.owner):
            yield f'alter schema "{name}" owner to "{wanted}";'
        yield from _schema_sql(database, name, schemas[name], declared)
    # What a role was given there, perhaps while the settings named the schema, is more than they
    # give.
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
        # Else nothing but PostgreSQL's own schema is searched, and they need a place.
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
    # Whoever has a schema of its own may do in it what it likes.
    others = declared - {database.owner, "" if listed else now["owner"]}
    closed = {("n", "CREATE")} if listed else set()
    yield from _handed_sql(now["handed"], others, places, closed, schema=name)
    if listed:
        public = {right for role, right in now["acl"] if role == "public"}
        # Before PostgreSQL 15 everybody could make tables in it.
        yield from _grant_sql(places["n"], "public", public - {"CREATE"}, public)
    # Whoever lost its access loses what it had, too: it may still come in as a member of another.
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
            # With its own it may do what it likes.
            own = sum(times for one, its, times in now["strangers"] if (one, its) == (role, letter))
            complete = {right for right in wanted if counts.get(right, 0) + own == total}
            has = complete | (counts.keys() - wanted)
            yield from _grant_sql(places[letter], role, wanted, has)
            # The same for what the owner is going to make.
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
    What ends that a declared role hands rights on, or has them from anybody but the owner.

    So it is with the rights in `closed` that PUBLIC has: each declared role has them by that.

    Who got such a right from whom is a chain that begins at the owner, and only there it is cut:
    nobody may hand on a right any more that a declared role has a part in. Whoever else got it that
    way is first given it by the owner: it goes from no object that they have it on.
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
    """What lets the owner of each table, or sequence, grant what `takers` have from others."""
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
    # PostgreSQL keeps its own spelling of a name: TimeZone.
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
        # A setting PostgreSQL does not know keeps its spelling, and may be a reserved word.
        yield f"alter {whose} reset {'.'.join(map(_quoted, name.split('.')))};"


def _items(value: str) -> list[str]:
    return [item.strip().strip('"') for item in value.split(",")]


def _locale(locale: str) -> str:
    if locale in ("C", "C.UTF-8"):
        return f"locale '{locale}'"
    return f"locale 'C.UTF-8' locale_provider icu icu_locale '{locale}'"


def _quoted(name: str) -> str:
    """A name that somebody else chose; those of the settings need no more than the quotes."""
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"

"""SQL for a cluster: none in the declared state, and one statement for one difference."""

from copy import deepcopy
from typing import Any, cast

import pytest

from terrafirma.postgres.facts import ContentState, DatabaseState, RoleState, SchemaState
from terrafirma.postgres.grants import (
    closed_sql,
    content_sql,
    database_sql,
    membership_sql,
    role_sql,
)
from terrafirma.postgres.settings import Database, Role

# --- the declared state, and the matching answers of PostgreSQL 15 --------------------------------

ROLE = Role(
    name="reader",
    connection_limit=5,
    settings={"work_mem": "64MB", "jit": False, "search_path": "$user, public, jobs"},
)
ROLE_NOW = RoleState(
    login=True,
    superuser=False,
    create_database=False,
    create_role=False,
    replication=False,
    bypass_rls=False,
    inherit=True,
    expires=False,
    connection_limit=5,
    member_of=[],
    settings=["jit=off", 'search_path="$user", public, jobs', "work_mem=64MB"],
)

SHOP = Database(
    name="shop",
    owner="owner",
    access={"reader": "read", "writer": "write", "mig": "migrate"},
    schemas=("public", "jobs"),
    extensions=("hstore", "pg_trgm"),
    connection_limit=30,
    settings={"jit": True, "search_path": "$user, public", "statement_timeout": 5000},
)
DECLARED = {"owner", "reader", "writer", "mig", "stranger"}
OWNED = [("owner", "CREATE"), ("owner", "TEMPORARY"), ("owner", "CONNECT")]
SHOP_NOW = DatabaseState(
    owner="owner",
    encoding="UTF8",
    locale="C.UTF-8",
    connection_limit=30,
    connectable=True,
    template=False,
    acl=[*OWNED, ("reader", "CONNECT"), ("writer", "TEMPORARY"), ("writer", "CONNECT")],
    handed=[],
    settings=["jit=on", 'search_path="$user", public', "statement_timeout=5000"],
    role_settings={"mig": ["role=owner"]},
)

WRITES = ("INSERT", "SELECT", "UPDATE", "DELETE")


def schema(owner: str, tables: int, sequences: int, *acl: tuple[str, str]) -> SchemaState:
    """A schema with so many tables and sequences, all with the rights that `access` gives."""
    return SchemaState(
        owner=owner,
        of_extension=False,
        acl=[*acl, ("reader", "USAGE"), ("writer", "USAGE")],
        tables=tables,
        sequences=sequences,
        table_acl=[("writer", right, tables) for right in WRITES if tables]
        + [("reader", "SELECT", tables)] * bool(tables),
        sequence_acl=[("writer", right, sequences) for right in ("UPDATE", "SELECT", "USAGE")]
        + [("reader", "SELECT", sequences)],
        handed=[],
        default_acl=[
            ("owner", "r", "reader", "SELECT", False),
            *(("owner", "r", "writer", right, False) for right in WRITES),
            ("owner", "S", "reader", "SELECT", False),
            *(("owner", "S", "writer", right, False) for right in ("SELECT", "UPDATE", "USAGE")),
        ],
        strangers=[],
    )


CONTENT_NOW = ContentState(
    extensions=["hstore", "pg_trgm", "plpgsql"],
    schemas={
        "public": schema("pg_database_owner", 3, 1, ("public", "USAGE")),
        "jobs": schema("owner", 1, 1),
    },
    default_acl=[],
)


def role(**but: Any) -> list[str]:
    """The SQL for a cluster whose role has these differences."""
    return list(role_sql(ROLE, cast("RoleState", {**ROLE_NOW, **but})))


def database(**but: Any) -> list[str]:
    return list(database_sql(SHOP, cast("DatabaseState", {**SHOP_NOW, **but}), DECLARED))


def content(*, of: str = "public", **but: Any) -> list[str]:
    """The SQL for a database whose schema `of` has these differences."""
    now = deepcopy(CONTENT_NOW)
    now["schemas"][of] = cast("SchemaState", {**now["schemas"][of], **but})
    return list(content_sql(SHOP, now, DECLARED))


Member = tuple[str, str, bool]


def plain(*groups: str) -> list[Member]:
    """Memberships in the form that Terrafirma grants."""
    return [(group, "", True) for group in groups]


def member_of(*known: Member) -> RoleState:
    return RoleState({**ROLE_NOW, "member_of": [*known]})


def test_a_cluster_in_the_declared_state_needs_no_statement() -> None:
    assert role() == []
    assert list(membership_sql("reader", ["a", "b"], member_of(*plain("b", "a")))) == []
    assert database() == []
    assert content() == []
    closed = DatabaseState(**{**SHOP_NOW, "acl": OWNED})
    assert list(closed_sql("postgres", closed, DECLARED - {"owner"})) == []


# --- roles ----------------------------------------------------------------------------------------

NO_MORE = "nosuperuser nocreatedb nocreaterole noreplication nobypassrls inherit"
ALTER = f"""alter role "reader" login {NO_MORE} connection limit 5 valid until 'infinity';"""


def test_a_missing_role_is_created() -> None:
    assert list(role_sql(Role(name="api"), None)) == [
        f"""create role "api" login {NO_MORE} connection limit -1 valid until 'infinity';"""
    ]
    assert list(role_sql(Role(name="team", login=False, settings={"jit": True}), None)) == [
        f"""create role "team" nologin {NO_MORE} connection limit -1 valid until 'infinity';""",
        """alter role "team" set jit to 'on';""",
    ]


@pytest.mark.parametrize(
    "drift",
    [
        {"superuser": True},
        {"create_database": True},
        {"create_role": True},
        {"replication": True},
        {"bypass_rls": True},
        {"login": False},
        {"inherit": False},
        {"expires": True},
        {"connection_limit": -1},
        {"connection_limit": 6},
        {"login": False, "superuser": True, "connection_limit": 0},
    ],
    ids=str,
)
def test_an_attribute_that_is_not_as_declared(drift: dict[str, Any]) -> None:
    assert role(**drift) == [ALTER]


def test_a_role_that_no_longer_logs_in() -> None:
    group = ROLE.model_copy(update={"login": False})
    assert list(role_sql(group, ROLE_NOW)) == [ALTER.replace(" login ", " nologin ")]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["jit=off", "work_mem=64MB"], ["set search_path to '$user', 'public', 'jobs'"]),
        (
            ["jit=off", 'search_path="$user", public', "work_mem=64MB"],
            ["set search_path to '$user', 'public', 'jobs'"],
        ),
        (
            ["jit=on", 'search_path="$user", public, jobs', "work_mem=64MB"],
            ["set jit to 'off'"],
        ),
        (
            ["jit=off", 'search_path="$user", public, jobs', "work_mem=4MB"],
            ["set work_mem to '64MB'"],
        ),
        (
            [*ROLE_NOW["settings"], "statement_timeout=5s"],
            ['reset "statement_timeout"'],
        ),
        # A value with an equals sign.
        (
            [*ROLE_NOW["settings"], "log_line_prefix=a=b"],
            ['reset "log_line_prefix"'],
        ),
    ],
)
def test_settings_of_a_role(settings: list[str], said: list[str]) -> None:
    assert role(settings=settings) == [f'alter role "reader" {one};' for one in said]


@pytest.mark.parametrize(
    ("now", "said"),
    [
        # PostgreSQL 15 stores these two names with capitals.
        (["TimeZone=UTC", "DateStyle=ISO, DMY"], []),
        (["timezone=UTC", "datestyle=ISO, DMY"], []),
        (["TimeZone=Europe/Berlin", "DateStyle=ISO, DMY"], ["set timezone to 'UTC'"]),
        (["DateStyle=ISO, DMY"], ["set timezone to 'UTC'"]),
        # The value is text, not a list of names, so spaces matter.
        (["TimeZone=UTC", "DateStyle=ISO,DMY"], ["set datestyle to 'ISO, DMY'"]),
        (
            ["TimeZone=UTC", "DateStyle=ISO, DMY", "IntervalStyle=iso_8601"],
            ['reset "IntervalStyle"'],
        ),
    ],
)
def test_the_name_of_a_setting_is_the_same_however_it_is_spelled(
    now: list[str], said: list[str]
) -> None:
    settings = {"timezone": "UTC", "datestyle": "ISO, DMY"}
    one = Role(name="reader", connection_limit=5, settings=settings)
    assert list(role_sql(one, RoleState(**{**ROLE_NOW, "settings": now}))) == [
        f'alter role "reader" {line};' for line in said
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("search_path", "temp_tablespaces"),
        *("local_preload_libraries", "session_preload_libraries"),
    ],
)
def test_a_list_is_the_same_however_it_is_quoted(name: str) -> None:
    """The order of the names matters."""
    one = Role(name="reader", connection_limit=5, settings={name: "B x, $user,a"})
    for stored, same in (
        ('"B x", "$user", a', True),
        ('"B x","$user","a"', True),
        ("B x, $user, a", True),
        ('"B x", a, "$user"', False),
        ('"B x", "$user"', False),
        ('"b x", "$user", a', False),
    ):
        now = RoleState(**{**ROLE_NOW, "settings": [f"{name}={stored}"]})
        said = [] if same else [f"alter role \"reader\" set {name} to 'B x', '$user', 'a';"]
        assert list(role_sql(one, now)) == said


def test_a_setting_that_is_no_longer_declared_is_reset() -> None:
    bare = ROLE.model_copy(update={"settings": {}})
    assert list(role_sql(bare, ROLE_NOW)) == [
        'alter role "reader" reset "jit";',
        'alter role "reader" reset "search_path";',
        'alter role "reader" reset "work_mem";',
    ]


@pytest.mark.parametrize(
    ("value", "stored", "said"),
    [
        # As PostgreSQL 15 stores it after `ALTER … SET`.
        ("$user, public", '"$user", public', "'$user', 'public'"),
        ("$user,public", '"$user", public', "'$user', 'public'"),
        ("public", "public", "'public'"),
        ("Foo,  b_1 , c-d", '"Foo", b_1, "c-d"', "'Foo', 'b_1', 'c-d'"),
    ],
)
def test_a_search_path_is_kept_as_a_list_of_names(value: str, stored: str, said: str) -> None:
    one = Role(name="reader", settings={"search_path": value})
    as_wanted = RoleState(
        **{**ROLE_NOW, "connection_limit": -1, "settings": [f"search_path={stored}"]}
    )
    assert list(role_sql(one, as_wanted)) == []
    without = RoleState(**{**as_wanted, "settings": []})
    assert list(role_sql(one, without)) == [f'alter role "reader" set search_path to {said};']


@pytest.mark.parametrize(
    ("value", "stored", "said"),
    [
        (True, "on", "'on'"),
        (False, "off", "'off'"),
        (200, "200", "'200'"),
        (1.5, "1.5", "'1.5'"),
        # The value is text, not a list of names.
        ("a, b", "a, b", "'a, b'"),
        ("it's $5", "it's $5", "'it''s $5'"),
        ("", "", "''"),
    ],
)
def test_values_of_settings(value: Any, stored: str, said: str) -> None:
    one = Role(name="reader", settings={"my.setting": value})
    as_wanted = RoleState(
        **{**ROLE_NOW, "connection_limit": -1, "settings": [f"my.setting={stored}"]}
    )
    assert list(role_sql(one, as_wanted)) == []
    without = RoleState(**{**as_wanted, "settings": []})
    assert list(role_sql(one, without)) == [f'alter role "reader" set my.setting to {said};']


REVOKE = 'revoke "{}" from "reader" cascade;'
BY = 'revoke "{}" from "reader" granted by "{}" cascade;'


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (plain("a", "b"), []),
        (plain("a"), ['grant "b" to "reader";']),
        ([], ['grant "a" to "reader";', 'grant "b" to "reader";']),
        # A membership that was granted by hand.
        (plain("a", "b", "pg_read_all_data"), [REVOKE.format("pg_read_all_data")]),
        (
            plain("c"),
            [REVOKE.format("c"), 'grant "a" to "reader";', 'grant "b" to "reader";'],
        ),
        # With ADMIN, or without INHERIT or SET: one transaction, so the right is never missing.
        (
            [("a", "", False), *plain("b")],
            ["begin;", REVOKE.format("a"), 'grant "a" to "reader";', "commit;"],
        ),
        # Granted by another role, beside our grant or instead of it; and an undeclared membership.
        ([*plain("a", "b"), ("a", "x", True)], [BY.format("a", "x")]),
        (
            [("a", "x", True), *plain("b")],
            ["begin;", BY.format("a", "x"), 'grant "a" to "reader";', "commit;"],
        ),
        ([*plain("a", "b"), ("c", "x", False)], [BY.format("c", "x")]),
        (
            [("a", "x", True), ("a", "y", False), *plain("b"), ("c", "", False)],
            [
                "begin;",
                BY.format("a", "x"),
                BY.format("a", "y"),
                REVOKE.format("c"),
                'grant "a" to "reader";',
                "commit;",
            ],
        ),
    ],
)
def test_a_role_is_a_member_of_exactly_its_groups(now: list[Member], said: list[str]) -> None:
    assert list(membership_sql("reader", ["a", "b"], member_of(*now))) == said


def test_any_name_is_quoted() -> None:
    now = member_of(('a" from x; drop role y; --', 'b"', True))
    assert list(membership_sql("reader", [], now)) == [
        'revoke "a"" from x; drop role y; --" from "reader" granted by "b""" cascade;'
    ]
    own = Role(name="reader", connection_limit=5)
    odd = RoleState({**ROLE_NOW, "settings": ['my.Select"=1']})
    assert list(role_sql(own, odd)) == ['alter role "reader" reset "my"."Select""";']
    stranger = "it's mine"
    database = Database(name="api", owner="api")
    state = DatabaseState(
        owner=stranger, encoding="UTF8", locale="C.UTF-8", connection_limit=-1, connectable=True,
        acl=[(stranger, "CONNECT"), (stranger, "CREATE"), (stranger, "TEMPORARY")], settings=[],
        template=False, handed=[], role_settings={},
    )  # fmt: skip
    said = "\n".join(database_sql(database, state, {"api"}))
    assert said.count("= 'it''s mine'") == 5
    assert "it's" not in said


def test_a_new_role_is_a_member_of_its_groups() -> None:
    assert list(membership_sql("reader", ["a"], None)) == ['grant "a" to "reader";']


# --- databases ------------------------------------------------------------------------------------


def test_a_missing_database_is_created_and_closed() -> None:
    assert list(database_sql(SHOP, None, DECLARED)) == [
        'create database "shop" owner "owner" template template0 '
        "encoding 'UTF8' locale 'C.UTF-8' connection limit 30;",
        """alter database "shop" set jit to 'on';""",
        """alter database "shop" set search_path to '$user', 'public';""",
        """alter database "shop" set statement_timeout to '5000';""",
        'revoke connect, temporary on database "shop" from public;',
        """alter role "mig" in database "shop" set role to 'owner';""",
        'grant connect on database "shop" to "reader";',
        'grant connect, temporary on database "shop" to "writer";',
    ]


@pytest.mark.parametrize(
    ("encoding", "locale", "said"),
    [
        ("UTF8", "C.UTF-8", "encoding 'UTF8' locale 'C.UTF-8' connection"),
        ("LATIN1", "C", "encoding 'LATIN1' locale 'C' connection"),
        (
            "UTF8",
            "de-DE",
            "encoding 'UTF8' locale 'C.UTF-8' locale_provider icu icu_locale 'de-DE' connection",
        ),
    ],
)
def test_the_locale_of_a_language_comes_from_icu(encoding: Any, locale: str, said: str) -> None:
    one = Database(name="shop", owner="owner", encoding=encoding, locale=locale)
    create, *_ = database_sql(one, None, DECLARED)
    assert said in create


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        ({"connection_limit": -1}, ['alter database "shop" connection limit 30;']),
        ({"connectable": False}, ['alter database "shop" allow_connections true;']),
        ({"template": True}, ['alter database "shop" is_template false;']),
        (
            {"settings": ["jit=off", *SHOP_NOW["settings"][1:]]},
            ["""alter database "shop" set jit to 'on';"""],
        ),
        (
            {"settings": [*SHOP_NOW["settings"], "work_mem=1GB"]},
            ['alter database "shop" reset "work_mem";'],
        ),
        # The owner's missing right is restored.
        ({"acl": SHOP_NOW["acl"][1:]}, ['grant create on database "shop" to "owner";']),
        # Granted by hand: to PUBLIC, to a declared role, and too much to a reader.
        (
            {"acl": [*SHOP_NOW["acl"], ("public", "CONNECT")]},
            ['revoke connect on database "shop" from public;'],
        ),
        (
            {"acl": [*SHOP_NOW["acl"], ("public", "CONNECT"), ("public", "TEMPORARY")]},
            ['revoke connect, temporary on database "shop" from public;'],
        ),
        (
            {"acl": [*SHOP_NOW["acl"], ("stranger", "CONNECT")]},
            ['revoke connect on database "shop" from "stranger";'],
        ),
        (
            {"acl": [*SHOP_NOW["acl"], ("reader", "TEMPORARY")]},
            ['revoke temporary on database "shop" from "reader";'],
        ),
        (
            {"acl": [*SHOP_NOW["acl"], ("writer", "CREATE")]},
            ['revoke create on database "shop" from "writer";'],
        ),
        # A role that migrates needs no right of its own: it connects as a member of the owner.
        (
            {"acl": [*SHOP_NOW["acl"], ("mig", "CONNECT")]},
            ['revoke connect on database "shop" from "mig";'],
        ),
        # Revoked by hand.
        (
            {"acl": [one for one in SHOP_NOW["acl"] if one[0] != "reader"]},
            ['grant connect on database "shop" to "reader";'],
        ),
        (
            {"acl": [one for one in SHOP_NOW["acl"] if one != ("writer", "TEMPORARY")]},
            ['grant temporary on database "shop" to "writer";'],
        ),
        # A role that migrates acts as the owner in this database.
        (
            {"role_settings": {}},
            ["""alter role "mig" in database "shop" set role to 'owner';"""],
        ),
        (
            {"role_settings": {"mig": ["role=stranger"]}},
            ["""alter role "mig" in database "shop" set role to 'owner';"""],
        ),
        (
            {"role_settings": {"mig": ["role=owner", "jit=off"]}},
            ['alter role "mig" in database "shop" reset "jit";'],
        ),
        # Roles that no longer migrate.
        (
            {"role_settings": {**SHOP_NOW["role_settings"], "writer": ["role=owner"]}},
            ['alter role "writer" in database "shop" reset "role";'],
        ),
        (
            {"role_settings": {**SHOP_NOW["role_settings"], "stranger": ["role=owner"]}},
            ['alter role "stranger" in database "shop" reset "role";'],
        ),
    ],
)
def test_a_database_that_is_not_as_declared(drift: dict[str, Any], said: list[str]) -> None:
    assert database(**drift) == said


def test_roles_that_are_not_declared_are_left_alone() -> None:
    acl = [*SHOP_NOW["acl"], ("backup", "CONNECT"), ("backup", "CREATE")]
    settings = {**SHOP_NOW["role_settings"], "backup": ["jit=off"]}
    assert database(acl=acl, role_settings=settings) == []
    tables = [*CONTENT_NOW["schemas"]["public"]["table_acl"], ("backup", "SELECT", 3)]
    defaults = [
        *CONTENT_NOW["schemas"]["public"]["default_acl"],
        ("owner", "r", "backup", "SELECT", False),
        # For objects that another role creates.
        ("dba", "r", "writer", "TRUNCATE", False),
    ]
    schema_acl = [*CONTENT_NOW["schemas"]["public"]["acl"], ("backup", "USAGE")]
    assert content(table_acl=tables, default_acl=defaults, acl=schema_acl) == []


def test_a_database_changes_its_owner_with_all_that_is_in_it() -> None:
    acl = [("old" if one == "owner" else one, right) for one, right in SHOP_NOW["acl"]]
    connect, begin, *steps, commit, back = database(owner="old", acl=acl)
    assert (connect, begin) == ('\\connect "shop"', "begin;")
    assert steps[-1] == 'alter database "shop" owner to "owner";'
    # PostgreSQL itself turns the old owner's rights into the new one's: nothing to grant.
    assert (commit, back) == ("commit;", "\\connect postgres")
    assert any("= 'old'" in line for line in steps)
    # `reassign owned` would also change the owner of the old owner's other databases.
    assert not any("reassign" in line.lower() for line in steps)


def test_a_database_that_refuses_connections_is_opened_before_its_hand_over() -> None:
    acl = [("old" if one == "owner" else one, right) for one, right in SHOP_NOW["acl"]]
    opened, *rest = database(owner="old", acl=acl, connectable=False)
    assert opened == 'alter database "shop" allow_connections true;'
    assert rest == database(owner="old", acl=acl)


def test_an_old_owner_that_is_still_declared_loses_its_rights() -> None:
    """The declared role `stranger` owned the database, without access to it."""
    acl = [("stranger", right) for _, right in OWNED] + SHOP_NOW["acl"][3:]
    said = database(owner="stranger", acl=acl, role_settings={"mig": ["role=stranger"]})
    assert said[said.index("\\connect postgres") + 1 :] == [
        """alter role "mig" in database "shop" set role to 'owner';"""
    ]


def test_the_maintenance_database_is_closed_to_all_roles() -> None:
    closed = ['revoke connect, temporary on database "postgres" from public;']
    assert list(closed_sql("postgres", None, DECLARED)) == closed
    now = DatabaseState(**{**SHOP_NOW, "acl": [("public", "TEMPORARY"), ("public", "CONNECT")]})
    assert list(closed_sql("postgres", now, DECLARED)) == closed
    one = DatabaseState(**{**SHOP_NOW, "acl": [("public", "CONNECT"), ("backup", "CONNECT")]})
    assert list(closed_sql("postgres", one, DECLARED)) == [
        'revoke connect on database "postgres" from public;'
    ]
    two = DatabaseState(**{**SHOP_NOW, "acl": [("reader", "CONNECT"), ("backup", "CONNECT")]})
    assert list(closed_sql("postgres", two, DECLARED)) == [
        'revoke connect on database "postgres" from "reader";'
    ]
    handed = DatabaseState(**{**SHOP_NOW, "acl": [], "handed": [("x", "reader", "CONNECT")]})
    assert list(closed_sql("postgres", handed, DECLARED)) == [
        'revoke grant option for connect on database "postgres" from "x" cascade;'
    ]


# --- contents -------------------------------------------------------------------------------------

RIGHTS = 'alter default privileges for role "owner" in schema "{}" grant '


def first_grants(name: str) -> list[str]:
    """The SQL for an empty schema."""
    rights = RIGHTS.format(name)
    return [
        f'grant usage on schema "{name}" to "reader";',
        f'{rights}select on tables to "reader";',
        f'{rights}select on sequences to "reader";',
        f'grant usage on schema "{name}" to "writer";',
        f'{rights}delete, insert, select, update on tables to "writer";',
        f'{rights}select, update, usage on sequences to "writer";',
    ]


def test_a_new_database_gets_schemas_rights_and_then_extensions() -> None:
    """An extension may need a declared schema, and types of another extension."""
    assert list(content_sql(SHOP, None, DECLARED)) == [
        *first_grants("public"),
        'create schema "jobs" authorization "owner";',
        *first_grants("jobs"),
        'set local search_path to "public";',
        'create extension "hstore" cascade;',
        'create extension "pg_trgm" cascade;',
    ]


def test_a_database_without_access_needs_no_statement_for_its_schema() -> None:
    assert list(content_sql(Database(name="api", owner="api"), None, DECLARED)) == []


def test_an_extension_that_is_missing() -> None:
    now = ContentState(**{**CONTENT_NOW, "extensions": ["plpgsql", "pg_trgm"]})
    # Our sessions search only pg_catalog, but an extension needs a schema.
    assert list(content_sql(SHOP, now, DECLARED)) == [
        'set local search_path to "public";',
        'create extension "hstore" cascade;',
    ]


def test_an_extension_that_is_not_declared_is_left_alone() -> None:
    now = ContentState(**{**CONTENT_NOW, "extensions": [*CONTENT_NOW["extensions"], "citext"]})
    assert list(content_sql(SHOP, now, DECLARED)) == []


def test_a_missing_schema_is_created_for_the_owner() -> None:
    public = {"public": CONTENT_NOW["schemas"]["public"]}
    now = ContentState({**CONTENT_NOW, "schemas": public})
    assert list(content_sql(SHOP, now, DECLARED)) == [
        'create schema "jobs" authorization "owner";',
        *first_grants("jobs"),
    ]


def test_other_roles_keep_their_rights_in_an_undeclared_schema() -> None:
    bare = SchemaState(
        {
            **schema("dba", 0, 0),
            "acl": [("public", "CREATE"), ("backup", "CREATE")],
            "tables": 2,
            "table_acl": [("backup", "INSERT", 2)],
            "sequence_acl": [],
            "default_acl": [("owner", "r", "backup", "SELECT", False)],
            "strangers": [("reader", "r", 1)],
        }
    )
    assert undeclared(bare) == []


def undeclared(one: SchemaState) -> list[str]:
    """The SQL for a schema that the settings do not name."""
    schemas = {**CONTENT_NOW["schemas"], "private": one}
    return list(content_sql(SHOP, ContentState({**CONTENT_NOW, "schemas": schemas}), DECLARED))


def test_declared_roles_have_no_rights_in_an_undeclared_schema() -> None:
    """The owners of the schema and of the database keep their rights."""
    left = SchemaState(
        {
            **schema("mig", 2, 1, ("public", "USAGE"), ("owner", "USAGE"), ("mig", "CREATE")),
            "handed": [("r", "writer", "", "SELECT"), ("r", "backup", "", "UPDATE")],
        }
    )
    default = 'alter default privileges for role "owner" in schema "private" revoke '
    assert undeclared(left) == [
        'revoke grant option for select on all tables in schema "private" from "writer" cascade;',
        'revoke usage on schema "private" from "reader";',
        'revoke select on all tables in schema "private" from "reader";',
        f'{default}select on tables from "reader";',
        'revoke select on all sequences in schema "private" from "reader";',
        f'{default}select on sequences from "reader";',
        'revoke usage on schema "private" from "writer";',
        'revoke delete, insert, select, update on all tables in schema "private" from "writer";',
        f'{default}delete, insert, select, update on tables from "writer";',
        'revoke select, update, usage on all sequences in schema "private" from "writer";',
        f'{default}select, update, usage on sequences from "writer";',
    ]
    # Schemas of extensions are not changed.
    assert undeclared(SchemaState({**left, "of_extension": True})) == []


@pytest.mark.parametrize(
    ("handed", "said"),
    [
        # No declared role takes part.
        ([("r", "backup", "", "SELECT"), ("r", "backup", "auditor", "SELECT")], []),
        # A declared role has the grant option; or has the right from a role with the option, whose
        # other grant options stay.
        (
            [("n", "writer", "", "USAGE")],
            ['usage on schema "public" from "writer"'],
        ),
        (
            [
                ("r", "backup", "", "SELECT"),
                ("r", "backup", "reader", "SELECT"),
                ("r", "backup", "", "UPDATE"),
                ("S", "backup", "", "SELECT"),
            ],
            ['select on all tables in schema "public" from "backup"'],
        ),
        # A chain of grants: the owner revokes each option in it.
        (
            [
                ("S", "backup", "", "USAGE"),
                ("S", "backup", "dba", "USAGE"),
                ("S", "dba", "reader", "USAGE"),
            ],
            [
                'usage on all sequences in schema "public" from "backup"',
                'usage on all sequences in schema "public" from "dba"',
            ],
        ),
        # The owner has the right from a role that it gave the option.
        ([("r", "backup", "owner", "SELECT")], []),
        ([("r", 'x" y', "reader", "SELECT")],
         ['select on all tables in schema "public" from "x"" y"']),
    ],
)  # fmt: skip
def test_the_grant_option_is_revoked_where_a_declared_role_takes_part(
    handed: Any, said: list[str]
) -> None:
    lines = [line for line in content(handed=handed) if not line.startswith("select ")]
    assert lines == [f"revoke grant option for {one} cascade;" for one in said]


def test_undeclared_roles_keep_rights_that_others_granted_them() -> None:
    """The owner grants the right first, because the cascade would take it away."""
    handed = [
        ("backup", "", "CONNECT"), ("backup", "reader", "CONNECT"),
        ("backup", 'x" y', "CONNECT"), ("backup", "public", "CONNECT"),
    ]  # fmt: skip
    assert database(handed=handed) == [
        'grant connect on database "shop" to "x"" y";',
        'revoke grant option for connect on database "shop" from "backup" cascade;',
    ]
    inside: list[tuple[str, str, str, str]] = [
        *(("n", *one) for one in (("backup", "reader", "USAGE"), ("backup", "public", "USAGE"))),
        *(("r", "backup", taker, "SELECT") for taker in ("reader", "it's", "public")),
        # No declared role takes part in this one.
        ("r", "backup", "auditor", "UPDATE"),
    ]
    usage, keep, *cut = content(handed=inside)
    assert usage == 'grant usage on schema "public" to public;'
    assert keep.startswith("select format('grant select on table %s to %s;', ")
    assert keep.endswith(" in ('it''s', 'public') \\gexec")
    assert "nspname = 'public'" in keep
    assert cut == [
        'revoke grant option for usage on schema "public" from "backup" cascade;',
        'revoke grant option for select on all tables in schema "public" from "backup" cascade;',
    ]


def test_a_declared_right_granted_by_another_role_is_granted_by_the_owner() -> None:
    """Revoking the grant option also revokes the grants made with it."""
    drift = now("table_acl", without=[("reader", "SELECT", 3)])
    assert content(**drift, handed=[("r", "backup", "reader", "SELECT")]) == [
        'revoke grant option for select on all tables in schema "public" from "backup" cascade;',
        'grant select on all tables in schema "public" to "reader";',
    ]
    connect = {"handed": [("writer", "", "CONNECT"), ("writer", "stranger", "CONNECT")]}
    assert database(**connect) == [
        'revoke grant option for connect on database "shop" from "writer" cascade;'
    ]


def test_rights_that_another_role_granted_to_public() -> None:
    """Through PUBLIC each declared role has them. Rights of PUBLIC on tables are left alone."""
    cut = 'revoke grant option for {} from "backup" cascade;'
    handed = [("backup", "", "CONNECT"), ("backup", "public", "CONNECT")]
    assert database(handed=handed) == [cut.format('connect on database "shop"')]
    now = DatabaseState(**{**SHOP_NOW, "acl": [], "handed": handed})
    assert list(closed_sql("postgres", now, set())) == [
        cut.format('connect on database "postgres"')
    ]
    inside: list[tuple[str, str, str, str]] = [
        ("n", "backup", "public", "CREATE"),
        ("n", "backup", "public", "USAGE"),
    ]
    assert content(handed=inside) == [cut.format('create on schema "public"')]
    assert content(handed=[("r", "backup", "public", "SELECT")]) == []
    private = SchemaState(
        {
            **CONTENT_NOW["schemas"]["public"],
            "acl": [],
            "table_acl": [],
            "sequence_acl": [],
            "default_acl": [],
            "handed": inside,
        }
    )
    assert undeclared(private) == []


def test_default_rights_have_no_grant_option() -> None:
    drift = now(
        "default_acl",
        without=[("owner", "r", "reader", "SELECT", False)],
        more=[("owner", "r", "reader", "SELECT", True)],
    )
    assert content(**drift) == [f'{DEFAULT}revoke grant option for select on tables from "reader";']


def test_default_rights_in_all_schemas() -> None:
    """Declared roles have none in all schemas; those of other creators or grantees stay."""
    default = [
        ("owner", "r", "reader", "SELECT"), ("owner", "r", "writer", "INSERT"),
        ("owner", "r", "writer", "DELETE"), ("owner", "n", "mig", "USAGE"),
        ("owner", "r", "backup", "SELECT"), ("dba", "r", "reader", "SELECT"),
        ("owner", "f", "reader", "EXECUTE"),
    ]  # fmt: skip
    known = ContentState({**CONTENT_NOW, "default_acl": default})
    assert list(content_sql(SHOP, known, DECLARED)) == [
        'alter default privileges for role "owner" revoke select on tables from "reader";',
        'alter default privileges for role "owner" revoke delete, insert on tables from "writer";',
        'alter default privileges for role "owner" revoke usage on schemas from "mig";',
    ]


@pytest.mark.parametrize(
    ("name", "owner", "said"),
    [
        ("jobs", "dba", ['alter schema "jobs" owner to "owner";']),
        ("jobs", "pg_database_owner", ['alter schema "jobs" owner to "owner";']),
        ("public", "postgres", ['alter schema "public" owner to "pg_database_owner";']),
        # The owner of the database may own the schema directly.
        ("public", "owner", []),
    ],
)
def test_a_schema_with_another_owner(name: str, owner: str, said: list[str]) -> None:
    assert content(of=name, owner=owner) == said


def now(kind: str, *, without: Any = (), more: Any = ()) -> dict[str, Any]:
    """A list of rights in the schema public, with differences."""
    have: Any = CONTENT_NOW["schemas"]["public"][kind]  # type: ignore[literal-required]
    assert set(without) <= set(have)
    return {kind: [*(one for one in have if one not in without), *more]}


DEFAULT = 'alter default privileges for role "owner" in schema "public" '


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        # the schema
        (
            now("acl", more=[("public", "CREATE")]),
            'revoke create on schema "public" from public;',
        ),
        (
            now("acl", without=[("reader", "USAGE")]),
            'grant usage on schema "public" to "reader";',
        ),
        (
            now("acl", more=[("writer", "CREATE")]),
            'revoke create on schema "public" from "writer";',
        ),
        (
            now("acl", more=[("mig", "CREATE"), ("mig", "USAGE")]),
            'revoke create, usage on schema "public" from "mig";',
        ),
        # tables: another role has created one of the three
        (
            now("table_acl", without=[("reader", "SELECT", 3)], more=[("reader", "SELECT", 2)]),
            'grant select on all tables in schema "public" to "reader";',
        ),
        (
            now("table_acl", without=[("reader", "SELECT", 3)]),
            'grant select on all tables in schema "public" to "reader";',
        ),
        (
            now("table_acl", without=[("writer", "DELETE", 3)], more=[("writer", "DELETE", 1)]),
            'grant delete on all tables in schema "public" to "writer";',
        ),
        (
            now("table_acl", more=[("reader", "INSERT", 1)]),
            'revoke insert on all tables in schema "public" from "reader";',
        ),
        (
            now("table_acl", more=[("writer", "TRUNCATE", 3), ("writer", "TRIGGER", 1)]),
            'revoke trigger, truncate on all tables in schema "public" from "writer";',
        ),
        (
            now("table_acl", more=[("mig", "SELECT", 1)]),
            'revoke select on all tables in schema "public" from "mig";',
        ),
        # sequences
        (
            now("sequence_acl", without=[("writer", "USAGE", 1)]),
            'grant usage on all sequences in schema "public" to "writer";',
        ),
        (
            now("sequence_acl", more=[("reader", "USAGE", 1)]),
            'revoke usage on all sequences in schema "public" from "reader";',
        ),
        # future objects
        (
            now("default_acl", without=[("owner", "r", "reader", "SELECT", False)]),
            f'{DEFAULT}grant select on tables to "reader";',
        ),
        (
            now("default_acl", without=[("owner", "S", "writer", "USAGE", False)]),
            f'{DEFAULT}grant usage on sequences to "writer";',
        ),
        (
            now("default_acl", more=[("owner", "r", "reader", "UPDATE", False)]),
            f'{DEFAULT}revoke update on tables from "reader";',
        ),
        (
            now("default_acl", more=[("owner", "S", "mig", "USAGE", False)]),
            f'{DEFAULT}revoke usage on sequences from "mig";',
        ),
        # Default rights on objects that another role creates do not count.
        (
            now(
                "default_acl",
                without=[("owner", "r", "reader", "SELECT", False)],
                more=[("dba", "r", "reader", "SELECT", False)],
            ),
            f'{DEFAULT}grant select on tables to "reader";',
        ),
    ],
)
def test_rights_that_are_not_as_declared(drift: dict[str, Any], said: str) -> None:
    assert content(**drift) == [said]


def test_a_new_table_lacks_every_right() -> None:
    """For example one that another role created."""
    assert content(tables=4) == [
        'grant select on all tables in schema "public" to "reader";',
        'grant delete, insert, select, update on all tables in schema "public" to "writer";',
    ]


def test_a_schema_without_tables_lacks_no_right() -> None:
    assert content(tables=0, table_acl=[], sequences=0, sequence_acl=[]) == []


def test_rights_in_one_schema_do_not_count_in_another() -> None:
    jobs = CONTENT_NOW["schemas"]["jobs"]
    assert content(of="jobs", acl=[one for one in jobs["acl"] if one[0] != "reader"]) == [
        'grant usage on schema "jobs" to "reader";'
    ]


def test_a_reader_that_becomes_a_writer_and_back() -> None:
    """Each right is granted once, and only to this role."""
    up = SHOP.model_copy(
        update={"access": {"reader": "write", "writer": "write", "mig": "migrate"}}
    )
    said = list(database_sql(up, SHOP_NOW, DECLARED)) + list(content_sql(up, CONTENT_NOW, DECLARED))
    assert said[0] == 'grant temporary on database "shop" to "reader";'
    assert len(said) == 9
    assert all(" grant " in f" {line}" and line.endswith(' to "reader";') for line in said)
    down = SHOP.model_copy(update={"access": {**SHOP.access, "writer": "read"}})
    said = list(database_sql(down, SHOP_NOW, DECLARED)) + list(
        content_sql(down, CONTENT_NOW, DECLARED)
    )
    assert said[0] == 'revoke temporary on database "shop" from "writer";'
    assert len(said) == 9
    assert all(" revoke " in f" {line}" and line.endswith(' from "writer";') for line in said)


def test_a_role_that_starts_to_migrate_loses_its_own_rights() -> None:
    more = SHOP.model_copy(update={"access": {**SHOP.access, "writer": "migrate"}})
    assert list(database_sql(more, SHOP_NOW, DECLARED)) == [
        """alter role "writer" in database "shop" set role to 'owner';""",
        'revoke connect, temporary on database "shop" from "writer";',
    ]
    said = list(content_sql(more, CONTENT_NOW, DECLARED))
    assert len(said) == 10
    assert all("revoke " in line and line.endswith(' from "writer";') for line in said)


def test_a_declared_role_without_access_cannot_connect() -> None:
    less = SHOP.model_copy(update={"access": {"reader": "read", "mig": "migrate"}})
    assert list(database_sql(less, SHOP_NOW, DECLARED)) == [
        'revoke connect, temporary on database "shop" from "writer";'
    ]


def test_a_declared_role_without_access_loses_all_rights_in_the_schemas() -> None:
    """The role may still connect, as a member of another role."""
    less = SHOP.model_copy(update={"access": {"reader": "read", "mig": "migrate"}})
    said = list(content_sql(less, CONTENT_NOW, DECLARED))
    default = 'alter default privileges for role "owner" in schema "{}" revoke '
    assert said == [
        line
        for name in ("public", "jobs")
        for line in (
            f'revoke usage on schema "{name}" from "writer";',
            f'revoke delete, insert, select, update on all tables in schema "{name}" '
            'from "writer";',
            f'{default.format(name)}delete, insert, select, update on tables from "writer";',
            f'revoke select, update, usage on all sequences in schema "{name}" from "writer";',
            f'{default.format(name)}select, update, usage on sequences from "writer";',
        )
    ]
    # Undeclared roles keep their rights.
    assert list(content_sql(less, CONTENT_NOW, DECLARED - {"writer"})) == []


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        # Each right alone is noticed.
        (
            now("acl", more=[("stranger", "USAGE")]),
            'revoke usage on schema "public" from "stranger";',
        ),
        (
            now("table_acl", more=[("stranger", "SELECT", 1)]),
            'revoke select on all tables in schema "public" from "stranger";',
        ),
        (
            now("sequence_acl", more=[("stranger", "UPDATE", 1)]),
            'revoke update on all sequences in schema "public" from "stranger";',
        ),
        (
            now("default_acl", more=[("owner", "r", "stranger", "SELECT", False)]),
            f'{DEFAULT}revoke select on tables from "stranger";',
        ),
        # Default rights on objects that another role creates are left alone.
        (now("default_acl", more=[("dba", "r", "stranger", "SELECT", False)]), None),
        # The role keeps the tables that it owns.
        ({"strangers": [("stranger", "r", 2)]}, None),
        # The owner of the database appears in the list if another role owns the schema.
        (now("acl", more=[("owner", "USAGE"), ("owner", "CREATE")]), None),
        (now("table_acl", more=[("owner", "SELECT", 1)]), None),
    ],
)
def test_rights_of_declared_roles_that_have_no_access(
    drift: dict[str, Any], said: str | None
) -> None:
    assert content(**drift) == ([said] if said else [])


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        # The role owns two of three tables: an owner is not in the list of rights.
        (
            {
                **now(
                    "table_acl",
                    without=[("writer", right, 3) for right in WRITES],
                    more=[("writer", right, 1) for right in WRITES],
                ),
                "strangers": [("writer", "r", 2)],
            },
            [],
        ),
        # The role owns all tables.
        (
            {
                **now("table_acl", without=[("reader", "SELECT", 3)]),
                "strangers": [("reader", "r", 3)],
            },
            [],
        ),
        # One of three tables still lacks the right.
        (
            {
                **now(
                    "table_acl",
                    without=[("reader", "SELECT", 3)],
                    more=[("reader", "SELECT", 1)],
                ),
                "strangers": [("reader", "r", 1)],
            },
            ['grant select on all tables in schema "public" to "reader";'],
        ),
        # Tables of another role do not count, nor do sequences instead of tables.
        (
            {
                **now(
                    "table_acl",
                    without=[("reader", "SELECT", 3)],
                    more=[("reader", "SELECT", 2)],
                ),
                **now("sequence_acl", without=[("reader", "SELECT", 1)]),
                "strangers": [("dba", "r", 1), ("reader", "S", 1)],
            },
            ['grant select on all tables in schema "public" to "reader";'],
        ),
        # The role owns the sequence.
        (
            {
                **now("sequence_acl", without=[("reader", "SELECT", 1)]),
                "strangers": [("reader", "S", 1)],
            },
            [],
        ),
        # More than `read` on tables of others is revoked, even if the role owns some.
        (
            {
                **now("table_acl", more=[("reader", "INSERT", 1)]),
                "tables": 3,
                "strangers": [("dba", "r", 3)],
            },
            ['revoke insert on all tables in schema "public" from "reader";'],
        ),
    ],
)
def test_a_role_has_its_rights_in_the_tables_that_it_owns(
    drift: dict[str, Any], said: list[str]
) -> None:
    assert content(**drift) == said

"""Which roles and databases the settings may declare, and which role connects to which database."""

import re
from itertools import pairwise
from typing import Any

import pytest
from pyinfra.api import DeployError

from terrafirma.postgres.extensions import CONTRIB, EXTENSION_PACKAGES, PRELOADED, packages_of
from terrafirma.postgres.given import passwords
from terrafirma.postgres.settings import Postgres
from terrafirma.settings import Settings
from tests.unit.settings import HOST, numbered, of, refusal, refusal_of

# --- bad data -------------------------------------------------------------------------------------

BAD_ROLES: list[tuple[Any, str, str]] = [
    # a bad role, after a good one; the key; what would be right
    ("worker", "postgres_roles.1", "valid dictionary"),
    ({}, "postgres_roles.1.name", "Field required"),
    ({"name": "api~"}, "postgres_roles.1.name", "'api~' does not match"),
    ({"name": "grant"}, "postgres_roles.1.name", "'grant' is reserved"),
    # The second login adds a ~, and PostgreSQL cuts names to 63 characters.
    ({"name": "a" * 63}, "postgres_roles.1", "is too long: 62 characters fit"),
    ({"name": "a", "login": "perhaps"}, "postgres_roles.1.login", "valid boolean"),
    ({"name": "a", "member_of": "api"}, "postgres_roles.1.member_of", "must be a list"),
    (
        {"name": "a", "member_of": ["api", "api"]},
        "postgres_roles.1: member_of",
        "'api' is there twice",
    ),
    (
        {"name": "a", "member_of": ["ap"]},
        "postgres_roles: a is a member of 'ap'",
        "not in postgres_roles (a, api)",
    ),
    (
        {"name": "a", "member_of": ["a"]},
        "postgres_roles: ",
        "a role cannot be a member of itself: a in a (",
    ),
    # Roles that write any file, run any program or read every table.
    *(
        (
            {"name": "a", "member_of": [name]},
            "postgres_roles.1.member_of.0",
            f"'{name}' is reserved",
        )
        for name in (
            *("pg_write_server_files", "pg_execute_server_program", "pg_database_owner"),
            *("pg_read_all_data", "postgres"),
        )
    ),
    ({"name": "a", "settings": ["jit"]}, "postgres_roles.1.settings", "dictionary"),
    ({"name": "a", "settings": {"a b": 1}}, "postgres_roles.1.settings", "does not match"),
    (
        {"name": "a", "settings": {"search_path": ["a", "b"]}},
        "postgres_roles.1.settings.search_path",
        "use True, False, a number or text",
    ),
    (
        {"name": "a", "settings": {"search_path": "a\nb"}},
        "postgres_roles.1.settings.search_path",
        "line break",
    ),
    (
        {"name": "a", "settings": {"jit": None}},
        "postgres_roles.1.settings.jit",
        "None is not a valid value",
    ),
    ({"name": "a", "password": "env:A-B"}, "postgres_roles.1.password", "does not match"),
    ({"name": "a", "password": "env:"}, "postgres_roles.1.password", "does not match"),
    ({"name": "a", "password": "env:A\n"}, "postgres_roles.1.password", "does not match"),
    (
        {"name": "a", "password": "env:A", "login": False},
        "postgres_roles.1",
        "password: a does not log in",
    ),
    (
        {"name": "a", "connection_limit": "many"},
        "postgres_roles.1.connection_limit",
        "valid integer",
    ),
]
BAD_DATABASES: list[tuple[dict[str, Any], str, str]] = [
    # a bad database, after a good one; the key; what would be right
    ({}, "postgres_databases.1.name", "Field required"),
    ({"name": "a-b"}, "postgres_databases.1.name", "'a-b' does not match"),
    ({"name": "template1"}, "postgres_databases.1.name", "reserved"),
    ({"name": "a", "onwer": "api"}, "postgres_databases.1.onwer", "no such key"),
    (
        {"name": "a", "owner": "Api"},
        "postgres_databases.1.owner",
        "'Api' does not match",
    ),
    (
        {"name": "a", "access": {"op": "read"}},
        "postgres_databases: a gives access to 'op'",
        "not in postgres_roles (api, ops)",
    ),
    (
        {"name": "a", "access": {"public": "read"}},
        "postgres_databases.1.access.public",
        "reserved",
    ),
    (
        {"name": "a", "access": {"ops": "admin"}},
        "postgres_databases.1.access.ops",
        "'read', 'write' or 'migrate'",
    ),
    ({"name": "a", "access": ["ops"]}, "postgres_databases.1.access", "dictionary"),
    (
        {"name": "a", "access": {"api": "read"}},
        "postgres_databases.1",
        "access: 'api' owns a",
    ),
    ({"name": "a", "schemas": ["x", "x"]}, "postgres_databases.1: schemas", "'x' is there"),
    ({"name": "a", "schemas": ["pg_x"]}, "postgres_databases.1.schemas.0", "reserved"),
    ({"name": "a", "schemas": ["a b"]}, "postgres_databases.1.schemas.0", "match"),
    ({"name": "a", "schemas": "public"}, "postgres_databases.1.schemas", "must be a list"),
    (
        {"name": "a", "extensions": ["hstore", "hstore"]},
        "postgres_databases.1: extensions",
        "'hstore' is there twice",
    ),
    (
        {"name": "a", "extensions": ["hstor"]},
        "postgres_databases: a",
        "'hstor', did you mean hstore?",
    ),
    (
        {"name": "a", "extensions": ["zzzzzz"]},
        "postgres_databases: a",
        "name it in postgres_packages",
    ),
    (
        {"name": "a", "extensions": ['x"; drop']},
        "postgres_databases.1.extensions.0",
        "does not match",
    ),
    ({"name": "a", "encoding": "KOI8R"}, "postgres_databases.1.encoding", "'UTF8'"),
    (
        {"name": "a", "encoding": "LATIN1"},
        "postgres_databases.1",
        "encoding: LATIN1 needs the locale C, not C.UTF-8",
    ),
    (
        {"name": "a", "encoding": "LATIN1", "locale": "de-DE"},
        "postgres_databases.1",
        "encoding: LATIN1 needs the locale C",
    ),
    *(
        ({"name": "a", "locale": one}, "postgres_databases.1.locale", "does not match")
        for one in ("de_DE.UTF-8", "C.utf8", "", "de-DE'", "german", "de-DE\n")
    ),
    (
        {"name": "a", "connection_limit": -2},
        "postgres_databases.1.connection_limit",
        "greater than or equal to -1",
    ),
    (
        {"name": "a", "settings": {"search_path": ("a", "b")}},
        "postgres_databases.1.settings.search_path",
        "use True, False, a number or text",
    ),
    (
        {"name": "a", "settings": {"jit": "on\r"}},
        "postgres_databases.1.settings.jit",
        "line break",
    ),
]
BAD: list[tuple[type[Settings], dict[str, Any], str, str]] = [
    # the settings; the key that the message names; what would be right
    (Postgres, {"postgres_version": "new"}, "postgres_version", "'new' is no version"),
    (Postgres, {"postgres_version": 9}, "postgres_version", "15 to 30, not 9"),
    (Postgres, {"postgres_version": 99}, "postgres_version", "15 to 30, not 99"),
    (Postgres, {"postgres_version": "9.6"}, "postgres_version", "15 to 30, not 9"),
    (Postgres, {"postgres_version": 17.1}, "postgres_version", "as text, in quotes: '17.5'"),
    (Postgres, {"postgres_version": "17.5.1"}, "postgres_version", "neither a major version"),
    (Postgres, {"postgres_version": "17."}, "postgres_version", "write '17'"),
    (Postgres, {"postgres_version": "v17.5"}, "postgres_version", "write '17.5'"),
    (Postgres, {"postgres_version": True}, "postgres_version", "no text"),
    (Postgres, {"postgres_port": 0}, "postgres_port", "greater than or equal to 1"),
    (Postgres, {"postgres_port": 65536}, "postgres_port", "less than or equal to 65535"),
    (
        Postgres,
        {"postgres_max_connections": 3},
        "postgres_max_connections",
        "greater than or equal",
    ),
    (Postgres, {"postgres_roles": "api"}, "postgres_roles", "must be a list"),
    (
        Postgres,
        {"postgres_roles": [{"name": "api", "superuser": True}]},
        "postgres_roles.0",
        "no such key",
    ),
    (Postgres, {"postgres_roles": [{"name": 'a"b'}]}, "postgres_roles.0.name", "does not match"),
    (Postgres, {"postgres_roles": [{"name": "a'b"}]}, "postgres_roles.0.name", "does not match"),
    (Postgres, {"postgres_roles": [{"name": "a b"}]}, "postgres_roles.0.name", "does not match"),
    (Postgres, {"postgres_roles": [{"name": "a\n"}]}, "postgres_roles.0.name", "does not match"),
    (Postgres, {"postgres_roles": [{"name": "a" * 64}]}, "postgres_roles.0.name", "does not match"),
    (Postgres, {"postgres_roles": [{"name": ""}]}, "postgres_roles.0.name", "does not match"),
    (Postgres, {"postgres_roles": [{"name": "API"}]}, "postgres_roles.0.name", "does not match"),
    (
        Postgres,
        {"postgres_roles": [{"name": "api", "connection_limit": -2}]},
        "postgres_roles.0.connection_limit",
        "greater than or equal to -1",
    ),
    (
        Postgres,
        {"postgres_roles": [{"name": "api"}, {"name": "api"}]},
        "postgres_roles",
        "'api' is there twice",
    ),
    (
        Postgres,
        {"postgres_databases": [{"name": "api", "owner": "api"}] * 2},
        "postgres_databases",
        "'api' is there twice",
    ),
    (
        Postgres,
        {"postgres_databases": [{"name": "api", "owner": "ap"}]},
        "postgres_databases",
        "not in postgres_roles (api)",
    ),
    (
        Postgres,
        {"postgres_roles": [], "postgres_databases": [{"name": "api", "owner": "api"}]},
        "postgres_databases",
        "not in postgres_roles (empty)",
    ),
    (Postgres, {"postgres_settings": {"port": 1}}, "postgres_settings", "port is derived"),
    (
        Postgres,
        {"postgres_settings": {"allow_alter_system": False}},
        "postgres_settings: ",
        "allow_alter_system cannot be set here: ",
    ),
    (
        Postgres,
        {"postgres_settings": {"hba_file": "x"}},
        "postgres_settings",
        "hba_file is derived",
    ),
    (
        Postgres,
        {"postgres_settings": {"work mem": 1}},
        "postgres_settings",
        "'work mem' does not match",
    ),
    (Postgres, {"postgres_settings": {"a\nb": 1}}, "postgres_settings", "does not match"),
    (Postgres, {"postgres_settings": {"work_mem": None}}, "postgres_settings.work_mem", "valid"),
    (
        Postgres,
        {"postgres_settings": {"work_mem": "1\nhba_file = '/tmp/x'"}},
        "postgres_settings.work_mem",
        "line break",
    ),
    # roles
    *(
        (Postgres, {"postgres_roles": [{"name": "api"}, role]}, key, right)
        for role, key, right in BAD_ROLES
    ),
    (
        Postgres,
        {
            "postgres_roles": [
                {"name": "api", "member_of": ["b"]},
                {"name": "b", "member_of": ["c"]},
                {"name": "c", "member_of": ["api"]},
            ]
        },
        "postgres_roles: ",
        "a role cannot be a member of itself: ",
    ),
    # databases
    *(
        (
            Postgres,
            {
                "postgres_roles": [{"name": "api"}, {"name": "ops"}],
                "postgres_databases": [{"name": "api", "owner": "api"}, {"owner": "api", **base}],
            },
            key,
            right,
        )
        for base, key, right in BAD_DATABASES
    ),
    # A role that migrates is a member of the owner.
    (
        Postgres,
        {
            "postgres_roles": [{"name": "api", "member_of": ["ops"]}, {"name": "ops"}],
            "postgres_databases": [{"name": "a", "owner": "api", "access": {"ops": "migrate"}}],
        },
        "postgres_roles: ",
        "(member_of, or access to migrate)",
    ),
    (
        Postgres,
        {
            "postgres_roles": [{"name": "api"}, {"name": "ops"}],
            "postgres_databases": [
                {"name": "a", "owner": "api", "access": {"ops": "migrate"}},
                {"name": "b", "owner": "ops", "access": {"api": "migrate"}},
            ],
        },
        "postgres_roles: ",
        "a role cannot be a member of itself: ",
    ),
    *(
        (Postgres, {"postgres_settings": {name: 1}}, "postgres_settings", f"{name} is derived")
        for name in (
            *("listen_addresses", "max_connections", "password_encryption", "data_directory"),
            *("config_file", "ident_file", "external_pid_file", "db_user_namespace"),
            *("include", "include_dir", "include_if_exists"),
        )
    ),
    *(
        (
            Postgres,
            {"postgres_settings": {"unix_socket_directories": value}},
            "postgres_settings",
            "is no list of absolute paths",
        )
        for value in ("", "run/postgresql", "/run/postgresql,", "@postgres", ", /tmp", 7)
    ),
    (Postgres, {"postgres_packages": ["a b"]}, "postgres_packages.0", "'a b' does not match"),
    (Postgres, {"postgres_packages": ["--purge"]}, "postgres_packages.0", "does not match"),
    (Postgres, {"postgres_max_connections": 20_000}, "postgres_max_connections", "less than"),
    (Postgres, {"postgres_memory_percent": 95}, "postgres_memory_percent", "less than or equal"),
]


@pytest.mark.parametrize(("section", "data", "key", "right"), numbered(BAD, 2))
def test_bad_data_names_the_key_and_what_would_be_right(
    section: type[Settings], data: dict[str, Any], key: str, right: str
) -> None:
    message = refusal(section, **data)
    assert key in message
    assert right in message


@pytest.mark.parametrize(
    "name",
    [
        *("postgres", "public", "none", "template0", "template1", "pg_monitor", "pg_x"),
        *("all", "sameuser", "samerole", "replication", "user", "current_user", "session_user"),
        # Key words, which people type without quotes.
        *("order", "select", "table", "grant", "group", "end", "default", "analyze", "limit"),
        *("system_user", "lateral", "window", "offset", "references", "placing", "primary"),
    ],
)
def test_names_of_postgresqls_own_are_refused(name: str) -> None:
    """As a role, as a database, and as the database of an application."""
    assert name in refusal(Postgres, postgres_roles=[{"name": name}], postgres_databases=[])
    databases = [{"name": name, "owner": "api"}]
    assert "reserved" in refusal(Postgres, postgres_databases=databases)
    assert "apps.api.database: " in refusal_of(database=name)


def test_a_password_in_the_settings_is_not_shown() -> None:
    message = refusal(Postgres, postgres_roles=[{"name": "api", "password": "hunter2-in-data"}])
    assert "postgres_roles.0.password: the value does not match ^$|^env:" in message
    assert "hunter2" not in message


# --- good data ------------------------------------------------------------------------------------


def test_settings_of_postgresql_keep_their_types() -> None:
    settings = {
        "jit": False,
        "work_mem": "64MB",
        "effective_io_concurrency": 200,
        "seq_page_cost": 1.5,
    }
    read = of(Postgres, postgres_settings=settings).settings
    assert read == settings
    assert [type(value) for value in read.values()] == [bool, str, int, float]


def test_one_role_may_own_two_databases() -> None:
    databases = [{"name": "api", "owner": "api"}, {"name": "jobs", "owner": "api"}]
    assert len(of(Postgres, postgres_databases=databases).databases) == 2


# --- who connects ---------------------------------------------------------------------------------


def cluster(roles: list[dict[str, Any]], *databases: dict[str, Any], **more: Any) -> Postgres:
    return of(Postgres, postgres_roles=roles, postgres_databases=list(databases), **more)


@pytest.mark.parametrize("value", ["/run/postgresql", "/run/postgresql, /tmp", "/a,/b"])
def test_the_superuser_may_connect_through_other_sockets(value: str) -> None:
    settings = cluster([{"name": "api"}], postgres_settings={"unix_socket_directories": value})
    assert settings.settings == {"unix_socket_directories": value}


def test_exactly_the_roles_with_rights_in_a_database_connect() -> None:
    settings = cluster(
        [{"name": name} for name in ("api", "jobs", "reader", "writer", "mig", "stranger")],
        {
            "name": "shop",
            "owner": "api",
            "access": {"reader": "read", "writer": "write", "mig": "migrate"},
        },
        {"name": "queue", "owner": "jobs"},
    )
    assert settings.visitors == (
        *(("shop", name) for name in ("api", "reader", "writer", "mig")),
        ("queue", "jobs"),
    )


def test_members_of_members_connect() -> None:
    """Groups themselves do not, nor does a membership in one of PostgreSQL's roles suffice."""
    settings = cluster(
        [
            {"name": "owners", "login": False},
            {"name": "readers", "login": False},
            {"name": "analysts", "login": False, "member_of": ["readers"]},
            {"name": "ann", "member_of": ["analysts"]},
            {"name": "ops", "member_of": ["owners"]},
            {"name": "watcher", "member_of": ["pg_monitor"]},
            {"name": "ben", "member_of": ["ann"]},
        ],
        {"name": "shop", "owner": "owners", "access": {"readers": "read"}},
        {"name": "empty", "owner": "owners"},
    )
    assert settings.visitors == (
        *(("shop", name) for name in ("ann", "ops", "ben")),
        ("empty", "ops"),
    )


def test_pooled_roles_are_those_that_connect_somewhere_once_each() -> None:
    settings = cluster(
        [
            *({"name": name} for name in ("web", "api", "stranger")),
            {"name": "team", "login": False},
            {"name": "ann", "member_of": ["team"]},
        ],
        {"name": "shop", "owner": "api", "access": {"web": "read", "team": "read"}},
        {"name": "queue", "owner": "api", "access": {"web": "write"}},
    )
    assert settings.pooled_roles == ["ann", "api", "web"]
    assert cluster([{"name": "api"}]).pooled_roles == []


def test_a_member_of_an_owner_connects_to_all_databases_of_the_owner() -> None:
    """A member has all rights of the owner, in every database."""
    settings = cluster(
        [{"name": "api", "login": False}, {"name": "ops", "member_of": ["api"]}],
        {"name": "shop", "owner": "api"},
        {"name": "queue", "owner": "api"},
    )
    assert settings.visitors == (("shop", "ops"), ("queue", "ops"))


MIGRATES = {"name": "shop", "owner": "api", "access": {"mig": "migrate", "web": "write"}}


@pytest.mark.parametrize("access", [{}, {"mig": "read"}, {"web": "migrate"}])
@pytest.mark.parametrize("turned", [False, True])
def test_a_role_migrates_all_databases_of_an_owner_or_none(
    access: dict[str, str], turned: bool
) -> None:
    """As a member of the owner, it could migrate the others without being declared there."""
    databases = [MIGRATES, {"name": "queue", "owner": "api", "access": access}]
    roles = [{"name": name} for name in ("api", "mig", "web")]
    message = refusal(
        Postgres, postgres_roles=roles, postgres_databases=databases[:: -1 if turned else 1]
    )
    one, other, role = (
        ("queue", "shop", "web") if turned and "web" in access else ("shop", "queue", "mig")
    )
    assert message == (
        f"postgres_databases: {role!r} migrates {one} as 'api', who owns {other} as well: "
        f"give {other} another owner, or {role!r} migrate there, too"
    )


def test_migrating_does_not_reach_databases_of_other_owners() -> None:
    settings = cluster(
        [{"name": name} for name in ("api", "jobs", "mig", "web")],
        MIGRATES,
        {"name": "more", "owner": "api", "access": {"mig": "migrate"}},
        {"name": "queue", "owner": "jobs", "access": {"mig": "read"}},
    )
    assert settings.groups(settings.roles[2]) == ("api",)


def test_groups_are_those_of_the_role_and_the_owners_for_whom_it_migrates() -> None:
    settings = cluster(
        [
            {"name": "api"},
            {"name": "jobs"},
            {"name": "mig", "member_of": ["team", "pg_monitor"]},
            {"name": "team", "login": False},
        ],
        {"name": "shop", "owner": "jobs", "access": {"mig": "migrate", "team": "read"}},
        {"name": "queue", "owner": "api", "access": {"mig": "migrate"}},
        {"name": "more", "owner": "api", "access": {"mig": "migrate"}},
    )
    groups = {role.name: settings.groups(role) for role in settings.roles}
    assert groups == {
        "api": (),
        "jobs": (),
        "mig": ("api", "jobs", "pg_monitor", "team"),
        "team": (),
    }


def test_a_chain_of_members_is_no_cycle() -> None:
    settings = cluster(
        [
            {"name": "a", "member_of": ["b", "c"]},
            {"name": "b", "member_of": ["c"]},
            {"name": "c"},
        ],
        {"name": "shop", "owner": "c", "access": {"a": "migrate", "b": "migrate"}},
    )
    assert settings.visitors == (("shop", "a"), ("shop", "b"), ("shop", "c"))


def test_a_cycle_is_shown() -> None:
    roles = [{"name": one, "member_of": [of]} for one, of in ("ab", "bc", "ca")]
    message = refusal(Postgres, postgres_roles=roles, postgres_databases=[])
    path = re.search(r"itself: (.*) \(", message)
    assert path
    chain = path[1].split(" in ")
    assert len(chain) == 4
    assert set(pairwise(chain)) == {("a", "b"), ("b", "c"), ("c", "a")}


def test_extensions_of_all_databases_once_each() -> None:
    settings = cluster(
        [{"name": "a"}],
        {"name": "x", "owner": "a", "extensions": ["vector", "hstore"]},
        {"name": "y", "owner": "a", "extensions": ["postgis", "postgis_raster", "hstore"]},
    )
    assert settings.extensions == ("hstore", "postgis", "postgis_raster", "vector")
    assert packages_of(settings.extensions, 17) == [
        "postgresql-17-pgvector",
        "postgresql-17-postgis-3",
    ]


def test_an_unknown_extension_may_come_from_a_package_that_is_named() -> None:
    settings = cluster(
        [{"name": "a"}],
        {"name": "x", "owner": "a", "extensions": ["zzzzzz"]},
        postgres_packages=["postgresql-17-zzzzzz"],
    )
    assert settings.extensions == ("zzzzzz",)


def test_an_extension_of_every_database_may_be_declared() -> None:
    settings = cluster([{"name": "a"}], {"name": "x", "owner": "a", "extensions": ["plpgsql"]})
    assert settings.extensions == ("plpgsql",)
    assert packages_of(settings.extensions, 17) == []


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "de", "de-DE", "zh-Hant-TW", "und"])
def test_locales(locale: str) -> None:
    settings = cluster([{"name": "a"}], {"name": "x", "owner": "a", "locale": locale})
    assert settings.databases[0].locale == locale


def test_a_role_may_have_as_long_a_name_as_leaves_room_for_a_second_login() -> None:
    name = "a" * 62
    database = {"name": "b" * 63, "owner": name}
    assert cluster([{"name": name}], database).visitors == (("b" * 63, name),)


def test_roles_may_have_a_name_that_only_looks_reserved() -> None:
    roles = [{"name": name} for name in ("orders", "users", "public_api", "_all", "pgx")]
    assert len(cluster(roles).roles) == 5


# --- given passwords ------------------------------------------------------------------------------

SECRET = "s3cret.Chosen_elsewhere~-1"


def given(**environment: str) -> dict[str, str]:
    settings = cluster(
        [
            {"name": "api"},
            {"name": "ops", "password": "env:OPS_PASSWORD"},
            {"name": "team", "login": False},
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPS_PASSWORD", raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        return passwords(HOST, settings)


def test_a_password_comes_from_the_environment() -> None:
    assert given(OPS_PASSWORD=SECRET, API_PASSWORD="x" * 20) == {"ops": SECRET}
    assert given(OPS_PASSWORD="a" * 16) == {"ops": "a" * 16}
    assert given(OPS_PASSWORD="a" * 200) == {"ops": "a" * 200}


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        (None, "is not set"),
        ("", "is not set"),
        ("sh0rt-password!"[:14], "is too short"),
        ("a" * 15, "too short"),
        ("a" * 201, "quotes"),
        *(
            (f"s3cret-s3cret{odd}s3cret", "would need quotes in a URL")
            for odd in ("@", ":", "/", "%", "'", '"', " ", "\n", "$", "ü", "\\")
        ),
        (f"{SECRET}\n", "quotes"),
    ],
)
def test_an_unsuitable_password_is_not_shown(value: str | None, wrong: str) -> None:
    with pytest.raises(DeployError) as error:
        given(**({} if value is None else {"OPS_PASSWORD": value}))
    message = str(error.value)
    assert message.startswith("db1: postgres_roles: ops: OPS_PASSWORD ")
    assert wrong in message
    assert "16 to 200" in message
    assert "\n" not in message
    for part in filter(None, (value, (value or "").strip(), "s3cret")):
        assert part not in message


# --- extensions -----------------------------------------------------------------------------------


def test_extensions_are_of_the_server_or_of_one_package() -> None:
    assert set(EXTENSION_PACKAGES).isdisjoint(CONTRIB)
    assert set(EXTENSION_PACKAGES) | CONTRIB >= PRELOADED
    for package in EXTENSION_PACKAGES.values():
        assert package.count("{}") == 1


def test_extensions_of_the_server_itself_need_no_package() -> None:
    assert packages_of(["hstore", "pg_trgm", "zzzzzz"], 17) == []
    assert packages_of(["plpython3u", "vector"], 15) == [
        "postgresql-15-pgvector",
        "postgresql-plpython3-15",
    ]

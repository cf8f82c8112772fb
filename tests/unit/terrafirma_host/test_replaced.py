"""The host's database in the place of a project's: which variables change, and what is said."""

from typing import Any

import pytest
from terrafirma_host import layer_variables, layers
from terrafirma_host.shell import Failed

from tests.e2e.projects import service
from tests.unit.terrafirma_host import test_shape
from tests.unit.terrafirma_host.test_shape import Shop

shop = test_shape.shop

DB = """
  db:
    image: "postgres:17"
    container_name: shop_db
    environment: {POSTGRES_USER: app, POSTGRES_PASSWORD: pa$$ss, POSTGRES_DB: shop}
    volumes: ["pg:/var/lib/postgresql/data", "./init.sql:/docker-entrypoint-initdb.d/a.sql"]
volumes: {pg: }
"""
# A variable as the files have it; the same with references, None: as it is.
VARIABLES: list[tuple[str, str, str | None]] = [
    ("DATABASE_URL", "postgres://app:pa$$ss@db:5432/shop", "{database.url:postgres}"),
    ("URL", "postgresql+asyncpg://app:pa$$ss@db/shop", "{database.url:postgresql+asyncpg}"),
    ("URL", "postgres://app:x@shop_db/shop?ssl=1", "{database.url:postgres}?ssl=1"),
    ("URL", "postgres://app:x@db:5432/other", None),
    ("URL", "postgres://app:x@elsewhere:5432/shop", None),
    ("URL", "redis://db2:6379/0", None),
    ("URL", "jdbc:postgresql://db:5432/shop",
     "jdbc:postgresql://{database.host}:{database.port}/{database.name}"),
    ("URL", "postgres://app:x@db:5432",
     "postgres://{database.user}:{database.password}@{database.host}:{database.port}"),
    ("DSN", "host=db port=5432 user=app password=x dbname=shop sslmode=disable",
     "host={database.host} port={database.port} user={database.user} "
     "password={database.password} dbname={database.name} sslmode=disable"),
    ("DSN", "host=cache user=app", None),
    ("DB_HOST", "db", "{database.host}"),
    ("DB_HOST", "shop_db:5432", "{database.host}:{database.port}"),
    ("DB_PORT", "5432", "{database.port}"),
    ("APP_PORT", "3000", None),
    ("DB_USERNAME", "app", "{database.user}"),
    ("DB_PASSWORD", "pa$$ss", "{database.password}"),
    ("DB_DATABASE", "shop", "{database.name}"),
    ("ADMIN_PASSWORD", "pa$$ss", None),
    ("GITEA__database__NAME", "shop", "{database.name}"),
    ("APP_NAME", "shop", None),
    ("MODE", "app", None),
    ("POSTGRES_PASSWORD_FILE", "/run/secrets/x", None),
]  # fmt: skip


def read(shop: Shop, text: str, **settings: Any) -> Any:
    given = {"database": "api", "database_replaces": "db"} | settings
    return shop.read(text, {"init.sql": "x"}, **given)


@pytest.mark.parametrize(("name", "value", "wanted"), VARIABLES)
def test_what_becomes_of_a_variable(shop: Shop, name: str, value: str, wanted: str | None) -> None:
    text = f'services:\n  web: {{build: ., depends_on: [db], environment: {{{name}: "{value}"}}}}'
    compose = read(shop, text + DB)
    compose.project()
    env = (compose.app.services.get("web") or {}).get("env") or {}
    assert env == ({name: wanted} if wanted else {})


def test_the_host_has_the_place_of_the_database(shop: Shop) -> None:
    text = service("jobs: {build: ., restart: always, links: ['db:pg'], environment: {URL: "
                   "'postgres://app:x@pg/shop'}}")  # fmt: skip
    compose = read(shop, text.rstrip("\n") + DB)
    project = compose.project()
    assert compose.app.stateful == ()
    started = shop.merged(compose, project, "blue")
    assert sorted(started) == ["jobs", "web"]
    hosts = started["jobs"]["extra_hosts"]
    for name in ("db", "shop_db", "pg", "host.docker.internal"):
        assert f"{name}=host-gateway" in hosts
    # The file of the layer has no password; Compose takes it from its own environment.
    url = compose.secrets["database_url"].strip().replace("postgresql://", "postgres://")
    assert started["jobs"]["environment"]["URL"] == url
    assert "links" not in started["jobs"]
    text = layers.slot_layer(compose.app, project, slot="blue", release="1", replicas=1,
                             images={}, owner="")  # fmt: skip
    assert url not in text
    for line in (
        "db is left out: the host's database is in its place, under its name",
        "db: what it runs at its first start (/docker-entrypoint-initdb.d/a.sql) does not run in "
        "the host's database",
        "jobs: URL: the host's database, not db",
    ):
        assert line in compose.notes


def test_a_value_of_the_settings_wins(shop: Shop) -> None:
    text = (
        "services:\n  web: {build: ., environment: {DB_HOST: db, DB_USER: app}, depends_on: [db]}"
    )
    compose = read(shop, text + DB, env={"DB_USER": "{database.user}"},
                   services={"web": {"env": {"DB_HOST": "mine"}}})  # fmt: skip
    compose.project()
    assert compose.app.services["web"]["env"] == {"DB_HOST": "mine"}


def test_a_password_that_is_not_given_is_not_needed(shop: Shop) -> None:
    text = (
        "services:\n  web: {build: ., depends_on: [db], environment: "
        "{URL: 'postgres://app:${PASSWORD}@db/app', DB_PASS: $PASSWORD}}\n"
        "  db: {image: postgres, environment: {POSTGRES_USER: app, POSTGRES_PASSWORD: $PASSWORD}}\n"
    )
    compose = read(shop, text)
    compose.project()
    assert set(compose.app.services["web"]["env"]) == {"URL", "DB_PASS"}
    with pytest.raises(Failed, match=r"\$\{PASSWORD\} .* is not set"):
        read(shop, text.replace("@db/", "@other/")).project()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("command: [wait-for, 'db:5432']",
         "web: command stays as it is: db leads to the host's PostgreSQL there, with another user, "
         "password and database"),
        ("environment: {URL: 'postgres://app:x@db/other'}", "web: URL stays as it is: db leads to"),
        ("depends_on: [db]", "web: it waits for db, and none of its variables names it: give it"),
    ],
)  # fmt: skip
def test_what_stays_is_said(shop: Shop, more: str, line: str) -> None:
    compose = read(shop, f"services:\n  web: {{build: ., {more}}}{DB}")
    compose.project()
    assert any(one.startswith(line) for one in compose.notes), compose.notes


def test_what_the_settings_set_does_not_stay(shop: Shop) -> None:
    text = f"services:\n  web: {{build: ., environment: {{URL: 'postgres://app:x@db/app'}}}}{DB}"
    compose = read(shop, text, services={"web": {"env": {"URL": "{database.url:psql}"}}})
    compose.project()
    assert not [one for one in compose.notes if "URL" in one]


def test_a_secret_with_the_password_of_the_database_is_said(shop: Shop) -> None:
    text = (
        "services:\n  web: {build: ., secrets: [pass], environment: {DB_HOST: db}}\n"
        "  db: {image: postgres, secrets: [pass], environment: {POSTGRES_PASSWORD_FILE: "
        "/run/secrets/pass}}\nsecrets: {pass: {file: ./init.sql}}\n"
    )
    compose = read(shop, text)
    compose.project()
    line = "web: the secret pass stays as it is, and is no login to the host's database: give it"
    assert any(one.startswith(line) for one in compose.notes), compose.notes


def test_an_empty_password_may_be_of_anything_else(shop: Shop) -> None:
    text = (
        "services:\n  web: {build: ., environment: {PGHOST: db, PGPASSWORD: '', API_PASS: ''}}\n"
        "  db: {image: postgres, environment: {POSTGRES_HOST_AUTH_METHOD: trust}}\n"
    )
    compose = read(shop, text)
    compose.project()
    assert set(compose.app.services["web"]["env"]) == {"PGHOST", "PGPASSWORD"}


@pytest.mark.parametrize(
    ("text", "settings", "line"),
    [
        (
            "db: {image: 'mysql:8'}",
            {},
            "database_replaces: db runs mysql:8, and the host's database",
        ),
        ("x: {image: x}", {}, "database_replaces: the compose files have no service 'db' (web, x)"),
        ("x: {image: x}", {"database_replaces": "web"}, "database_replaces: web serves HTTP"),
    ],
)
def test_what_cannot_be_replaced(
    shop: Shop, text: str, settings: dict[str, Any], line: str
) -> None:
    with pytest.raises(Failed) as said:
        read(shop, service(text), **settings).project()
    assert str(said.value).startswith(line)


def test_a_command_beside_the_release_has_the_values_as_well(shop: Shop) -> None:
    """It reads the layer of the slot, and no release decides anything meanwhile."""
    text = "services:\n  web: {build: ., environment: {URL: 'postgres://app:x@db/shop'}}"
    compose = read(shop, text + DB)
    name = layer_variables.hidden("URL", "web")
    assert name not in compose.environment()
    url = "postgres://api:s3cret@host.docker.internal:5432/api"
    assert compose.decided().environment()[name] == url

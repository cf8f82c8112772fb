"""A server as a whole: the ports of its applications, and the keys that it accepts."""

from typing import Any

import pytest

from terrafirma.app.settings import Application
from terrafirma.server import FIRST_PORT, PORTS, Server, Socket
from terrafirma.settings import Refused
from tests.unit.settings import API, DEFAULTS, application, entry, keep_rules, refused, server

# --- ports ----------------------------------------------------------------------------------------


def ports(kept: dict[str, int], **entries: dict[str, Any]) -> dict[str, int]:
    """The first port of each application, on a host that has the `kept` ones."""
    return {app.name: app.port for app in server(apps=entries).with_ports(kept).apps}


def test_applications_that_choose_no_port_get_the_first_that_are_free() -> None:
    assert ports({}, api=API) == {"api": FIRST_PORT}
    assert ports({}, api=API, web=entry()) == {"api": 8000, "web": 8128}
    assert ports({}) == {}


def test_a_server_without_ports_stays_as_it_was() -> None:
    before = server()
    before.with_ports({"api": 9000})
    assert before == server()
    assert before.apps[0].port == 0


def test_a_port_stays_when_applications_come_and_go_and_change_their_order() -> None:
    kept = {"api": 8128, "web": 8000}
    assert ports(kept, api=API, web=entry()) == kept
    assert ports(kept, web=entry(), api=API) == kept
    assert ports(kept, new=entry("new"), api=API, web=entry()) == kept | {"new": 8256}
    assert ports(kept, api=API) == {"api": 8128}
    assert ports({"api": 12_345}, api=API) == {"api": 12_345}


def test_an_application_that_is_renamed_is_a_new_one() -> None:
    """The application with the old name keeps its ports until it is removed on the host."""
    assert ports({"api": 8000}, shop=entry("shop")) == {"shop": 8128}
    assert ports({"api": 8000, "shop": 8128}, shop=entry("shop")) == {"shop": 8128}
    assert ports({"shop": 8128}, shop=entry("shop")) == {"shop": 8128}


def test_a_new_application_gets_no_port_of_another_program() -> None:
    assert ports({"old": 8000}, api=API) == {"api": 8128}
    assert ports({"old": 8100}, api=API) == {"api": 8256}
    assert ports({}, api=API, web=entry(port=8000)) == {"api": 8128, "web": 8000}
    assert ports({}, api=API, web=entry(port=8127)) == {"api": 8256, "web": 8127}
    assert ports({}, api=API, web=entry(port=8128)) == {"api": 8000, "web": 8128}
    (app,) = server(postgres_port=8127).with_ports({}).apps
    assert app.port == 8128
    both = {"postgres_port": 8000, "pgbouncer_enabled": True, "pgbouncer_port": 8200}
    (app,) = server(**both).with_ports({}).apps
    assert app.port == 8256
    # A program that does not run has no port.
    (app,) = server(**both | {"pgbouncer_enabled": False}).with_ports({}).apps
    assert app.port == 8128


def test_a_port_of_the_settings_comes_first() -> None:
    assert ports({"api": 8000}, api=API | {"port": 9000}) == {"api": 9000}
    assert ports({"api": 8000}, api=API | {"port": 8001}) == {"api": 8001}
    # Until it is released there, it runs on its old port.
    moves = API | {"port": 9000}
    assert ports({"api": 8000}, api=moves, web=entry()) == {"api": 9000, "web": 8128}
    assert ports({"api": 8000}, web=entry(), api=moves) == {"web": 8128, "api": 9000}
    assert ports({"api": 9000, "web": 8128}, web=entry(), api=moves) == {"api": 9000, "web": 8128}


def refused_ports(kept: dict[str, int], **data: Any) -> str:
    one = server(**data)
    keep_rules(one)
    with pytest.raises(Refused) as error:
        one.with_ports(kept)
    return str(error.value)


@pytest.mark.parametrize(
    ("kept", "data", "message"),
    [
        (
            {"api": 5400},
            {},
            "postgres_port: 5432 belongs to api, which has had 5400 to 5527 since its first "
            "release; take another",
        ),
        (
            {"api": 8000},
            {"postgres_port": 8127},
            "postgres_port: 8127 belongs to api, which has had 8000 to 8127 since its first "
            "release; take another",
        ),
        (
            {"api": 8000},
            {"pgbouncer_enabled": True, "pgbouncer_port": 8000},
            "pgbouncer_port: 8000 belongs to api, which has had 8000 to 8127 since its first "
            "release; take another",
        ),
        (
            {"api": 8000},
            {"apps": {"api": API, "web": entry(port=8064)}},
            "apps.web.port: 8064 belongs to api, which has had 8000 to 8127 since its first "
            "release; take another",
        ),
        # An application that is no longer in the settings still runs.
        (
            {"old": 8000},
            {"apps": {"web": entry(port=8000)}},
            "apps.web.port: 8000 belongs to old, which has had 8000 to 8127 since its first "
            "release; take another, or end old on the host: terrafirma remove old",
        ),
        (
            {"old": 5432},
            {"apps": {}},
            "postgres_port: 5432 belongs to old, which has had 5432 to 5559 since its first "
            "release; take another, or end old on the host: terrafirma remove old",
        ),
        # The message names a key of the settings, whatever the host's ports are.
        (
            {"old": 8000, "api": 8000},
            {},
            "apps.api.port: 8000 belongs to old, which has had 8000 to 8127 since its first "
            "release; take another, or end old on the host: terrafirma remove old",
        ),
    ],
)
def test_a_port_of_an_application_is_refused_to_others(
    kept: dict[str, int], data: dict[str, Any], message: str
) -> None:
    assert refused_ports(kept, **data) == message


def test_right_beside_the_ports_of_another_there_is_room() -> None:
    for port in (7999, 8128):
        server(postgres_port=port).with_ports({"api": 8000})
    assert ports({"old": 8000}, web=entry(port=8128)) == {"web": 8128}
    assert ports({"old": 8128}, web=entry(port=8000)) == {"web": 8000}


def test_without_free_ports_the_run_is_refused() -> None:
    most = (2**16 - FIRST_PORT) // PORTS
    entries = {f"a{number}": entry(f"a{number}") for number in range(most)}
    found = ports({}, **entries)
    assert len({*found.values()}) == most
    assert max(found.values()) + PORTS <= 2**16
    message = f"apps.web.port: from {FIRST_PORT} on no {PORTS} ports are left; set it"
    assert refused_ports(found, apps={"web": entry(database="")}) == message
    assert ports(found, web=entry(port=1024)) == {"web": 1024}


# --- what a host is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "roles"),
    [
        ([], ("proxy", "app", "db")),
        (["servers", "all"], ("proxy", "app", "db")),
        (["app"], ("app",)),
        (["servers", "db", "proxy"], ("proxy", "db")),
        (["db", "app", "proxy"], ("proxy", "app", "db")),
        (["databases"], ("proxy", "app", "db")),
    ],
)
def test_a_host_has_the_roles_of_its_groups_or_all(
    groups: list[str], roles: tuple[str, ...]
) -> None:
    assert Server.of("db1", DEFAULTS, groups).roles == roles


@pytest.mark.parametrize(
    ("data", "address"),
    [({}, "db1"), ({"ssh_hostname": "10.0.0.7"}, "10.0.0.7"), ({"ssh_hostname": ""}, "db1")],
)
def test_a_host_is_reached_by_its_name_or_by_its_address(
    data: dict[str, Any], address: str
) -> None:
    assert server(**data).address == address


def test_sockets_of_a_host() -> None:
    caddy = (
        Socket(80, "caddy.service", "HTTP", "Caddy", "internet"),
        Socket(443, "caddy.service", "HTTPS", "Caddy", "internet", ("tcp", "udp")),
    )
    assert server().sockets == (
        *caddy,
        Socket(5432, "postgresql", "postgres_port", "PostgreSQL", "containers"),
    )
    one = server(postgres_port=5433, pgbouncer_enabled=True).with_ports({"api": 9000})
    replicas = [*range(9000, 9008), *range(9064, 9072)]
    assert one.sockets == (
        *caddy,
        Socket(5433, "postgresql", "postgres_port", "PostgreSQL", "containers"),
        # No application uses PgBouncer.
        Socket(6432, "pgbouncer.service", "pgbouncer_port", "PgBouncer", "host"),
        *(Socket(port, "docker.service", "apps.api.port", "api", "host") for port in replicas),
    )
    # Reserved for more replicas.
    assert one.reserved["apps.api.port"] == [*range(9000, 9128)]


def test_only_services_that_applications_use_are_open_to_containers() -> None:
    clients = {one.program: one.clients for one in server(apps={}).sockets}
    assert clients == {"Caddy": "host", "PostgreSQL": "host"}
    apps = {"api": API | {"pgbouncer": True}}
    pooled = server(apps=apps, pgbouncer_enabled=True)
    assert {one.program: one.clients for one in pooled.sockets} == {
        "Caddy": "internet",
        "PostgreSQL": "host",
        "PgBouncer": "containers",
    }


def test_an_application_connects_as_the_owner_or_as_its_role() -> None:
    one = server(
        postgres_roles=[{"name": "own"}, {"name": "web"}],
        postgres_databases=[{"name": "api", "owner": "own"}],
        pgbouncer_enabled=True,
    )
    assert one.roles_of(application()) == {"api": "own"}
    assert one.roles_of(application(role="web")) == {"api": "web"}
    assert one.roles_of(application(database="shop")) == {"shop": ""}
    assert one.roles_of(application(database="")) == {}
    url = "postgresql://{}:*@host.docker.internal:{}/api"
    assert one.database_url(application(), "api", "own~") == url.format("own~", 5432)
    assert one.database_url(application(pgbouncer=True), "api", "web") == url.format("web", 6432)


def test_an_application_connects_to_further_databases_as_itself_where_it_may() -> None:
    one = server(
        postgres_roles=[{"name": "own"}, {"name": "web"}, {"name": "stats"}],
        postgres_databases=[
            {"name": "api", "owner": "own", "access": {"web": "write"}},
            {"name": "reports", "owner": "stats", "access": {"web": "read"}},
            {"name": "stats", "owner": "stats"},
        ],
    )
    further = ("reports", "stats")
    for fields, roles in (
        ({}, {"api": "own", "reports": "stats", "stats": "stats"}),
        ({"role": "web"}, {"api": "web", "reports": "web", "stats": "stats"}),
        ({"role": "web", "database": ""}, {"reports": "web", "stats": "stats"}),
    ):
        assert one.roles_of(application(databases=further, **fields)) == roles
    (app,) = server(apps={"api": API | {"database": "", "databases": ["api"]}}).apps
    assert app.database_urls == {"api": "database_url_api"}
    sockets = server(apps={"api": API | {"database": "", "databases": ["api"]}}).sockets
    assert "containers" in {one.clients for one in sockets if one.program == "PostgreSQL"}


# --- the entries of apps --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("apps", "message"),
    [
        *(
            (
                odd,
                f'apps: must be a dictionary, not {kind}: {{"api": {{"source": …, "domain": …}}}}',
            )
            for odd, kind in (([], "list"), ("api", "str"), (None, "NoneType"), ((API,), "tuple"))
        ),
        *(
            ({"api": odd}, f"apps.api: must be a dictionary, not {kind}")
            for odd, kind in (([], "list"), ("examples/api", "str"), (None, "NoneType"))
        ),
        *(
            (
                {name: API},
                f"apps: {name!r} is not an application name, like 'api' or 'web-2': small "
                "letters and digits, at most 31, with single hyphens between them",
            )
            # Docker refuses `api-` as the name of an image.
            for name in (
                *("Ä", "Api", "a_b", "api-", "-api", "a--b", "1a", "", "a.b", "a b", "a\nb"),
                *("a" * 32, 1, None, True, b"api", ("api",)),
            )
        ),
        (
            {"api": API | {"name": "shop"}},
            "apps.api.name: an application has its name from its key in apps; leave it out",
        ),
        ({"api": API | {1: 2}}, "apps.api.1: Keys should be strings"),
        ({"api": API | {None: 2}}, "apps.api.None: Keys should be strings"),
        ({"api": API | {"": 2}}, "apps.api.'': there is no such key"),
        (
            {"api": API | {"replica": 2}},
            "apps.api.replica: there is no such key, did you mean apps.api.replicas?",
        ),
        ({"api": API | {"zzzzzz": 2}}, "apps.api.zzzzzz: there is no such key"),
        # Fields with the prefix of the former flat keys.
        (
            {"api": API | {"app_replicas": 2}},
            "apps.api.app_replicas: there is no such key, did you mean apps.api.replicas?",
        ),
        ({"api": {}}, "apps.api.domain: Field required"),
        (
            {"web-2": {"domain": "acme.com"}},
            "apps.web-2.source: web-2 has neither source nor image",
        ),
    ],
)
def test_odd_entries_are_refused(apps: Any, message: str) -> None:
    assert refused(apps=apps) == message


@pytest.mark.parametrize("name", ["a", "api", "web-2", "a1", "a-b-c", "a" * 31])
def test_names_of_applications(name: str) -> None:
    (app,) = server(apps={name: API}).apps
    assert (app.name, app.key("domain")) == (name, f"apps.{name}.domain")


def test_a_key_replaces_one_field_of_one_application() -> None:
    entries = {"api": API, "web-2": entry()}
    data: dict[str, Any] = {"apps.api.replicas": 6, "apps.web-2.env": {"A": "1"}}
    api, web = server(apps=entries, **data).apps
    assert api == application("api", **API, replicas=6)
    assert web == application("web-2", **entry(), env={"A": "1"})
    # The entry of the file stays the same for other hosts.
    assert entries == {"api": API, "web-2": entry()}
    assert "replicas" not in API


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("apps.ap.replicas", "there is no application 'ap', did you mean api?"),
        ("apps.zzzzzz.replicas", "there is no application 'zzzzzz', apps has api, web"),
        ("apps..replicas", "there is no application '', apps has api, web"),
        ("apps.api.replica", "there is no such key, did you mean apps.api.replicas?"),
        ("apps.api.zzzzzz", "there is no such key"),
        ("apps.api.name", "an application has its name from its key in apps; leave it out"),
        *(
            (key, "write apps.NAME.FIELD; it replaces the whole field")
            for key in ("apps.", "apps.api", "apps.api.", "apps.api.env.X", "apps.api..", "apps...")
        ),
        ("apps.web.replicas", "Input should be a valid integer, not '6 6'"),
        ("apps.web.domain", "'6 6' is not a domain name in lower case, like api.example.com"),
    ],
)
def test_a_key_that_replaces_nothing_is_refused(key: str, message: str) -> None:
    data = {"apps": {"api": API, "web": entry()}, key: "6 6"}
    assert refused(**data) == f"{key}: {message}"


def test_a_key_for_an_odd_entry_is_no_second_fault() -> None:
    odd: Any
    for odd in ([], None, 1):
        assert refused(**{"apps": {"api": odd}, "apps.api.replicas": 6}).startswith(
            "apps.api: must be a dictionary, not "
        )
    message = refused(**{"apps": {1: API}, "apps.api.replicas": 6})
    assert "apps.api.replicas: there is no application 'api', apps has none" in message
    assert "apps: 1 is not an application name" in message
    assert refused(**{"apps": {}, "apps.api.replicas": 6}) == (
        "apps.api.replicas: there is no application 'api', apps has none"
    )


def test_a_key_that_is_no_text() -> None:
    key: Any
    for key in (1, None, ("apps", "api")):
        with pytest.raises(Refused) as error:
            Server.of("db1", DEFAULTS | {key: "x"})
        assert str(error.value) == f"{key!r}: a key is text, like 'postgres_port'"


# --- keys of earlier versions ---------------------------------------------------------------------

OLD = {
    "app_more": 'the entries of apps, by name: apps = {"web": {"source": …, "domain": …}}',
    "app_name": 'the key of its entry in apps: apps = {"api": {"source": …, "domain": …}}',
    "app_rollback": "commands/rollback.py --data rollback=APPLICATION",
    "postgres_rotate": "commands/postgres_rotate.py --data rotate=ROLE",
    "postgres_drop": "commands/postgres_drop.py --data drop=DATABASE --data confirm=DATABASE",
    "postgres_drop_role": "commands/postgres_drop.py --data drop_role=ROLE --data confirm=ROLE",
    "postgres_confirm": "commands/postgres_drop.py --data confirm=NAME",
    "postgres_upgrade": "commands/postgres_upgrade.py --data upgrade=back or clean",
}
FIELDS = [name for name in Application.model_fields if name != "name"]


@pytest.mark.parametrize("key", OLD)
def test_a_key_of_an_earlier_version_is_refused_with_what_to_write_now(key: str) -> None:
    assert refused(**{key: "x"}) == f"{key}: there is no such key any more, write {OLD[key]}"


@pytest.mark.parametrize("field", FIELDS)
def test_a_flat_key_of_an_application_is_refused_with_its_place_now(field: str) -> None:
    place = f'apps = {{"api": {{"{field}": …}}}}'
    assert refused(**{f"app_{field}": "s3cret"}) == (
        f"app_{field}: there is no such key any more, write it into the entry of apps: {place}"
    )


def test_a_flat_key_has_its_place_under_the_name_that_the_application_had() -> None:
    message = refused(app_name="shop", app_replicas=2)
    assert (
        "app_replicas: there is no such key any more, write it into the entry of apps: " in message
    )
    assert 'apps = {"shop": {"replicas": …}}' in message
    for odd in ("a\nb", 7, None, ["shop"]):
        assert 'apps = {"api": {"replicas": …}}' in refused(app_name=odd, app_replicas=2)


def test_a_flat_key_that_was_misspelt_has_its_place_too() -> None:
    assert 'apps = {"api": {"replicas": …}}' in refused(app_replica=2)
    assert refused(app_zzzzzz=2) == (
        "app_zzzzzz: there is no such key, keys of your own tasks start with x_"
    )

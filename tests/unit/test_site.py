"""The inventory as a whole, and the arguments of commands."""

from typing import Any

import pytest
from pyinfra.api import Config, DeployError, Inventory, State

from terrafirma.app.facts import Kept, KeptState
from terrafirma.arguments import ARGUMENTS, Drop, Rollback, Rotate, Upgrade
from terrafirma.server import SECTIONS, Server
from terrafirma.settings import Model
from terrafirma.site import arguments, placed, site
from tests.unit.settings import API, DEFAULTS, server

# --- the inventory --------------------------------------------------------------------------------


def inventory(*hosts: tuple[str, dict[str, Any]], **data: Any) -> Inventory:
    """Hosts with `data` from the command line, each with host data of its own."""
    made = Inventory((list(hosts), DEFAULTS), override_data=data)
    State(made, Config())
    return made


def test_every_host_is_a_server() -> None:
    hosts = inventory(("db1", {"postgres_port": 5433}), ("web1", {"ssh_hostname": "10.0.0.7"}))
    servers = site(hosts)
    assert [one.name for one in servers.values()] == [*servers] == ["db1", "web1"]
    assert servers["db1"].postgres.port == 5433
    assert servers["web1"] == Server.of("web1", DEFAULTS | {"ssh_hostname": "10.0.0.7"})


def test_groups_of_the_inventory_are_roles() -> None:
    assert Server.of("db1", DEFAULTS, ["db"]).roles == ("db",)
    assert Server.of("db1", DEFAULTS, ["servers"]).roles == ("proxy", "app", "db")
    assert Server.of("db1", DEFAULTS, ["app", "db", "proxy"]).roles == ("proxy", "app", "db")


def test_a_host_for_one_part_alone_is_refused() -> None:
    hosts = Inventory((["db1", "web1"], DEFAULTS), db=(["db1"], {}), servers=(["web1"], {}))
    State(hosts, Config())
    words = "db1: inventory: the host is in the group db, and a host for one part alone is not"
    with pytest.raises(DeployError, match=words):
        site(hosts)


def test_settings_are_read_once() -> None:
    hosts = inventory(("db1", {}))
    first = site(hosts)
    next(iter(hosts)).data.postgres_port = 5433
    assert site(hosts) is first
    assert site(inventory(("db1", {"postgres_port": 5433}))) != first


def test_the_command_line_comes_first() -> None:
    replicas: dict[str, Any] = {"apps.api.replicas": 6}
    servers = site(inventory(("db1", {"apps": {"api": API | {"replicas": 2}}}), **replicas))
    assert servers["db1"].apps[0].replicas == 6


def test_a_host_outside_the_limit_stops_no_run() -> None:
    """A rollback on one host works while the settings of another are wrong."""
    hosts = inventory(("web1", {}), ("db1", {"postgres_port": 0}))
    web, _ = hosts
    hosts.state.limit_hosts = [web]
    assert [*site(hosts)] == ["web1"]


def test_the_command_line_reaches_the_hosts_that_have_the_application() -> None:
    hosts = inventory(("web1", {}), ("db1", {"apps": {}}), **{"apps.api.replicas": 6})
    servers = site(hosts)
    assert [app.replicas for app in servers["web1"].apps] == [6]
    assert servers["db1"].apps == ()
    hosts = inventory(("web1", {}), ("db1", {"apps": {}}), **{"apps.apu.replicas": 6})
    with pytest.raises(DeployError, match=r"^web1: apps.apu.replicas: there is no application"):
        site(hosts)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"postgres_port": 0},
            "postgres_port: Input should be greater than or equal to 1024, not 0",
        ),
        ({"apps": []}, "apps: must be a dictionary"),
        ({"postgres_max_connections": 49}, "postgres_max_connections: 49 is too few"),
        ({"app_replicas": 2}, "app_replicas: there is no such key any more"),
    ],
)
def test_a_refusal_names_the_host(data: dict[str, Any], message: str) -> None:
    """The message is the same on each host."""
    hosts = inventory(("web1", {}), ("db1", data))
    for _ in range(2):
        with pytest.raises(DeployError) as error:
            site(hosts)
        assert str(error.value).startswith(f"db1: {message}")
        assert "\n" not in str(error.value)


def asked(ports: dict[str, int], **data: Any) -> tuple[Any, list[type]]:
    """A host with these ports, and the facts that it was asked for."""
    host: Any
    (host,) = inventory(("db1", data))
    facts: list[type] = []

    def get_fact(fact: type) -> KeptState:
        facts.append(fact)
        return KeptState(ports=ports, routed=[])

    # app/test_facts.py tests the fact itself.
    host.get_fact = get_fact
    return host, facts


def test_applications_have_the_ports_that_the_host_knew_when_the_run_began() -> None:
    """Releases of a run do not change the ports that the run uses."""
    kept = {"api": 9000}
    host, facts = asked(kept)
    assert [app.port for app in placed(host).apps] == [9000]
    assert facts == [Kept]
    host.get_fact = lambda fact: KeptState(ports={"api": 8000}, routed=[])
    assert [app.port for app in placed(host).apps] == [9000]


def test_a_host_without_applications_is_asked_nothing() -> None:
    host, facts = asked({"old": 8000}, apps={})
    assert placed(host) == site(host.inventory)["db1"]
    assert facts == []


def test_a_port_that_is_taken_is_refused_with_the_host() -> None:
    host, _ = asked({"api": 5432})
    with pytest.raises(DeployError, match=r"^db1: postgres_port: 5432 belongs to api, which has"):
        placed(host)


# --- arguments of commands ------------------------------------------------------------------------


def read(model: type[Model], **data: Any) -> Model:
    (host,) = inventory(("db1", {}), **data)
    return arguments(host, model)


def test_arguments_are_no_settings() -> None:
    names = [name for model in ARGUMENTS for name in model.model_fields]
    assert len({*names}) == len(names)
    prefixes = tuple(f"{section.prefix}_" for section in SECTIONS)
    assert not [name for name in names if name.startswith((*prefixes, "apps"))]
    # Otherwise an argument would change the settings of every host in the run.
    assert server(**dict.fromkeys(names, "x")) == server()


@pytest.mark.parametrize("model", ARGUMENTS)
def test_every_argument_has_a_default(model: type[Model]) -> None:
    assert read(model, x_mine=1, drops="x") == model()
    assert {*read(model).model_dump().values()} == {""}


def test_a_command_gets_its_own_arguments() -> None:
    assert read(Rollback, rollback="api", rotate="api") == Rollback(rollback="api")
    assert read(Rollback, rollback="web-2:0123456789ab") == Rollback(rollback="web-2:0123456789ab")
    # The longest name that leaves room for a second login.
    assert read(Rotate, rotate="a" * 62) == Rotate(rotate="a" * 62)
    assert read(Drop, drop="c" * 63, confirm="c") == Drop(drop="c" * 63, confirm="c")
    assert read(Drop, drop_role="x", confirm="x") == Drop(drop_role="x", confirm="x")
    for way in ("", "back", "clean"):
        assert read(Upgrade, upgrade=way).model_dump() == {"upgrade": way}


@pytest.mark.parametrize(
    ("model", "key", "value", "right"),
    [
        *(
            (Rollback, "rollback", value, "does not match")
            for value in ("api:latest", "api 0123456789ab", "Api", "api:", ":0123456789ab", "api\n")
        ),
        (Rollback, "rollback", 7, "valid string"),
        *(
            (model, key, value, f"{value!r} is no name of a role or database")
            for model, key in ((Rotate, "rotate"), (Drop, "drop"), (Drop, "drop_role"))
            for value in ("Api", 'a"b', "a b", "../a", "-a", "api~", "a" * 64)
        ),
        # Not even with a confirmation.
        *(
            (model, key, value, f"{value!r} is reserved by PostgreSQL")
            for model, key in ((Rotate, "rotate"), (Drop, "drop"), (Drop, "drop_role"))
            for value in (
                *("postgres", "template1", "template0", "pg_monitor", "pg_x", "public", "user"),
            )
        ),
        *(
            (model, key, 7, "valid string")
            for model, key in (
                *((Rotate, "rotate"), (Drop, "drop"), (Drop, "drop_role"), (Drop, "confirm")),
            )
        ),
        *((Upgrade, "upgrade", value, "'', 'back' or 'clean'") for value in ("forth", None, 17)),
    ],
)
def test_an_odd_argument_is_refused(model: type[Model], key: str, value: Any, right: str) -> None:
    with pytest.raises(DeployError) as error:
        read(model, **{key: value})
    message = str(error.value)
    assert message.startswith(f"db1: {key}: ")
    assert right in message
    assert "\n" not in message

"""Which services write a store, and which others may: pure rules, as rows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import stores
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

from tests.unit.terrafirma_host.projects import SHOP, bind, project, volume


@pytest.mark.parametrize(
    ("first", "second", "one"),
    [
        ("shop_data", "shop_data", True),
        ("shop_data", "shop_data2", False),
        ("/srv/data", "/srv/data", True),
        ("/srv/data/", "/srv/data", True),
        ("/srv/data", "/srv/data/14/main", True),
        ("/srv", "/srv/data", True),
        ("/srv/data", "/srv/database", False),
        ("srv", "/srv", False),
    ],
)
def test_two_places_are_one_where_one_lies_in_the_other(first: str, second: str, one: bool) -> None:
    assert stores.overlap(first, second) is stores.overlap(second, first) is one


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({}, "v"),
        ({"type": "tmpfs", "device": "tmpfs"}, "v"),
        ({"type": "none", "o": "bind", "device": "/srv/x"}, "/srv/x"),
        ({"type": "none", "o": "rw,bind", "device": "/srv/../srv/x"}, "/srv/x"),
        ({"type": "ext4", "device": "/dev/loop99"}, "/dev/loop99"),
        ({"type": "nfs", "o": "addr=nas,rw", "device": ":/x"}, "nfs addr=nas :/x"),
        ({"type": "nfs4", "o": "rw,addr=nas", "device": ":/x"}, "nfs addr=nas :/x"),
    ],
)
def test_a_volume_may_stand_for_a_place_elsewhere(options: dict[str, str], place: str) -> None:
    assert stores.place_of_volume("v", options) == place


def test_links_and_the_engines_own_directory_are_seen_through(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    assert stores.place_of_path(f"{tmp_path}/link/a") == f"{tmp_path}/there/a"
    assert stores.place_of_path("/var/lib/docker/volumes/shop_data/_data") == "shop_data"


@pytest.mark.parametrize(
    ("service", "left"),
    [
        ({}, ["/data", "/var/lib/x"]),
        ({"volumes": [volume("v", "/data")]}, ["/var/lib/x"]),
        ({"volumes": [volume("v", "/data/")], "tmpfs": ["/var/lib/x:size=64m"]}, []),
        ({"tmpfs": "/data"}, ["/var/lib/x"]),
        # The engine also makes a volume below a mount.
        ({"volumes": [volume("v", "/var/lib"), volume("v", "/data")]}, ["/var/lib/x"]),
        ({"volumes": [bind("/srv", read_only=True)]}, ["/var/lib/x"]),
    ],
)
def test_the_volumes_of_an_image_that_nothing_covers(
    service: dict[str, Any], left: list[str]
) -> None:
    assert stores.uncovered(service, ["/data", "/var/lib/x"]) == left


WRITES = {
    "a volume": volume("pg"),
    "an external one": volume("theirs"),
    "a path": bind("/srv/pg"),
    "a cluster's": {"type": "cluster", "source": "pg", "target": "/data"},
}
READS = {
    "a volume": volume("pg", read_only=True),
    "a path": bind("/srv/pg", read_only=True),
    "memory": {"type": "tmpfs", "target": "/data"},
    "a socket": bind("/var/run/docker.sock"),
    "another": bind("/srv/app/php.sock"),
    "a device": bind("/dev/dri"),
    "the clock": bind("/etc/localtime"),
}
VOLUMES = {"pg": {"name": "shop_pg"}, "theirs": {"external": True, "name": "theirs"}}


@pytest.mark.parametrize("what", WRITES)
def test_a_service_of_a_slot_must_share_its_stores(what: str) -> None:
    mount = WRITES[what]
    files = project(VOLUMES, db={"image": "x", "volumes": [mount]})
    with pytest.raises(Failed, match=r"^stateful: db writes the .* and two releases run at"):
        stores.refuse(SHOP, files)
    stores.refuse(replace(SHOP, stateful=("db",)), files)
    stores.refuse(replace(SHOP, shared=(mount["source"],)), files)
    # The migration and the web service, too.
    with pytest.raises(Failed, match=r"^shared: db writes .* and ends, and each release"):
        stores.refuse(replace(SHOP, migrate=("db",)), files)
    with pytest.raises(Failed, match=r"^shared: db writes .* PostgreSQL"):
        stores.refuse(replace(SHOP, service="db"), files)


COMPLETED = {"condition": "service_completed_successfully"}
ENDS: dict[str, dict[str, Any]] = {
    "said by itself": {"restart": "no"},
    "on failure": {"restart": "on-failure:3"},
    "as for a swarm": {"deploy": {"restart_policy": {"condition": "none"}}},
    "awaited": {},
    "the migration": {"restart": "no"},
}


@pytest.mark.parametrize("what", ENDS)
def test_a_service_that_ends_must_share_its_stores(what: str) -> None:
    app = replace(SHOP, migrate=("setup",)) if what == "the migration" else SHOP
    files = project(VOLUMES, setup={"image": "x", "volumes": [volume("pg")]} | ENDS[what])
    if what == "awaited":
        files["services"]["web"]["depends_on"] = {"setup": COMPLETED}
    more = ', or stateful = ["setup"] for what no release runs again' * (app == SHOP)
    with pytest.raises(Failed) as refused:
        stores.refuse(app, files)
    assert str(refused.value) == (
        "shared: setup writes the volume pg (at /data) and ends, and each release runs it "
        f'while the one before serves: shared = ["pg"] if it may write there then{more}'
    )
    # Following the advice helps.
    stores.refuse(replace(app, shared=("pg",)), files)
    if more:
        stores.refuse(replace(app, stateful=("setup",)), files)


def test_a_service_may_prepare_the_store_of_one_that_waits_for_it() -> None:
    files = project(
        VOLUMES,
        init={"image": "x", "restart": "no", "volumes": [volume("pg")]},
        db={"image": "postgres:17", "volumes": [volume("pg")], "depends_on": {"init": COMPLETED}},
    )
    with pytest.raises(Failed, match=r"and init writes there too: name init in stateful, too$"):
        stores.refuse(replace(SHOP, stateful=("db",)), files)
    stores.refuse(replace(SHOP, stateful=("db", "init")), files)
    files["services"]["db"]["depends_on"] = {"init": {"condition": "service_started"}}
    with pytest.raises(Failed, match=r"and init writes there too: mount it `:ro` in init$"):
        stores.refuse(replace(SHOP, stateful=("db", "init")), files)


def test_a_name_is_no_dead_end() -> None:
    """An image that is no database can be released under any name."""
    worker = {"image": "acme/redis:1", "volumes": [volume("uploads")]}
    files = project({"uploads": None}, worker=worker)
    files["services"]["web"]["volumes"] = [volume("uploads")]
    app = replace(SHOP, shared=("uploads",))
    with pytest.raises(Failed, match=r'by the image.s name .* scratch = \["worker"\] if it is'):
        stores.refuse(app, files)
    stores.refuse(replace(app, scratch=("worker",)), files)
    worker["image"] = "acme/redis-worker:1"
    stores.refuse(app, files)
    # Outside of its data directory a database may share a store.
    worker |= {"image": "redis:8", "volumes": [volume("uploads", "/exports")]}
    stores.refuse(replace(app, stateful=("worker",)), files)


def test_the_socket_of_a_database_is_read_by_others() -> None:
    db = {"image": "postgres:17", "volumes": [volume("pg", "/var/lib/postgresql/data"),
                                              volume("sock", "/var/run/postgresql")]}  # fmt: skip
    files = project(VOLUMES | {"sock": None}, db=db)
    files["services"]["web"]["volumes"] = [volume("sock", "/sock")]
    app = replace(SHOP, stateful=("db",))
    with pytest.raises(Failed, match=r'too: mount it `:ro` in web, or shared = \["sock"\]'):
        stores.refuse(app, files)
    stores.refuse(replace(app, shared=("sock",)), files)
    files["services"]["web"]["volumes"] = [volume("sock", "/sock", read_only=True)]
    stores.refuse(app, files)
    # Its data directory cannot be shared: that is neither advised nor accepted.
    files["services"]["web"]["volumes"] = [volume("pg", "/there")]
    with pytest.raises(Failed, match=r"and web writes there too: mount it `:ro` in web$"):
        stores.refuse(app, files)
    with pytest.raises(Failed, match=r"take pg out of shared, .* mount it `:ro` in others"):
        stores.refuse(replace(app, shared=("pg",)), files)


@pytest.mark.parametrize("what", READS)
def test_a_read_only_mount_is_no_store(what: str) -> None:
    stores.refuse(SHOP, project(VOLUMES, db={"image": "x", "volumes": [READS[what]]}))


def test_all_of_them_are_named_at_once() -> None:
    files = project(
        {"a": None, "b": None},
        one={"image": "x", "volumes": [volume("a")]},
        two={"image": "x", "volumes": [volume("b")]},
    )
    with pytest.raises(Failed) as refused:
        stores.refuse(SHOP, files)
    assert json.dumps(["one", "two"]) in str(refused.value)
    assert json.dumps(["a", "b"]) in str(refused.value)
    assert "\n" not in str(refused.value)


TWO: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], bool]] = [
    ({}, volume("pg"), volume("pg"), True),
    ({}, volume("pg"), volume("pg", read_only=True), False),
    ({"pg": {"name": "x"}, "other": {"name": "x"}}, volume("pg"), volume("other"), True),
    ({}, bind("/srv/pg"), bind("/srv"), True),
    ({}, bind("/srv/pg"), bind("/srv/pg2"), False),
    (
        {"pg": {"driver_opts": {"o": "bind", "type": "none", "device": "/srv/pg"}}},
        volume("pg"), bind("/srv/pg/base"), True,
    ),
    (
        {
            "pg": {"driver_opts": {"type": "nfs", "o": "addr=nas", "device": ":/x"}},
            "b": {"driver_opts": {"type": "nfs4", "o": "addr=nas,soft", "device": ":/x"}},
        },
        volume("pg"), volume("b"), True,
    ),
    ({}, bind("/var/lib/docker/volumes/shop_pg/_data"), volume("pg"), True),
]  # fmt: skip


@pytest.mark.parametrize(("volumes", "first", "second", "refused"), TWO)
def test_two_services_that_run_once_have_a_store_each(
    volumes: dict[str, Any], first: dict[str, Any], second: dict[str, Any], refused: bool
) -> None:
    app = replace(SHOP, stateful=("db", "other"))
    files = project(
        VOLUMES | volumes,
        db={"image": "x", "volumes": [first]}, other={"image": "x", "volumes": [second]},
    )  # fmt: skip
    if refused:
        with pytest.raises(Failed, match=r"^shared: db writes .*, and other writes there too"):
            stores.refuse(app, files)
        stores.refuse(replace(app, shared=(first["source"],)), files)
    else:
        stores.refuse(app, files)


CLIENT = {"image": "mongo:7", "restart": "no", "command": ["mongosh"]}


@pytest.mark.parametrize(
    ("service", "but", "refused"),
    [
        ({"image": "mongo:7"}, {}, "stateful: db runs mongo:7, and two releases run at once"),
        ({"image": "mongo:7"}, {"scratch": ("db",)}, ""),
        ({"image": "mongo:7"}, {"stateful": ("db",)}, ""),
        ({"image": "mongo:7"}, {"service": "db"}, "service: db runs mongo:7, and two"),
        (CLIENT, {}, ""),
        (CLIENT | {"command": None}, {}, "stateful: db runs mongo:7"),
        (CLIENT | {"restart": "always"}, {}, "stateful: db runs mongo:7"),
        ({"image": "mongo:7", "build": {}}, {}, ""),
        ({"image": "mongo:7", "profiles": ["tools"]}, {}, ""),
    ],
)
def test_a_database_by_its_name(service: dict[str, Any], but: dict[str, Any], refused: str) -> None:
    app: Application = replace(SHOP, **but)
    if refused:
        with pytest.raises(Failed, match=f"^{refused}"):
            stores.refuse(app, project(db=service))
    else:
        stores.refuse(app, project(db=service))


@pytest.mark.parametrize("compose", [(), ("compose.yaml",)])
def test_a_volume_of_the_image_is_proposed_to_last(compose: tuple[str, ...]) -> None:
    app = replace(SHOP, compose=compose, service="shop")
    with pytest.raises(Failed) as error:
        stores.refuse_nameless(app, "shop", ["/data", "/var/www/Files"])
    assert "at /data and /var/www/Files, which is new and empty with each" in str(error.value)
    assert 'volumes = {"data": "/data", "files": "/var/www/Files"} keeps it' in str(error.value)
    stores.refuse_nameless(replace(app, scratch=("shop",)), "shop", ["/data"])


def test_several_replicas_may_write_a_volume_of_the_settings() -> None:
    app = replace(SHOP, compose=(), service="shop", stateful=(), volumes={"files": "/files"})
    mount = {"type": "volume", "source": "files", "target": "/files"}
    files = {"name": "shop", "services": {"shop": {"volumes": [mount]}},
             "volumes": {"files": {"name": "shop_files"}}}  # fmt: skip
    stores.refuse(app, files)
    with pytest.raises(Failed, match=r"^shared: "):
        stores.refuse(replace(app, volumes={}), files)


# --- applications of which one instance may run ---------------------------------------------------

STOPS = replace(SHOP, strategy="stop-first", replicas=1)


@pytest.mark.parametrize(
    ("key", "first", "second"),
    [("data", "strategy", "shared"), ("sqlite", "strategy", "shared"),
     ("uploads", "shared", "strategy"), ("media_files", "shared", "strategy")],
)  # fmt: skip
def test_a_web_service_with_a_store_has_two_ways(key: str, first: str, second: str) -> None:
    files = project({key: None})
    files["services"]["web"]["volumes"] = [volume(key, "/there")]
    with pytest.raises(Failed) as refused:
        stores.refuse(SHOP, files)
    said = str(refused.value)
    assert said.index(f"{first} = ") < said.index(f"{second} = ")
    # Both ways lead on.
    stores.refuse(replace(SHOP, shared=(key,)), files)
    stores.refuse(STOPS, files)


def test_where_one_release_runs_at_a_time_its_services_write_as_in_the_files() -> None:
    files = project({"data": None}, worker={"image": "w", "volumes": [volume("data")]})
    files["services"]["web"]["volumes"] = [volume("data")]
    stores.refuse(STOPS, files)
    # As many processes as it has containers would write there.
    files["services"]["worker"]["scale"] = 2
    with pytest.raises(Failed, match=r"^shared: worker writes the volume data, and runs 2 times: "):
        stores.refuse(STOPS, files)
    stores.refuse(replace(STOPS, shared=("data",)), files)


def test_a_web_service_that_is_a_database_may_stop_first() -> None:
    files = project({"data": None})
    files["services"]["web"] = {"image": "ghcr.io/acme/pocketbase:1", "volumes": [volume("data")]}
    with pytest.raises(
        Failed, match=r"^service: web runs ghcr.* strategy = \"stop-first\", or scr"
    ):
        stores.refuse(SHOP, files)
    stores.refuse(STOPS, files)
    # A volume without a name would be empty after each release all the same.
    files["services"]["web"]["volumes"] = [volume("")]
    with pytest.raises(Failed, match=r"^scratch: web has a volume without a name at /data"):
        stores.refuse(STOPS, files)


def test_the_only_replica_has_the_volumes_of_the_settings_to_itself() -> None:
    (store,) = stores.of_service(
        STOPS, {"services": {"web": {"volumes": [volume("files")]}}}, "web"
    )
    app = replace(SHOP, volumes={"files": "/files"})
    assert stores.shared(app, store)
    assert not stores.shared(replace(app, strategy="stop-first"), store)


def test_other_databases_are_stateful_all_the_same() -> None:
    files = project(VOLUMES, db={"image": "postgres:17", "volumes": [volume("pg")]})
    with pytest.raises(Failed, match=r"^stateful: db runs postgres:17 on the volume pg"):
        stores.refuse(STOPS, files)

"""Which containers write a store now; a script stands in for Docker."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import holders, stateful
from terrafirma_host.compose import Compose
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

from tests.unit.programs import Program
from tests.unit.terrafirma_host.applications import told
from tests.unit.terrafirma_host.docker import inspected
from tests.unit.terrafirma_host.projects import SHOP, bind, project, volume

DOCKER = """\
case "$*" in
"ps --quiet"*) echo one ;;
"ps --all"*) ;;
"container inspect"*) cat {root}/containers ;;
"volume inspect"*) cat {root}/volumes ;;
"image inspect"*) cat {root}/images ;;
compose*) cat {root}/project ;;
esac
"""


@pytest.fixture
def host(roots: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = program("docker", DOCKER.format(root=roots))
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    for name in ("containers", "volumes", "images"):
        (roots / name).write_text("[]")
    return roots


def runs(
    host: Path, *mounts: dict[str, Any], name: str = "theirs", state: str = "running", **labels: str
) -> None:
    """Let only this container run."""
    words = {"app": "terrafirma.app", "project": holders.PROJECT, "service": holders.SERVICE}
    one = {
        "Id": "id", "Name": f"/{name}", "Mounts": mounts, "State": {"Status": state},
        "Config": {"Labels": {words[key]: label for key, label in labels.items()}},
    }  # fmt: skip
    (host / "containers").write_text(json.dumps([one]))


def mount(source: str, *, writes: bool = True, to: str = "/data") -> dict[str, Any]:
    where = {"Source": source} if source.startswith("/") else {"Name": source, "Source": "/v"}
    kind = "bind" if source.startswith("/") else "volume"
    return {"Type": kind, "RW": writes, "Destination": to, **where}


DB: Any = {"image": "x", "volumes": [volume("pg")]}
VOLUMES = {"pg": {"name": "shop_pg"}}
ONCE = replace(SHOP, stateful=("db",))


def test_no_container_is_in_the_way(host: Path) -> None:
    files = project(VOLUMES, db=DB)
    assert holders.in_the_way(ONCE, files) == []
    runs(host, mount("shop_pg", writes=False))
    assert holders.in_the_way(ONCE, files) == []
    runs(host, mount("another"), mount("/srv"))
    assert holders.in_the_way(ONCE, files) == []
    # Docker lists a container for a moment after it has stopped.
    runs(host, mount("shop_pg"), state="exited")
    assert holders.in_the_way(ONCE, files) == []


IN_THE_WAY: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "a container started by hand": (
        mount("shop_pg"),
        {},
        "end that container first (`docker stop theirs`",
    ),
    "an older release": (
        mount("shop_pg"),
        {"app": "shop", "project": "shop-blue", "service": "another"},
        "end that container first",
    ),
    "a service by another name": (
        mount("shop_pg"),
        {"app": "shop", "project": "shop-state", "service": "database"},
        "end that container first",
    ),
    "another application": (
        mount("shop_pg"),
        {"app": "depot", "project": "depot-state", "service": "db"},
        "only one of the two may, unless shared of both names pg",
    ),
    "by its directory": (mount("/var/lib/docker/volumes/shop_pg/_data"), {}, "end that container"),
}


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_a_container_in_the_way_is_refused(host: Path, what: str) -> None:
    there, labels, way = IN_THE_WAY[what]
    runs(host, there, **labels)
    with pytest.raises(Failed) as refused:
        holders.in_the_way(ONCE, project(VOLUMES, db=DB))
    said = str(refused.value)
    assert said.startswith("db writes the volume pg, and the container theirs writes there now")
    assert way in said
    assert "\n" not in said


@pytest.mark.parametrize("above", ["/srv/pg", "/srv", "/srv/pg/base"])
def test_a_directory_that_another_container_writes_is_refused(host: Path, above: str) -> None:
    runs(host, mount(above))
    with pytest.raises(Failed, match=r"^db writes the directory /srv/pg, and the container theirs"):
        holders.in_the_way(ONCE, project(db={"image": "x", "volumes": [bind("/srv/pg")]}))


def test_a_volume_that_stands_for_a_directory(host: Path) -> None:
    options = {"type": "none", "o": "bind", "device": "/srv/pg"}
    (host / "volumes").write_text(json.dumps([{"Name": "other", "Options": options}]))
    runs(host, mount("other"))
    with pytest.raises(Failed, match="the container theirs writes there now"):
        holders.in_the_way(ONCE, project(db={"image": "x", "volumes": [bind("/srv/pg")]}))


SLOT = {"name": "shop-blue-db-1", "app": "shop", "project": "shop-blue", "service": "db"}


def test_a_service_of_an_earlier_release_moves(host: Path) -> None:
    runs(host, mount("shop_pg"), mount("/run/x.sock", to="/x"), **SLOT)
    assert [one["Name"] for one in holders.in_the_way(ONCE, project(VOLUMES, db=DB))] == [
        "/shop-blue-db-1"
    ]
    # A shared store: no container is in the way.
    shared = replace(ONCE, shared=("pg",))
    assert holders.in_the_way(shared, project(VOLUMES, db=DB)) == []


@pytest.mark.parametrize(
    "elsewhere",
    [
        mount("0123456789abcdef", to="/data"),
        mount("shop_pg", to="/var/lib/data"),
        mount("/srv/pg"),
        mount("0123456789abcdef", to="/more"),
    ],
)
def test_a_service_finds_what_it_has_written(host: Path, elsewhere: dict[str, Any]) -> None:
    """Otherwise the service would begin with an empty store, without a warning."""
    both = [elsewhere] if elsewhere["Destination"] != "/more" else [mount("shop_pg"), elsewhere]
    runs(host, *both, **SLOT)
    words = rf"shop-blue-db-1 has written to {elsewhere['Destination']}, which is"
    with pytest.raises(Failed, match=words):
        holders.in_the_way(ONCE, project(VOLUMES, db=DB))


def test_a_stateful_service_must_not_also_be_in_a_slot(host: Path) -> None:
    runs(host, name="shop-state-db-1", app="shop", project="shop-state", service="db")
    files = project(VOLUMES, db={"image": "x"}, other=DB)
    with pytest.raises(Failed, match=r"^stateful: db still runs as shop-state-db-1, and is no"):
        holders.in_the_way(replace(SHOP, stateful=("other",)), files)


def test_two_applications_that_share_a_store_say_so_both(host: Path) -> None:
    depot: Application = replace(
        SHOP, name="depot", shared=("theirs",), service="web", secrets={}, compose=()
    )
    (host / "apps" / "depot.json").write_text(told(depot))
    volumes = {"pg": {"external": True, "name": "common"}}
    theirs = project({"theirs": {"external": True, "name": "common"}}, db={})
    theirs["services"]["web"]["volumes"] = [volume("theirs")]
    (host / "project").write_text(json.dumps(theirs))
    runs(host, mount("common"), app="depot", project="depot-blue", service="web")
    shop = replace(ONCE, shared=("pg",))
    assert holders.in_the_way(shop, project(volumes, db=DB)) == []
    with pytest.raises(Failed, match="unless shared of both names pg"):
        holders.in_the_way(ONCE, project(volumes, db=DB))
    # Until its turn in a deploy, the version before has described it.
    (host / "apps" / "depot.json").write_text('{"name": "depot", "shared": ["theirs"]}')
    assert holders.in_the_way(shop, project(volumes, db=DB)) == []
    (host / "apps" / "depot.json").write_text('{"name": "depot", "shared": []}')
    with pytest.raises(Failed, match="unless shared of both names pg"):
        holders.in_the_way(shop, project(volumes, db=DB))
    # An application that left the settings, and one that does not share the store.
    (host / "apps" / "depot.json").unlink()
    with pytest.raises(Failed, match="unless shared of both names pg"):
        holders.in_the_way(shop, project(volumes, db=DB))


def test_the_volumes_of_images_are_seen(host: Path) -> None:
    image = {"RepoTags": ["x:1"], "Config": {"Volumes": {"/var/lib/x": {}}}}
    (host / "images").write_text(json.dumps([image]))
    with pytest.raises(Failed, match=r"^scratch: web has a volume without a name at /var/lib/x"):
        holders.refuse_images(SHOP, project(), {"web": "x:1"})
    holders.refuse_images(replace(SHOP, scratch=("web",)), project(), {"web": "x:1"})
    covered = project(VOLUMES)
    covered["services"]["web"]["volumes"] = [volume("pg", "/var/lib/x")]
    holders.refuse_images(SHOP, covered, {"web": "x:1"})


def test_an_empty_volume_of_an_image_is_no_reason_to_stay(host: Path) -> None:
    """A database that never wrote to a VOLUME has such a volume: no data would be lost."""
    there = host / "anonymous"
    (there / "db").mkdir(parents=True)
    empty = mount("0" * 64, to="/data/configdb") | {"Source": str(there)}
    runs(host, mount("shop_pg"), empty, **SLOT)
    assert len(holders.in_the_way(ONCE, project(VOLUMES, db=DB))) == 1
    (there / "db" / "rows").touch()
    with pytest.raises(Failed, match="shop-blue-db-1 has written to /data/configdb, which is 00"):
        holders.in_the_way(ONCE, project(VOLUMES, db=DB))
    # A named volume, and one that cannot be read, may hold data.
    (there / "db" / "rows").unlink()
    for other in (empty | {"Name": "kept"}, empty | {"Source": "/no/where"}):
        runs(host, mount("shop_pg"), other, **SLOT)
        with pytest.raises(Failed, match="has written to /data/configdb"):
            holders.in_the_way(ONCE, project(VOLUMES, db=DB))


# Docker's commands, with the containers that are noted at that moment.
NOTES = """\
case "$*" in
stop*|start*|rm*|"network connect"*) echo "$1 $(cat {root}/opt/shop/moving 2>&-)" >> {root}/asked ;;
esac
"""


def asked(host: Path) -> list[str]:
    return (host / "asked").read_text().splitlines() if (host / "asked").exists() else []


@pytest.fixture
def noting(host: Path, program: Program) -> Path:
    program("docker", NOTES.format(root=host) + DOCKER.format(root=host))
    return host


def test_moving_containers_are_noted_during_the_move(
    noting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill at any moment, exactly the containers that the release stopped are known."""
    (noting / "project").write_text(json.dumps(project(VOLUMES, db=DB)))
    runs(noting, mount("shop_pg"), **SLOT)
    files, app = project(VOLUMES, db=DB), replace(ONCE, secrets={})
    moving = noting / "opt" / "shop" / "moving"
    holders.start_state(Compose(app), files, "green")
    assert asked(noting) == ["stop id", "rm id"]
    assert not moving.exists()
    # A service that cannot replace it.
    (noting / "asked").unlink()

    def fails(*_: object) -> None:
        raise Failed("it is not healthy")

    monkeypatch.setattr(stateful, "start", fails)
    with pytest.raises(Failed, match="it is not healthy"):
        holders.start_state(Compose(app), files, "green")
    assert asked(noting) == ["stop id", "start id"]
    assert not moving.exists()


def test_only_containers_that_a_move_stopped_start_again(noting: Path) -> None:
    """A container that ended, or was stopped by hand, is not started."""
    runs(noting, mount("shop_pg"), **SLOT)
    holders.settle(ONCE)
    assert asked(noting) == []
    moving = noting / "opt" / "shop" / "moving"
    moving.parent.mkdir(parents=True, exist_ok=True)
    moving.write_text("id\n")
    # Also when it is no longer named: it served, and has to serve.
    holders.settle(SHOP)
    assert asked(noting) == ["start id"]
    assert not moving.exists()
    holders.settle(ONCE)
    assert asked(noting) == ["start id"]


ENDED = """\
case "$*" in
"ps --all"*) echo ended; exit ;;
"container inspect ended") cat {root}/ended; exit ;;
esac
"""


def test_a_service_that_has_prepared_a_store_is_not_started_again(
    host: Path, program: Program
) -> None:
    """It does not start again and is not in the way, neither during the move nor later."""
    files = project(VOLUMES, init={"image": "x", "volumes": [volume("pg")]}, db=DB)
    both = replace(SHOP, stateful=("init", "db"))
    runs(host, mount("shop_pg"), **SLOT)
    assert len(holders.in_the_way(both, files)) == 1
    ended = inspected("shop-state-init-1", Status="exited", ExitCode=0)
    ended["Config"]["Labels"] = {holders.SERVICE: "init", "terrafirma.app": "shop"}
    ended["HostConfig"]["RestartPolicy"]["Name"] = "no"
    program("docker", ENDED.format(root=host) + DOCKER.format(root=host))
    runs(host, mount("shop_pg"), app="shop", project="shop-state", service="db", name="db-1")
    db = inspected("db-1")
    db["Config"]["Labels"] = {holders.SERVICE: "db"}
    (host / "ended").write_text(json.dumps([ended, db]))
    assert holders.in_the_way(both, files) == []
    # A failed one is in the way: it would start again beside the running service.
    ended["State"]["ExitCode"] = 1
    (host / "ended").write_text(json.dumps([ended, db]))
    with pytest.raises(Failed, match="init writes the volume pg, and the container db-1 writes"):
        holders.in_the_way(both, files)


# Two containers, each a file with its state; the script kills its caller before or after a change.
ENGINE = """\
cd {root}/engine
changes() {{
  echo >> count
  [ "$(wc -l < count) $1" != "$(cat kill)" ] || kill -9 $PPID
}}
case "$*" in
"ps --quiet"*) grep -lx running old new 2>&- ;;
"ps --all"*shop-state*) ls new 2>&- ;;
"container inspect"*)
  shift 2; comma=""; printf '['
  for one; do
    [ ! -e $one ] || {{ printf "$comma"; sed "s/STATUS/$(cat $one)/" $one.json; comma=,; }}
  done
  printf ']' ;;
"volume inspect"*|"network inspect"*) echo '[{{}}]' ;;
stop*) changes before; for one; do :; done; [ ! -e $one ] || echo exited > $one; changes after ;;
start*) changes before; echo running > $2; changes after ;;
rm*) changes before; for one; do :; done; rm -f $one; changes after ;;
compose*--no-start*) changes before; [ -e new ] || echo created > new; changes after ;;
compose*--detach*) changes before; echo running > new; changes after ;;
network*) changes before; changes after ;;
esac
exit 0
"""


@pytest.mark.parametrize("moment", range(1, 13))
def test_after_a_kill_at_any_point_one_container_writes_the_store(
    host: Path, program: Program, moment: int
) -> None:
    """Before or after any change: the next command finds one that runs, and continues."""
    directory = host / "engine"
    directory.mkdir()
    (directory / "kill").write_text(f"{moment} {'after' if moment % 2 == 0 else 'before'}")
    (directory / "old").write_text("running\n")
    for name, slot in (("old", "blue"), ("new", "state")):
        one = inspected(name, Status="STATUS", StartedAt="2026-01-01T00:00:00Z")
        one |= {"Id": name, "Mounts": [mount("shop_pg")], "Created": {"old": "1", "new": "2"}[name]}
        one["Config"]["Labels"] = {
            holders.SERVICE: "db", holders.PROJECT: f"shop-{slot}", "terrafirma.app": "shop"
        }  # fmt: skip
        one["NetworkSettings"] = {"Networks": {} if name == "new" else {"shop-blue": {}}}
        (directory / f"{name}.json").write_text(json.dumps(one))
    program("docker", ENGINE.format(root=host))
    app, files = replace(ONCE, secrets={}), project(VOLUMES, db=DB)

    def running() -> list[str]:
        there = [directory / name for name in ("old", "new")]
        return [one.name for one in there if one.exists() and one.read_text() == "running\n"]

    child = os.fork()
    if not child:
        try:
            holders.start_state(Compose(app), files, "green")
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(running()) < 2
    holders.settle(app)
    assert len(running()) == 1
    assert not (host / "opt" / "shop" / "moving").exists()
    holders.start_state(Compose(app), files, "green")
    assert running() == ["new"]
    assert not (directory / "old").exists()


def test_containers_that_are_about_to_stop_are_not_in_the_way(host: Path) -> None:
    """With stop-first, those of the release that serves; not any other, and not for long."""
    app = replace(SHOP, strategy="stop-first")
    files = project({"data": None})
    files["services"]["web"]["volumes"] = [volume("data")]
    runs(host, mount("shop_data"), app="shop", project="shop-blue", service="web")
    assert holders.in_the_way(app, files, "shop-blue") == []
    for leaves in ("", "shop-green"):
        with pytest.raises(Failed, match="web writes the volume data, and the container theirs"):
            holders.in_the_way(app, files, leaves)
    # A console, for example.
    runs(host, mount("shop_data"), app="shop", project="shop-run", service="web")
    with pytest.raises(Failed, match="and the container theirs writes there now: end that"):
        holders.in_the_way(app, files, "shop-blue")
    # A stateful service starts before they stop.
    runs(host, mount("shop_data"), app="shop", project="shop-blue", service="web")
    files = project({"data": None}, db={"image": "d", "volumes": [volume("data")]})
    with pytest.raises(Failed, match="db writes the volume data, and the container theirs"):
        holders.in_the_way(replace(app, stateful=("db",)), files, "shop-blue")

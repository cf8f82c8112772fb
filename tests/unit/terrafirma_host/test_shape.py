"""What follows from compose files without a setting; Compose itself reads files and layers."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import layers
from terrafirma_host.compose import Compose
from terrafirma_host.shell import Failed

from terrafirma.app.laptop import compose_program
from tests.e2e.projects import PG, SHAPES, WEB, service, web
from tests.unit.terrafirma_host.applications import described


@dataclass
class Shop:
    """A project below a directory, and its settings."""

    root: Path

    def read(self, compose: str, files: dict[str, str] | None = None, **settings: Any) -> Compose:
        source = self.root / "shop" / "sources" / "0123"
        own = {"compose.yaml": compose, "Dockerfile": "FROM x\n", "db/Dockerfile": ""}
        for name, text in (own | (files or {})).items():
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        plain = {"source": "examples/compose", "compose": ["compose.yaml"], "service": "web",
                 "user": "", "database": ""}  # fmt: skip
        app = described(**plain | settings)
        secrets = {}
        for name in app.secrets:
            secrets[name] = str(self.root / name)
            (self.root / name).write_text("postgresql://api:s3cret@host.docker.internal:5432/api\n")
        app = replace(app, name="shop", source=str(source), root=str(self.root), secrets=secrets)
        return Compose(app, compose_program())

    def merged(self, compose: Compose, project: layers.Project, slot: str = "") -> dict[str, Any]:
        """The services as Compose would start them; without a slot, the stateful ones."""
        app = compose.app
        images = {name: layers.image_name(app, name, "01") for name in project["services"]}
        text = (
            layers.slot_layer(app, project, slot=slot, release="01", replicas=2, images=images,
                              owner="")
            if slot else layers.state_layer(app, project)
        )  # fmt: skip
        said = compose.run("shop", compose.layer(slot or "state", text), "config", "--format",
                           "json")  # fmt: skip
        services: dict[str, Any] = json.loads(said).get("services", {})
        return services


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.mark.parametrize("name", SHAPES)
def test_what_the_files_say_is_taken_or_refused_in_one_line(shop: Shop, name: str) -> None:
    case = SHAPES[name]
    compose = shop.read(case.compose, case.files, **case.settings)
    try:
        compose.agree(compose.project())
        said = ""
    except Failed as error:
        said = str(error)
    assert "\n" not in said
    assert case.refused in said if case.refused else said == ""


LINES: dict[str, tuple[str, dict[str, Any], str]] = {
    "a database": (
        service('db: {image: "postgres:17"}'), {},
        "db runs postgres:17, a database by its name: it is stateful, and no release recreates it",
    ),
    "one that writes alone": (
        service('g: {image: grafana/grafana, volumes: ["pg:/var/lib/grafana"]}', PG), {},
        "g alone writes pg, and is not built here: it is stateful, and no release recreates it",
    ),
    "a profile": (
        service("mail: {image: mail, profiles: [dev]}"), {},
        "mail: not started: its profile (dev) is not in profiles",
    ),
    "left out": (service("x: {image: x}"), {"leave_out": ["x"]}, "x: left out (leave_out)"),
    "no restart policy": (
        service("jobs: {build: .}"), {},
        "jobs: no restart policy in the files: started again after a failure, and after each end "
        "once the release is complete",
    ),
    "a proxy": (
        service('nginx: {image: "nginx:1", ports: ["80:80"], restart: always}'), {},
        "nginx is a proxy of its own, which nobody reaches: Caddy has the ports 80 and 443. "
        'leave_out = ["nginx"] stops it, service = "nginx" puts it behind Caddy',
    ),
    "a proxy that keeps certificates": (
        service('caddy: {image: "caddy:2", ports: ["80:80"], volumes: ["pg:/data"]}', PG), {},
        "caddy is a proxy of its own, which nobody reaches: Caddy has the ports 80 and 443. "
        'leave_out = ["caddy"] stops it, service = "caddy" puts it behind Caddy',
    ),
    "a hardware address": (
        web("mac_address: 02:42:ac:11:65:43"), {},
        "web: mac_address is the engine's choice, because several containers run at once",
    ),
    "a hardware address in a network": (
        web("networks: {n: {mac_address: 02:42:ac:11:65:43}}", "networks: {n: }\n"), {},
        "web: mac_address is the engine's choice, because several containers run at once",
    ),
    "the web service is a proxy": (
        "services:\n  web: {image: nginx, depends_on: [api]}\n  api: {build: ., restart: always}\n",
        {},
        "web is a proxy behind Caddy: it has to pass on X-Forwarded-Proto as it comes (https), not "
        "its own; api run as often as the files say",
    ),
    "certificates": (
        service("certbot: {image: certbot/certbot, restart: always}"), {},
        'certbot fetches certificates, which Caddy does here: leave_out = ["certbot"] stops it',
    ),
    "labels": (
        service("api: {build: ., restart: always, labels: {traefik.enable: 'true'}}"), {},
        "api: labels or variables for a proxy lead nobody here: Caddy serves what the settings "
        "name",
    ),
    "a health check that asks for no path": (
        WEB, {"health": "tcp", "health_path": "/up", "health_headers": {"Host": "a"}},
        "health_path: no effect, because health is tcp: leave it out",
    ),
    "… nor has headers": (
        WEB, {"health": ["true"], "health_headers": {"Host": "a"}},
        "health_headers: no effect, because health is a command: leave it out",
    ),
    "… of a public service": (
        service("g: {build: ., restart: always}"),
        {"services": {"g": {"path": "/g/*", "health": "container", "health_path": "/up"}}},
        "services: g: health_path: no effect, because health is container: leave it out",
    ),
    "a socket that is not mounted": (
        WEB, {"docker_socket": ["web"]},
        "docker_socket: no effect, because web does not mount Docker's socket: leave web out",
    ),
    "the network of one of several": (
        service("side: {build: ., restart: always, network_mode: 'service:web'}"), {},
        "side has the network of web (network_mode), and that of its first container alone: 4 run",
    ),
    "addresses": (
        web("networks: [n]", "networks: {n: {ipam: {config: [{subnet: 10.9.0.0/24}]}}}\n"), {},
        "n: addresses are the engine's choice, because two releases run at once",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_differences_are_said(shop: Shop, name: str) -> None:
    text, settings, line = LINES[name]
    compose = shop.read(text, **settings)
    compose.project()
    assert line in compose.notes


def test_nothing_is_said_about_a_project_without_differences(shop: Shop) -> None:
    compose = shop.read(service('jobs: {build: ., restart: "no"}'))
    compose.project()
    assert compose.notes == []


def test_a_limit_in_the_older_form_moves_beside_ours(shop: Shop) -> None:
    text = web("mem_limit: 1g, cpus: 1.5, pids_limit: 200")
    compose = shop.read(text, memory_mb=512)
    made = shop.merged(compose, compose.project(), "blue")["web"]
    limits = made["deploy"]["resources"]["limits"]
    assert limits == {"memory": str(512 * 2**20), "cpus": 1.5, "pids": 200}
    assert not {"mem_limit", "cpus", "pids_limit"} & made.keys()


def test_a_volume_of_the_settings_replaces_a_directory(shop: Shop) -> None:
    text = web('volumes: ["./data:/app/data/", "/srv/conf:/conf:ro"]')
    compose = shop.read(text, volumes={"files": "/app/data"})
    project = compose.project()
    assert "web: /app/data is the volume files, not ./data" in compose.notes
    made = shop.merged(compose, project, "blue")["web"]
    kinds = {mount["target"].rstrip("/"): mount["type"] for mount in made["volumes"]}
    assert kinds == {"/app/data": "volume", "/conf": "bind"}


def test_each_container_is_found_under_its_name(shop: Shop) -> None:
    text = service("api: {build: ., container_name: shop_api, networks: {a: {aliases: [x]}, b: }}\n"
                   "  db: {image: postgres, container_name: shop_db}",
                   "networks: {a: , b: }\n")  # fmt: skip
    compose = shop.read(text)
    project = compose.project()
    api = shop.merged(compose, project, "blue")["api"]
    assert "container_name" not in api
    assert sorted(api["networks"]["a"]["aliases"]) == ["shop_api", "x"]
    assert api["networks"]["b"]["aliases"] == ["shop_api"]
    db = shop.merged(compose, project)["db"]
    assert db["networks"]["default"]["aliases"] == ["shop_db"]
    assert layers.aliases(project, "db", "default") == ["db", "shop_db"]


def test_mounts_and_addresses_are_those_of_the_host(shop: Shop) -> None:
    text = web(
        'volumes: [".:/app", "/app/node_modules", "./a$$b.json:/a.json", "./up:/app/uploads"], '
        "networks: {n: {ipv4_address: 10.9.0.5}}",
        "networks: {n: {ipam: {config: [{subnet: 10.9.0.0/24}]}}}\n",
    )
    files = {"Dockerfile": "FROM x\nCOPY . /app\n", "a$b.json": "{}"}
    compose = shop.read(text, files, shared=["up"])
    one = shop.merged(compose, compose.project(), "green")["web"]
    found = [(mount["type"], mount.get("source"), mount["target"], mount.get("read_only", False))
             for mount in one["volumes"]]  # fmt: skip
    assert found == [
        ("bind", f"{compose.app.source}/a$$b.json", "/a.json", True),
        ("volume", "up", "/app/uploads", False),
    ]
    assert not (one["networks"]["n"] or {}).get("ipv4_address")


def test_the_volumes_of_a_stateful_service_are_mounted_by_their_names(shop: Shop) -> None:
    text = service('db: {build: db, volumes: ["pg:/d"]}\n'
                   '  save: {build: ., volumes: ["b1:/b"], volumes_from: ["db:ro", "web"]}',
                   "volumes: {pg: , b1: }\n")  # fmt: skip
    compose = shop.read(text, stateful=["db"], shared=["b1"])
    save = shop.merged(compose, compose.project(), "blue")["save"]
    assert [(one["source"], one.get("read_only", False)) for one in save["volumes"]] == [
        ("b1", False), ("pg", True),
    ]  # fmt: skip
    assert save["volumes_from"] == ["web"]


def test_settings_of_single_services(shop: Shop) -> None:
    text = service("jobs: {build: ., mem_limit: 1g, command: [a], scale: 3, stop_signal: SIGHUP}\n"
                   "  db: {image: postgres}")  # fmt: skip
    own = {"env": {"LEVEL": "$x", "WORKERS": 2}, "memory_mb": 512, "cpus": 1.5, "replicas": 2,
           "stop_signal": "SIGINT", "stop_seconds": 30, "command": ["run", "$1"]}  # fmt: skip
    state = {"memory_mb": 256, "stop_seconds": 60, "env": {"A": "1"}}
    compose = shop.read(
        text, services={"jobs": own, "db": state}, env={"LEVEL": "info", "B": "2"}, memory_mb=128
    )
    project = compose.project()
    assert [*layers.lasting(compose.app, project)].count("jobs") == 2
    slot = shop.merged(compose, project, "blue")
    jobs = slot["jobs"]
    assert jobs["environment"] | {"LEVEL": "$$x", "WORKERS": "2", "B": "2"} == jobs["environment"]
    assert jobs["deploy"]["resources"]["limits"] == {"cpus": 1.5, "memory": str(512 * 2**20)}
    assert jobs["deploy"]["replicas"] == 2
    assert jobs["stop_signal"] == "SIGINT"
    assert jobs["stop_grace_period"] == "30s"
    assert jobs["command"] == ["run", "$$1"]
    assert slot["web"]["deploy"]["resources"]["limits"] == {"memory": str(128 * 2**20)}
    db = shop.merged(compose, project)["db"]
    assert db["environment"] == {"A": "1"}
    assert db["deploy"]["resources"]["limits"] == {"memory": str(256 * 2**20)}
    assert db["stop_grace_period"] == "1m0s"


@pytest.mark.parametrize(
    "settings",
    [
        {"service": "once"},
        {"stateful": ["once"]},
        {"leave_out": ["once"]},
        {"database_replaces": "once", "database": "api"},
        {"services": {"once": {"path": "/once/*"}}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_migration_is_nothing_else(shop: Shop, settings: dict[str, Any]) -> None:
    (key, *_) = settings
    compose = shop.read(service("once: {build: .}"), migrate=["once"], **settings)
    words = f"^migrate: the service once runs once before each release, and {key} names it, too: "
    with pytest.raises(Failed, match=words):
        compose.project()


def test_a_chosen_profile_runs(shop: Shop) -> None:
    text = (
        "services:\n  web: {build: ., profiles: [app]}\n  jobs: {build: ., profiles: [prod, x]}\n"
        "  mail: {image: mail, profiles: [dev]}\n"
    )
    compose = shop.read(text, profiles=["prod"])
    started = shop.merged(compose, compose.project(), "blue")
    assert sorted(started) == ["jobs", "web"]


def test_relative_paths_begin_where_the_first_file_is(shop: Shop) -> None:
    files = {"docker/compose.yaml": web('build: {context: ..}, volumes: ["./conf:/etc/conf:ro"]')
             .replace("build: ., ", ""),
             "docker/conf/a": "x"}  # fmt: skip
    compose = shop.read(WEB, files)
    compose = Compose(replace(compose.app, compose=("docker/compose.yaml",)), compose_program())
    one = compose.project()["services"]["web"]
    assert one["build"]["context"] == compose.app.source
    assert one["volumes"][0]["source"] == f"{compose.app.source}/docker/conf"


def test_include_and_extends(shop: Shop) -> None:
    web = "web: {extends: {file: base/b.yaml, service: b}}"
    text = f"include: [more/compose.yaml]\nservices:\n  {web}\n"
    files = {
        "more/compose.yaml": 'services: {db: {image: postgres, volumes: ["./i.sql:/i.sql"]}}\n',
        "more/i.sql": "x",
        "base/b.yaml": "services: {b: {build: .., depends_on: [db]}}\n",
    }
    compose = shop.read(text, files)
    project = compose.project()
    assert compose.app.stateful == ("db",)
    assert "depends_on" not in shop.merged(compose, project, "blue")["web"]
    (mount,) = shop.merged(compose, project)["db"]["volumes"]
    assert mount["source"] == f"{compose.app.source}/more/i.sql"
    assert mount["read_only"] is True


def test_a_stateful_service_with_the_image_of_a_sibling_is_built(shop: Shop) -> None:
    text = service("setup: {image: shop, command: [x]}").replace(
        "build: .", "build: ., image: shop"
    )
    compose = shop.read(text, stateful=["setup"])
    setup = shop.merged(compose, compose.project())["setup"]
    assert setup["build"]["context"] == compose.app.source
    assert setup["image"] == "shop-state-setup"

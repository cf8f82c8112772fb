"""The layers over a compose project, read as YAML with Compose's own tags."""

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import yaml
from terrafirma_host import builds, directories, layer_variables, layers
from terrafirma_host.spec import Application

from tests.unit.terrafirma_host.applications import described


@dataclass(frozen=True)
class Tagged:
    """A value behind `!reset` or `!override`."""

    tag: str
    value: Any


class Loader(yaml.SafeLoader):
    """YAML as Compose reads it."""


def _tagged(loader: Loader, tag: str, node: yaml.Node) -> Tagged:
    if isinstance(node, yaml.ScalarNode):
        return Tagged(tag, None if node.value == "null" else node.value)
    if isinstance(node, yaml.SequenceNode):
        return Tagged(tag, loader.construct_sequence(node, deep=True))
    assert isinstance(node, yaml.MappingNode)
    return Tagged(tag, loader.construct_mapping(node, deep=True))


Loader.add_multi_constructor("!", _tagged)
RESET = Tagged("reset", None)


def read(text: str) -> dict[str, Any]:
    answer: dict[str, Any] = yaml.load(text, Loader)
    return answer


APP = described(container_port=8080)
SHOP = replace(
    APP, name="shop", source="/opt/terrafirma/shop/sources/0123", compose=("compose.yaml",),
    service="web", stateful=("redis",), migrate=("migrate",),
)  # fmt: skip
# As `docker compose config --format json` prints it.
OWN: dict[str, Any] = {
    "name": "api",
    "services": {"api": {"build": {"context": APP.source}, "image": "set-by-the-layer"}},
    "networks": {"default": {"name": "apps", "external": True}},
}
COMPLETED = {"condition": "service_completed_successfully", "required": True}
HEALTHY = {"condition": "service_healthy", "required": True}
PROJECT: dict[str, Any] = {
    "name": "shop",
    "services": {
        "web": {
            "build": {"context": SHOP.source},
            "depends_on": {"migrate": COMPLETED, "redis": HEALTHY},
            "networks": {"default": None},
            "ports": [{"mode": "ingress", "target": 8000, "published": "8080", "protocol": "tcp"}],
        },
        "worker": {
            "build": {"context": SHOP.source},
            "depends_on": {"web": HEALTHY, "redis": HEALTHY},
            "deploy": {"replicas": 3},
        },
        "Mail": {"image": "mailhog:1", "ports": [{"target": 8025, "published": "8025"}]},
        "migrate": {"build": {"context": SHOP.source}, "depends_on": {"redis": HEALTHY}},
        "redis": {"image": "redis:7", "ports": [{"target": 6379, "published": "6379"}]},
    },
    "networks": {
        "default": {"name": "shop_default", "ipam": {}},
        "inner": {"name": "shop_inner", "ipam": {}},
        "theirs": {"name": "theirs", "external": True},
    },
    "volumes": {
        "data": {"name": "shop_data"},
        "chosen": {"name": "by-hand"},
        "theirs": {"name": "theirs", "external": True},
    },
}


def layer(app: Application = APP, project: dict[str, Any] = OWN, **but: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "slot": "blue",
        "release": "0123456789ab",
        "replicas": 4,
        "owner": "1000:1001",
        "images": {app.service: f"terrafirma/{app.name}:0123456789ab"},
    }
    return read(layers.slot_layer(app, project, **data | but))


def service(app: Application = APP, **but: Any) -> dict[str, Any]:
    """The layer over the only service of an application."""
    answer: dict[str, Any] = layer(app, **but)["services"][app.service]
    return answer


def shop(app: Application = SHOP, **but: Any) -> dict[str, Any]:
    return layer(app, PROJECT, **but)


def test_each_public_service_has_its_ports() -> None:
    project: dict[str, Any] = {
        "source": "examples/compose", "compose": ["compose.yaml"], "service": "web",
        "services": {"api": {"path": "/api/*", "port": 3000, "replicas": 1}, "Mail": {
            "domain": "mail.acme.com"}},
    }  # fmt: skip
    app = described(**project)
    services = {
        "web": {"ports": [{"target": 8000}]}, "worker": {},
        "api": {"restart": "no", "scale": 4}, "Mail": {"ports": [{"target": 8025}]},
    }  # fmt: skip
    there = {"services": services}
    found = layer(app, there)["services"]
    ports = {name: getattr(one["ports"], "value", None) for name, one in found.items()}
    assert ports == {
        "web": ["127.0.0.1:8000-8003:8000"], "worker": [],
        "Mail": ["127.0.0.1:8256-8257:8025"], "api": ["127.0.0.1:8128:3000"],
    }  # fmt: skip
    assert found["api"]["deploy"]["replicas"] == 1
    assert found["api"]["scale"] == RESET
    # It serves, so it does not end.
    assert found["api"]["restart"] == "unless-stopped"
    assert layers.lasting(app, there) == ["Mail", "Mail", "api", *["web"] * 4, "worker"]
    # Another number of replicas is no other release.
    fewer = replace(app, public={
        name: replace(one, replicas=5, slots={"blue": 1, "green": 2})
        for name, one in app.public.items()
    })  # fmt: skip
    assert layer(app, there, slot="", replicas=0) == layer(fewer, there, slot="", replicas=0)


# --- the project of an application without compose files ------------------------------------------


def together(app: Application) -> dict[str, Any]:
    """The service of an application, with the layer over it."""
    project = json.loads(layers.own_project(app))
    directories.add(app, project)
    own: dict[str, Any] = project["services"]["api"]
    over = service(app, project=project)
    return own | over | {"environment": own.get("environment", {}) | over["environment"]}


def test_replicas_under_the_id_of_an_account_can_do_little() -> None:
    one = together(APP)
    assert one["user"] == "1000:1001"
    assert one["read_only"] is True
    assert one["tmpfs"] == ["/tmp:mode=1777,exec"]
    assert one["cap_drop"] == ["ALL"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert one["restart"] == "unless-stopped"
    assert one["init"] is True
    for more in ("privileged", "cap_add", "volumes", "devices", "pid", "ipc", "network_mode"):
        assert more not in one


def test_the_id_of_an_account_has_a_home() -> None:
    """Docker would take `/`, where it can write nothing."""
    assert together(APP)["environment"]["HOME"] == "/tmp"
    assert together(replace(APP, env={"HOME": "/srv"}))["environment"]["HOME"] == "/srv"
    assert shop()["services"]["worker"]["environment"]["HOME"] == "/tmp"
    theirs = {"worker": PROJECT["services"]["worker"] | {"environment": {"HOME": "/srv"}}}
    files = PROJECT | {"services": PROJECT["services"] | theirs}
    assert "HOME" not in layer(SHOP, files)["services"]["worker"]["environment"]


def test_replicas_as_their_image_says_may_change_their_user() -> None:
    """An entry point prepares its directories as root, and then takes another user."""
    one = together(replace(APP, user="", read_only=False))
    assert {"SETUID", "SETGID", "CHOWN", "NET_BIND_SERVICE"}.isdisjoint(one["cap_drop"])
    assert "MKNOD" in one["cap_drop"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    for more in ("read_only", "tmpfs", "privileged", "cap_add", "volumes", "devices"):
        assert more not in one
    assert "HOME" not in one["environment"]


def test_an_image_that_begins_with_an_init_gets_no_other() -> None:
    assert together(replace(APP, own_init=True))["init"] is False


def test_an_image_is_built_from_the_source_or_not_at_all() -> None:
    (own,) = json.loads(layers.own_project(APP))["services"].values()
    assert own["build"] == {"context": APP.source}
    (own,) = json.loads(layers.own_project(APP.with_image("api:1")))["services"].values()
    assert "build" not in own


def test_an_image_is_built_as_the_settings_say() -> None:
    app = replace(APP, dockerfile="docker/Dockerfile", target="web", build_args={"A": "${B}"})
    (own,) = json.loads(layers.own_project(app))["services"].values()
    assert own["build"] == {
        "context": APP.source, "dockerfile": "docker/Dockerfile", "target": "web",
        "args": {"A": "$${B}"},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["apps", "2024", "1e5", "null"])
def test_replicas_are_in_the_network_of_the_applications(name: str) -> None:
    """The network is not the slot's: the slot neither makes nor removes one."""
    own = read(layers.own_project(replace(APP, network=name)))
    assert own["networks"] == {"default": {"name": name, "external": True}}
    assert "networks" not in layer(project=OWN | {"networks": own["networks"]})


# --- a slot ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slot", "replicas", "ports"),
    [
        ("blue", 1, "127.0.0.1:8000:8080"),
        ("blue", 4, "127.0.0.1:8000-8003:8080"),
        ("blue", 64, "127.0.0.1:8000-8063:8080"),
        ("green", 1, "127.0.0.1:8064:8080"),
        ("green", 2, "127.0.0.1:8064-8065:8080"),
    ],
)
def test_replicas_have_a_loopback_port_each(slot: str, replicas: int, ports: str) -> None:
    made = service(slot=slot, replicas=replicas)
    assert made["ports"] == Tagged("override", [ports])
    assert made["deploy"]["replicas"] == replicas
    # `scale` would override the number of replicas.
    assert made["scale"] == RESET
    assert made["labels"]["terrafirma.slot"] == slot


@pytest.mark.parametrize("release", ["12345678", "1e5", "0x12", "0123456789ab", "null", "no"])
def test_a_release_is_text_whatever_its_digits(release: str) -> None:
    made = service(release=release, images={"api": f"terrafirma/api:{release}"})
    assert made["labels"] == {
        "terrafirma.app": "api",
        "terrafirma.slot": "blue",
        "terrafirma.release": release,
    }
    assert made["image"] == f"terrafirma/api:{release}"
    assert made["environment"]["TERRAFIRMA_RELEASE"] == release


@pytest.mark.parametrize("name", ["null", "no", "e5", "y"])
def test_names_are_text_whatever_yaml_thinks_of_them(name: str) -> None:
    app = replace(APP, name=name, service=name)
    project = OWN | {"services": {name: OWN["services"]["api"]}}
    assert list(layer(app, project)["services"]) == [name]
    own = read(layers.own_project(app))
    assert list(own["services"]) == [name]


def test_nothing_is_built_as_a_slot_starts() -> None:
    assert service()["build"] == RESET


def test_replicas_find_the_host_and_are_told_apart_by_their_project() -> None:
    made = service()
    assert made["extra_hosts"] == ["host.docker.internal:host-gateway"]
    assert made["container_name"] == RESET
    assert made["stop_grace_period"] == f"{APP.stop_seconds}s"


@pytest.mark.parametrize("owner", ["", "0:0", "1000:1001"])
def test_replicas_run_as_an_account_or_as_their_image_says(owner: str) -> None:
    assert service(owner=owner).get("user", "") == owner


@pytest.mark.parametrize(
    ("memory", "cpus", "limits"),
    [
        (0, 0.0, None),
        (512, 0.0, {"memory": "512M"}),
        (0, 0.5, {"cpus": "0.5"}),
        (64, 2.0, {"memory": "64M", "cpus": "2.0"}),
    ],
)
def test_limits(memory: int, cpus: float, limits: dict[str, str] | None) -> None:
    app = replace(SHOP, memory_mb=memory, cpus=cpus)
    resources = None if limits is None else {"limits": limits}
    for made in shop(app)["services"].values():
        if made != RESET:
            assert made["deploy"].get("resources") == resources


# --- secrets and variables ------------------------------------------------------------------------

SECRETS = {
    "database_url": "/etc/terrafirma/secrets/app/api/database_url",
    "token": "/etc/terrafirma/secrets/app/api/token",
}


@pytest.mark.parametrize("as_variables", [False, True])
def test_secrets_are_files_and_their_content_is_nowhere(as_variables: bool) -> None:
    app = replace(APP, secrets=SECRETS, secrets_env=as_variables)
    made = layer(app)
    # In the slot's directory: a changed secret does not reach an older release.
    directory = "/etc/terrafirma/secrets/slots/api/blue"
    assert made["secrets"] == {name: {"file": f"{directory}/{name}"} for name in SECRETS}
    replicas = made["services"]["api"]
    assert replicas["secrets"] == ["database_url", "token"]
    # Compose takes their values from its own environment.
    names = ["DATABASE_URL", "TOKEN"] if as_variables else []
    variables = {name: f"${{TERRAFIRMA_SECRET_{name}}}" for name in names}
    assert replicas["environment"] == {**variables, "TERRAFIRMA_RELEASE": "0123456789ab"}


def test_values_with_references_are_in_no_layer() -> None:
    env = {
        "LEVEL": "info",
        "DATABASE_URL": "{database.url:postgresql+psycopg}",
        "Token": "Bearer {secrets.token}",
        "TEXT": "{{secrets.token}} costs\n$5",
    }
    for as_variables in (False, True):
        app = replace(APP, secrets=SECRETS, secrets_env=as_variables, env=env)
        assert layer(app)["services"]["api"]["environment"] == {
            "LEVEL": "info",
            "TEXT": "{secrets.token} costs\n$$5",
            "DATABASE_URL": "${TERRAFIRMA_SECRET_DATABASE_URL}",
            "Token": "${TERRAFIRMA_SECRET_Token}",
            **({"TOKEN": "${TERRAFIRMA_SECRET_TOKEN}"} if as_variables else {}),
            "TERRAFIRMA_RELEASE": "0123456789ab",
        }


def test_variables_of_a_file_are_in_no_layer() -> None:
    app = replace(SHOP, variables=("TOKEN", "discovery.type"), env_files={"web": ("a.env",)})
    name = "TERRAFIRMA_SECRET_0646973636f766572792e74797065"
    assert (
        layer_variables.variables(app)
        == f"TOKEN=${{TERRAFIRMA_SECRET_TOKEN}}\ndiscovery.type=${{{name}}}\n"
    )
    file = layer_variables.variables_file(app)
    assert file.startswith("/opt/terrafirma/shop/layers/variables-")
    assert file != layer_variables.variables_file(replace(app, variables=("TOKEN",)))
    services = layer(app, PROJECT)["services"]
    assert services["web"]["env_file"] == services["migrate"]["env_file"] == [file]
    assert services["redis"] == RESET
    assert "env_file" not in layer(SHOP, PROJECT)["services"]["web"]
    text = layer_variables.env_files(app, "/run/x.env")
    assert read(text) == {
        "services": {"web": {"env_file": Tagged("override", ["a.env", "/run/x.env"])}}
    }


def test_an_application_without_secrets_has_none() -> None:
    made = layer(replace(APP, secrets={}))
    assert "secrets" not in made
    assert made["services"]["api"]["secrets"] == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("a$b", "a$$b"),
        ("${HOME}", "$${HOME}"),
        ("$$", "$$$$"),
        ("no", "no"),
        ("1e5", "1e5"),
        ("", ""),
        ('it\'s "x": # [y] {z} \\ ü\N{SNOWMAN}', 'it\'s "x": # [y] {z} \\ ü\N{SNOWMAN}'),
    ],
)
def test_variables_have_the_values_of_the_settings(value: str, said: str) -> None:
    """Compose would read a single dollar sign as a variable."""
    assert service(replace(APP, env={"X": value}))["environment"]["X"] == said


def test_settings_cannot_replace_the_release_in_the_environment() -> None:
    made = service(replace(APP, env={"TERRAFIRMA_RELEASE": "mine"}))
    assert made["environment"] == {"TERRAFIRMA_RELEASE": "0123456789ab"}


# --- a user's compose project ---------------------------------------------------------------------


def test_the_services_that_a_release_recreates() -> None:
    assert layers.slot_services(SHOP, PROJECT) == ["web", "worker", "Mail"]
    # A command of several words is no service, even if its first word is the name of one.
    app = replace(SHOP, migrate=("worker", "--once"))
    assert layers.slot_services(app, PROJECT) == ["web", "worker", "Mail", "migrate"]
    assert not layers.migrates_by_service(APP, OWN)
    assert not layers.migrates_by_service(replace(APP, migrate=("api",)), OWN)


def test_stateful_services_are_not_in_a_slot() -> None:
    assert shop()["services"]["redis"] == RESET


def test_a_migration_is_there_for_run_and_not_for_up() -> None:
    services = shop()["services"]
    # It replaces the profiles of the files: one of them might be active.
    assert services["migrate"]["profiles"] == Tagged("override", ["terrafirma-once"])
    assert services["migrate"]["restart"] == "no"
    assert services["migrate"]["secrets"] == list(SHOP.secrets)
    assert [name for name, one in services.items() if one != RESET and "profiles" in one] == [
        "migrate"
    ]


def profiled() -> dict[str, Any]:
    """The project with two services that `up` alone does not start; one of them migrates."""
    services = PROJECT["services"] | {
        "debug": {"image": "busybox:1", "profiles": ["debug"]},
        "migrate": PROJECT["services"]["migrate"] | {"profiles": ["tools"]},
    }
    return PROJECT | {"services": services}


def test_a_service_with_a_profile_is_not_started_by_itself() -> None:
    project = profiled()
    assert layers.slot_services(SHOP, project) == ["web", "worker", "Mail"]
    services = layer(SHOP, project)["services"]
    assert services["debug"] == RESET
    # Except a migration: that is run by its name.
    assert services["migrate"]["profiles"] == Tagged("override", ["terrafirma-once"])


def test_a_service_that_is_to_run_once_is_not_started_again() -> None:
    services = PROJECT["services"] | {"seed": {"image": "busybox:1", "restart": "no"}}
    made = layer(SHOP, PROJECT | {"services": services})["services"]
    assert "restart" not in made["seed"]
    assert made["worker"]["restart"] == "on-failure"


POLICY = {"restart_policy": {"condition": "on-failure", "max_attempts": 3}}


@pytest.mark.parametrize(
    ("name", "files", "restart", "policy"),
    [
        # A service that serves is restarted; Compose uses the policy in `deploy`.
        ("web", {"restart": "no"}, "unless-stopped", None),
        ("web", {"deploy": POLICY}, "unless-stopped", RESET),
        ("worker", {"deploy": {"restart_policy": {"condition": "any"}}}, "unless-stopped", RESET),
        ("worker", {"restart": "always"}, "unless-stopped", None),
        # A service that may end, and says so, keeps the policy of its files.
        ("Mail", {"deploy": POLICY}, None, None),
        ("Mail", {"restart": "on-failure:3"}, None, None),
        # A service whose end is awaited may end.
        ("setup", {}, "no", None),
        ("setup", {"restart": "always"}, "no", None),
        ("setup", {"deploy": {"restart_policy": {"condition": "any"}}}, "no", RESET),
        ("setup", {"restart": "on-failure"}, None, None),
    ],
)
def test_the_restart_policies_of_a_slot(
    name: str, files: dict[str, Any], restart: str | None, policy: Tagged | None
) -> None:
    services = dict(PROJECT["services"], setup={"image": "busybox:1"})
    services["worker"] = services["worker"] | {"depends_on": {"setup": COMPLETED}}
    services[name] = services[name] | files
    app = replace(SHOP, memory_mb=64)
    made = layer(app, PROJECT | {"services": services})["services"][name]
    assert made.get("restart") == restart
    assert made["deploy"].get("restart_policy") == policy
    assert made["deploy"]["resources"] == {"limits": {"memory": "64M"}}


def test_stateful_services_are_restarted() -> None:
    services = dict(PROJECT["services"])
    for files in ({"restart": "no"}, {"deploy": POLICY}):
        services["redis"] = PROJECT["services"]["redis"] | files
        (made,) = (
            one
            for one in read(layers.state_layer(SHOP, {"services": services}))["services"].values()
            if isinstance(one, dict)
        )
        assert made["restart"] == "unless-stopped"
        assert ("deploy" in made) is ("deploy" in files)


def test_services_only_depend_on_services_in_the_same_slot() -> None:
    services = shop()["services"]
    assert services["web"]["depends_on"] == RESET
    assert services["worker"]["depends_on"] == Tagged("override", {"web": HEALTHY})
    assert services["migrate"]["depends_on"] == RESET
    assert "depends_on" not in services["Mail"]


def test_only_the_service_that_serves_has_ports_and_replicas() -> None:
    """Two slots would publish the same port, and the internet connects through Caddy."""
    services = shop()["services"]
    assert services["web"]["ports"] == Tagged("override", ["127.0.0.1:8000-8003:8080"])
    for name in ("worker", "Mail", "migrate"):
        assert services[name]["ports"] == Tagged("reset", [])
        assert "replicas" not in services[name]["deploy"]


def test_networks_are_a_slots_own() -> None:
    for slot in ("blue", "green"):
        assert shop(slot=slot)["networks"] == {
            "default": Tagged("override", {"name": f"shop-{slot}", "external": True}),
            "inner": Tagged("override", {"name": f"shop-{slot}-inner", "external": True}),
        }


def test_volumes_are_the_same_in_every_slot() -> None:
    """They are those that `docker compose up` of the project makes."""
    volumes = {
        "data": Tagged("override", {"name": "shop_data", "external": True}),
        "chosen": Tagged("override", {"name": "by-hand", "external": True}),
    }
    state = read(layers.state_layer(SHOP, PROJECT))
    assert shop()["volumes"] == shop(slot="green")["volumes"] == state["volumes"] == volumes
    assert "volumes" not in layer()


def test_images_are_those_of_the_release() -> None:
    services = shop(images={"web": "terrafirma/shop:1", "worker": "terrafirma/shop/worker:1"})
    services = services["services"]
    assert services["web"]["image"] == "terrafirma/shop:1"
    assert services["worker"]["image"] == "terrafirma/shop/worker:1"
    assert services["Mail"]["image"] == "mailhog:1"


def test_the_common_part_of_both_slots_names_no_slot() -> None:
    """A release is the same in both slots: its ID is a digest of this."""
    data: dict[str, Any] = {"slot": "", "release": "", "replicas": 0, "images": {}, "owner": ""}
    text = layers.slot_layer(SHOP, PROJECT, **data)
    assert read(text)
    for word in ("blue", "green", "terrafirma.release", str(SHOP.slots["blue"])):
        assert word not in text


# --- what is built --------------------------------------------------------------------------------


def test_images_that_are_built_are_named_and_labelled() -> None:
    made = read(builds.layer(SHOP, PROJECT, "0123456789ab"))["services"]
    labels = {"labels": {"terrafirma.app": "shop"}}
    assert made == {
        "web": {"image": "terrafirma/shop:0123456789ab", "build": labels},
        "worker": {"image": "terrafirma/shop/worker:0123456789ab", "build": labels},
        "migrate": {"image": "terrafirma/shop/migrate:0123456789ab", "build": labels},
    }


def test_all_releases_are_built_from_one_path() -> None:
    """By it the builder knows which files it has: else it would get all of them each time."""
    contexts = {"code": f"{SHOP.source}/lib", "base": "docker-image://debian"}
    builds_of_web = {"context": f"{SHOP.source}/web", "additional_contexts": contexts}
    services: dict[str, Any] = {
        "web": {"build": builds_of_web},
        "worker": {"build": {"context": "https://github.com/acme/worker.git"}},
        "other": {"build": {"context": f"{SHOP.source}-of-another"}},
        "inline": {"build": {"dockerfile_inline": "FROM debian"}},
    }
    text = builds.layer(SHOP, {"services": services}, "01", source="/opt/building")
    made = {name: one["build"] for name, one in read(text)["services"].items()}
    assert made["web"]["context"] == "/opt/building/web"
    assert made["web"]["additional_contexts"] == {**contexts, "code": "/opt/building/lib"}
    assert made["worker"]["context"] == services["worker"]["build"]["context"]
    assert made["other"]["context"] == services["other"]["build"]["context"]
    assert "context" not in made["inline"]


def test_a_project_that_builds_nothing_has_a_layer_that_compose_takes() -> None:
    """Compose refuses `services` without a value."""
    project = {"services": {"web": {"image": "nginx"}, "redis": {"build": {}}}}
    assert read(builds.layer(SHOP, project, "01")) == {"services": {}}


def test_docker_takes_no_capitals_in_the_name_of_an_image() -> None:
    assert layers.image_name(SHOP, "Mail", "01") == "terrafirma/shop/mail:01"


# A part of the files, as Compose prints it; the layer over it.
BOTH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {"security_opt": ["no-new-privileges:true"], "links": None}),
    "another option": (
        {"security_opt": ["seccomp=unconfined"]},
        {"security_opt": ["no-new-privileges:true"]},
    ),
    "the same option": (
        {"security_opt": ["no-new-privileges:true", "label=disable"]},
        {"security_opt": Tagged("override", ["label=disable", "no-new-privileges:true"])},
    ),
    "its opposite": (
        {"security_opt": ["no-new-privileges=false"]},
        {"security_opt": Tagged("override", ["no-new-privileges:true"])},
    ),
    "its short form": (
        {"security_opt": ["no-new-privileges"]},
        {"security_opt": Tagged("override", ["no-new-privileges:true"])},
    ),
    "another host": (
        {"extra_hosts": ["other=10.0.0.1"]},
        {"extra_hosts": ["host.docker.internal:host-gateway"]},
    ),
    "the same host elsewhere": (
        {"extra_hosts": ["host.docker.internal=172.17.0.1", "other=10.0.0.1"]},
        {
            "extra_hosts": Tagged(
                "override", ["other=10.0.0.1", "host.docker.internal:host-gateway"]
            )
        },
    ),
    "the network of another": ({"network_mode": "service:web"}, {"extra_hosts": None}),
    "limits": (
        {"mem_limit": "1", "memswap_limit": "2", "cpus": 2, "cpu_quota": 1},
        {"mem_limit": RESET, "memswap_limit": RESET, "cpus": RESET, "cpu_quota": RESET},
    ),
    "a secret in the place of ours": (
        {"secrets": [{"source": "a", "target": "token"}, {"source": "b", "target": "b"}]},
        {
            "secrets": Tagged(
                "override",
                [{"source": "b", "target": "b"}, *({"source": name} for name in SECRETS)],
            )
        },
    ),
    "other secrets": ({"secrets": [{"source": "a", "target": "a"}]}, {"secrets": [*SECRETS]}),
    "links": (
        {"links": ["redis:cache", "web"]},
        {"links": Tagged("override", ["web"])},
    ),
    "a link to what runs once": ({"links": ["redis"]}, {"links": RESET}),
}


@pytest.mark.parametrize("what", BOTH)
def test_a_layer_repeats_nothing_of_the_files(what: str) -> None:
    """Compose merges lists, and refuses one with a duplicate."""
    theirs, over = BOTH[what]
    app = replace(SHOP, secrets=SECRETS, memory_mb=64, cpus=1)
    worker = PROJECT["services"]["worker"] | theirs
    project = PROJECT | {"services": PROJECT["services"] | {"worker": worker}}
    made = layer(app, project)["services"]["worker"]
    assert {key: made.get(key) for key in over} == over


def test_a_secret_of_the_files_is_replaced_as_a_whole() -> None:
    app = replace(SHOP, secrets=SECRETS)
    (first, *_) = SECRETS
    made = layer(app, PROJECT | {"secrets": {first: {"environment": "X"}}})["secrets"]
    assert isinstance(made[first], Tagged)
    assert [name for name, one in made.items() if isinstance(one, Tagged)] == [first]


def test_a_stateful_service_has_the_names_of_the_files() -> None:
    redis = {
        "container_name": "shop_cache", "networks": {"inner": {"aliases": ["store"]}},
    }  # fmt: skip
    services = {"web": {"links": ["redis:cache", "redis"]}, "redis": redis}
    project = {"services": services}
    assert layers.aliases(project, "redis", "inner") == ["redis", "shop_cache", "store", "cache"]
    assert layers.aliases(project, "web", "inner") == ["web"]


def test_a_stateful_service_with_a_profile_is_started() -> None:
    services = PROJECT["services"] | {"redis": {"image": "redis:7", "profiles": ["tools"]}}
    made = read(layers.state_layer(SHOP, PROJECT | {"services": services}))
    assert made["services"]["redis"]["profiles"] == Tagged("reset", [])


# --- stateful services ----------------------------------------------------------------------------


def test_stateful_services_have_a_project_of_their_own() -> None:
    app = replace(SHOP, stateful=("redis", "Mail"), secrets=SECRETS)
    services = PROJECT["services"] | {
        "redis": PROJECT["services"]["redis"] | {"depends_on": {"Mail": HEALTHY, "web": HEALTHY}}
    }
    made = read(layers.state_layer(app, PROJECT | {"services": services}))
    assert [name for name, one in made["services"].items() if one != RESET] == ["Mail", "redis"]
    redis = made["services"]["redis"]
    assert redis["ports"] == Tagged("reset", [])
    assert redis["depends_on"] == Tagged("override", {"Mail": HEALTHY})
    assert redis["restart"] == "unless-stopped"
    assert redis["security_opt"] == ["no-new-privileges:true"]
    # A release changes nothing of it: not its image, variables or labels.
    assert redis["labels"] == {"terrafirma.app": "shop", "terrafirma.slot": "state"}
    assert not redis.keys() & {"image", "build", "environment", "secrets", "user", "deploy"}
    assert "secrets" not in made

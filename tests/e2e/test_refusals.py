"""Bad data and unfit hosts: one line, an exit code, and not a byte changed on the host."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import DEPLOYED, clone
from tests.e2e.support import Target

pytestmark = pytest.mark.e2e

SHOP = {"name": "shop", "source": "examples/api", "domain": "shop.test", "database": "api"}


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with clone(pyinfra, "tf-test-refusals", 2456, DEPLOYED) as deployed:
        yield deployed


@pytest.fixture(autouse=True)
def nothing_changes(server: Target) -> Iterator[None]:
    before = server.digest()
    yield
    assert server.digest() == before


@pytest.mark.promise
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"postgres_databses": []}, "postgres_databses: there is no such key, did you mean"),
        ({"postgress_version": 17}, "postgress_version: there is no such key, did you mean"),
        ({"app_replicas": "many"}, "app_replicas: Input should be a valid integer"),
        ({"app_replicas": 0}, "app_replicas: Input should be greater than or equal to 1"),
        ({"postgres_roles": [{"name": "a'b"}]}, 'postgres_roles.0.name: "a\'b" does not match'),
        (
            {"app_more": [SHOP]},
            "app_port: shop begins at 8000, but api has 8000 to 8127; set it to 8128 or more",
        ),
        (
            {"users_accounts": [{"name": "prod", "keys": ["/root/no.pub"]}]},
            "cannot read '/root/no.pub'",
        ),
        ({"postgres_version": 16}, "postgres_version: Debian GNU/Linux 13 (trixie) has 17, not 16"),
        ({"borg_repository": "ssh://u@h/./r"}, "borg_known_hosts: empty; list the backup host's"),
        (
            {"app_database": "shop"},
            "app_database: 'shop' of api is not in postgres_databases (api)",
        ),
        ({"preflight_free_disk_gb": 100_000}, "preflight_free_disk_gb: "),
        ({"apt_source": "upstream"}, "apt_source: 'upstream' is not built yet"),
    ],
)
def test_bad_data(server: Target, data: dict[str, Any], message: str) -> None:
    line = server.refuse(**data)
    assert f"127.0.0.1: {message}" in line or message in line


def roles(*more: Any, name: str = "api") -> dict[str, Any]:
    return {"postgres_roles": [{"name": name}, *more]}


def databases(*roles_: dict[str, Any], **api: Any) -> dict[str, Any]:
    """The database `api` with these of its keys, and these roles besides `api`."""
    return {
        **roles(*roles_),
        "postgres_databases": [{"name": "api", "owner": "api", **api}],
    }


OPS, READER = {"name": "ops"}, {"name": "reader"}
# What the data say of PostgreSQL, and the words after the host's name.
BAD_POSTGRES: dict[str, tuple[dict[str, Any], str]] = {
    # names
    "upper case": (roles({"name": "Api"}), "postgres_roles.1.name: 'Api' does not match"),
    "a quote": (roles({"name": 'a"b'}), "postgres_roles.1.name: 'a\"b' does not match"),
    "a line break": (roles({"name": "a\nb"}), "postgres_roles.1.name: 'a\\nb' does not match"),
    "a tilde": (roles({"name": "api~"}), "postgres_roles.1.name: 'api~' does not match"),
    "no name": (roles({}), "postgres_roles.1.name: Field required"),
    "too long": (roles({"name": "a" * 63}), "is too long: 62 characters fit"),
    "no list": ({"postgres_roles": "api"}, "postgres_roles: Input should be a valid tuple"),
    # reserved
    "a key word": (roles({"name": "user"}), "postgres_roles.1.name: 'user' is reserved by"),
    "the superuser": (roles({"name": "postgres"}), "'postgres' is reserved by PostgreSQL"),
    "PostgreSQL's prefix": (roles({"name": "pg_api"}), "'pg_api' is reserved by PostgreSQL"),
    "a template": (databases(name="template1"), "'template1' is reserved by PostgreSQL"),
    "a word of pg_hba.conf": (databases(name="replication"), "'replication' is reserved by"),
    "everybody": (
        databases(access={"public": "read"}),
        "postgres_databases.0.access.public: 'public' is reserved by PostgreSQL",
    ),
    # duplicates
    "a role twice": (roles({"name": "api"}), "postgres_roles: 'api' is there twice"),
    "a database twice": (
        {"postgres_databases": [{"name": "api", "owner": "api"}] * 2},
        "postgres_databases: 'api' is there twice",
    ),
    "an extension twice": (
        databases(extensions=["hstore", "hstore"]),
        "extensions: 'hstore' is there twice",
    ),
    # what is not there, and what would be too much
    "no such owner": (
        databases(owner="shop"),
        "postgres_databases: api is owned by 'shop', which is not in postgres_roles (api)",
    ),
    "no such role": (
        databases(access={"reader": "read"}),
        "postgres_databases: api gives access to 'reader', which is not in postgres_roles (api)",
    ),
    "no such group": (
        roles({"name": "ann", "member_of": ["staff"]}),
        "postgres_roles: ann is a member of 'staff', which is not in postgres_roles (ann, api)",
    ),
    "no such level": (
        databases(READER, access={"reader": "all"}),
        "postgres_databases.0.access.reader: Input should be 'read', 'write' or 'migrate'",
    ),
    "an owner with access": (databases(access={"api": "read"}), "access: 'api' owns api"),
    "a superuser": (
        roles({"name": "ops", "superuser": True}),
        "postgres_roles.1.superuser: there is no such key",
    ),
    "a superuser by another name": (
        roles({"name": "ops", "member_of": ["pg_execute_server_program"]}),
        "postgres_roles.1.member_of.0: 'pg_execute_server_program' is reserved",
    ),
    "no such extension": (
        databases(extensions=["pg_trgrm"]),
        "no known package has the extension 'pg_trgrm', did you mean pg_trgm?",
    ),
    "no such role of the application": (
        {"app_role": "shop"},
        "app_role: 'shop' of api is not in the roles that log in to api (api)",
    ),
    # cycles
    "its own member": (
        roles({"name": "a", "member_of": ["a"]}),
        "postgres_roles: a role cannot be a member of itself: a in a",
    ),
    "members in a circle": (
        roles({"name": "a", "member_of": ["b"]}, {"name": "b", "member_of": ["a"]}),
        "postgres_roles: a role cannot be a member of itself: ",
    ),
    "a circle by way of migrations": (
        {
            "postgres_roles": [{"name": "api", "member_of": ["ops"]}, OPS],
            "postgres_databases": [
                {"name": "api", "owner": "api", "access": {"ops": "migrate"}},
            ],
        },
        "postgres_roles: a role cannot be a member of itself: ",
    ),
    # versions
    "too old": ({"postgres_version": 9}, "postgres_version: Input should be greater than or equal"),
    "too new": ({"postgres_version": 99}, "postgres_version: Input should be less than or equal"),
    "one that is not there": (
        {"postgres_version": 18},
        "postgres_version: Debian GNU/Linux 13 (trixie) has 17, not 18; set it to 17 or None",
    ),
    "no number": ({"postgres_version": "new"}, "postgres_version: Input should be a valid integer"),
    # memory and connections
    "more connections than the memory has room for": (
        {"postgres_max_connections": 10_000, "postgres_memory_percent": 5},
        "postgres_max_connections: 10000 connections leave ",
    ),
    "more memory than there is": (
        {"postgres_memory_percent": 120},
        "postgres_memory_percent: Input should be less than or equal to 90",
    ),
    "fewer connections than the replicas open": (
        {"app_replicas": 40},
        "postgres_max_connections: 100 is too few: api 40 replicas x 5 x 2 releases = 400, "
        "reserved 10; set it to 410 or more, or lower app_connections",
    ),
    "a limit below the replicas": (
        databases(connection_limit=10),
        "postgres_databases: api: connection_limit 10 is too low for api: set it to 40 or more",
    ),
    # settings
    "a setting that is derived": (
        {"postgres_settings": {"listen_addresses": "*"}},
        "postgres_settings: listen_addresses is derived; it cannot be set here",
    ),
    "two settings in one": (
        {"postgres_settings": {"work_mem": "1MB\nfsync = off"}},
        "postgres_settings.work_mem: has a line break or another control character",
    ),
    "an encoding that the locale cannot have": (
        databases(encoding="LATIN1"),
        "encoding: LATIN1 needs the locale C, not C.UTF-8",
    ),
    # passwords
    "a password in the data": (
        roles({"name": "ann", "password": "not-a-good-place-for-it"}),
        "postgres_roles.1.password: ",
    ),
    "a password that nobody gave": (
        roles({"name": "ann", "password": "env:TF_NO_SUCH_PASSWORD"}),
        "postgres_roles: ann: TF_NO_SUCH_PASSWORD is not set; give it 16 to 200 letters, digits",
    ),
    "a password for nobody": (
        roles({"name": "ann", "login": False, "password": "env:ANN"}),
        "password: ann does not log in: it needs none",
    ),
    # the pooler
    "a pooler that is off": ({"app_pgbouncer": True}, "app_pgbouncer: api is to use PgBouncer"),
    "a port that is taken": (
        {"pgbouncer_enabled": True, "pgbouncer_port": 5432},
        "pgbouncer_port: 5432 is PostgreSQL's (postgres_port); take another",
    ),
}


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGc1+glbGrHlrI9G1dvS2Q54l8v1A9J2h2KIlylF3/L8"
SOURCE = {"source": "examples/api", "domain": "shop.terrafirma.test"}
SHOP_2 = {**SOURCE, "name": "shop", "port": 9000}
IMAGE: dict[str, Any] = {"app_source": "", "app_image": "registry.example.com/team/api:1"}
PROJECT: dict[str, Any] = {"app_source": "examples/compose", "app_service": "web"}
# What the data say of applications and their sites.
BAD_APPLICATIONS: dict[str, tuple[dict[str, Any], str]] = {
    # what is released
    "a source and an image": (
        {"app_image": "api:1"},
        "app_image: api has a source too: it is one or the other",
    ),
    "no directory": (
        {"app_source": "no/such/place"},
        "app_source: 'no/such/place' is not a directory with a Dockerfile",
    ),
    "no image": (IMAGE | {"app_image": "Registry/API"}, "app_image: 'Registry/API' is no image"),
    "no such compose file": (
        PROJECT | {"app_compose": ["docker-compose.yml"]},
        "app_compose: 'examples/compose' has no file 'docker-compose.yml'",
    ),
    "a service of no project": (
        {"app_service": "web"},
        "service: api has no compose files: there is one service",
    ),
    "stateful, twice": (
        PROJECT | {"app_compose": ["compose.yaml"], "app_stateful": ["redis", "redis"]},
        "stateful: 'redis' is there twice",
    ),
    "half of a login": (
        IMAGE | {"app_registry_user": "ci"},
        "registry_password: registry_user and this belong together",
    ),
    "a password of a registry that is not there": (
        IMAGE | {"app_registry_user": "ci", "app_registry_password": "env:TF_NOT_SET"},
        "app_registry_password: api: TF_NOT_SET is not set",
    ),
    "a migration that is no list": ({"app_migrate": "migrate.py"}, "app_migrate: Input should be"),
    # names and ports
    "one name twice": (
        {"app_more": [{**SHOP_2, "name": "api"}]},
        "app_name: 'api' is there twice",
    ),
    "one domain twice": (
        {"app_domain": "shop.terrafirma.test", "app_more": [SHOP_2]},
        "app_domain: 'shop.terrafirma.test' is there twice",
    ),
    "a name that is none": ({"app_name": "Our API"}, "app_name: 'Our API' does not match"),
    "ports that there are not": (
        {"app_port": 65500},
        "app_port: api has 65500 to 65627, but 65535 is the last there is",
    ),
    "PostgreSQL's port": (
        {"app_port": 5400},
        "app_port: api needs 5400-5527, but 5432 is PostgreSQL's (postgres_port)",
    ),
    "more replicas than a slot has ports": (
        {"app_replicas": 65},
        "app_replicas: Input should be less than or equal to 64",
    ),
    "more memory than there is": (
        {"app_memory_mb": 1_000_000},
        "app_memory_mb: ",
    ),
    "no such account": (
        {"app_user": "nobody-of-ours"},
        "app_user: 'nobody-of-ours' of api is not in users_accounts",
    ),
    # secrets
    "no source of a secret": (
        {"app_secrets": {"token": "vault:x"}},
        "app_secrets.token: is no source of a secret",
    ),
    "a secret that nobody gave": (
        {"app_secrets": {"token": "env:TF_NOT_SET"}},
        "app_secrets: api: token: TF_NOT_SET is not set",
    ),
    "a command that fails": (
        {"app_secrets": {"token": "command:echo no luck >&2; exit 3"}},
        "app_secrets: api: token: its command ended with 3 (no luck)",
    ),
    "a secret of ours": (
        {"app_secrets": {"database_url": "born"}},
        "secrets: database_url is derived; it cannot be set here",
    ),
    "a variable that is none": ({"app_env": {"A B": "1"}}, "app_env.'A B': 'A B' does not match"),
    # the site
    "a domain in capitals": (
        {"app_domain": "API.example.com"},
        "app_domain: 'API.example.com' is not a domain name in lower case",
    ),
    "a header with a line break": (
        {"app_headers": {"X-A": "1\n2"}},
        "app_headers.X-A: ",
    ),
    "a guard that guards nothing": (
        {"app_guards": [{"path": "/admin/*"}]},
        "/admin/*: neither allow nor users: it guards nothing",
    ),
    "a password instead of its hash": (
        {"app_guards": [{"path": "/admin/*", "users": {"ann": "not-to-be-repeated"}}]},
        "app_guards.0.users.ann: ",
    ),
    "a snippet that is not there": (
        {"app_snippet": "no/such/file"},
        "app_snippet: api: cannot read 'no/such/file'",
    ),
    "an authority without HTTPS": (
        {"caddy_acme_ca": "http://ca.example.com/directory"},
        "caddy_acme_ca: ",
    ),
    "a root of no authority": (
        {"caddy_acme_ca_root": "README.md"},
        "caddy_acme_ca_root: caddy_acme_ca is empty",
    ),
    # who releases
    "a key for no application": (
        {"users_accounts": [{"name": "prod"}, {"name": "ci", "keys": [KEY], "releases": ["no"]}]},
        "users_accounts: ",
    ),
}


@pytest.mark.parametrize("bad", BAD_APPLICATIONS)
def test_bad_data_of_applications(server: Target, bad: str) -> None:
    data, message = BAD_APPLICATIONS[bad]
    line = server.refuse(**data)
    assert "127.0.0.1: " in line
    assert message in line
    assert "not-to-be-repeated" not in line


@pytest.mark.parametrize("bad", BAD_POSTGRES)
def test_bad_data_of_postgresql(server: Target, bad: str) -> None:
    data, message = BAD_POSTGRES[bad]
    line = server.refuse(**data)
    assert "127.0.0.1: " in line
    assert message in line


def test_a_password_that_is_no_name_of_a_variable_is_not_repeated(server: Target) -> None:
    line = server.refuse(**roles({"name": "ann", "password": "not-a-good-place-for-it"}))
    assert "postgres_roles.1.password" in line
    assert "not-a-good-place-for-it" not in line


@contextmanager
def changed_file(server: Target, path: str, command: str) -> Iterator[None]:
    server.run(f"cp -a {path} /run/kept && {command}")
    try:
        yield
    finally:
        server.run(f"cp -a /run/kept {path}")


def test_an_unsupported_distribution(server: Target) -> None:
    # A link on Debian: its target is what is read.
    command = "sed -i -e 's/^ID=.*/ID=fedora/' -e 's/^PRETTY_NAME=.*/PRETTY_NAME=\"Fedora 42\"/'"
    with changed_file(server, "/usr/lib/os-release", f"{command} /usr/lib/os-release"):
        line = server.refuse()
        alone = server.refuse("tasks/postgres.py")
    assert "distribution: Fedora 42 is not supported; use Debian 13" in line
    assert "distribution: Fedora 42 is not supported" in alone


def test_a_daemon_configuration_of_somebody_else(server: Target) -> None:
    foreign = 'echo \'{"data-root": "/srv/docker"}\' > /etc/docker/daemon.json'
    with changed_file(server, "/etc/docker/daemon.json", foreign):
        line = server.refuse()
        assert "data-root" in server.run("cat /etc/docker/daemon.json")
    assert "docker_daemon: /etc/docker/daemon.json on the host is not ours" in line


def test_a_port_that_a_stranger_holds(server: Target) -> None:
    server.run("systemctl stop caddy.service")
    stranger = subprocess.Popen(
        ["docker", "exec", server.name, "timeout", "20", "python3", "-m", "http.server", "443"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        server.run("for i in $(seq 50); do ss -ltn | grep -q :443 && break; sleep 0.1; done")
        line = server.refuse()
    finally:
        server.call("pkill -f 'http.server 443'")
        stranger.wait()
        server.run("systemctl start caddy.service")
    assert "port 443: held by python3" in line
    assert "not by caddy.service" in line


def test_a_foreign_cluster_of_another_version(server: Target) -> None:
    server.run("mkdir -p /etc/postgresql/15/main && touch /etc/postgresql/15/main/postgresql.conf")
    try:
        line = server.refuse()
    finally:
        server.run("rm -r /etc/postgresql/15")
    assert "postgres_version: this would make a new cluster 17/main beside 15/main" in line


def test_a_host_that_does_not_resolve(pyinfra: Pyinfra, tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.py"
    inventory.write_text('servers = ["no-such-host.invalid"]\n')
    for hosts, message in (
        (str(inventory), "[no-such-host.invalid] Could not resolve hostname"),
        ("no-such-host.invalid", "no hosts: name a host that resolves"),
    ):
        result = pyinfra.call("-y", hosts, "deploy.py")
        assert result.returncode != 0
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_a_wrong_ssh_key(server: Target, new_key: str) -> None:
    line = server.refuse(key=new_key)
    assert "Authentication error" in line


def test_a_key_file_that_is_not_there(server: Target) -> None:
    result = server.pyinfra.call("-y", *server.arguments(key="/nowhere/key"), "deploy.py")
    assert result.returncode != 0
    assert "/nowhere/key" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_user_without_sudo(server: Target, new_key: str) -> None:
    key = Path(f"{new_key}.pub").read_text()
    with changed_file(
        server, "/home/dev/.ssh/authorized_keys", "cat >> /home/dev/.ssh/authorized_keys"
    ):
        server.run("cat >> /home/dev/.ssh/authorized_keys", stdin=key)
        line = server.refuse(user="dev", key=new_key)
    assert "ssh_user: 'dev' is neither root nor may it use sudo without a password" in line

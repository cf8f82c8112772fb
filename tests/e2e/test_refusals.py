"""Refusals: wrong settings and unfit servers, in one line and before any change."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import DEPLOYED, clone
from tests.e2e.support import Target, api, beside_api

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with clone(pyinfra, "tf-test-refusals", 2456, DEPLOYED) as deployed:
        yield deployed


@pytest.fixture(autouse=True)
def nothing_changes(server: Target) -> Iterator[None]:
    before = server.digest()
    yield
    assert server.digest() == before


PASSWORD = "not-a-good-place-for-it"
SHOP = {"source": "examples/api", "domain": "shop.test", "database": "api", "port": 8000}
# One of each kind; test_settings.py and test_tasks.py in tests/unit/*/ have all others.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": (
        {"postgres_databses": []},
        "postgres_databses: there is no such key, did you mean postgres_databases?",
    ),
    "another type": (
        api(replicas="many"),
        "apps.api.replicas: Input should be a valid integer, not 'many'",
    ),
    "a secret where its name belongs": (
        {"postgres_roles": [{"name": "api"}, {"name": "ann", "password": PASSWORD}]},
        "postgres_roles.1.password: ",
    ),
    "two values of one section": (
        {**beside_api(shop=SHOP), **api(port=8064)},
        "apps.shop.port: 8064 is taken by apps.api.port (8064 to 8191); take another",
    ),
    "a port that another application has had": (
        beside_api(shop=SHOP),
        "apps.shop.port: 8000 belongs to api, which has had 8000 to 8127 since its first release; ",
    ),
    "values of two sections": (
        api(database="shop"),
        "apps.api.database: 'shop' is not in postgres_databases (api); "
        'add {"name": "shop", "owner": "shop"} there, and {"name": "shop"} to postgres_roles',
    ),
    "a file of this machine": (
        {"users_accounts": [{"name": "prod", "keys": ["/root/no.pub"]}]},
        "users_accounts.0.keys.0: cannot read '/root/no.pub'",
    ),
    "a variable of the environment": (
        api(secrets={"token": "env:TF_NOT_SET"}),
        "apps.api.secrets: token: TF_NOT_SET is not set",
    ),
    "a version that the distribution lacks": (
        {"postgres_version": 16},
        "postgres_version: Debian GNU/Linux 13 (trixie) has 17, not 16",
    ),
    "more free disk than the host has": (
        {"preflight_free_disk_gb": 100_000},
        "preflight_free_disk_gb: ",
    ),
}


@pytest.mark.promise("Wrong settings are refused in one line, before any change")
@pytest.mark.smoke
@pytest.mark.parametrize("kind", BAD)
def test_bad_data(server: Target, kind: str) -> None:
    data, message = BAD[kind]
    line = server.refuse(**data)
    assert f"127.0.0.1: {message}" in line
    assert PASSWORD not in line


@contextmanager
def changed_file(server: Target, path: str, command: str) -> Iterator[None]:
    server.run(f"cp -a {path} /run/kept && {command}")
    try:
        yield
    finally:
        server.run(f"cp -a /run/kept {path}")


def test_an_unsupported_distribution(server: Target) -> None:
    # /etc/os-release is a link on Debian: change its target.
    command = "sed -i -e 's/^ID=.*/ID=fedora/' -e 's/^PRETTY_NAME=.*/PRETTY_NAME=\"Fedora 42\"/'"
    with changed_file(server, "/usr/lib/os-release", f"{command} /usr/lib/os-release"):
        line = server.refuse()
        alone = server.refuse("tasks/postgres.py")
    assert "distribution: Fedora 42 is not supported; use Debian 13" in line
    assert "distribution: Fedora 42 is not supported" in alone


def test_a_foreign_daemon_configuration(server: Target) -> None:
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
    assert "port 443 (HTTPS): held by python3" in line
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

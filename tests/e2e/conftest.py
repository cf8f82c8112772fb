"""One converged server, its backup host and an outsider, for all the tests that can share them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from xdist.scheduler.loadfile import LoadFileScheduling

from tests.conftest import ROOT, Pyinfra
from tests.e2e.support import STATE, Container, Target, bystander, options, output, target


@dataclass(frozen=True)
class Platform:
    """A server after its first run, and what that run and the dry run before it said."""

    server: Target
    storage: Target
    outsider: Container
    data: dict[str, Any]
    plan: list[str]
    untouched: bool
    first: dict[str, Any]
    first_output: str
    etc: str
    logins: dict[str, dict[str, str]]
    second: dict[str, Any]


# Every file of /etc, as it is at the time of the first backup.
DIGESTS = "find etc -type f -print0 | sort -z | xargs -0 sha256sum"
LOGIN = """
import json, sys
import psycopg

host, user, password, database = sys.argv[1:]
try:
    with psycopg.connect(
        host=host, user=user, password=password, dbname=database, connect_timeout=5
    ) as connection:
        row = connection.execute("select current_user, host(inet_client_addr())").fetchone()
    print(json.dumps({"user": row[0], "address": row[1]}))
except psycopg.Error as error:
    print(json.dumps({"error": str(error)}))
"""


def login(server: Target, network: str, **how: str) -> dict[str, str]:
    """What PostgreSQL says to a container in `network`."""
    image = server.run("docker image ls --quiet terrafirma/api | head -n 1")
    who = {
        "host": "host.docker.internal",
        "user": "api",
        "password": server.run("cat /etc/terrafirma/secrets/postgres/api"),
        "database": "api",
    } | how
    answer: dict[str, str] = json.loads(
        server.run(
            f"docker run --rm -i --network {network} --add-host host.docker.internal:host-gateway"
            f" --entrypoint python3 {image} - {' '.join(who.values())}",
            stdin=LOGIN,
        )
    )
    return answer


def networks(server: Target) -> dict[str, str]:
    """Subnet of each bridge network, as Docker says."""
    inspected = json.loads(
        server.run("docker network inspect $(docker network ls -q --filter driver=bridge)")
    )
    return {one["Name"]: one["IPAM"]["Config"][0]["Subnet"] for one in inspected}


REPOSITORY = "/home/box/server.borg"


def admit(storage: Target, server: Target, repository: str) -> dict[str, Any]:
    """
    Make a key on the server and let it do nothing on the backup host but serve one repository.

    Returns what the server must be told of the backup host.
    """
    server.deploy("tasks/borg_key.py")
    key = server.run("cat /etc/terrafirma/secrets/borg/id_ed25519.pub")
    storage.run(
        "cat >> /home/box/.ssh/authorized_keys && chown box: /home/box/.ssh/authorized_keys",
        stdin=f'command="borg serve --restrict-to-repository {repository}",restrict {key}\n',
    )
    host_key = storage.run("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub")
    return {
        "borg_repository": f"ssh://box@{storage.address}{repository}",
        "borg_known_hosts": [f"{storage.address} {host_key}"],
    }


def prepare(storage: Target) -> None:
    """What a backup host is: borg, and an account that keys let in."""
    storage.run("apt-get update -q && apt-get install -qy --no-install-recommends borgbackup")
    storage.run("useradd --create-home box && install -d -m 700 -o box -g box /home/box/.ssh")


class Beside(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Modules that share the platform run one after the other, the others beside them."""

    def _split_scope(self, nodeid: str) -> str:
        module = str(super()._split_scope(nodeid))
        return "platform" if "Platform" in (ROOT / module).read_text() else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Beside:
    return Beside(config, log)


@pytest.fixture(scope="session")
def outsider() -> Iterator[Container]:
    with bystander(f"tf-test-outsider{os.environ.get('PYTEST_XDIST_WORKER', '')}") as container:
        yield container


@pytest.fixture(scope="session")
def platform(pyinfra: Pyinfra, outsider: Container) -> Iterator[Platform]:
    with (
        target(pyinfra, "tf-test-server", 2411) as server,
        target(pyinfra, "tf-test-storage", 2412) as storage,
    ):
        before = server.digest()
        plan = server.plan(
            borg_repository="ssh://box@storage/./server.borg",
            borg_known_hosts=[f"storage {(STATE / 'id_ed25519.pub').read_text().strip()}"],
        )
        untouched = server.digest() == before
        prepare(storage)
        # The key is made on the server, and let in on the backup host, before the one run.
        data = admit(storage, server, REPOSITORY)
        result = pyinfra.call("-y", *options(data), *server.arguments(), "deploy.py")
        assert result.returncode == 0, result.stderr
        yield Platform(
            server=server,
            storage=storage,
            outsider=outsider,
            data=data,
            plan=plan,
            untouched=untouched,
            first=json.loads(result.stdout),
            first_output=result.stderr,
            etc=server.run(f"cd / && {DIGESTS}"),
            # Before anything else could repair what the first run got wrong.
            logins={network: login(server, network) for network in ("bridge", "apps")},
            second=server.deploy(**data),
        )


@pytest.fixture(scope="session")
def new_key(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A key pair of nobody's; the path of its private half."""
    path = tmp_path_factory.mktemp("keys") / "id_ed25519"
    output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "somebody", "-f", str(path))
    return str(path)

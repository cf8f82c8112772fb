"""commands/upgrade.py: to the vendors' packages, to newer ones, and back from broken ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import DEPLOYED, clone
from tests.e2e.support import Container, Load, Target, changed, get, load, options
from tests.e2e.vendors import Vendors, vendors

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.budget(minutes=12, why="each engine is replaced several times, under load"),
]

UPGRADE = "commands/upgrade.py"
UPSTREAM: dict[str, Any] = {"apt_source": "upstream"}
MAIN = {"docker": "docker-ce", "pgdg": "postgresql-17", "caddy": "caddy"}


@dataclass(frozen=True)
class Host:
    """A server with the distribution's packages, and the vendors that it can reach."""

    server: Target
    them: Vendors

    def offered(self, vendor: str) -> list[str]:
        """The versions that start, the oldest first."""
        versions = self.them.versions(MAIN[vendor], "trixie")
        return [one for one in versions if one not in self.them.broken()]

    def installed(self, vendor: str) -> str:
        show = "dpkg-query -Wf '${db:Status-Status} ${Version}'"
        status, _, version = self.server.call(f"{show} {MAIN[vendor]}").stdout.partition(" ")
        return version if status == "installed" else ""

    def publish(self, vendor: str, *versions: str) -> None:
        self.them.publish(vendor, "trixie", versions=list(versions))

    def upgrade(self) -> CompletedProcess[str]:
        # Age the lists: fresh ones are not refreshed, and the vendor has just published.
        self.server.run(
            "touch -d '2 hours ago' /var/lib/apt/lists/*_* /var/lib/apt/lists/partial"
            " && rm -f /var/cache/apt/*.bin"
        )
        return self.server.pyinfra.imported.call(
            "-y", *options(UPSTREAM), *self.server.arguments(), UPGRADE
        )

    def containers(self) -> list[str]:
        return sorted(self.server.run("docker ps -q --no-trunc").split())


@pytest.fixture(scope="module")
def host(pyinfra: Pyinfra) -> Iterator[Host]:
    with (
        vendors("tf-test-upgrade-vendors", "trixie") as them,
        clone(pyinfra, "tf-test-upgrade", 2482, DEPLOYED) as server,
        them.pinned(pyinfra) as copy,
    ):
        them.meet(server)
        one = Host(replace(server, pyinfra=copy), them)
        for vendor in MAIN:
            one.publish(vendor, *one.offered(vendor)[:-1])
        server.psql("create table kept as select 7 as row", "api")
        server.run("docker volume create kept > /dev/null")
        yield one


def serves(one: Host, client: Container) -> None:
    assert {status for status, _ in get(client, one.server, 8)} == {200}
    assert one.server.psql("select row from kept", "api") == "7"
    assert one.server.run("docker volume ls -q --filter name=kept") == "kept"
    assert one.server.run("terrafirma promises") == "all is as promised"


def said(seen: Load, what: str) -> None:
    """Print the figures for the table of docs/commands/upgrade.md."""
    print(f"{what}: {seen['requests']} requests, {len(seen['failed'])} failed, "
          f"longest gap {seen['gap_seconds']:.2f} s")  # fmt: skip


def test_a_deploy_refuses_to_move_to_the_vendors(host: Host) -> None:
    words = host.server.refuse(**UPSTREAM)
    assert "apt_source: " in words
    assert UPGRADE in words


@pytest.mark.promise("A server moves to the vendors' packages without losing containers or data")
def test_the_vendors_packages_replace_the_distributions(host: Host, outsider: Container) -> None:
    containers = host.containers()
    with load(outsider, host.server) as seen:
        result = host.upgrade()
    said(seen, "the move")
    assert result.returncode == 0, result.stderr
    assert "removed, not purged: " in result.stderr
    for vendor in MAIN:
        assert host.installed(vendor) == host.offered(vendor)[-2]
    assert host.containers() == containers
    serves(host, outsider)
    assert seen["gap_seconds"] < 20
    # The first deploy may adapt files to the new versions, and the second changes nothing.
    host.server.deploy(**UPSTREAM)
    assert changed(host.server.deploy(**UPSTREAM)) == []
    assert host.server.plan(**UPSTREAM) == []


def test_a_second_upgrade_changes_nothing(host: Host) -> None:
    names = [name.rpartition(" | ")[2] for name in host.server.plan(UPGRADE, **UPSTREAM)]
    assert names == []


@pytest.mark.promise("An upgrade of an engine that breaks a promise is rolled back automatically")
@pytest.mark.parametrize("vendor", ["caddy", "docker", "pgdg"])
def test_a_version_that_does_not_start_is_rolled_back(
    host: Host, outsider: Container, vendor: str
) -> None:
    versions = host.them.versions(MAIN[vendor], "trixie")
    (broken,) = [one for one in versions if one in host.them.broken()]
    before = host.installed(vendor)
    containers = host.containers()
    host.publish(vendor, before, broken)
    result = host.upgrade()
    assert result.returncode != 0
    assert "was rolled back" in result.stdout + result.stderr
    assert f"{before} runs again, and all is as promised" in result.stdout + result.stderr
    assert host.installed(vendor) == before
    assert host.containers() == containers
    serves(host, outsider)
    host.publish(vendor, before)


@pytest.mark.promise("No request fails while Docker and containerd are upgraded")
def test_docker_is_upgraded_under_load(host: Host, outsider: Container) -> None:
    seen = upgraded(host, outsider, "docker")
    assert seen["failed"] == []


def test_caddy_is_upgraded_under_load(host: Host, outsider: Container) -> None:
    assert upgraded(host, outsider, "caddy")["gap_seconds"] < 5


def test_postgres_is_upgraded_under_load(host: Host, outsider: Container) -> None:
    assert upgraded(host, outsider, "pgdg")["gap_seconds"] < 20


def upgraded(host: Host, client: Container, vendor: str) -> Load:
    newest = host.offered(vendor)[-1]
    containers = host.containers()
    host.publish(vendor, *host.offered(vendor))
    with load(client, host.server) as seen:
        result = host.upgrade()
    said(seen, vendor)
    assert result.returncode == 0, result.stderr
    assert host.installed(vendor) == newest
    assert MAIN[vendor] in host.server.run("apt-mark showhold").split()
    assert host.containers() == containers
    serves(host, client)
    return seen


def test_a_return_to_the_distributions_packages_is_refused(host: Host) -> None:
    words = host.server.refuse(UPGRADE, apt_source="distro")
    assert "cannot be downgraded" in words

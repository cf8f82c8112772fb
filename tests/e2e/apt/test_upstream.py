"""The whole platform with the vendors' packages: one run on a bare server, and held engines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.support import Container, Target, changed, get, target
from tests.e2e.vendors import CODENAMES, Vendors, vendors

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.budget(minutes=5, why="a run on a bare server with packages of the vendors"),
]

UPSTREAM: dict[str, Any] = {"apt_source": "upstream"}
# Packages that only commands/upgrade.py may upgrade.
HELD = {
    "docker": ("docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin",
               "docker-compose-plugin"),
    "pgdg": ("postgresql-{major}", "postgresql-client-{major}"),
    "caddy": ("caddy",),
}  # fmt: skip
MAJORS = {"debian13": "17", "debian12": "15"}


@dataclass(frozen=True)
class Deployed:
    """A server after its first run, for which the newest versions were not yet offered."""

    server: Target
    them: Vendors
    distro: str
    first: dict[str, Any]

    @property
    def main(self) -> dict[str, str]:
        """The package of each engine whose version counts."""
        return {"docker": "docker-ce", "pgdg": f"postgresql-{MAJORS[self.distro]}",
                "caddy": "caddy"}  # fmt: skip

    def offered(self, vendor: str) -> list[str]:
        """The versions that start, the oldest first."""
        versions = self.them.versions(self.main[vendor], CODENAMES[self.distro])
        return [one for one in versions if one not in self.them.broken()]

    def installed(self, package: str) -> str:
        return self.server.run(f"dpkg-query -Wf '${{Version}}' {package}")

    @property
    def held(self) -> set[str]:
        return {name.format(major=MAJORS[self.distro]) for names in HELD.values() for name in names}


@contextmanager
def deployed(pyinfra: Pyinfra, distro: str, port: int, **data: Any) -> Iterator[Deployed]:
    codename = CODENAMES[distro]
    with (
        vendors(f"tf-test-upstream-{distro}-vendors", codename) as them,
        target(pyinfra, f"tf-test-upstream-{distro}", port, distro) as bare,
        them.pinned(pyinfra) as copy,
    ):
        them.meet(bare)
        one = Deployed(replace(bare, pyinfra=copy), them, distro, {})
        for vendor in HELD:
            them.publish(vendor, codename, versions=one.offered(vendor)[:-1])
        yield replace(one, first=one.server.deploy(**UPSTREAM, **data))


@pytest.fixture(scope="module")
def debian13(pyinfra: Pyinfra) -> Iterator[Deployed]:
    with deployed(pyinfra, "debian13", 2472) as one:
        yield one


@pytest.fixture(scope="module")
def debian12(pyinfra: Pyinfra) -> Iterator[Deployed]:
    with deployed(pyinfra, "debian12", 2473) as one:
        yield one


def serves(one: Deployed, client: Container) -> None:
    answers = get(client, one.server, 8)
    assert {status for status, _ in answers} == {200}
    assert len({body["replica"] for _, body in answers}) > 1


def has_the_offered_versions(one: Deployed) -> None:
    for vendor, package in one.main.items():
        assert one.installed(package) == one.offered(vendor)[-2]
    assert "pgdg" in one.installed("libpq5")
    assert "pgdg" in one.installed("postgresql-common")
    distribution = ("docker.io", "containerd", "runc", "docker-cli", "docker-compose")
    for package in distribution:
        status = f"dpkg-query -Wf '${{db:Status-Status}}' {package}"
        assert one.server.call(status).stdout != "installed"


def nothing_more_to_do(one: Deployed, **data: Any) -> None:
    assert changed(one.server.deploy(**UPSTREAM, **data)) == []
    assert one.server.plan(**UPSTREAM, **data) == []


@pytest.mark.promise('With apt_source = "upstream", one run sets up the platform on a bare server')
def test_one_run_sets_up_the_platform(debian13: Deployed, outsider: Container) -> None:
    assert changed(debian13.first)
    serves(debian13, outsider)
    has_the_offered_versions(debian13)
    nothing_more_to_do(debian13)


def moved(simulated: str) -> set[str]:
    """The packages that apt would install another version of."""
    return set(re.findall(r"^Inst (\S+)", simulated, re.MULTILINE))


@pytest.mark.promise("apt and unattended-upgrades never upgrade Docker, PostgreSQL or Caddy")
def test_apt_does_not_upgrade_engines(debian13: Deployed, outsider: Container) -> None:
    server, them = debian13.server, debian13.them
    assert debian13.held <= set(server.run("apt-mark showhold").split())
    before = {name: debian13.installed(name) for name in debian13.held}
    them.publish_all("trixie")
    server.run("apt-get update -q")
    for package in debian13.main.values():
        policy = server.run(f"apt-cache policy {package}")
        assert (
            debian13.offered(
                next(vendor for vendor, main in debian13.main.items() if main == package)
            )[-1]
            in policy
        )
    assert not debian13.held & moved(server.run("apt-get -s upgrade"))
    assert not debian13.held & moved(server.run("apt-get -s full-upgrade"))
    # For real as well, by hand and unattended.
    server.run("unattended-upgrade --dry-run -v")
    server.run("DEBIAN_FRONTEND=noninteractive apt-get -qy full-upgrade", timeout=600)
    server.run("unattended-upgrade", timeout=600)
    assert {name: debian13.installed(name) for name in debian13.held} == before
    serves(debian13, outsider)
    nothing_more_to_do(debian13)


@pytest.mark.long
@pytest.mark.promise("With the vendors' packages, Debian 12 runs applications, too")
def test_debian_12_runs_applications(debian12: Deployed, outsider: Container) -> None:
    assert changed(debian12.first)
    serves(debian12, outsider)
    has_the_offered_versions(debian12)
    nothing_more_to_do(debian12)
    assert debian12.held <= set(debian12.server.run("apt-mark showhold").split())

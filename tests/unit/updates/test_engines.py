"""Which packages are excluded from updates, and which units are only listed."""

import re

import pytest

from terrafirma.host.machine import DISTRIBUTIONS
from terrafirma.updates import engines

ENGINES = {
    *("docker.io", "docker-ce", "docker-ce-cli", "docker-ce-rootless-extras", "docker-cli"),
    *("docker-buildx", "docker-buildx-plugin", "docker-compose", "docker-compose-plugin"),
    *("docker-compose-v2", "containerd", "containerd.io", "runc", "caddy", "pgbouncer"),
    *("postgresql", "postgresql-17", "postgresql-client-17", "postgresql-17-pgvector"),
    *("postgresql-common", "postgresql-client-common", "postgresql-contrib"),
}
# Updates of these packages restart no engine.
OTHERS = {
    *("apparmor", "iptables", "openssh-server", "libc6", "openssl", "libpq5", "sudo", "systemd"),
    *("linux-image-amd64", "python3-docker", "golang-docker-dev", "caddyish", "runcx"),
}


def excluded(name: str) -> bool:
    """Whether unattended-upgrades excludes the package by the patterns in our file."""
    return any(re.match(f"^{pattern}$", name) for pattern in engines.PACKAGES)


def test_engines_are_excluded_and_nothing_else() -> None:
    assert {name for name in ENGINES | OTHERS if excluded(name)} == ENGINES


@pytest.mark.parametrize("kind", DISTRIBUTIONS, ids=" ".join)
def test_the_engine_of_every_distribution_is_excluded(kind: tuple[str, str]) -> None:
    left = {name for name in DISTRIBUTIONS[kind].docker if not excluded(name)}
    assert left <= {"apparmor", "iptables"}


@pytest.mark.parametrize(
    "unit",
    [
        *("docker.service", "docker.socket", "containerd.service", "caddy.service"),
        *("postgresql.service", "postgresql@17-main.service", "pgbouncer.service"),
        *("ssh.service", "ssh.socket", "ssh@1-10.0.0.1:22.service"),
        *("terrafirma-release-api.service", "terrafirma-reboot.service", "borgmatic.service"),
    ],
)
def test_units_that_are_only_listed(unit: str) -> None:
    assert any(re.search(f"^{name}", unit) for name in engines.UNITS)


@pytest.mark.parametrize("unit", ["cron.service", "systemd-journald.service", "rsyslog.service"])
def test_units_that_are_restarted(unit: str) -> None:
    assert not any(re.search(f"^{name}", unit) for name in engines.UNITS)

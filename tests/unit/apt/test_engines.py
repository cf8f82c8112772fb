"""The packages of the engines, and what a deploy does about an installed engine."""

from typing import Any

import pytest

from terrafirma.apt.engines import ENGINES, EngineName, Plan, engine, plan, source_of
from terrafirma.apt.settings import Source
from terrafirma.apt.vendors import VENDORS, repository
from terrafirma.host.machine import DISTRIBUTIONS
from terrafirma.host.packages import Installed

TRIXIE, BOOKWORM = DISTRIBUTIONS["debian", "13"], DISTRIBUTIONS["debian", "12"]
REPOSITORIES = [
    repository(name, distribution="debian", codename="trixie", architecture="amd64")
    for name in VENDORS
]
DEBIAN = "http://archive.example/debian trixie/main"
SECURITY = "http://security.debian.org/debian-security trixie-security/main"
PGDG, DOCKER, CADDY = (one.listed for one in REPOSITORIES)


def ce(version: str) -> str:
    return f"5:{version}-1~debian.13~trixie"


OFFERED = {
    "docker.io": {"26.1.5+dfsg1-9+b9": DEBIAN},
    "docker-ce": {ce("28.2.2"): DOCKER, ce("28.1.1"): DOCKER, ce("27.5.1"): DOCKER},
    "docker-ce-cli": {ce("28.2.2"): DOCKER, ce("28.1.1"): DOCKER, ce("27.5.1"): DOCKER},
    "postgresql-17": {
        "17.5-1.pgdg130+1": PGDG,
        "17.4-1.pgdg130+1": PGDG,
        "17.6-0+deb13u1": SECURITY,
        "17.4-2": DEBIAN,
    },
    "postgresql-client-17": {"17.5-1.pgdg130+1": PGDG, "17.4-1.pgdg130+1": PGDG},
    "caddy": {"2.10.2": CADDY, "2.9.1": CADDY, "2.6.2-12": DEBIAN},
}
OFFERS: Any = {
    package: [{"version": version, "repository": where} for version, where in versions.items()]
    for package, versions in OFFERED.items()
}


def there(*held: str, **packages: str) -> Installed:
    """Installed packages; in names, _ stands for - and __ for . (docker__io is docker.io)."""
    names = {name.replace("__", ".").replace("_", "-"): one for name, one in packages.items()}
    return {name: {"version": one, "held": name in held} for name, one in names.items()}


def a_plan(
    name: EngineName,
    source: Source,
    prefix: str = "",
    installed: Installed | None = None,
    offers: Any = OFFERS,
) -> Plan:
    return plan(
        engine(name, source, TRIXIE, 17),
        prefix,
        installed=installed or {},
        offers=offers,
        repositories=REPOSITORIES,
    )


@pytest.mark.parametrize(
    ("name", "source", "main", "others"),
    [
        ("docker", "distro", "docker.io", {"docker-cli", "docker-compose", "docker-buildx"}),
        (
            *("docker", "upstream", "docker-ce"),
            {"docker-ce-cli", "containerd.io", "docker-buildx-plugin", "docker-compose-plugin"},
        ),
        ("postgres", "distro", "postgresql-17", {"postgresql-client-17"}),
        ("postgres", "upstream", "postgresql-17", {"postgresql-common", "libpq5"}),
        ("caddy", "distro", "caddy", set()),
        ("caddy", "upstream", "caddy", set()),
    ],
)
def test_an_engine_has_its_packages(
    name: EngineName, source: Source, main: str, others: set[str]
) -> None:
    one = engine(name, source, TRIXIE, 17)
    assert one.packages[0] == one.main == main
    assert others <= {*one.packages}
    assert main in one.held
    assert not {*one.conflicts} & {*one.packages}
    # Shared packages are not held, so that they get their updates.
    assert not {"apparmor", "iptables", "libpq5", "postgresql-common"} & {*one.held}


def test_debian_12_has_no_compose_of_its_own() -> None:
    assert not [one for one in engine("docker", "distro", BOOKWORM).packages if "compose" in one]
    assert "docker-compose-plugin" in engine("docker", "upstream", BOOKWORM).packages


def test_conflicts_are_those_that_docker_documents() -> None:
    documented = {
        *("docker.io", "docker-doc", "docker-compose", "docker-compose-v2", "podman-docker"),
        *("containerd", "runc"),
    }
    assert documented <= {*engine("docker", "upstream", TRIXIE).conflicts}
    # The vendor's packages replace all of the distribution's.
    ours = {*engine("docker", "distro", TRIXIE).held}
    assert ours <= {*engine("docker", "upstream", TRIXIE).conflicts}


@pytest.mark.parametrize(
    ("name", "installed", "source", "version"),
    [
        ("docker", {}, None, ""),
        ("docker", there(containerd="1.7"), None, ""),
        ("docker", there(docker__io="26.1.5"), "distro", "26.1.5"),
        ("docker", there(docker_ce=ce("28.2.2")), "upstream", ce("28.2.2")),
        ("postgres", there(postgresql_16="16.9-1.pgdg130+1"), None, ""),
        ("postgres", there(postgresql_17="17.4-2"), "distro", "17.4-2"),
        *(
            ("postgres", there(postgresql_17=one), "upstream", one)
            for one in ("17.5-1.pgdg130+1", "17.5-1.pgdg24.04+1")
        ),
        ("caddy", there(caddy="2.6.2-12"), "distro", "2.6.2-12"),
        ("caddy", there(caddy="2.10.2"), "upstream", "2.10.2"),
    ],
)
def test_the_version_shows_the_source_of_an_engine(
    name: EngineName, installed: Installed, source: Source | None, version: str
) -> None:
    assert source_of(name, installed, 17) == (source, version)


@pytest.mark.parametrize(
    ("name", "source", "prefix", "chosen"),
    [
        ("docker", "distro", "", "26.1.5+dfsg1-9+b9"),
        ("docker", "distro", "26", "26.1.5+dfsg1-9+b9"),
        ("docker", "distro", "28", ""),
        ("docker", "upstream", "", ce("28.2.2")),
        ("docker", "upstream", "28.1", ce("28.1.1")),
        ("docker", "upstream", "27", ce("27.5.1")),
        ("docker", "upstream", "26", ""),
        # The newest version of the wanted source, even if the other source has a newer one.
        ("postgres", "distro", "", "17.6-0+deb13u1"),
        ("postgres", "upstream", "", "17.5-1.pgdg130+1"),
        ("postgres", "upstream", "17.4", "17.4-1.pgdg130+1"),
        ("postgres", "distro", "17.4", "17.4-2"),
        ("caddy", "distro", "", "2.6.2-12"),
        ("caddy", "upstream", "2", "2.10.2"),
        ("caddy", "upstream", "2.9", "2.9.1"),
    ],
)
def test_the_newest_that_is_allowed_is_chosen_from_the_right_source(
    name: EngineName, source: Source, prefix: str, chosen: str
) -> None:
    one = a_plan(name, source, prefix)
    assert one.chosen == chosen
    assert one.pins[one.engine.main] == chosen
    assert not one.newer
    assert bool(one.refusal) == (not chosen)


def test_the_client_has_the_version_of_the_server() -> None:
    pins = a_plan("postgres", "upstream", "17.4").pins
    assert pins["postgresql-client-17"] == "17.4-1.pgdg130+1"
    assert pins["libpq5"] == ""
    assert a_plan("docker", "upstream", "28.1").pins["docker-ce-cli"] == ce("28.1.1")


RUNS = there(docker_ce=ce("28.1.1"), docker_ce_cli=ce("28.1.1"))
DISTRO = there(docker__io="26.1.5+dfsg1-9+b9")


@pytest.mark.parametrize(
    ("name", "source", "prefix", "installed", "parts"),
    [
        # The installed version is allowed, even if a newer one is offered.
        ("docker", "upstream", "", RUNS, ()),
        ("docker", "upstream", "28", RUNS, ()),
        ("docker", "upstream", "28.1.1", RUNS, ()),
        ("docker", "distro", "", DISTRO, ()),
        # An installed version that is no longer offered stays.
        ("docker", "upstream", "28.0", there(docker_ce=ce("28.0.4")), ()),
        (
            *("docker", "upstream", "28.2", RUNS),
            ("docker_version: 28.2 is wanted, and 28.1.1 is installed", "commands/upgrade.py"),
        ),
        (
            *("docker", "upstream", "27", RUNS),
            ("docker_version: 27 is wanted, and 28.1.1", "downgraded", "'28.1.1'", "empty"),
        ),
        (
            *("docker", "upstream", "29", RUNS),
            ("docker_version: Docker offers 28.2.2, 28.1.1, 27.5.1, not 29; 28.1.1 is installed",),
        ),
        (
            *("docker", "upstream", "29", {}),
            ("docker_version: Docker offers 28.2.2, 28.1.1, 27.5.1, not 29; use one of these",),
        ),
        (
            *("docker", "distro", "28", {}),
            ("docker_version: the distribution offers 26.1.5, not 28", "apt_source = 'upstream'"),
        ),
        (
            *("docker", "upstream", "", DISTRO),
            ("apt_source: Docker 26.1.5 on the host is the distribution's", "commands/upgrade.py"),
        ),
        (
            *("docker", "distro", "", RUNS),
            ("apt_source: Docker 28.1.1 on the host is the vendor's", "'distro'", "older one"),
        ),
        (
            *("postgres", "upstream", "", there(postgresql_17="17.4-2")),
            ("apt_source: PostgreSQL 17.4 on the host is the distribution's", "upgrade.py"),
        ),
        (
            *("postgres", "upstream", "17.5", there(postgresql_17="17.4-1.pgdg130+1")),
            ("postgres_version: 17.5 is wanted, and 17.4 is installed", "commands/upgrade.py"),
        ),
        (
            *("postgres", "upstream", "17.9", {}),
            ("postgres_version: PGDG offers 17.5, 17.4, not 17.9", "leave it at the major"),
        ),
        (
            *("caddy", "distro", "", there(caddy="2.10.2")),
            ("apt_source: Caddy 2.10.2 on the host is the vendor's", "'upstream'"),
        ),
        (
            *("caddy", "upstream", "2.9", there(caddy="2.10.2")),
            ("caddy_version: 2.9 is wanted, and 2.10.2 is installed, which cannot be downgraded",),
        ),
    ],
)
def test_a_deploy_never_changes_an_installed_engine(
    name: EngineName, source: Source, prefix: str, installed: Installed, parts: tuple[str, ...]
) -> None:
    words = a_plan(name, source, prefix, installed).refusal
    assert "\n" not in words
    if not parts:
        assert not words
    for part in parts:
        assert part in words
    assert not parts or words.startswith(parts[0].partition(" ")[0])


def test_without_package_lists_only_a_known_downgrade_is_refused() -> None:
    one = a_plan("docker", "upstream", "28", offers={})
    assert not one.refusal
    # After a refresh, a version that is not offered is an error.
    assert "Docker offers no docker-ce" in one.nothing_offered
    assert not a_plan("docker", "upstream", "", offers={}).nothing_offered
    # The numbers alone show whether it is an upgrade or a downgrade.
    assert "upgrade.py" in a_plan("docker", "upstream", "28.2", RUNS, offers={}).refusal
    assert "downgraded" in a_plan("docker", "upstream", "27", RUNS, offers={}).refusal


def test_a_newer_version_is_reported_and_not_installed() -> None:
    one = a_plan("docker", "upstream", "28", RUNS)
    assert one.newer == ce("28.2.2")
    assert one.summary == "Docker: 28.1.1 → 28.2.2"
    assert not a_plan("docker", "upstream", "28.1", RUNS).newer
    assert a_plan("docker", "upstream").summary == "Docker: 28.2.2"
    moved = a_plan("docker", "upstream", "", DISTRO)
    assert moved.moves
    assert moved.summary == "Docker: 26.1.5 of the distribution → 28.2.2 of Docker"


def test_a_plan_lists_missing_unheld_and_conflicting_packages() -> None:
    one = a_plan("docker", "upstream", installed=RUNS | there(runc="1.1", apparmor="4"))
    assert {"containerd.io", "docker-compose-plugin", "iptables"} <= {*one.missing}
    assert "docker-ce" not in one.missing
    assert {*one.loose} == {"docker-ce", "docker-ce-cli"}
    assert one.in_the_way == ("runc",)
    held = there("docker-ce", docker_ce=ce("28.1.1"), docker_ce_cli=ce("28.1.1"))
    assert a_plan("docker", "upstream", installed=held).loose == ("docker-ce-cli",)


@pytest.mark.parametrize(
    ("prefix", "installed", "numbers"),
    [("", RUNS, (28, 1)), ("", {}, (28, 2)), ("27", {}, (27, 5)), ("26", {}, (26, 0))],
)
def test_the_version_numbers_of_docker_are_known_before_the_installation(
    prefix: str, installed: Installed, numbers: tuple[int, int]
) -> None:
    assert a_plan("docker", "upstream", prefix, installed).numbers == numbers


def test_a_plan_for_a_bare_host_is_empty() -> None:
    for name in ENGINES:
        one = a_plan(name, "upstream", offers={})
        assert (one.numbers, one.chosen, one.newer, one.refusal) == (None, "", "", "")

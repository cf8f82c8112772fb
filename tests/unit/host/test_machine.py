"""The beginning of each task: unsupported hosts are refused in one line; on others it is root."""

from types import SimpleNamespace
from typing import Any

import pytest
from pyinfra.api import DeployError

from terrafirma.host.facts import Machine, MachineState
from terrafirma.host.machine import (
    ARCHITECTURES,
    DISTRIBUTIONS,
    distribution,
    ready,
    refuse_source,
    refuse_unsupported,
)
from terrafirma.postgres.version import choose_postgres, postgres_version

DEBIAN_13 = [
    *("id=debian", "version=13", "name=Debian GNU/Linux 13 (trixie)", "architecture=amd64"),
    *("user=root", "root=yes", "systemd=yes", "free_kb=78453624"),
]


class Data:
    """A stand-in for pyinfra's host data, in which attributes that are set win."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def get(self, key: str) -> Any:
        return self.values.get(key)


class Host:
    """A host that answers one fact, and fails on any other."""

    name = "db1"

    def __init__(self, *lines: str, **data: Any) -> None:
        self.machine = Machine().process([*DEBIAN_13, *lines])
        self.data = Data(data)
        self.asked = 0

    def get_fact(self, fact: type[Any], *, _sudo: bool) -> MachineState:
        if fact is not Machine or _sudo:
            raise LookupError(fact)
        self.asked += 1
        return self.machine


def without(*keys: str) -> Any:
    """A host whose answer lacks these keys."""
    host: Any = Host()
    said = [line for line in DEBIAN_13 if line.partition("=")[0] not in keys]
    host.machine = Machine().process(said)
    return host


def a(*lines: str, **data: Any) -> Any:
    return Host(*lines, **data)


def refused(answer: str) -> Any:
    """A host where sudo refuses the connected user."""
    host = without("root")
    host.machine["sudo_answer"] = answer
    return host


@pytest.mark.parametrize(
    ("host", "key", "parts"),
    [
        (
            a("id=fedora", "version=43", "name=Fedora 43"),
            "distribution",
            ("Fedora 43", "Debian 13"),
        ),
        (a("version=11", "name=Debian 11"), "distribution", ("Debian 11", "Ubuntu 24.04")),
        (without("version", "name"), "distribution", ("an unknown system", "Debian 13")),
        (without("id"), "distribution", ("Debian 12",)),
        (a("architecture=i386"), "architecture", ("i386", "amd64 or arm64")),
        (without("architecture"), "architecture", ("amd64 or arm64",)),
        (without("systemd"), "systemd", ("plain container", "boots with it")),
        (without("root", "user"), "ssh_user", ("sudo", "--user root")),
        *(
            (refused(answer), "ssh_user", (f"({answer})", "--user root", "without a password"))
            for answer in (
                "sudo: sorry, you must have a tty to run sudo",
                "sudo: a password is required",
                "sh: 1: sudo: not found",
                "dev is not in the sudoers file.",
                "Sorry, user dev is not allowed to execute '/bin/sh -c x' as root on db1.",
                'sudo: Account expired or PAM config lacks an "account" section for sudo',
                "as uid 1005",
            )
        ),
        (a("missing=ip", "missing=ss"), "programs", ("ip, ss", "apt-get install iproute2")),
        (
            a("missing=sysctl", "missing=ip"),
            "programs",
            ("sysctl, ip", "apt-get install iproute2 procps"),
        ),
        (a("missing=useradd"), "programs", ("useradd", "apt-get install passwd")),
    ],
)
def test_a_host_that_is_not_supported_is_refused(
    host: Any, key: str, parts: tuple[str, ...]
) -> None:
    with pytest.raises(DeployError) as error:
        refuse_unsupported(host, host.machine)
    message = str(error.value)
    assert message.startswith(f"db1: {key}: ")
    assert "\n" not in message
    for part in parts:
        assert part in message
    with pytest.raises(DeployError, match=rf"^db1: {key}: "):
        ready(host, 1)


def wanted(version: int | None = None, *, adopt: bool = False) -> Any:
    return SimpleNamespace(version=version, major=version, adopt=adopt)


def chosen(host: Any, settings: Any) -> int:
    """The version of PostgreSQL for a host with these settings."""
    return postgres_version(host, settings, host.machine)


@pytest.mark.parametrize(("name", "version"), DISTRIBUTIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_supported_host_is_ready(name: str, version: str, architecture: str) -> None:
    host = a(f"id={name}", f"version={version}", f"architecture={architecture}")
    assert ready(host, 1) is host.machine
    held = distribution(host.machine)
    assert chosen(host, wanted()) == held.postgres
    assert chosen(host, wanted(held.postgres)) == held.postgres
    assert "docker.io" in held.docker


JAMMY = ("id=ubuntu", "version=22.04", "name=Ubuntu 22.04.5 LTS")


@pytest.mark.parametrize(
    ("source", "backups", "words"),
    [
        ("distro", False, "apt_source: Ubuntu 22.04.5 LTS's archive has no Caddy; use "),
        ("upstream", True, "borg_repository: Ubuntu 22.04.5 LTS's borgmatic is too old"),
    ],
)
def test_an_archive_that_is_too_old_is_refused(source: str, backups: bool, words: str) -> None:
    host = a(*JAMMY)
    with pytest.raises(DeployError, match=f"^db1: {words}"):
        refuse_source(host, host.machine, source, backups=backups)


def test_the_vendors_packages_make_up_for_an_old_archive() -> None:
    host = a(*JAMMY)
    refuse_source(host, host.machine, "upstream", backups=False)
    for name, version in {*DISTRIBUTIONS} - {("ubuntu", "22.04")}:
        host = a(f"id={name}", f"version={version}")
        refuse_source(host, host.machine, "distro", backups=True)


def test_a_host_is_asked_once() -> None:
    host, other = a(), a()
    for one in (host, host, other, host):
        ready(one, 1)
    assert (host.asked, other.asked) == (1, 1)


def test_a_user_with_sudo_becomes_root() -> None:
    host = without("root")
    host.machine["sudo"] = True
    ready(host, 1)
    assert host.data._sudo is True


def test_a_user_with_a_password_for_sudo_becomes_root() -> None:
    host = without("root")
    host.data.values["_sudo_password"] = "secret"
    ready(host, 1)
    assert host.data._sudo is True


def test_root_needs_no_sudo() -> None:
    host = a()
    ready(host, 1)
    assert not hasattr(host.data, "_sudo")


def cluster(name: str, *marks: str) -> tuple[str, ...]:
    """The lines of the fact for a cluster of ours."""
    return (f"cluster={name}", f"own={name}", *(f"{mark}={name}" for mark in marks))


OLD, NEW = cluster("15/main"), cluster("17/main")
TWO = ("offered=15", "offered=17")


@pytest.mark.parametrize(
    ("lines", "version", "parts"),
    [
        ((), 16, ("Debian GNU/Linux 13 (trixie) has 17, not 16", "17 or None")),
        (TWO, 16, ("(trixie) has 15 and 17, not 16", "15, 17 or None")),
        (("cluster=15/main",), None, ("17/main beside 15/main", "not ours", "pg_upgradecluster")),
        (("cluster=17/main", "cluster=15/old"), 17, ("beside 15/old", "not ours")),
        (("cluster=18/main",), None, ("beside 18/main",)),
        # Before 10, versions had two numbers.
        (("cluster=9.6/main",), None, ("beside 9.6/main", "not ours")),
        # A directory that was made by hand.
        (("cluster=old/main",), None, ("old/main",)),
        (cluster("15/old"), None, ("beside 15/old", "holds your data")),
        ((*NEW, "cluster=15/old"), 17, ("beside 15/old", "not ours")),
        # The distribution was upgraded below it.
        (
            OLD,
            None,
            (
                "15/main holds your data",
                "17 is wanted (None: what Debian GNU/Linux 13 (trixie) has)",
                "commands/postgres_upgrade.py",
                "postgres_version = 15",
            ),
        ),
        ((*OLD, *TWO), 17, ("17 is wanted; upgrade it with commands/postgres_upgrade.py",)),
        # An upgrade that died.
        ((*OLD, *cluster("17/main", "unfinished")), None, ("15/main holds your data", "upgrade")),
        # The way back was taken.
        ((*OLD, *cluster("17/main", "retired")), None, ("15/main holds", "postgres_version = 15")),
        # There is no downgrade.
        (
            (*NEW, *TWO),
            15,
            ("17/main holds your data", "cannot be downgraded to 15", "set it to 17"),
        ),
        (
            (*NEW, *TWO, *cluster("15/main", "retired")),
            15,
            ("cannot be downgraded", "the retired 15/main", "--data upgrade=back"),
        ),
        # A retired cluster, and nothing in its place.
        (cluster("17/main", "retired"), None, ("17/main was set aside", "pg_dropcluster 17 main")),
    ],
)
def test_a_cluster_of_another_version_is_refused(
    lines: tuple[str, ...], version: int | None, parts: tuple[str, ...]
) -> None:
    with pytest.raises(DeployError) as error:
        chosen(a(*lines), wanted(version))
    message = str(error.value)
    assert message.startswith("db1: postgres_version: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("lines", "version", "expected"),
    [
        ((), None, 17),
        (TWO, 15, 15),
        # Missing or old package lists do not rule out the distribution's own version.
        (("offered=15",), 17, 17),
        ((*OLD, "offered=15"), 15, 15),
        (NEW, None, 17),
        ((*NEW, *cluster("15/main", "retired")), None, 17),
        ((*OLD, "offered=15", *cluster("17/main", "retired")), 15, 15),
        ((*OLD, "offered=15", *cluster("17/main", "unfinished")), 15, 15),
        (("offered=18",), 18, 18),
    ],
)
def test_the_version_of_a_host(lines: tuple[str, ...], version: int | None, expected: int) -> None:
    assert chosen(a(*lines), wanted(version)) == expected


def test_nothing_begins_while_an_upgrade_is_going_on() -> None:
    for version in (None, 15, 17):
        host = a(*OLD, *TWO, "upgrading=yes")
        with pytest.raises(DeployError, match=r"^db1: upgrade: .* is going on there; wait"):
            chosen(host, wanted(version))


def test_an_upgrade_is_on_its_way_to_its_version() -> None:
    host = a(*OLD)
    choose_postgres(host, 17)
    assert chosen(host, wanted()) == 17


def test_a_foreign_cluster_is_taken_over_only_on_request() -> None:
    with pytest.raises(DeployError, match=r"^db1: postgres_adopt: the cluster 17/main .* not ours"):
        chosen(a("cluster=17/main"), wanted())
    assert chosen(a("cluster=17/main"), wanted(adopt=True)) == 17
    own = a("cluster=17/main", "own=17/main", "cluster=17/test")
    assert chosen(own, wanted(17)) == 17

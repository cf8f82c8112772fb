"""
Vendors' repositories: taken when all is as it should be; else one line, and the host as before.

One server, and tasks/apt.py alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.support import Target, changed, options, target
from tests.e2e.vendors import PINNED, Vendors, vendors

pytestmark = pytest.mark.e2e

TASK = "tasks/apt.py"
UPSTREAM: dict[str, Any] = {"apt_source": "upstream", "apt_packages": []}
SOURCES = "/etc/apt/sources.list.d/terrafirma-"


@pytest.fixture(scope="module")
def them() -> Iterator[Vendors]:
    with vendors("tf-test-repositories-vendors") as one:
        yield one


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra, them: Vendors) -> Iterator[Target]:
    with target(pyinfra, "tf-test-repositories", 2471) as bare, them.pinned(pyinfra) as copy:
        them.meet(bare)
        one = replace(bare, pyinfra=copy)
        # All that has nothing to do with vendors.
        one.deploy(TASK, apt_packages=[])
        one.run("apt-get update -q")
        # And what comes before the vendors: it says nothing of a repository that is not there.
        them.fail(status={"/": 503})
        failure(one)
        them.fail()
        yield one


def state(server: Target) -> str:
    """What apt goes by on the host, and whatever a run might leave behind."""
    return server.run(
        "find /etc/apt /var/lib/apt/lists /usr/share/keyrings -type f ! -name lock -print0"
        " | sort -z | xargs -0 sha256sum;"
        # apt itself forgets a key there now and then, whoever has it fetch.
        " find /tmp /var/tmp -mindepth 1 ! -path '*systemd*' ! -name 'apt-key.*'"
    )


def update_works(server: Target) -> None:
    server.run("apt-get update -q -o APT::Update::Error-Mode=any")


def failure(server: Target, **data: Any) -> str:
    """The one line that a run ends with that does not get what it needs."""
    result = server.pyinfra.imported.call(
        "-y", *options({**UPSTREAM, **data}), *server.arguments(), TASK
    )
    assert result.returncode != 0, result.stdout
    assert "Traceback" not in result.stderr, result.stderr
    noise = ("Connected", "Ready", "Waiting", "No changes", "Success", "Error: executed")
    lines = [line for line in result.stderr.splitlines() if "127.0.0.1" in line]
    lines = [line for line in lines if not any(word in line for word in noise)]
    assert len(lines) == 1, result.stderr
    return lines[0]


# The vendor that is asked first: where that one fails, nothing is taken from the others.
FIRST = "pgdg"


@dataclass(frozen=True)
class Broken:
    """One way to be broken, and what is said of it."""

    says: tuple[str, ...]
    order: dict[str, Any] = field(default_factory=dict)  # what is published
    faults: dict[str, Any] = field(default_factory=dict)  # what goes wrong on the way
    data: dict[str, Any] = field(default_factory=dict)


NO_PACKAGE = "its suite trixie-pgdg offers no libpq5 for"
BROKEN = {
    "untrusted certificate": Broken(("certificate is not trusted",), faults={"tls": "stranger"}),
    "suite that is not there": Broken(("404",), faults={"status": {"/dists/trixie-pgdg/": 404}}),
    "server with an error": Broken(("it answers 503",), faults={"status": {"/InRelease": 503}}),
    "no signature": Broken(("it is not signed",), {"sign": "nothing"}),
    "signature of somebody else": Broken(("not the vendor's",), {"sign": "stranger"}),
    "expired key": Broken(("expired on 2025-01-02",), {"key": "pgdg-expired"}),
    "revoked key": Broken(("is revoked by its owner",), {"key": "pgdg-revoked"}),
    "swapped key": Broken(
        ("has the fingerprint {stranger}, and {pgdg} is pinned",),
        {"key": "stranger", "sign": "stranger"},
    ),
    "key of a stranger beside it": Broken(("{stranger}",), {"key": "pgdg-and-stranger"}),
    "page in place of a key": Broken(("it is no public OpenPGP key",), {"key": "page"}),
    "half a key": Broken(("OpenPGP key",), {"key": "half"}),
    "key that is not there": Broken(("ACCC4CF8.asc: answers 404",), {"key": "nothing"}),
    "changed index": Broken(("not the one that is signed",), {"spoil": "packages"}),
    "changed release": Broken(("its signature is wrong",), {"spoil": "release"}),
    "half an index at the vendor's": Broken(("came by half",), {"spoil": "half"}),
    "half an index on the way": Broken(("came by half",), faults={"cut": "/Packages"}),
    "another suite": Broken(("it is the suite bookworm-pgdg",), {"says": "bookworm-pgdg"}),
    "release of long ago": Broken(("no longer valid",), {"until": time.time() - 86_400}),
    "other architectures only": Broken((NO_PACKAGE,), {"architecture": "riscv64"}),
    "nothing of what is wanted": Broken((NO_PACKAGE,), {"without": ["libpq5"]}),
    "mirror that has nothing": Broken(
        ("404", "http://mirror.test/nothing"),
        data={"apt_urls": {FIRST: "http://mirror.test/nothing"}},
    ),
    "port where nobody listens": Broken(
        ("nobody answers there",), data={"apt_urls": {FIRST: "http://mirror.test:81/apt"}}
    ),
}
# apt asks three times, with a pause before each.
SLOW = ("port where nobody listens",)
KINDS = [pytest.param(one, marks=[pytest.mark.long] if one in SLOW else []) for one in BROKEN]


@pytest.fixture(autouse=True)
def as_it_should_be(them: Vendors) -> Iterator[None]:
    yield
    them.fail()


@pytest.mark.promise(
    "A repository or key of a vendor's that is not as it should be leaves the host as it was"
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_broken_leaves_the_host_as_it_was(server: Target, them: Vendors, kind: str) -> None:
    broken = BROKEN[kind]
    before = state(server)
    if broken.order:
        them.publish(FIRST, **broken.order)
    them.fail(**broken.faults)
    try:
        line = failure(server, **broken.data)
    finally:
        them.fail()
        if broken.order:
            them.publish(FIRST)
    assert "PGDG: " in line
    for words in broken.says:
        assert words.format(**them.fingerprints()) in line, line
    assert state(server) == before
    update_works(server)


def test_a_vendor_who_is_not_there(server: Target, them: Vendors) -> None:
    before = state(server)
    them.stop()
    try:
        line = failure(server)
    finally:
        them.start()
    assert "Connection refused" in line
    assert state(server) == before
    update_works(server)


def test_a_proxy_that_wants_a_login(server: Target, them: Vendors) -> None:
    before = state(server)
    them.fail(proxy="user:word")
    try:
        line = failure(server, apt_proxy="http://mirror.test:3128")
        assert "407" in line
        assert "apt_proxy" in line
        assert state(server) == before
        update_works(server)
    finally:
        server.run("rm -f /etc/apt/apt.conf.d/60terrafirma-proxy")


def test_a_key_from_a_file_has_the_pinned_fingerprint_too(
    server: Target, them: Vendors, tmp_path: Path
) -> None:
    before = state(server)
    key = tmp_path / "pgdg.asc"
    key.write_text(them.run("cat /srv/vendors/keys/stranger.asc") + "\n")
    line = failure(server, apt_keys={FIRST: str(key)})
    assert them.fingerprints()["stranger"] in line
    assert them.fingerprints()[FIRST] in line
    assert "cannot read" in failure(server, apt_keys={FIRST: str(tmp_path / "nothing.asc")})
    assert state(server) == before
    update_works(server)


def test_one_who_fails_spoils_nothing_of_the_others(server: Target, them: Vendors) -> None:
    them.publish("docker", sign="stranger")
    try:
        line = failure(server)
    finally:
        them.publish("docker")
    assert "Docker: " in line
    assert server.run(f"ls {SOURCES}*") == f"{SOURCES}pgdg.sources"
    update_works(server)


# --- from here on the host has the vendors' repositories ------------------------------------------


@pytest.fixture(scope="module")
def converged(server: Target, them: Vendors) -> Target:
    them.asked()
    assert changed(server.deploy(TASK, **UPSTREAM))
    return server


@pytest.mark.promise("The vendors' repositories are exact files, with the key that is pinned")
def test_what_is_right_is_taken(converged: Target, them: Vendors) -> None:
    asked = them.asked()
    assert any(one.endswith("/gpg.key") for one in asked)
    for vendor in PINNED:
        written = converged.run(f"cat {SOURCES}{vendor}.sources")
        assert "Signed-By:" in written
        assert "BEGIN PGP PUBLIC KEY BLOCK" in written
        assert converged.run(f"stat -c '%a %U' {SOURCES}{vendor}.sources") == "644 root"
    update_works(converged)
    them.asked()
    assert changed(converged.deploy(TASK, **UPSTREAM)) == []
    assert converged.plan(TASK, **UPSTREAM) == []
    # A run that has nothing to do asks nobody.
    assert them.asked() == []


def test_only_what_is_wanted_comes_from_a_vendor(converged: Target) -> None:
    def candidate(package: str) -> str:
        policy = converged.run(f"apt-cache policy {package}")
        return policy.partition("Candidate: ")[2].split()[0]

    assert "pgdg" in candidate("postgresql-17")
    assert "pgdg" in candidate("libpq5")
    assert "pgdg" in candidate("postgresql-common")
    assert "deb13" in candidate("pgbouncer")


def test_what_breaks_later_leaves_what_was_right(converged: Target, them: Vendors) -> None:
    before = state(converged)
    line = failure(converged, apt_urls={"docker": "http://mirror.test/nothing"})
    assert "http://mirror.test/nothing" in line
    assert state(converged) == before
    update_works(converged)


def test_a_mirror(converged: Target, them: Vendors) -> None:
    url = "http://mirror.test/download.docker.com/linux/debian"
    mirror: dict[str, Any] = {"apt_urls": {"docker": url}}
    assert changed(converged.deploy(TASK, **UPSTREAM, **mirror))
    assert f"URIs: {url}" in converged.run(f"cat {SOURCES}docker.sources")
    update_works(converged)
    assert changed(converged.deploy(TASK, **UPSTREAM, **mirror)) == []
    assert changed(converged.deploy(TASK, **UPSTREAM))


PASSWORD = "nobody-sees-this-one"


def test_a_proxy_with_a_password(
    converged: Target, them: Vendors, monkeypatch: pytest.MonkeyPatch
) -> None:
    them.fail(proxy=f"user:{PASSWORD}")
    monkeypatch.setenv("TERRAFIRMA_APT_PROXY_PASSWORD", PASSWORD)
    data = {**UPSTREAM, "apt_proxy": "http://user@mirror.test:3128"}
    # One that has another address: there is something to fetch.
    mirror: dict[str, Any] = {
        "apt_urls": {"caddy": "http://mirror.test/dl.cloudsmith.io/public/caddy/stable/deb/debian"}
    }
    them.asked()
    result = converged.pyinfra.imported.call(
        "-y", *options(data | mirror), *converged.arguments(), TASK
    )
    assert result.returncode == 0, result.stderr
    assert PASSWORD not in result.stdout + result.stderr
    assert [one for one in them.asked() if one.startswith(("connect ", "proxy "))]
    holders = converged.run(f"grep -rl {PASSWORD} /etc/apt /var/lib/apt /run 2> /dev/null || true")
    for path in holders.split():
        assert converged.run(f"stat -c '%a %U' {path}") == "600 root"
    assert len(holders.split()) == 1
    assert changed(converged.deploy(TASK, **data, **mirror)) == []
    monkeypatch.delenv("TERRAFIRMA_APT_PROXY_PASSWORD")
    them.fail()
    converged.deploy(TASK, **UPSTREAM)
    update_works(converged)


def test_a_key_from_a_file(converged: Target, them: Vendors, tmp_path: Path) -> None:
    key = tmp_path / "docker.asc"
    key.write_text(them.run("cat /srv/vendors/keys/docker.asc") + "\n")
    converged.run(f"rm {SOURCES}docker.sources")
    them.asked()
    assert changed(converged.deploy(TASK, **UPSTREAM, apt_keys={"docker": str(key)}))
    assert not [one for one in them.asked() if one.endswith("/gpg")]
    update_works(converged)


def test_a_damaged_source_is_put_right(converged: Target) -> None:
    converged.run(f"sed -i s/stable/edge/ {SOURCES}docker.sources")
    assert len(changed(converged.deploy(TASK, **UPSTREAM))) == 1
    assert "Components: stable" in converged.run(f"cat {SOURCES}docker.sources")
    update_works(converged)

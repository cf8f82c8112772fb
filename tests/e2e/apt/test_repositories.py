"""
Vendors' repositories: added if they pass every check; else one line of error, and no change.

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
        # Everything else that the task sets up.
        one.deploy(TASK, apt_packages=[])
        one.run("apt-get update -q")
        # Everything that comes before the vendors' repositories, which all fail now.
        them.fail(status={"/": 503})
        failure(one)
        them.fail()
        yield one


def state(server: Target) -> str:
    """Digests of apt's configuration and lists, and the names of files a run might leave behind."""
    return server.run(
        "find /etc/apt /var/lib/apt/lists /usr/share/keyrings -type f ! -name lock -print0"
        " | sort -z | xargs -0 sha256sum;"
        # apt itself leaves a key there now and then.
        " find /tmp /var/tmp -mindepth 1 ! -path '*systemd*' ! -name 'apt-key.*'"
    )


def update_works(server: Target) -> None:
    server.run("apt-get update -q -o APT::Update::Error-Mode=any")


def failure(server: Target, **data: Any) -> str:
    """Run the task, which must fail; returns its one line of error."""
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


# The first vendor that is tried: if it fails, the others are not tried.
FIRST = "pgdg"


@dataclass(frozen=True)
class Broken:
    """One fault of a repository, and the words of the error."""

    says: tuple[str, ...]
    order: dict[str, Any] = field(default_factory=dict)  # for Vendors.publish
    faults: dict[str, Any] = field(default_factory=dict)  # for Vendors.fail
    data: dict[str, Any] = field(default_factory=dict)


NO_PACKAGE = "its suite trixie-pgdg offers no libpq5 for"
BROKEN = {
    "untrusted certificate": Broken(("certificate is not trusted",), faults={"tls": "stranger"}),
    "missing suite": Broken(("404",), faults={"status": {"/dists/trixie-pgdg/": 404}}),
    "server with an error": Broken(("it answers 503",), faults={"status": {"/InRelease": 503}}),
    "no signature": Broken(("it is not signed",), {"sign": "nothing"}),
    "signature of a stranger": Broken(("not the vendor's",), {"sign": "stranger"}),
    "expired key": Broken(("expired on 2025-01-02",), {"key": "pgdg-expired"}),
    "revoked key": Broken(("is revoked by its owner",), {"key": "pgdg-revoked"}),
    "swapped key": Broken(
        ("has the fingerprint {stranger}, and {pgdg} is pinned",),
        {"key": "stranger", "sign": "stranger"},
    ),
    "key of a stranger beside it": Broken(("{stranger}",), {"key": "pgdg-and-stranger"}),
    "page instead of a key": Broken(("it is not a public OpenPGP key",), {"key": "page"}),
    "half a key": Broken(("OpenPGP key",), {"key": "half"}),
    "missing key": Broken(("ACCC4CF8.asc: answers 404",), {"key": "nothing"}),
    "changed index": Broken(("not the one that was signed",), {"spoil": "packages"}),
    "changed release": Broken(("its signature is wrong",), {"spoil": "release"}),
    "half an index at the vendor's": Broken(("an index is incomplete",), {"spoil": "half"}),
    "half an index on the way": Broken(("an index is incomplete",), faults={"cut": "/Packages"}),
    "another suite": Broken(("it is the suite bookworm-pgdg",), {"says": "bookworm-pgdg"}),
    "expired release": Broken(("no longer valid",), {"until": time.time() - 86_400}),
    "other architectures only": Broken((NO_PACKAGE,), {"architecture": "riscv64"}),
    "missing packages": Broken((NO_PACKAGE,), {"without": ["libpq5"]}),
    "empty mirror": Broken(
        ("404", "http://mirror.test/nothing"),
        data={"apt_urls": {FIRST: "http://mirror.test/nothing"}},
    ),
    "port without a server": Broken(
        ("no server answers there",), data={"apt_urls": {FIRST: "http://mirror.test:81/apt"}}
    ),
}
# apt asks three times, with a pause before each.
SLOW = ("port without a server",)
KINDS = [pytest.param(one, marks=[pytest.mark.long] if one in SLOW else []) for one in BROKEN]


@pytest.fixture(autouse=True)
def without_faults(them: Vendors) -> Iterator[None]:
    yield
    them.fail()


@pytest.mark.promise(
    "A vendor's repository or key that fails a check is refused, and the host stays unchanged"
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_faulty_repository_changes_nothing(server: Target, them: Vendors, kind: str) -> None:
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


def test_a_vendor_without_a_server(server: Target, them: Vendors) -> None:
    before = state(server)
    them.stop()
    try:
        line = failure(server)
    finally:
        them.start()
    assert "Connection refused" in line
    assert state(server) == before
    update_works(server)


def test_a_proxy_that_requires_a_login(server: Target, them: Vendors) -> None:
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


def test_a_key_from_a_file_must_have_the_pinned_fingerprint_too(
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


def test_a_vendor_that_fails_does_not_harm_those_before(server: Target, them: Vendors) -> None:
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


@pytest.mark.promise("Each vendor's repository is a file of exact content, with the pinned key")
def test_valid_repositories_are_added(converged: Target, them: Vendors) -> None:
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
    # A run that has nothing to do sends no request.
    assert them.asked() == []


def test_only_the_vendors_own_packages_come_from_a_vendor(converged: Target) -> None:
    def candidate(package: str) -> str:
        policy = converged.run(f"apt-cache policy {package}")
        return policy.partition("Candidate: ")[2].split()[0]

    assert "pgdg" in candidate("postgresql-17")
    assert "pgdg" in candidate("libpq5")
    assert "pgdg" in candidate("postgresql-common")
    assert "deb13" in candidate("pgbouncer")


def test_a_later_failure_leaves_the_working_sources(converged: Target, them: Vendors) -> None:
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
    # A repository with another address, so that there is something to fetch.
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


def test_a_damaged_source_is_repaired(converged: Target) -> None:
    converged.run(f"sed -i s/stable/edge/ {SOURCES}docker.sources")
    assert len(changed(converged.deploy(TASK, **UPSTREAM))) == 1
    assert "Components: stable" in converged.run(f"cat {SOURCES}docker.sources")
    update_works(converged)

"""Snapshots: a server made from a snapshot has its own identity, and is converged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import ROOT, Pyinfra
from tests.e2e.clones import DEPLOYED, backed_up, serves
from tests.e2e.support import TASKS, Container, Target, changed, execute, get, output, target

pytestmark = pytest.mark.e2e


def keep(server: Target, series: str, digest: str) -> None:
    output(str(ROOT / "testbed/snapshot.sh"), server.name, series, digest, timeout=300)


@contextmanager
def removed(snapshot: str) -> Iterator[None]:
    """Removes the snapshot after the block."""
    try:
        yield
    finally:
        execute("docker", "image", "rm", f"terrafirma/snapshot:{snapshot}")
        execute("docker", "volume", "rm", f"terrafirma-snapshot-{snapshot}")


@pytest.fixture(scope="module")
def hosts(pyinfra: Pyinfra) -> Iterator[tuple[Target, dict[str, Any]]]:
    """A clone of a server with backups, and the settings for these backups."""
    with backed_up(pyinfra, "tf-test-origin", 2406) as (origin, data), removed("origin-1"):
        keep(origin, "origin", "1")
        with target(pyinfra, "tf-test-clone", 2408, snapshot="origin-1") as server:
            serves(server, DEPLOYED)
            yield server, data


def test_a_clone_has_its_own_identity(server: Target) -> None:
    assert server.run("hostname") == server.name
    # The journal has a directory for each machine-id that the disk has had.
    ids = server.run("ls /var/log/journal").split()
    assert len(ids) > 1
    assert server.run("cat /etc/machine-id") in ids


@pytest.mark.promise(
    "A server made from a snapshot of another one is converged, and its backups are its own"
)
def test_a_run_changes_nothing(server: Target, data: dict[str, Any], outsider: Container) -> None:
    assert server.plan(**data) == []
    assert changed(server.deploy(**data)) == []
    answers = get(outsider, server, 40)
    assert {status for status, _ in answers} == {200}
    assert len({body["replica"] for _, body in answers}) == 4


@pytest.mark.promise("A task that runs alone on a converged server changes nothing")
@pytest.mark.parametrize("task", TASKS)
def test_a_task_alone_changes_nothing(server: Target, data: dict[str, Any], task: str) -> None:
    assert changed(server.deploy(task, **data)) == []


def test_the_docker_connector_works(server: Target) -> None:
    answer = server.pyinfra.run("-y", f"@docker/{server.name}", "tasks/postgres.py")
    assert changed(answer) == []


@pytest.mark.promise(like=test_a_run_changes_nothing)
@pytest.mark.long
def test_its_backups_are_separate(server: Target) -> None:
    server.run("systemctl start borgmatic.service")
    (repository,) = json.loads(server.run("borgmatic rlist --match-archives 'sh:*' --json"))
    names = [one["archive"].partition("-2")[0] for one in repository["archives"]]
    assert names == ["tf-test-origin", "tf-test-clone"]


# --- the testbed itself ---------------------------------------------------------------------------


def snapshots(series: str) -> set[str]:
    """Images and volumes of that series."""
    images = output("docker", "image", "ls", "--format", "{{.Tag}}", "terrafirma/snapshot")
    volumes = output("docker", "volume", "ls", "--format", "{{.Name}}")
    begins = (f"{series}-", f"terrafirma-snapshot-{series}-")
    return {one for one in f"{images}\n{volumes}".split() if one.startswith(begins)}


@pytest.mark.long
def test_a_snapshot_that_was_left_half_made_is_made_anew(pyinfra: Pyinfra) -> None:
    half, label = "terrafirma-snapshot-half-2", "org.terrafirma.testbed=1"
    with target(pyinfra, "tf-test-half", 2409) as one, removed("half-1"), removed("half-2"):
        one.run("echo 1 > /srv/disk; echo 1 > /var/lib/docker/disk")
        keep(one, "half", "1")
        # A killed process leaves the volume, with some data, and no image.
        output("docker", "volume", "create", "--label", label, half)
        output("docker", "run", "--rm", "--volume", f"{half}:/half", "terrafirma/snapshot:half-1",
               "touch", "/half/rest")  # fmt: skip
        output("docker", "start", one.name)
        one.run("echo 2 > /srv/disk; echo 2 > /var/lib/docker/disk")
        keep(one, "half", "2")
        # The older snapshot of the series is gone.
        assert snapshots("half") == {"half-2", half}
        with target(pyinfra, "tf-test-whole", 2410, snapshot="half-2") as whole:
            assert whole.run("cat /srv/disk /var/lib/docker/disk") == "2\n2"
            assert "rest" not in whole.run("ls /var/lib/docker")

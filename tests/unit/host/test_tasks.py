"""Preflight and apt: the requirements for a host before anything changes."""

from collections.abc import Sequence
from subprocess import CompletedProcess

import pytest

from terrafirma.host.facts import Hardware, Listeners
from terrafirma.host.packages import AptLockHolder
from tests.conftest import Pyinfra
from tests.unit.fake_host import POOLED, api, command, fake, machine, refuses

SLOTS = [*range(8000, 8008), *range(8064, 8072)]
LISTENERS = command(Listeners, ports=[80, 443, 5432, *SLOTS])
POOLED_LISTENERS = command(Listeners, ports=[80, 443, 5432, 6432, *SLOTS])
MEMORY = command(Hardware, path="/")


# --- they plan ------------------------------------------------------------------------------------


def test_preflight_accepts_our_services_and_waits_for_apt(pyinfra: Pyinfra) -> None:
    own = [
        "80|caddy|caddy.service",
        "443|caddy|caddy.service",
        "5432|postgres|postgresql@17-main.service",
    ]
    busy = {LISTENERS: own, command(AptLockHolder): ["unattended-upgr (pid 812)"]}
    answers = machine() | busy
    (step,) = pyinfra.run("@fake/host", "tasks/preflight.py", "--dry", *fake(answers))["plan"]
    assert step["hosts_with_change"] == ["@fake/host"]


# --- they refuse ----------------------------------------------------------------------------------

# The mistake; the task; the host; the parts of the message: the key or the thing, and the remedy.
REFUSALS: dict[str, tuple[str, list[str], Sequence[str]]] = {
    "another distribution": (
        "tasks/preflight",
        fake(machine(id="fedora", version="43", name="Fedora Linux 43")),
        ("distribution: ", "Fedora Linux 43", "Debian 13", "Ubuntu 24.04"),
    ),
    "a host that says nothing": (
        "tasks/preflight",
        [],
        ("distribution: ", "an unknown system", "Debian 13"),
    ),
    "cloud-init never ends": (
        "tasks/preflight",
        fake(machine(booting="yes"), preflight_wait_seconds=1),
        ("preflight_wait_seconds: ", "cloud-init", "cloud-init status --long"),
    ),
    "a change of another run that is never undone": (
        "tasks/preflight",
        fake(machine(guarded="yes"), preflight_wait_seconds=1),
        ("preflight_wait_seconds: ", "another run", "systemctl status terrafirma-guard.service"),
    ),
    "a full disk": (
        "tasks/preflight",
        fake(machine(free_kb="1048576")),
        ("preflight_free_disk_gb: ", "1.0 GB are free", "2 are needed"),
    ),
    "memory that does not fit": (
        "tasks/preflight",
        fake(machine() | {MEMORY: ["memory=2097152", "cores=2"]}, **api(memory_mb=512)),
        (
            "apps.api.memory_mb: ",
            "2048 MB of memory are too few: api 4 replicas x 512 MB x 2",
            "512 MB",
        ),
    ),
    "processors that do not fit below the platform": (
        "deploy",
        fake(machine() | {MEMORY: ["memory=2097152", "cores=2"]}, **api(cpus=4)),
        ("apps.api.cpus: ", "a container may take 4", "set it to 2 or less"),
    ),
    "a stranger on PostgreSQL's port": (
        "tasks/preflight",
        fake(
            machine() | {LISTENERS: ["443|caddy|caddy.service", "5432|docker-proxy|docker.service"]}
        ),
        (
            "port 5432 (postgres_port): ",
            "docker-proxy (docker.service)",
            "postgresql@17-main.service",
        ),
    ),
    "a stranger on the pooler's port": (
        "tasks/preflight",
        fake(machine() | {POOLED_LISTENERS: ["6432|nc|"]}, **POOLED),
        ("port 6432 (pgbouncer_port): ", "nc (in no unit)", "pgbouncer.service"),
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses_in_one_line_before_anything_changes(
    refused: dict[str, CompletedProcess[str]], what: str
) -> None:
    refuses(refused[what], REFUSALS[what][2])


def test_says_that_it_waits_for_cloud_init(refused: dict[str, CompletedProcess[str]]) -> None:
    assert "Waiting for cloud-init" in refused["cloud-init never ends"].stderr

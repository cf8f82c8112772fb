"""Interruptions: a task alone on a bare server, and a run that is killed half-way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT, Pyinfra
from tests.e2e.support import Container, Target, changed, eventually, get, options, target

pytestmark = pytest.mark.e2e

# Not the default: nothing may depend on the default pool.
POOL = {"docker_address_pool": "10.33.0.0/16"}


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with target(pyinfra, "tf-test-interrupted", 2413) as bare:
        yield bare


@pytest.mark.long
def test_postgres_alone_works_without_docker(server: Target) -> None:
    assert changed(server.deploy("tasks/postgres.py"))
    assert server.psql("show listen_addresses") == "localhost"
    assert server.psql("select datname from pg_database where datname = 'api'") == "api"
    assert changed(server.deploy("tasks/postgres.py")) == []


def test_the_application_alone_says_what_it_needs(server: Target) -> None:
    result = server.pyinfra.call("-y", *server.arguments(), "tasks/app.py")
    assert result.returncode != 0
    assert "there is no account 'prod'; run tasks/users.py first" in result.stderr
    assert "Traceback" not in result.stderr
    assert server.call("ls /opt/terrafirma").returncode != 0


@pytest.mark.promise("The run after a killed run finishes its work")
def test_the_next_run_finishes_a_killed_run(server: Target, outsider: Container) -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "pyinfra", "-y", *options(POOL), *server.arguments(), "deploy.py"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    # Kill it after Docker and before Caddy.
    eventually(
        lambda: (
            server.call("docker network inspect apps").returncode == 0 or run.poll() is not None
        ),
        300,
    )
    assert run.poll() is None
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert server.call("command -v docker").returncode == 0
    assert server.call("command -v caddy").returncode != 0

    assert changed(server.deploy(**POOL))
    answers = get(outsider, server, 40)
    assert {status for status, _ in answers} == {200}
    assert len({body["replica"] for _, body in answers}) == 4
    assert changed(server.deploy(**POOL)) == []
    docker0 = server.run("ip -4 -oneline address show dev docker0").split()[3].split("/")[0]
    assert docker0.startswith("10.33.")
    assert server.psql("show listen_addresses") == f"localhost,{docker0}"


def test_docker0_is_where_it_was_after_a_reboot(server: Target) -> None:
    show = "ip -4 -oneline address show dev docker0"
    before = server.run(show).split()[3]
    server.reboot()
    eventually(lambda: server.call(f"docker info && {show}").returncode == 0, 60)
    assert server.run(show).split()[3] == before


def test_without_a_repository_the_run_says_so(server: Target) -> None:
    result = server.pyinfra.call("-y", *options(POOL), *server.arguments(), "deploy.py")
    assert result.returncode == 0
    said = result.stderr.index("There are no backups: set borg_repository to a repository")
    assert said > result.stderr.index("tasks/caddy.py | Run Caddy")


def test_a_killed_installation_is_finished(server: Target) -> None:
    """dpkg died between unpacking and configuring a package."""
    server.run(
        "apt-get download -q hello > /dev/null 2>&1 && dpkg --unpack hello_*.deb && rm hello_*"
    )
    server.run("apt-get -qy purge vim vim-runtime > /dev/null 2>&1; rm -f /etc/vim/vimrc.local")
    assert changed(server.deploy("tasks/apt.py")) == ["Install the base packages"]
    assert server.run("dpkg-query -Wf '${db:Status-Status}' hello") == "installed"


def test_it_waits_for_cloud_init(server: Target) -> None:
    server.run("mkdir /run/cloud-init")
    finish = "sleep 8; touch /run/cloud-init/result.json"
    boot = subprocess.Popen(["docker", "exec", server.name, "sh", "-c", finish])
    result = server.pyinfra.call("-y", *server.arguments(), "tasks/apt.py")
    boot.wait()
    assert result.returncode == 0, result.stderr
    assert "Waiting for cloud-init to finish" in result.stderr
    server.run("rm /run/cloud-init/result.json")
    line = server.refuse("tasks/apt.py", preflight_wait_seconds=1)
    assert "preflight_wait_seconds: cloud-init is still not finished" in line
    server.run("rmdir /run/cloud-init")


def test_it_waits_for_apts_lock(server: Target) -> None:
    hold = (
        "import fcntl, time; lock = open('/var/lib/dpkg/lock-frontend', 'w');"
        " fcntl.lockf(lock, fcntl.LOCK_EX); time.sleep(8)"
    )
    holder = subprocess.Popen(["docker", "exec", server.name, "python3", "-c", hold])
    eventually(lambda: server.call("grep -c POSIX /proc/locks").returncode == 0, 5)
    result = server.pyinfra.call("-y", *server.arguments(), "tasks/preflight.py")
    holder.wait()
    assert result.returncode == 0, result.stderr
    assert "Waiting for apt's lock, held by python3 (pid" in result.stderr

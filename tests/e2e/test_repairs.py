"""Repairs: a broken file never replaces a good one, and damage is repaired."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import DEPLOYED, clone
from tests.e2e.databases import login
from tests.e2e.support import Container, Target, beside_api, changed, eventually, get, options

pytestmark = pytest.mark.e2e
smoke = pytest.mark.smoke


SSHD = "/etc/ssh/sshd_config.d/00-terrafirma.conf"
POSTGRES = "/etc/postgresql/17/main/conf.d/terrafirma.conf"


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with clone(pyinfra, "tf-test-repairs", 2455, DEPLOYED) as deployed:
        yield deployed


@smoke
def test_a_lost_reload_is_repeated(server: Target) -> None:
    server.run("sleep 1.1; touch /etc/caddy/Caddyfile")
    assert server.plan("tasks/caddy.py") == ["Run Caddy"]
    assert changed(server.deploy("tasks/caddy.py")) == ["Run Caddy"]
    assert changed(server.deploy("tasks/caddy.py")) == []


@pytest.mark.promise("A broken file never replaces a good one")
@pytest.mark.parametrize(
    ("task", "path", "break_it", "mend_it", "data"),
    [
        pytest.param(
            "sshd",
            SSHD,
            "echo 'No such option' >> /etc/ssh/sshd_config",
            "sed -i '$ d' /etc/ssh/sshd_config",
            {"sshd_allow_users": ["somebody"]},
            marks=smoke,
        ),
        (
            "sshd",
            SSHD,
            "sed -i 's/^Include/#Include/' /etc/ssh/sshd_config",
            "sed -i 's/^#Include/Include/' /etc/ssh/sshd_config",
            {"sshd_allow_users": ["somebody"]},
        ),
        (
            "users",
            "/etc/sudoers.d/90-terrafirma-ingres",
            "true",
            "true",
            {"users_accounts": [{"name": "prod"}, {"name": "ingres", "sudo": ["/bin/ls, ="]}]},
        ),
        pytest.param(
            "caddy",
            "/etc/caddy/Caddyfile",
            "true",
            "true",
            {"caddy_log_size_mb": 10**14},
            marks=smoke,
        ),
        ("docker", "/etc/docker/daemon.json", "true", "true", {"docker_daemon": {"no-such": 1}}),
        ("postgres", POSTGRES, "true", "true", {"postgres_settings": {"work_mem": "lots"}}),
        pytest.param(
            "postgres",
            POSTGRES,
            "true",
            "true",
            {"postgres_settings": {"shared_bufers": "1GB"}},
            marks=smoke,
        ),
    ],
)
def test_a_broken_file_never_replaces_a_good_one(
    server: Target,
    outsider: Container,
    task: str,
    path: str,
    break_it: str,
    mend_it: str,
    data: dict[str, Any],
) -> None:
    file = f"tasks/{task}.py"
    before = server.run(f"sha256sum {path}")
    server.run(break_it)
    try:
        result = server.pyinfra.imported.call("-y", *options(data), *server.arguments(), file)
    finally:
        server.run(mend_it)
    assert result.returncode != 0, result.stderr
    assert "Traceback" not in result.stderr
    assert server.run(f"sha256sum {path}") == before
    assert server.run(f"ls -A {Path(path).parent} | grep -c terrafirma-new || true") == "0"
    # Undo the changes that the task made before it came to the file.
    server.deploy(file)
    assert {status for status, _ in get(outsider, server, 4)} == {200}


@pytest.mark.promise("PostgreSQL restarts only for a setting that needs a restart")
@smoke
def test_only_a_setting_that_needs_it_restarts_the_server(
    server: Target, outsider: Container
) -> None:
    started = "systemctl show --value --property ActiveEnterTimestampMonotonic postgresql@17-main"
    before = server.run(started)
    easy: dict[str, Any] = {"postgres_settings": {"log_min_duration_statement": "2s"}}
    assert server.plan("tasks/postgres.py", **easy) == ["Configure the server", "Run PostgreSQL"]
    assert changed(server.deploy("tasks/postgres.py", **easy)) == [
        "Configure the server",
        "Run PostgreSQL",
    ]
    assert server.psql("show log_min_duration_statement") == "2s"
    assert server.run(started) == before
    hard: dict[str, Any] = {"postgres_settings": {"max_wal_senders": 7}}
    announced = [
        "Configure the server",
        "Run PostgreSQL",
        "Restart the server if a setting needs it",
    ]
    assert server.plan("tasks/postgres.py", **hard) == announced
    assert changed(server.deploy("tasks/postgres.py", **hard)) == announced
    assert server.psql("show max_wal_senders") == "7"
    assert server.run(started) != before
    # As after a run that died before the restart: the server knows that a restart is due.
    server.deploy("tasks/postgres.py")
    server.psql("alter system set max_wal_senders = 8;\nselect pg_reload_conf();")
    server.psql("alter system reset max_wal_senders;")
    eventually(lambda: server.psql("select pending_restart from pg_settings where name ="
                                   " 'max_wal_senders'") == "t", 10)  # fmt: skip
    assert changed(server.deploy("tasks/postgres.py")) == [
        "Restart the server if a setting needs it"
    ]
    assert changed(server.deploy("tasks/postgres.py")) == []
    eventually(lambda: get(outsider, server)[0][0] == 200, 30)


@smoke
def test_a_new_password_reaches_the_replicas(server: Target, outsider: Container) -> None:
    old = server.run("cat /etc/terrafirma/secrets/postgres/api")
    server.run("rm /etc/terrafirma/secrets/postgres/api")
    assert changed(server.deploy("tasks/postgres.py")) == ["Give the roles their passwords"]
    assert changed(server.deploy("tasks/app.py")) == [
        "Give api the address of its database",
        "Release api, 4 replicas",
    ]
    assert changed(server.deploy("tasks/app.py")) == []
    assert "password authentication failed" in login(server, "apps", password=old)["error"]
    # Connections that were open before would prove nothing: make all of them new.
    server.run("systemctl restart postgresql@17-main")
    eventually(lambda: get(outsider, server)[0][0] == 200, 30)


@pytest.mark.long
def test_new_replicas_take_over_where_one_is_unhealthy(server: Target, outsider: Container) -> None:
    """All replicas are replaced, in the other slot, as by a release."""
    replicas = "docker ps --quiet --no-trunc --filter label=terrafirma.release"
    before = server.run(replicas).splitlines()
    name = before[0]
    pid = server.run(f"docker inspect --format '{{{{.State.Pid}}}}' {name}")
    # It still runs, but answers nobody.
    server.run(f"kill -STOP {pid} $(pgrep --parent {pid})")
    health = f"docker inspect --format '{{{{.State.Health.Status}}}}' {name}"
    eventually(lambda: server.run(health) == "unhealthy", 90)
    assert changed(server.deploy("tasks/app.py")) == ["Release api, 4 replicas"]
    after = server.run(replicas).splitlines()
    assert len(after) == 4
    assert not set(after) & set(before)
    assert "repair" in server.run("terrafirma releases api | sed -n 2p")
    assert changed(server.deploy("tasks/app.py")) == []

    def all_answer() -> bool:
        answers = get(outsider, server, 20)
        assert {status for status, _ in answers} == {200}
        return len({body["replica"] for _, body in answers}) == 4

    eventually(all_answer, 30)


@pytest.mark.promise("A release of an application that does not answer fails")
@smoke
def test_an_application_that_does_not_answer_is_no_success(server: Target, tmp_path: Path) -> None:
    """Its container runs without a health check of its own, but does not answer."""
    (tmp_path / "Dockerfile").write_text('FROM debian:trixie\nCMD ["sleep", "infinity"]\n')
    lazy = {
        "source": str(tmp_path), "domain": "lazy.test", "database": "api",
        "replicas": 1, "port": 8128, "start_seconds": 5,
    }  # fmt: skip
    data = options(beside_api(lazy=lazy))
    result = server.pyinfra.imported.call("-y", *data, *server.arguments(), "tasks/app.py")
    assert result.returncode != 0
    assert "lazy-blue-lazy-1 is not healthy within 5 s (no success from /healthz" in result.stderr
    # The next run fails, too.
    assert (
        server.pyinfra.imported.call("-y", *data, *server.arguments(), "tasks/app.py").returncode
        != 0
    )
    (tmp_path / "Dockerfile").write_text("FROM debian:trixie\nRUN echo why >&2; false\n")
    result = server.pyinfra.imported.call("-y", *data, *server.arguments(), "tasks/app.py")
    assert result.returncode != 0
    assert "why" in result.stderr
    # The failed release is removed, with its image.
    assert "lazy" not in server.run("docker ps --all && docker image ls")
    server.run("rm -r /opt/terrafirma/lazy /etc/terrafirma/apps/lazy.json")
    assert changed(server.deploy("tasks/app.py")) == []


@smoke
def test_a_new_daemon_configuration_stops_no_container(server: Target, outsider: Container) -> None:
    started = "docker inspect --format '{{.State.StartedAt}}' $(docker ps -q | sort)"
    before = server.run(started)
    answer = server.deploy("tasks/docker.py", docker_log_max_files=6)
    assert changed(answer) == ["Configure the engine", "Run the engine"]
    assert server.run(started) == before
    server.deploy("tasks/docker.py")
    assert server.run(started) == before
    assert {status for status, _ in get(outsider, server, 8)} == {200}

"""One run makes the whole platform of a bare server, and the next ones change nothing."""

from __future__ import annotations

import json
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.e2e.conftest import DIGESTS, REPOSITORY, Platform, login, networks
from tests.e2e.support import (
    DOMAIN,
    changed,
    eventually,
    get,
    open_ports,
    options,
    output,
)

pytestmark = [pytest.mark.e2e, pytest.mark.promise]

TASKS = [f"tasks/{task}.py" for task in (
    *("preflight", "apt", "users", "sshd", "docker", "postgres", "pgbouncer"),
    *("caddy", "app", "borg"),
)]  # fmt: skip


def test_a_dry_run_of_a_bare_host_plans_everything(platform: Platform) -> None:
    planned = {name.split(" | ")[0] for name in platform.plan}
    # Nobody asked for the pooler.
    assert planned == set(TASKS) - {"tasks/preflight.py", "tasks/pgbouncer.py"}
    assert platform.untouched


def test_a_new_backup_is_listed_at_the_end_of_the_run(platform: Platform) -> None:
    assert "Archive in the repository: tf-test-server-" in platform.first_output
    assert changed(platform.first)[-1] == "tasks/borg.py | Make a backup, and list it"


def test_https_from_outside_reaches_every_replica(platform: Platform) -> None:
    answers = get(platform.outsider, platform.server, 40)
    assert {status for status, _ in answers} == {200}
    assert len({body["replica"] for _, body in answers}) == 4


def test_a_row_of_one_replica_is_read_by_another(platform: Platform) -> None:
    ((_, written),) = get(platform.outsider, platform.server)
    answers = get(platform.outsider, platform.server, 20, f"/visits/{written['row']}")
    assert {body["written_by"] for _, body in answers} == {written["replica"]}
    assert {body["replica"] for _, body in answers} > {written["replica"]}


def test_an_untrusted_certificate_is_noticed_by_the_client(platform: Platform) -> None:
    program = (
        "import socket, ssl, sys; ssl.create_default_context().wrap_socket("
        "socket.create_connection((sys.argv[1], 443)), server_hostname=sys.argv[2])"
    )
    result = platform.outsider.call(f"python3 - {platform.server.address} {DOMAIN}", stdin=program)
    assert "CERTIFICATE_VERIFY_FAILED" in result.stderr


def test_only_ssh_and_the_web_are_open(platform: Platform) -> None:
    ports = (22, 80, 443, 2019, 2375, 5432, *range(8000, 8004), *range(8064, 8068))
    assert open_ports(platform.outsider, platform.server, *ports) == [22, 80, 443]


@pytest.fixture
def fresh_network(platform: Platform) -> Any:
    """The network of a compose project that came after the run."""
    compose = "services: {one: {image: 'debian:trixie', command: sleep infinity}}"
    project = "docker compose --project-name fresh --file -"
    platform.server.run(f"{project} up --detach", stdin=compose)
    yield "fresh_default"
    platform.server.run(f"{project} down --timeout 1", stdin=compose)


def test_containers_of_any_network_log_in_to_their_database(
    platform: Platform, fresh_network: str
) -> None:
    subnets = networks(platform.server)
    answers = platform.logins | {fresh_network: login(platform.server, fresh_network)}
    for network, answer in answers.items():
        assert answer.get("user") == "api", answer
        assert ip_address(answer["address"]) in ip_network(subnets[network])


def test_the_subnets_are_what_docker_says(platform: Platform) -> None:
    subnets = networks(platform.server)
    assert not ip_network("172.17.0.0/16").overlaps(ip_network(subnets["bridge"]))
    rules = platform.server.psql(
        "select address, netmask from pg_hba_file_rules where auth_method = 'scram-sha-256'"
    )
    allowed = {
        str(ip_network(rule.replace("|", "/"))) for rule in rules.splitlines() if "." in rule
    }
    assert {subnets["bridge"], subnets["apps"]} <= allowed
    # Nothing but loopback and what Docker hands out: its networks, and the pool they come from.
    pool = IPv4Network(
        json.loads(platform.server.run("cat /etc/docker/daemon.json"))["default-address-pools"][0][
            "base"
        ]
    )
    for address in allowed - {"127.0.0.1/32"}:
        assert IPv4Network(address).subnet_of(pool) or address in subnets.values()
    listening = platform.server.psql("show listen_addresses").split(",")
    assert listening == ["localhost", str(next(ip_network(subnets["bridge"]).hosts()))]


@pytest.mark.parametrize(
    ("how", "answer"),
    [
        ({"password": "wrong"}, 'password authentication failed for user "api"'),
        ({"user": "postgres"}, "pg_hba.conf rejects connection"),
        ({"user": "other"}, "pg_hba.conf rejects connection"),
        ({"database": "postgres"}, "pg_hba.conf rejects connection"),
        ({"database": "other"}, "pg_hba.conf rejects connection"),
    ],
)
def test_containers_reach_nothing_else(
    platform: Platform, fresh_network: str, how: dict[str, str], answer: str
) -> None:
    platform.server.psql(
        "select 'create role other login' where not exists"
        " (select from pg_roles where rolname = 'other') \\gexec\n"
        "select 'create database other owner other' where not exists"
        " (select from pg_database where datname = 'other') \\gexec"
    )
    for network in ("bridge", "apps", fresh_network):
        assert answer in login(platform.server, network, **how)["error"]


def test_another_application_has_a_database_of_its_own(platform: Platform) -> None:
    """The role of one application is refused by the database of another, by right and by rule."""
    closed = platform.server.psql(
        "select has_database_privilege('other', 'api', 'connect'),"
        " has_database_privilege('other', 'postgres', 'connect')"
    )
    assert closed == "f|f"


def test_secrets_are_readable_by_root_alone(platform: Platform) -> None:
    server = platform.server
    assert server.run("stat -c %a /etc/terrafirma/secrets") == "700"
    found = server.run("find /etc/terrafirma/secrets -type f ! -name '*.pub' -perm /077")
    assert found == ""
    password = server.run("cat /etc/terrafirma/secrets/postgres/api")
    assert len(password) >= 32
    containers = server.run(
        "docker inspect $(docker ps -q) && docker image inspect $(docker image ls -q)"
    )
    assert password not in containers
    assert password not in platform.first_output + json.dumps(platform.first)
    open_files = server.run(f"grep -rlF -- '{password}' /etc /opt /var/log /tmp /home || true")
    slot = json.loads(server.run("cat /opt/terrafirma/api/serving.json"))["slot"]
    assert sorted(open_files.splitlines()) == [
        "/etc/terrafirma/secrets/app/api/database_url",
        "/etc/terrafirma/secrets/postgres/api",
        f"/etc/terrafirma/secrets/slots/api/{slot}/database_url",
    ]


def test_containers_are_unprivileged(platform: Platform) -> None:
    server = platform.server
    name = server.run("docker ps --quiet --filter label=terrafirma.release | head -n 1")
    assert server.run(f"docker exec {name} id -u") == server.run("id -u prod")
    assert server.call(f"docker exec {name} touch /app/x").returncode != 0
    status = server.run(f"docker exec {name} cat /proc/self/status")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status


def test_a_second_run_changes_nothing(platform: Platform) -> None:
    assert changed(platform.second) == []
    assert platform.second["results"]["totals"]["success"] == 0


def test_a_dry_run_of_the_converged_host_plans_nothing(platform: Platform) -> None:
    assert platform.server.plan(**platform.data) == []


@pytest.mark.parametrize("task", TASKS)
def test_a_task_alone_changes_nothing(platform: Platform, task: str) -> None:
    assert changed(platform.server.deploy(task, **platform.data)) == []


def test_the_docker_connector_does_as_well(platform: Platform) -> None:
    answer = platform.server.pyinfra.run(
        "-y", f"@docker/{platform.server.name}", "tasks/postgres.py"
    )
    assert changed(answer) == []


def test_backups_that_were_set_up_once_are_not_taken_away(platform: Platform) -> None:
    result = platform.server.pyinfra.call("-y", *platform.server.arguments(), "tasks/borg.py")
    assert result.returncode == 0
    assert "borg_repository is empty, but backups go on" in result.stderr
    platform.server.run("systemctl is-active borgmatic.timer")


def test_a_lost_reload_is_made_up_for(platform: Platform) -> None:
    platform.server.run("sleep 1.1; touch /etc/caddy/Caddyfile")
    assert platform.server.plan("tasks/caddy.py") == ["Run Caddy"]
    assert changed(platform.server.deploy("tasks/caddy.py")) == ["Run Caddy"]
    assert changed(platform.server.deploy("tasks/caddy.py")) == []


@pytest.mark.parametrize(
    ("task", "path", "break_it", "mend_it", "data"),
    [
        (
            "sshd",
            "/etc/ssh/sshd_config.d/00-terrafirma.conf",
            "echo 'No such option' >> /etc/ssh/sshd_config",
            "sed -i '$ d' /etc/ssh/sshd_config",
            {"sshd_allow_users": ["somebody"]},
        ),
        (
            "sshd",
            "/etc/ssh/sshd_config.d/00-terrafirma.conf",
            "sed -i 's/^Include/#Include/' /etc/ssh/sshd_config",
            "sed -i 's/^#Include/Include/' /etc/ssh/sshd_config",
            {"sshd_allow_users": ["somebody"]},
        ),
        (
            "users",
            "/etc/sudoers.d/90-terrafirma-ingres",
            "true",
            "true",
            {"users_accounts": [{"name": "ingres", "sudo": ["/bin/ls, ="]}]},
        ),
        (
            "caddy",
            "/etc/caddy/Caddyfile",
            "true",
            "true",
            {"caddy_log_size_mb": 10**14},
        ),
        ("docker", "/etc/docker/daemon.json", "true", "true", {"docker_daemon": {"no-such": 1}}),
        (
            "postgres",
            "/etc/postgresql/17/main/conf.d/terrafirma.conf",
            "true",
            "true",
            {"postgres_settings": {"work_mem": "lots"}},
        ),
        (
            "postgres",
            "/etc/postgresql/17/main/conf.d/terrafirma.conf",
            "true",
            "true",
            {"postgres_settings": {"shared_bufers": "1GB"}},
        ),
    ],
)
def test_a_broken_file_never_replaces_a_good_one(
    platform: Platform, task: str, path: str, break_it: str, mend_it: str, data: dict[str, Any]
) -> None:
    server, file = platform.server, f"tasks/{task}.py"
    before = server.run(f"sha256sum {path}")
    server.run(break_it)
    try:
        result = server.pyinfra.call("-y", *options(data), *server.arguments(), file)
    finally:
        server.run(mend_it)
    assert result.returncode != 0, result.stderr
    assert "Traceback" not in result.stderr
    assert server.run(f"sha256sum {path}") == before
    assert server.run(f"ls -A {Path(path).parent} | grep -c terrafirma-new || true") == "0"
    # What came before the file in its task is undone, too.
    server.deploy(file)
    assert {status for status, _ in get(platform.outsider, server, 4)} == {200}


def test_only_a_setting_that_needs_it_restarts_the_server(platform: Platform) -> None:
    server = platform.server
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
        "Restart it if a setting asks for that",
    ]
    assert server.plan("tasks/postgres.py", **hard) == announced
    assert changed(server.deploy("tasks/postgres.py", **hard)) == announced
    assert server.psql("show max_wal_senders") == "7"
    assert server.run(started) != before
    # A run that died before the restart: the server knows that one is due.
    server.deploy("tasks/postgres.py")
    server.psql("alter system set max_wal_senders = 8;\nselect pg_reload_conf();")
    server.psql("alter system reset max_wal_senders;")
    eventually(lambda: server.psql("select pending_restart from pg_settings where name ="
                                   " 'max_wal_senders'") == "t", 10)  # fmt: skip
    assert changed(server.deploy("tasks/postgres.py")) == ["Restart it if a setting asks for that"]
    assert changed(server.deploy("tasks/postgres.py")) == []
    eventually(lambda: get(platform.outsider, server)[0][0] == 200, 30)


def test_the_server_is_tuned_to_its_hardware(platform: Platform) -> None:
    kilobytes = int(platform.server.run("awk '/^MemTotal/ { print $2 }' /proc/meminfo"))
    shared = platform.server.psql("select pg_size_bytes(current_setting('shared_buffers')) / 1024")
    assert 0.9 < int(shared) / (kilobytes * 0.75 / 4) <= 1


def test_a_new_password_reaches_the_replicas(platform: Platform) -> None:
    server = platform.server
    old = server.run("cat /etc/terrafirma/secrets/postgres/api")
    server.run("rm /etc/terrafirma/secrets/postgres/api")
    assert changed(server.deploy("tasks/postgres.py")) == ["Give the roles their passwords"]
    assert changed(server.deploy("tasks/app.py")) == [
        "Give api the address of its database",
        "Release api, 4 replicas",
    ]
    assert changed(server.deploy("tasks/app.py")) == []
    assert "password authentication failed" in login(server, "apps", password=old)["error"]
    # Connections that were open before prove nothing: these are all new.
    server.run("systemctl restart postgresql@17-main")
    eventually(lambda: get(platform.outsider, server)[0][0] == 200, 30)


def test_new_replicas_take_over_where_one_is_unhealthy(platform: Platform) -> None:
    """All of them, beside those that serve: it is a change of slots, like a release."""
    server = platform.server
    replicas = "docker ps --quiet --no-trunc --filter label=terrafirma.release"
    before = server.run(replicas).splitlines()
    name = before[0]
    pid = server.run(f"docker inspect --format '{{{{.State.Pid}}}}' {name}")
    # It still runs, and answers nobody.
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
        answers = get(platform.outsider, server, 20)
        assert {status for status, _ in answers} == {200}
        return len({body["replica"] for _, body in answers}) == 4

    eventually(all_answer, 30)


def test_an_application_that_does_not_answer_is_no_success(
    platform: Platform, tmp_path: Path
) -> None:
    """Its image has no health check of its own, and it runs; but it does not work."""
    server = platform.server
    (tmp_path / "Dockerfile").write_text('FROM debian:trixie\nCMD ["sleep", "infinity"]\n')
    lazy = {
        "name": "lazy", "source": str(tmp_path), "domain": "lazy.test", "database": "api",
        "replicas": 1, "port": 8128, "start_seconds": 5,
    }  # fmt: skip
    data = options({"app_more": [lazy]})
    result = server.pyinfra.call("-y", *data, *server.arguments(), "tasks/app.py")
    assert result.returncode != 0
    assert "lazy-blue-lazy-1 is not healthy within 5 s (no success from /healthz" in result.stderr
    # Nor is it one the next time.
    assert server.pyinfra.call("-y", *data, *server.arguments(), "tasks/app.py").returncode != 0
    (tmp_path / "Dockerfile").write_text("FROM debian:trixie\nRUN echo why >&2; false\n")
    result = server.pyinfra.call("-y", *data, *server.arguments(), "tasks/app.py")
    assert result.returncode != 0
    assert "why" in result.stderr
    # What did not become a release is gone, with its image.
    assert "lazy" not in server.run("docker ps --all && docker image ls")
    server.run("rm -r /opt/terrafirma/lazy /etc/terrafirma/apps/lazy.json")
    assert changed(server.deploy("tasks/app.py")) == []


def test_a_new_daemon_configuration_stops_no_container(platform: Platform) -> None:
    server = platform.server
    started = "docker inspect --format '{{.State.StartedAt}}' $(docker ps -q | sort)"
    before = server.run(started)
    answer = server.deploy("tasks/docker.py", docker_log_max_files=6)
    assert changed(answer) == ["Configure the engine", "Run the engine"]
    assert server.run(started) == before
    server.deploy("tasks/docker.py")
    assert server.run(started) == before
    assert {status for status, _ in get(platform.outsider, server, 8)} == {200}


def test_no_secret_is_shown_by_the_most_talkative_run(platform: Platform) -> None:
    server = platform.server
    # Everything that handles a secret has something to do again.
    server.run(
        "rm /etc/terrafirma/secrets/app/api/database_url /var/lib/terrafirma/backup/proved-by"
    )
    server.psql("alter role api password null")
    result = server.pyinfra.call(
        "-y", "-vvv", "--diff", *options(platform.data), *server.arguments(), "deploy.py"
    )
    assert result.returncode == 0, result.stderr
    for path in ("postgres/api", "borg/passphrase", "app/api/database_url"):
        secret = server.run(f"cat /etc/terrafirma/secrets/{path}")
        assert len(secret) >= 32
        assert secret not in result.stdout + result.stderr
    key = server.run("sed -n 2p /etc/terrafirma/secrets/borg/id_ed25519")
    assert key not in result.stdout + result.stderr
    assert {status for status, _ in get(platform.outsider, server, 8)} == {200}


def test_the_archive_restores(platform: Platform, tmp_path: Path) -> None:
    """With the borg client of the backup host, from its own disk: nothing of the server helps."""
    server, storage = platform.server, platform.storage
    passphrase = server.run("cat /etc/terrafirma/secrets/borg/passphrase")
    borg = (
        "cd /root/restored && BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes "
        "BORG_RELOCATED_REPO_ACCESS_IS_OK=yes BORG_PASSPHRASE=$(cat) borg"
    )
    storage.run("rm -rf /root/restored && mkdir /root/restored")
    archive = storage.run(f"{borg} list --short --first 1 {REPOSITORY}", stdin=passphrase)
    assert archive.startswith("tf-test-server-")
    storage.run(f"{borg} extract {REPOSITORY}::{archive}", stdin=passphrase)

    restored = storage.run(f"cd /root/restored && {DIGESTS}")
    assert restored == platform.etc
    assert len(restored.splitlines()) > 400
    assert storage.call(
        "ls /root/restored/var/lib/postgresql /root/restored/var/lib/docker"
    ).returncode
    assert (
        "roles"
        in storage.run("head -n 20 /root/restored/var/lib/terrafirma/backup/globals.sql").lower()
    )


def test_the_nightly_unit_makes_an_archive_whose_rows_are_the_same(platform: Platform) -> None:
    server, storage = platform.server, platform.storage
    get(platform.outsider, server, 5)
    server.run("systemctl start borgmatic.service")
    passphrase = server.run("cat /etc/terrafirma/secrets/borg/passphrase")
    borg = (
        "export BORG_RELOCATED_REPO_ACCESS_IS_OK=yes BORG_PASSPHRASE=$(cat); "
        "rm -rf /root/nightly && mkdir /root/nightly && cd /root/nightly && "
        f"borg extract {REPOSITORY}::$(borg list --short --last 1 {REPOSITORY})"
    )
    storage.run(borg, stdin=passphrase)
    dump = storage.run("find /root/nightly -path '*postgresql_databases*' -name api")
    copy = f"docker exec {storage.name} cat {dump} | docker exec -i {server.name} "
    output("sh", "-c", f"{copy} sh -c 'cat > /root/api.dump'")
    server.psql("drop database if exists scratch;\ncreate database scratch;")
    server.run("runuser -u postgres -- pg_restore --exit-on-error -d scratch < /root/api.dump")
    last = int(server.psql("select max(id) from visits", "scratch"))
    assert last > 0
    same = f"select id, replica, at from visits where id <= {last} order by id"
    assert server.psql(same, "scratch") == server.psql(same, "api")
    server.psql("drop database scratch;")


def test_the_repository_is_encrypted(platform: Platform) -> None:
    wrong = platform.storage.call(f"BORG_PASSPHRASE=wrong borg list {REPOSITORY}")
    assert wrong.returncode == 2
    assert "passphrase" in wrong.stderr


def test_retention_and_time_table_are_the_declared_ones(platform: Platform) -> None:
    config = platform.server.run("cat /etc/borgmatic/config.yaml")
    for line in ("keep_daily: 7", "keep_weekly: 4", "keep_monthly: 6"):
        assert line in config
    timers = platform.server.run("systemctl list-timers --all borgmatic.timer")
    assert "02:00:00" in timers


def test_every_task_is_in_the_deploy() -> None:
    text = (ROOT / "deploy.py").read_text()
    for task in TASKS:
        assert f'"{Path(task).stem}"' in text

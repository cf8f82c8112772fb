"""Platform: one run sets up a bare server, and further runs change nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Pyinfra
from tests.e2e.clones import STORAGE, admit, clone
from tests.e2e.databases import login
from tests.e2e.support import (
    DOMAIN,
    STATE,
    TASKS,
    Container,
    Target,
    changed,
    get,
    networks,
    open_ports,
    options,
    output,
    target,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.smoke,
    pytest.mark.budget(minutes=5, why="a run on a bare server, then each task alone"),
]


REPOSITORY = "/home/box/server.borg"


@dataclass(frozen=True)
class Platform:
    """A server after its first runs, and the output of these runs."""

    server: Target
    storage: Target
    outsider: Container
    data: dict[str, Any]
    plan: list[str]
    untouched: bool
    first: dict[str, Any]
    first_output: str
    etc: str
    logins: dict[str, dict[str, str]]
    second: dict[str, Any]
    second_output: str


# The digests of all files in /etc.
DIGESTS = "find etc -type f -print0 | sort -z | xargs -0 sha256sum"


@pytest.fixture(scope="module")
def platform(pyinfra: Pyinfra, outsider: Container) -> Iterator[Platform]:
    with (
        target(pyinfra, "tf-test-server", 2411) as server,
        clone(pyinfra, "tf-test-storage", 2412, STORAGE) as storage,
    ):
        before = server.digest()
        plan = server.plan(
            borg_repository="ssh://box@storage/./server.borg",
            borg_known_hosts=[f"storage {(STATE / 'id_ed25519.pub').read_text().strip()}"],
        )
        untouched = server.digest() == before
        # The first run needs the server's key on the backup host already.
        data = admit(storage, server, REPOSITORY)
        result = pyinfra.call("-y", *options(data), *server.arguments(), "deploy.py")
        assert result.returncode == 0, result.stderr
        etc = server.run(f"cd / && {DIGESTS}")
        # Now, before a second run could repair mistakes of the first.
        logins = {network: login(server, network) for network in ("bridge", "apps")}
        again = pyinfra.imported.call("-y", "-vv", *options(data), *server.arguments(), "deploy.py")
        assert again.returncode == 0, again.stderr
        yield Platform(
            server=server,
            storage=storage,
            outsider=outsider,
            data=data,
            plan=plan,
            untouched=untouched,
            first=json.loads(result.stdout),
            first_output=result.stderr,
            etc=etc,
            logins=logins,
            second=json.loads(again.stdout),
            second_output=again.stderr,
        )


@pytest.mark.promise("A dry run of a bare server plans everything and changes nothing")
def test_a_dry_run_of_a_bare_host_plans_everything(platform: Platform) -> None:
    planned = {name.split(" | ")[0] for name in platform.plan}
    # The pooler is off by default, and the proof from outside changes nothing.
    assert planned == set(TASKS) - {
        *("tasks/preflight.py", "tasks/pgbouncer.py", "tasks/exposure.py"),
    }
    assert platform.untouched


def test_a_new_backup_is_listed_at_the_end_of_the_run(platform: Platform) -> None:
    assert "Archive in the repository: tf-test-server-" in platform.first_output
    assert changed(platform.first)[-1] == "tasks/borg.py | Make and verify a first backup"


@pytest.mark.promise("HTTPS from another machine reaches every replica")
def test_https_from_outside_reaches_every_replica(platform: Platform) -> None:
    answers = get(platform.outsider, platform.server, 40)
    assert {status for status, _ in answers} == {200}
    assert len({body["replica"] for _, body in answers}) == 4


@pytest.mark.promise("A row that one replica writes is read through the others")
def test_a_row_of_one_replica_is_read_by_another(platform: Platform) -> None:
    ((_, written),) = get(platform.outsider, platform.server)
    answers = get(platform.outsider, platform.server, 20, f"/visits/{written['row']}")
    assert {body["written_by"] for _, body in answers} == {written["replica"]}
    assert {body["replica"] for _, body in answers} > {written["replica"]}


def test_clients_notice_an_untrusted_certificate(platform: Platform) -> None:
    program = (
        "import socket, ssl, sys; ssl.create_default_context().wrap_socket("
        "socket.create_connection((sys.argv[1], 443)), server_hostname=sys.argv[2])"
    )
    result = platform.outsider.call(f"python3 - {platform.server.address} {DOMAIN}", stdin=program)
    assert "CERTIFICATE_VERIFY_FAILED" in result.stderr


@pytest.mark.promise("Only ports 22, 80 and 443 are open to the internet")
def test_only_ssh_and_the_web_are_open(platform: Platform) -> None:
    ports = (22, 80, 443, 2019, 2375, 5432, *range(8000, 8004), *range(8064, 8068))
    assert open_ports(platform.outsider, platform.server, *ports) == [22, 80, 443]


@pytest.fixture
def fresh_network(platform: Platform) -> Any:
    """The network of a compose project that was started after the run."""
    compose = "services: {one: {image: 'debian:trixie', command: sleep infinity}}"
    project = "docker compose --project-name fresh --file -"
    platform.server.run(f"{project} up --detach", stdin=compose)
    yield "fresh_default"
    platform.server.run(f"{project} down --timeout 1", stdin=compose)


@pytest.mark.promise("After the first run, containers of any Docker network reach their database")
def test_containers_of_any_network_log_in_to_their_database(
    platform: Platform, fresh_network: str
) -> None:
    subnets = networks(platform.server)
    answers = platform.logins | {fresh_network: login(platform.server, fresh_network)}
    for network, answer in answers.items():
        assert answer.get("user") == "api", answer
        assert ip_address(answer["address"]) in ip_network(subnets[network])


@pytest.mark.promise("PostgreSQL's access rules use the subnets that Docker reports, no fixed ones")
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
    # Only loopback, Docker's networks, and the pool that they come from.
    pool = IPv4Network(
        json.loads(platform.server.run("cat /etc/docker/daemon.json"))["default-address-pools"][0][
            "base"
        ]
    )
    for address in allowed - {"127.0.0.1/32"}:
        assert IPv4Network(address).subnet_of(pool) or address in subnets.values()
    listening = platform.server.psql("show listen_addresses").split(",")
    assert listening == ["localhost", str(next(ip_network(subnets["bridge"]).hosts()))]


@pytest.mark.promise("Containers reach only their own database, with its role and its password")
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
    """Both rights and access rules refuse the role of one application in another's database."""
    closed = platform.server.psql(
        "select has_database_privilege('other', 'api', 'connect'),"
        " has_database_privilege('other', 'postgres', 'connect')"
    )
    assert closed == "f|f"


@pytest.mark.promise("Only root can read secrets, and no output or `docker inspect` shows one")
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


@pytest.mark.promise("A second run changes nothing")
def test_a_second_run_changes_nothing(platform: Platform) -> None:
    assert changed(platform.second) == []
    assert platform.second["results"]["totals"]["success"] == 0


@pytest.mark.promise("A run that changes nothing sends at most 45 commands to the server")
def test_a_converged_run_asks_few_questions(platform: Platform) -> None:
    assert 10 < platform.second_output.count(">>> ") <= 45


@pytest.mark.promise(
    "Its questions travel together: at most 10 round trips, once a run has noted them"
)
def test_the_questions_of_a_converged_run_travel_together(platform: Platform) -> None:
    words = ["-y", "--debug", *options(platform.data), *platform.server.arguments(), "deploy.py"]
    calls = [platform.server.pyinfra.call(*words) for _ in range(2)]
    for call in calls:
        assert call.returncode == 0, call.stderr[-3000:]
    assert 2 < calls[1].stderr.count("Running command on ") <= 10


def test_a_dry_run_of_the_converged_host_plans_nothing(platform: Platform) -> None:
    assert platform.server.plan(**platform.data) == []


def test_backups_stay_without_their_settings(platform: Platform) -> None:
    result = platform.server.pyinfra.call("-y", *platform.server.arguments(), "tasks/borg.py")
    assert result.returncode == 0
    assert "borg_repository is empty, but backups go on" in result.stderr
    platform.server.run("systemctl is-active borgmatic.timer")


@pytest.mark.promise("PostgreSQL is tuned to the hardware of its server")
def test_the_server_is_tuned_to_its_hardware(platform: Platform) -> None:
    kilobytes = int(platform.server.run("awk '/^MemTotal/ { print $2 }' /proc/meminfo"))
    shared = platform.server.psql("select pg_size_bytes(current_setting('shared_buffers')) / 1024")
    assert 0.9 < int(shared) / (kilobytes * 0.75 / 4) <= 1


def test_the_most_verbose_run_shows_no_secret(platform: Platform) -> None:
    server = platform.server
    # Make every operation that handles a secret run again.
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


@pytest.mark.promise(
    "A backup restores on another host without the server: /etc byte for byte, the database "
    "row for row"
)
def test_the_archive_restores(platform: Platform, tmp_path: Path) -> None:
    """With borg on the backup host, from its own disk, without the server."""
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


@pytest.mark.promise(like=test_the_archive_restores)
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
        assert f'local.include("{task}")' in text

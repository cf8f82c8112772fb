"""Leaks: no run shows a secret, from the first run to a major upgrade."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.databases import BOOKWORM
from tests.e2e.support import Target, api, beside_api, options, target

pytestmark = pytest.mark.e2e

GIVEN, GIVEN_LATER = "ann-has-chosen-this-one", "ann-has-chosen-that-one"
CANARY = "canary-on-a-command-line"
SHOP = {
    "source": "examples/api", "domain": "shop.terrafirma.test", "database": "shop", "port": 8128,
    "replicas": 1, "user": "prod",
}  # fmt: skip
DATA: dict[str, Any] = {
    **beside_api(shop=SHOP),
    **api(replicas=2, pgbouncer=True),
    "pgbouncer_enabled": True,
    "postgres_roles": [
        {"name": "api"},
        {"name": "shop"},
        {"name": "ann", "password": "env:TF_TEST_ANN"},
    ],
    "postgres_databases": [
        {"name": "api", "owner": "api", "access": {"ann": "read"}},
        {"name": "shop", "owner": "shop"},
    ],
    # The server logs every statement.
    "postgres_settings": {"log_statement": "all", "log_connections": True},
    "postgres_max_connections": 200,
}

# Everything in a process list or below the directory of the secrets, at any time: the password of a
# second login is there for a few seconds only. A tenth of a core is what this may take: a process
# that is new, and may still become another program, is read often, an old one now and then.
WATCH = """
import os, time
from pathlib import Path

processes, secrets, known, seen = set(), set(), {}, {}
rounds = 0
while not os.path.exists("/root/stop"):
    began, now = time.process_time(), time.monotonic()
    seen = {pid: seen.get(pid, now) for pid in filter(str.isdigit, os.listdir("/proc"))}
    known = {pid: known[pid] for pid in seen if pid in known}
    for pid, since in seen.items():
        if now - since > 0.3 and rounds % 50:
            continue
        try:
            words = Path("/proc", pid, "cmdline").read_bytes()
            if known.get(pid) != words:
                environment = Path("/proc", pid, "environ").read_bytes()
                processes |= {one.replace(b"\\0", b"\\n") for one in (words, environment)}
                known[pid] = words
        except OSError:
            pass
    if not rounds % 10:
        for path in Path("/etc/terrafirma/secrets").rglob("*"):
            try:
                if path.suffix != ".pub":
                    secrets.add(path.read_bytes())
            except OSError:
                pass
    rounds += 1
    time.sleep(9 * (time.process_time() - began))
Path("/root/processes").write_bytes(b"\\n".join(processes))
Path("/root/secrets").write_bytes(b"\\n".join(secrets))
"""


LOGS = (
    "{ find /var/log -type f ! -path '*/journal/*' -exec cat {} +;"
    " journalctl --no-pager -o cat;"
    " docker ps -aq | while read -r one; do docker logs $one 2>&1; docker inspect $one; done;"
    " docker image ls -q | xargs docker image inspect; docker history terrafirma/api:"
    "$(docker image ls --format '{{.Tag}}' terrafirma/api | head -n 1); }"
    # Not all logs are text.
    " | LC_ALL=C tr -cd '\\11\\12\\40-\\176'"
)


@dataclass
class Watched:
    """The outputs, process lists, logs and secrets of all runs."""

    server: Target
    versions: tuple[str, ...]
    said: dict[str, str] = field(default_factory=dict)
    logs: str = ""
    processes: str = ""
    secrets: set[str] = field(default_factory=set)

    def run(self, what: str, *files: str, dry: bool = False, **data: Any) -> None:
        how = ("--dry" if dry else "-y", "-vvv", "--diff")
        result = self.server.pyinfra.call(
            *how, *options(DATA | data), *self.server.arguments(), *files
        )
        assert result.returncode == 0, result.stderr
        self.said[what] = result.stdout + result.stderr

    def keep_logs(self) -> None:
        """Keep the logs so far: those of an old cluster are removed with it."""
        self.logs += self.server.run(LOGS)


def values(text: str) -> Iterator[str]:
    """The parts of secret files that must not be seen."""
    for line in text.splitlines():
        url = re.match(r"postgresql://[^:]+:([^@]+)@", line)
        if url:
            yield url[1]
        # These prefixes are the same in every private key.
        elif line and not line.startswith(("-----", "b3BlbnNzaC1rZXktdjE")):
            yield line


# The first run, repairs and rotations; or an older PostgreSQL, which is upgraded afterwards, too.
@pytest.fixture(scope="module", params=["new", pytest.param("old", marks=pytest.mark.long)])
def watched(pyinfra: Pyinfra, request: pytest.FixtureRequest) -> Iterator[Watched]:
    with (
        pytest.MonkeyPatch.context() as patch,
        target(pyinfra, "tf-test-leaks", 2431) as server,
    ):
        patch.setenv("TF_TEST_ANN", GIVEN)
        version: dict[str, Any] = {}
        if request.param == "old":
            server.run(BOOKWORM)
            version = {"postgres_version": 15}
        watch = subprocess.Popen(
            ["docker", "exec", "-i", server.name, "python3", "-"], stdin=subprocess.PIPE, text=True
        )
        assert watch.stdin
        watch.stdin.write(WATCH)
        watch.stdin.close()
        watched = Watched(server, ("15", "17") if version else ("17",))
        watched.run("a dry run of a bare host", "deploy.py", dry=True, **version)
        watched.run("the first run", "deploy.py", **version)
        watched.run("the second run", "deploy.py", **version)
        # Break each password in another way.
        server.psql("alter role api password null; alter role shop password 'x'")
        server.run(
            "rm /etc/terrafirma/secrets/postgres/shop /etc/terrafirma/secrets/app/api/database_url"
            " /etc/pgbouncer/userlist.txt"
        )
        patch.setenv("TF_TEST_ANN", GIVEN_LATER)
        watched.run("a dry run of what is to be repaired", "deploy.py", dry=True, **version)
        watched.run("a repair", "deploy.py", **version)
        server.run(f"sh -c 'sleep 1; true' {CANARY}")
        for role in ("api", "shop"):
            watched.run(f"a rotation of {role}", "commands/postgres_rotate.py", **version,
                        rotate=role)  # fmt: skip
        watched.run("the key for backups", "commands/borg_key.py", **version)
        if version:
            watched.run("an upgrade", "commands/postgres_upgrade.py")
            watched.run("the run after it", "deploy.py")
        watched.run("the status", "commands/postgres_status.py")
        server.psql("create database stray")
        watched.run("a drop", "commands/postgres_drop.py", drop="stray",
                    confirm="stray")  # fmt: skip
        watched.keep_logs()
        if version:
            watched.run("the end of the old cluster", "commands/postgres_upgrade.py",
                        upgrade="clean")  # fmt: skip
            watched.keep_logs()
        server.run("touch /root/stop")
        assert watch.wait(30) == 0
        watched.processes = server.run("cat /root/processes")
        watched.secrets = set(values(server.run("cat /root/secrets")))
        server.run("rm /root/processes /root/secrets /root/stop")
        yield watched


def test_all_secrets_are_known(watched: Watched) -> None:
    """Old and new passwords of each role, given ones, those of second logins, and a private key."""
    now = watched.server.run("cat /etc/terrafirma/secrets/postgres/*").splitlines()
    assert {*now, GIVEN, GIVEN_LATER} <= watched.secrets
    assert len(watched.secrets) >= 12
    assert all(len(secret) >= 16 for secret in watched.secrets), sorted(map(len, watched.secrets))


@pytest.mark.promise(
    "No secret appears in an output, a process list, a log or a file outside its directory: in "
    "runs, repairs, rotations and a major upgrade"
)
def test_no_output_shows_a_secret(watched: Watched) -> None:
    verifiers = watched.server.psql("select rolpassword from pg_authid where rolpassword > ''")
    keys = {part for one in verifiers.splitlines() for part in one.replace(":", "$").split("$")[2:]}
    assert len(keys) == 9
    for what, said in watched.said.items():
        assert len(said) > 1000, what
        for secret in watched.secrets | keys:
            assert secret not in said, what


@pytest.mark.promise(like=test_no_output_shows_a_secret)
def test_no_process_shows_a_secret(watched: Watched) -> None:
    assert CANARY in watched.processes
    for program in ("terrafirma\npasswords", "pg_upgrade", "pg_dump", "docker-compose"):
        assert program in watched.processes
    for secret in watched.secrets:
        assert secret not in watched.processes


@pytest.mark.promise(like=test_no_output_shows_a_secret)
def test_no_log_has_a_secret(watched: Watched) -> None:
    # The logs do have the statements, with the verifier in place of the password.
    assert re.search(r"alter role \"api\" password 'SCRAM-SHA-256\$", watched.logs, re.IGNORECASE)
    clusters = (f"PostgreSQL {version}" for version in watched.versions)
    for program in (*clusters, "PgBouncer", "terrafirma/api"):
        assert program in watched.logs
    for secret in watched.secrets:
        assert secret not in watched.logs


def found(server: Target, files: str, secrets: set[str]) -> list[str]:
    """The files, of those that the command `files` lists, that contain a secret."""
    server.run("umask 077; cat > /root/patterns", stdin="\n".join(secrets))
    try:
        said = server.run(
            f"{files} | xargs -r -d '\\n' grep -laF -f /root/patterns -- 2> /dev/null || true"
        )
    finally:
        server.run("rm /root/patterns")
    return sorted(set(said.splitlines()) - {"/root/patterns"})


EVERYWHERE = "/ /run /tmp /dev/shm /var/tmp"
READABLE = f"cd / && runuser -u nobody -- find {EVERYWHERE} -xdev -type f -readable 2> /dev/null"
# Without Docker's directory: it has the files of images, and the secrets where they are mounted.
ALL = (
    f"find {EVERYWHERE} -xdev -path /var/lib/docker -prune -o -type f -size -100M -print"
    " 2> /dev/null"
)


@pytest.mark.promise(like=test_no_output_shows_a_secret)
def test_no_readable_file_has_a_secret(watched: Watched) -> None:
    server = watched.server
    assert found(server, READABLE, watched.secrets) == []
    secret = next(iter(watched.secrets))
    server.run("cat > /usr/local/share/canary", stdin=secret)
    try:
        assert found(server, READABLE, watched.secrets) == ["/usr/local/share/canary"]
    finally:
        server.run("rm /usr/local/share/canary")


@pytest.mark.promise(like=test_no_output_shows_a_secret)
def test_secrets_are_only_in_their_directory(watched: Watched) -> None:
    """Nor in files that only root reads: the cluster, its WAL, a history of commands."""
    server = watched.server
    server.psql("checkpoint")
    files = found(server, ALL, watched.secrets)
    assert [one for one in files if not one.startswith("/etc/terrafirma/secrets/")] == []
    assert set(files) >= {
        "/etc/terrafirma/secrets/app/api/database_url",
        "/etc/terrafirma/secrets/postgres/ann",
        "/etc/terrafirma/secrets/postgres/api",
    }
    # The first given password was replaced.
    assert server.run("cat /etc/terrafirma/secrets/postgres/ann") == GIVEN_LATER
    assert server.run("find /etc/terrafirma/secrets -type f -perm /077 ! -name '*.pub'") == ""
    assert set(
        server.run("find /etc/terrafirma/secrets -type d -printf '%m %u\\n'").split("\n")
    ) == {"700 root"}

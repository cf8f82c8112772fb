"""Volumes of a compose project: what each backup has of them, and how they are restored."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import backed_up
from tests.e2e.support import Target, changed, eventually, options

pytestmark = pytest.mark.e2e
long = pytest.mark.long

# Redis stands for any database: without SAVE, it never writes its rows to the volume.
COMPOSE = """
services:
  web:
    build: {context: ., target: web}
    init: true
    volumes: ["uploads:/uploads", "cache:/cache"]
    depends_on: [db]
  db:
    build: {context: ., target: db}
    environment: {PASSWORD: odd-p4ssw0rd}
    volumes: ["data:/data"]
    healthcheck: {test: [CMD, redis-cli, ping], interval: 1s}
volumes: {data: , uploads: , cache: }
"""
DOCKERFILE = """
FROM debian:trixie AS web
RUN apt-get -q update && apt-get -qy install --no-install-recommends python3 redis-server
WORKDIR /www
RUN touch healthz
CMD ["python3", "-m", "http.server", "8000"]
FROM web AS db
VOLUME /own
CMD ["redis-server", "--save", "", "--dir", "/data", "--protected-mode", "no"]
"""
SAVE = ["sh", "-c", 'said=$(redis-cli SAVE); echo "$said"; test "$said" = OK']
VOLUMES = "/var/lib/docker/volumes"


@dataclass
class Shop:
    server: Target
    backups: dict[str, Any]
    source: Path

    def deploy(self, *more: str, db: dict[str, Any]) -> None:
        shop = {
            "source": str(self.source), "compose": ["compose.yaml"], "service": "web",
            "domain": "shop.terrafirma.test", "port": 9000, "replicas": 1, "drain_seconds": 1,
            "stop_seconds": 2, "start_seconds": 30, "stateful": ["db"],
            "shared": ["uploads", "cache"], "volumes": {"files": "/files"},
            "backup_leave_out": ["cache"], "services": {"db": db},
        }  # fmt: skip
        words = options(self.backups | {"apps": {"shop": shop}})
        result = self.server.pyinfra.imported.call(
            "-y", *words, *self.server.arguments(), "tasks/app.py", *more
        )
        assert result.returncode == 0, result.stderr

    def redis(self, words: str) -> str:
        return self.server.run(f"docker exec shop-state-db-1 redis-cli {words}")

    def backup(self) -> tuple[bool, str]:
        """Run the nightly unit; returns whether it succeeded, and its log."""
        since = self.server.run("date '+%F %T.%N'")
        done = self.server.call("systemctl start borgmatic.service").returncode == 0
        log = f"journalctl -u borgmatic.service -o cat --since '{since[:23]}'"
        return done, self.server.run(log)

    def archived(self) -> set[str]:
        """The files of Docker that the newest archive has."""
        said = self.server.run("borgmatic list --archive latest")
        found = re.findall(r"^-.*? /?var/lib/docker/(\S+)$", said, re.MULTILINE)
        return {re.sub("[0-9a-f]{64}", "ID", path) for path in found}


@pytest.fixture(scope="module")
def shop(pyinfra: Pyinfra, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    source = tmp_path_factory.mktemp("source") / "shop"
    source.mkdir()
    (source / "compose.yaml").write_text(COMPOSE)
    (source / "Dockerfile").write_text(DOCKERFILE)
    with backed_up(pyinfra, "tf-b-volumes", 2566) as (server, data):
        one = Shop(server, data, source)
        one.deploy(db={"backup_command": SAVE})
        yield one


@pytest.mark.promise(
    "Each backup has the volumes of every application, also those of a compose project, and the "
    "dump that a service writes for it; a database that is restored from it has all its rows"
)
def test_a_database_in_a_volume_is_restored(shop: Shop) -> None:
    server = shop.server
    # The pool stands for the networks of the stateful service, so a second run changes no rule.
    assert server.plan("tasks/postgres.py", **shop.backups) == []
    shop.redis("set row acknowledged")
    server.run(
        "docker volume create theirs; touch /var/lib/docker/volumes/theirs/_data/no;"
        "docker exec shop-state-db-1 touch /own/nameless; web=$(docker ps -qf name=shop-blue-web);"
        "docker exec $web sh -c 'echo cat > /uploads/cat.jpg; touch /cache/no /files/file'"
    )
    fine, said = shop.backup()
    assert fine, said
    assert shop.archived() == {
        f"volumes/{one}"
        for one in (
            *("shop_data/_data/dump.rdb", "shop_uploads/_data/cat.jpg", "shop_files/_data/file"),
            "ID/_data/nameless",
        )
    }
    # The disaster, and the commands of docs/operations.md, "Restore a volume".
    server.run(
        "terrafirma maintenance shop on; docker compose -p shop-state kill;"
        f"rm -rf {VOLUMES}/shop_data/_data/* {VOLUMES}/shop_uploads/_data/*"
    )
    server.run("install -d -m 700 /root/restored")
    for name in ("shop_data", "shop_uploads"):
        server.run(
            "borgmatic extract --override numeric_ids=true --archive latest"
            f" --destination /root/restored --path {VOLUMES[1:]}/{name} &&"
            f"cp -a /root/restored{VOLUMES}/{name}/_data/. {VOLUMES}/{name}/_data/"
        )
    server.run("docker compose -p shop-state start; terrafirma maintenance shop off")
    eventually(lambda: shop.redis("get row") == "acknowledged", 20)
    web = "docker exec $(docker ps -qf name=shop-blue-web)"
    assert server.run(f"{web} cat /uploads/cat.jpg") == "cat"


def archives(server: Target) -> list[str]:
    return re.findall(r"\S+-20\d\d-\S+(?= )", server.run("borgmatic rlist"))


@pytest.mark.promise(
    "A dump of a service that fails or hangs ends neither the backup nor the service: the backup "
    "is made, says so in one line, and has failed"
)
@long
def test_a_dump_that_fails_or_hangs(shop: Shop) -> None:
    server = shop.server
    fine, said = shop.backup()
    assert fine, said
    good = archives(server)[-1]
    before = server.run("docker ps --no-trunc --quiet | sort")
    after = ["sh", "-c", "echo $PASSWORD > /data/after"]
    fails = ["sh", "-c", "echo no room for $PASSWORD >&2; exit 3"]
    for command, words in (
        (fails, "exit 3: no room for"),
        (["no-such-program"], "no-such-program"),
        (["sh", "-c", "sleep 1234 & sleep 1234; exit 0"], "ended after 3 s (backup_seconds)"),
    ):
        server.run(f"rm -f {VOLUMES}/shop_data/_data/after")
        shop.deploy(
            db={"backup_command": command, "backup_after": after, "backup_seconds": 3},
        )
        fine, said = shop.backup()
        assert not fine
        (line,) = re.findall("^incomplete: .*", said, re.MULTILINE)
        assert line.startswith("incomplete: backup_command of shop/db: ")
        assert words in line
        assert line.endswith(f"(it last succeeded for {good})")
        assert "volumes/shop_data/_data/dump.rdb" in shop.archived()
        # Prune alone would keep only the day's newest archive, which has no new dump.
        assert good in archives(server)
        assert server.run(f"cat {VOLUMES}/shop_data/_data/after") == "odd-p4ssw0rd"
        assert server.call("pgrep -fx 'sleep 1234'").returncode == 1
    # A run says so without a change, and so does the server.
    result = server.pyinfra.imported.call(
        "-y", *options(shop.backups), *server.arguments(), "tasks/borg.py"
    )
    assert changed(json.loads(result.stdout)) == []
    words = " is incomplete: backup_command of shop/db: "
    assert words in result.stderr
    promises = server.call("terrafirma promises")
    assert promises.returncode == 1
    assert words in promises.stdout
    # No service was touched, and nothing was released.
    assert server.run("docker ps --no-trunc --quiet | sort") == before


@long
def test_a_backup_that_is_killed_while_a_dump_runs(shop: Shop) -> None:
    """The processes of the dump end, and the command afterwards runs."""
    server = shop.server
    server.run(f"rm -f {VOLUMES}/shop_data/_data/after")
    after = ["touch", "/data/after"]
    shop.deploy(db={"backup_command": ["sleep", "4321"], "backup_after": after})
    server.run("systemctl start --no-block borgmatic.service")
    eventually(lambda: server.call("pgrep -fx 'sleep 4321'").returncode == 0, 60)
    began = time.monotonic()
    server.run("systemctl kill --signal KILL borgmatic.service")
    eventually(lambda: server.call(f"test -e {VOLUMES}/shop_data/_data/after").returncode == 0, 30)
    assert server.call("pgrep -fx 'sleep 4321'").returncode == 1
    assert time.monotonic() - began < 30
    shop.deploy(db={"backup_command": SAVE})
    eventually(
        lambda: server.call("systemctl is-active borgmatic").stdout.strip() != "activating", 30
    )
    fine, said = shop.backup()
    assert fine, said


@long
def test_the_engine_does_not_answer(shop: Shop) -> None:
    """The volumes of the last backup are in the next one, which has failed."""
    server = shop.server
    before = shop.archived()
    server.run("systemctl stop docker.socket docker.service")
    try:
        fine, said = shop.backup()
    finally:
        server.run("systemctl start docker.service")
    assert not fine
    assert len(re.findall("^incomplete: the volumes of the last backup", said, re.MULTILINE)) == 1
    assert before <= shop.archived()

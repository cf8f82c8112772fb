"""The commands that are proposed for well-known databases: what a shell in the container runs."""

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from terrafirma.app.check import Report, check, shown
from tests.unit.programs import Program

COMPOSE = """\
services:
  web: {{build: .}}
  db: {{image: "{image}", volumes: ["data:{place}"], environment: {env}}}
volumes: {{data: }}
"""
PASSWORD = "odd 'p4ss $word"
# Prints its words and variables, or fails.
PRINTS = """\
echo "$0 $*" | sed 's,.*/,,'; echo "$MYSQL_PWD$REDISCLI_AUTH$VALKEYCLI_AUTH"; {more}
"""


def checked(directory: Path, image: str, place: str, env: dict[str, str], **data: Any) -> Report:
    (directory / "Dockerfile").touch()
    text = COMPOSE.format(image=image, place=place, env=json.dumps(env))
    (directory / "compose.yaml").write_text(text)
    usual = {"name": "shop", "domain": "shop.acme.com", "service": "web"}
    return check({**usual, "source": str(directory), **data})


# The image, where its data are, the variables of the service; and what the dump has then.
KNOWN: dict[str, tuple[str, dict[str, str], str]] = {
    "mysql:8": (
        "/var/lib/mysql", {"MYSQL_ROOT_PASSWORD": PASSWORD},
        "mysqldump --user=root --all-databases --single-transaction --routines --events\n"
        + PASSWORD,
    ),
    "mariadb:11": (
        "/var/lib/mysql", {"MARIADB_ROOT_PASSWORD_FILE": "password"},
        "mariadb-dump --user=root --all-databases --single-transaction --routines --events\n"
        + PASSWORD,
    ),
    "bitnami/mariadb": (
        "/bitnami/mariadb", {},
        "mariadb-dump --user=root --all-databases --single-transaction --routines --events\n",
    ),
    "mongo:8": (
        "/data/db", {"MONGO_INITDB_ROOT_USERNAME": "u", "MONGO_INITDB_ROOT_PASSWORD": PASSWORD},
        "mongodump --quiet --archive --username=u\n\n" + PASSWORD,
    ),
    "percona/percona-server-mongodb:8.0": ("/data/db", {}, "mongodump --quiet --archive\n"),
    "postgis/postgis:17": (
        "/var/lib/postgresql/data", {"POSTGRES_USER": "u"}, "pg_dumpall --username=u\n",
    ),
}  # fmt: skip
SUFFIX = {"mongo:8": "archive", "percona/percona-server-mongodb:8.0": "archive"}


def run(
    command: list[str], directory: Path, env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env={"PATH": f"{directory}/programs:{os.environ['PATH']}", **env}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("image", KNOWN)
def test_a_dump_of_a_known_database(image: str, tmp_path: Path, program: Program) -> None:
    place, env, dump = KNOWN[image]
    report = checked(tmp_path, image, place, env)
    command = report.proposed["services"]["db"]["backup_command"]
    # No process list shows what only the shell reads.
    assert PASSWORD not in json.dumps(command)
    (tmp_path / "password").write_text(PASSWORD)
    file = tmp_path / f"backup.{SUFFIX.get(image, 'sql')}"
    command = [word.replace(f"{place}/", f"{tmp_path}/") for word in command]
    name = dump.split()[0]
    program(name, PRINTS.format(more="cat"))
    result = run(command, tmp_path, env)
    assert result.returncode == 0, result.stderr
    assert file.read_text().strip() == dump.strip()
    assert oct(file.stat().st_mode)[-3:] == "600"
    # One that breaks replaces no complete dump.
    program(name, PRINTS.format(more="exit 2"))
    assert run(command, tmp_path, env).returncode == 2
    assert file.read_text().strip() == dump.strip()


def test_a_directory_whose_name_has_a_space(tmp_path: Path, program: Program) -> None:
    place = tmp_path / "my data"
    place.mkdir()
    report = checked(tmp_path, "postgres:17", "/data/my data", {})
    [*shell, script] = report.proposed["services"]["db"]["backup_command"]
    program("pg_dumpall", "echo dump")
    run([*shell, script.replace("/data/my data", str(place))], tmp_path, {})
    assert (place / "backup.sql").read_text() == "dump\n"


@pytest.mark.parametrize(("image", "client"), [("redis:8", "redis"), ("valkey/valkey", "valkey")])
def test_a_dump_of_redis(image: str, client: str, tmp_path: Path, program: Program) -> None:
    """Its client succeeds also where it prints an error."""
    env = {f"{client.upper()}_PASSWORD": PASSWORD}
    report = checked(tmp_path, image, "/data", env)
    command = report.proposed["services"]["db"]["backup_command"]
    name = f"{client.upper()}CLI_AUTH"
    right = shlex.quote(f"SAVE {PASSWORD}")
    program(f"{client}-cli", f'test "$* ${name}" = {right} && echo OK || echo NOAUTH')
    assert run(command, tmp_path, env).returncode == 0
    result = run(command, tmp_path, {f"{client.upper()}_PASSWORD": "other"})
    assert (result.returncode, result.stdout) == (1, "NOAUTH\n")


def test_a_page_says_what_is_copied_while_it_is_written(tmp_path: Path) -> None:
    """It proposes the line, and is silent once the settings have one."""
    report = checked(tmp_path, "redis:8", "/data", {})
    assert report.served
    assert report.refusals == []
    page = "\n".join(shown(report))
    assert '"services": {"db": {"backup_command": ["sh", "-c", "said=$(redis-cli SAVE); ' in page
    assert "without a dump" not in page
    own: dict[str, dict[str, Any]] = {"db": {"memory_mb": 64}}
    report = checked(tmp_path, "redis:8", "/data", {}, services=own)
    assert report.proposed["services"]["db"].keys() == {"memory_mb", "backup_command"}
    own = {"db": {"backup_command": ["true"]}}
    assert checked(tmp_path, "redis:8", "/data", {}, services=own).proposed == {}


@pytest.mark.parametrize(
    ("image", "data"),
    [("redis:8", {"scratch": ["db"]}), ("nats:2", {}), ("acme/redis-worker", {"shared": ["data"]})],
)
def test_nothing_is_proposed(image: str, data: dict[str, Any], tmp_path: Path) -> None:
    assert "services" not in checked(tmp_path, image, "/data", {}, **data).proposed


def test_volumes_that_no_backup_has(tmp_path: Path) -> None:
    report = checked(tmp_path, "redis:8", "/data", {}, backup_leave_out=["data"])
    assert "lasts as shop_data, in no backup: db writes /data" in "\n".join(report.lines)
    report = checked(tmp_path, "redis:8", "/data", {}, backup_leave_out=["dta"])
    assert report.refusals == [
        "apps.shop.backup_leave_out: there is no volume 'dta' (data)",
    ]

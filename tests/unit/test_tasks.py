"""Every task plans alone and as part of the platform, against a fake host."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from terrafirma.borg.facts import Archives
from terrafirma.host.facts import Machine
from terrafirma.pgbouncer.facts import UserList
from tests.conftest import ROOT, Pyinfra
from tests.unit.fake_host import (
    BACKUP,
    DEBIAN_12,
    POOLED,
    SHOP,
    UBUNTU_22,
    UBUNTU_24,
    UBUNTU_26,
    api,
    command,
    commands,
    fake,
    machine,
    refusal,
    refuses,
)

TASKS = sorted(path.stem for path in (ROOT / "tasks").glob("*.py"))
# Each command with its arguments.
COMMANDS: dict[str, dict[str, Any]] = {
    "borg_key": {},
    "check": {},
    "exposure": {},
    "postgres_drop": {"drop": "old", "confirm": "old"},
    "postgres_rotate": {"rotate": "api"},
    "postgres_status": {},
    "postgres_upgrade": {},
    "releases": {},
    "rollback": {"rollback": "api"},
    "upgrade": {},
}
# Commands that only show something: see postgres/test_status.py and app/test_tasks.py.
READS = {"check", "postgres_status", "releases"}


# --- they plan ------------------------------------------------------------------------------------

# The file of each task and command, and its arguments.
PAGES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (f"tasks/{name}.py", {}) for name in TASKS},
    **{name: (f"commands/{name}.py", given) for name, given in COMMANDS.items()},
}


@pytest.fixture(scope="module")
def alone(pyinfra: Pyinfra) -> dict[str, CompletedProcess[str]]:
    return pyinfra.call_all(
        {
            name: ["@fake/host", page, "--dry", *fake(machine(), **POOLED, **given)]
            for name, (page, given) in PAGES.items()
        }
    )


@pytest.mark.parametrize("name", sorted({*TASKS, *COMMANDS} - READS))
def test_it_plans_on_its_own(alone: dict[str, CompletedProcess[str]], name: str) -> None:
    assert alone[name].returncode == 0, alone[name].stderr
    assert json.loads(alone[name].stdout)["plan"]


def test_every_command_is_known_here() -> None:
    assert {path.stem for path in (ROOT / "commands").glob("*.py")} == COMMANDS.keys()


def test_tasks_and_commands_are_no_packages() -> None:
    """pyinfra runs their files once for each host; an import would run them once for all."""
    for name in ("tasks", "commands"):
        assert not (ROOT / name / "__init__.py").exists()


@pytest.fixture(scope="module")
def two_hosts(pyinfra: Pyinfra) -> dict[str, Any]:
    answers = machine() | {command(Archives): ['[{"archives": [{"archive": "a-1"}]}]']}
    return pyinfra.run("@fake/a,@fake/b", "deploy.py", "-y", *fake(answers, **BACKUP, **POOLED))


def test_the_platform_includes_every_task(two_hosts: dict[str, Any]) -> None:
    operations = two_hosts["results"]["operations"]
    included = {Path(one["name"].split(" | ")[0]).stem for one in operations}
    assert included == set(TASKS)


def test_every_host_gets_every_operation(two_hosts: dict[str, Any]) -> None:
    for one in two_hosts["results"]["operations"]:
        assert sorted(one["success"] + one["no_change"]) == ["@fake/a", "@fake/b"], one


def test_operations_have_names_of_their_own(two_hosts: dict[str, Any]) -> None:
    names = [one["name"] for one in two_hosts["results"]["operations"]]
    assert len(names) == len(set(names))
    for name in names:
        assert re.match(r"tasks/\w+\.py \| [A-Z]", name)


def test_operations_come_in_the_order_of_the_platform(two_hosts: dict[str, Any]) -> None:
    names = [one["name"].split(" | ")[0] for one in two_hosts["results"]["operations"]]
    order = list(dict.fromkeys(names))
    assert order[0] == "tasks/preflight.py"
    assert len([1 for one, after in pairwise(names) if one != after]) == len(order) - 1
    # PostgreSQL asks Docker for its networks; the applications ask PostgreSQL for their passwords.
    for earlier, later in (
        *(("users", "sshd"), ("docker", "postgres"), ("postgres", "app")),
        # A release is checked through Caddy, so Caddy comes first.
        *(("postgres", "pgbouncer"), ("pgbouncer", "app"), ("caddy", "app"), ("app", "borg")),
    ):
        assert order.index(f"tasks/{earlier}.py") < order.index(f"tasks/{later}.py")


def test_every_supported_distribution_plans(pyinfra: Pyinfra, inventory: Any) -> None:
    hosts = inventory(
        trixie=(machine(), BACKUP | POOLED),
        bookworm=(machine(DEBIAN_12), {"apps": {}, **BACKUP, **POOLED}),
        noble=(
            machine(UBUNTU_24, "cluster=16/main", "own=16/main", root="", sudo="yes", user="me"),
            POOLED,
        ),
        resolute=(machine(UBUNTU_26), POOLED),
        # The distribution has no 17; the vendor has.
        jammy=(
            machine(UBUNTU_22, "offered=17"),
            {
                **POOLED,
                "apt_source": "upstream",
                "postgres_version": 17,
            },
        ),
    )
    plan = pyinfra.run(hosts, "deploy.py", "--dry")["plan"]
    every = {f"@fake/{name}" for name in ("trixie", "bookworm", "noble", "resolute", "jammy")}
    change = {one["name"]: set(one["hosts_with_change"]) for one in plan}
    assert change["tasks/postgres.py | Install PostgreSQL"] == every
    assert change["tasks/pgbouncer.py | Run PgBouncer"] == every
    assert change["tasks/caddy.py | Run Caddy"] == every
    assert change["tasks/app.py | Release api, 4 replicas"] == every - {"@fake/bookworm"}
    assert change["tasks/borg.py | Make and verify a first backup"] == {
        "@fake/trixie",
        "@fake/bookworm",
    }


def test_a_failed_first_fact_is_reported_without_a_traceback(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    broken = {command(Machine): {"success": False, "stderr": "sh: out of memory"}}
    hosts = inventory(broken=(broken, {}), fine=(machine(), {}))
    result = pyinfra.call(hosts, "tasks/apt.py", "--dry")
    assert "sh: out of memory" in result.stderr
    assert "Traceback" not in result.stderr


# --- they refuse ----------------------------------------------------------------------------------

# The mistake; the task; the host; the parts of the message: the key or the thing, and the remedy.
REFUSALS: dict[str, tuple[str, list[str], Sequence[str]]] = {
    "a value that makes no sense": (
        "deploy",
        fake(machine(), **api(replicas=0), users_accounts=[{"name": "root"}]),
        ("users_accounts.0: ", "root exists already", "apps.api.replicas: Input should be greater"),
    ),
    "a key of an earlier version": (
        "deploy",
        fake(machine(), app_replicas=6),
        ("app_replicas: ", "no such key any more", 'apps = {"api": {"replicas": …}}'),
    ),
    "a command of an earlier version": (
        "deploy",
        fake(machine(), postgres_rotate="api"),
        ("postgres_rotate: ", "write commands/postgres_rotate.py --data rotate=ROLE"),
    ),
    "a field of an unknown application": (
        "tasks/apt",
        fake(machine(), **{"apps.ap.replicas": 6}),
        ("apps.ap.replicas: ", "there is no application 'ap', did you mean api?"),
    ),
    "applications in a list": (
        "tasks/apt",
        fake(machine(), apps=[SHOP]),
        ("apps: ", "must be a dictionary, not list"),
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses_in_one_line_before_anything_changes(
    refused: dict[str, CompletedProcess[str]], what: str
) -> None:
    refuses(refused[what], REFUSALS[what][2])


@pytest.mark.parametrize("name", PAGES)
def test_every_task_checks_the_settings_of_all_hosts(
    pyinfra: Pyinfra, inventory: Any, name: str
) -> None:
    """It does so before it asks a host anything."""
    page, given = PAGES[name]
    hosts = inventory(fine=(machine(), given), wrong=(machine(), {"cady_email": "", **given}))
    result = pyinfra.call(hosts, page, "-y", "-vv")
    assert refusal(result).startswith("@fake/wrong: cady_email: ")
    assert "did you mean caddy_email?" in refusal(result)
    assert ">>> " not in result.stderr


# --- what they write ------------------------------------------------------------------------------

# Every path that not all users may read or enter: its mode and owner.
CLOSED = {
    "/etc/borgmatic/config.yaml": "600 root:root",
    "/etc/borgmatic/known_hosts": "600 root:root",
    # The Caddyfile has the password hashes of `guards`.
    "/etc/caddy/Caddyfile": "640 root:caddy",
    "/etc/pgbouncer/hba.conf": "640 root:postgres",
    "/etc/pgbouncer/pgbouncer.ini": "640 root:postgres",
    "/etc/pgbouncer/terrafirma.ini": "640 root:postgres",
    "/etc/pgbouncer/userlist.txt": "640 root:postgres",
    "/etc/postgresql/17/main/conf.d/terrafirma.conf": "640 postgres",
    "/etc/postgresql/17/main/pg_hba.conf": "640 postgres",
    "/etc/sudoers.d/90-terrafirma-ingres": "440 root:root",
    "/etc/terrafirma/apps": "700 root:root",
    "/etc/terrafirma/apps/api.json": "600 root:root",
    "/etc/terrafirma/secrets": "700 root:root",
    "/etc/terrafirma/secrets/app/api/database_url": "400 prod:",
    "/etc/terrafirma/secrets/borg": "700 root",
    "/etc/terrafirma/secrets/postgres": "700 root:root",
    **{f"/home/{name}/.ssh": f"700 {name}" for name in ("dev", "ingres", "prod")},
    **{f"/home/{name}/.ssh/authorized_keys": f"600 {name}" for name in ("dev", "ingres", "prod")},
    "/var/lib/terrafirma/backup": "700 root:root",
    "/var/log/caddy": "750 caddy:adm",
}
# How a command names a path, its mode and its owner; without an owner, the user who runs it.
PUTS = [
    r"(?:path|file)=(?P<path>[^ ;]+) ?;.* chown (?P<owner>\S+) \S+ && chmod (?P<mode>\d+) ",
    r".*runuser -u (?P<owner>\S+) -- sh -c .* chmod (?P<mode>\d+) .* sh (?P<path>/\S+)$",
    r"install -d -m (?P<mode>\d+) -o (?P<user>\S+) -g (?P<group>\S+) (?P<path>/\S+)$",
    r"install -d -m (?P<mode>\d+) (?P<path>/\S+) ",
]


def test_private_files_are_closed(pyinfra: Pyinfra) -> None:
    answers = machine() | {
        command(Archives): ['[{"archives": [{"archive": "a-1"}]}]'],
        "echo no account": ["wrong"],
        command(UserList, version=17, roles=["api"]): ["wrong"],
    }
    host = fake(answers, **BACKUP, **POOLED)
    put = {}
    for line in commands(pyinfra.call("@fake/host", "deploy.py", "-y", "-vv", *host)):
        if not re.search(r"\bchmod |\binstall -d ", line):
            continue
        (found,) = [match.groupdict() for one in PUTS if (match := re.match(one, line))]
        owner = found.get("owner") or ":".join(
            found[name] for name in ("user", "group") if name in found
        )
        put[found["path"]] = f"{found['mode']} {owner or 'root'}"
    assert "/etc/apt/apt.conf.d/60terrafirma" in put
    closed = {path: how for path, how in put.items() if how.split()[0] not in ("644", "755")}
    assert closed == CLOSED

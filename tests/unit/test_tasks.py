"""Every task plans on its own and as part of the platform, against a host that is not there."""

import json
import os
import re
import ssl
import subprocess
from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise, takewhile
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from pyinfra.api import FactBase, StringCommand
from pyinfra.facts.files import FileContents

from terrafirma.facts.accounts import Accounts
from terrafirma.facts.backup import Archives
from terrafirma.facts.caddy import CaddyVersion, Names
from terrafirma.facts.docker import ContainerReach, DockerAddresses, DockerNetworks
from terrafirma.facts.files import PathStates
from terrafirma.facts.machine import (
    Hardware,
    KernelSettings,
    Listeners,
    Machine,
    UsedNetworks,
)
from terrafirma.facts.packages import AptLockHolder, MissingPackages
from terrafirma.facts.pgbouncer import ForeignPooler, UserList
from terrafirma.facts.postgres import Contents, Databases, Roles, Server, WrongPasswords
from terrafirma.facts.postgres_upgrade import UpgradeProgress, UpgradeState
from terrafirma.facts.release import ReleaseStatus
from terrafirma.facts.secrets import AppSecrets
from terrafirma.facts.services import Unit
from terrafirma.paths import (
    DOCKER_ENGINE,
    DROPPED,
    HOST_PROGRAM,
    PASSWORDS,
    PASSWORDS_PROGRAM,
)
from terrafirma.release import description, uploaded_source
from terrafirma.settings import App, Users
from tests.conftest import ROOT, Pyinfra
from tests.unit.test_settings import of

TASKS = sorted(path.stem for path in (ROOT / "tasks").glob("*.py"))
# Commands of their own, and what each of them has to be told.
EXTRA: dict[str, dict[str, Any]] = {
    "borg_key": {},
    "postgres_drop": {"postgres_drop": "old", "postgres_confirm": "old"},
    "postgres_rotate": {"postgres_rotate": "api"},
    "postgres_status": {},
    "postgres_upgrade": {},
    "releases": {},
    "rollback": {"app_rollback": "api"},
}
# They show what is there and plan nothing: see test_postgres_status.py, and below.
READS = {"postgres_status", "releases"}

DEBIAN_13 = {
    "id": "debian",
    "version": "13",
    "name": "Debian GNU/Linux 13 (trixie)",
    "architecture": "amd64",
    "user": "root",
    "root": "yes",
    "systemd": "yes",
    "free_kb": "78453624",
}
DEBIAN_12 = DEBIAN_13 | {"version": "12", "name": "Debian GNU/Linux 12 (bookworm)"}
UBUNTU_24 = DEBIAN_13 | {"id": "ubuntu", "version": "24.04", "name": "Ubuntu 24.04.3 LTS"}

Answers = dict[str, Any]

SHOP = {"name": "shop", "source": "examples/api", "domain": "shop.test", "port": 9000}


def command(fact: type[FactBase[Any]], **arguments: Any) -> str:
    """What pyinfra's @fake connector knows a question by."""
    text = fact().command(**arguments)
    return text.get_raw_value() if isinstance(text, StringCommand) else text


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGc1+glbGrHlrI9G1dvS2Q54l8v1A9J2h2KIlylF3/L8"
CI: dict[str, Any] = {"name": "ci", "keys": [KEY], "releases": ["api"]}
POOLED = {"pgbouncer_enabled": True}
SLOTS = [*range(8000, 8008), *range(8064, 8072)]
LISTENERS = command(Listeners, ports=[80, 443, 5432, *SLOTS])
POOLED_LISTENERS = command(Listeners, ports=[80, 443, 5432, 6432, *SLOTS])
ACCOUNTS = command(Accounts, homes={name: f"/home/{name}" for name in ("prod", "ingres", "dev")})
DAEMON_JSON = command(FileContents, path="/etc/docker/daemon.json")
DOCKER0 = command(DockerAddresses)
NETWORKS = command(UsedNetworks)
MEMORY = command(Hardware, path="/")
HARDWARE = command(Hardware, path="/var/lib/postgresql/17/main")
SERVER_CONF = "/etc/postgresql/17/main/conf.d/terrafirma.conf"


def machine(kind: dict[str, str] = DEBIAN_13, *more: str, **but: str) -> Answers:
    """The answers of a bare host: nothing is installed, and nothing is there."""
    lines = [f"{key}={value}" for key, value in (kind | but).items() if value]
    # Whichever packages are asked for, one of them is missing: the end of the command is the same.
    packages = command(MissingPackages, packages=["x"]).partition(" x ")[2]
    assert packages
    return {command(Machine): [*lines, *more], packages: ["vim"]}


def fake(answers: Answers, **data: Any) -> list[str]:
    """The arguments for a host with these answers and this host data."""
    values = {"fake_responses": answers, **data}
    pairs = (
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in values.items()
    )
    return [word for pair in pairs for word in ("--data", pair)]


def refusal(result: CompletedProcess[str]) -> str:
    """The one line that says why nothing was done."""
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "Starting operation" not in result.stderr
    *_, line = filter(None, result.stderr.splitlines())
    message = re.search(r"pyinfra error.*: (@fake/\w+: .*)$", line)
    assert message, result.stderr
    return message[1]


def written(result: CompletedProcess[str], path: str, host: str = "host") -> str:
    """What a run with --diff says that it puts at `path`, where nothing is yet."""
    assert result.returncode == 0, result.stderr
    found = re.search(rf"\[@fake/{host}\] +Will create {path}\n", result.stderr)
    assert found, result.stderr
    _, *lines = result.stderr[found.end() :].splitlines()
    return "".join(
        f"{line.strip().removeprefix('+').removeprefix(' ')}\n"
        for line in takewhile(lambda line: line.strip().startswith("+"), lines)
    )


def commands(result: CompletedProcess[str], host: str = "host") -> list[str]:
    """What a run with -vv asks and does on a host, line by line."""
    assert result.returncode == 0, result.stderr
    return re.findall(rf"\[@fake/{host}\] +>>> (.*)", result.stderr)


def said_to_psql(result: CompletedProcess[str], host: str = "host") -> list[str]:
    """The statements that a dry run shows for a host."""
    verbs = "alter|create|grant|revoke"
    return re.findall(rf"\[@fake/{host}\] +((?:{verbs}) .*;)$", result.stderr, re.MULTILINE)


# --- they plan ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(pyinfra: Pyinfra) -> dict[str, CompletedProcess[str]]:
    return pyinfra.call_all(
        {
            task: [
                *("@fake/host", f"tasks/{task}.py", "--dry"),
                *fake(machine(), **POOLED, **EXTRA.get(task, {})),
            ]
            for task in TASKS
        }
    )


@pytest.mark.parametrize("task", sorted({*TASKS} - READS))
def test_a_task_plans_on_its_own(alone: dict[str, CompletedProcess[str]], task: str) -> None:
    assert alone[task].returncode == 0, alone[task].stderr
    assert json.loads(alone[task].stdout)["plan"]


def test_tasks_are_no_package() -> None:
    """pyinfra runs them once for each host; an import would run them once."""
    assert not (ROOT / "tasks" / "__init__.py").exists()


BACKUP = {
    "borg_repository": "ssh://b@backup.acme.com/./web",
    "borg_known_hosts": [f"backup.acme.com {KEY}"],
}


@pytest.fixture(scope="module")
def two_hosts(pyinfra: Pyinfra) -> dict[str, Any]:
    answers = machine() | {command(Archives): ['[{"archives": [{"archive": "a-1"}]}]']}
    return pyinfra.run("@fake/a,@fake/b", "deploy.py", "-y", *fake(answers, **BACKUP, **POOLED))


def test_the_platform_includes_every_task(two_hosts: dict[str, Any]) -> None:
    operations = two_hosts["results"]["operations"]
    included = {Path(one["name"].split(" | ")[0]).stem for one in operations}
    assert included == set(TASKS) - EXTRA.keys()


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
        # A release is pointed at by Caddy, and asked for through it.
        *(("postgres", "pgbouncer"), ("pgbouncer", "app"), ("caddy", "app"), ("app", "borg")),
    ):
        assert order.index(f"tasks/{earlier}.py") < order.index(f"tasks/{later}.py")


INVENTORY = """\
from json import loads


class Turns(dict):
    # An answer that is another one each time; the last one stays.
    def get(self, key, default=None):
        turns = self["turns"]
        if key != "stdout":
            return default
        return turns.pop(0) if len(turns) > 1 else turns[0]


def answer(data):
    return Turns(data) if data.keys() == {{"turns"}} else data


servers = [(name, data) for name, data in loads({text!r}, object_hook=answer).items()]
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Any:
    """An inventory of fake hosts, each with answers and data of its own."""

    def write(**hosts: tuple[Answers, dict[str, Any]]) -> str:
        data = {
            f"@fake/{name}": {"fake_responses": answers, **more}
            for name, (answers, more) in hosts.items()
        }
        path = tmp_path / "fakes.py"
        path.write_text(INVENTORY.format(text=json.dumps(data)))
        return str(path)

    return write


def test_every_supported_distribution_plans(pyinfra: Pyinfra, inventory: Any) -> None:
    hosts = inventory(
        trixie=(machine(), BACKUP | POOLED),
        bookworm=(machine(DEBIAN_12), {"app_source": "", **BACKUP, **POOLED}),
        noble=(
            machine(UBUNTU_24, "cluster=16/main", "own=16/main", root="", sudo="yes", user="me"),
            POOLED,
        ),
    )
    plan = pyinfra.run(hosts, "deploy.py", "--dry")["plan"]
    every = {"@fake/trixie", "@fake/bookworm", "@fake/noble"}
    change = {one["name"]: set(one["hosts_with_change"]) for one in plan}
    assert change["tasks/postgres.py | Install PostgreSQL"] == every
    assert change["tasks/pgbouncer.py | Run PgBouncer"] == every
    assert change["tasks/caddy.py | Run Caddy"] == every
    assert change["tasks/app.py | Release api, 4 replicas"] == every - {"@fake/bookworm"}
    assert change["tasks/borg.py | Make a backup, and list it"] == {
        "@fake/trixie",
        "@fake/bookworm",
    }


def test_a_first_answer_that_fails_is_said_without_a_traceback(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    broken = {command(Machine): {"success": False, "stderr": "sh: out of memory"}}
    hosts = inventory(broken=(broken, {}), fine=(machine(), {}))
    result = pyinfra.call(hosts, "tasks/apt.py", "--dry")
    assert "sh: out of memory" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_docker_that_does_not_answer_closes_postgresql_to_nobody(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    """When a fact fails on one host of several, pyinfra goes on there with the fact's default."""
    silent = {"success": False, "stderr": "Cannot connect to the Docker daemon"}
    broken = machine() | {"docker": silent}
    hosts = inventory(broken=(broken, {}), fine=(machine(), {}))
    said = pyinfra.call(hosts, "tasks/postgres.py", "-y", "-vv").stderr
    writers = re.findall(r"\[@fake/(\w+)\] +>>> .* sh /etc/postgresql/17/main/(\S+)", said)
    writers = [host for host, path in writers if path != "start.conf"]
    assert set(writers) == {"fine"}


def test_preflight_lets_our_own_services_be_and_waits_for_others(pyinfra: Pyinfra) -> None:
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

# What is wrong; the task; the host; the key or the thing that is named, and what would be right.
REFUSALS: dict[str, tuple[str, list[str], Sequence[str]]] = {
    "another distribution": (
        "preflight",
        fake(machine(id="fedora", version="43", name="Fedora Linux 43")),
        ("distribution: ", "Fedora Linux 43", "Debian 13", "Ubuntu 24.04"),
    ),
    "a host that says nothing": (
        "preflight",
        [],
        ("distribution: ", "an unknown system", "Debian 13"),
    ),
    "cloud-init never ends": (
        "preflight",
        fake(machine(booting="yes"), preflight_wait_seconds=1),
        ("preflight_wait_seconds: ", "cloud-init", "cloud-init status --long"),
    ),
    "a full disk": (
        "preflight",
        fake(machine(free_kb="1048576")),
        ("preflight_free_disk_gb: ", "1.0 GB are free", "2 are needed"),
    ),
    "memory that does not fit": (
        "preflight",
        fake(machine() | {MEMORY: ["memory=2097152", "cores=2"]}, app_memory_mb=512),
        ("app_memory_mb: ", "2048 MB of memory are too few: api 4 replicas x 512 MB x 2", "512 MB"),
    ),
    "processors that do not fit below the platform": (
        "../deploy",
        fake(machine() | {MEMORY: ["memory=2097152", "cores=2"]}, app_cpus=4),
        ("app_cpus: ", "a container of api may take 4", "set it to 2 or less"),
    ),
    "a key that releases what there is not": (
        "users",
        fake(machine(), users_accounts=[CI | {"releases": ["api", "shop"]}]),
        ("users_accounts: ", "ci releases 'shop'", "no application", "api"),
    ),
    "a login that would become one that only releases": (
        "users",
        fake(machine(root="", sudo="yes", user="ci"), users_accounts=[CI]),
        ("users_accounts: ", "'ci'", "another user"),
    ),
    "a stranger on PostgreSQL's port": (
        "preflight",
        fake(
            machine() | {LISTENERS: ["443|caddy|caddy.service", "5432|docker-proxy|docker.service"]}
        ),
        ("port 5432: ", "docker-proxy (docker.service)", "postgresql@17-main.service"),
    ),
    "the vendors' packages": (
        "apt",
        fake(machine(), apt_source="upstream"),
        ("apt_source: ", "distro"),
    ),
    "a foreign daemon.json": (
        "docker",
        fake(machine() | {DAEMON_JSON: ["{", '  "bip": "172.26.0.1/16"', "}"]}),
        ("docker_daemon: ", "/etc/docker/daemon.json"),
    ),
    "a pool of addresses in which the server has neighbours": (
        "docker",
        fake(machine(DEBIAN_13, "network=10.0.0.0/8", "network=10.210.7.9/20")),
        ("docker_address_pool: 10.210.0.0/16 overlaps 10.0.0.0/8", "shares with its neighbours"),
    ),
    "another Docker engine": (
        "docker",
        fake(machine(DEBIAN_13, "engine=docker-ce", "engine=containerd.io")),
        ("apt_source: ", "docker-ce, containerd.io", "remove that first"),
    ),
    "another Docker engine below the platform": (
        "../deploy",
        fake(machine(DEBIAN_13, "engine=podman-docker")),
        ("apt_source: ", "podman-docker"),
    ),
    "a foreign Caddyfile": (
        "caddy",
        fake(machine(caddyfile="foreign")),
        ("app_domain: ", "/etc/caddy/Caddyfile", "move it away"),
    ),
    "a foreign Caddyfile below the platform": (
        "../deploy",
        fake(machine(caddyfile="foreign")),
        ("app_domain: ", "/etc/caddy/Caddyfile"),
    ),
    "a snippet that is not there": (
        "caddy",
        fake(machine(), app_snippet="no/where.caddy"),
        ("app_snippet: ", "cannot read 'no/where.caddy'"),
    ),
    "a snippet that is no text": (
        "caddy",
        fake(machine(), app_snippet=".venv/bin/caddy"),
        ("app_snippet: ", "cannot read '.venv/bin/caddy' (not a text file)"),
    ),
    "a root of no authority": (
        "caddy",
        fake(machine(), caddy_acme_ca_root="LICENSE"),
        ("caddy_acme_ca_root: ", "caddy_acme_ca is empty"),
    ),
    "a root that is no certificate": (
        "caddy",
        fake(machine(), caddy_acme_ca="https://ca.acme.test/d", caddy_acme_ca_root="LICENSE"),
        ("caddy_acme_ca_root: ", "'LICENSE' is no certificate in PEM"),
    ),
    "a header of two lines": (
        "caddy",
        fake(machine(), app_headers={"X-Mine": "a\nb"}),
        ("app_headers.X-Mine: ", "line break"),
    ),
    "a guard of nothing": (
        "caddy",
        fake(machine(), app_guards=[{"path": "/admin/*"}]),
        ("app_guards.0: ", "/admin/*", "neither allow nor users"),
    ),
    "a redirect to itself": (
        "caddy",
        fake(machine(), app_redirects=["api.terrafirma.test"]),
        ("app_redirects: ", "'api.terrafirma.test' is there twice"),
    ),
    "a foreign cluster of the same version": (
        "postgres",
        fake(machine(DEBIAN_13, "cluster=17/main")),
        ("postgres_adopt: ", "17/main", "not ours", "True"),
    ),
    "a foreign cluster of the same version before anything else": (
        "preflight",
        fake(machine(DEBIAN_13, "cluster=17/main", "cluster=17/test", "own=17/test")),
        ("postgres_adopt: ", "17/main", "not ours", "True"),
    ),
    "connections that do not fit": (
        "postgres",
        fake(machine() | {HARDWARE: ["memory=524288", "cores=2"]}),
        ("postgres_max_connections: ", "100 connections", "910 kB", "384 MB", "88 fit"),
    ),
    "connections that do not fit below the platform": (
        "../deploy",
        fake(machine() | {HARDWARE: ["memory=2097152", "cores=4"]}, postgres_max_connections=500),
        ("postgres_max_connections: ", "500 connections", "1536 MB", "376 fit"),
    ),
    "connections that the applications would use up": (
        "postgres",
        fake(machine(), postgres_max_connections=49),
        ("postgres_max_connections: ", "49 is too few", "api 4 replicas x 5 x 2", "50 or more"),
    ),
    "a limit that an application would run into": (
        "app",
        fake(machine(), postgres_roles=[{"name": "api", "connection_limit": 39}]),
        ("postgres_roles: ", "api: connection_limit 39", "set it to 40 or more"),
    ),
    "a password that nobody gave": (
        "postgres",
        fake(machine(), postgres_roles=[{"name": "api", "password": "env:TF_NO_SUCH_PASSWORD"}]),
        ("postgres_roles: ", "api: TF_NO_SUCH_PASSWORD is not set", "16 to 200"),
    ),
    "a password for nobody": (
        "postgres_rotate",
        fake(machine()),
        ("postgres_rotate: ", "'' is no role that logs in", "give one of api with --data"),
    ),
    "a password for an unknown role": (
        "postgres_rotate",
        fake(machine(), postgres_rotate="shop"),
        ("postgres_rotate: ", "'shop' is no role that logs in"),
    ),
    "a password for a role that needs none": (
        "postgres_rotate",
        fake(
            machine(),
            postgres_rotate="team",
            postgres_roles=[{"name": "api"}, {"name": "team", "login": False}],
        ),
        ("postgres_rotate: ", "'team' is no role that logs in", "give one of api with"),
    ),
    "a password that is chosen elsewhere": (
        "postgres_rotate",
        fake(
            machine(),
            postgres_rotate="api",
            postgres_roles=[{"name": "api", "password": "env:API_PASSWORD"}],
        ),
        ("postgres_rotate: ", "env:API_PASSWORD", "change it there"),
    ),
    "nothing to drop": (
        "postgres_drop",
        fake(machine(), postgres_confirm="old"),
        ("postgres_drop: ", "--data postgres_drop=NAME", "--data postgres_drop_role=NAME"),
    ),
    "a database and a role to drop": (
        "postgres_drop",
        fake(
            machine(), postgres_drop="old", postgres_drop_role="old_owner", postgres_confirm="old"
        ),
        ("postgres_drop: ", "one database with", "or one role with"),
    ),
    "a database and a role of that name to drop": (
        "postgres_drop",
        fake(machine(), postgres_drop="old", postgres_drop_role="old", postgres_confirm="old"),
        ("postgres_drop: ", "one database with", "or one role with"),
    ),
    "a database of PostgreSQL's own to drop": (
        "postgres_drop",
        fake(machine(), postgres_drop="postgres", postgres_confirm="postgres"),
        ("postgres_drop: ", "'postgres' is reserved by PostgreSQL"),
    ),
    "a role of PostgreSQL's own to drop": (
        "postgres_drop",
        fake(machine(), postgres_drop_role="postgres", postgres_confirm="postgres"),
        ("postgres_drop_role: ", "'postgres' is reserved by PostgreSQL"),
    ),
    "a new password for the superuser": (
        "postgres_rotate",
        fake(machine(), postgres_rotate="postgres"),
        ("postgres_rotate: ", "'postgres' is reserved by PostgreSQL"),
    ),
    "a database that is dropped without a second word": (
        "postgres_drop",
        fake(machine(), postgres_drop="old"),
        ("postgres_confirm: ", "'' is not 'old'", "--data postgres_confirm=old"),
    ),
    "a database that is dropped with another word": (
        "postgres_drop",
        fake(machine(), postgres_drop="old", postgres_confirm="yes"),
        ("postgres_confirm: ", "'yes' is not 'old'"),
    ),
    "a role that is dropped with another word": (
        "postgres_drop",
        fake(machine(), postgres_drop_role="old", postgres_confirm="older"),
        ("postgres_confirm: ", "'older' is not 'old'", "--data postgres_confirm=old"),
    ),
    "a database that is still declared": (
        "postgres_drop",
        fake(machine(), postgres_drop="api", postgres_confirm="api"),
        ("postgres_drop: ", "api is in the data: take it out first, and run deploy.py"),
    ),
    "a role that is still declared": (
        "postgres_drop",
        fake(machine(), postgres_drop_role="api", postgres_confirm="api"),
        ("postgres_drop_role: ", "api is in the data: take it out first, and run deploy.py"),
    ),
    "an upgrade without room": (
        "postgres_upgrade",
        fake(
            machine(DEBIAN_13, "cluster=15/main", "own=15/main", "offered=15")
            | {
                command(UpgradeState, old=15, new=17): [
                    "online=yes",
                    "size=2048000",
                    "free=3200000",
                    *("type=xfs", "type=ext2/ext3"),
                ]
            }
        ),
        ("postgres_upgrade: ", "3125 MB are free", "3224 MB are needed: 2000 MB of data", "1024"),
    ),
    "an upgrade without an extension": (
        "postgres_upgrade",
        fake(
            machine(DEBIAN_13, "cluster=15/main", "own=15/main", "offered=15")
            | {
                command(UpgradeState, old=15, new=17): [
                    *("online=yes", "size=2000", "free=9000000"),
                    *("package=postgresql-17-cron", "missing=postgresql-17-cron"),
                ]
            }
        ),
        ("postgres_upgrade: ", "postgresql-17-cron", "drop the extension"),
    ),
    "an upgrade of a cluster with a tablespace inside": (
        "postgres_upgrade",
        fake(
            machine(DEBIAN_13, "cluster=15/main", "own=15/main", "offered=15")
            | {
                command(UpgradeState, old=15, new=17): [
                    *("online=yes", "size=2000", "free=9000000"),
                    "inside=/var/lib/postgresql/15/main/far",
                ]
            }
        ),
        ("postgres_upgrade: ", "in /var/lib/postgresql/15/main/far is inside", "move it out"),
    ),
    "an upgrade of a cluster that is down": (
        "postgres_upgrade",
        fake(machine(DEBIAN_13, "cluster=15/main", "own=15/main", "offered=15")),
        ("postgres_upgrade: ", "15/main does not run", "systemctl start postgresql@15-main"),
    ),
    "an upgrade to what the way back left": (
        "postgres_upgrade",
        fake(
            machine(
                DEBIAN_13,
                *("cluster=15/main", "own=15/main", "cluster=17/main", "own=17/main"),
                "retired=17/main",
            )
        ),
        ("postgres_upgrade: ", "17/main is in the way", "postgres_upgrade=clean"),
    ),
    "an upgrade beside somebody else's cluster": (
        "postgres_upgrade",
        fake(machine(DEBIAN_13, "cluster=15/main", "own=15/main", "cluster=17/main")),
        ("postgres_adopt: ", "17/main", "not ours"),
    ),
    "an upgrade that is going on": (
        "postgres_upgrade",
        fake(machine(DEBIAN_13, "cluster=15/main", "own=15/main", upgrading="yes")),
        ("postgres_upgrade: ", "going on there", "tail -f"),
    ),
    "an upgrade that is going on below the platform": (
        "../deploy",
        fake(machine(DEBIAN_13, "cluster=15/main", "own=15/main", upgrading="yes")),
        ("postgres_upgrade: ", "going on there"),
    ),
    "a distribution that was upgraded": (
        "../deploy",
        fake(machine(DEBIAN_13, "cluster=15/main", "own=15/main", "offered=15")),
        ("postgres_version: ", "15/main", "17", "tasks/postgres_upgrade.py"),
    ),
    "a kind of disk that there is not": (
        "postgres",
        fake(machine(), postgres_disk="nvme"),
        ("postgres_disk: ", "'ssd' or 'hdd'"),
    ),
    "a login that would be locked out by its password": (
        "sshd",
        fake(machine(root="", sudo="yes", user="me"), ssh_password="s3cret"),
        ("sshd_password_authentication: ", "with a key"),
    ),
    "a root that would be locked out by its password": (
        "sshd",
        fake(machine(), ssh_password="s3cret"),
        ("sshd_password_authentication: ", "with a key"),
    ),
    "a root whose password is nowhere enough": (
        "sshd",
        fake(machine(), ssh_password="s3cret", sshd_password_authentication=True),
        ("sshd_password_authentication: ", "with a key"),
    ),
    "an account of the system": (
        "users",
        fake(
            machine()
            | {
                ACCOUNTS: [
                    "asked|prod",
                    "account|prod|prod|prod:x:998:998::/var/lib/prod:/usr/sbin/nologin",
                ]
            }
        ),
        ("users_accounts: ", "'prod'", "another name"),
    ),
    "a login that would lose its keys": (
        "users",
        fake(machine(root="", sudo="yes", user="ingres")),
        ("users_accounts: ", "'ingres'", "another user"),
    ),
    "an application on Debian 12": (
        "app",
        fake(machine(DEBIAN_12)),
        ("app_source: ", "Debian GNU/Linux 12 (bookworm)", "Debian 13 or Ubuntu 24.04"),
    ),
    "an application without its database": (
        "app",
        fake(machine(), app_database="shop"),
        ("app_database: ", "'shop' of api", "postgres_databases (api)"),
    ),
    "an application whose role does not come in": (
        "app",
        fake(machine(), postgres_roles=[{"name": "api"}, {"name": "web"}], app_role="web"),
        ("app_role: ", "'web' of api", "log in to api (api)"),
    ),
    "an application whose role is a group": (
        "app",
        fake(
            machine(),
            postgres_roles=[{"name": "api", "login": False}, {"name": "web"}],
            postgres_databases=[{"name": "api", "owner": "api", "access": {"web": "write"}}],
        ),
        ("app_role: ", "'api' of api", "log in to api (web)"),
    ),
    "an application without its network": (
        "app",
        fake(machine(), app_network="jobs"),
        ("app_network: ", "'jobs' of api", "docker_networks (apps)"),
    ),
    "an application on PostgreSQL's port": (
        "app",
        fake(machine(), app_port=5400),
        ("app_port: ", "api needs 5400-5527, but 5432 is PostgreSQL's (postgres_port)"),
    ),
    "an application of two kinds": (
        "app",
        fake(machine(), app_image="api:1"),
        ("app_image: ", "api has a source too: it is one or the other"),
    ),
    "an application on another's ports below the platform": (
        "../deploy",
        fake(machine(), app_more=[SHOP | {"port": 8127}]),
        ("app_port: ", "shop begins at 8127, but api has 8000 to 8127; set it to 8128 or more"),
    ),
    "an application beyond the last port": (
        "app",
        fake(machine(), app_port=65409),
        ("app_port: ", "api has 65409 to 65536, but 65535 is the last"),
    ),
    "a compose file that there is not below the platform": (
        "../deploy",
        fake(machine(), app_compose=["compose.yaml"]),
        ("app_compose: ", "'examples/api' has no file 'compose.yaml'"),
    ),
    "a source below a home of nobody": (
        "app",
        fake(machine(), app_source="~nobody-here/api"),
        ("app_source: ", "'~nobody-here/api' is not a directory with a Dockerfile"),
    ),
    "an image that is none": (
        "app",
        fake(machine(), app_source="", app_image="registry.acme.com/Api"),
        ("app_image: ", "no image, like registry.example.com/team/api:1.2"),
    ),
    "a registry without its password": (
        "app",
        fake(machine(), app_source="", app_image="api:1", app_registry_user="ci"),
        ("app_registry_password: ", "registry_user and this belong together"),
    ),
    "a secret in the place of its source": (
        "../deploy",
        fake(machine(), app_secrets={"token": "s3cret-itself"}),
        ("app_secrets.token: ", "use 'born' (made on the server), 'env:NAME'"),
    ),
    "a guard that guards nothing": (
        "caddy",
        fake(machine(), app_guards=[{"path": "/admin/*"}]),
        ("app_guards.0: ", "neither allow nor users"),
    ),
    "an application that runs as nobody": (
        "app",
        fake(machine(), app_user=""),
        ("app_user: ", "name one of users_accounts"),
    ),
    "an application of an unknown account": (
        "app",
        fake(machine(), app_user="shop"),
        ("app_user: ", "'shop' of api", "users_accounts"),
    ),
    "nothing to go back with": (
        "rollback",
        fake(machine()),
        ("app_rollback: ", "'' is none of api", "--data app_rollback=APPLICATION"),
    ),
    "an unknown application to go back with": (
        "rollback",
        fake(machine(), app_rollback="shop:0123456789ab"),
        ("app_rollback: ", "'shop' is none of api"),
    ),
    "a release that is none to go back to": (
        "rollback",
        fake(machine(), app_rollback="api:last"),
        ("app_rollback: ", "'api:last' does not match"),
    ),
    "a pooler on PostgreSQL's port": (
        "pgbouncer",
        fake(machine(), **POOLED, pgbouncer_port=5432),
        ("pgbouncer_port: ", "5432 is PostgreSQL's (postgres_port)"),
    ),
    "a pooler on an application's port": (
        "app",
        fake(machine(), **POOLED, pgbouncer_port=8003),
        ("pgbouncer_port: ", "8003 is one of api's 8000-8127 (app_port)"),
    ),
    "a pooler on an application's port below the platform": (
        "../deploy",
        fake(machine(), **POOLED, pgbouncer_port=8127),
        ("pgbouncer_port: ", "8127 is one of api's 8000-8127 (app_port)"),
    ),
    "a stranger on the pooler's port": (
        "preflight",
        fake(machine() | {POOLED_LISTENERS: ["6432|nc|"]}, **POOLED),
        ("port 6432: ", "nc (in no unit)", "pgbouncer.service"),
    ),
    "an application through no pooler": (
        "app",
        fake(machine(), app_pgbouncer=True),
        ("app_pgbouncer: ", "api", "pgbouncer_enabled is False"),
    ),
    "the end of a pooler that an application uses": (
        "pgbouncer",
        fake(machine(DEBIAN_13, "pooler=ours"), app_pgbouncer=True),
        ("app_pgbouncer: ", "api", "pgbouncer_enabled is False"),
    ),
    "a pooler of somebody else": (
        "pgbouncer",
        fake(machine() | {command(ForeignPooler): ["foreign"]}, **POOLED),
        ("pgbouncer_enabled: ", "/etc/pgbouncer/pgbouncer.ini", "not ours", "move it away"),
    ),
    **{
        f"pools that do not fit beside {task}": (
            task,
            fake(machine(), **POOLED, pgbouncer_pool_size=51),
            (
                "postgres_max_connections: ",
                "100 is too few: api 4 replicas x 5 x 2 releases = 40, 1 pools of PgBouncer = 51",
                "set it to 152 or more, or lower app_connections and pgbouncer_pool_size",
            ),
        )
        for task in ("postgres", "app", "../deploy")
    },
    "pools alone that do not fit": (
        "postgres",
        fake(machine(), **POOLED, app_pgbouncer=True, pgbouncer_pool_size=91),
        (
            "postgres_max_connections: ",
            "100 is too few: 1 pools of PgBouncer = 91, 91 while a password is renewed, ",
            "set it to 192 or more",
            "or lower pgbouncer_pool_size",
        ),
    ),
    "a database of the console's name": (
        "pgbouncer",
        fake(machine(), **POOLED, postgres_databases=[{"name": "pgbouncer", "owner": "api"}]),
        ("postgres_databases: ", "'pgbouncer' is the name of PgBouncer's console"),
    ),
    "a value that makes no sense": (
        "../deploy",
        fake(machine(), app_replicas=0, users_accounts=[{"name": "root"}]),
        ("app_replicas: ", "greater than or equal to 1"),
    ),
}


@pytest.fixture(scope="module")
def refused(pyinfra: Pyinfra) -> dict[str, CompletedProcess[str]]:
    return pyinfra.call_all(
        {
            what: ["@fake/host", f"tasks/{task}.py", "-y", *host]
            for what, (task, host, _) in REFUSALS.items()
        }
    )


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses_in_one_line_before_anything_changes(
    refused: dict[str, CompletedProcess[str]], what: str
) -> None:
    message = refusal(refused[what])
    first, *more = REFUSALS[what][2]
    assert message.startswith(f"@fake/host: {first}")
    for part in more:
        assert part in message


def test_says_that_it_waits_for_cloud_init(refused: dict[str, CompletedProcess[str]]) -> None:
    assert "Waiting for cloud-init" in refused["cloud-init never ends"].stderr


def test_a_password_is_not_repeated(refused: dict[str, CompletedProcess[str]]) -> None:
    for result in refused.values():
        assert "s3cret" not in result.stdout + result.stderr


# --- what they write ------------------------------------------------------------------------------


def told(result: CompletedProcess[str], host: str = "host", name: str = "api") -> dict[str, Any]:
    """What the program on the host is told of an application."""
    text = written(result, f"/etc/terrafirma/apps/{name}.json", host)
    answer: dict[str, Any] = json.loads(text)
    return answer


def test_what_is_told_of_an_application_is_its_own_affair(pyinfra: Pyinfra, inventory: Any) -> None:
    """Else a new application would release all others anew."""
    hosts = inventory(
        one=(machine(), {}),
        more=(machine(), {"app_more": [SHOP]}),
        other=(machine(), {"app_replicas": 2}),
    )
    result = pyinfra.call(hosts, "tasks/app.py", "--dry", "--diff")
    assert told(result, "more") == told(result, "one")
    assert told(result, "more", "shop")["slots"] == {"blue": 9000, "green": 9064}
    assert told(result, "other") == told(result, "one") | {"replicas": 2}


# Whatever is not everybody's to read, or to enter: its mode, and whose it is.
CLOSED = {
    "/etc/borgmatic/config.yaml": "600 root:root",
    "/etc/borgmatic/known_hosts": "600 root:root",
    # It has the hashes of the passwords of `guards`.
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
# How a command says where something is put, with which mode, and whose it is: whoever runs it, if
# it does not say so.
PUTS = [
    r"(?:path|file)=(?P<path>[^ ;]+) ?;.* chown (?P<owner>\S+) \S+ && chmod (?P<mode>\d+) ",
    r".*runuser -u (?P<owner>\S+) -- sh -c .* chmod (?P<mode>\d+) .* sh (?P<path>/\S+)$",
    r"install -d -m (?P<mode>\d+) -o (?P<user>\S+) -g (?P<group>\S+) (?P<path>/\S+)$",
    r"install -d -m (?P<mode>\d+) (?P<path>/\S+) ",
]


def test_what_is_not_for_everybody_is_closed(pyinfra: Pyinfra) -> None:
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


# What the program on the host says of `api`; whether a release is asked for, what is said of it.
STATES: dict[str, tuple[dict[str, Any] | None, bool, str]] = {
    "bare": (None, True, ""),
    "first": ({"serving": ""}, True, ""),
    "another": ({}, True, ""),
    "scaled": ({"serving": "ba9876543210"}, True, ""),
    "current": ({"serving": "ba9876543210", "current": True}, False, ""),
    "withdrawn": (
        {"withdrawn": True, "current": True},
        False,
        "api: release ba9876543210 was taken back, and 0123456789ab serves: change it",
    ),
    "withdrawn_and_other_settings": (
        {"withdrawn": True},
        True,
        "api: release ba9876543210 was taken back, and 0123456789ab serves: change it",
    ),
    "hung": (
        {"silent": ["api-blue-api-1 is paused"]},
        True,
        "api: api-blue-api-1 is paused",
    ),
    "maintained": (
        {"current": True, "notes": ["maintenance of api is on"]},
        False,
        "api: maintenance of api is on",
    ),
    "unknown": (
        {"wanted": "", "trouble": "registry.acme.com: no route to host"},
        True,
        "api: whether it is current is not known: registry.acme.com: no route to host",
    ),
}


def test_a_release_is_asked_for_where_another_one_serves(pyinfra: Pyinfra, inventory: Any) -> None:
    state = {
        "serving": "0123456789ab",
        "wanted": "ba9876543210",
        "withdrawn": False,
        "current": False,
        "trouble": "",
    }
    question = command(ReleaseStatus, app="api")
    hosts = inventory(
        **{
            name: (machine() | ({question: [json.dumps(state | said)]} if said else {}), {})
            for name, (said, _, _) in STATES.items()
        }
    )
    result = pyinfra.call(hosts, "tasks/app.py", "-y", "-vv")
    assert result.returncode == 0, result.stderr
    (release,) = [
        one
        for one in json.loads(result.stdout)["results"]["operations"]
        if one["name"] == "Release api, 4 replicas"
    ]
    asked = {f"@fake/{name}" for name, (_, asked, _) in STATES.items() if asked}
    assert set(release["success"]) == asked
    assert set(release["no_change"]) == {f"@fake/{name}" for name in STATES} - asked
    # What serves in the place of what was taken back is refreshed, not replaced by that.
    for name, verb in (("withdrawn_and_other_settings", "refresh"), ("another", "release")):
        done = [one for one in commands(result, name) if one.startswith(f"{HOST_PROGRAM} ")]
        assert [one.split()[1] for one in done if " --by " in one] == [verb]
    for name, (_, _, words) in STATES.items():
        assert len(re.findall(rf"@fake/{name}\]\S* .*{words or 'taken back'}", result.stderr)) == (
            1 if words else 0
        )


def test_a_plan_has_a_release_where_something_of_it_is_to_change(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    """Though what serves is all that the host has been told of so far."""
    data = {"app_secrets": {"token": "born"}}
    settings = of(App, **data)
    (api,) = settings.applications
    text = description(api, settings, of(Users))
    file, source = "/etc/terrafirma/apps/api.json", uploaded_source(api)
    state = {"serving": "0123456789ab", "wanted": "0123456789ab", "current": True}
    state |= {"withdrawn": False, "trouble": ""}
    secrets = command(AppSecrets, directory="/etc/terrafirma/secrets/app/api")
    right: Answers = {
        secrets: [],
        "echo no account": ["right"],
        command(PathStates, paths=[source]): [f"700|root|root|directory|{source}"],
        command(PathStates, paths=[file]): [
            f"600|root|root|regular file|{file}",
            f"{sha256(text.encode()).hexdigest()}  -",
        ],
        command(ReleaseStatus, app="api"): [json.dumps(state)],
    }
    # What differs from that; the step that is planned, and a release after it.
    differences: dict[str, tuple[Answers, str]] = {
        "secret": ({secrets: ["wrong token"]}, "Give api its secrets"),
        "url": ({"echo no account": ["wrong"]}, "Give api the address of its database"),
        "source": ({command(PathStates, paths=[source]): []}, "Upload the source of api"),
        "description": ({command(PathStates, paths=[file]): []}, "Describe api"),
    }
    hosts = inventory(
        converged=(machine() | right, data),
        **{name: (machine() | right | but, data) for name, (but, _) in differences.items()},
    )
    plan = pyinfra.run(hosts, "tasks/app.py", "--dry")["plan"]
    change = {one["name"]: set(one["hosts_with_change"]) for one in plan}
    for name, (_, step) in differences.items():
        assert change[step] == {f"@fake/{name}"}
    assert change["Release api, 4 replicas"] == {f"@fake/{name}" for name in differences}


def test_what_no_release_puts_right_ends_the_run(pyinfra: Pyinfra) -> None:
    """And is in the plan, with its words."""
    state = {
        "serving": "0123456789ab",
        "wanted": "0123456789ab",
        "withdrawn": False,
        "trouble": "",
        "current": True,
        "silent": [],
        "troubles": ["https://api.test/ answers 503"],
        "notes": [],
    }
    host = fake(machine() | {command(ReleaseStatus, app="api"): [json.dumps(state)]})
    plan = pyinfra.call("@fake/host", "tasks/app.py", "--dry", *host)
    assert "api: https://api.test/ answers 503" in plan.stderr
    result = pyinfra.call("@fake/host", "tasks/app.py", "-y", "-vv", *host)
    assert "api does not answer: https://api.test/ answers 503" in result.stderr


def test_releases_are_shown_and_nothing_changes(pyinfra: Pyinfra) -> None:
    shown = ["api: 4 replicas of 0123456789ab", "  2026-01-31T12:00:00  release   0123456789ab"]
    question = f"test ! -x {HOST_PROGRAM} || {HOST_PROGRAM} releases"
    answers = machine() | {question: shown}
    result = pyinfra.call("@fake/host", "tasks/releases.py", "-y", *fake(answers))
    assert result.returncode == 0, result.stderr
    assert "\n".join(shown) in result.stderr
    assert json.loads(result.stdout)["results"]["operations"] == []
    bare = pyinfra.call("@fake/host", "tasks/releases.py", "--dry", *fake(machine()))
    assert "no application" in bare.stderr


def test_daemon_json_always_carries_the_mark_by_which_it_is_known(pyinfra: Pyinfra) -> None:
    labels = fake(machine(), docker_daemon={"labels": ["rack=7"]})
    result = pyinfra.call("@fake/host", "tasks/docker.py", "--dry", "--diff", *labels)
    if result.returncode:
        assert "docker_daemon" in refusal(result)
    else:
        assert "managed-by=terrafirma" in result.stderr


IPV6 = {"ipv6": True, "fixed-cidr-v6": "fd00:c0de:1::/64"}
DOCKER_DROP_IN = "/etc/systemd/system/docker.service.d/terrafirma.conf"


def test_docker0s_ipv6_address_is_of_use_only_where_it_has_one(pyinfra: Pyinfra) -> None:
    task = ("tasks/docker.py", "--dry", "--diff")
    with_it = pyinfra.call("@fake/host", *task, *fake(machine(), docker_daemon=IPV6))
    assert "ExecStartPost=-/bin/sh -c 'ip -6 " in written(with_it, DOCKER_DROP_IN)
    without = written(pyinfra.call("@fake/host", *task, *fake(machine())), DOCKER_DROP_IN)
    assert "ip -6" not in without


def test_no_setting_of_the_engine_undoes_the_design(pyinfra: Pyinfra) -> None:
    """On a bare host, too, where no engine could refuse it."""
    calls = {
        key: ("@fake/host", "tasks/docker.py", "-y", *fake(machine(), docker_daemon={key: value}))
        for key, value in {
            "hosts": ["tcp://0.0.0.0:2375"],
            "iptables": False,
            "data-root": "/srv/docker",
            "userns-remap": "default",
            "userland-proxy": True,
            "bip": "10.9.0.1/24",
        }.items()
    }
    for key, result in pyinfra.call_all(calls).items():
        assert f"docker_daemon: {key} cannot be set: " in refusal(result)


MISSING_PROFILE = {"seccomp-profile": "/etc/docker/seccomp.json"}


@pytest.mark.parametrize(
    ("kind", "settings", "more", "words"),
    [
        (DEBIAN_12, {"proxies": {}}, {}, "proxies is known to Docker 23.0 and newer"),
        (DEBIAN_13, MISSING_PROFILE, {}, "seccomp.json on the host is not there, or no profile"),
        (
            DEBIAN_13,
            MISSING_PROFILE,
            {command(FileContents, path="/etc/docker/seccomp.json"): ["{", "broken"]},
            "seccomp.json on the host is not there, or no profile",
        ),
        (
            DEBIAN_13,
            {"runtimes": {"crun": {"path": "/usr/bin/crun"}}},
            {},
            "/usr/bin/crun on the host is no program",
        ),
    ],
)
def test_what_this_hosts_engine_would_not_start_with_is_refused(
    pyinfra: Pyinfra, kind: dict[str, str], settings: Any, more: Answers, words: str
) -> None:
    host = fake(machine(kind) | more, docker_daemon=settings)
    line = refusal(pyinfra.call("@fake/host", "tasks/docker.py", "-y", *host))
    assert f"docker_daemon: {words}" in line or words in line


RUNNING = ["ActiveState=active", "UnitFileState=enabled", "started"]
# What systemd says of the engine; whether it is started, or started anew.
ENGINES: dict[str, tuple[list[str], bool]] = {
    "never_ran": ([], True),
    "stopped": (["ActiveState=inactive", "UnitFileState=enabled", "started"], True),
    "failed": (["ActiveState=failed", "UnitFileState=enabled", "started"], True),
    "with_an_old_file": (
        [*RUNNING, "stale=/etc/docker/daemon.json"],
        True,
    ),
    "current": (RUNNING, False),
}


def test_the_engine_is_started_by_the_program_that_knows_a_way_back(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    """From a file with which it does not start, also where it does not run to begin with."""
    question = command(
        Unit,
        unit="docker.service",
        unit_files=[DOCKER_DROP_IN],
        restart_on=["/etc/docker/daemon.json"],
    )
    hosts = inventory(
        **{name: (machine() | {question: said}, {}) for name, (said, _) in ENGINES.items()}
    )
    result = pyinfra.call(hosts, "tasks/docker.py", "-y", "-vv")
    for name, (_, starts) in ENGINES.items():
        done = commands(result, name)
        assert not [line for line in done if re.search(r"systemctl (re)?start ", line)]
        by_program = [line for line in done if line.endswith(f"{DOCKER_ENGINE} restart")]
        assert len(by_program) == (1 if starts else 0), name


REACH = command(ContainerReach, names=["apps"])
ON_A_TARGET = (ROOT / "tests/unit/reach/docker-26.1.txt").read_text().splitlines()
FLUSHED = [line for line in ON_A_TARGET if "-A DOCKER" not in line]
HARDENED = [
    *(line for line in ON_A_TARGET if "ip_forward" not in line),
    "kernel=net/ipv4/ip_forward:0",
    "said_by=/etc/sysctl.d/99-hardening.conf",
]
# What is done to a host; what is done about it; what is said.
UNREACHED: dict[str, tuple[list[str], str, str]] = {
    "nothing": (ON_A_TARGET, "", ""),
    "flushed": (
        FLUSHED,
        "docker-engine restart",
        "127.0.0.1:8000 does not lead to",
    ),
    "hardened": (
        HARDENED,
        "sysctl --quiet --write net/ipv4/ip_forward=1 && /usr/local/lib/terrafirma/docker-engine",
        "/etc/sysctl.d/99-hardening.conf",
    ),
    "led away": (
        [re.sub(r"^route=(\S+) .*", r"route=\1 tun0", line) for line in ON_A_TARGET],
        "exit 1",
        "by tun0: take that route away",
    ),
    "shut on purpose": (
        [line.replace(":INPUT ACCEPT", ":INPUT DROP") for line in ON_A_TARGET],
        "",
        "A rule of your own, left alone: containers of apps",
    ),
    "without its network": (["missing=apps", *ON_A_TARGET], "docker network create apps", ""),
}


def test_what_does_not_lead_to_containers_is_put_right(pyinfra: Pyinfra, inventory: Any) -> None:
    names = {what: re.sub(r"\W", "_", what) for what in UNREACHED}
    hosts = inventory(
        **{names[what]: (machine() | {REACH: seen}, {}) for what, (seen, _, _) in UNREACHED.items()}
    )
    planned = pyinfra.call(hosts, "tasks/docker.py", "--dry")
    (step,) = [
        one for one in json.loads(planned.stdout)["plan"] if one["name"] == "Connect the containers"
    ]
    # The failure to come of one of them is in the plan, too.
    assert set(step["hosts_with_change"]) == {
        f"@fake/{names[what]}" for what, (_, done, _) in UNREACHED.items() if done
    }
    result = pyinfra.call(hosts, "tasks/docker.py", "-y", "-vv")
    for what, (_, done, words) in UNREACHED.items():
        sent = re.findall(rf"\[@fake/{names[what]}\] +>>> (.*)", result.stderr)
        _, _, after = "\n".join(sent).rpartition("iptables-save")
        assert done in after, what
        if words:
            assert words in planned.stderr, what


# What a host says in turn, the last of it from then on; whether all is right in the end.
IN_TURN: dict[str, tuple[list[list[str]], bool]] = {
    "settings_put_right": ([HARDENED, HARDENED, ON_A_TARGET], True),
    "settings_stay_wrong": ([HARDENED], False),
    "rules_made_anew": ([FLUSHED, FLUSHED, ON_A_TARGET], True),
    "rules_stay_away": ([FLUSHED], False),
}


def test_what_was_put_right_is_looked_at_again(pyinfra: Pyinfra, inventory: Any) -> None:
    fails = {"containers are not connected: ": {"success": False}}
    hosts = inventory(
        **{
            name: (machine() | {REACH: {"turns": turns}} | fails, {})
            for name, (turns, _) in IN_TURN.items()
        }
    )
    result = pyinfra.call(hosts, "tasks/docker.py", "-y")
    (step,) = [
        one
        for one in json.loads(result.stdout)["results"]["operations"]
        if one["name"] == "Connect the containers"
    ]
    right = {f"@fake/{name}" for name, (_, right) in IN_TURN.items() if right}
    assert set(step["success"]) == right
    assert set(step["error"]) == {f"@fake/{name}" for name in IN_TURN} - right


def test_a_login_with_a_password_that_stays_enough_goes_on(pyinfra: Pyinfra) -> None:
    me = machine(root="", sudo="yes", user="me")
    host = fake(me, ssh_password="s3cret", sshd_password_authentication=True)
    assert pyinfra.call("@fake/host", "tasks/sshd.py", "--dry", *host).returncode == 0


def test_a_foreign_cluster_is_taken_over_when_that_is_asked_for(pyinfra: Pyinfra) -> None:
    host = fake(machine(DEBIAN_13, "cluster=17/main"), postgres_adopt=True)
    for task in ("preflight", "postgres"):
        assert pyinfra.call("@fake/host", f"tasks/{task}.py", "--dry", *host).returncode == 0


# --- sites ----------------------------------------------------------------------------------------

BCRYPT = "$2b$05$CmPv0xRvR5sSyz9vWiX9mOK8jNmGCyjRvzcSjPdVlPV7TfJPAu9Mi"


@pytest.mark.parametrize(
    ("version", "delays"), [([], False), (["2.6.2"], False), (["v2.11.7 h1:x"], True)]
)
def test_a_site_is_as_the_installed_caddy_takes_it(
    pyinfra: Pyinfra, tmp_path: Path, version: list[str], delays: bool
) -> None:
    (tmp_path / "mine.caddy").write_text("redir /old /new\n")
    answers = machine() | {command(CaddyVersion): version}
    options = fake(
        answers,
        app_redirects=["www.terrafirma.test"],
        app_guards=[{"path": "/admin/*", "users": {"bob": BCRYPT}}],
        app_snippet=str(tmp_path / "mine.caddy"),
    )
    result = pyinfra.call("@fake/host", "tasks/caddy.py", "--dry", "--diff", *options)
    caddyfile = written(result, "/etc/caddy/Caddyfile")
    assert ("stream_close_delay 30s" in caddyfile) is delays
    assert "redir https://api.terrafirma.test{uri} 308" in caddyfile
    assert "redir /old /new" in caddyfile
    assert "path /admin /admin/*" in caddyfile
    # It is in the file, which is not everybody's, and in no output.
    assert "bob *MASKED*" in caddyfile
    assert BCRYPT not in result.stderr + result.stdout


def test_the_way_to_a_private_authority_is_put_before_the_sites_need_it(
    pyinfra: Pyinfra, tmp_path: Path
) -> None:
    file = tmp_path / "root.pem"
    path = ssl.get_default_verify_paths().cafile or ssl.get_default_verify_paths().openssl_cafile
    end = "-----END CERTIFICATE-----\n"
    file.write_text(Path(path).read_text().partition(end)[0] + end)
    told = {"caddy_acme_ca": "https://ca.terrafirma.test/d", "caddy_acme_ca_root": str(file)}
    result = pyinfra.call(
        "@fake/host", "tasks/caddy.py", "--dry", "--diff", *fake(machine(), **told)
    )
    root = "/etc/caddy/acme-ca-root.pem"
    assert "BEGIN CERTIFICATE" in written(result, root)
    assert f"acme_ca_root {root}" in written(result, "/etc/caddy/Caddyfile")
    assert result.stderr.index(f"Will create {root}") < result.stderr.index("/etc/caddy/Caddyfile")


@pytest.mark.parametrize("files", [["tasks/caddy.py"], ["tasks/preflight.py", "tasks/caddy.py"]])
def test_a_name_that_leads_elsewhere_is_said_once_and_stops_nothing(
    pyinfra: Pyinfra, files: list[str]
) -> None:
    names = command(Names, domains=["acme.com", "www.acme.com"])
    answers = machine() | {names: ["own 8.8.8.8/24", "name acme.com 9.9.9.9"]}
    more = {"app_domain": "acme.com", "app_redirects": ["www.acme.com"]}
    result = pyinfra.call("@fake/host", *files, "--dry", *fake(answers, **more))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("acme.com leads to 9.9.9.9, which is not the host (8.8.8.8)") == 1
    assert result.stderr.count("www.acme.com has no address") == 1


def test_names_that_no_authority_signs_are_not_looked_up(pyinfra: Pyinfra) -> None:
    result = pyinfra.call("@fake/host", "tasks/caddy.py", "--dry", "-vv", *fake(machine()))
    assert not [one for one in commands(result) if "getent ahosts" in one]


# --- the pooler -----------------------------------------------------------------------------------


def test_a_pooler_that_nobody_wants_costs_no_question(pyinfra: Pyinfra) -> None:
    bare = pyinfra.call("@fake/host", "tasks/pgbouncer.py", "-y", "-vv", *fake(machine()))
    # What kind of host it is, and nothing else.
    assert len(commands(bare)) == 1
    assert json.loads(bare.stdout)["results"]["operations"] == []


def test_a_pooler_that_is_no_longer_wanted_is_stopped(pyinfra: Pyinfra) -> None:
    runs = {command(Unit, unit="pgbouncer.service"): ["ActiveState=active", "started"]}
    host = fake(machine(DEBIAN_13, "pooler=ours") | runs)
    result = pyinfra.call("@fake/host", "tasks/pgbouncer.py", "-y", "-vv", *host)
    assert commands(result)[-1] == "systemctl disable --quiet --now pgbouncer.service"
    (operation,) = json.loads(result.stdout)["results"]["operations"]
    assert operation["name"] == "Stop PgBouncer, which is no longer enabled"
    assert operation["success"] == ["@fake/host"]


def test_the_pooler_has_postgresqls_rules_and_addresses(pyinfra: Pyinfra) -> None:
    roles = [{"name": "api"}, {"name": "web", "connection_limit": 7}, {"name": "other"}]
    databases = [
        {"name": "api", "owner": "api", "access": {"web": "write"}},
        {"name": "shop", "owner": "api"},
    ]
    answers = machine() | ON_172
    host = fake(
        answers,
        **POOLED,
        postgres_max_connections=140,
        postgres_roles=roles,
        postgres_databases=databases,
    )
    result = pyinfra.call("@fake/host", "tasks/pgbouncer.py", "--dry", "--diff", "-vv", *host)
    assert "listen_addr = localhost,172.17.0.1" in written(result, "/etc/pgbouncer/pgbouncer.ini")
    theirs = pyinfra.call("@fake/host", "tasks/postgres.py", "--dry", "--diff", *host)
    clients = [
        [line for line in written(run, path).splitlines() if line.endswith("scram-sha-256")]
        for run, path in (
            (result, "/etc/pgbouncer/hba.conf"),
            (theirs, "/etc/postgresql/17/main/pg_hba.conf"),
        )
    ]
    assert clients[0] == clients[1] != []
    visitors = {tuple(line.split()[1:3]) for line in clients[0]}
    assert visitors == {("api", "api,api~"), ("api", "web,web~"), ("shop", "api,api~")}
    pools = written(result, "/etc/pgbouncer/terrafirma.ini")
    assert re.findall(r"^(\w+) = host=", pools, re.MULTILINE) == ["api", "shop"]
    assert re.findall(r"^(\w+) = max_user_connections=(\d+)$", pools, re.MULTILINE) == [
        ("web", "7")
    ]
    # Only those that come in somewhere have a place in the user list.
    assert command(UserList, version=17, roles=["api", "web"]) in commands(result)


def test_old_poolers_do_not_follow_prepared_statements(pyinfra: Pyinfra, inventory: Any) -> None:
    hosts = inventory(
        trixie=(machine(), POOLED), bookworm=(machine(DEBIAN_12), {"app_source": "", **POOLED})
    )
    result = pyinfra.call(hosts, "tasks/pgbouncer.py", "--dry", "--diff")
    pools = "/etc/pgbouncer/terrafirma.ini"
    assert "max_prepared_statements = 200" in written(result, pools, "trixie")
    assert "max_prepared_statements" not in written(result, pools, "bookworm")


def test_the_pooler_follows_its_users_and_rules_by_a_reload(pyinfra: Pyinfra) -> None:
    """And is restarted for what it reads only as it starts."""
    unit = {
        "unit": "pgbouncer.service",
        "unit_files": ["/etc/systemd/system/pgbouncer.service.d/terrafirma.conf"],
        "restart_on": ["/etc/pgbouncer/pgbouncer.ini"],
        "reload_on": [
            *("/etc/pgbouncer/hba.conf", "/etc/pgbouncer/terrafirma.ini"),
            "/etc/pgbouncer/userlist.txt",
        ],
    }
    runs = ["ActiveState=active", "UnitFileState=enabled", "started"]
    for stale, ending in (
        ("stale_reload=/etc/pgbouncer/userlist.txt", "reload pgbouncer.service"),
        ("stale=/etc/pgbouncer/pgbouncer.ini", "restart pgbouncer.service"),
    ):
        answers = machine() | {command(Unit, **unit): [*runs, stale]}
        answers |= {command(UserList, version=17, roles=["api"]): ["right"]}
        result = pyinfra.call(
            "@fake/host", "tasks/pgbouncer.py", "-y", "-vv", *fake(answers, **POOLED)
        )
        assert ending in commands(result)[-1]


def test_an_application_is_given_the_way_that_it_asks_for(pyinfra: Pyinfra, inventory: Any) -> None:
    hosts = inventory(
        direct=(machine(), POOLED), pooled=(machine(), POOLED | {"app_pgbouncer": True})
    )
    result = pyinfra.call(hosts, "tasks/app.py", "--dry", "-vv", "--diff")
    assert result.returncode == 0, result.stderr
    for name, port in (("direct", 5432), ("pooled", 6432)):
        (asked,) = {
            url
            for line in commands(result, name)
            for url in re.findall(r"host\.docker\.internal:(\d+)/api", line)
        }
        assert asked == str(port)
    # It is a secret: the host itself sees that it changed.
    assert told(result, "direct") == told(result, "pooled")


# --- docker0 --------------------------------------------------------------------------------------

OURS = ["{", '  "bip": "172.26.0.1/16",', '  "labels": ["managed-by=terrafirma"]', "}"]
OURS_WITHOUT = ["{", '  "labels": ["managed-by=terrafirma"]', "}"]
SIX = "5: docker0    inet6 fd00::1/64 scope global nodad"
ON_172 = {
    DOCKER0: [
        "daemon=",
        "5: docker0    inet 172.17.0.1/16 brd 172.17.255.255 scope global docker0",
    ]
}
# What is on the host; what the data say; where docker0 is going to be.
BRIDGES: dict[str, tuple[Answers, dict[str, Any], str]] = {
    "nothing": ({}, {}, "10.210.0.1/24"),
    "its first subnet is used": (
        {NETWORKS: ["192.0.2.7/24", "10.210.0.9/24"]},
        {},
        "10.210.1.1/24",
    ),
    "a route to more than its first subnet": ({NETWORKS: ["10.210.0.0/22"]}, {}, "10.210.4.1/24"),
    "an address in its first subnet": ({NETWORKS: ["10.210.0.200"]}, {}, "10.210.1.1/24"),
    "a hole between used ones": (
        {NETWORKS: ["10.210.0.0/24", "10.210.2.0/24"]},
        {},
        "10.210.1.1/24",
    ),
    "a pool of one's own": (
        {NETWORKS: ["172.30.0.1/16"]},
        {"docker_address_pool": "172.30.0.0/15", "docker_subnet_size": 26},
        "172.31.0.1/26",
    ),
    "an engine": (ON_172, {}, "172.17.0.1/16"),
    "an engine whose network is used, by itself": (
        ON_172 | {NETWORKS: ["172.17.0.0/16", "10.210.0.0/24"]},
        {},
        "172.17.0.1/16",
    ),
    "an engine with both kinds of addresses": (
        {DOCKER0: [*ON_172[DOCKER0], SIX]},
        {},
        "172.17.0.1/16",
    ),
    # Docker takes IPv4 alone for it.
    "an engine with an address of IPv6 alone": ({DOCKER0: ["daemon=", SIX]}, {}, "10.210.0.1/24"),
    "a declared address": ({DAEMON_JSON: OURS}, {}, "172.26.0.1/16"),
    "a declared address and an engine that is elsewhere yet": (
        {DAEMON_JSON: OURS} | ON_172,
        {},
        "172.26.0.1/16",
    ),
    "a file of ours from before, and an engine": (
        {DAEMON_JSON: OURS_WITHOUT} | ON_172,
        {},
        "172.17.0.1/16",
    ),
}


def test_docker0_stays_where_it_is_or_takes_a_free_subnet(pyinfra: Pyinfra, inventory: Any) -> None:
    names = {what: re.sub(r"\W", "_", what) for what in BRIDGES}
    hosts = inventory(
        **{names[what]: (machine() | on, data) for what, (on, data, _) in BRIDGES.items()}
    )
    result = pyinfra.call(hosts, "tasks/docker.py", "--dry", "--diff")
    files = {
        what: json.loads(written(result, "/etc/docker/daemon.json", name))
        for what, name in names.items()
    }
    assert {what: content["bip"] for what, content in files.items()} == {
        what: bip for what, (_, _, bip) in BRIDGES.items()
    }
    for content in files.values():
        assert content["labels"] == ["managed-by=terrafirma"]


# --- whoever is connected keeps access ------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--sudo"]])
def test_sshd_goes_on_letting_in_whoever_is_connected(pyinfra: Pyinfra, more: list[str]) -> None:
    """With --sudo, too: root is not the one who is connected."""
    host = fake(machine(root="", sudo="yes", user="admin"))
    how = ("--dry", "--diff", "-vv")
    result = pyinfra.call("@fake/host", "tasks/sshd.py", *how, *more, *host)
    assert "AllowUsers admin dev ingres prod" in written(
        result, "/etc/ssh/sshd_config.d/00-terrafirma.conf"
    )
    assert "Machine (_sudo=False)" in result.stderr


SUDOERS = "/etc/sudoers.d/90-terrafirma-"


def test_an_account_that_is_no_longer_declared_keeps_its_sudo_while_it_is_connected(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    files = [f"{SUDOERS}{name}" for name in ("gone", "ingres", "old")]
    answers = {
        ACCOUNTS: [f"file|{file}" for file in files],
        "for path in /etc/sudoers.d/": [
            line for file in files for line in (f"440|root|root|regular file|{file}", f"{0:064}  -")
        ],
    }
    hosts = inventory(
        root=(machine() | answers, {}),
        old=(machine(user="old", root="", sudo="yes") | answers, {}),
        other=(machine(user="other", root="", sudo="yes") | answers, {}),
    )
    result = pyinfra.call(hosts, "tasks/users.py", "-y", "-vv")
    for user, removed in {
        "root": ["gone", "old"],
        "old": ["gone"],
        "other": ["gone", "old"],
    }.items():
        done = commands(result, user)
        assert [line for line in done if line.startswith("rm ")] == [
            f"rm -f {SUDOERS}{name}" for name in removed
        ]
        assert [line for line in done if line.startswith(f"path={SUDOERS}ingres ")]


def test_a_key_that_releases_does_nothing_else(pyinfra: Pyinfra) -> None:
    data = {"users_accounts": [CI | {"releases": ["api", "shop"]}], "app_more": [SHOP]}
    result = pyinfra.call(
        "@fake/host", "tasks/users.py", "-y", "--diff", "-vv", *fake(machine(), **data)
    )
    command = "/usr/local/bin/terrafirma forced api shop"
    keys = written(result, "/home/ci/.ssh/authorized_keys").splitlines()
    assert keys[1:] == [f'restrict,command="sudo -n {command}" {KEY}']
    *_, rule = written(result, f"{SUDOERS}ci").splitlines()
    assert rule == f"ci ALL=(root) NOPASSWD: {command}"


# --- PostgreSQL's settings ------------------------------------------------------------------------

EIGHT_GB = {HARDWARE: ["memory=8148804", "limit=max", "cores=4"]}
ON_210 = {
    DOCKER0: [
        "daemon=",
        "5: docker0    inet 10.210.0.1/24 brd 10.210.0.255 scope global docker0",
    ]
}


def server(result: CompletedProcess[str]) -> dict[str, str]:
    pairs = re.findall(r"^(\w[\w.]*) = (.*)$", written(result, SERVER_CONF), re.MULTILINE)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_postgresql_is_tuned_for_its_share_of_the_host(pyinfra: Pyinfra) -> None:
    host = fake(machine() | EIGHT_GB | ON_210)
    settings = server(pyinfra.call("@fake/host", "tasks/postgres.py", "--dry", "--diff", *host))
    expected = {
        "listen_addresses": "'localhost,10.210.0.1'",
        "port": "5432",
        "max_connections": "100",
        "password_encryption": "'scram-sha-256'",
        # 75 percent of 8148804 kB are 5952 MB.
        "shared_buffers": "1488MB",
        "effective_cache_size": "4464MB",
        "maintenance_work_mem": "372MB",
        "work_mem": "14108kB",
        "random_page_cost": "1.1",
        "max_parallel_workers": "4",
        "log_lock_waits": "on",
    }
    assert settings | expected == settings


def test_postgresql_listens_on_both_addresses_of_docker0(pyinfra: Pyinfra) -> None:
    host = fake(machine() | EIGHT_GB | {DOCKER0: [*ON_210[DOCKER0], SIX]})
    settings = server(pyinfra.call("@fake/host", "tasks/postgres.py", "--dry", "--diff", *host))
    assert settings["listen_addresses"] == "'localhost,10.210.0.1,fd00::1'"


def test_whoever_listens_on_docker0_listens_where_it_is_going_to_be(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    """Else no container would reach PostgreSQL between the next boot and the next run."""
    moving = ['daemon={"bip": "10.9.0.1/24"}', *ON_210[DOCKER0][1:]]
    networks = json.dumps([{"Name": "bridge", "IPAM": {"Config": [{"Subnet": "10.210.0.0/24"}]}}])
    answers = {DOCKER0: moving, command(DockerNetworks): [moving[0], "null", networks]}
    hosts = inventory(host=(machine() | EIGHT_GB | answers, POOLED))
    postgres, pgbouncer = (
        pyinfra.call(hosts, f"tasks/{task}.py", "--dry", "--diff")
        for task in ("postgres", "pgbouncer")
    )
    assert server(postgres)["listen_addresses"] == "'localhost,10.210.0.1,10.9.0.1'"
    ini = written(pgbouncer, "/etc/pgbouncer/pgbouncer.ini")
    assert "listen_addr = localhost,10.210.0.1,10.9.0.1\n" in ini
    for rules in (
        written(postgres, "/etc/postgresql/17/main/pg_hba.conf"),
        written(pgbouncer, "/etc/pgbouncer/hba.conf"),
    ):
        for network in ("10.210.0.0/24", "10.9.0.0/24"):
            assert f"host  api  api,api~  {network}  scram-sha-256\n" in rules


def test_huge_pages_are_for_hosts_with_much_memory(pyinfra: Pyinfra, inventory: Any) -> None:
    # 75 percent of 48 GB are 36 GB: 9 GB of shared_buffers, and a tenth more.
    much = {HARDWARE: [f"memory={48 * 1024**2}", "limit=max", "cores=4"]}
    hosts = inventory(eight=(machine() | EIGHT_GB, {}), much=(machine() | much, {}))
    result = pyinfra.call(hosts, "tasks/postgres.py", "-y", "--diff")
    path = "/etc/sysctl.d/60-terrafirma-postgres.conf"
    files = {name: written(result, path, name) for name in ("eight", "much")}
    assert "vm.nr_hugepages" not in files["eight"]
    assert "\nvm.nr_hugepages = 5069\n" in files["much"]


def test_extensions_are_installed_and_loaded(pyinfra: Pyinfra) -> None:
    database = {"name": "api", "owner": "api", "extensions": ["hstore", "pg_cron", "vector"]}
    host = fake(
        machine() | EIGHT_GB,
        postgres_databases=[database],
        postgres_packages=["postgresql-17-zzzzzz"],
    )
    settings = server(pyinfra.call("@fake/host", "tasks/postgres.py", "--dry", "--diff", *host))
    assert settings["shared_preload_libraries"] == "'pg_cron,pg_stat_statements'"
    done = commands(pyinfra.call("@fake/host", "tasks/postgres.py", "-y", "-vv", *host))
    (asked,) = {line for line in done if "dpkg-query" in line}
    words = asked.split()
    for package in ("cron", "pgvector", "zzzzzz"):
        assert f"postgresql-17-{package}" in words
    assert "logrotate" in words
    assert not any("hstore" in word or "contrib" in word for word in words)


def test_data_win_over_what_the_host_says(pyinfra: Pyinfra) -> None:
    host = fake(
        machine() | EIGHT_GB,
        postgres_disk="hdd",
        postgres_memory_percent=25,
        postgres_max_connections=50,
        postgres_settings={"work_mem": "4MB", "log_line_prefix": "%m it's \\", "jit": False},
    )
    settings = server(pyinfra.call("@fake/host", "tasks/postgres.py", "--dry", "--diff", *host))
    expected = {
        "listen_addresses": "'localhost'",
        "max_connections": "50",
        "shared_buffers": "496MB",
        "random_page_cost": "4",
        "effective_io_concurrency": "2",
        "work_mem": "'4MB'",
        "log_line_prefix": r"'%m it''s \\'",
        "jit": "off",
    }
    assert settings | expected == settings


SERVER = command(Server, version=17)
RESTART = ["max_connections", "port", "shared_buffers", "wal_level"]


def answer(pending: Sequence[str] = (), by_hand: Sequence[str] = ()) -> list[str]:
    return [json.dumps({"pending": pending, "restart": RESTART, "by_hand": by_hand})]


# What the file says else than it is going to; what the server says, None: there is none; whether it
# restarts, and whether something is undone.
RESTARTS: dict[str, tuple[dict[str, str], list[str] | None, bool, bool]] = {
    # Its first start is the right one.
    "no_cluster": ({}, None, False, False),
    # One that is down says nothing, and reads its file when it starts.
    "down": ({}, ["down"], False, False),
    "converged": ({}, answer(), False, False),
    "memory": ({"shared_buffers": "512MB"}, answer(), True, False),
    "connections": ({"max_connections": "200"}, answer(), True, False),
    "only_reloads": ({"work_mem": "4MB", "random_page_cost": "4"}, answer(), False, False),
    "no_longer_declared": ({"wal_level": "'minimal'"}, answer(), True, False),
    # A run died between the reload and the restart.
    "died": ({}, answer(["shared_buffers"]), True, False),
    "by_hand": ({}, answer(by_hand=["shared_buffers"]), True, True),
    "by_hand_reload": ({}, answer(by_hand=["work_mem"]), False, True),
    # Nobody restarted it since: undone, it waits for nothing.
    "by_hand_waiting": ({}, answer(["port"], by_hand=["port"]), False, True),
    "by_hand_waiting_and_more": ({}, answer(["port", "wal_level"], ["port"]), True, True),
    "by_hand_waiting_and_new": ({"port": "1"}, answer(["port"], ["port"]), True, True),
    # Nobody declared it: whoever set it has reasons.
    "by_hand_else": ({}, answer(by_hand=["wal_level"]), False, False),
}


def test_a_restart_is_announced_only_if_a_setting_asks_for_it(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    def cluster(present: dict[str, str], said: list[str] | None) -> Answers:
        if said is None:
            return {}
        values = {"max_connections": "100", "port": "5432", "shared_buffers": "1488MB"} | present
        lines = [f"{name} = {value}" for name, value in values.items()]
        return {
            SERVER: said,
            command(FileContents, path=SERVER_CONF): ["# Managed by x", "", "# a = b", *lines],
        }

    hosts = inventory(
        **{
            name: (machine() | EIGHT_GB | cluster(present, said), {})
            for name, (present, said, _, _) in RESTARTS.items()
        }
    )
    plan = pyinfra.run(hosts, "tasks/postgres.py", "--dry")["plan"]
    change = {one["name"]: set(one["hosts_with_change"]) for one in plan}
    for step, expected in (
        (
            "Restart it if a setting asks for that",
            {name for name, (_, _, restarts, _) in RESTARTS.items() if restarts},
        ),
        (
            "Undo what ALTER SYSTEM set",
            {name for name, (_, _, _, undone) in RESTARTS.items() if undone},
        ),
    ):
        assert change[step] == {f"@fake/{name}" for name in expected}


def test_postgresql_restarts_if_the_server_itself_says_so(pyinfra: Pyinfra, inventory: Any) -> None:
    """Whatever the file said before: the reload that read it is over."""
    hosts = inventory(
        none=(machine() | {SERVER: answer()}, {}),
        one=(machine() | {SERVER: answer(["shared_buffers"])}, {}),
        two=(machine() | {SERVER: answer(["port", "max_connections"])}, {}),
        # It is no longer what it was when the plan was made.
        by_hand=(machine() | {SERVER: answer(by_hand=["shared_buffers"])}, {}),
    )
    result = pyinfra.call(hosts, "tasks/postgres.py", "-y", "-vv")
    restart = "systemctl restart postgresql@17-main.service #"
    for name, expected in {
        "none": [],
        "one": [f"{restart} shared_buffers"],
        "two": [f"{restart} max_connections port"],
        "by_hand": [],
    }.items():
        done = commands(result, name)
        assert [line for line in done if line.startswith("systemctl restart ")] == expected


# --- kernel ---------------------------------------------------------------------------------------

BIND = [f"net.ipv{number}.ip_nonlocal_bind" for number in (4, 6)]
KERNEL = command(KernelSettings, names=BIND)
# What the kernel says of the two settings, None: it has no such one; what is set.
KERNELS: dict[str, tuple[list[int | None], list[str]]] = {
    "new": ([0, 0], [f"{BIND[0]}=1", f"{BIND[1]}=1"]),
    "as_wanted": ([1, 1], []),
    "one": ([1, 0], [f"{BIND[1]}=1"]),
    "without_ipv6": ([0, None], [f"{BIND[0]}=1"]),
    "without_ipv6_as_wanted": ([1, None], []),
}


def test_the_kernel_is_told_what_it_can_be_told(pyinfra: Pyinfra, inventory: Any) -> None:
    def kernel(values: list[int | None]) -> Answers:
        lines = [
            f"/proc/sys/{name.replace('.', '/')}={value}"
            for name, value in zip(BIND, values, strict=True)
            if value is not None
        ]
        return machine() | {KERNEL: lines}

    hosts = inventory(**{name: (kernel(values), {}) for name, (values, _) in KERNELS.items()})
    result = pyinfra.call(hosts, "tasks/postgres.py", "-y", "-vv")
    for name, (_, said) in KERNELS.items():
        done = [line for line in commands(result, name) if line.startswith("sysctl ")]
        assert done == ([f"sysctl --quiet --write {' '.join(said)}"] if said else [])


# --- many roles and databases ---------------------------------------------------------------------

MANY: dict[str, Any] = {
    "postgres_roles": [{"name": "api"}, *({"name": f"role_{number}"} for number in range(499))],
    "postgres_databases": [
        {"name": "api", "owner": "api"},
        *(
            {
                "name": f"db_{number}",
                "owner": f"role_{number}",
                "access": {f"role_{number + 200}": "read"},
                "extensions": ["hstore"],
            }
            for number in range(199)
        ),
    ],
}


def as_declared(data: dict[str, Any]) -> Answers:
    """The answers of a cluster that has all of `data`, and no table yet."""
    no = dict.fromkeys(
        ("superuser", "create_database", "create_role", "replication", "bypass_rls", "expires"),
        False,
    )
    yes = {"login": True, "inherit": True, "connection_limit": -1, "member_of": [], "settings": []}
    base = {"encoding": "UTF8", "locale": "C.UTF-8", "connection_limit": -1}
    base |= {"connectable": True, "template": False}
    none: dict[str, Any] = {"handed": [], "settings": [], "role_settings": {}}
    everywhere: dict[str, Any] = {"default_acl": []}
    roles = {one["name"]: no | yes for one in data["postgres_roles"]}
    databases: dict[str, Any] = {"postgres": base | none | {"owner": "postgres", "acl": []}}
    contents = [
        {"database": "postgres", "extensions": ["pg_stat_statements"], "schemas": {}} | everywhere
    ]
    for one in data["postgres_databases"]:
        name, owner, readers = one["name"], one["owner"], [*one.get("access", ())]
        acl = [(owner, right) for right in ("CREATE", "CONNECT", "TEMPORARY")]
        acl += [(reader, "CONNECT") for reader in readers]
        databases[name] = base | none | {"owner": owner, "acl": acl}
        public = {
            "owner": "pg_database_owner",
            "acl": [("public", "USAGE"), *((reader, "USAGE") for reader in readers)],
            "tables": 0,
            "sequences": 0,
            "table_acl": [],
            "sequence_acl": [],
            "of_extension": False,
            "handed": [],
            "default_acl": [
                (owner, kind, one, "SELECT", False) for one in readers for kind in "rS"
            ],
            "strangers": [],
        }
        extensions = ["plpgsql", *one.get("extensions", ())]
        contents.append(
            {"database": name, "extensions": extensions, "schemas": {"public": public}} | everywhere
        )
    return {
        command(Roles, version=17): [json.dumps(roles)],
        command(Databases, version=17): [json.dumps(databases)],
        command(Contents, version=17): [json.dumps(one) for one in contents],
        SERVER: answer(),
    }


ONE = {
    "postgres_roles": [{"name": "api"}],
    "postgres_databases": [{"name": "api", "owner": "api", "extensions": ["hstore"]}],
}


@pytest.mark.parametrize("how", ["--dry", "-y"])
def test_hundreds_of_databases_cost_no_question_and_no_command_more(
    pyinfra: Pyinfra, inventory: Any, how: str
) -> None:
    """Each is a round trip."""
    hosts = inventory(
        one=(machine(), ONE),
        many=(machine(), MANY),
        one_converged=(machine() | as_declared(ONE), ONE),
        many_converged=(machine() | as_declared(MANY), MANY),
    )
    result = pyinfra.call(hosts, "tasks/postgres.py", how, "-vv")
    for kind in ("", "_converged"):
        one, many = (commands(result, f"{which}{kind}") for which in ("one", "many"))
        assert len(one) > 10
        # Not even a longer one: a command line has an end, which standard input has not.
        assert one == many
    if how == "-y":
        done = {kind: commands(result, f"many{kind}") for kind in ("", "_converged")}
        said = {
            kind: [line for line in lines if line.startswith("runuser ")]
            for kind, lines in done.items()
        }
        # Roles, databases, contents: one command each.
        assert [len(said[kind]) for kind in ("", "_converged")] == [3, 0]


def test_a_cluster_as_declared_is_left_alone(pyinfra: Pyinfra, inventory: Any) -> None:
    other = {**MANY, "postgres_roles": [*MANY["postgres_roles"], {"name": "new"}]}
    hosts = inventory(
        same=(machine() | as_declared(MANY), MANY),
        # A role of somebody else.
        less=(machine() | as_declared(other), MANY),
        more=(machine() | as_declared(MANY), other),
    )
    plan = pyinfra.run(hosts, "tasks/postgres.py", "--dry")["plan"]
    change = {one["name"]: one["hosts_with_change"] for one in plan}
    assert change["Create the roles"] == ["@fake/more"]
    assert change["Create the databases"] == []
    assert change["Create extensions and give access"] == []


def test_names_that_others_chose_move_no_cursor(pyinfra: Pyinfra) -> None:
    data = ONE | {"postgres_roles": [{"name": "api"}, {"name": "reader"}]}
    answers = machine() | as_declared(data)
    question = command(Roles, version=17)
    roles = json.loads(answers[question][0])
    answers[question] = [json.dumps(roles | {"x\x1b[2J\ny": roles["api"]})]
    handed = [("n", "dba\x1b[1A", "reader", "USAGE")]
    host = fake(in_public(answers, "api", handed=handed), **data)
    result = pyinfra.call("@fake/host", "tasks/postgres.py", "--dry", *host)
    assert "Not in the data, left alone: roles x?[2J?y\n" in result.stderr
    assert said_to_psql(result) == [
        'revoke grant option for usage on schema "public" from "dba?[1A" cascade;'
    ]


def in_public(answers: Answers, database: str, **but: Any) -> Answers:
    """These answers, of a cluster that differs in the schema public of `database`."""
    question = command(Contents, version=17)
    contents = [json.loads(line) for line in answers[question]]
    for one in contents:
        if one["database"] == database:
            one["schemas"]["public"] |= but
    return answers | {question: [json.dumps(one) for one in contents]}


def test_only_declared_roles_lose_rights_that_they_are_not_to_have(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    data = {
        "postgres_roles": [{"name": name} for name in ("api", "reader", "former")],
        "postgres_databases": [{"name": "api", "owner": "api", "access": {"reader": "read"}}],
    }
    right = machine() | as_declared(data)
    mine = {"tables": 2, "table_acl": [("reader", "SELECT", 1)]}
    hosts = inventory(
        former=(in_public(right, "api", tables=2, table_acl=[("former", "SELECT", 1)]), data),
        stranger=(
            in_public(
                right,
                "api",
                tables=2,
                table_acl=[("reader", "SELECT", 2), ("backup", "SELECT", 2)],
            ),
            data,
        ),
        # One of the two is its own.
        owns=(in_public(right, "api", **mine, strangers=[("reader", "r", 1)]), data),
        lacks=(in_public(right, "api", **mine, strangers=[("former", "r", 1)]), data),
    )
    result = pyinfra.call(hosts, "tasks/postgres.py", "--dry")
    assert result.returncode == 0, result.stderr
    (change,) = [
        one["hosts_with_change"]
        for one in json.loads(result.stdout)["plan"]
        if one["name"] == "Create extensions and give access"
    ]
    assert set(change) == {"@fake/former", "@fake/lacks"}
    assert said_to_psql(result, "former") == [
        'revoke select on all tables in schema "public" from "former";',
        'grant select on all tables in schema "public" to "reader";',
    ]
    # Theirs they keep.
    reported = re.findall(r"@fake/(\w+)\].* sequences in api that belong to (\w+)\n", result.stderr)
    assert sorted(reported) == [("lacks", "former"), ("owns", "reader")]
    assert said_to_psql(result, "lacks") == [
        'grant select on all tables in schema "public" to "reader";'
    ]


def test_a_server_that_is_down_is_not_taken_for_an_empty_one(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    down = {command(fact, version=17): ["down"] for fact in (Roles, Databases, Contents)}
    hosts = inventory(down=(machine() | down, {}), bare=(machine(), {}))
    plan = pyinfra.run(hosts, "tasks/postgres.py", "--dry")["plan"]
    change = {one["name"]: one["hosts_with_change"] for one in plan}
    for step in ("roles", "databases"):
        assert change[f"Create the {step}"] == ["@fake/bare"]
    done = commands(pyinfra.call(hosts, "tasks/postgres.py", "-y", "-vv"), "down")
    assert not [line for line in done if line.startswith("runuser ")]
    assert [line for line in done if "the server does not run" in line]


# --- a password that is given ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["--dry", "-y"])
def test_a_password_that_is_given_is_not_shown(pyinfra: Pyinfra, how: str) -> None:
    host = fake(
        machine() | {f"{PASSWORDS_PROGRAM} check": ["api"]},
        postgres_roles=[{"name": "api", "password": "env:TF_API_PASSWORD"}],
    )
    # With -vv pyinfra repeats all that it asks and does, with the arguments of facts.
    call = ("@fake/host", "tasks/postgres.py", how, "--diff", "-vv", *host)
    result = pyinfra.call(*call, TF_API_PASSWORD="s3cret-s3cret-s3cret")
    done = commands(result)
    assert [line for line in done if f"{PASSWORDS_PROGRAM} check 17" in line]
    assert (how == "-y") == bool([line for line in done if f"{PASSWORDS_PROGRAM} set 17" in line])
    assert "s3cret" not in result.stdout + result.stderr
    # And not because pyinfra does not repeat them any more.
    assert "WrongPasswords (_stdin=…, version=17)" in result.stderr


# --- a new password -------------------------------------------------------------------------------

WEB = {
    "name": "web",
    "source": "examples/api",
    "domain": "web.test",
    "database": "api",
    "port": 9000,
    "role": "web",
}
# One more application of that role, and one of another role.
USERS: dict[str, Any] = {
    "postgres_roles": [{"name": "api"}, {"name": "web"}],
    "postgres_databases": [{"name": "api", "owner": "api", "access": {"web": "write"}}],
    "app_more": [WEB, WEB | {"name": "jobs", "domain": "jobs.test", "port": 9200, "role": ""}],
    "postgres_max_connections": 200,
}


def test_a_new_password_is_planned_so_that_nobody_is_ever_refused(pyinfra: Pyinfra) -> None:
    host = fake(machine(), postgres_rotate="api", **USERS)
    plan = pyinfra.run("@fake/host", "tasks/postgres_rotate.py", "--dry", *host)["plan"]
    assert [one["name"] for one in plan] == [
        "Let api~ log in as well",
        *(
            step
            for login in ("api~", "api")
            for step in (
                f"Give {login} a new password",
                f"Tell api to come as {login}",
                f"Let api come as {login}",
                f"Tell jobs to come as {login}",
                f"Let jobs come as {login}",
            )
        ),
        "Remove api~",
    ]


def test_a_new_password_is_told_to_the_pooler_before_anybody_comes_with_it(
    pyinfra: Pyinfra,
) -> None:
    host = fake(machine(), postgres_rotate="api", **POOLED, **USERS)
    plan = pyinfra.run("@fake/host", "tasks/postgres_rotate.py", "--dry", *host)["plan"]
    tell = ["Give PgBouncer the verifiers", "Let PgBouncer read them"]
    assert [one["name"] for one in plan] == [
        "Let api~ log in as well",
        *(
            step
            for login in ("api~", "api")
            for step in (
                f"Give {login} a new password",
                *tell,
                f"Tell api to come as {login}",
                f"Let api come as {login}",
                f"Tell jobs to come as {login}",
                f"Let jobs come as {login}",
            )
        ),
        "Remove api~",
        *tell,
    ]


def test_a_second_login_acts_as_the_role_wherever_that_comes_in(pyinfra: Pyinfra) -> None:
    data = {
        "postgres_roles": [
            *({"name": name} for name in ("api", "own", "stats_own")),
            {"name": "mig", "settings": {"jit": False}},
        ],
        "postgres_databases": [
            {"name": "api", "owner": "api"},
            {"name": "shop", "owner": "own", "access": {"mig": "migrate"}},
            {"name": "stats", "owner": "stats_own", "access": {"mig": "read"}},
        ],
    }
    host = fake(machine(), postgres_rotate="mig", **data)
    result = pyinfra.call("@fake/host", "tasks/postgres_rotate.py", "--dry", *host)
    create, *said = said_to_psql(result)
    assert create.startswith('create role "mig~" login nosuperuser ')
    assert said == [
        """alter role "mig~" set jit to 'off';""",
        """alter role "mig~" set role to 'mig';""",
        'grant "mig" to "mig~";',
        'alter role "mig~" in database "shop" set role to own;',
    ]


@pytest.mark.parametrize("pooled", [False, True])
def test_a_new_password_reaches_the_replicas_by_a_release_each(
    pyinfra: Pyinfra, pooled: bool
) -> None:
    _, state = json.loads(as_declared(USERS)[command(Roles, version=17)][0]).popitem()
    answers = machine() | {
        # The rest of a run that died.
        command(Roles, version=17): [json.dumps({"api": state, "api~": state})],
        "echo no account": ["wrong"],
        command(WrongPasswords, version=17): ["api~"],
        command(UserList, version=17, roles=["api"]): ["wrong"],
    }
    users = "/etc/pgbouncer/userlist.txt"
    answers[command(Unit, unit="pgbouncer.service", reload_on=[users])] = [
        *("ActiveState=active", "UnitFileState=enabled", "started", f"stale_reload={users}")
    ]
    more = POOLED | {"app_pgbouncer": True} if pooled else {}
    host = fake(answers, postgres_rotate="api", **more)
    result = pyinfra.call("@fake/host", "tasks/postgres_rotate.py", "-y", "-vv", *host)
    url = "umask 077; mkdir"
    kinds = {
        "runuser -u postgres -- env PGOPTIONS": "sql",
        "lines=$(runuser -u postgres -- env PGOPTIONS": "sql",
        f"{PASSWORDS_PROGRAM} set 17": "set",
        f"{PASSWORDS_PROGRAM} renew 17": "renew",
        f"file={users}; new=": "list",
        "mkdir -p /run/terrafirma && systemctl reload pgbouncer.service": "reload",
        f"{HOST_PROGRAM} refresh api --by ": "refresh",
        f"rm -f {PASSWORDS}/api~": "forget",
        f"rm -f {PASSWORDS}/api": "WRONG",
    }
    done = []
    for line in commands(result):
        if url in line:
            ((login, port),) = re.findall(
                r"postgresql://(\S+?):\$\(cat (?=\S+/\1\))\S+@host\.docker\.internal:(\d+)/", line
            )
            assert port == ("6432" if pooled else "5432")
            done.append(f"url {login}")
        done += [kind for start, kind in kinds.items() if line.startswith(start)][:1]
    # PgBouncer has to know the new verifier before anybody comes with the password.
    tell = ["list", "reload"] if pooled else []
    assert done == [
        "sql",
        # One that is left over keeps its password: somebody may be using it.
        *("set", *tell, "url api~", "refresh"),
        *("renew", *tell, "url api", "refresh"),
        *("sql", "forget", *tell),
    ]


# --- what is dropped ------------------------------------------------------------------------------


def dropping(answers: Answers, **data: Any) -> list[str]:
    name = data.get("postgres_drop") or data["postgres_drop_role"]
    return fake(answers, **{"postgres_confirm": name, **data})


OLD = {
    "postgres_roles": [{"name": "old"}],
    "postgres_databases": [{"name": "old", "owner": "old"}],
}


KINDS = {"postgres_drop": "Dump and drop the database", "postgres_drop_role": "Drop the role"}


@pytest.mark.parametrize("key", KINDS)
def test_only_what_is_there_is_dropped(pyinfra: Pyinfra, inventory: Any, key: str) -> None:
    data = {key: "old", "postgres_confirm": "old"}
    hosts = inventory(
        there=(machine() | as_declared(OLD), data), gone=(machine() | as_declared(ONE), data)
    )
    plan = pyinfra.run(hosts, "tasks/postgres_drop.py", "--dry")["plan"]
    assert [(one["name"], one["hosts_with_change"]) for one in plan] == [
        (f"{KINDS[key]} old", ["@fake/there"])
    ]


@pytest.mark.parametrize("key", KINDS)
def test_nothing_is_gone_from_a_server_that_is_down(
    pyinfra: Pyinfra, inventory: Any, key: str
) -> None:
    down: Answers = {command(fact, version=17): ["down"] for fact in (Roles, Databases)}
    down["the server does not run"] = {"success": False}
    data = {key: "old", "postgres_confirm": "old"}
    hosts = inventory(down=(machine() | down, data), gone=(machine() | as_declared(ONE), data))
    dry = pyinfra.call(hosts, "tasks/postgres_drop.py", "--dry", "-v")
    assert re.search(r"\[@fake/down\] .*the server is down: what is in it is not seen", dry.stderr)
    result = pyinfra.call(hosts, "tasks/postgres_drop.py", "-y", "-vv")
    (operation,) = json.loads(result.stdout)["results"]["operations"]
    assert (operation["error"], operation["no_change"]) == (["@fake/down"], ["@fake/gone"])
    (said,) = re.findall(r">>> (.*the server does not run.*)", result.stderr)
    assert said.endswith(">&2; exit 1")
    assert not re.search(r">>> .*(pg_dump|rm -f)", result.stderr)


def test_a_role_is_dropped_with_its_password_and_no_database(pyinfra: Pyinfra) -> None:
    host = dropping(machine() | as_declared(OLD), postgres_drop_role="old")
    done = commands(pyinfra.call("@fake/host", "tasks/postgres_drop.py", "-y", "-vv", *host))
    *_, drop, forget = done
    assert drop.startswith(
        "lines=$(runuser -u postgres -- env PGOPTIONS='-c search_path=pg_catalog "
    )
    assert forget == f"rm -f {PASSWORDS}/old~ {PASSWORDS}/old"
    assert not [line for line in done if "pg_dump" in line]


@pytest.fixture(scope="module")
def dropper(pyinfra: Pyinfra) -> str:
    """The command that drops a database."""
    host = dropping(machine() | as_declared(OLD), postgres_drop="old")
    done = commands(pyinfra.call("@fake/host", "tasks/postgres_drop.py", "-y", "-vv", *host))
    (drop,) = [line for line in done if "pg_dump" in line]
    assert not [line for line in done if line.startswith("rm ")]
    return drop


def drop(command: str, directory: Path, runuser: str) -> CompletedProcess[str]:
    """Runs the command here, with files of this machine and a PostgreSQL that does `runuser`."""
    program = directory / "programs" / "runuser"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{runuser}\n")
    program.chmod(0o755)
    return subprocess.run(
        ["sh", "-c", command.replace(DROPPED, str(directory / "dropped"))],
        env=os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


WORKS = "case $* in *pg_dump*) echo dump ;; *) cat > {0}/said ;; esac"


def test_a_database_is_dumped_before_it_is_dropped(dropper: str, tmp_path: Path) -> None:
    for name in ("old", "old.2", "old.3"):
        result = drop(dropper, tmp_path, WORKS.format(tmp_path))
        file = tmp_path / "dropped" / f"{name}.dump"
        assert result.returncode == 0, result.stderr
        assert str(file) in result.stdout
        assert file.read_text() == "dump\n"
        assert file.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "said").read_text() == 'drop database "old";\n'
    assert len(list((tmp_path / "dropped").iterdir())) == 3


def test_a_database_that_cannot_be_dumped_is_kept(dropper: str, tmp_path: Path) -> None:
    fails = (
        'case $* in *pg_dump*) echo half; exit 1 ;; esac; sql=$(cat); echo "$sql" >> {0}/said; '
        "case $sql in 'select datconnlimit'*) echo 7 ;; esac"
    )
    assert drop(dropper, tmp_path, fails.format(tmp_path)).returncode != 0
    said = (tmp_path / "said").read_text()
    assert "drop database" not in said
    # Nobody writes while it is dumped, and as many as before afterwards.
    assert said.index("connection limit 0;") < said.index("connection limit 7;")
    assert list((tmp_path / "dropped").iterdir()) == []


# --- a major upgrade of PostgreSQL ----------------------------------------------------------------

ON_15 = ("cluster=15/main", "own=15/main", "offered=15", "offered=17")
ON_17 = ("cluster=17/main", "own=17/main", "offered=15", "offered=17")
NEEDS = command(UpgradeState, old=15, new=17)
ENOUGH = {NEEDS: ["online=yes", "size=2097152", "free=4194304", "package=postgresql-17"]}
STEPS = [
    *("Back up the databases", "Create the new cluster", "Move the data to the new cluster"),
    "Create the roles",
]
RETIRED_15, RETIRED_17 = (
    (*one, *other, mark)
    for one, other, mark in ((ON_17, ON_15, "retired=15/main"), (ON_15, ON_17, "retired=17/main"))
)

# The host; its data; what is planned; what is said.
MAJORS: dict[str, tuple[Answers, dict[str, Any], list[str], str]] = {
    "bare": (machine(), {}, [], "no cluster here is ours yet"),
    "current": (machine(DEBIAN_13, *ON_17), {}, [], "17/main runs, the distribution's own"),
    "stays": (
        machine(DEBIAN_13, *ON_15),
        {"postgres_version": 15},
        [],
        "15/main runs, postgres_version is 15",
    ),
    "old": (machine(DEBIAN_13, *ON_15) | ENOUGH, {}, STEPS, "From PostgreSQL 15 to 17, 2048 MB"),
    "extensions": (
        machine(DEBIAN_13, *ON_15) | {NEEDS: [*ENOUGH[NEEDS], "package=postgresql-17-cron"]},
        {},
        [STEPS[0], "Install what the extensions need", *STEPS[1:]],
        "From PostgreSQL 15 to 17",
    ),
    # A copy that shares blocks takes no room: the upgrade tries that before it stops anything.
    "no_room_but_shared": (
        machine(DEBIAN_13, *ON_15)
        | {NEEDS: ["online=yes", "size=2097152", "free=1048576", "type=xfs", "type=xfs"]},
        {},
        STEPS,
        "1024 MB are free: it stops before anybody notices, unless the file systems copy by "
        "sharing blocks",
    ),
    "died": (
        machine(DEBIAN_13, *ON_15, *ON_17, "unfinished=17/main") | ENOUGH,
        {},
        STEPS,
        "From PostgreSQL 15 to 17",
    ),
    "backed_up": (
        machine(DEBIAN_13, *ON_15) | ENOUGH,
        BACKUP,
        [*STEPS, "Make a backup, and list it"],
        "From PostgreSQL 15 to 17",
    ),
    "back": (
        machine(DEBIAN_13, *RETIRED_15),
        {"postgres_upgrade": "back"},
        ["Go back to the old cluster", "Create the roles"],
        "rows written since then stay in 17/main only, which is kept, switched off. "
        "Set postgres_version = 15",
    ),
    "back_already": (
        machine(DEBIAN_13, *RETIRED_17),
        {"postgres_upgrade": "back"},
        # What a run that died did not come to.
        ["Create the roles"],
        "15/main is back already: 17/main is kept",
    ),
    "back_below_pgbouncer": (
        machine(DEBIAN_13, *RETIRED_15),
        {"postgres_upgrade": "back", "pgbouncer_enabled": True},
        [
            *("Go back to the old cluster", "Create the roles"),
            "Let in the roles of PostgreSQL",
        ],
        "Back to 15/main",
    ),
    "clean": (
        machine(DEBIAN_13, *RETIRED_15),
        {"postgres_upgrade": "clean"},
        ["Remove what is no longer used"],
        "Removing 15/main, with all its data",
    ),
    "cleaned": (
        machine(DEBIAN_13, *ON_17),
        {"postgres_upgrade": "clean"},
        [],
        "no retired cluster to remove",
    ),
    # Unfinished ones are none: they were never used, and the next upgrade removes them.
    "clean_after_a_death": (
        machine(DEBIAN_13, *ON_15, *ON_17, "unfinished=17/main"),
        {"postgres_upgrade": "clean"},
        [],
        "no retired cluster to remove",
    ),
    "without_statistics": (
        machine(DEBIAN_13, *ON_17)
        | {
            "/17.unanalysed": [
                "644|root|root|regular file|/var/lib/terrafirma/upgrade/17.unanalysed"
            ]
        },
        {},
        ["Gather the planner's statistics"],
        "17/main runs",
    ),
}
WATCHED = {step for _, _, steps, _ in MAJORS.values() for step in steps}


def test_an_upgrade_is_planned_where_one_is_due(pyinfra: Pyinfra, inventory: Any) -> None:
    hosts = inventory(**{name: (on, data) for name, (on, data, _, _) in MAJORS.items()})
    result = pyinfra.call(hosts, "tasks/postgres_upgrade.py", "--dry")
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)["plan"]
    for name, (_, _, steps, words) in MAJORS.items():
        planned = [
            one["name"].split(" | ")[-1]
            for one in plan
            if f"@fake/{name}" in one["hosts_with_change"]
        ]
        assert [step for step in planned if step in WATCHED] == steps, name
        assert bool(planned) == bool(steps), (name, planned)
        assert re.search(rf"\[@fake/{name}\] +.*{re.escape(words)}", result.stderr), name


ENDS: dict[str, tuple[list[str], bool]] = {
    "done": (["ended", "Stopping 15/main", "finished"], True),
    "failed": (["ended", "Stopping 15/main", "failed: copying: No space left", "15/main"], False),
    "killed": (["ended", "Stopping 15/main", "15/main serves as before"], False),
    "silent": (["ended"], False),
}


def test_an_upgrade_is_followed_to_its_end(pyinfra: Pyinfra, inventory: Any) -> None:
    progress = command(UpgradeProgress).partition("tail -n")[0]
    hosts = inventory(
        **{
            name: (machine(DEBIAN_13, *RETIRED_15) | {progress: said}, {"postgres_upgrade": "back"})
            for name, (said, _) in ENDS.items()
        }
    )
    result = pyinfra.call(hosts, "tasks/postgres_upgrade.py", "-y", "-vv")
    (step,) = [
        one
        for one in json.loads(result.stdout)["results"]["operations"]
        if one["name"] == "Go back to the old cluster"
    ]
    assert set(step["success"]) == {f"@fake/{name}" for name, (_, good) in ENDS.items() if good}
    assert "No space left" in result.stderr
    for name in ("killed", "silent"):
        assert re.search(rf"\[@fake/{name}\] +it was stopped: journalctl -u", result.stderr)
    (start,) = [
        line
        for line in re.findall(r"\[@fake/done\] +>>> (.*)", result.stderr)
        if "systemd-run" in line
    ]
    assert "'ExecStopPost=/usr/local/lib/terrafirma/postgres-upgrade recover 15 17'" in (
        start.replace("'\"'\"'", "'")
    )
    # What is done afterwards, is done to the one that serves.
    done = "\n".join(re.findall(r"\[@fake/done\] +>>> (.*)", result.stderr))
    assert "/postgresql/15/bin/psql " in done
    assert "/postgresql/17/bin/psql " not in done

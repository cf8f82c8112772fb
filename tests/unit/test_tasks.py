"""Every task plans on its own and as part of the platform, against a host that is not there."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from pyinfra.api import FactBase, StringCommand
from pyinfra.facts.files import FileContents

from terrafirma.facts.backup import Archives
from terrafirma.facts.machine import Listeners, Machine
from terrafirma.facts.packages import AptLockHolder, MissingPackages
from tests.conftest import ROOT, Pyinfra

TASKS = sorted(path.stem for path in (ROOT / "tasks").glob("*.py"))
# A command of its own, for whoever sets up the backup host.
EXTRA = {"borg_key"}

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
UBUNTU_22 = UBUNTU_24 | {"version": "22.04", "name": "Ubuntu 22.04.5 LTS", "architecture": "arm64"}

Answers = dict[str, Any]


def command(fact: type[FactBase[Any]], **arguments: Any) -> str:
    """What pyinfra's @fake connector knows a question by."""
    text = fact().command(**arguments)
    return text.get_raw_value() if isinstance(text, StringCommand) else text


LISTENERS = command(Listeners, ports=[80, 443, 5432, 8000, 8001, 8002, 8003])
DAEMON_JSON = command(FileContents, path="/etc/docker/daemon.json")


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


# --- they plan ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(pyinfra: Pyinfra) -> dict[str, CompletedProcess[str]]:
    host = fake(machine())
    return pyinfra.call_all(
        {task: ["@fake/host", f"tasks/{task}.py", "--dry", *host] for task in TASKS}
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_task_plans_on_its_own(alone: dict[str, CompletedProcess[str]], task: str) -> None:
    assert alone[task].returncode == 0, alone[task].stderr
    assert json.loads(alone[task].stdout)["plan"]


def test_tasks_are_no_package() -> None:
    """pyinfra runs them once for each host; an import would run them once."""
    assert not (ROOT / "tasks" / "__init__.py").exists()


BACKUP = {
    "borg_repository": "ssh://b@backup.acme.com/./web",
    "borg_known_hosts": ["backup.acme.com ssh-ed25519 AAAA"],
}


@pytest.fixture(scope="module")
def two_hosts(pyinfra: Pyinfra) -> dict[str, Any]:
    answers = machine() | {command(Archives): ['[{"archives": [{"archive": "a-1"}]}]']}
    return pyinfra.run("@fake/a,@fake/b", "deploy.py", "-y", *fake(answers, **BACKUP))


def test_the_platform_includes_every_task(two_hosts: dict[str, Any]) -> None:
    operations = two_hosts["results"]["operations"]
    included = {Path(one["name"].split(" | ")[0]).stem for one in operations}
    assert included == set(TASKS) - EXTRA


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
    for earlier, later in (("users", "sshd"), ("docker", "postgres"), ("postgres", "app")):
        assert order.index(f"tasks/{earlier}.py") < order.index(f"tasks/{later}.py")


INVENTORY = """\
from json import loads

servers = [(name, data) for name, data in loads({text!r}).items()]
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
        trixie=(machine(), BACKUP),
        bookworm=(machine(DEBIAN_12), {"app_source": "", **BACKUP}),
        noble=(
            machine(UBUNTU_24, "cluster=16/main", "own=16/main", root="", sudo="yes", user="me"),
            {},
        ),
        jammy=(machine(UBUNTU_22), {"postgres_version": 14}),
    )
    plan = pyinfra.run(hosts, "deploy.py", "--dry")["plan"]
    every = {"@fake/trixie", "@fake/bookworm", "@fake/noble", "@fake/jammy"}
    change = {one["name"]: set(one["hosts_with_change"]) for one in plan}
    assert change["tasks/postgres.py | Install PostgreSQL"] == every
    assert change["tasks/caddy.py | Run Caddy"] == every
    assert change["tasks/app.py | Run 4 replicas of api"] == every - {"@fake/bookworm"}
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
    writers = re.findall(r"\[@fake/(\w+)\] +>>> .*path=/etc/postgresql/17/main/", said)
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
    "a login that would be locked out by its password": (
        "sshd",
        fake(machine(), ssh_password="secret"),
        ("sshd_password_authentication: ", "with a key"),
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
    "an application without its network": (
        "app",
        fake(machine(), app_network="jobs"),
        ("app_network: ", "'jobs' of api", "docker_networks (apps)"),
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
        assert "secret" not in result.stdout + result.stderr


# --- what they write ------------------------------------------------------------------------------


def test_a_release_is_that_of_its_own_application_alone(pyinfra: Pyinfra, inventory: Any) -> None:
    """Else a new application, or more patience, would restart the replicas of all others."""
    more = {"name": "web", "source": "examples/api", "domain": "web.test", "database": "api"}
    hosts = inventory(
        one=(machine(), {}),
        patient=(machine(), {"app_start_seconds": 300}),
        more=(machine(), {"app_more": [more | {"port": 9000}]}),
        other=(machine(), {"app_replicas": 2}),
    )
    result = pyinfra.call(hosts, "tasks/app.py", "--dry", "--diff")
    assert result.returncode == 0, result.stderr
    releases: dict[str, list[str]] = {}
    for line in result.stderr.splitlines():
        if created := re.search(r"\[(@fake/\w+)\]\s+Will create .*/api/compose\.yaml", line):
            releases[created[1]] = seen = []
        elif release := re.search(r'terrafirma\.release: "(\w+)"', line):
            seen.append(release[1])
    first = {host: seen[0] for host, seen in releases.items()}
    assert first["@fake/other"] != first["@fake/one"]
    assert first["@fake/patient"] == first["@fake/one"]
    assert first["@fake/more"] == first["@fake/one"]


def test_daemon_json_always_carries_the_mark_by_which_it_is_known(pyinfra: Pyinfra) -> None:
    labels = fake(machine(), docker_daemon={"labels": ["rack=7"]})
    result = pyinfra.call("@fake/host", "tasks/docker.py", "--dry", "--diff", *labels)
    if result.returncode:
        assert "docker_daemon" in refusal(result)
    else:
        assert "managed-by=terrafirma" in result.stderr

"""PostgreSQL as a run plans it: its settings, restarts, roles and databases."""

import json
import re
from collections.abc import Sequence
from subprocess import CompletedProcess
from typing import Any

import pytest
from pyinfra.facts.files import FileContents

from terrafirma.docker.facts import DockerNetworks
from terrafirma.host.facts import Hardware
from terrafirma.host.kernel import KernelSettings
from terrafirma.paths import PASSWORDS_PROGRAM
from terrafirma.postgres.facts import Contents, Databases, Roles
from tests.conftest import Pyinfra
from tests.unit.fake_host import (
    DEBIAN_13,
    DOCKER0,
    POOLED,
    SIX,
    Answers,
    command,
    commands,
    fake,
    machine,
    refuses,
    said_to_psql,
    written,
)
from tests.unit.postgres.declared import ONE, SERVER, answer, as_declared

HARDWARE = command(Hardware, path="/var/lib/postgresql/17/main")
SERVER_CONF = "/etc/postgresql/17/main/conf.d/terrafirma.conf"


# --- they plan ------------------------------------------------------------------------------------


def test_a_silent_docker_locks_no_container_out_of_postgresql(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    """If a fact fails on one of several hosts, pyinfra continues there with the fact's default."""
    silent = {"success": False, "stderr": "Cannot connect to the Docker daemon"}
    broken = machine() | {"docker": silent}
    hosts = inventory(broken=(broken, {}), fine=(machine(), {}))
    said = pyinfra.call(hosts, "tasks/postgres.py", "-y", "-vv").stderr
    writers = re.findall(r"\[@fake/(\w+)\] +>>> .* sh /etc/postgresql/17/main/(\S+)", said)
    writers = [host for host, path in writers if path != "start.conf"]
    assert set(writers) == {"fine"}


# --- they refuse ----------------------------------------------------------------------------------

# What is wrong; the task; the host; the key, and words of the message.
REFUSALS: dict[str, tuple[str, list[str], Sequence[str]]] = {
    "a foreign cluster of the same version": (
        "tasks/postgres",
        fake(machine(DEBIAN_13, "cluster=17/main")),
        ("postgres_adopt: ", "17/main", "not ours", "True"),
    ),
    "a foreign cluster of the same version before anything else": (
        "tasks/preflight",
        fake(machine(DEBIAN_13, "cluster=17/main", "cluster=17/test", "own=17/test")),
        ("postgres_adopt: ", "17/main", "not ours", "True"),
    ),
    "connections that do not fit": (
        "tasks/postgres",
        fake(machine() | {HARDWARE: ["memory=524288", "cores=2"]}),
        ("postgres_max_connections: ", "100 connections", "910 kB", "384 MB", "88 fit"),
    ),
    "connections that do not fit during deploy.py": (
        "deploy",
        fake(machine() | {HARDWARE: ["memory=2097152", "cores=4"]}, postgres_max_connections=500),
        ("postgres_max_connections: ", "500 connections", "1536 MB", "376 fit"),
    ),
    "connections that the applications would use up": (
        "tasks/postgres",
        fake(machine(), postgres_max_connections=49),
        ("postgres_max_connections: ", "49 is too few", "api 4 replicas x 5 x 2", "50 or more"),
    ),
    "a password whose variable is not set": (
        "tasks/postgres",
        fake(machine(), postgres_roles=[{"name": "api", "password": "env:TF_NO_SUCH_PASSWORD"}]),
        ("postgres_roles: ", "api: TF_NO_SUCH_PASSWORD is not set", "16 to 200"),
    ),
    "a distribution that was upgraded": (
        "deploy",
        fake(machine(DEBIAN_13, "cluster=15/main", "own=15/main", "offered=15")),
        ("postgres_version: ", "15/main", "17", "commands/postgres_upgrade.py"),
    ),
    "an unknown kind of disk": (
        "tasks/postgres",
        fake(machine(), postgres_disk="nvme"),
        ("postgres_disk: ", "'ssd' or 'hdd'"),
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses_in_one_line_before_anything_changes(
    refused: dict[str, CompletedProcess[str]], what: str
) -> None:
    refuses(refused[what], REFUSALS[what][2])


# --- what they write ------------------------------------------------------------------------------


def test_a_foreign_cluster_is_taken_over_when_that_is_asked_for(pyinfra: Pyinfra) -> None:
    host = fake(machine(DEBIAN_13, "cluster=17/main"), postgres_adopt=True)
    for task in ("preflight", "postgres"):
        assert pyinfra.call("@fake/host", f"tasks/{task}.py", "--dry", *host).returncode == 0


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


def test_services_listen_on_the_current_and_the_next_address_of_docker0(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    """Otherwise no container would reach PostgreSQL between the next boot and the next run."""
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
    (server_alone, install) = [line for line in done if " install --no-install-recommends " in line]
    assert "postgresql-17" in server_alone.split()
    words = install.split()
    for package in ("cron", "pgvector", "zzzzzz"):
        assert f"postgresql-17-{package}" in words
    assert "logrotate" in words
    assert not any("hstore" in word or "contrib" in word for word in words)


def test_settings_override_the_values_for_the_hardware(pyinfra: Pyinfra) -> None:
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


# Differences between the present file and the future one; the server's answer (None: no server);
# whether it restarts, and whether ALTER SYSTEM is undone.
RESTARTS: dict[str, tuple[dict[str, str], list[str] | None, bool, bool]] = {
    # A new cluster starts with the right settings.
    "no_cluster": ({}, None, False, False),
    # A server that is down reads its file when it starts.
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
    # The value is not in force yet: once undone, nothing waits for a restart.
    "by_hand_waiting": ({}, answer(["port"], by_hand=["port"]), False, True),
    "by_hand_waiting_and_more": ({}, answer(["port", "wal_level"], ["port"]), True, True),
    "by_hand_waiting_and_new": ({"port": "1"}, answer(["port"], ["port"]), True, True),
    # An undeclared setting is left alone.
    "by_hand_else": ({}, answer(by_hand=["wal_level"]), False, False),
}


def test_a_restart_is_announced_only_if_a_setting_needs_it(
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
            "Restart the server if a setting needs it",
            {name for name, (_, _, restarts, _) in RESTARTS.items() if restarts},
        ),
        (
            "Undo what ALTER SYSTEM set",
            {name for name, (_, _, _, undone) in RESTARTS.items() if undone},
        ),
    ):
        assert change[step] == {f"@fake/{name}" for name in expected}


def test_postgresql_restarts_if_the_server_itself_says_so(pyinfra: Pyinfra, inventory: Any) -> None:
    """The file no longer tells: a reload has already read it."""
    hosts = inventory(
        none=(machine() | {SERVER: answer()}, {}),
        one=(machine() | {SERVER: answer(["shared_buffers"])}, {}),
        two=(machine() | {SERVER: answer(["port", "max_connections"])}, {}),
        # The real run undoes the setting first, so no restart is pending.
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
# The kernel's values of the two settings (None: the setting does not exist); the values written.
KERNELS: dict[str, tuple[list[int | None], list[str]]] = {
    "new": ([0, 0], [f"{BIND[0]}=1", f"{BIND[1]}=1"]),
    "as_wanted": ([1, 1], []),
    "one": ([1, 0], [f"{BIND[1]}=1"]),
    "without_ipv6": ([0, None], [f"{BIND[0]}=1"]),
    "without_ipv6_as_wanted": ([1, None], []),
}


def test_only_settings_that_the_kernel_has_are_written(pyinfra: Pyinfra, inventory: Any) -> None:
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


@pytest.mark.parametrize("how", ["--dry", "-y"])
def test_hundreds_of_databases_cost_no_question_and_no_command_more(
    pyinfra: Pyinfra, inventory: Any, how: str
) -> None:
    """Each question and each command is a round trip."""
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
        # Nor is a command longer: unlike standard input, command lines have a limit.
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
        # A role that the settings do not name.
        less=(machine() | as_declared(other), MANY),
        more=(machine() | as_declared(MANY), other),
    )
    plan = pyinfra.run(hosts, "tasks/postgres.py", "--dry")["plan"]
    change = {one["name"]: one["hosts_with_change"] for one in plan}
    assert change["Create the roles"] == ["@fake/more"]
    assert change["Create the databases"] == []
    assert change["Create extensions and give access"] == []


def test_names_of_others_cannot_move_the_cursor(pyinfra: Pyinfra) -> None:
    data = ONE | {"postgres_roles": [{"name": "api"}, {"name": "reader"}]}
    answers = machine() | as_declared(data)
    question = command(Roles, version=17)
    roles = json.loads(answers[question][0])
    answers[question] = [json.dumps(roles | {"x\x1b[2J\ny": roles["api"]})]
    handed = [("n", "dba\x1b[1A", "reader", "USAGE")]
    host = fake(in_public(answers, "api", handed=handed), **data)
    result = pyinfra.call("@fake/host", "tasks/postgres.py", "--dry", *host)
    assert "Not in your settings, left alone: roles x?[2J?y\n" in result.stderr
    assert said_to_psql(result) == [
        'revoke grant option for usage on schema "public" from "dba?[1A" cascade;'
    ]


def in_public(answers: Answers, database: str, **but: Any) -> Answers:
    """The same answers, with differences in the schema public of `database`."""
    question = command(Contents, version=17)
    contents = [json.loads(line) for line in answers[question]]
    for one in contents:
        if one["database"] == database:
            one["schemas"]["public"] |= but
    return answers | {question: [json.dumps(one) for one in contents]}


def test_only_declared_roles_lose_undeclared_rights(pyinfra: Pyinfra, inventory: Any) -> None:
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
        # `reader` owns one of the two tables.
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
    # They keep the tables that they own.
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


# --- given passwords ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["--dry", "-y"])
def test_a_password_that_is_given_is_not_shown(pyinfra: Pyinfra, how: str) -> None:
    host = fake(
        machine() | {f"{PASSWORDS_PROGRAM} check": ["wrong api"]},
        postgres_roles=[{"name": "api", "password": "env:TF_API_PASSWORD"}],
    )
    # With -vv pyinfra prints all commands, and the arguments of facts.
    call = ("@fake/host", "tasks/postgres.py", how, "--diff", "-vv", *host)
    result = pyinfra.call(*call, TF_API_PASSWORD="s3cret-s3cret-s3cret")
    done = commands(result)
    assert [line for line in done if f"{PASSWORDS_PROGRAM} check 17" in line]
    assert (how == "-y") == bool([line for line in done if f"{PASSWORDS_PROGRAM} set 17" in line])
    assert "s3cret" not in result.stdout + result.stderr
    # pyinfra did print the arguments of this fact, without the password.
    assert "WrongPasswords (_stdin=…, version=17)" in result.stderr

"""Commands for PostgreSQL as a run plans them: a new password, a drop, a major upgrade."""

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from terrafirma.host.units import Unit
from terrafirma.paths import DROPPED, HOST_PROGRAM, PASSWORDS, PASSWORDS_PROGRAM
from terrafirma.pgbouncer.facts import UserList
from terrafirma.postgres.facts import Databases, Roles, WrongPasswords
from terrafirma.postgres.upgrade_facts import UpgradeProgress, UpgradeState
from tests.conftest import Pyinfra
from tests.unit.fake_host import (
    BACKUP,
    DEBIAN_13,
    POOLED,
    Answers,
    api,
    command,
    commands,
    fake,
    machine,
    refuses,
    said_to_psql,
)
from tests.unit.postgres.declared import ONE, as_declared
from tests.unit.settings import API

# --- they refuse ----------------------------------------------------------------------------------

# What is wrong; the task or command; the host; the key, and words of the message.
REFUSALS: dict[str, tuple[str, list[str], Sequence[str]]] = {
    "a password for no role": (
        "commands/postgres_rotate",
        fake(machine()),
        ("rotate: ", "'' is no role that logs in", "give one of api with --data"),
    ),
    "a password for an unknown role": (
        "commands/postgres_rotate",
        fake(machine(), rotate="shop"),
        ("rotate: ", "'shop' is no role that logs in"),
    ),
    "a password for a role that needs none": (
        "commands/postgres_rotate",
        fake(
            machine(),
            rotate="team",
            postgres_roles=[{"name": "api"}, {"name": "team", "login": False}],
        ),
        ("rotate: ", "'team' is no role that logs in", "give one of api with"),
    ),
    "a password that is chosen elsewhere": (
        "commands/postgres_rotate",
        fake(
            machine(),
            rotate="api",
            postgres_roles=[{"name": "api", "password": "env:API_PASSWORD"}],
        ),
        ("rotate: ", "env:API_PASSWORD", "change it there"),
    ),
    "nothing to drop": (
        "commands/postgres_drop",
        fake(machine(), confirm="old"),
        ("drop: ", "--data drop=NAME", "--data drop_role=NAME"),
    ),
    "a database and a role to drop": (
        "commands/postgres_drop",
        fake(machine(), drop="old", drop_role="old_owner", confirm="old"),
        ("drop: ", "one database with", "or one role with"),
    ),
    "a database and a role of that name to drop": (
        "commands/postgres_drop",
        fake(machine(), drop="old", drop_role="old", confirm="old"),
        ("drop: ", "one database with", "or one role with"),
    ),
    "a database of PostgreSQL's own to drop": (
        "commands/postgres_drop",
        fake(machine(), drop="postgres", confirm="postgres"),
        ("drop: ", "'postgres' is reserved by PostgreSQL"),
    ),
    "a role of PostgreSQL's own to drop": (
        "commands/postgres_drop",
        fake(machine(), drop_role="postgres", confirm="postgres"),
        ("drop_role: ", "'postgres' is reserved by PostgreSQL"),
    ),
    "a new password for the superuser": (
        "commands/postgres_rotate",
        fake(machine(), rotate="postgres"),
        ("rotate: ", "'postgres' is reserved by PostgreSQL"),
    ),
    "a database that is dropped without confirmation": (
        "commands/postgres_drop",
        fake(machine(), drop="old"),
        ("confirm: ", "'' is not 'old'", "--data confirm=old"),
    ),
    "a database that is dropped with a wrong confirmation": (
        "commands/postgres_drop",
        fake(machine(), drop="old", confirm="yes"),
        ("confirm: ", "'yes' is not 'old'"),
    ),
    "a role that is dropped with a wrong confirmation": (
        "commands/postgres_drop",
        fake(machine(), drop_role="old", confirm="older"),
        ("confirm: ", "'older' is not 'old'", "--data confirm=old"),
    ),
    "a database that is still declared": (
        "commands/postgres_drop",
        fake(machine(), drop="api", confirm="api"),
        ("drop: ", "api is in your settings: take it out first, and run deploy.py"),
    ),
    "a role that is still declared": (
        "commands/postgres_drop",
        fake(machine(), drop_role="api", confirm="api"),
        ("drop_role: ", "api is in your settings: take it out first, and run deploy.py"),
    ),
    "an upgrade without room": (
        "commands/postgres_upgrade",
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
        ("upgrade: ", "3125 MB are free", "3224 MB are needed: 2000 MB of data", "1024"),
    ),
    "an upgrade without an extension": (
        "commands/postgres_upgrade",
        fake(
            machine(DEBIAN_13, "cluster=15/main", "own=15/main", "offered=15")
            | {
                command(UpgradeState, old=15, new=17): [
                    *("online=yes", "size=2000", "free=9000000"),
                    *("package=postgresql-17-cron", "missing=postgresql-17-cron"),
                ]
            }
        ),
        ("upgrade: ", "postgresql-17-cron", "drop the extension"),
    ),
    "an upgrade of a cluster with a tablespace inside": (
        "commands/postgres_upgrade",
        fake(
            machine(DEBIAN_13, "cluster=15/main", "own=15/main", "offered=15")
            | {
                command(UpgradeState, old=15, new=17): [
                    *("online=yes", "size=2000", "free=9000000"),
                    "inside=/var/lib/postgresql/15/main/far",
                ]
            }
        ),
        ("upgrade: ", "in /var/lib/postgresql/15/main/far is inside", "move it out"),
    ),
    "an upgrade of a cluster that is down": (
        "commands/postgres_upgrade",
        fake(machine(DEBIAN_13, "cluster=15/main", "own=15/main", "offered=15")),
        ("upgrade: ", "15/main does not run", "systemctl start postgresql@15-main"),
    ),
    "an upgrade to the cluster that a way back retired": (
        "commands/postgres_upgrade",
        fake(
            machine(
                DEBIAN_13,
                *("cluster=15/main", "own=15/main", "cluster=17/main", "own=17/main"),
                "retired=17/main",
            )
        ),
        ("upgrade: ", "17/main is in the way", "upgrade=clean"),
    ),
    "an upgrade beside a foreign cluster": (
        "commands/postgres_upgrade",
        fake(machine(DEBIAN_13, "cluster=15/main", "own=15/main", "cluster=17/main")),
        ("postgres_adopt: ", "17/main", "not ours"),
    ),
    "an upgrade that is going on": (
        "commands/postgres_upgrade",
        fake(machine(DEBIAN_13, "cluster=15/main", "own=15/main", upgrading="yes")),
        ("upgrade: ", "going on there", "tail -f"),
    ),
    "an upgrade that is going on during deploy.py": (
        "deploy",
        fake(machine(DEBIAN_13, "cluster=15/main", "own=15/main", upgrading="yes")),
        ("upgrade: ", "going on there"),
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses_in_one_line_before_anything_changes(
    refused: dict[str, CompletedProcess[str]], what: str
) -> None:
    refuses(refused[what], REFUSALS[what][2])


# --- a new password -------------------------------------------------------------------------------

WEB = {
    "source": "examples/api",
    "domain": "web.test",
    "database": "api",
    "port": 9000,
    "role": "web",
}
# One more application with the role api, and one with another role.
USERS: dict[str, Any] = {
    "postgres_roles": [{"name": "api"}, {"name": "web"}],
    "postgres_databases": [{"name": "api", "owner": "api", "access": {"web": "write"}}],
    "apps": {
        "api": API,
        "web": WEB,
        "jobs": WEB | {"domain": "jobs.test", "port": 9200, "role": ""},
    },
    "postgres_max_connections": 200,
}


def rotation(*tell: str) -> list[str]:
    """The plan for a new password of api; `tell` are the steps after each change of a login."""
    return [
        "Install the command terrafirma",
        "Create the second login api~",
        *(
            step
            for login in ("api~", "api")
            for step in (
                f"Give {login} a new password",
                *tell,
                f"Set api to connect as {login}",
                f"Release api to connect as {login}",
                f"Set jobs to connect as {login}",
                f"Release jobs to connect as {login}",
            )
        ),
        "Remove the second login api~",
        *tell,
    ]


def test_a_rotation_is_planned_so_that_no_connection_is_refused(pyinfra: Pyinfra) -> None:
    host = fake(machine(), rotate="api", **USERS)
    plan = pyinfra.run("@fake/host", "commands/postgres_rotate.py", "--dry", *host)["plan"]
    assert [one["name"] for one in plan] == rotation()


def test_every_address_with_the_password_changes_before_the_release(pyinfra: Pyinfra) -> None:
    data = USERS | {
        "postgres_databases": [
            {"name": "api", "owner": "web", "access": {"api": "read"}},
            {"name": "stats", "owner": "api"},
        ],
        "apps": {"web": WEB | {"database": "api", "role": "web", "databases": ["stats"]}},
    }
    host = fake(machine(), rotate="api", **data)
    plan = pyinfra.run("@fake/host", "commands/postgres_rotate.py", "--dry", *host)["plan"]
    steps = [one["name"] for one in plan if "connect" in one["name"]]
    assert steps == [
        f"{what} connect{where} as {login}"
        for login in ("api~", "api")
        for what, where in (("Set web to", " to stats"), ("Release web to", ""))
    ]


def test_the_pooler_gets_a_new_password_before_any_client_uses_it(
    pyinfra: Pyinfra,
) -> None:
    host = fake(machine(), rotate="api", **POOLED, **USERS)
    plan = pyinfra.run("@fake/host", "commands/postgres_rotate.py", "--dry", *host)["plan"]
    tell = ["Give PgBouncer the verifiers", "Reload PgBouncer"]
    assert [one["name"] for one in plan] == rotation(*tell)


def test_a_second_login_acts_as_the_role_in_each_database(pyinfra: Pyinfra) -> None:
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
    host = fake(machine(), rotate="mig", **data)
    result = pyinfra.call("@fake/host", "commands/postgres_rotate.py", "--dry", *host)
    create, *said = said_to_psql(result)
    assert create.startswith('create role "mig~" login nosuperuser ')
    assert said == [
        """alter role "mig~" set jit to 'off';""",
        """alter role "mig~" set role to 'mig';""",
        'grant "mig" to "mig~";',
        'alter role "mig~" in database "shop" set role to own;',
    ]


@pytest.mark.parametrize("pooled", [False, True])
def test_each_login_reaches_the_replicas_by_a_release(pyinfra: Pyinfra, pooled: bool) -> None:
    _, state = json.loads(as_declared(USERS)[command(Roles, version=17)][0]).popitem()
    answers = machine() | {
        # A run that died left the second login.
        command(Roles, version=17): [json.dumps({"api": state, "api~": state})],
        "echo no account": ["wrong"],
        command(WrongPasswords, version=17): ["wrong api~"],
        command(UserList, version=17, roles=["api"]): ["wrong"],
    }
    users = "/etc/pgbouncer/userlist.txt"
    answers[command(Unit, unit="pgbouncer.service", reload_on=[users])] = [
        *("ActiveState=active", "UnitFileState=enabled", "started", f"stale_reload={users}")
    ]
    more = POOLED | api(pgbouncer=True) if pooled else {}
    host = fake(answers, rotate="api", **more)
    result = pyinfra.call("@fake/host", "commands/postgres_rotate.py", "-y", "-vv", *host)
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
    # PgBouncer must have the new verifier before a client uses the password.
    tell = ["list", "reload"] if pooled else []
    assert done == [
        "sql",
        # A second login that is left over keeps its password, which may be in use.
        *("set", *tell, "url api~", "refresh"),
        *("renew", *tell, "url api", "refresh"),
        *("sql", "forget", *tell),
    ]


# --- drops ----------------------------------------------------------------------------------------


def dropping(answers: Answers, **data: Any) -> list[str]:
    name = data.get("drop") or data["drop_role"]
    return fake(answers, **{"confirm": name, **data})


OLD = {
    "postgres_roles": [{"name": "old"}],
    "postgres_databases": [{"name": "old", "owner": "old"}],
}


KINDS = {"drop": "Dump and drop the database", "drop_role": "Drop the role"}


@pytest.mark.parametrize("key", KINDS)
def test_only_existing_databases_and_roles_are_dropped(
    pyinfra: Pyinfra, inventory: Any, key: str
) -> None:
    data = {key: "old", "confirm": "old"}
    hosts = inventory(
        there=(machine() | as_declared(OLD), data), gone=(machine() | as_declared(ONE), data)
    )
    plan = pyinfra.run(hosts, "commands/postgres_drop.py", "--dry")["plan"]
    assert [(one["name"], one["hosts_with_change"]) for one in plan] == [
        (f"{KINDS[key]} old", ["@fake/there"])
    ]


@pytest.mark.parametrize("key", KINDS)
def test_nothing_is_dropped_from_a_server_that_is_down(
    pyinfra: Pyinfra, inventory: Any, key: str
) -> None:
    down: Answers = {command(fact, version=17): ["down"] for fact in (Roles, Databases)}
    down["the server does not run"] = {"success": False}
    data = {key: "old", "confirm": "old"}
    hosts = inventory(down=(machine() | down, data), gone=(machine() | as_declared(ONE), data))
    dry = pyinfra.call(hosts, "commands/postgres_drop.py", "--dry", "-v")
    assert re.search(
        r"\[@fake/down\] .*the server is down: a dry run cannot see what it contains", dry.stderr
    )
    result = pyinfra.call(hosts, "commands/postgres_drop.py", "-y", "-vv")
    (operation,) = json.loads(result.stdout)["results"]["operations"]
    assert (operation["error"], operation["no_change"]) == (["@fake/down"], ["@fake/gone"])
    (said,) = re.findall(r">>> (.*the server does not run.*)", result.stderr)
    assert said.endswith(">&2; exit 1")
    assert not re.search(r">>> .*(pg_dump|rm -f)", result.stderr)


def test_a_role_is_dropped_with_its_password_and_no_database(pyinfra: Pyinfra) -> None:
    host = dropping(machine() | as_declared(OLD), drop_role="old")
    done = commands(pyinfra.call("@fake/host", "commands/postgres_drop.py", "-y", "-vv", *host))
    *_, drop, forget = done
    assert drop.startswith(
        "lines=$(runuser -u postgres -- env PGOPTIONS='-c search_path=pg_catalog "
    )
    assert forget == f"rm -f {PASSWORDS}/old~ {PASSWORDS}/old"
    assert not [line for line in done if "pg_dump" in line]


@pytest.fixture(scope="module")
def dropper(pyinfra: Pyinfra) -> str:
    """The command that drops a database."""
    host = dropping(machine() | as_declared(OLD), drop="old")
    done = commands(pyinfra.call("@fake/host", "commands/postgres_drop.py", "-y", "-vv", *host))
    (drop,) = [line for line in done if "pg_dump" in line]
    assert not [line for line in done if line.startswith("rm ")]
    return drop


def drop(command: str, directory: Path, runuser: str) -> CompletedProcess[str]:
    """Runs the command on this machine, with the script `runuser` in place of PostgreSQL."""
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
    # No session can connect during the dump; afterwards the old limit is back.
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

# The host; its settings; the planned steps; words of the message.
MAJORS: dict[str, tuple[Answers, dict[str, Any], list[str], str]] = {
    "bare": (machine(), {}, [], "Terrafirma manages no cluster here yet"),
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
        [STEPS[0], "Install the packages of the extensions", *STEPS[1:]],
        "From PostgreSQL 15 to 17",
    ),
    # A copy that shares blocks takes no room: the upgrade tries that before the old server stops.
    "no_room_but_shared": (
        machine(DEBIAN_13, *ON_15)
        | {NEEDS: ["online=yes", "size=2097152", "free=1048576", "type=xfs", "type=xfs"]},
        {},
        STEPS,
        "Only 1024 MB are free: unless the file systems copy by sharing blocks, the upgrade ends "
        "before the old server stops",
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
        [*STEPS, "Make and verify a first backup"],
        "From PostgreSQL 15 to 17",
    ),
    "back": (
        machine(DEBIAN_13, *RETIRED_15),
        {"upgrade": "back"},
        ["Go back to the old cluster", "Create the roles"],
        "rows written since then stay in 17/main only, which is kept, switched off. "
        "Set postgres_version = 15",
    ),
    "back_already": (
        machine(DEBIAN_13, *RETIRED_17),
        {"upgrade": "back"},
        # The steps that a run which died did not reach.
        ["Create the roles"],
        "15/main is back already: 17/main is kept",
    ),
    "back_below_pgbouncer": (
        machine(DEBIAN_13, *RETIRED_15),
        {"upgrade": "back", "pgbouncer_enabled": True},
        [
            *("Go back to the old cluster", "Create the roles"),
            "Let PostgreSQL's roles log in",
        ],
        "Back to 15/main",
    ),
    "clean": (
        machine(DEBIAN_13, *RETIRED_15),
        {"upgrade": "clean"},
        ["Remove the retired clusters"],
        "Removing 15/main, with all its data",
    ),
    "cleaned": (
        machine(DEBIAN_13, *ON_17),
        {"upgrade": "clean"},
        [],
        "no retired cluster to remove",
    ),
    # Unfinished clusters do not count: the next upgrade removes them.
    "clean_after_a_death": (
        machine(DEBIAN_13, *ON_15, *ON_17, "unfinished=17/main"),
        {"upgrade": "clean"},
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
    result = pyinfra.call(hosts, "commands/postgres_upgrade.py", "--dry")
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
            name: (machine(DEBIAN_13, *RETIRED_15) | {progress: said}, {"upgrade": "back"})
            for name, (said, _) in ENDS.items()
        }
    )
    result = pyinfra.call(hosts, "commands/postgres_upgrade.py", "-y", "-vv")
    (step,) = [
        one
        for one in json.loads(result.stdout)["results"]["operations"]
        if one["name"] == "Go back to the old cluster"
    ]
    assert set(step["success"]) == {f"@fake/{name}" for name, (_, good) in ENDS.items() if good}
    assert "No space left" in result.stderr
    for name in ("killed", "silent"):
        assert re.search(rf"\[@fake/{name}\] +the unit was stopped: journalctl -u", result.stderr)
    (start,) = [
        line
        for line in re.findall(r"\[@fake/done\] +>>> (.*)", result.stderr)
        if "systemd-run" in line
    ]
    assert "'ExecStopPost=/usr/local/bin/terrafirma postgres-upgrade recover 15 17'" in (
        start.replace("'\"'\"'", "'")
    )
    # Later steps configure the cluster that serves.
    done = "\n".join(re.findall(r"\[@fake/done\] +>>> (.*)", result.stderr))
    assert "/postgresql/15/bin/psql " in done
    assert "/postgresql/17/bin/psql " not in done

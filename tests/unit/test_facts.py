"""Facts: the shell is right (it runs here where it can), and so is what is read from its output."""

import fcntl
import getpass
import grp
import importlib
import inspect
import json
import os
import pkgutil
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api import FactBase, FactProcessError, StringCommand

import terrafirma.facts
from terrafirma.accounts import surplus
from terrafirma.facts.accounts import Accounts
from terrafirma.facts.backup import Archives, FirstArchive
from terrafirma.facts.caddy import CaddyVersion, Certificates, Names, reason
from terrafirma.facts.docker import ContainerReach, DockerAddresses, DockerNetworks
from terrafirma.facts.files import PathStates
from terrafirma.facts.logins import Logins
from terrafirma.facts.machine import (
    Hardware,
    KernelSettings,
    Listeners,
    Machine,
    UsedNetworks,
)
from terrafirma.facts.packages import AptLockHolder, MissingPackages
from terrafirma.facts.pgbouncer import ForeignPooler, UserList
from terrafirma.facts.postgres import (
    CONNECT,
    PSQL_OPTIONS,
    Contents,
    Databases,
    Roles,
    Server,
    WrongPasswords,
    at_server,
    connect,
    psql,
)
from terrafirma.facts.postgres_status import PostgresStatus
from terrafirma.facts.postgres_upgrade import UpgradeProgress, UpgradeState
from terrafirma.facts.release import ReleaseStatus
from terrafirma.facts.secrets import AppSecrets, DatabaseUrl
from terrafirma.facts.services import Unit
from terrafirma.paths import HOST_PROGRAM, PASSWORDS_PROGRAM
from terrafirma.reach import Seen
from terrafirma.settings import Account
from tests.unit.conftest import Program

# Paths on a host that are replaced by such of this machine, to run the shell here.
APT_LOCKS = [
    "/var/lib/apt/lists/lock",
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/cache/apt/archives/lock",
]
PASSWORDS = "/etc/terrafirma/secrets/postgres"
RELOADS = "/run/terrafirma"

HOSTILE = [
    "a b",
    "$(touch canary)",
    "`touch canary`",
    "'; touch canary; '",
    '"; touch canary; "',
    "-n",
]

ARGUMENTS: dict[type[FactBase[Any]], list[dict[str, Any]]] = {
    CaddyVersion: [{}],
    Certificates: [{"domains": ["acme.com", "www.acme.com"]}, {"domains": HOSTILE}],
    Names: [{"domains": ["localhost"]}, {"domains": HOSTILE}],
    Accounts: [
        {"homes": {}},
        {"homes": {"prod": "/home/prod"}},
        {"homes": dict.fromkeys(HOSTILE, "/")},
    ],
    AppSecrets: [{"directory": one} for one in HOSTILE],
    AptLockHolder: [{}],
    Archives: [{}],
    Contents: [{"version": 17}],
    Databases: [{"version": 17}],
    DockerAddresses: [{}],
    DatabaseUrl: [
        {"path": path, "url": "postgresql://api:*@host:5432/api", "role": "api", "user": "prod"}
        for path in HOSTILE
    ],
    DockerNetworks: [{}],
    FirstArchive: [
        *({"stamp": one, "configuration": [one]} for one in HOSTILE),
        {"stamp": "/x", "configuration": HOSTILE},
    ],
    # Absolute, as all paths on a host are.
    ForeignPooler: [{}],
    Hardware: [{"path": "/"}, *({"path": f"/nowhere/{one}"} for one in HOSTILE)],
    # Never from data: the names are our own.
    Logins: [
        {
            "path": one,
            "content": one,
            "users": {name: [] for name in HOSTILE},
            "connection": one,
            "me": one,
            "key": one,
        }
        for one in HOSTILE
    ],
    KernelSettings: [{"names": []}, {"names": ["net.ipv4.ip_nonlocal_bind", "vm.swappiness"]}],
    Listeners: [{"ports": [80]}, {"ports": [443, 80, 5432]}],
    Machine: [{}],
    ContainerReach: [{"names": []}, {"names": ["apps"]}, {"names": HOSTILE}],
    MissingPackages: [{"packages": []}, {"packages": ["caddy", "g++"]}, {"packages": HOSTILE}],
    Roles: [{"version": 17}],
    Server: [{"version": 17}],
    PostgresStatus: [{"version": 15}, {"version": 17}],
    PathStates: [{"paths": []}, {"paths": ["/etc"]}, {"paths": HOSTILE}],
    ReleaseStatus: [{"app": "api"}, *({"app": one} for one in HOSTILE)],
    Unit: [
        {"unit": "ssh.service"},
        {"unit": "a.service", "restart_on": ["/etc/a"], "reload_on": ["/etc/b", "/etc/c"]},
        {"unit": "a.service", "restart_on": HOSTILE, "reload_on": HOSTILE},
    ],
    UpgradeProgress: [{}, {"seen": 7}],
    UpgradeState: [{"old": 15, "new": 17}],
    UsedNetworks: [{}],
    UserList: [{"version": 17, "roles": []}, {"version": 17, "roles": ["api", "worker"]}],
    WrongPasswords: [{"version": 17}],
}
COMMANDS = [
    pytest.param(fact, arguments, id=f"{fact.__name__}-{number}")
    for fact, cases in ARGUMENTS.items()
    for number, arguments in enumerate(cases)
]


def text(fact: type[FactBase[Any]], **arguments: Any) -> str:
    command = fact().command(**arguments)
    return command.get_raw_value() if isinstance(command, StringCommand) else command


def shell(command: str, path: Path | None = None, stdin: str = "") -> list[str]:
    """What `command` prints; `path` holds programs that stand in for the host's."""
    environment = os.environ | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
    result = subprocess.run(
        ["sh", "-c", command],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if result.returncode:
        raise AssertionError(f"exit {result.returncode}: {result.stderr}")
    return result.stdout.splitlines()


def ask(
    fact: type[FactBase[Any]], path: Path | None = None, *, stdin: str = "", **arguments: Any
) -> Any:
    """The fact of this machine, as pyinfra gathers it."""
    output = shell(text(fact, **arguments), path, stdin)
    return fact().process(output) if output else fact().default()


class Cluster:
    """What the host says of a cluster 17/main: its configuration, and its server's pid file."""

    def __init__(self, program: Program, directory: Path) -> None:
        self.program = program
        self.data = directory / "it's data"
        self.data.mkdir()

    def runs(self, pid: int | None = None, socket: str = "/run/postgresql") -> Path:
        """A server with this data directory; the tests themselves are one somewhere else."""
        pid = self.server.pid if pid is None else pid
        lines = (pid, self.data, 1795526851, 6543, socket, "localhost", "  1818658  4", "ready")
        (self.data / "postmaster.pid").write_text("".join(f"{line}\n" for line in lines))
        return self.is_down()

    def is_down(self) -> Path:
        return self.program(
            "pg_conftool", f'test "$*" = "-s 17 main show data_directory" && echo "{self.data}"'
        )

    def is_not_there(self) -> Path:
        return self.program(
            "pg_conftool", "echo 'Error: cluster 17 main does not exist' >&2; exit 1"
        )

    @cached_property
    def server(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["sleep", "60"], cwd=self.data)


@pytest.fixture
def cluster(program: Program, tmp_path: Path) -> Iterator[Cluster]:
    one = Cluster(program, tmp_path)
    yield one
    one.server.kill()
    one.server.wait()


@pytest.fixture
def no_canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of what HOSTILE would have the shell do is done."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield
    assert list(Path.cwd().iterdir()) == []


# --- all of them ----------------------------------------------------------------------------------


def test_every_fact_is_in_the_table_of_this_file() -> None:
    facts = {
        value
        for module in pkgutil.iter_modules(terrafirma.facts.__path__, "terrafirma.facts.")
        for value in vars(importlib.import_module(module.name)).values()
        if inspect.isclass(value) and issubclass(value, FactBase)
        if value.__module__ == module.name
    }
    assert facts == set(ARGUMENTS)


@pytest.mark.parametrize(("fact", "arguments"), COMMANDS)
def test_the_shell_of_debian_can_parse_it(
    fact: type[FactBase[Any]], arguments: dict[str, Any]
) -> None:
    dash = shutil.which("dash") or "sh"
    result = subprocess.run(
        [dash, "-n"], input=text(fact, **arguments), capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(("fact", "arguments"), COMMANDS)
def test_what_it_is_given_is_never_run(
    fact: type[FactBase[Any]], arguments: dict[str, Any], program: Program, no_canary: None
) -> None:
    for name in ("docker", "systemctl", "borgmatic", "pg_lsclusters", "pg_conftool", "sudo"):
        path = program(name, "echo")
    subprocess.run(
        ["sh", "-c", text(fact, **arguments)],
        env=os.environ | {"PATH": f"{path}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )


@pytest.mark.parametrize(
    ("fact", "default"),
    [
        (Accounts, {"accounts": {}, "others": {}, "unread": False, "files": []}),
        (Logins, {"logins": {}, "absent": False, "unread": False, "error": "", "places": []}),
        (AptLockHolder, None),
        (Archives, []),
        (CaddyVersion, None),
        (Certificates, {"missing": [], "reasons": {}}),
        (Names, {"own": [], "names": {}}),
        (Contents, {}),
        (Databases, {}),
        (DockerAddresses, []),
        (AppSecrets, {"wrong": [], "other": []}),
        (DatabaseUrl, "no password"),
        (DockerNetworks, []),
        (FirstArchive, None),
        (ForeignPooler, False),
        (Hardware, None),
        (KernelSettings, {}),
        (Listeners, []),
        (ContainerReach, {"missing": [], "said_by": [], "seen": Seen()}),
        (MissingPackages, []),
        (PathStates, {}),
        (
            ReleaseStatus,
            {
                "serving": "",
                "wanted": "",
                "withdrawn": False,
                "current": False,
                "trouble": "",
                "silent": [],
                "troubles": [],
                "notes": [],
            },
        ),
        (Roles, {}),
        (Server, {"pending": [], "restart": [], "by_hand": []}),
        (
            Unit,
            {
                "active": False,
                "enabled": False,
                "stale_units": [],
                "stale": [],
                "stale_reload": [],
            },
        ),
        (UpgradeProgress, {"running": False, "lines": []}),
        (
            UpgradeState,
            {
                "online": False,
                "size": 0,
                "free": 0,
                "may_share": False,
                "inside": [],
                "packages": [],
                "missing": [],
            },
        ),
        (UsedNetworks, []),
        (UserList, "no verifiers"),
        (WrongPasswords, []),
    ],
)
def test_no_output_is_an_answer(fact: type[FactBase[Any]], default: Any) -> None:
    assert fact().default() == default


def test_a_machine_that_says_nothing_is_an_unknown_system() -> None:
    """pyinfra also hands out the default when the command failed, and goes on with others."""
    nothing = Machine().default()
    assert nothing is not None
    assert (nothing["id"], nothing["root"], nothing["booting"]) == ("", False, False)


def test_a_default_is_nobody_elses() -> None:
    Unit().default()["stale"].append("/etc/x")
    assert Unit().default()["stale"] == []


@pytest.mark.parametrize(
    ("fact", "output"),
    [
        (Accounts, ["asked|prod", "account|prod|prod|prod:x:1000"]),
        (Accounts, ["asked|prod", "account|prod|prod|prod:x:many:1000::/home/prod:/bin/bash"]),
        (Accounts, ["account|dev|dev|dev:x:1000:1000::/home/dev:/bin/sh"]),
        (Accounts, ["asked|prod", "shadow|prod|none|1"]),
        (Accounts, ["asked|prod", "directory|prod|0|rwx|root|directory"]),
        (Accounts, ["sh: 1: getent: not found"]),
        (Logins, ["sshd: no hostkeys available"]),
        (Logins, ["rule|dev|usepam yes"]),
        (Logins, ["user|dev"]),
        (Archives, ["Remote: Permission denied (publickey)."]),
        (Archives, ["[{}]"]),
        (Archives, ['{"archives": []}']),
        (Archives, ["7"]),
        (Contents, ["psql: error: connection to server failed"]),
        (Contents, ["null"]),
        (Contents, ["7"]),
        (Contents, ['{"database": "api", "extensions": []}']),
        # The second database is where it went wrong.
        (
            Contents,
            ['{"database": "api", "extensions": [], "schemas": {}}', "ERROR:  out of memory"],
        ),
        (Databases, ["psql: error: connection to server failed"]),
        (Databases, ["null"]),
        # Without the line that comes first.
        (DockerAddresses, ["5: docker0    inet 10.210.0.1/24 scope global docker0"]),
        (DockerAddresses, ["daemon={broken"]),
        (DockerAddresses, ["daemon=[]"]),
        (DockerAddresses, ['daemon={"bip": "somewhere"}']),
        (DockerAddresses, ['daemon={"bip": null}']),
        (DockerAddresses, ['daemon={"ipv6": true, "fixed-cidr-v6": "10.9.0.0/24"}']),
        (DockerAddresses, ["daemon=", "<no value>"]),
        (DockerAddresses, ["daemon=", "10.210.0.0/24"]),
        (DockerAddresses, ["daemon=", "5: docker0    inet somewhere/24 scope global docker0"]),
        (
            DockerAddresses,
            [
                "daemon=",
                "5: docker0    inet 10.210.0.1/24 scope global docker0",
                "5: docker0    inet6",
            ],
        ),
        (DockerNetworks, ["daemon=", "Error response from daemon"]),
        (DockerNetworks, ["daemon={broken", "null"]),
        (DockerNetworks, ["daemon=", "null", '[{"Name": "apps"}]']),
        (
            DockerNetworks,
            [
                "daemon=",
                "null",
                '[{"Name": "apps", "IPAM": {"Config": [{"Gateway": "10.0.0.1"}]}}]',
            ],
        ),
        (
            DockerNetworks,
            [
                "daemon=",
                "null",
                '[{"Name": "a", "IPAM": {"Config": [{"Subnet": "everywhere"}]}}]',
            ],
        ),
        (DockerNetworks, ["daemon="]),
        (DockerNetworks, ["null", '[{"Name": "apps", "IPAM": {"Config": []}}]']),
        (DockerNetworks, ['daemon={"bip": "somewhere"}', "null"]),
        (DockerNetworks, ["daemon=", '[{"Size": 24}]']),
        (CaddyVersion, ["caddy: command not found"]),
        (Certificates, ["journalctl: invalid option"]),
        (Names, ["own somewhere"]),
        (Names, ["name acme.com"]),
        (Names, ["sh: 1: ip: not found"]),
        (Hardware, ["cores=4"]),
        (Hardware, ["memory=8148804", "cores="]),
        (Hardware, ["memory=plenty", "cores=4"]),
        (Hardware, ["awk: cannot open /proc/meminfo (No such file or directory)"]),
        (KernelSettings, ["sh: 1: Syntax error"]),
        (KernelSettings, ["/proc/sys/kernel/ostype=Linux", "cat: /proc/sys/x: Permission denied"]),
        (Listeners, ["State Recv-Q Send-Q"]),
        (Listeners, ["http|caddy|caddy.service"]),
        (Machine, ["id=debian", "free_kb=plenty"]),
        (PathStates, ["stat: cannot statx '/x': Permission denied"]),
        (PathStates, ["8f8d84a9d15dd8bd30c814e80df8dbdc48240f5c13e4e59da35ed453ade9a6ff  -"]),
        (ReleaseStatus, ["Traceback (most recent call last):"]),
        (ContainerReach, ["network={}"]),
        (ContainerReach, ['network={"name": "apps"}']),
        (ContainerReach, ['container={"name": "x", "ports": {"80": [{}]}, "networks": 7}']),
        (ContainerReach, ["kernel=net"]),
        (ContainerReach, ["rule=-A FORWARD -j"]),
        (ReleaseStatus, ["null"]),
        (ReleaseStatus, ["7"]),
        (ReleaseStatus, ['{"serving": "", "wanted": "", "withdrawn": false, "current": false}']),
        (Roles, ["psql: error: connection to server failed"]),
        (Roles, ["null"]),
        (Server, ["psql: error: connection to server failed"]),
        (Server, ["null"]),
        (Server, ['{"pending": [], "restart": []}']),
        (Unit, ["ActiveState=active", "UnitFileState=enabled"]),
        (UpgradeProgress, ["tail: cannot open '/x' for reading: Permission denied"]),
        (UpgradeState, ["online=yes", "size=", "free=1000"]),
        (UpgradeState, ["online=yes", "size=7"]),
        (UpgradeState, ["psql: error: connection to server failed"]),
        (ForeignPooler, ["dpkg: error"]),
        (UserList, ['"api" "SCRAM-SHA-256$4096:salt$stored:server"']),
        (UserList, ["right", "wrong"]),
        (UsedNetworks, ["10.210.0.1/33"]),
        (UsedNetworks, ["192.0.2.0/24", "10.0.0.300"]),
    ],
)
def test_an_answer_that_makes_no_sense_fails_only_this_host(
    fact: type[FactBase[Any]], output: list[str]
) -> None:
    """Any other exception would end the run of all hosts with a traceback."""
    with pytest.raises(FactProcessError) as error:
        fact().process(output)
    assert "\n" not in str(error.value)


# --- accounts -------------------------------------------------------------------------------------


def test_accounts_of_a_host() -> None:
    """As Debian 13 answers: an image's account, and one that is not there yet."""
    state = Accounts().process(
        [
            "unread|",
            "file|/etc/sudoers.d/90-terrafirma-temp",
            "asked|dev",
            "group|dev|1002",
            "directory|dev|1002|750|dev|directory",
            "ssh|dev|0|777|root|symbolic link",
            "keys|dev|/home/dev/.ssh/authorized_keys",
            "account|users|users docker adm|dev:x:1002:100:Dev | Ops:/home/dev:/bin/sh",
            "local|dev",
            "twin|dev|ops",
            "shadow|dev|none|20784|90|7|",
            "sudo|dev|Matching Defaults entries for dev on db1:",
            "sudo|dev|    env_reset, secure_path=/usr/sbin\\:/usr/bin",
            "sudo|dev|",
            "sudo|dev|User dev may run the following commands on db1:",
            "sudo|dev|",
            "sudo|dev|Sudoers entry: /etc/sudoers",
            "sudo|dev|    RunAsUsers: ALL",
            "sudo|dev|    RunAsGroups: ALL",
            "sudo|dev|    Commands:",
            "sudo|dev|\tALL",
            "sudo|dev|",
            "sudo|dev|Sudoers entry: /etc/sudoers.d/90-cloud-init-users",
            "sudo|dev|    RunAsUsers: root",
            "sudo|dev|    Options: !authenticate, setenv",
            "sudo|dev|    Commands:",
            'sudo|dev|\t/bin/ls ""',
            "sudo|dev|\t!/bin/sh -c a|b",
            "line|dev|/etc/sudoers.d/90-cloud-init-users:3|dev",
            "line|dev|/etc/sudoers:50|%sudo",
            "asked|prod",
            "other|debian|keys, sudo",
        ]
    )
    dev, prod = state["accounts"]["dev"], state["accounts"]["prod"]
    assert (state["unread"], state["files"]) == (True, ["/etc/sudoers.d/90-terrafirma-temp"])
    assert state["others"] == {"debian": "keys, sudo"}
    assert (prod["uid"], prod["directory"], prod["rules"]) == (None, None, [])
    assert (dev["uid"], dev["gid"], dev["group"], dev["group_gid"]) == (1002, 100, "users", 1002)
    assert (dev["groups"], dev["home"], dev["shell"]) == (["adm", "docker"], "/home/dev", "/bin/sh")
    assert (dev["local"], dev["twins"]) == (True, ["ops"])
    assert (dev["password"], dev["last_change"], dev["max_days"]) == ("none", "20784", "90")
    assert (dev["inactive"], dev["expires"]) == ("7", "")
    assert dev["directory"] == {"kind": "directory", "user": "dev", "uid": 1002, "mode": 0o750}
    assert dev["keys"] == "/home/dev/.ssh/authorized_keys"
    assert dev["ssh"] == {"kind": "symbolic link", "user": "root", "uid": 0, "mode": 0o777}
    assert dev["rules"] == [
        {"source": "/etc/sudoers", "options": [], "commands": ["ALL"]},
        {
            "source": "/etc/sudoers.d/90-cloud-init-users",
            "options": ["!authenticate", "setenv"],
            "commands": ['/bin/ls ""', "!/bin/sh -c a|b"],
        },
    ]
    assert dev["lines"] == [
        ("/etc/sudoers.d/90-cloud-init-users:3", "dev"),
        ("/etc/sudoers:50", "%sudo"),
    ]


RULE = ["    RunAsUsers: ALL", "    Options: !authenticate", "    Commands:", "\tALL", ""]


def rules(*lines: str) -> list[dict[str, Any]]:
    """The rules in what sudo says."""
    said = ["sudo: unable to resolve host db1", "User dev may run the following:", "", *lines]
    state = Accounts().process(["asked|dev", *(f"sudo|dev|{line}" for line in said)])
    found: list[dict[str, Any]] = [{**rule} for rule in state["accounts"]["dev"]["rules"]]
    return found


@pytest.mark.parametrize(
    ("head", "source"),
    [
        ("Sudoers entry: /etc/sudoers", "/etc/sudoers"),
        ("Sudoers entry:", ""),
        ("LDAP Role: admins", "LDAP role admins"),
        ("LDAP Role: all: of them", "LDAP role all: of them"),
        ("SSSD Role: admins", "SSSD role admins"),
    ],
)
def test_where_a_rule_is_from(head: str, source: str) -> None:
    every = {"source": source, "options": ["!authenticate"], "commands": ["ALL"]}
    assert rules(head, *RULE) == [every]
    own = ["Sudoers entry: /x", "    RunAsUsers: root", "    Commands:", "\t/bin/ls", ""]
    assert rules(*own, head, *RULE)[1:] == [every]
    assert list(surplus(Account(name="dev"), account(rules(head, *RULE))))


def account(rules: list[dict[str, Any]]) -> Any:
    """The account `dev`, with these rules."""
    state = Accounts().process(["asked|dev", "account|dev|dev|dev:x:1002:1002::/home/dev:/bin/sh"])
    changed: Any = {**state["accounts"]["dev"], "rules": rules}
    return changed


def test_what_else_a_rule_says_is_no_command() -> None:
    """As sudo 1.9.13 answers."""
    more = ["    Cwd: /tmp", "    Timeout: 5", "    NotBefore: 20200101000000Z"]
    (one,) = rules("Sudoers entry:", "    RunAsUsers: root", *more, "    Commands:", "\t/bin/ls")
    assert one["commands"] == ["/bin/ls"]
    for unknown in ("Directory entry: x", "  ALL", "NIS: ALL"):
        with pytest.raises(FactProcessError):
            rules("Sudoers entry:", *RULE, unknown)


def test_accounts_of_this_machine(tmp_path: Path) -> None:
    me = getpass.getuser()
    keys = tmp_path / ".ssh/authorized_keys"
    keys.mkdir(parents=True)
    known = ask(Accounts, homes={"no-such-account": str(tmp_path), me: "/no/such"})["accounts"]
    assert (known["no-such-account"]["keys"], known[me]["keys"]) == (str(keys), "")
    assert known["no-such-account"]["uid"] is None
    assert known["no-such-account"]["directory"]["uid"] == os.getuid()
    assert known[me]["uid"] == os.getuid()
    assert known[me]["directory"] is None
    assert known[me]["group"] == grp.getgrgid(known[me]["gid"]).gr_name
    assert known[me]["group"] not in known[me]["groups"]
    assert known[me]["local"] is True


def test_groups_that_share_a_number(program: Program) -> None:
    """`id` names one of them, and the account is in the other."""
    entry = "dev:x:1002:1002::/home/dev:/bin/sh"
    program(
        "getent",
        f"""case $*:$# in
        "group:1") printf '%s\\n' aaa:x:1002: dev:x:1002: g1:x:3000:devs g2:x:3000:bob,dev ;;
        "group dev:2") echo dev:x:1002: ;;
        passwd*) echo {entry} ;; esac""",
    )
    path = program("id", """case $* in "-gn dev") echo aaa ;; "-Gn dev") echo aaa g1 ;; esac""")
    dev = ask(Accounts, path, homes={"dev": "/home/dev"})["accounts"]["dev"]
    assert (dev["group"], dev["groups"]) == ("dev", ["g2"])


def test_homes_of_an_account(program: Program, tmp_path: Path) -> None:
    """The old one is somebody else's; the new one is a link to nothing."""
    me = os.getuid()
    program("getent", f"test $1 != passwd || echo dev:x:1002:1002::{tmp_path}:/bin/sh")
    path = program("id", "echo dev")
    (tmp_path / "link").symlink_to("/no/such")
    dev = ask(Accounts, path, homes={"dev": str(tmp_path / "link")})["accounts"]["dev"]
    assert (dev["old"]["uid"], dev["old"]["kind"]) == (me, "directory")
    assert (dev["directory"]["uid"], dev["directory"]["kind"]) == (me, "symbolic link")


def test_who_has_which_line_of_sudoers(tmp_path: Path) -> None:
    """The shell's own part of it, on files of a test."""
    sudoers = tmp_path / "sudoers"
    sudoers.write_text(
        "# dev ALL=ALL\nDefaults:dev !authenticate\nUser_Alias OPS = dev\nroot ALL=(ALL) ALL\n"
        "%sudo\tALL=(ALL:ALL) ALL\n  dev ALL=(ALL) NOPASSWD: /bin/ls\nbob, dev db1 = ALL\n"
        "#1002 ALL=ALL\nOPS ALL=ALL\nALL ALL=/bin/w\n+net ALL=ALL\n%adm ALL=ALL\ndevs ALL=ALL\n"
        "@includedir /etc/sudoers.d\n"
    )
    command = (
        text(Accounts, homes={})
        .replace("/etc/sudoers.d/*", "")
        .replace("/etc/sudoers", str(sudoers))
    )
    named = command[command.index("named() {") : command.index("test ! -f")]
    lines = shell(f"{named} named dev 1002 'dev sudo'")
    assert [line.rpartition(":")[2] for line in lines] == [
        *("5|%sudo", "6|dev", "7|dev", "8|#1002", "9|OPS", "10|ALL", "11|+net"),
    ]


# --- logins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "absent"),
    [
        ("ssh-ed25519 AAAA+/b= me", False),
        ('command="echo #" ssh-ed25519 AAAA+/b=', False),
        ("ssh-ed25519 AAAA+/c=\n  ssh-ed25519 AAAA+/b=", False),
        ("# ssh-ed25519 AAAA+/b=", True),
        ("ssh-ed25519 AAAA+/c=", True),
        ("", True),
        (None, True),
    ],
)
def test_where_the_key_in_use_is(
    program: Program, tmp_path: Path, keys: str | None, absent: bool
) -> None:
    programs = program("getent", f"echo me:x:0:0::{tmp_path}:/bin/sh")
    if keys is not None:
        (tmp_path / ".ssh").mkdir()
        (tmp_path / ".ssh/authorized_keys").write_text(f"{keys}\n")
    said = {"path": "", "content": "", "users": {}, "connection": "", "me": "me"}
    for key, answer in (("AAAA+/b=", absent), ("", False)):
        output = shell(text(Logins, key=key, **said), programs)
        assert Logins().process(output)["absent"] is answer


INCLUDES = {
    "Include /etc/ssh/sshd_config.d/*.conf": "Include COPY/d/*.conf",
    "include=sshd_config.d/*.conf": "include=COPY/d/*.conf",
    ' Include "/etc/ssh/sshd_config.d/*.conf"': ' Include "COPY/d/*.conf"',
    "Include /etc/ssh/a.conf /etc/ssh/sshd_config.d/*.conf":
        "Include /etc/ssh/a.conf COPY/d/*.conf",
    "Include sshd_config.d/0*.conf /etc/ssh/sshd_config.d/*.conf":
        "Include COPY/d/0*.conf COPY/d/*.conf",
    "# Include /etc/ssh/sshd_config.d/*.conf": None,
    "Include /srv/sshd_config.d/*.conf": None,
    "Include /etc/ssh/a.conf": None,
}  # fmt: skip


@pytest.mark.parametrize(("line", "copied"), INCLUDES.items())
def test_which_lines_read_our_file(tmp_path: Path, line: str, copied: str | None) -> None:
    config = tmp_path / "config"
    config.write_text(f"{line}\n")
    said = {"path": "", "content": "", "users": {}, "connection": "", "me": "", "key": ""}
    command = text(Logins, **said)
    part = command[command.index('sed -E "/^') : command.index("cp /etc/passwd")]
    part = part.replace("    /etc/ssh/sshd_config >", f"    {config} >")
    output = shell(f"mkdir {tmp_path}/copy; copy={tmp_path}/copy; {part}")
    result = (tmp_path / "copy/sshd_config").read_text().strip("\n")
    assert result.replace(f"{tmp_path}/copy", "COPY") == (copied or line)
    assert output == (["unread|"] if copied is None else [])


# The options in /etc/default/ssh, those of the unit, what sshd is given, and from where it is.
STARTS = {
    "": ("-D $SSHD_OPTS", [], []),
    "SSHD_OPTS=": ("-D $SSHD_OPTS", [], []),
    'SSHD_OPTS="-o PasswordAuthentication=yes"':
        ("-D $SSHD_OPTS", ["PasswordAuthentication=yes"], ["PasswordAuthentication|DEFAULT"]),
    "SSHD_OPTS=-4 -oUsePAM=no -p 22": ("-D ${SSHD_OPTS}", ["UsePAM=no"], ["UsePAM|DEFAULT"]),
    "SSHD_OPTS=\"-o 'AllowUsers bob eve'\"":
        ("-D $SSHD_OPTS", ["AllowUsers bob eve"], ["AllowUsers|DEFAULT"]),
    "#SSHD_OPTS=-o UsePAM=no\nSSHD_OPTS=-u0":
        ("-D -o DenyUsers=dev $SSHD_OPTS", ["DenyUsers=dev"], ["DenyUsers|ssh.service"]),
    # Nobody reads it.
    "SSHD_OPTS=-oUsePAM=no": ("-D", [], []),
}  # fmt: skip


def started(program: Program, tmp_path: Path, default: str, unit: str) -> list[str]:
    (tmp_path / "default").write_text(f"{default}\n")
    shown = f"{{ path=/usr/sbin/sshd ; argv[]=/usr/sbin/sshd {unit} ; ignore_errors=no ; pid=0 }}"
    programs = program("systemctl", f"echo '{shown}'")
    said = {"path": "", "content": "", "users": {}, "connection": "", "me": "", "key": ""}
    command = text(Logins, **said)
    part = command[command.index("given=$(sed") : command.index("cp /etc/passwd")]
    part = part.replace("/etc/default/ssh 2>", f"{tmp_path}/default 2>")
    return shell(f"copy={tmp_path}; export copy given; {part}", programs)


@pytest.mark.parametrize(("default", "rest"), STARTS.items())
def test_the_options_that_sshd_is_started_with(
    program: Program, tmp_path: Path, default: str, rest: tuple[str, list[str], list[str]]
) -> None:
    unit, options, places = rest
    output = started(program, tmp_path, default, unit)
    words = (tmp_path / "options").read_text().split("\0")[:-1]
    assert words == [word for option in options for word in ("-o", option)]
    places = [place.replace("DEFAULT", "/etc/default/ssh") for place in places]
    assert output == [f"place|{place}" for place in places]


def test_another_configuration_that_sshd_is_started_with(program: Program, tmp_path: Path) -> None:
    (line,) = started(program, tmp_path, "SSHD_OPTS=-f /srv/sshd", "-D $SSHD_OPTS")
    assert line.startswith("error|it is started with -f /srv/sshd (/etc/default/ssh)")
    assert started(program, tmp_path, "", "-D -f /etc/ssh/sshd_config") == []


def test_the_groups_that_accounts_are_going_to_have(tmp_path: Path) -> None:
    """One that changes groups, one that is new, one that is left alone; a group that is new."""
    (tmp_path / "passwd").write_text(
        "root:x:0:0::/root:/bin/sh\ndev:x:1002:990::/d:/bin/sh\nops:x:1003:1003::/o:/bin/sh\n"
    )
    (tmp_path / "group").write_text(
        "root:x:0:\ndocker:x:990:ops,dev\nadm:x:4:devs,dev,ops\nsftp:x:995:ops\ndev:x:1002:\n"
    )
    users = {"dev": ["dev", "sftp", "team"], "new": ["new", "team"], "ops": []}
    said = {"path": "", "content": "", "connection": "", "me": "", "key": ""}
    command = text(Logins, users=users, **said)
    words = command[command.index("; set --") + 2 : command.index(" ;", command.index("set --"))]
    part = command[command.index("cp /etc/passwd") : command.index('chmod 644 "$copy')]
    part = part.replace("/etc/passwd /etc/group", f"{tmp_path}/passwd {tmp_path}/group")
    shell(f"{words}; copy={tmp_path}/copy; mkdir $copy; {part}")
    lines = (tmp_path / "copy/group").read_text().splitlines()
    groups = {name: (gid, members) for name, _, gid, members in (line.split(":") for line in lines)}
    assert len({gid for gid, _ in groups.values()}) == len(lines)
    assert {name: members for name, (_, members) in groups.items()} == {
        "root": "",
        "docker": "ops",
        "adm": "devs,ops",
        "sftp": "dev,ops",
        "dev": "dev",
        "team": "new,dev",
        "new": "new",
    }
    accounts = (tmp_path / "copy/passwd").read_text().splitlines()
    assert [line.split(":")[0] for line in accounts] == ["root", "ops", "dev", "new"]
    assert accounts[2].split(":")[3] == "1002"
    assert accounts[3].split(":")[3] == groups["new"][0]


def test_what_sshd_says_of_logins() -> None:
    state = Logins().process(
        [
            "unread|",
            "user|dev|dev adm",
            "rule|dev|usepam yes",
            "rule|dev|allowusers dev",
            "rule|dev|allowusers root",
            "rule|dev|forcecommand echo a|b",
            "user|nobody-yet|",
            "place|AllowUsers|/etc/ssh/sshd_config.d/50-x.conf:3",
            "error|/etc/ssh/sshd_config.d/50-x.conf: line 2: Bad | option",
        ]
    )
    assert state["logins"]["dev"]["groups"] == ["dev", "adm"]
    assert state["logins"]["dev"]["rules"] == {
        "usepam": ["yes"],
        "allowusers": ["dev", "root"],
        "forcecommand": ["echo a|b"],
    }
    assert state["logins"]["nobody-yet"] == {"rules": {}, "groups": []}
    assert state["places"] == [("allowusers", "/etc/ssh/sshd_config.d/50-x.conf:3")]
    assert state["unread"] is True
    assert state["error"] == "/etc/ssh/sshd_config.d/50-x.conf: line 2: Bad | option"


# --- files ----------------------------------------------------------------------------------------


def test_paths_of_a_host() -> None:
    assert PathStates().process(
        [
            "644|root|root|regular file|/etc/hostname",
            "465c49ce69b998fd4f6d15bd24f74a9e9fc651f4902cbafb055252008e2d66f7  -",
            "700|root|root|directory|/etc/terrafirma/secrets",
            "666|root|root|character special file|/dev/null",
            "600|prod|prod|regular empty file|/home/prod/a|b",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  -",
        ]
    ) == {
        "/etc/hostname": {
            "kind": "file",
            "mode": "644",
            "user": "root",
            "group": "root",
            "sha256": "465c49ce69b998fd4f6d15bd24f74a9e9fc651f4902cbafb055252008e2d66f7",
        },
        "/etc/terrafirma/secrets": {
            "kind": "directory",
            "mode": "700",
            "user": "root",
            "group": "root",
            "sha256": "",
        },
        "/dev/null": {
            "kind": "other",
            "mode": "666",
            "user": "root",
            "group": "root",
            "sha256": "",
        },
        "/home/prod/a|b": {
            "kind": "file",
            "mode": "600",
            "user": "prod",
            "group": "prod",
            "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        },
    }


def test_paths_of_this_machine(tmp_path: Path) -> None:
    hello, empty, directory = (tmp_path / name for name in ("it's $HOME", "empty", "directory"))
    hello.write_text("hello\n")
    hello.chmod(0o640)
    empty.touch(0o600)
    directory.mkdir(0o2750)
    directory.chmod(0o2750)
    link, broken = tmp_path / "link", tmp_path / "broken"
    link.symlink_to(hello)
    broken.symlink_to(tmp_path / "nowhere")
    known = ask(
        PathStates,
        paths=[str(one) for one in (hello, broken, empty, directory, link, tmp_path / "no")],
    )
    assert list(known) == [str(hello), str(empty), str(directory), str(link)]
    assert known[str(hello)] == {
        "kind": "file",
        "mode": "640",
        "user": getpass.getuser(),
        "group": grp.getgrgid(hello.stat().st_gid).gr_name,
        "sha256": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
    }
    assert known[str(link)] == known[str(hello)]
    assert known[str(empty)]["kind"] == "file"
    assert known[str(empty)]["sha256"].startswith("e3b0c44298fc1c14")
    assert known[str(directory)]["kind"] == "directory"
    assert known[str(directory)]["mode"] == "2750"
    assert ask(PathStates, paths=["/dev/null"])["/dev/null"]["kind"] == "other"


# --- packages -------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="not a Debian system")
def test_packages_of_this_machine() -> None:
    missing = ["no-such-package-b", "no-such-package-a"]
    assert ask(MissingPackages, packages=["dpkg", missing[0], "bash", missing[1]]) == missing
    assert ask(MissingPackages, packages=["dpkg", "bash"]) == []


@pytest.mark.parametrize(
    ("status", "missing"),
    [
        ("echo installed", []),
        ("echo config-files", ["caddy"]),
        ("echo half-configured", ["caddy"]),
        ("echo not-installed", ["caddy"]),
        ("echo 'dpkg-query: no packages found matching caddy' >&2; exit 1", ["caddy"]),
        # Two architectures of one package.
        ("echo installed; echo installed", []),
    ],
)
def test_a_package_counts_once_it_is_installed(
    program: Program, status: str, missing: list[str]
) -> None:
    assert ask(MissingPackages, program("dpkg-query", status), packages=["caddy"]) == missing


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "lock"
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield path


def test_the_holder_of_a_lock_is_named(lock: Path, tmp_path: Path) -> None:
    command = text(AptLockHolder)
    for one in APT_LOCKS:
        assert one in command
    free = tmp_path / "free"
    free.touch()
    for number, one in enumerate(reversed(APT_LOCKS)):
        command = command.replace(one, str((free, lock, tmp_path / "no", free)[number]))
    me = Path("/proc/self/comm").read_text().strip()
    assert AptLockHolder().process(shell(command)) == f"{me} (pid {os.getpid()})"


def test_locks_that_nobody_holds(tmp_path: Path) -> None:
    command = text(AptLockHolder)
    for one in reversed(APT_LOCKS):
        command = command.replace(one, str(tmp_path))
    assert shell(command) == []


def test_the_holder_of_a_lock_on_a_host() -> None:
    assert AptLockHolder().process(["unattended-upgr (pid 812)"]) == "unattended-upgr (pid 812)"


# --- machine --------------------------------------------------------------------------------------

MACHINE = """\
id=debian
version=13
name=Debian GNU/Linux 13 (trixie)
architecture=amd64
user=root
root=yes
systemd=yes
free_kb=78453624
cluster=17/main
own=17/main
""".splitlines()


def test_a_host() -> None:
    state = Machine().process(MACHINE)
    assert state == {
        "free_gb": pytest.approx(74.8, abs=0.1),
        "id": "debian",
        "version": "13",
        "name": "Debian GNU/Linux 13 (trixie)",
        "architecture": "amd64",
        "user": "root",
        "root": True,
        "sudo": False,
        "sudo_answer": "",
        "connection": "",
        "missing": [],
        "systemd": True,
        "booting": False,
        "clusters": ["17/main"],
        "own_clusters": ["17/main"],
        "retired_clusters": [],
        "unfinished_clusters": [],
        "upgrading": False,
        "postgres_offered": [],
        "foreign_engine": [],
        "foreign_caddyfile": False,
        "pooler": False,
        "networks": [],
    }


def test_a_host_on_its_first_day() -> None:
    state = Machine().process(
        [
            *("id=ubuntu", "version=24.04", "name=Ubuntu 24.04.3 LTS", "architecture=arm64"),
            *("user=ubuntu", "sudo=yes", "systemd=yes", "free_kb=7340032", "booting=yes"),
            *("cluster=14/main", "cluster=16/old"),
        ]
    )
    assert (state["root"], state["sudo"], state["booting"]) == (False, True, True)
    assert (state["free_gb"], state["clusters"], state["own_clusters"]) == (
        7,
        ["14/main", "16/old"],
        [],
    )


@pytest.fixture
def machine(tmp_path: Path, program: Program) -> Callable[..., Any]:
    """Asks a machine whose files are below `tmp_path`, and which knows of no package."""
    # The real one reads the lists of all packages, each time.
    without_packages = program("apt-cache", "exit 0")

    def read(programs: Path = without_packages) -> Any:
        command = text(Machine)
        for path in (
            "/etc/os-release",
            "/run/systemd/system",
            "/run/systemd/transient",
            "/run/cloud-init",
            "/etc/postgresql",
            "/etc/systemd/system",
            "/etc/caddy",
            "/sys/class/net",
        ):
            assert path in command
            command = command.replace(path, f"{tmp_path}{path}")
        return Machine().process(shell(command, programs))

    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "os-release").write_text(
        'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n'
    )
    return read


def test_this_machine(machine: Callable[..., Any]) -> None:
    state = machine(Path("/usr/bin"))
    assert (state["id"], state["version"], state["name"]) == (
        "debian",
        "12",
        "Debian GNU/Linux 12 (bookworm)",
    )
    assert state["user"] == getpass.getuser()
    assert state["root"] == (os.getuid() == 0)
    free = min(shutil.disk_usage(path).free for path in ("/", "/var")) / 1024**3
    assert state["free_gb"] == pytest.approx(free, abs=1)
    assert state["architecture"]
    assert (state["systemd"], state["booting"], state["clusters"]) == (False, False, [])


def test_a_machine_without_os_release(machine: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "etc" / "os-release").unlink()
    state = machine()
    assert (state["id"], state["name"]) == ("", "an unknown system")
    assert state["user"] == getpass.getuser()


def test_cloud_init_comes_and_goes(machine: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run" / "cloud-init").mkdir(parents=True)
    assert machine()["booting"]
    (tmp_path / "run" / "cloud-init" / "result.json").touch()
    assert not machine()["booting"]


def test_cloud_init_that_is_switched_off(machine: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run" / "cloud-init").mkdir(parents=True)
    (tmp_path / "run" / "cloud-init" / "disabled").touch()
    assert not machine()["booting"]


def test_systemd_and_clusters_are_seen(machine: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run" / "systemd" / "system").mkdir(parents=True)
    for cluster in ("15/main", "17/main"):
        directory = tmp_path / "etc" / "postgresql" / cluster
        directory.mkdir(parents=True)
        (directory / "postgresql.conf").touch()
    mark = tmp_path / "etc/systemd/system/postgresql@17-main.service.d/terrafirma.conf"
    mark.parent.mkdir(parents=True)
    mark.touch()
    state = machine()
    assert state["systemd"]
    assert (state["clusters"], state["own_clusters"]) == (["15/main", "17/main"], ["17/main"])


@pytest.mark.parametrize(
    ("mark", "active", "enabled", "pooler"),
    [
        (True, 0, 0, True),
        (True, 0, 1, True),
        (True, 3, 0, True),
        (True, 3, 1, False),
        # Somebody else's, or only the package.
        (False, 0, 0, False),
    ],
)
def test_a_pooler_of_ours_is_seen_while_it_runs_or_would(
    machine: Callable[..., Any],
    program: Program,
    tmp_path: Path,
    mark: bool,
    active: int,
    enabled: int,
    pooler: bool,
) -> None:
    if mark:
        drop_in = tmp_path / "etc/systemd/system/pgbouncer.service.d/terrafirma.conf"
        drop_in.parent.mkdir(parents=True)
        drop_in.touch()
    path = program(
        "systemctl", f'case "$*" in *is-active*) exit {active} ;; *) exit {enabled} ;; esac'
    )
    assert machine(path)["pooler"] is pooler


def test_a_cluster_is_ours_from_before_it_is_made(
    machine: Callable[..., Any], tmp_path: Path
) -> None:
    """Files below its directory are no mark: a run that dies may leave a cluster without them."""
    directory = tmp_path / "etc" / "postgresql" / "17" / "main"
    (directory / "conf.d").mkdir(parents=True)
    (directory / "postgresql.conf").touch()
    (directory / "conf.d" / "terrafirma.conf").touch()
    mark = tmp_path / "etc/systemd/system/postgresql@17-test.service.d/terrafirma.conf"
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert (machine()["clusters"], machine()["own_clusters"]) == (["17/main"], [])


@pytest.mark.parametrize(
    ("uplink", "networks"),
    [("eth0", ["10.0.0.0/20", "192.0.2.0/24"]), ("br-own", ["10.0.0.0/20", "172.20.0.0/16"])],
)
def test_networks_that_are_shared_with_neighbours_are_told_from_dockers(
    machine: Callable[..., Any], tmp_path: Path, program: Program, uplink: str, networks: list[str]
) -> None:
    """A bridge counts where it leads to the internet."""
    for device in ("br-own", "docker0"):
        (tmp_path / "sys/class/net" / device / "bridge").mkdir(parents=True)
    ens = "echo '3: ens10    inet 10.0.3.7/20 brd 10.0.15.255 scope global ens10'"
    lan = {
        "eth0": "echo '2: eth0    inet 192.0.2.7/24 brd 192.0.2.255 scope global eth0'",
        "br-own": "echo '2: br-own    inet 172.20.0.7/16 brd 172.20.255.255 scope global br-own'",
    }
    path = program(
        "ip",
        f"""case "$*" in *route*) echo 'default via 192.0.2.1 dev {uplink} proto dhcp' ;; *)
        echo '1: lo    inet 127.0.0.1/8 scope host lo'; {lan[uplink]}; {ens}
        echo '4: docker0    inet 172.17.0.1/16 brd 172.17.255.255 scope global docker0' ;; esac""",
    )
    assert machine(path)["networks"] == networks


def test_another_docker_engine_is_seen_once_it_is_installed(
    machine: Callable[..., Any], program: Program
) -> None:
    """As dpkg-query of Debian 13 answers: without a line for a package that it never heard of."""
    path = program(
        "dpkg-query",
        """echo 'not-installed podman-docker'
        echo 'config-files docker-ce'
        echo 'installed containerd.io'
        echo 'dpkg-query: no packages found matching x' >&2; exit 1""",
    )
    assert machine(path)["foreign_engine"] == ["containerd.io"]
    path = program("dpkg-query", "echo 'not-installed docker-ce'; exit 1")
    assert machine(path)["foreign_engine"] == []
    path = program("dpkg-query", "echo 'installed docker-ce'; echo 'installed containerd.io'")
    assert machine(path)["foreign_engine"] == ["docker-ce", "containerd.io"]


@pytest.mark.parametrize(
    ("content", "known", "verify", "foreign"),
    [
        (None, True, "??5?????? c /etc/caddy/Caddyfile", False),
        ("# Managed by Terrafirma: tasks/caddy.py\n", True, "??5?????? c {caddyfile}", False),
        ("# Managed by Terrafirma: tasks/caddy.py\n", False, "", False),
        # The package's own, whatever else of the package was changed.
        (":80 {\n}\n", True, "", False),
        (":80 {\n}\n", True, "??5?????? c /lib/systemd/system/caddy.service", False),
        (":80 {\n}\n", True, "??5?????? c {caddyfile}.d/x", False),
        (":80 {\n}\n", True, "??5?????? c {caddyfile}", True),
        # From a vendor's archive of binaries.
        (":80 {\n}\n", False, "", True),
    ],
)
def test_a_caddyfile_of_somebody_else_is_seen(
    machine: Callable[..., Any],
    program: Program,
    tmp_path: Path,
    content: str | None,
    known: bool,
    verify: str,
    foreign: bool,
) -> None:
    caddyfile = tmp_path / "etc" / "caddy" / "Caddyfile"
    caddyfile.parent.mkdir()
    if content is not None:
        caddyfile.write_text(content)
    program("dpkg-query", f"exit {0 if known else 1}")
    path = program("dpkg", f'test "$1" != --verify || echo "{verify.format(caddyfile=caddyfile)}"')
    assert machine(path)["foreign_caddyfile"] is foreign


# --- hardware and networks ------------------------------------------------------------------------

HARDWARE = """\
memory=24684092
limit=9223372036854771712
cores=2
""".splitlines()


def test_the_hardware_of_a_host() -> None:
    """A target of the tests: cgroup v1 has a number where there is no limit."""
    assert Hardware().process(HARDWARE) == {"memory": 24684092, "cores": 2, "ssd": True}
    rotates = ["memory=8148804", "limit=max", "cores=4", "rotates"]
    assert Hardware().process(rotates) == {"memory": 8148804, "cores": 4, "ssd": False}


def test_a_limit_of_a_container_is_its_memory() -> None:
    limited = ["memory=24684092", "limit=2147483648", "cores=2"]
    assert Hardware().process(limited) == {"memory": 2097152, "cores": 2, "ssd": True}


def hardware_below(directory: Path, path: Path | None, data: str) -> Any:
    """The hardware of a machine whose /proc and /sys are below `directory`."""
    command = text(Hardware, path=data)
    for one in ("/proc/meminfo", "/sys/fs/cgroup"):
        assert one in command
        command = command.replace(one, f"{directory}{one}")
    return Hardware().process(shell(command, path))


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    (tmp_path / "sys" / "fs" / "cgroup" / "memory").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(
        "MemTotal:       24684092 kB\nMemFree:         5512832 kB\nMemAvailable:   21893072 kB\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("limits", "memory"),
    [
        ({}, 24684092),
        ({"memory.max": "max"}, 24684092),
        ({"memory.max": "2147483648"}, 2097152),
        ({"memory.max": "1099511627776"}, 24684092),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, 24684092),
        ({"memory/memory.limit_in_bytes": "536870912"}, 524288),
    ],
)
def test_memory_is_what_the_machine_has_or_the_container_may_use(
    meminfo: Path, limits: dict[str, str], memory: int
) -> None:
    for name, limit in limits.items():
        (meminfo / "sys" / "fs" / "cgroup" / name).write_text(f"{limit}\n")
    assert hardware_below(meminfo, None, "/")["memory"] == memory


@pytest.mark.parametrize(
    ("lsblk", "ssd"),
    [
        # A partition, and the disk that it is on: lsblk has a transport for the latter alone.
        ("echo '1       '; echo '1 sata  '", False),
        ("echo '1       '; echo '1 sas'", False),
        ("echo '0       '; echo '0 sata  '", True),
        ("echo '0       '; echo '0 nvme  '", True),
        # Virtual disks claim to rotate.
        ("echo '1 virtio'", True),
        ("echo '1       '; echo '1       '", True),
        # A volume over two disks, one of which rotates.
        ("echo '1'; echo '0 nvme'; echo '1 ata'", False),
        ("echo 'lsblk: overlay: not a block device' >&2; exit 32", True),
    ],
)
def test_only_a_disk_that_is_known_to_rotate_is_none_without_seeks(
    meminfo: Path, program: Program, lsblk: str, ssd: bool
) -> None:
    program("findmnt", "echo /dev/sda1")
    assert hardware_below(meminfo, program("lsblk", lsblk), "/")["ssd"] is ssd


def test_the_disk_is_the_one_on_which_the_data_are_going_to_be(
    meminfo: Path, program: Program
) -> None:
    program("lsblk", "exit 32")
    path = program("findmnt", 'for word in "$@"; do :; done; echo "$word" > "$0.asked"')
    there = meminfo / "it's there"
    there.mkdir()
    hardware_below(meminfo, path, f"{there}/17/main")
    assert (path / "findmnt.asked").read_text() == f"{there}\n"
    hardware_below(meminfo, path, "/no-such/17/main")
    assert (path / "findmnt.asked").read_text() == "/\n"


def test_the_hardware_of_this_machine() -> None:
    known = Hardware().process(shell(text(Hardware, path="/var/lib/postgresql/17/main")))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024
    assert 0 < known["memory"] <= total
    assert known["cores"] == len(os.sched_getaffinity(0))
    assert isinstance(known["ssd"], bool)


ADDRESSES = """\
1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever
2: docker0    inet 10.210.0.1/24 brd 10.210.0.255 scope global docker0\\       valid_lft forever
180: eth0    inet 172.17.0.3/16 brd 172.17.255.255 scope global eth0\\       valid_lft forever
181: wg0    inet 10.8.0.2 peer 10.8.0.1/32 scope global wg0\\       valid_lft forever
"""
ROUTES = """\
default via 172.17.0.1 dev eth0
0.0.0.0/1 via 10.8.0.1 dev wg0
10.8.0.1 dev wg0 proto kernel scope link src 10.8.0.2
10.210.0.0/24 dev docker0 proto kernel scope link src 10.210.0.1 linkdown
172.17.0.0/16 dev eth0 proto kernel scope link src 172.17.0.3
192.168.7.0/24 proto static metric 50
\tnexthop via 172.17.0.1 dev eth0 weight 1
"""


def test_networks_that_are_used(program: Program) -> None:
    """As `ip` prints them for a target of the tests, and more: a tunnel, a route of two ways."""
    path = program(
        "ip",
        f"""case "$*" in
        *address*) cat << 'END'\n{ADDRESSES}END
        ;; *) cat << 'END'\n{ROUTES}END
        esac""",
    )
    assert ask(UsedNetworks, path) == [
        *("0.0.0.0/1", "10.210.0.0/24", "10.8.0.1/32", "10.8.0.2/32"),
        *("127.0.0.0/8", "172.17.0.0/16", "192.168.7.0/24"),
    ]


@pytest.mark.skipif(not shutil.which("ip"), reason="no ip here")
def test_networks_of_this_machine() -> None:
    assert "127.0.0.0/8" in ask(UsedNetworks)


# --- kernel ---------------------------------------------------------------------------------------


def test_settings_of_a_kernel() -> None:
    assert KernelSettings().process(
        ["/proc/sys/net/ipv4/ip_nonlocal_bind=0", "/proc/sys/kernel/core_pattern=|/x a=b %p"]
    ) == {"net.ipv4.ip_nonlocal_bind": "0", "kernel.core_pattern": "|/x a=b %p"}


def test_settings_that_this_kernel_lacks_are_left_out() -> None:
    """A host without IPv6 has nothing below net.ipv6."""
    known = ask(KernelSettings, names=["kernel.ostype", "net.no_such.setting"])
    assert known == {"kernel.ostype": "Linux"}


# --- Caddy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("2.6.2", (2, 6)),
        ("v2.11.7 h1:yj0Y4fYZGPkSvibBJ1sTWE33xC0fxztVyXEW5iIdUT4=", (2, 11)),
        ("v2.7.0-beta.1", (2, 7)),
    ],
)
def test_the_version_of_caddy(program: Program, printed: str, version: tuple[int, int]) -> None:
    assert ask(CaddyVersion, program("caddy", f"echo '{printed}'")) == version


def test_names_are_looked_up_as_the_host_does(program: Program) -> None:
    script = """
case $* in
    "ahosts -- acme.com") printf '%s\\n' '203.0.113.5 STREAM' '203.0.113.5 RAW' '2001:db8::5' ;;
    *) exit 2 ;;
esac"""
    program("getent", script)
    path = program(
        "ip",
        "echo '2: eth0    inet 203.0.113.5/24 scope global eth0'; "
        "echo '2: eth0    inet6 2001:db8::5/64 scope global'",
    )
    assert ask(Names, path, domains=["acme.com", "none.acme.com"]) == {
        "own": ["203.0.113.5", "2001:db8::5"],
        "names": {"acme.com": ["203.0.113.5", "2001:db8::5"]},
    }


OBTAIN = (
    '{"level":"error","logger":"tls.obtain","msg":"will retry","error":"[acme.com] Obtain: '
    "[acme.com] solving challenge: acme.com: [acme.com] authorization failed: HTTP 400 "
    "urn:ietf:params:acme:error:dns - DNS problem: NXDOMAIN looking up A for acme.com "
    '(ca=https://ca.acme.com/directory)","attempt":1}'
)
NOTHING_LEFT = (
    '{"level":"error","logger":"tls.obtain","msg":"will retry","error":"[acme.com] Obtain: '
    'acme.com: no solvers available for remaining challenges (configured=[http-01])"}'
)
STAPLING = (
    '{"level":"warn","logger":"tls","msg":"stapling OCSP",'
    '"error":"no OCSP stapling for [acme.com]: no OCSP server","identifiers":["acme.com"]}'
)


def test_certificates_that_are_missing_and_why() -> None:
    lines = ["missing acme.com", "missing www.acme.com", OBTAIN, NOTHING_LEFT, STAPLING, '{"broken']
    assert Certificates().process(lines) == {
        "missing": ["acme.com", "www.acme.com"],
        "reasons": {"acme.com": "DNS problem: NXDOMAIN looking up A for acme.com (dns)"},
    }
    # What went wrong once with a name that has its certificate now.
    assert Certificates().process(lines[1:3])["reasons"] == {}


@pytest.mark.parametrize("valid", [True, False])
def test_caddy_is_asked_for_the_certificates_that_it_uses(program: Program, valid: bool) -> None:
    program("openssl", f"test $1 = s_client || exit {int(not valid)}")
    program("systemctl", "echo 1234")
    path = program("journalctl", f"printf '%s\\n' '{OBTAIN}' '{STAPLING}' 'a line that is no JSON'")
    known = ask(Certificates, path, domains=["acme.com"])
    assert known["missing"] == ([] if valid else ["acme.com"])
    assert list(known["reasons"]) == ([] if valid else ["acme.com"])


@pytest.mark.parametrize(
    ("error", "why"),
    [
        ("[a.com] Obtain: [a.com] creating order: timed out", "creating order: timed out"),
        ("subject does not qualify for a certificate: a_b", "subject does not qualify for a"),
        ("HTTP 429 urn:ietf:params:acme:error:rateLimited - too many", "too many (rateLimited)"),
    ],
)
def test_the_reason_of_an_error(error: str, why: str) -> None:
    assert reason(error).startswith(why)


# --- listeners ------------------------------------------------------------------------------------


def test_listeners_of_a_host() -> None:
    assert Listeners().process(
        [
            "22|sshd|ssh.service",
            "443|caddy|caddy.service",
            "8000|docker-proxy|docker.service",
            "25||",
        ]
    ) == [
        {"port": 22, "process": "sshd", "unit": "ssh.service"},
        {"port": 443, "process": "caddy", "unit": "caddy.service"},
        {"port": 8000, "process": "docker-proxy", "unit": "docker.service"},
        {"port": 25, "process": "", "unit": ""},
    ]


def test_listeners_are_told_apart_by_program_and_unit(program: Program, tmp_path: Path) -> None:
    """What `ss -Hltnp` prints for two workers, for IPv6, and for who has no right to look."""
    (tmp_path / "proc" / "812").mkdir(parents=True)
    (tmp_path / "proc" / "812" / "cgroup").write_text(
        "1:name=systemd:/system.slice/nginx.service\n0::/system.slice/nginx.service\n"
    )
    (tmp_path / "proc" / "900").mkdir()
    (tmp_path / "proc" / "900" / "cgroup").write_text(
        "0::/system.slice/system-postgresql.slice/postgresql@17-main.service\n"
    )
    path = program(
        "ss",
        """cat << 'END'
LISTEN 0 511   0.0.0.0:80   0.0.0.0:* users:(("nginx",pid=812,fd=6),("nginx",pid=813,fd=6))
LISTEN 0 511      [::]:80      [::]:* users:(("nginx",pid=812,fd=7),("nginx",pid=813,fd=7))
LISTEN 0 200 127.0.0.1:5432 0.0.0.0:* users:(("postgres",pid=900,fd=7))
LISTEN 0 4096        *:443        *:*
END""",
    )
    command = text(Listeners, ports=[80, 443, 5432]).replace("/proc/", f"{tmp_path}/proc/")
    assert sorted(shell(command, path)) == [
        "443||",
        "5432|postgres|postgresql@17-main.service",
        "80|nginx|nginx.service",
    ]


@pytest.mark.skipif(not shutil.which("ss"), reason="no ss here")
def test_listeners_of_this_machine() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("127.0.0.1", 0)) as no,
    ):
        port, other = server.getsockname()[1], no.getsockname()[1]
        no.close()
        (listener,) = ask(Listeners, ports=[port, other])
    assert listener["port"] == port
    assert listener["process"] == Path("/proc/self/comm").read_text().strip()
    assert ask(Listeners, ports=[port]) == []


# --- docker ---------------------------------------------------------------------------------------

NETWORKS = """\
[
    {
        "Name": "apps",
        "Driver": "bridge",
        "EnableIPv6": false,
        "IPAM": {
            "Driver": "default",
            "Options": {},
            "Config": [
                {
                    "Subnet": "10.210.1.0/24",
                    "Gateway": "10.210.1.1"
                }
            ]
        },
        "Containers": {
            "0b7ca25ec7afd808c5d71ee3eb9daa17457d240ead15c865c8ee7cbcf6840c6c": {
                "Name": "api-api-1",
                "MacAddress": "02:42:0a:d2:01:02",
                "IPv4Address": "10.210.1.2/24",
                "IPv6Address": ""
            }
        },
        "Labels": {}
    },
    {
        "Name": "bridge",
        "Driver": "bridge",
        "IPAM": {
            "Driver": "default",
            "Options": null,
            "Config": [
                {
                    "Subnet": "10.210.0.0/24",
                    "Gateway": "10.210.0.1"
                }
            ]
        },
        "Options": {
            "com.docker.network.bridge.default_bridge": "true",
            "com.docker.network.bridge.name": "docker0"
        },
        "Labels": {}
    }
]
""".splitlines()
BRIDGE = {"name": "bridge", "subnet": "10.210.0.0/24"}
APPS = {"name": "apps", "subnet": "10.210.1.0/24"}
DAEMON = 'daemon={  "bip": "10.210.0.1/24",  "default-address-pools": []}'
MOVING = 'daemon={"bip": "10.9.0.1/24", "ipv6": true, "fixed-cidr-v6": "fd00:7::/64"}'
POOLS = '[{"Base":"10.210.0.0/16","Size":24}]'


def test_networks_of_a_host_begin_with_docker0_and_end_with_the_pools() -> None:
    assert DockerNetworks().process([DAEMON, POOLS, *NETWORKS]) == [
        BRIDGE,
        APPS,
        {"name": "networks to come", "subnet": "10.210.0.0/16"},
    ]


def test_an_engine_without_pools_of_its_own() -> None:
    assert DockerNetworks().process(["daemon=", "null", *NETWORKS]) == [BRIDGE, APPS]
    assert DockerNetworks().process(["daemon=", "null"]) == []


def test_a_network_may_have_two_subnets_or_none() -> None:
    config = [{"Subnet": "fd00:1::/64", "Gateway": "fd00:1::1/64"}, {"Subnet": "10.210.2.0/24"}]
    networks = [
        {"Name": "six", "IPAM": {"Config": config}},
        {"Name": "none", "IPAM": {"Config": None}},
        {"Name": "empty", "IPAM": {"Config": []}},
    ]
    assert DockerNetworks().process(
        ["daemon=", "null", *json.dumps(networks, indent=4).splitlines()]
    ) == [
        {"name": "six", "subnet": "10.210.2.0/24"},
        {"name": "six", "subnet": "fd00:1::/64"},
    ]


def test_the_order_of_networks_is_not_dockers() -> None:
    networks = json.loads("\n".join(NETWORKS))
    turned = json.dumps(networks[::-1]).splitlines()
    assert DockerNetworks().process(["daemon=", "null", *turned]) == [BRIDGE, APPS]


def test_the_addresses_of_docker0() -> None:
    four = "5: docker0    inet 10.210.0.1/24 brd 10.210.0.255 scope global docker0\\  valid_lft"
    six = "5: docker0    inet6 fd00:0:0::1/64 scope global nodad \\       valid_lft forever"
    assert DockerAddresses().process([DAEMON, four]) == ["10.210.0.1/24"]
    assert DockerAddresses().process(["daemon=", four, six]) == ["10.210.0.1/24", "fd00::1/64"]


def test_where_docker0_is_going_to_be() -> None:
    """It moves at the next boot: what is to work then has to be there before."""
    line = "5: docker0    inet 10.210.0.1/24 brd 10.210.0.255 scope global docker0\\  valid_lft"
    assert DockerAddresses().process([MOVING, line]) == [
        "10.210.0.1/24",
        "10.9.0.1/24",
        "fd00:7::1/64",
    ]
    assert DockerNetworks().process([MOVING, POOLS, *NETWORKS]) == [
        BRIDGE,
        APPS,
        {"name": "docker0 after the next boot", "subnet": "10.9.0.0/24"},
        {"name": "docker0 after the next boot", "subnet": "fd00:7::/64"},
        {"name": "networks to come", "subnet": "10.210.0.0/16"},
    ]


def test_docker0_that_stays_where_it_is_is_there_once() -> None:
    lines = [
        "5: docker0    inet 10.9.0.1/24 brd 10.9.0.255 scope global docker0\\  valid_lft",
        "5: docker0    inet6 fd00:7::1/64 scope global nodad \\       valid_lft forever",
    ]
    assert DockerAddresses().process([MOVING, *lines]) == ["10.9.0.1/24", "fd00:7::1/64"]
    config = [{"Subnet": "10.9.0.0/24"}, {"Subnet": "fd00:7::/64"}]
    bridge = json.dumps([{"Name": "bridge", "IPAM": {"Config": config}}])
    assert [one["name"] for one in DockerNetworks().process([MOVING, "null", bridge])] == [
        "bridge",
        "bridge",
    ]


@pytest.mark.parametrize(
    "daemon",
    [
        '{"fixed-cidr-v6": "fd00:7::/64"}',
        '{"ipv6": false, "fixed-cidr-v6": "fd00:7::/64"}',
        '{"ipv6": true}',
    ],
)
def test_docker0_has_no_ipv6_that_is_not_switched_on(daemon: str) -> None:
    assert DockerAddresses().process([f"daemon={daemon}"]) == []
    assert DockerNetworks().process([f"daemon={daemon}", "null"]) == []


@pytest.mark.parametrize(
    ("content", "daemon"),
    [
        (None, None),
        ("", None),
        ('{\n  "bip": "10.9.0.1/24",\n  "ipv6": false\n}\n', {"bip": "10.9.0.1/24", "ipv6": False}),
        # As a JSON file has a backslash and a line break in a text: dash's echo would read them.
        (
            '{"bip": "10.9.0.1/24", "log-opts": {"env-regex": "^a\\\\.b\\n"}}\n',
            {"bip": "10.9.0.1/24", "log-opts": {"env-regex": "^a\\.b\n"}},
        ),
    ],
)
def test_the_file_of_the_daemon_comes_as_one_line(
    program: Program, tmp_path: Path, content: str | None, daemon: Any
) -> None:
    program("docker", 'case "$*" in *Pools*) echo null ;; *bridge.name*) echo docker0 ;; esac')
    path = program("ip", "true")
    file = tmp_path / "daemon.json"
    if content is not None:
        file.write_text(content)
    for fact in (DockerAddresses, DockerNetworks):
        command = text(fact)
        assert "/etc/docker/daemon.json" in command
        first, *rest = shell(command.replace("/etc/docker/daemon.json", str(file)), path)
        assert rest == (["null"] if fact is DockerNetworks else [])
        if daemon is None:
            assert first == "daemon="
        else:
            assert json.loads(first.removeprefix("daemon=")) == daemon


def test_docker0_is_asked_for_ipv4_before_ipv6_and_only_for_what_others_reach(
    program: Program, tmp_path: Path
) -> None:
    """A link-local address is none that PostgreSQL could listen on."""
    program("docker", "echo docker0")
    path = program(
        "ip",
        f"""echo "$*" >> {tmp_path}/asked
        case $1 in
        -4) echo '5: docker0    inet 10.210.0.1/24 brd 10.210.0.255 scope global docker0' ;;
        -6) echo '5: docker0    inet6 fd00:1::1/64 scope global' ;;
        esac""",
    )
    assert ask(DockerAddresses, path) == ["10.210.0.1/24", "fd00:1::1/64"]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split()[0] for line in asked] == ["-4", "-6"]
    for line in asked:
        assert line.endswith("dev docker0 scope global")


def test_networks_that_are_missing(program: Program) -> None:
    path = program(
        "docker", "case $* in 'network ls --format'*) printf '%s\n' bridge none apps ;; esac"
    )
    asked = ask(ContainerReach, path, names=["apps", "jobs", "app", "bridge"])
    assert asked["missing"] == ["jobs", "app"]
    assert ask(ContainerReach, path, names=[])["missing"] == []


def test_tables_that_are_gone_are_told_from_an_iptables_that_is_not_there(program: Program) -> None:
    """`nft flush ruleset` takes the tables away, and iptables-save has nothing to say."""
    program("docker", "")
    path = program("iptables-save", "")
    assert ask(ContainerReach, path, names=[])["seen"].rules == {}


def test_an_engine_that_does_not_answer_is_none_without_containers(program: Program) -> None:
    """It would seem that nothing leads to any of them."""
    for asked in ("network ls --format*", "network ls -q*", "ps*"):
        path = program("docker", f"case $* in {asked.replace(' ', chr(92) + ' ')}) exit 1 ;; esac")
        result = subprocess.run(
            ["sh", "-c", text(ContainerReach, names=["apps"])],
            env=os.environ | {"PATH": f"{path}:{os.environ['PATH']}"},
            capture_output=True,
            check=False,
        )
        assert result.returncode == 1, asked


WITHOUT_DOCKER: list[tuple[type[FactBase[Any]], dict[str, Any], Any]] = [
    (DockerAddresses, {}, []),
    (DockerNetworks, {}, []),
    (
        ContainerReach,
        {"names": ["apps", "jobs"]},
        {"missing": ["apps", "jobs"], "said_by": [], "seen": Seen()},
    ),
]


@pytest.mark.parametrize(("fact", "arguments", "answer"), WITHOUT_DOCKER)
def test_a_host_without_docker_is_an_answer(
    fact: type[FactBase[Any]], arguments: dict[str, Any], answer: Any, tmp_path: Path
) -> None:
    for tool in ("sh", "grep", "xargs"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    command = f"PATH={tmp_path}; {text(fact, **arguments)}"
    output = shell(command)
    assert (fact().process(output) if output else fact().default()) == answer


@pytest.mark.parametrize(("fact", "arguments", "answer"), WITHOUT_DOCKER)
def test_a_docker_that_does_not_answer_is_none(
    fact: type[FactBase[Any]], arguments: dict[str, Any], answer: Any, program: Program
) -> None:
    """Else its networks would be taken for gone, and PostgreSQL closed to all containers."""
    path = program("docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    with pytest.raises(AssertionError, match="Cannot connect"):
        shell(text(fact, **arguments), path)


# --- releases -------------------------------------------------------------------------------------

STATUS = {
    "serving": "0123456789ab",
    "wanted": "ba9876543210",
    "withdrawn": True,
    "current": False,
    "trouble": "",
    "silent": [],
    "troubles": [],
    "notes": [],
}


def released(script: str, tmp_path: Path, program: Program) -> str:
    """The question to a program of this machine in the place of the host's."""
    program("docker", "true")
    (tmp_path / "terrafirma").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "terrafirma").chmod(0o755)
    return text(ReleaseStatus, app="it's mine").replace(HOST_PROGRAM, f"{tmp_path}/terrafirma")


def test_the_description_of_an_application_is_no_argument(program: Program, tmp_path: Path) -> None:
    """It is what is going to be written: the run may be a dry one, and the host has another."""
    asked = tmp_path / "asked"
    script = f"printf '<%s>' \"$@\" > {asked}; cat >> {asked}; echo '{json.dumps(STATUS)}'"
    command = released(script, tmp_path, program)
    output = shell(command, tmp_path / "programs", stdin='{"name": "api"}')
    assert ReleaseStatus().process(output) == STATUS
    assert asked.read_text() == "<status><--stdin><it's mine>" + '{"name": "api"}'


def test_a_program_of_before_says_nothing_of_answers() -> None:
    """In a dry run it is still there."""
    before = {key: STATUS[key] for key in ("serving", "wanted", "withdrawn", "current", "trouble")}
    assert ReleaseStatus().process([json.dumps(before)]) == STATUS


def test_a_program_of_another_version_knows_of_no_release(program: Program, tmp_path: Path) -> None:
    """The run replaces it before it asks for a release."""
    command = released("echo 'no such command' >&2; exit 2", tmp_path, program)
    assert shell(command, tmp_path / "programs") == []


def test_a_host_without_the_program_has_no_release() -> None:
    assert shell(text(ReleaseStatus, app="api").replace(HOST_PROGRAM, "/nowhere/terrafirma")) == []


# --- services -------------------------------------------------------------------------------------


def test_units_of_a_host() -> None:
    caddy = ["ActiveState=active", "UnitFileState=enabled", "started"]
    assert Unit().process(caddy) == {
        "active": True,
        "enabled": True,
        "stale_units": [],
        "stale": [],
        "stale_reload": [],
    }
    postgresql = [
        *("ActiveState=failed", "UnitFileState=enabled-runtime", "started"),
        *(
            "stale_unit=/etc/systemd/system/x.service",
            "stale=/etc/a=b.conf",
            "stale=/etc/c.conf",
            "stale_reload=/etc/pg_hba.conf",
        ),
    ]
    assert Unit().process(postgresql) == {
        "active": False,
        "enabled": True,
        "stale_units": ["/etc/systemd/system/x.service"],
        "stale": ["/etc/a=b.conf", "/etc/c.conf"],
        "stale_reload": ["/etc/pg_hba.conf"],
    }
    unknown = ["ActiveState=inactive", "UnitFileState="]
    assert Unit().process(unknown) == Unit().default()


@pytest.mark.parametrize(
    ("state", "enabled"),
    [
        *(("enabled", True), ("enabled-runtime", True), ("static", True), ("generated", True)),
        *(("disabled", False), ("masked", False), ("masked-runtime", False), ("", False)),
    ],
)
def test_what_starts_at_boot(state: str, enabled: bool) -> None:
    assert Unit().process([f"UnitFileState={state}"])["enabled"] is enabled


def test_a_unit_that_reloads_runs() -> None:
    assert Unit().process(["ActiveState=reloading", "started"])["active"]
    assert not Unit().process(["ActiveState=activating", "started"])["active"]


class Service:
    """A unit that started at `since`, and its files."""

    def __init__(self, directory: Path, program: Program) -> None:
        self.directory = directory
        self.program = program
        self.old, self.new = directory / "old.conf", directory / "it's new.conf"
        self.old.touch()
        self.since = self.now()
        self.new.touch()

    def now(self) -> str:
        """The time in systemd's words, after all that was and before all that comes."""
        # A file's time stamp may be a tick of the kernel's clock behind.
        time.sleep(0.02)
        now = datetime.now(UTC)
        time.sleep(0.02)
        return f"{now:%a %Y-%m-%d %H:%M:%S.%f} UTC"

    def state(self, *, active: str = "active") -> Any:
        path = self.program(
            "systemctl",
            f"""case "$*" in
            *--value*) echo "{self.since}" ;;
            *) echo ActiveState={active}; echo UnitFileState=enabled ;;
            esac""",
        )
        files = [str(self.old), str(self.directory / "gone.conf"), str(self.new)]
        command = text(Unit, unit="a.service", restart_on=files, reload_on=files)
        return Unit().process(shell(command.replace(RELOADS, str(self.directory)), path))


@pytest.fixture
def service(tmp_path: Path, program: Program) -> Service:
    return Service(tmp_path, program)


def test_files_that_changed_since_a_unit_started_are_stale(service: Service) -> None:
    state = service.state()
    assert state["stale"] == [str(service.new)]
    assert state["stale_reload"] == [str(service.new)]


def test_a_change_of_the_mode_is_a_change(service: Service) -> None:
    service.old.chmod(0o600)
    assert service.state()["stale"] == [str(service.old), str(service.new)]


def test_a_time_stamp_that_was_set_back_is_a_change(service: Service) -> None:
    os.utime(service.old, (0, 0))
    assert str(service.old) in service.state()["stale"]


def test_a_restart_makes_up_for_it(service: Service) -> None:
    service.since = service.now()
    state = service.state()
    assert (state["stale"], state["stale_reload"]) == ([], [])


def test_a_reload_makes_up_for_what_a_reload_reads(service: Service) -> None:
    service.now()
    (service.directory / "a.service.reloaded").touch()
    state = service.state()
    assert (state["stale"], state["stale_reload"]) == ([str(service.new)], [])
    service.now()
    service.old.touch()
    assert service.state()["stale_reload"] == [str(service.old)]


def test_a_reload_before_the_start_does_not_count(service: Service) -> None:
    (service.directory / "a.service.reloaded").touch()
    service.now()
    service.new.touch()
    service.since = service.now()
    service.old.touch()
    assert service.state()["stale_reload"] == [str(service.old)]


def test_a_unit_that_never_started_has_no_stale_files(service: Service) -> None:
    service.since = ""
    state = service.state(active="inactive")
    assert (state["active"], state["stale"], state["stale_reload"]) == (False, [], [])


# --- postgres -------------------------------------------------------------------------------------

# As PostgreSQL 15 answered for a cluster of a test, shortened.
ROLES = """\
{ "postgres" : {"login" : true, "superuser" : true, "create_database" : true, \
"create_role" : true, "replication" : true, "bypass_rls" : true, "inherit" : true, \
"expires" : false, "connection_limit" : -1, "member_of" : [], "settings" : []}, \
"reader" : {"login" : true, "superuser" : false, "create_database" : false, \
"create_role" : false, "replication" : false, "bypass_rls" : false, "inherit" : true, \
"expires" : false, "connection_limit" : 20, \
"member_of" : [["owner", "", true], ["pg_monitor", "dba", false]], \
"settings" : ["jit=off","search_path=\\"$user\\", public"]} }
""".splitlines()
DATABASES = """\
{ "shop" : {"owner" : "owner", "encoding" : "UTF8", "locale" : "de-DE", \
"connection_limit" : 30, "connectable" : true, "template" : false, \
"acl" : [["owner", "CREATE"], \
["owner", "TEMPORARY"], ["owner", "CONNECT"], ["reader", "CONNECT"]], \
"handed" : [["dba", "reader", "CONNECT"]], \
"settings" : ["statement_timeout=5000"], "role_settings" : {"mig" : ["role=owner"]}}, \
"postgres" : {"owner" : "postgres", "encoding" : "UTF8", "locale" : "C.UTF-8", \
"connection_limit" : -1, "connectable" : true, "template" : false, \
"acl" : [["public", "TEMPORARY"], \
["public", "CONNECT"]], "handed" : [], "settings" : [], "role_settings" : {}} }
""".splitlines()
CONTENTS = """\
{"database" : "postgres", "extensions" : ["plpgsql"], "schemas" : {}, "default_acl" : []}
{"database" : "shop", "extensions" : ["hstore","plpgsql"], "schemas" : { "public" : \
{"owner" : "pg_database_owner", "of_extension" : false, \
"acl" : [["public", "USAGE"], ["reader", "USAGE"]], "handed" : [["r", "dba", "", "SELECT"]], \
"tables" : 2, "sequences" : 1, "table_acl" : [["reader", "SELECT", 2]], \
"sequence_acl" : [["reader", "SELECT", 1]], \
"default_acl" : [["owner", "r", "reader", "SELECT", false]], \
"strangers" : [["dba", "r", 1]]} }, "default_acl" : [["owner", "r", "reader", "SELECT"]]}
""".splitlines()


def test_roles_of_a_cluster() -> None:
    roles = Roles().process(ROLES)
    assert roles
    assert list(roles) == ["postgres", "reader"]
    assert roles["postgres"]["superuser"]
    assert roles["reader"] == {
        "login": True,
        "superuser": False,
        "create_database": False,
        "create_role": False,
        "replication": False,
        "bypass_rls": False,
        "inherit": True,
        "expires": False,
        "connection_limit": 20,
        "member_of": [["owner", "", True], ["pg_monitor", "dba", False]],
        "settings": ["jit=off", 'search_path="$user", public'],
    }


def test_databases_of_a_cluster() -> None:
    databases = Databases().process(DATABASES)
    assert databases
    assert list(databases) == ["shop", "postgres"]
    assert databases["shop"] == {
        "owner": "owner",
        "encoding": "UTF8",
        "locale": "de-DE",
        "connection_limit": 30,
        "connectable": True,
        "template": False,
        "acl": [
            ["owner", "CREATE"],
            ["owner", "TEMPORARY"],
            ["owner", "CONNECT"],
            ["reader", "CONNECT"],
        ],
        "handed": [["dba", "reader", "CONNECT"]],
        "settings": ["statement_timeout=5000"],
        "role_settings": {"mig": ["role=owner"]},
    }


def test_contents_of_the_databases_of_a_cluster() -> None:
    contents: Any = Contents().process(CONTENTS)
    assert contents
    assert contents == Contents().process([CONTENTS[0], "", CONTENTS[1]])
    assert list(contents) == ["postgres", "shop"]
    assert contents["postgres"] == {
        "extensions": ["plpgsql"],
        "schemas": {},
        "default_acl": [],
    }
    assert contents["shop"]["default_acl"] == [["owner", "r", "reader", "SELECT"]]
    assert contents["shop"]["extensions"] == ["hstore", "plpgsql"]
    assert contents["shop"]["schemas"]["public"] == {
        "owner": "pg_database_owner",
        "of_extension": False,
        "acl": [["public", "USAGE"], ["reader", "USAGE"]],
        "handed": [["r", "dba", "", "SELECT"]],
        "tables": 2,
        "sequences": 1,
        "table_acl": [["reader", "SELECT", 2]],
        "sequence_acl": [["reader", "SELECT", 1]],
        "default_acl": [["owner", "r", "reader", "SELECT", False]],
        "strangers": [["dba", "r", 1]],
    }


def test_what_a_server_says_of_its_settings() -> None:
    """Of a cluster of PostgreSQL 17, shortened, after a reload with other shared_buffers."""
    answer = (
        '{"pending" : ["shared_buffers"], "restart" : ["archive_mode","port","shared_buffers"], '
        '"by_hand" : ["work_mem"]}'
    )
    assert Server().process([answer]) == {
        "pending": ["shared_buffers"],
        "restart": ["archive_mode", "port", "shared_buffers"],
        "by_hand": ["work_mem"],
    }


@pytest.mark.parametrize("fact", [Contents, Databases, Roles, Server])
def test_a_cluster_that_is_not_there_holds_nothing(
    fact: type[FactBase[Any]], program: Program, cluster: Cluster
) -> None:
    program("runuser", "echo 'psql: error: connection to server failed' >&2; exit 2")
    assert ask(fact, cluster.is_not_there(), version=17) == fact().default()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    ("fact", "answer"),
    [(Contents, None), (Databases, None), (Roles, None), (Server, Server.default())],
)
def test_a_cluster_that_is_down_does_not_show_what_it_holds(
    fact: type[FactBase[Any]], answer: Any, program: Program, cluster: Cluster, left: bool
) -> None:
    """Taken for empty, all that is in it would be made a second time."""
    program("runuser", "echo 'psql: error: connection to server failed' >&2; exit 2")
    # After a crash its pid file is still there, and another process may have that number.
    path = cluster.runs(pid=os.getpid()) if left else cluster.is_down()
    assert ask(fact, path, version=17) == answer


@pytest.mark.parametrize("fact", [Databases, Roles, Server])
def test_the_query_reaches_psql_unharmed(
    fact: type[FactBase[Any]], program: Program, cluster: Cluster
) -> None:
    """It is quoted for a shell, and comes to psql over standard input."""
    cluster.runs()
    path = program("runuser", 'cat > "$0.input"; echo "$*" > "$0.arguments"; echo \'{"a": 1}\'')
    assert shell(text(fact, version=17), path) == ['{"a": 1}']
    query = (path / "runuser.input").read_text()
    assert query.removeprefix("do 'begin perform from pg_file_settings; end'; ").startswith(
        "select json_"
    )
    assert query.count("(") == query.count(")")
    assert query.count("'") % 2 == 0
    assert "\\" not in query
    assert "/usr/lib/postgresql/17/bin/psql" in (path / "runuser.arguments").read_text()


def at_this_server(program: Program, cluster: Cluster) -> str:
    """A command line for a psql that says where it was sent, and how."""
    program("runuser", 'test "$1 $2 $3" = "-u postgres --" && shift 3 && exec "$@"')
    program("psql", 'echo "$PGHOST $PGPORT $PGOPTIONS"; echo "$*"; cat')
    return at_server(17, "psql -d 'a b' postgres", "-c jit=off").replace(
        "/usr/lib/postgresql/17/bin/", ""
    )


def test_a_server_is_asked_where_it_listens(program: Program, cluster: Cluster) -> None:
    """Not where its configuration says that it is going to."""
    command = at_this_server(program, cluster)
    path = cluster.runs(socket="/run/else where")
    where, arguments, said = shell(f"echo hello | {command}", path)
    options = f"{PSQL_OPTIONS} -c transaction_timeout=0 -c jit=off"
    assert where == f"/run/else where 6543 {options}"
    assert arguments == "-d a b postgres"
    assert said == "hello"


def test_no_session_begins_as_the_owner_of_a_database_wants_it() -> None:
    """With a time limit of 1 ms, or an encoding that does not have all names: none would answer."""
    for one in ("lock_timeout=0", "idle_session_timeout=0", "client_encoding=UTF8"):
        assert f"-c {one}" in psql(15)
    # A name that PostgreSQL does not know ends the session.
    assert [one for one in (15, 16, 17, 18) if "-c transaction_timeout=0" in psql(one)] == [17, 18]
    # A last dump is in the database's own encoding: of SQL_ASCII there is no other.
    assert "client_encoding" not in at_server(17, "pg_dump api")


@pytest.mark.parametrize("what", ["down", "crashed", "without a socket", "not there"])
def test_no_other_server_is_asked_instead(program: Program, cluster: Cluster, what: str) -> None:
    command = at_this_server(program, cluster)
    path = {
        "down": cluster.is_down,
        "crashed": lambda: cluster.runs(pid=os.getpid()),
        "without a socket": lambda: cluster.runs(socket=""),
        "not there": cluster.is_not_there,
    }[what]()
    with pytest.raises(AssertionError, match="exit 2: 17/main does not run, or has no socket"):
        shell(f"echo hello | {command}", path)


# Both run side by side; the first is told apart by its question.
TWO_PSQLS = """\
case $* in */17/bin/psql*postgres) ;; *) exit 9 ;; esac
cat > "$0.$$"
case $(cat "$0.$$") in
select*) mv "$0.$$" "$0.first"
printf '%s\\n' '\\connect "a b"' '\\connect "tab\\t%s$(touch canary)"' '  blanks ' 'x  blanks ' ;;
*) mv "$0.$$" "$0.second"
echo '{"database": "a b", "extensions": [], "schemas": {}, "default_acl": []}' ;;
esac"""


def test_all_databases_are_asked_with_one_command(
    program: Program, cluster: Cluster, no_canary: None
) -> None:
    """The names come from the cluster itself: whoever may create a database chose them."""
    cluster.runs()
    path = program("runuser", TWO_PSQLS)
    wanted = '\\connect "a b"\n\\connect "new"\n\\connect "tab\\t%s$(touch canary)"\n  blanks \n'
    answer = ask(Contents, path, stdin=wanted, version=17)
    assert list(answer) == ["a b"]
    assert (path / "runuser.first").read_text() == " ".join(CONNECT.split())
    sent = (path / "runuser.second").read_text().splitlines()
    assert sent[::2] == [
        '\\connect "a b"',
        '\\connect "tab\\t%s$(touch canary)"',
        "  blanks ",
    ]
    (query,) = set(sent[1::2])
    assert query.startswith("with spaces as (")
    assert query.endswith(";")
    assert query.count("(") == query.count(")")
    assert query.count("'") % 2 == query.count('"') % 2 == 0


def test_a_database_that_the_data_have_is_asked_by_its_line(
    program: Program, cluster: Cluster
) -> None:
    """By exactly that: others are not looked into, and may be broken as they like."""
    assert connect("api") == """\\connect -reuse-previous=on "dbname='api'\""""
    cluster.runs()
    lines = "".join(f"{connect(name)}\n" for name in ("api", "api2", "xapi", "a.i"))
    path = program("runuser", TWO_PSQLS)
    (path / "lines").write_text(lines)
    program("runuser", re.sub(r"\nprintf .*;;", f"\ncat {path}/lines ;;", TWO_PSQLS))
    ask(Contents, path, stdin=f"{connect('postgres')}\n{connect('api')}\n", version=17)
    sent = (path / "runuser.second").read_text().splitlines()
    assert sent[::2] == [connect("api")]


def test_databases_whose_names_are_not_known_are_no_answer(
    program: Program, cluster: Cluster
) -> None:
    """Else a cluster that refuses one more connection would be taken for an empty one."""
    cluster.runs()
    failing = "select*) echo 'psql: error: too many clients already' >&2; exit 2"
    path = program("runuser", TWO_PSQLS.replace("select*) ", f"{failing} ;;\nnever) "))
    with pytest.raises(AssertionError, match="too many clients"):
        shell(text(Contents, version=17), path)
    assert not (path / "runuser.second").exists()


PROGRAM_ASKED = "role api\nrole worker\ngiven api s3cret-s3cret-s3cret\n"


def wrong_passwords(stdin: str, program: Path, path: Path | None = None) -> list[str]:
    command = text(WrongPasswords, version=17)
    assert command.count(PASSWORDS_PROGRAM) == 2
    command = command.replace(PASSWORDS_PROGRAM, str(program))
    return WrongPasswords().process(shell(command, path, stdin))


def test_the_command_that_asks_for_passwords_is_the_same_for_any_role() -> None:
    """It is in the list of processes, and pyinfra prints it; the passwords come over stdin."""
    assert "s3cret" not in text(WrongPasswords, version=17)


def test_passwords_are_all_wrong_where_there_is_no_cluster(
    program: Program, cluster: Cluster
) -> None:
    path = cluster.is_not_there()
    program("passwords", "exit 9")
    assert wrong_passwords(PROGRAM_ASKED, path / "passwords", path) == ["api", "worker"]


def test_passwords_are_all_wrong_before_the_program_is_there(
    program: Program, cluster: Cluster
) -> None:
    path = cluster.runs()
    assert wrong_passwords(PROGRAM_ASKED, path / "no", path) == ["api", "worker"]


def test_a_server_that_is_down_does_not_say_which_passwords_are_wrong(
    program: Program, cluster: Cluster
) -> None:
    path = cluster.is_down()
    program("passwords", "exit 9")
    assert wrong_passwords(PROGRAM_ASKED, path / "passwords", path) == []


def test_the_program_on_the_host_is_asked_for_wrong_passwords(
    program: Program, cluster: Cluster
) -> None:
    path = cluster.runs()
    program("passwords", 'echo "$*" > "$0.arguments"; cat > "$0.input"; echo worker')
    assert wrong_passwords(PROGRAM_ASKED, path / "passwords", path) == ["worker"]
    assert (path / "passwords.arguments").read_text() == "check 17\n"
    assert (path / "passwords.input").read_text() == PROGRAM_ASKED


def test_no_role_has_no_wrong_password(program: Program, cluster: Cluster) -> None:
    path = cluster.is_not_there()
    assert wrong_passwords("", path / "no", path) == []


@pytest.fixture
def needs(program: Program, tmp_path: Path) -> Callable[[], Any]:
    """Asks a host whose database `shop` uses two extensions, and whose data are here."""
    data = tmp_path / "it's data"
    data.mkdir()
    (data / "rows").write_bytes(b"x" * 4_000_000)
    (data / "pg_tblspc").mkdir()
    program("pg_lsclusters", 'printf "15  main    5432 online postgres %s log\\n" "$DATA"')
    program(
        "runuser",
        r"""case "$*" in *search_path=pg_catalog*15/main*psql*) ;; *) exit 9 ;; esac
        while IFS= read -r line || test -n "$line"; do case $line in
        *datname*) printf '%s\n' '\connect "dbname=my shop"' '\connect "dbname=postgres"' ;;
        '\connect "dbname=my shop"') name=shop ;;
        '\connect "dbname=postgres"') name= ;;
        *shared_preload_libraries*)
            printf '/usr/lib/postgresql/15/lib/%s.so\n' pg_cron auto_explain ;;
        *extname*) for name in plpgsql ${name:+vector}; do
            echo "/usr/share/postgresql/15/extension/$name.control"; done ;;
        *) exit 9 ;;
        esac; done""",
    )
    program(
        "dpkg",
        """case "$2" in
        */plpgsql.control|*/auto_explain.so) echo "postgresql-15: $2" ;;
        */vector.control) echo "postgresql-15-pgvector: $2" ;;
        */pg_cron.so) echo "postgresql-15-cron: $2" ;;
        *) echo "dpkg-query: no path found matching pattern $2" >&2; exit 1 ;;
        esac""",
    )
    path = program("apt-cache", 'echo "$2" | grep -v cron; echo "$2-dbgsym"')

    def ask_it() -> Any:
        # A name without blanks, as Debian makes them.
        link = tmp_path / "data"
        link.symlink_to(data)
        command = text(UpgradeState, old=15, new=17).replace("/var/lib/postgresql", str(tmp_path))
        return UpgradeState().process(shell(f"DATA={link}; export DATA; {command}", path))

    return ask_it


def test_what_an_upgrade_needs(needs: Callable[[], Any], tmp_path: Path) -> None:
    state = needs()
    assert state["online"]
    assert 3900 < state["size"] < 4200
    assert state["free"] == pytest.approx(shutil.disk_usage(tmp_path).free // 1024, rel=0.2)
    type_ = subprocess.check_output(["stat", "-f", "-c", "%T", tmp_path], text=True).strip()
    assert state["may_share"] is (type_ in ("xfs", "btrfs"))
    assert state["packages"] == ["postgresql-17", "postgresql-17-cron", "postgresql-17-pgvector"]
    assert state["missing"] == ["postgresql-17-cron"]
    assert state["inside"] == []


@pytest.mark.parametrize(
    ("types", "may_share"),
    [
        (["xfs", "xfs"], True),
        (["btrfs", "btrfs"], True),
        (["xfs", "ext2/ext3"], False),
        (["tmpfs", "tmpfs"], False),
        ([""], False),
    ],
)
def test_where_a_copy_may_take_no_room(types: list[str], *, may_share: bool) -> None:
    lines = ["online=yes", "size=7", "free=1000", *(f"type={one}" for one in types)]
    assert UpgradeState().process(lines)["may_share"] is may_share


def test_tablespaces_that_would_go_with_the_old_data(
    needs: Callable[[], Any], tmp_path: Path
) -> None:
    data = tmp_path / "it's data"
    for number, place in enumerate((tmp_path, data), 1):
        (place / "far").mkdir()
        (data / "pg_tblspc" / str(number)).symlink_to(place / "far")
    # One in place, as only developers have it.
    (data / "pg_tblspc" / "3").mkdir()
    assert needs()["inside"] == [f"{data}/far", f"{data}/pg_tblspc/3"]


@pytest.mark.parametrize(
    "answer",
    [
        "echo 'Error: cluster 15 main does not exist' >&2; exit 1",
        "echo '15  main    5432 down   postgres /var/lib/postgresql/15/main log'",
    ],
)
def test_a_cluster_that_does_not_run_is_not_upgraded(program: Program, answer: str) -> None:
    path = program("pg_lsclusters", answer)
    assert ask(UpgradeState, path, old=15, new=17) == UpgradeState().default()


def test_what_an_upgrade_says(tmp_path: Path) -> None:
    """The end of it is not lost: whether it runs is asked before what it says."""
    command = text(UpgradeProgress, seen=1).replace("/run/systemd/transient", str(tmp_path))
    command = command.replace("/var/lib/terrafirma/upgrade/log", f"{tmp_path}/log")
    assert UpgradeProgress().process(shell(command)) == {"running": False, "lines": []}
    (tmp_path / "log").write_text("Stopping 15/main\nStarting 17/main\nfinished\n")
    (tmp_path / "terrafirma-postgres-upgrade.service").touch()
    state = UpgradeProgress().process(shell(command))
    assert state == {"running": True, "lines": ["Starting 17/main", "finished"]}


# --- the pooler -----------------------------------------------------------------------------------

USER_LIST = "/etc/pgbouncer/userlist.txt"
VERIFIERS = (
    '"api" "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"\n"worker" "SCRAM-SHA-256$1:a$b:c"'
)


@pytest.fixture
def users(program: Program, cluster: Cluster, tmp_path: Path) -> Callable[..., Any]:
    """What the fact says of a user list, and that it says nothing of what is in it."""

    def read(
        content: str | None, known: str = VERIFIERS, *, mode: str = "640:root:postgres"
    ) -> Any:
        cluster.runs()
        program("stat", f"echo {mode}")
        (tmp_path / "known").write_text(known)
        path = program("runuser", f'cat > "$0.input"; cat "{tmp_path}/known"')
        file = tmp_path / "userlist.txt"
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
        command = text(UserList, version=17, roles=["api", "worker"])
        assert USER_LIST in command
        output = shell(command.replace(USER_LIST, str(file)), path)
        assert "SCRAM" not in "".join(output)
        query = (path / "runuser.input").read_text()
        # The second is the same role while its password is renewed.
        assert "rolname = any('{api,api~,worker,worker~}')" in query
        assert "and rolpassword like 'SCRAM-SHA-256$%'" in query
        return UserList().process(output) if output else UserList().default()

    return read


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (f"; Managed by Terrafirma: tasks/pgbouncer.py\n{VERIFIERS}\n", "right"),
        (VERIFIERS, "right"),
        (f'{VERIFIERS}\n"postgres" ""\n', "wrong"),
        (VERIFIERS.replace("c2FsdA", "b2xk"), "wrong"),
        (VERIFIERS.splitlines()[0], "wrong"),
        ("", "wrong"),
        (None, "wrong"),
    ],
)
def test_a_user_list_agrees_with_the_cluster(
    users: Callable[..., Any], content: str | None, answer: str
) -> None:
    assert users(content) == answer


def test_a_user_list_has_both_logins_of_a_role_while_its_password_is_renewed(
    users: Callable[..., Any],
) -> None:
    api, worker = VERIFIERS.splitlines()
    both = "\n".join((api, api.replace("api", "api~").replace("$c3RvcmVk", "$bmV3"), worker))
    assert users(VERIFIERS, known=both) == "wrong"
    assert users(both, known=both) == "right"
    # The second one is gone again.
    assert users(both) == "wrong"


def test_a_user_list_that_others_may_read_is_wrong(users: Callable[..., Any]) -> None:
    assert users(VERIFIERS, mode="644:root:postgres") == "wrong"
    assert users(VERIFIERS, mode="640:postgres:postgres") == "wrong"


def test_a_role_without_a_verifier_has_no_place_in_a_user_list(users: Callable[..., Any]) -> None:
    first = VERIFIERS.splitlines()[0]
    assert users(first, known=first) == "no verifiers"
    assert users("", known="") == "no verifiers"


def test_a_second_login_does_not_stand_in_for_another_role(users: Callable[..., Any]) -> None:
    api = VERIFIERS.splitlines()[0]
    assert users("", known=f"{api}\n{api.replace('api', 'api~')}") == "no verifiers"


def test_there_are_no_verifiers_where_no_cluster_runs(cluster: Cluster) -> None:
    path = cluster.is_not_there()
    assert ask(UserList, path, version=17, roles=["api"]) == "no verifiers"
    path = cluster.is_down()
    assert ask(UserList, path, version=17, roles=["api"]) == "no verifiers"


def test_a_cluster_that_does_not_answer_has_no_user_list(
    program: Program, cluster: Cluster
) -> None:
    cluster.runs()
    path = program("runuser", "echo 'psql: error: out of memory' >&2; exit 2")
    with pytest.raises(AssertionError, match="out of memory"):
        shell(text(UserList, version=17, roles=["api"]), path)


@pytest.mark.parametrize(
    ("content", "ours", "known", "verify", "foreign"),
    [
        (None, False, True, "", False),
        ("# Managed by Terrafirma: tasks/pgbouncer.py\n", False, True, "{file}", False),
        # The package's own, as it was installed.
        ("[databases]\n", False, True, "", False),
        ("[databases]\n", False, True, "??5?????? c {file}", True),
        ("[databases]\n", False, False, "", True),
        # A run of ours died before it wrote the file.
        ("[databases]\n", True, True, "??5?????? c {file}", False),
    ],
)
def test_a_pooler_of_somebody_else_is_seen(
    program: Program,
    tmp_path: Path,
    content: str | None,
    ours: bool,
    known: bool,
    verify: str,
    foreign: bool,
) -> None:
    file, drop_in = tmp_path / "pgbouncer.ini", tmp_path / "terrafirma.conf"
    if content is not None:
        file.write_text(content)
    if ours:
        drop_in.touch()
    program("dpkg-query", f"exit {0 if known else 1}")
    path = program("dpkg", f'test "$1" != --verify || echo "{verify.format(file=file)}"')
    command = text(ForeignPooler).replace("/etc/pgbouncer/pgbouncer.ini", str(file))
    command = command.replace(
        "/etc/systemd/system/pgbouncer.service.d/terrafirma.conf", str(drop_in)
    )
    output = shell(command, path)
    assert (ForeignPooler().process(output) if output else False) is foreign


# --- secrets --------------------------------------------------------------------------------------


@pytest.fixture
def address(tmp_path: Path) -> Callable[..., str]:
    """Whether a file has the address of a database; the files are below `tmp_path`."""

    def read(user: str = "", database: str = "api") -> str:
        url = f"postgresql://api:*@host.docker.internal:5432/{database}"
        path = f"{tmp_path}/it's {PASSWORDS.rpartition('/')[2]}"
        command = text(DatabaseUrl, path=path, url=url, role="api", user=user or getpass.getuser())
        answer: str = DatabaseUrl().process(
            shell(command.replace(f"{PASSWORDS}/", f"{tmp_path}/passwords/"))
        )
        return answer

    passwords = tmp_path / "passwords"
    passwords.mkdir()
    (passwords / "api").write_text("s3cret_-\n")
    file = tmp_path / f"it's {PASSWORDS.rpartition('/')[2]}"
    file.write_text("postgresql://api:s3cret_-@host.docker.internal:5432/api\n")
    file.chmod(0o400)
    return read


def test_an_address_is_right(address: Callable[..., str]) -> None:
    assert address() == "right"


def test_an_address_of_another_database_is_wrong(address: Callable[..., str]) -> None:
    assert address(database="other") == "wrong"


def test_an_address_with_another_password_is_wrong(
    address: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "passwords" / "api").write_text("other\n")
    assert address() == "wrong"


def test_an_address_that_others_may_read_is_wrong(
    address: Callable[..., str], tmp_path: Path
) -> None:
    for path in tmp_path.glob("it's *"):
        path.chmod(0o444)
    assert address() == "wrong"


def test_an_address_that_is_not_there_is_wrong(address: Callable[..., str], tmp_path: Path) -> None:
    for path in tmp_path.glob("it's *"):
        path.unlink()
    assert address() == "wrong"


def test_an_address_of_another_account(address: Callable[..., str]) -> None:
    assert address(user="nobody") == "wrong"
    assert address(user="no-such-account") == "no account"


def test_an_address_before_its_password(address: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "passwords" / "api").unlink()
    assert address() == "no password"


# --- backup ---------------------------------------------------------------------------------------


def test_archives_of_a_repository() -> None:
    archive = '{"archive": "t1-%s", "barchive": "t1", "id": "1", "name": "t1-%s", "start": "x"}'
    output = f'[{{"archives": [{archive % (1, 1)}, {archive % (2, 2)}], "encryption": {{}}}}]'
    assert Archives().process([output]) == ["t1-1", "t1-2"]
    assert Archives().process(['[{"archives": []}]']) == []


def test_an_archive_proves_the_configuration_that_it_was_made_with(tmp_path: Path) -> None:
    stamp, first, second = (tmp_path / name for name in ("it's a stamp", "a.yaml", "it's b"))
    for file in (first, second):
        file.touch()
        os.utime(file, (1000, 1000))

    def proof() -> Any:
        return ask(FirstArchive, stamp=str(stamp), configuration=[str(first), str(second)])

    assert proof() is None
    stamp.write_text("t1-2026-11-23T23:50:00\n")
    assert proof() == "t1-2026-11-23T23:50:00"
    os.utime(stamp, (2000, 2000))
    for file in (first, second):
        os.utime(file, (3000, 3000))
        assert proof() is None
        os.utime(file, (1000, 1000))
    assert proof() == "t1-2026-11-23T23:50:00"


# --- secrets of applications ----------------------------------------------------------------------


def test_all_secrets_are_wrong_where_there_is_no_program_yet() -> None:
    """And no value comes back."""
    asked = "owner prod\nborn key\ngiven .registry_password czNjcmV0\ngiven token czNjcmV0\n"
    answer = shell(text(AppSecrets, directory="/nowhere"), stdin=asked)
    assert AppSecrets().process(answer) == {
        "wrong": ["key", ".registry_password", "token"],
        "other": [],
    }


def test_secrets_that_are_wrong_and_those_of_nobody() -> None:
    assert AppSecrets().process(["wrong a", "other b", "wrong c"]) == {
        "wrong": ["a", "c"],
        "other": ["b"],
    }


@pytest.mark.parametrize("line", ["s3cret", "", "wrong", "wrong a b", "right a"])
def test_another_answer_about_secrets_is_not_repeated(line: str) -> None:
    with pytest.raises(FactProcessError) as error:
        AppSecrets().process([line])
    assert "s3cret" not in str(error.value)

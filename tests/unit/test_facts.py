"""Facts: their shell is right (it runs here if possible), and so is the parsing of its output."""

import importlib
import inspect
import os
import pkgutil
import shutil
import subprocess
from typing import Any

import pytest
from pyinfra.api import FactBase, FactProcessError

import terrafirma
from terrafirma.app.facts import AppSecrets, DatabaseUrl, Kept, ReleaseStatus
from terrafirma.apt.facts import OfferedPackages
from terrafirma.apt.upgrade_facts import Packages
from terrafirma.borg.facts import Archives, Backups
from terrafirma.caddy.facts import CaddyVersion, Certificates, Names
from terrafirma.docker.facts import ContainerReach, DockerAddresses, DockerNetworks
from terrafirma.docker.reach import Seen
from terrafirma.firewall.facts import Firewall
from terrafirma.host.calendars import WrongCalendars
from terrafirma.host.facts import Hardware, Listeners, Machine, UsedNetworks
from terrafirma.host.files import PathStates
from terrafirma.host.kernel import KernelSettings
from terrafirma.host.lifetimes import Lifetimes
from terrafirma.host.packages import AptLockHolder, InstalledPackages
from terrafirma.host.units import Unit
from terrafirma.pgbouncer.facts import ForeignPooler, UserList
from terrafirma.postgres.facts import Contents, Databases, Roles, Server, WrongPasswords
from terrafirma.postgres.status_facts import PostgresStatus
from terrafirma.postgres.upgrade_facts import UpgradeProgress, UpgradeState
from terrafirma.sshd.facts import Logins
from terrafirma.updates.facts import UpdatesStatus
from terrafirma.users.facts import Accounts
from tests.unit.facts import text
from tests.unit.programs import Program

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
    Backups: [
        *({"stamp": one, "configuration": [one], "result": one} for one in HOSTILE),
        {"stamp": "/x", "configuration": HOSTILE, "result": "/x"},
    ],
    # All paths on a host are absolute.
    ForeignPooler: [{}],
    Firewall: [{}],
    Hardware: [{"path": "/"}, *({"path": f"/nowhere/{one}"} for one in HOSTILE)],
    # These names are our own, and never come from settings.
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
    Lifetimes: [
        {"distribution": "debian", "version": "13"},
        *({"distribution": one, "version": one} for one in HOSTILE),
    ],
    Listeners: [{"ports": [80]}, {"ports": [443, 80, 5432]}],
    Machine: [{}],
    ContainerReach: [{"names": []}, {"names": ["apps"]}, {"names": HOSTILE}],
    InstalledPackages: [{}],
    OfferedPackages: [{}],
    Packages: [{"names": []}, {"names": ["caddy", "libpq5"]}, {"names": HOSTILE}],
    Kept: [{}],
    Roles: [{"version": 17}],
    Server: [{"version": 17}],
    PostgresStatus: [{"version": 15}, {"version": 17}],
    PathStates: [
        *({"paths": paths} for paths in ([], ["/etc"], HOSTILE)),
        {"paths": [], "patterns": ["/etc/caddy/*"]},
    ],
    ReleaseStatus: [{"app": "api"}, *({"app": one} for one in HOSTILE)],
    Unit: [
        {"unit": "ssh.service"},
        {"unit": "a.service", "restart_on": ["/etc/a"], "reload_on": ["/etc/b", "/etc/c"]},
        {"unit": "a.service", "restart_on": HOSTILE, "reload_on": HOSTILE},
        *({"unit": "ssh.service", "socket": one} for one in ("ssh.socket", *HOSTILE)),
    ],
    UpdatesStatus: [{}],
    UpgradeProgress: [{}, {"seen": 7}],
    UpgradeState: [{"old": 15, "new": 17}],
    UsedNetworks: [{}],
    UserList: [{"version": 17, "roles": []}, {"version": 17, "roles": ["api", "worker"]}],
    WrongCalendars: [{"calendars": ["daily"]}, {"calendars": HOSTILE}],
    WrongPasswords: [{"version": 17}],
}
COMMANDS = [
    pytest.param(fact, arguments, id=f"{fact.__name__}-{number}")
    for fact, cases in ARGUMENTS.items()
    for number, arguments in enumerate(cases)
]


def test_every_fact_is_in_the_table_of_this_file() -> None:
    facts = {
        value
        for module in pkgutil.walk_packages(terrafirma.__path__, "terrafirma.")
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
def test_arguments_are_never_executed(
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
        (Backups, {"first": "", "trouble": ""}),
        (ForeignPooler, False),
        (Hardware, None),
        (KernelSettings, {}),
        (Lifetimes, {"end": "", "packages": {}}),
        (Listeners, []),
        (ContainerReach, {"missing": [], "said_by": [], "seen": Seen()}),
        (InstalledPackages, {}),
        (OfferedPackages, {}),
        (
            Packages,
            {
                "packages": {},
                "files": [],
                "rest": [],
                "age": None,
                "backups": False,
                "reboot": False,
                "left": False,
            },
        ),
        (Kept, {"ports": {}, "routed": []}),
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
                "on_demand": False,
                "stale_units": [],
                "stale": [],
                "stale_reload": [],
                "stale_socket": [],
            },
        ),
        (UpdatesStatus, {"alarms": [], "notes": []}),
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
        (WrongCalendars, []),
        (WrongPasswords, []),
    ],
)
def test_empty_output_means_the_default(fact: type[FactBase[Any]], default: Any) -> None:
    assert fact().default() == default


def test_a_machine_that_says_nothing_is_an_unknown_system() -> None:
    """pyinfra returns the default when the command failed, and goes on with other hosts."""
    nothing = Machine().default()
    assert nothing is not None
    assert (nothing["id"], nothing["root"], nothing["booting"]) == ("", False, False)


def test_a_default_is_not_shared() -> None:
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
        # The second database has the mistake.
        (
            Contents,
            ['{"database": "api", "extensions": [], "schemas": {}}', "ERROR:  out of memory"],
        ),
        (Databases, ["psql: error: connection to server failed"]),
        (Databases, ["null"]),
        # The first line is missing.
        (DockerAddresses, ["5: docker0    inet 10.210.0.1/24 scope global docker0"]),
        (DockerAddresses, ["daemon={broken"]),
        (Backups, ["result={"]),
        (Backups, ["result=[]"]),
        (Backups, ["web-1"]),
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
        (Lifetimes, ["row=version,eol", "row=13,soon"]),
        (Lifetimes, ["dpkg-query: error"]),
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
        (UpdatesStatus, ["Traceback (most recent call last):"]),
        (UpdatesStatus, ["null"]),
        (UpdatesStatus, ['{"alarms": []}']),
        (Packages, ["E: Could not open lock file"]),
        (Packages, ["policy|  Installed: 1.2"]),
        (Packages, ["policy|caddy:", "policy|        600 https://x.test any/main amd64 Packages"]),
        (Packages, ["rest|curl"]),
        (Packages, ["age|"]),
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

"""The fact about accounts: which exist, and their rules and lines of sudoers."""

import getpass
import grp
import os
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api import FactProcessError

from terrafirma.users.accounts import surplus
from terrafirma.users.facts import Accounts
from terrafirma.users.settings import Account
from tests.unit.facts import ask, shell, text
from tests.unit.programs import Program


def test_accounts_of_a_host() -> None:
    """Output of Debian 13: the account of an image, and one that does not exist yet."""
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
    """The rules in the output of sudo."""
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


def test_other_lines_of_a_rule_are_no_commands() -> None:
    """Output of sudo 1.9.13."""
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
    """`id` names one of the groups, and the account is in the other."""
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
    """The old home belongs to another user; the new home is a dangling link."""
    me = os.getuid()
    program("getent", f"test $1 != passwd || echo dev:x:1002:1002::{tmp_path}:/bin/sh")
    path = program("id", "echo dev")
    (tmp_path / "link").symlink_to("/no/such")
    dev = ask(Accounts, path, homes={"dev": str(tmp_path / "link")})["accounts"]["dev"]
    assert (dev["old"]["uid"], dev["old"]["kind"]) == (me, "directory")
    assert (dev["directory"]["uid"], dev["directory"]["kind"]) == (me, "symbolic link")


def test_who_has_which_line_of_sudoers(tmp_path: Path) -> None:
    """The shell function of the fact, on files of the test."""
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

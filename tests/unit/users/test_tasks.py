"""Runs of the task users: the connected user keeps access."""

from collections.abc import Sequence
from subprocess import CompletedProcess
from typing import Any

import pytest

from terrafirma.users.facts import Accounts
from tests.conftest import Pyinfra
from tests.unit.fake_host import SHOP, command, commands, fake, machine, refuses, written
from tests.unit.settings import API, KEY

CI: dict[str, Any] = {"name": "ci", "keys": [KEY], "releases": ["api"]}
PROD = {"name": "prod"}
ACCOUNTS = command(Accounts, homes={name: f"/home/{name}" for name in ("prod", "ingres", "dev")})


# --- they refuse ----------------------------------------------------------------------------------

# The mistake; the task; the host; the parts of the message: the key or the thing, and the remedy.
REFUSALS: dict[str, tuple[str, list[str], Sequence[str]]] = {
    "a key for an unknown application": (
        "tasks/users",
        fake(machine(), users_accounts=[CI | {"releases": ["api", "shop"]}, PROD]),
        ("users_accounts: ", "ci releases 'shop'", "not an application", "api"),
    ),
    "a login that could only release afterwards": (
        "tasks/users",
        fake(machine(root="", sudo="yes", user="ci"), users_accounts=[CI, PROD]),
        ("users_accounts: ", "'ci'", "another user"),
    ),
    "a system account": (
        "tasks/users",
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
        "tasks/users",
        fake(machine(root="", sudo="yes", user="ingres")),
        ("users_accounts: ", "'ingres'", "another user"),
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses_in_one_line_before_anything_changes(
    refused: dict[str, CompletedProcess[str]], what: str
) -> None:
    refuses(refused[what], REFUSALS[what][2])


# --- the connected user keeps access --------------------------------------------------------------

SUDOERS = "/etc/sudoers.d/90-terrafirma-"


def test_an_account_that_is_no_longer_declared_keeps_its_sudo_while_it_is_connected(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    files = [f"{SUDOERS}{name}" for name in ("gone", "ingres", "old")]
    answers = {
        ACCOUNTS: [f"file|{file}" for file in files],
        "for path in /etc/sudoers.d/": [
            *(f"440|root|root|regular file|{file}" for file in files),
            *(f"{0:064}  {file}" for file in files),
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
    accounts = [CI | {"releases": ["api", "shop"]}, PROD]
    data = {"users_accounts": accounts, "apps": {"api": API, "shop": SHOP}}
    result = pyinfra.call(
        "@fake/host", "tasks/users.py", "-y", "--diff", "-vv", *fake(machine(), **data)
    )
    command = "/usr/local/bin/terrafirma forced api shop"
    keys = written(result, "/home/ci/.ssh/authorized_keys").splitlines()
    assert keys[1:] == [f'restrict,command="sudo -n {command}" {KEY}']
    *_, rule = written(result, f"{SUDOERS}ci").splitlines()
    assert rule == f"ci ALL=(root) NOPASSWD: {command}"

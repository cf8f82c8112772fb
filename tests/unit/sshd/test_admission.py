"""Who is admitted, and what other files of sshd would have to change first."""

from __future__ import annotations

from typing import Any

import pytest

from terrafirma.sshd.admission import admitted, refusals
from terrafirma.sshd.facts import LoginsState
from tests.unit.settings import KEY, server

PLACE = "/etc/ssh/sshd_config.d/00-a.conf:3"
ACCOUNTS = [{"name": "dev", "keys": [KEY]}, {"name": "bot"}]


def state(*users: str, **rules: list[str]) -> LoginsState:
    everyone: dict[str, Any] = {
        name: {"rules": {"port": ["22"], **rules}, "groups": [name]} for name in users
    }
    places = [(keyword, PLACE) for keyword in rules]
    return LoginsState(logins=everyone, absent=False, unread=False, error="", places=places)


def refused(known: LoginsState, **data: Any) -> list[str]:
    site = server(users_accounts=ACCOUNTS, apps={}, **data)
    return list(refusals(site, "root", known, {"Ciphers": "aes256-ctr"}))


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({}, ["bot", "dev", "root"]),
        ({"sshd_allow_users": ["ops"]}, ["bot", "dev", "ops", "root"]),
        ({"sshd_root_login": False}, ["bot", "dev"]),
    ],
)
def test_who_is_admitted(data: dict[str, Any], names: list[str]) -> None:
    assert admitted(server(users_accounts=ACCOUNTS, apps={}, **data), "root") == names


def test_ports_of_other_files_are_named() -> None:
    known = state("bot", "dev", "root", port=["22", "2022", "2222"])
    assert refused(known) == []
    (line,) = refused(known, sshd_ports=[22, 2222])
    assert line == f"sshd would listen on other ports, too: 2022 ({PLACE})"
    assert refused(known, sshd_ports=[22, 2022, 2222]) == []


def test_a_softer_rule_counts_once_and_for_declared_accounts() -> None:
    known = state("bot", "dev", "root", ciphers=["3des-cbc"])
    (line,) = refused(known)
    assert line == f"sshd would treat dev otherwise than declared: ciphers 3des-cbc ({PLACE})"
    # How an account logs in that nobody declared is its own matter.
    only_root = state("root", ciphers=["3des-cbc"])
    assert refused(only_root) == []


def test_everything_that_is_wrong_is_one_line() -> None:
    known = state("bot", "dev", "root", denyusers=["dev"], allowusers=["dev", "root", "eve"])
    assert [line.partition(":")[0] for line in refused(known)] == [
        # An account without a key cannot log in anyway.
        "sshd would not let dev in",
        "sshd would let others in",
    ]

"""Which commands begin and end a guarded change, and which keys are at hand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from paramiko import Ed25519Key
from pyinfra.api import StringCommand
from pyinfra.context import ctx_host, ctx_state

from terrafirma.guard import changes
from terrafirma.guard.logins import administrators, key_at_hand, named_keys
from terrafirma.guard.operations import Guard
from terrafirma.host.operation import before_change, failure, is_unchanged, operation
from terrafirma.users.settings import Account
from tests.unit.settings import KEY, server

ARM = StringCommand("arm")


class Host:
    """What the code under test asks of a host."""

    def __init__(self) -> None:
        self.data = SimpleNamespace(get=lambda key: None, dict=dict)
        self.state = SimpleNamespace(private_keys={})


@pytest.fixture
def host() -> Iterator[Any]:
    one = Host()
    with ctx_host.use(one), ctx_state.use(SimpleNamespace(is_executing=False)):
        yield one


@operation
def change(*commands: StringCommand) -> Generator[StringCommand]:
    """Run these commands."""
    yield from commands


def words(*commands: StringCommand) -> list[str]:
    return [str(one) for one in change._inner(*commands)]


def test_the_first_change_is_preceded_by_the_timer(host: Any) -> None:
    before_change(host, ARM, "x")
    assert words() == []
    assert words(StringCommand("a"), StringCommand("b")) == ["arm", "a", "b"]
    assert words(StringCommand("c")) == ["c"]
    assert not is_unchanged(host)


def test_without_a_change_there_is_no_timer(host: Any) -> None:
    before_change(host, ARM, "x")
    assert words() == []
    assert is_unchanged(host)
    assert words(StringCommand("a")) == ["a"]


def test_without_a_login_to_prove_there_are_only_words(host: Any) -> None:
    before_change(host, None, "x")
    assert words(StringCommand("a")) == ["a"]
    assert not is_unchanged(host)


def test_a_refusal_is_no_change(host: Any) -> None:
    before_change(host, ARM, "x")
    assert words(failure("no")) == ["echo no >&2; exit 1"]
    assert is_unchanged(host)


# --- what is armed --------------------------------------------------------------------------------

ACCOUNTS = [
    {"name": "prod"},
    {"name": "ingres", "keys": [KEY], "sudo": ["ALL"]},
    {"name": "boss", "keys": [KEY], "sudo": ["ALL"], "home": "/srv/boss"},
    {"name": "keyless", "sudo": ["ALL"]},
]


def guard(user: str = "ingres", **data: Any) -> Guard:
    site = server(users_accounts=ACCOUNTS, **data)
    machine: Any = {"user": user}
    return Guard(site, machine, changes.logins(site, user, first=["usermod x"]))


def test_the_order_says_all_that_comes_back() -> None:
    one = guard("ops", guard_seconds=30)
    arm = one.arm.get_raw_value()
    order = json.loads(arm[arm.index("{") : arm.rindex("}") + 1])
    assert order["seconds"] == 30
    assert order["token"] in one.confirm.get_raw_value()
    assert order["token"] != guard().token
    assert order["first"] == ["usermod x"]
    assert {"~ops", "~ops/.ssh/authorized_keys", "~ingres/.ssh"} <= {*order["paths"]}
    # Also of an account that has no home yet.
    assert "/srv/boss/.ssh/authorized_keys" in order["paths"]
    assert {"/etc/ssh/sshd_config.d/", "/etc/sudoers.d/"} <= {*order["paths"]}


def test_other_administrators_with_a_key_are_proved() -> None:
    site = server(users_accounts=ACCOUNTS)
    assert [one.name for one in administrators(site, "root")] == ["ingres", "boss"]
    assert [one.name for one in administrators(site, "ingres")] == ["boss"]


def test_two_changes_are_undone_as_one() -> None:
    more = changes.Change("the firewall", ("/etc/x",), commands=("reload x",))
    both = changes.logins(server(), "root").with_more(more)
    assert both.what == "who may log in, the firewall"
    assert both.paths[-1] == "/etc/x"
    assert both.commands[-1] == "reload x"


# --- keys at hand ---------------------------------------------------------------------------------


def key(path: Path, passphrase: str = "") -> str:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)], check=True
    )
    return path.with_suffix(".pub").read_text()


def test_a_key_is_found_beside_its_public_half(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    text = key(tmp_path / "admin")
    account = Account(name="ingres", keys=(text,))
    found = key_at_hand(host, account, [str(tmp_path / "admin.pub")])
    assert found
    assert found.get_base64() in text
    assert key_at_hand(host, account, []) is None
    # As ssh itself finds it.
    (tmp_path / ".ssh").mkdir()
    text = key(tmp_path / ".ssh/id_ed25519")
    assert key_at_hand(host, Account(name="ingres", keys=(KEY, text)), ["~/x.pub", KEY])
    assert key_at_hand(host, Account(name="ingres", keys=(KEY,)), [KEY]) is None


def test_a_key_with_a_passphrase_is_at_hand_once_the_run_has_it(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    path = tmp_path / "admin"
    account = Account(name="ingres", keys=(key(path, "a b c d e"),))
    named = [f"{path}.pub"]
    assert key_at_hand(host, account, named) is None
    host.state.private_keys["admin"] = Ed25519Key.from_private_key_file(str(path), "a b c d e")
    assert key_at_hand(host, account, []) is host.state.private_keys["admin"]


def test_the_files_of_keys_are_read_from_the_data(host: Any) -> None:
    accounts = [{"name": "a", "keys": ["x.pub", "y.pub"]}, {"name": "b"}, "odd"]
    host.data.dict = lambda: {"users_accounts": accounts}
    assert named_keys(host, "a") == ["x.pub", "y.pub"]
    assert named_keys(host, "b") == []

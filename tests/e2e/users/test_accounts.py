"""Accounts: who may log in, with which key, and what they may do as root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import backed_up
from tests.e2e.support import STATE, Target, changed, execute

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def hosts(pyinfra: Pyinfra) -> Iterator[tuple[Target, dict[str, Any]]]:
    with backed_up(pyinfra, "tf-test-accounts", 2451) as server_and_data:
        yield server_and_data


def ssh(
    server: Target, user: str, key: str, command: str = "true"
) -> subprocess.CompletedProcess[str]:
    return execute(
        "ssh", "-F", "/dev/null", "-i", key, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
        "-o", f"UserKnownHostsFile={STATE / 'known_hosts'}", "-p", str(server.port),
        f"{user}@127.0.0.1", command,
    )  # fmt: skip


def accounts(*keys: str, **more: Any) -> list[dict[str, Any]]:
    """The default accounts, with keys for `ingres` and `dev`."""
    return [
        {"name": "prod"},
        {"name": "ingres", "keys": list(keys), "sudo": ["ALL"]},
        {"name": "dev", "keys": list(keys), "sudo": ["/usr/bin/systemctl reload caddy"]} | more,
    ]


def test_the_declared_accounts_are_there(server: Target) -> None:
    for name in ("prod", "ingres", "dev"):
        entry = server.run(f"getent passwd {name}")
        assert entry.endswith(f":/home/{name}:/bin/bash")
        assert server.run(f"id -Gn {name}") == name
        assert server.run(f"stat -c '%a %U' /home/{name}/.ssh") == f"700 {name}"
        # No password opens them.
        assert server.run(f"getent shadow {name}").split(":")[1].startswith("!")


@pytest.mark.promise("Keys, groups and sudo rules are exactly the declared ones")
def test_keys_sudo_and_groups_are_exactly_the_declared_ones(server: Target, new_key: str) -> None:
    public = f"{new_key}.pub"
    assert ssh(server, "ingres", new_key).returncode == 255

    with_key = accounts(public, groups=["adm"])
    answer = server.deploy("tasks/users.py", "tasks/sshd.py", users_accounts=with_key)
    assert changed(answer) == [
        "Create the accounts",
        "Authorize exactly the declared keys",
        "Allow exactly the declared commands as root",
        "Prove that everybody still gets in",
    ]
    assert ssh(server, "ingres", new_key, "sudo -n id -u").stdout == "0\n"
    assert ssh(server, "dev", new_key, "id -Gn").stdout == "dev adm\n"
    assert ssh(server, "dev", new_key, "sudo -n systemctl reload caddy").returncode == 0
    assert ssh(server, "dev", new_key, "sudo -n systemctl stop caddy").returncode != 0

    # A key is added by hand: the next run removes it.
    server.run("cat >> /home/dev/.ssh/authorized_keys", stdin=Path(public).read_text())
    server.deploy("tasks/users.py")
    assert ssh(server, "dev", new_key).returncode == 255
    assert ssh(server, "ingres", new_key).returncode == 255
    assert server.run("id -Gn dev") == "dev"
    assert server.call("ls /etc/sudoers.d/90-terrafirma-dev").returncode != 0
    assert changed(server.deploy("tasks/users.py")) == []


def test_an_account_that_is_no_longer_declared_loses_its_rights(server: Target) -> None:
    temporary = [*accounts(), {"name": "temp", "sudo": ["ALL"]}]
    server.deploy("tasks/users.py", users_accounts=temporary)
    assert server.call("runuser -u temp -- sudo -n true").returncode == 0
    server.deploy("tasks/users.py", "tasks/sshd.py")
    assert server.call("runuser -u temp -- sudo -n true").returncode != 0
    assert "temp" not in server.run("sshd -T -C user=root,host=x,addr=127.0.0.1 | grep allowusers")
    server.run("userdel --remove temp")


def test_an_account_with_sudo_can_run_the_deploy(
    server: Target, data: dict[str, Any], new_key: str
) -> None:
    declared = accounts(f"{new_key}.pub")
    server.deploy("tasks/users.py", users_accounts=declared)
    answer = server.deploy(user="ingres", key=new_key, users_accounts=declared, **data)
    # The run connects as `ingres`, so root is no longer admitted.
    assert changed(answer) == [
        "tasks/sshd.py | Admit only the declared accounts and the deploying user",
        "tasks/sshd.py | Run sshd",
        "tasks/sshd.py | Prove that everybody still gets in",
    ]
    assert ssh(server, "root", str(STATE / "id_ed25519")).returncode == 255
    again = server.deploy(user="ingres", key=new_key, users_accounts=declared, **data)
    assert changed(again) == []
    # Admit root again, through the account that still can log in.
    server.deploy(
        "tasks/sshd.py", user="ingres", key=new_key,
        users_accounts=declared, sshd_allow_users=["root"],
    )  # fmt: skip
    assert ssh(server, "root", str(STATE / "id_ed25519")).returncode == 0
    server.deploy("tasks/users.py", "tasks/sshd.py")


@pytest.mark.promise(
    "The deploying account is never locked out, even if the settings do not mention it or take "
    "its `sudo` away"
)
def test_an_undeclared_account_that_deploys_keeps_what_it_needs(
    server: Target, new_key: str
) -> None:
    """As with the account of a cloud image, which is not declared; also with pyinfra's `--sudo`."""
    server.deploy("tasks/users.py", users_accounts=accounts(f"{new_key}.pub"))
    # `ingres` is no longer declared, but it is the connected user.
    mine = [{"name": "prod"}, {"name": "dev"}]
    for sudo in ({}, {"_sudo": True}):
        server.deploy(
            "tasks/users.py", "tasks/sshd.py", user="ingres", key=new_key,
            users_accounts=mine, sshd_allow_users=["root"], **sudo,
        )  # fmt: skip
        assert ssh(server, "ingres", new_key, "sudo -n id -u").stdout == "0\n"
    server.deploy("tasks/users.py", "tasks/sshd.py")
    server.run("test ! -e /home/ingres/.ssh/authorized_keys2")


def test_a_key_in_a_second_file_opens_nothing(server: Target, new_key: str) -> None:
    public = Path(f"{new_key}.pub").read_text()
    server.run("cat > /home/dev/.ssh/authorized_keys2", stdin=public)
    server.run("chown dev: /home/dev/.ssh/authorized_keys2")
    assert ssh(server, "dev", new_key).returncode == 255
    server.run("rm /home/dev/.ssh/authorized_keys2")


def test_root_follows_no_link_out_of_a_home(server: Target) -> None:
    before = server.run("stat -c '%a %U' /etc; ls /etc | sha256sum")
    server.run("mv /home/dev/.ssh /home/dev/kept && ln -s /etc /home/dev/.ssh")
    try:
        result = server.pyinfra.imported.call("-y", *server.arguments(), "tasks/users.py")
    finally:
        server.run("rm /home/dev/.ssh && mv /home/dev/kept /home/dev/.ssh")
    assert result.returncode != 0
    assert server.run("stat -c '%a %U' /etc; ls /etc | sha256sum") == before


def test_a_password_does_not_open_a_session(server: Target) -> None:
    effective = server.run("sshd -T -C user=root,host=x,addr=127.0.0.1")
    assert "passwordauthentication no" in effective
    assert "kbdinteractiveauthentication no" in effective
    assert "permitrootlogin without-password" in effective
    allowed = [line for line in effective.splitlines() if line.startswith("allowusers")]
    assert {"allowusers root", "allowusers prod", "allowusers ingres", "allowusers dev"} == set(
        allowed
    )


def test_the_deploying_user_cannot_lock_itself_out(server: Target, new_key: str) -> None:
    server.deploy("tasks/users.py", users_accounts=accounts(f"{new_key}.pub"))
    line = server.refuse("tasks/users.py", user="ingres", key=new_key)
    assert "users_accounts: you are connected as 'ingres', which would lose its keys" in line
    server.deploy("tasks/users.py")

"""The logins that prove a change are made as the run itself is connected, whatever that takes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import HOST, clone
from tests.e2e.sshd.test_lockout import OURS
from tests.e2e.support import STATE, Target, changed, options, output

pytestmark = [pytest.mark.e2e, pytest.mark.long]

KEY = str(STATE / "id_ed25519")


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra, new_key: str) -> Iterator[Target]:
    with clone(pyinfra, "tf-a-ways", 2583, HOST) as server:
        server.run(
            "useradd -m -s /bin/bash ops && install -d -o ops -m 700 /home/ops/.ssh"
            " && install -o ops -m 600 /root/.ssh/authorized_keys /home/ops/.ssh/"
            " && echo 'ops ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/20-image"
        )
        server.deploy(*OURS, **settings(new_key))
        yield server


def settings(new_key: str, *more: str) -> dict[str, Any]:
    public = Path(f"{new_key}.pub").read_text()
    return {
        "users_accounts": [
            {"name": "ingres", "keys": [public], "sudo": ["ALL"]},
            {"name": "dev", "keys": [public], "forwards": ["127.0.0.1:22"]},
        ],
        "sshd_allow_users": ["root", "ops", *more],
        "apps": {},
    }


Way = tuple[list[str], dict[str, str]]
"""How the run is connected: words of the command line, and its environment."""


@contextmanager
def password(server: Target, _: str, __: Path) -> Iterator[Way]:
    """sudo asks for a password, which the run has."""
    server.run("echo ops:s3cret-s3cret | chpasswd; echo 'ops ALL=ALL' > /etc/sudoers.d/20-image")
    try:
        yield [*server.arguments("ops", KEY), *options({"_sudo_password": "s3cret-s3cret"})], {}
    finally:
        server.run("echo 'ops ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/20-image")


@contextmanager
def passphrase(server: Target, _: str, directory: Path) -> Iterator[Way]:
    path = directory / "protected"
    shutil.copy(KEY, path)
    output("ssh-keygen", "-q", "-p", "-P", "", "-N", "a pass phrase", "-f", str(path))
    given = options({"ssh_key_password": "a pass phrase"})
    yield [*server.arguments("ops", str(path)), *given], {}


@contextmanager
def agent(server: Target, new_key: str, _: Path) -> Iterator[Way]:
    """Also the administrator's key is in the agent alone."""
    lines = output("ssh-agent", "-s").replace(";", "\n").splitlines()
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    try:
        environment = {**os.environ, **variables}
        subprocess.run(["ssh-add", "-q", KEY, new_key], env=environment, check=True)
        arguments = [*server.arguments("ops")]
        del arguments[arguments.index("--key") : arguments.index("--key") + 2]
        yield arguments, {**variables, "HOME": "/nonexistent"}
    finally:
        os.kill(int(variables["SSH_AGENT_PID"]), signal.SIGTERM)


@contextmanager
def jump(server: Target, new_key: str, directory: Path) -> Iterator[Way]:
    """Through an account that may forward to this one address."""
    known, config = directory / "known_hosts", directory / "ssh_config"
    lines = [
        line
        for line in (STATE / "known_hosts").read_text().splitlines()
        if line.startswith(f"[127.0.0.1]:{server.port} ")
    ]
    inner = [line.replace(f"[127.0.0.1]:{server.port}", "127.0.0.1") for line in lines]
    known.write_text("\n".join([*lines, *inner, ""]))
    config.write_text(
        f"Host inner\n HostName 127.0.0.1\n Port 22\n User ops\n IdentityFile {KEY}\n"
        f" UserKnownHostsFile {known}\n ProxyJump bastion\n"
        f"Host bastion\n HostName 127.0.0.1\n Port {server.port}\n User dev\n"
        f" IdentityFile {new_key}\n UserKnownHostsFile {known}\n"
    )
    given = {"ssh_config_file": str(config), "ssh_known_hosts_file": str(known)}
    yield [*options(given), "@ssh/inner"], {}


@contextmanager
def stranger(server: Target, _: str, directory: Path) -> Iterator[Way]:
    """The first contact: the key that the run accepts is the one that counts afterwards."""
    known = directory / "known_hosts"
    known.touch()
    arguments = ["--user", "ops", "--key", KEY, "--port", str(server.port), "127.0.0.1"]
    yield [*options({"ssh_known_hosts_file": str(known)}), *arguments], {}
    assert len(known.read_text().splitlines()) == 1


WAYS: dict[str, Callable[[Target, str, Path], AbstractContextManager[Way]]] = {
    "sudo with a password": password,
    "a key with a passphrase": passphrase,
    "a key in an agent": agent,
    "a jump host": jump,
    "a host that was unknown": stranger,
}


@pytest.mark.promise(
    "Whoever deploys with a password for sudo, a passphrase, an agent or a jump host proves "
    "changes in the same way"
)
@pytest.mark.parametrize("way", WAYS)
def test_a_change_is_proved(server: Target, new_key: str, tmp_path: Path, way: str) -> None:
    # Another list is a change to sshd.
    data = settings(new_key, f"x{list(WAYS).index(way)}")
    with WAYS[way](server, new_key, tmp_path) as (arguments, environment):
        given = options({key: json.dumps(value) for key, value in data.items()})
        result = server.pyinfra.call("-y", *given, *arguments, *OURS, **environment)
        assert result.returncode == 0, result.stderr
        assert "A new login becomes root: ops" in result.stderr
        assert ("ops, ingres" in result.stderr) == (way == "a key in an agent")
        assert "s3cret-s3cret" not in result.stderr + result.stdout
        again = server.pyinfra.run("-y", *given, *arguments, *OURS, **environment)
        assert again["results"]["totals"]["success"] == 0


def test_without_ssh_no_login_is_tried(server: Target, new_key: str) -> None:
    given = options(settings(new_key, "y"))
    result = server.pyinfra.call("-y", *given, f"@docker/{server.name}", "tasks/sshd.py")
    assert result.returncode == 0, result.stderr
    assert "Not over SSH: no login is tried, and nothing is undone" in result.stderr
    assert "Admit only the declared accounts and the deploying user" in changed(
        json.loads(result.stdout)
    )

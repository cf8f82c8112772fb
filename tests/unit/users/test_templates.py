"""authorized_keys and sudoers have exactly the declared keys and commands."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.templates import rendered, settled


def test_authorized_keys_are_exactly_the_declared_ones() -> None:
    assert settled(rendered("users/authorized_keys.j2")) == ["ssh-ed25519 AAAA me", "ssh-rsa BBBB"]
    assert settled(rendered("users/authorized_keys.j2", keys=())) == []


RELEASE = "/usr/local/bin/terrafirma forced api shop"


def test_keys_that_release_do_nothing_else() -> None:
    assert settled(rendered("users/authorized_keys.j2", command=RELEASE)) == [
        f'restrict,command="sudo -n {RELEASE}" ssh-ed25519 AAAA me',
        f'restrict,command="sudo -n {RELEASE}" ssh-rsa BBBB',
    ]


def test_sudoers_of_an_account_that_releases() -> None:
    lines = settled(rendered("users/sudoers.j2", name="ci-bot", commands=(), command=RELEASE))
    assert lines == [
        'Defaults:ci-bot env_keep += "SSH_ORIGINAL_COMMAND"',
        f"ci-bot ALL=(root) NOPASSWD: {RELEASE}",
    ]


@pytest.mark.parametrize(
    ("commands", "rule"),
    [
        (("ALL",), "dev ALL=(ALL:ALL) NOPASSWD: ALL"),
        (("/bin/a b", "/bin/c"), "dev ALL=(ALL:ALL) NOPASSWD: /bin/a b, /bin/c"),
    ],
)
def test_sudoers(commands: tuple[str, ...], rule: str) -> None:
    assert settled(rendered("users/sudoers.j2", commands=commands)) == [rule]


@pytest.mark.skipif(not shutil.which("visudo"), reason="no visudo here")
@pytest.mark.parametrize("command", ["", RELEASE])
def test_visudo_accepts_it(tmp_path: Path, command: str) -> None:
    path = tmp_path / "sudoers"
    path.write_text(rendered("users/sudoers.j2", name="ci-bot", command=command))
    result = subprocess.run(["visudo", "-cf", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr

"""The key or certificate that the server accepted is known, for all kinds of keys of an agent."""

import subprocess
from base64 import b64decode
from pathlib import Path
from typing import Any, cast

import pytest
from paramiko import Message, RSAKey, Transport
from paramiko.agent import AgentKey

from terrafirma.host.connection import _Transport


def blob(kind: str) -> bytes:
    message = Message()
    message.add_string(kind)
    message.add_string(b"x" * 32)
    return message.asbytes()


@pytest.mark.parametrize(
    "kind",
    [
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
        "ssh-ed25519-cert-v01@openssh.com",
        "sk-ssh-ed25519-cert-v01@openssh.com",
    ],
)
def test_a_key_of_an_agent(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(Transport, "auth_publickey", lambda *_: [])
    transport = _Transport.__new__(_Transport)
    key: Any = AgentKey(cast("Any", None), blob(kind))
    assert key.inner_key is None
    transport.auth_publickey("root", key)
    assert transport.key_in_use == blob(kind)


def test_a_key_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transport, "auth_publickey", lambda *_: [])
    transport = _Transport.__new__(_Transport)
    key = RSAKey.generate(2048)
    transport.auth_publickey("root", key)
    assert transport.key_in_use == key.asbytes()


def test_a_certificate_is_none_of_the_account_s_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Transport, "auth_publickey", lambda *_: [])
    for name, kind in (("ca", "ed25519"), ("me", "rsa")):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(tmp_path / name)], check=True
        )
    subprocess.run(
        ["ssh-keygen", "-q", "-s", tmp_path / "ca", "-I", "me", "-n", "root", tmp_path / "me.pub"],
        check=True,
    )
    key = RSAKey.from_private_key_file(str(tmp_path / "me"))
    key.load_certificate(str(tmp_path / "me-cert.pub"))
    transport = _Transport.__new__(_Transport)
    transport.auth_publickey("root", key)
    assert transport.key_in_use == b64decode((tmp_path / "me-cert.pub").read_text().split()[1])

"""The key that a server let in is known, whatever kinds of key the agent holds."""

from typing import Any, cast

import pytest
from paramiko import Message, RSAKey, Transport
from paramiko.agent import AgentKey

from terrafirma.connection import _Transport


def blob(kind: str) -> bytes:
    message = Message()
    message.add_string(kind)
    message.add_string(b"x" * 32)
    return message.asbytes()


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("sk-ssh-ed25519@openssh.com", True),
        ("sk-ecdsa-sha2-nistp256@openssh.com", True),
        # Whoever signed a certificate let it in, none of the account's keys.
        ("ssh-ed25519-cert-v01@openssh.com", False),
        ("sk-ssh-ed25519-cert-v01@openssh.com", False),
    ],
)
def test_a_key_of_an_agent(monkeypatch: pytest.MonkeyPatch, kind: str, known: bool) -> None:
    monkeypatch.setattr(Transport, "auth_publickey", lambda *_: [])
    transport = _Transport.__new__(_Transport)
    key: Any = AgentKey(cast(Any, None), blob(kind))
    assert key.inner_key is None
    transport.auth_publickey("root", key)
    assert transport.key_in_use == (blob(kind) if known else None)


def test_a_key_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transport, "auth_publickey", lambda *_: [])
    transport = _Transport.__new__(_Transport)
    key = RSAKey.generate(2048)
    transport.auth_publickey("root", key)
    assert transport.key_in_use == key.asbytes()

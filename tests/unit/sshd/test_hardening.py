"""sshd is told what its version knows, and other files that say otherwise are named."""

from __future__ import annotations

from typing import Any

import pytest

from terrafirma.sshd.facts import LoginsState
from terrafirma.sshd.hardening import forwarding, hardening, softer

KEYS = {"ED25519": 256, "RSA": 3072, "ECDSA": 256}
PLACE = "/etc/ssh/sshd_config.d/00-a.conf:1"


@pytest.mark.parametrize(
    ("version", "first", "penalties", "least"),
    [
        ((10, 0), "mlkem768x25519-sha256", True, True),
        ((9, 9), "mlkem768x25519-sha256", True, True),
        ((9, 8), "sntrup761x25519-sha512@openssh.com", True, True),
        ((9, 2), "sntrup761x25519-sha512@openssh.com", False, True),
        ((8, 9), "sntrup761x25519-sha512@openssh.com", False, False),
        # Not installed yet: what all supported versions know.
        ((0, 0), "sntrup761x25519-sha512@openssh.com", False, False),
    ],
)
def test_each_version_is_told_what_it_knows(
    version: tuple[int, int], first: str, penalties: bool, least: bool
) -> None:
    hard = hardening(version, KEYS, 4)
    kinds = hard["KexAlgorithms"].split(",")
    assert kinds[0] == first
    # The client of the deploy itself.
    assert kinds[-1] == "curve25519-sha256@libssh.org"
    assert ("PerSourcePenalties" in hard) == penalties
    assert ("RequiredRSASize" in hard) == least


@pytest.mark.parametrize(
    ("keys", "algorithms"),
    [
        (KEYS, "ssh-ed25519,rsa-sha2-512,rsa-sha2-256"),
        ({"ED25519": 256, "RSA": 2048}, "ssh-ed25519"),
        ({"ED25519": 256}, "ssh-ed25519"),
        # A short key is better than none.
        ({"RSA": 2048, "ECDSA": 256}, "rsa-sha2-512,rsa-sha2-256"),
        ({"ECDSA": 256}, None),
        ({}, None),
    ],
)
def test_the_host_shows_its_best_keys(keys: dict[str, int], algorithms: str | None) -> None:
    assert hardening((10, 0), keys, 4).get("HostKeyAlgorithms") == algorithms


def sshd(**rules: str) -> LoginsState:
    logins: Any = {"dev": {"rules": {key: [value] for key, value in rules.items()}, "groups": []}}
    places = [(keyword, PLACE) for keyword in rules]
    return LoginsState(logins=logins, absent=False, unread=False, error="", places=places)


HARD = {"Ciphers": "aes256-ctr", "AllowTcpForwarding": "no", "LogLevel": "VERBOSE"}


def test_a_file_that_sorts_earlier_is_named() -> None:
    assert [*softer(sshd(ciphers="aes256-ctr", loglevel="VERBOSE"), HARD, {"dev": ()})] == []
    assert [*softer(sshd(ciphers="3des-cbc"), HARD, {"dev": (), "bob": ()})] == [
        f"sshd would treat dev otherwise than declared: ciphers 3des-cbc ({PLACE})"
    ]


def test_forwarding_is_what_is_declared() -> None:
    assert forwarding(()) == {}
    declared = {"dev": ("127.0.0.1:5432", "*:22")}
    right = sshd(allowtcpforwarding="local", permitopen="127.0.0.1:5432 *:22")
    assert [*softer(right, HARD, declared)] == []
    (line,) = softer(right, HARD, {"dev": ()})
    assert "allowtcpforwarding local" in line
    (line,) = softer(sshd(allowtcpforwarding="local", permitopen="any"), HARD, declared)
    assert "permitopen any" in line


def test_a_value_that_sshd_shows_in_another_form_is_not_compared() -> None:
    shown = sshd(persourcepenalties="crash:90 authfail:5")
    assert [*softer(shown, {"PerSourcePenalties": "yes"}, {"dev": ()})] == []

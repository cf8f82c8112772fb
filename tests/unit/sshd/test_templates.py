"""sshd's file admits the declared users, with keys."""

from tests.unit.templates import rendered, settled


def test_sshd_lets_in_the_declared_users_with_keys() -> None:
    directives = dict(
        line.split(" ", 1) for line in settled(rendered("sshd/00-terrafirma.conf.j2"))
    )
    assert directives["PasswordAuthentication"] == "no"
    assert directives["KbdInteractiveAuthentication"] == "no"
    assert directives["PubkeyAuthentication"] == "yes"
    assert directives["PermitRootLogin"] == "prohibit-password"
    assert directives["AllowUsers"] == "dev root"
    assert {"TrustedUserCAKeys none", "AuthorizedKeysCommand none"} <= {
        *map(" ".join, directives.items())
    }


def test_sshd_lets_in_with_passwords_only_when_told() -> None:
    text = rendered("sshd/00-terrafirma.conf.j2", password_authentication=True)
    assert "PasswordAuthentication yes" in settled(text)
    assert "PermitRootLogin prohibit-password" in settled(text)


def test_forwarding_is_for_single_accounts() -> None:
    lines = rendered("sshd/00-terrafirma.conf.j2").splitlines()
    block = lines[lines.index("Match User dev") :]
    assert block[1:3] == ["    AllowTcpForwarding local", "    PermitOpen 127.0.0.1:5432"]
    # What stands behind the file, as in its check, belongs to no account.
    assert block[-1] == "Match all"
    assert "Match all" not in rendered("sshd/00-terrafirma.conf.j2", forwards={})


def test_root_is_shut_out_when_told() -> None:
    assert "PermitRootLogin no" in settled(rendered("sshd/00-terrafirma.conf.j2", root_login=False))

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

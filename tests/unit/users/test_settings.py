"""Settings of accounts and keys."""

from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from terrafirma.settings import Settings
from terrafirma.users.settings import Users
from tests.unit.settings import KEY, SECURITY_KEY, numbered, of, refusal


def rsa(bits: int) -> str:
    key = generate_private_key(65537, bits).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def compressed() -> str:
    """An ECDSA key with a compressed point, which OpenSSH never writes."""
    kind, curve = b"ecdsa-sha2-nistp256", b"nistp256"
    point = b"\x02" + bytes(31) + b"\x05"
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in (kind, curve, point))
    return f"{kind.decode()} {b64encode(blob).decode()}"


def test_addresses_to_forward_to() -> None:
    wanted = ("127.0.0.1:5432", "*:22", "db-1.example.com:*", "[fd00::1]:22")
    (account,) = of(Users, users_accounts=[{"name": "a", "forwards": wanted}]).accounts
    assert account.forwards == wanted


# --- bad data -------------------------------------------------------------------------------------

BAD: list[tuple[type[Settings], dict[str, Any], str, str]] = [
    # the host data; the key that the message names; the part that says what would be right
    (Users, {"users_accounts": {"name": "dev"}}, "users_accounts", "must be a list"),
    (Users, {"users_accounts": ["dev"]}, "users_accounts.0", "valid dictionary"),
    (Users, {"users_accounts": [{}]}, "users_accounts.0.name", "Field required"),
    (Users, {"users_accounts": [{"nmae": "dev"}]}, "users_accounts.0.nmae", "no such key"),
    (Users, {"users_accounts": [{"name": "Dev"}]}, "users_accounts.0.name", "does not match"),
    (Users, {"users_accounts": [{"name": "a;b"}]}, "users_accounts.0.name", "does not match"),
    (Users, {"users_accounts": [{"name": "dev\n"}]}, "users_accounts.0.name", "does not match"),
    (Users, {"users_accounts": [{"name": "a" * 33}]}, "users_accounts.0.name", "does not match"),
    (Users, {"users_accounts": [{"name": "root"}]}, "users_accounts.0", "root exists already"),
    (
        Users,
        {"users_accounts": [{"name": "a"}, {"name": "a"}]},
        "users_accounts",
        "'a' is there twice",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "shell": "bash"}]},
        "users_accounts.0.shell",
        "absolute",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "shell": "/b;c"}]},
        "users_accounts.0.shell",
        "absolute",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "home": "/a b"}]},
        "users_accounts.0.home",
        "absolute",
    ),
    (Users, {"users_accounts": [{"name": "a", "home": "a"}]}, "users_accounts.0.home", "absolute"),
    (
        Users,
        {"users_accounts": [{"name": "a", "sudo": "ALL"}]},
        "users_accounts.0.sudo",
        "must be a list",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "sudo": ["ls"]}]},
        "users_accounts.0",
        "absolute path",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "sudo": ["/bin/ls\nb ALL=ALL"]}]},
        "users_accounts.0.sudo.0",
        "line break",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "groups": ["a b"]}]},
        "users_accounts.0.groups.0",
        "match",
    ),
    # Each of these would change the account again on each run.
    (Users, {"users_accounts": [{"name": "a", "groups": ["b", "b"]}]}, "users_accounts.0", "b"),
    *(
        (
            Users,
            {"users_accounts": [{"name": "ci", "keys": [KEY], "releases": ["api"], key: value}]},
            "users_accounts.0",
            f"releases: ci releases applications and does nothing else: leave {key} out",
        )
        for key, value in (
            ("sudo", ["/bin/ls"]),
            ("sudo", ["ALL"]),
            ("groups", ["docker"]),
            ("shell", "/bin/bash"),
            ("forwards", ["*:22"]),
        )
    ),
    *(
        (
            Users,
            {"users_accounts": [{"name": "a", "forwards": [value]}]},
            "users_accounts.0.forwards.0",
            "does not match",
        )
        # Each of these sshd would refuse, read otherwise, or take for several words.
        for value in (
            *("127.0.0.1", "5432", ":5432", "db:0", "db:99999999", "a b:22", "db:22 *:*"),
            *("db:22\nPermitRootLogin yes", "fd00::1:22", "any", "none", "-x:22", "db:22#"),
        )
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "forwards": ["db:22", "db:22"]}]},
        "users_accounts.0",
        "forwards: 'db:22' is there twice",
    ),
    (
        Users,
        {"users_accounts": [{"name": "ci", "keys": [KEY], "releases": ["api", "api"]}]},
        "users_accounts.0",
        "releases: 'api' is there twice",
    ),
    *(
        (
            Users,
            {"users_accounts": [{"name": "ci", "keys": [KEY], "releases": [name]}]},
            "users_accounts.0.releases.0",
            "does not match",
        )
        for name in ('api"', "a b", "a;b", "api\n", "-a", "a,b", "ALL")
    ),
    (Users, {"users_accounts": [{"name": "a", "groups": ["a"]}]}, "users_accounts.0", "a"),
    # keys
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": ["/no/such.pub"]}]},
        "users_accounts.0.keys.0",
        "cannot read '/no/such.pub' (No such file or directory)",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": ["~nobody-here/id.pub"]}]},
        "users_accounts.0.keys.0",
        "cannot read '~nobody-here/id.pub'",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": ["/tmp"]}]},
        "users_accounts.0.keys.0",
        "a directory",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": ["/bin/sh"]}]},
        "users_accounts.0.keys.0",
        "text",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": [""]}]},
        "users_accounts.0.keys.0",
        "public key",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": ["a\0b"]}]},
        "users_accounts.0.keys.0",
        "public key",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": KEY}]},
        "users_accounts.0.keys",
        "must be a list",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": ["ssh-ed25519 AAAA"]}]},
        "users_accounts.0.keys.0",
        "'ssh-ed25519 AAAA…'",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": [f"{KEY} me\n{KEY} you"]}]},
        "users_accounts.0.keys.0",
        "one SSH public key",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": [f'command="x" {KEY}']}]},
        "users_accounts.0.keys.0",
        "public key",
    ),
    *(
        (Users, {"users_accounts": [{"name": "a", "keys": [key]}]}, "users_accounts.0.keys.0", why)
        for key, why in {
            KEY[:-1]: "cut off",
            KEY[:-4]: "cut off or damaged",
            KEY[:-24]: "cut off or damaged",
            compressed(): "a compressed point",
            f"{KEY}AAAA": "cut off or damaged",
            KEY.replace("AAAAC3", "AAAAC 3"): "cut off, or no base64",
            KEY.replace("IGc1", "I*c1"): "cut off, or no base64",
            KEY.replace(
                "ssh-ed25519 ", "ssh-rsa "
            ): "ssh-rsa in front of a key of type 'ssh-ed25519'",
            f"ssh-ed25519 {SECURITY_KEY.split()[1]}": "in front of a key of type 'sk-ssh-ed25519",
            KEY.replace("ssh-ed25519 ", "ssh-ed25519-cert-v01@openssh.com "): "a certificate",
            KEY.replace("ssh-ed25519 ", "ssh-dss "): "a DSA key",
            KEY.replace("ssh-ed25519 ", "ssh-ed448 "): "neither ssh-ed25519",
            f"{KEY} {KEY}": "two keys in one line",
            f"{KEY} me {SECURITY_KEY}": "two keys in one line",
            f"{KEY}\n{SECURITY_KEY}": "2 lines",
            f"# mine\n{KEY}\n\n{KEY} other\n": "2 lines",
            f'from="10.0.0.0/8" {KEY}': "options are not taken",
            f"restrict,pty {KEY}": "options are not taken",
            f"no-pty {KEY}": "options are not taken",
            "---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n---- END": "ssh-keygen -i",
            "-----BEGIN RSA PRIVATE KEY-----\nAAAA": "a private key, which must stay where it is",
            rsa(1024): "an RSA key of 1024 bits",
        }.items()
    ),
    *(
        (Users, {"users_accounts": [{"name": name}]}, "users_accounts.0", "reserved for the system")
        for name in (
            *("docker", "postgres", "caddy", "pgbouncer", "sshd", "_apt", "www-data", "nobody"),
            *("systemd-network", "messagebus", "adm", "sudo", "disk", "lxd", "staff", "wheel"),
        )
    ),
    *(
        (Users, {"users_accounts": [{"name": "a", "sudo": [one]}]}, "users_accounts.0", "comma")
        for one in ("/bin/ls, ALL", "/bin/ls,/bin/sh", "/bin/ls # ALL", "/bin/true,!/bin/x")
    ),
]


@pytest.mark.parametrize(("section", "data", "key", "right"), numbered(BAD, 2))
def test_bad_data_names_the_key_and_what_would_be_right(
    section: type[Settings], data: dict[str, Any], key: str, right: str
) -> None:
    message = refusal(section, **data)
    assert key in message
    assert right in message


def test_a_private_key_is_not_shown() -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU\n-----END"
    message = refusal(Users, users_accounts=[{"name": "a", "keys": [key]}])
    assert "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU" not in message


def test_a_private_key_file_is_refused_and_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "id_ed25519"
    path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU\n")
    message = refusal(Users, users_accounts=[{"name": "a", "keys": [str(path)]}])
    assert "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU" not in message


# --- good data ------------------------------------------------------------------------------------


def test_an_account_has_its_home_below_home() -> None:
    accounts = [{"name": "a"}, {"name": "b", "home": "/srv/b"}]
    first, second = of(Users, users_accounts=accounts).accounts
    assert (first.directory, second.directory) == ("/home/a", "/srv/b")
    assert (first.shell, first.keys, first.groups, first.sudo) == ("/bin/bash", (), (), ())


def test_an_empty_home_is_the_usual_one() -> None:
    (account,) = of(Users, users_accounts=[{"name": "a", "home": ""}]).accounts
    assert account.directory == "/home/a"


@pytest.mark.parametrize("key", [KEY, f"{KEY} me@laptop of mine", SECURITY_KEY, rsa(2048)])
def test_a_key_may_be_written_or_named(key: str, tmp_path: Path) -> None:
    path = tmp_path / "id.pub"
    path.write_text(f"{key}\n")
    (account,) = of(Users, users_accounts=[{"name": "a", "keys": [key, str(path)]}]).accounts
    assert account.keys == (key, key)


@pytest.mark.parametrize(
    "text", [f"  {KEY} me  ", f"{KEY}\tme\r\n", f"\n# of mine\n\n{KEY} me\n\n", f"{KEY}   me"]
)
def test_a_key_file_may_have_space_around_its_key(text: str, tmp_path: Path) -> None:
    (tmp_path / "ssh-keys").mkdir()
    path = tmp_path / "ssh-keys" / "ssh-ed25519.pub"
    path.write_text(text)
    (account,) = of(Users, users_accounts=[{"name": "a", "keys": [str(path)]}]).accounts
    assert account.keys == (f"{KEY} me",)


def test_a_key_is_cut_off_wherever_it_ends() -> None:
    kind, encoded = KEY.split()
    for end in range(1, len(encoded)):
        refusal(Users, users_accounts=[{"name": "a", "keys": [f"{kind} {encoded[:end]}"]}])


def test_a_key_file_may_be_in_the_users_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "id.pub").write_text(KEY)
    (account,) = of(Users, users_accounts=[{"name": "a", "keys": ["~/id.pub"]}]).accounts
    assert account.keys == (KEY,)


def test_sudo_is_for_all_or_for_single_commands() -> None:
    sudo = ["ALL", "/usr/bin/systemctl restart caddy.service", "/usr/bin/journalctl"]
    (account,) = of(Users, users_accounts=[{"name": "a", "sudo": sudo}]).accounts
    assert list(account.sudo) == sudo

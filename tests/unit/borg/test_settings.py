"""Which repositories and known hosts the settings of backups accept and refuse."""

from typing import Any

import pytest

from terrafirma.borg.settings import Borg
from terrafirma.settings import Settings
from tests.unit.settings import KEY, numbered, of, refusal

# --- bad data -------------------------------------------------------------------------------------

BAD: list[tuple[type[Settings], dict[str, Any], str, str]] = [
    # the settings; the key in the message; what would be right
    (Borg, {"borg_repository": "/srv/backup"}, "borg_repository", "does not match"),
    (Borg, {"borg_repository": "ssh://b@host"}, "borg_repository", "does not match"),
    (Borg, {"borg_repository": "ssh://b@host/./a b"}, "borg_repository", "does not match"),
    *(
        (Borg, {"borg_repository": f"ssh://b@host/{one}"}, "borg_repository", "without '..'")
        for one in ("..", "./a/../b", "../b", "a/..", "~/../b")
    ),
    (Borg, {"borg_repository": "ssh://b@host/./a"}, "borg_known_hosts", "ssh-keyscan"),
    *(
        (Borg, {"borg_repository": f"ssh://b@{one}/./a"}, "borg_repository", "the server itself")
        for one in (
            *("localhost", "LOCALHOST.", "localhost:2222", "localhost.localdomain", "127.0.0.1"),
            *("127.1", "127.0.1.1:22", "0.0.0.0", "0", "[::1]", "[::1]:22", "[::ffff:127.0.0.1]"),
            *("[::]", "web.localhost"),
        )
    ),
    *(
        (Borg, {"borg_repository": one}, "borg_repository", "commands/borg_key.py shows")
        for one in (
            *("ssh://b:s3cret@host/./a", "ssh://b:s3cret@host:23/./a", "ssh://b:@host/./a"),
            *("ssh://b:s3/cret@host/./a", "ssh://b:s3@cret@host/./a", "ssh://:s3cret@host/./a"),
            *("sftp://b:s3cret@host/a", "https://b:s3cret@host/a"),
        )
    ),
    *(
        (Borg, {"borg_remote_path": one}, "borg_remote_path", "does not match")
        for one in ("borg 1.4", "-oProxyCommand=x", "borg;id", "$(id)", "a\nb")
    ),
    *(
        (Borg, {f"borg_repository_{key}": one}, f"borg_repository_{key}", "does not match")
        for key in ("id", "replaces")
        for one in ("new", "4ed3", "g" * 64, "A" * 64, "a" * 65)
    ),
    (Borg, {"borg_exclude_databases": "api"}, "borg_exclude_databases", "must be a list"),
    (Borg, {"borg_known_hosts": "host ssh-ed25519 AAAA"}, "borg_known_hosts", "must be a list"),
    (Borg, {"borg_known_hosts": ["a\nb"]}, "borg_known_hosts.0", "line break"),
    *(
        (Borg, {"borg_known_hosts": [one]}, "borg_known_hosts.0", said)
        for one, said in (
            ("host", "no key"),
            (KEY, "neither ssh-ed25519"),
            ("host ssh-ed25519 AAAA", "cut off"),
            (f"host {KEY[:-4]}", "cut off"),
            (f"# host:22 {KEY}", "something in front of the key"),
            (f"@revoked host {KEY}", "something in front of the key"),
            (f"host ssh-rsa {KEY.split()[1]}", "in front of a key of type 'ssh-ed25519'"),
        )
    ),
    (Borg, {"borg_directories": ["etc"]}, "borg_directories.0", "absolute path"),
    (Borg, {"borg_directories": []}, "borg_directories", ""),
    (Borg, {"borg_exclude": ["a\tb"]}, "borg_exclude.0", "control character"),
    (Borg, {"borg_keep_daily": 0}, "borg_keep_daily", "greater than or equal to 1"),
    (Borg, {"borg_keep_weekly": -1}, "borg_keep_weekly", "greater than or equal to 0"),
    (Borg, {"borg_schedule": "daily\nUnit=evil.service"}, "borg_schedule", "line break"),
    (Borg, {"borg_schedule": ""}, "borg_schedule", ""),
]


@pytest.mark.parametrize(("section", "data", "key", "right"), numbered(BAD, 2))
def test_bad_data_names_the_key_and_what_would_be_right(
    section: type[Settings], data: dict[str, Any], key: str, right: str
) -> None:
    message = refusal(section, **data)
    assert key in message
    assert right in message


# --- good data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "repository",
    [
        "",
        "ssh://b@host/./a",
        "ssh://u1@u1.your-storagebox.de:23/./backups/web",
        "ssh://b@host:22/srv/a",
        # An IPv6 address, a path that contains an address, and names that only look local.
        "ssh://b@[2001:db8::1]:23/./a",
        "ssh://b@host:22/srv/c:d@127.0.0.1/a",
        "ssh://b@localhost.acme.com/./a",
        "ssh://b@127.acme.com/./a",
        "ssh://localhost@host/./a",
    ],
)
def test_repositories(repository: str) -> None:
    settings = of(Borg, borg_repository=repository, borg_known_hosts=[f"host {KEY}"])
    assert settings.repository == repository


@pytest.mark.parametrize(
    "line",
    [
        f"box.acme.com,10.0.0.2 {KEY}",
        f"[box.acme.com]:23 {KEY} root@box",
        f"|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg= {KEY}",
        f"@cert-authority *.acme.com {KEY}",
    ],
)
def test_known_hosts(line: str) -> None:
    assert of(Borg, borg_known_hosts=[line]).known_hosts == (line,)


def test_a_password_in_a_repository_is_not_repeated() -> None:
    for one in ("ssh://b:s3cret@host/./a", "sftp://b:s3cret@host/a", "ssh://b:s3/cret@[::1]/a"):
        assert "s3" not in refusal(Borg, borg_repository=one)

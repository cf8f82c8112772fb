"""borgmatic's settings, in the format of old and new versions; its timer and known hosts."""

from typing import Any

import pytest
import yaml

from tests.unit.templates import DATA, rendered, settled

# The sections of borgmatic before 1.8, and our settings in each.
SECTIONS = {
    "location": {
        *("source_directories", "exclude_patterns", "exclude_caches", "repositories"),
        "remote_path",
    },
    "storage": {
        *("encryption_passcommand", "ssh_command", "compression", "lock_wait"),
        "archive_name_format",
    },
    "retention": {"keep_daily", "keep_weekly", "keep_monthly"},
    "consistency": {"checks"},
    "hooks": {"before_backup", "postgresql_databases"},
}


def backup(*, sections: bool, **data: Any) -> dict[str, Any]:
    """borgmatic's settings, without their sections."""
    read = yaml.safe_load(rendered("borg/config.yaml.j2", sections=sections, **data))
    if not sections:
        flat: dict[str, Any] = read
        return flat
    without = set() if data.get("remote_path", True) else {"remote_path"}
    assert {name: set(settings) for name, settings in read.items()} == {
        name: settings - without for name, settings in SECTIONS.items()
    }
    return {key: value for settings in read.values() for key, value in settings.items()}


@pytest.mark.parametrize("sections", [False, True])
def test_borgmatic_gets_the_settings(sections: bool) -> None:
    settings = backup(sections=sections)
    data = DATA["borg/config.yaml.j2"]
    # borgmatic before 1.8 always prunes by the host's name.
    only_new = set() if sections else {"match_archives"}
    assert set(settings) == set().union(*SECTIONS.values()) | only_new
    assert settings["source_directories"] == list(data["directories"])
    assert settings["exclude_patterns"] == list(data["exclude"])
    assert [settings[f"keep_{kind}"] for kind in ("daily", "weekly", "monthly")] == [7, 4, 6]
    assert settings["encryption_passcommand"] == "cat /etc/terrafirma/secrets/borg/passphrase"
    assert "StrictHostKeyChecking=yes" in settings["ssh_command"]
    assert "UserKnownHostsFile=/etc/borgmatic/known_hosts" in settings["ssh_command"]
    assert "-i /etc/terrafirma/secrets/borg/id_ed25519" in settings["ssh_command"]


def test_new_borgmatic_gets_the_repository_by_path() -> None:
    assert backup(sections=False)["repositories"] == [{"path": "ssh://b@backup.acme.com:23/./web"}]


def test_old_borgmatic_gets_the_repository_as_text() -> None:
    """1.7.7, in Debian 12, refuses anything else: {'path': …} is not of type 'string'."""
    assert backup(sections=True)["repositories"] == ["ssh://b@backup.acme.com:23/./web"]


@pytest.mark.parametrize("sections", [False, True])
def test_databases_are_dumped_by_the_superuser(sections: bool) -> None:
    settings = backup(sections=sections)
    for database in settings["postgresql_databases"]:
        assert database["format"] == "custom"
        for command in ("pg_dump_command", "pg_restore_command", "psql_command"):
            assert database[command].startswith("runuser -u postgres -- ")
            assert "--cluster 17/main" in database[command]
    (roles,) = settings["before_backup"]
    assert "pg_dumpall --cluster 17/main --globals-only > /var/lib/terrafirma/backup/" in roles
    assert roles.startswith("umask 077 ")


def test_old_borgmatic_need_not_list_the_databases() -> None:
    """For `all` with a format, 1.7.7 runs plain `psql --list` as root instead of psql_command."""
    names = [database["name"] for database in backup(sections=True)["postgresql_databases"]]
    assert "all" not in names


@pytest.mark.parametrize("sections", [False, True])
def test_an_archive_that_was_not_read_back_does_not_count(sections: bool) -> None:
    """A plain `borgmatic create` makes such an archive. Prune matches only names that count."""
    settings = backup(sections=sections)
    assert settings["archive_name_format"].startswith("{hostname}-{now:")
    assert settings["archive_name_format"].endswith(".checkpoint")
    assert settings.get("match_archives", "sh:{hostname}-*") == "sh:{hostname}-*"


@pytest.mark.parametrize("sections", [False, True])
def test_borg_on_the_backup_host_may_have_another_name(sections: bool) -> None:
    assert backup(sections=sections)["remote_path"] == "borg-1.4"
    assert "remote_path" not in backup(sections=sections, remote_path="")


@pytest.mark.parametrize("sections", [False, True])
def test_nothing_need_be_excluded(sections: bool) -> None:
    assert backup(sections=sections, exclude=()).get("exclude_patterns", []) == []


def test_what_a_killed_backup_began_is_ended() -> None:
    lines = settled(rendered("borg/borgmatic.service.j2"))
    assert "ExecStart=/usr/local/lib/terrafirma/backup run" in lines
    assert "ExecStopPost=/usr/local/lib/terrafirma/backup end" in lines


def test_the_timer() -> None:
    assert "OnCalendar=*-*-* 02:00:00" in settled(rendered("borg/borgmatic.timer.j2"))
    assert "Persistent=true" in settled(rendered("borg/borgmatic.timer.j2"))


def test_known_hosts() -> None:
    assert settled(rendered("borg/known_hosts.j2")) == ["a ssh-ed25519 AAAA", "b ssh-rsa BBBB"]

"""A minor release of PostgreSQL in its window: the choice of versions, and the order of steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import notes, postgres_minor, standstill
from terrafirma_host.postgres_minor import fits, offered
from terrafirma_host.shell import Failed

from tests.unit.programs import Program

NOW = "17.5-1.pgdg13+1"


@pytest.fixture(autouse=True)
def host(roots: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with PostgreSQL 17.5, whose programs record their arguments."""
    said = f'echo "${{0##*/}} $*" >> {roots}/asked'
    directory = program("systemctl", said)
    program("apt-get", said)
    program("apt-mark", f"{said}; test $1 = hold || cat {roots}/held")
    program("apt-cache", f"cat {roots}/$2 2> /dev/null || true")
    program("dpkg-query", f"printf '{NOW}'")
    program("backup", said)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    monkeypatch.setattr(notes, "STATE", roots / "updates")
    monkeypatch.setattr(postgres_minor, "BACKUP", directory / "backup")
    monkeypatch.setattr(postgres_minor, "BACKUP_CONFIG", roots / "config.yaml")
    monkeypatch.setattr(postgres_minor, "clusters", lambda: ["15", "17"])
    monkeypatch.setattr(postgres_minor, "broken", list)
    monkeypatch.setattr(postgres_minor, "is_old", lambda version: False)
    monkeypatch.setattr(postgres_minor, "PATIENCE", 0)
    monkeypatch.setattr(postgres_minor, "PAUSE", 0)
    for name in ("BACKUP", "UPGRADE", "DAILY"):
        monkeypatch.setattr(standstill, name, roots / f"lock-{name}")
    monkeypatch.setattr(standstill, "APT", ())
    held(roots, "caddy", "postgresql-17", "postgresql-client-17", "postgresql-common")
    return roots


def held(host: Path, *names: str) -> None:
    (host / "held").write_text("".join(f"{name}\n" for name in names))


def offers(host: Path, name: str, *versions: str) -> None:
    (host / name).write_text("".join(f" {name} | {one} | https://x trixie\n" for one in versions))


def asked(host: Path) -> list[str]:
    path = host / "asked"
    return path.read_text().splitlines() if path.exists() else []


# --- the choice of versions -----------------------------------------------------------------------


def test_the_newest_of_the_held_packages_is_chosen(host: Path) -> None:
    assert offered("17", "") == {}
    offers(host, "postgresql-17", "17.6-1.pgdg13+1", "17.10-1.pgdg13+1", NOW, "17.4-1")
    offers(host, "caddy", "99")
    assert offered("17", "") == {"postgresql-17": (NOW, "17.10-1.pgdg13+1")}


def test_the_version_of_the_settings_is_kept(host: Path) -> None:
    both = ("postgresql-17", "postgresql-client-17")
    for name in both:
        offers(host, name, "17.6-1.pgdg13+1", "17.5-2.pgdg13+1", NOW)
    assert offered("17", "17.5") == dict.fromkeys(both, (NOW, "17.5-2.pgdg13+1"))


def test_an_extension_has_versions_of_its_own(host: Path) -> None:
    held(host, "postgresql-17", "postgresql-17-pgvector")
    offers(host, "postgresql-17-pgvector", "18.0-1.pgdg13+1")
    assert offered("17", "17.5") == {"postgresql-17-pgvector": (NOW, "18.0-1.pgdg13+1")}


def test_sources_and_versions_of_another_archive_do_not_count(host: Path, program: Program) -> None:
    lines = [
        f"{NOW} | https://x trixie-pgdg/main amd64 Packages",
        "17.9-0+deb13u1 | http://x trixie/main amd64 Packages",
        "17.8-1.pgdg13+1 | https://x trixie-pgdg/main Sources",
        "17.6-1.pgdg13+1 | https://x trixie-pgdg/main amd64 Packages",
    ]
    (host / "postgresql-17").write_text("".join(f"postgresql-17 | {one}\n" for one in lines))
    assert offered("17", "") == {"postgresql-17": (NOW, "17.6-1.pgdg13+1")}
    now = "17.5-0+deb13u1"
    program("dpkg-query", f"printf '{now}'")
    assert offered("17", "") == {"postgresql-17": (now, "17.9-0+deb13u1")}


def test_packages_that_are_not_held_are_refused(host: Path) -> None:
    held(host, "caddy", "postgresql-common", "postgresql-15")
    with pytest.raises(Failed, match=r"no package of PostgreSQL 17 is held: run deploy\.py"):
        offered("17", "")


@pytest.mark.parametrize(
    ("version", "wanted", "does"),
    [
        ("17.5-1.pgdg130+1", "", True),
        ("17.5-1.pgdg130+1", "17", True),
        ("17.5-1.pgdg130+1", "17.5", True),
        ("17.50-1", "17.5", False),
        ("17.6-1", "17.5", False),
        ("1:17.5+deb13u1", "17.5", True),
        ("17.5~rc1-1", "17.5", True),
    ],
)
def test_versions_match_in_whole_components(version: str, wanted: str, does: bool) -> None:
    assert fits(version, wanted) == does


# --- the order of steps ---------------------------------------------------------------------------


def test_without_a_newer_version_nothing_is_installed(host: Path) -> None:
    postgres_minor.main(["10"])
    assert not [line for line in asked(host) if " install " in line]
    assert notes.read("postgres") == {}


def test_it_makes_a_backup_and_upgrades_and_holds_again(host: Path) -> None:
    (host / "config.yaml").touch()
    offers(host, "postgresql-17", "17.6-1.pgdg13+1")
    postgres_minor.main(["10"])
    update, _, backup, install, hold = asked(host)
    assert update.startswith("apt-get ")
    assert update.endswith(" update")
    assert backup == "backup create"
    assert install.endswith("--allow-change-held-packages postgresql-17=17.6-1.pgdg13+1")
    assert "--no-remove" in install
    assert hold == "apt-mark hold postgresql-17"
    words = notes.read("postgres")["words"]
    assert words.startswith(f"PostgreSQL was upgraded from {NOW} to 17.6-1.pgdg13+1 at ")
    assert words.endswith(": all is as promised")


def test_no_backup_is_made_unless_backups_are_set_up(host: Path) -> None:
    offers(host, "postgresql-17", "17.6-1.pgdg13+1")
    postgres_minor.main(["10"])
    assert "backup create" not in asked(host)


def test_a_server_that_the_packages_do_not_restart_is_restarted_once(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_minor, "is_old", lambda version: True)
    offers(host, "postgresql-17", "17.6-1.pgdg13+1")
    postgres_minor.main(["10"])
    assert [line for line in asked(host) if line.startswith("systemctl")] == [
        "systemctl restart postgresql@17-main.service"
    ]


def test_nothing_is_installed_after_a_failed_backup(host: Path, program: Program) -> None:
    (host / "config.yaml").touch()
    program("backup", "echo 'the backup failed: no route' >&2; exit 1")
    offers(host, "postgresql-17", "17.6-1.pgdg13+1")
    with pytest.raises(Failed):
        postgres_minor.main(["10"])
    assert not [line for line in asked(host) if " install " in line]
    note = notes.read("postgres")
    assert note["alarm"]
    assert "was not upgraded in its window of" in note["words"]
    assert "no route" in note["words"]


def test_nothing_is_installed_after_the_window_has_closed(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host / "config.yaml").touch()
    offers(host, "postgresql-17", "17.6-1.pgdg13+1")
    with pytest.raises(Failed, match="window closed before the backup had ended"):
        postgres_minor.main(["0"])
    assert "backup create" in asked(host)
    assert not [line for line in asked(host) if " install " in line]
    # The wait for others ends with the window, too.
    left: list[float] = []

    @contextmanager
    def once_well(*words: Any, apt: bool) -> Iterator[None]:
        left.append(words[3])
        yield

    monkeypatch.setattr(postgres_minor, "once_well", once_well)
    postgres_minor.main(["10"])
    assert 0 < left[0] < 10


def test_the_refresh_waits_for_the_lock_of_the_lists(
    host: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = "E: Could not get lock /var/lib/apt/lists/lock"
    program(
        "apt-get",
        f'echo "$*" >> {host}/asked; test $(wc -l < {host}/asked) -ge 3 || '
        f"{{ echo '{busy}' >&2; exit 100; }}",
    )
    postgres_minor.refresh()
    assert len(asked(host)) == 3
    assert "APT::Update::Error-Mode=any" in asked(host)[0]
    (host / "asked").unlink()
    monkeypatch.setattr(postgres_minor, "WAIT", -1)
    with pytest.raises(Failed, match="Could not get lock"):
        postgres_minor.refresh()
    program("apt-get", f"echo x >> {host}/asked; echo 'E: Failed to fetch' >&2; exit 100")
    with pytest.raises(Failed, match="Failed to fetch"):
        postgres_minor.refresh()
    assert len(asked(host)) == 2


def test_nothing_is_installed_on_a_broken_host(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_minor, "broken", lambda: ["api: no"])
    offers(host, "postgresql-17", "17.6-1.pgdg13+1")
    with pytest.raises(Failed, match="api: no"):
        postgres_minor.main(["10"])
    assert not [line for line in asked(host) if " install " in line]


def test_a_promise_that_it_breaks_is_noted(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([[], ["PostgreSQL 17 answers no query"]])
    monkeypatch.setattr(postgres_minor, "broken", lambda: next(answers))
    offers(host, "postgresql-17", "17.6-1.pgdg13+1")
    postgres_minor.main(["10"])
    note = notes.read("postgres")
    assert note["broken"]
    assert note["words"].endswith(", and since then: PostgreSQL 17 answers no query")


def test_an_installation_that_fails_leaves_the_packages_held(host: Path, program: Program) -> None:
    program("apt-get", "case \"$*\" in *' install '*) echo 'E: no' >&2; exit 100;; esac")
    offers(host, "postgresql-17", "17.6-1.pgdg13+1")
    with pytest.raises(Failed, match="E: no"):
        postgres_minor.main(["3600"])
    start, hold = asked(host)[-2:]
    # The failed installation may have stopped the server.
    assert start == "systemctl start postgresql@17-main.service"
    assert hold == "apt-mark hold postgresql-17"
    assert notes.read("postgres")["alarm"]


def test_a_host_without_postgresql_has_nothing_to_do(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_minor, "clusters", list)
    postgres_minor.main(["10"])
    assert asked(host) == []


@pytest.mark.parametrize("words", [[], ["soon"], ["1", "17", "x"]])
def test_a_wrong_command_line_does_nothing(host: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        postgres_minor.main(words)
    assert asked(host) == []

"""The program that makes backups: which repository it goes on with, and how databases are named."""

import json
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest

from terrafirma.facts.postgres import psql_options
from tests.conftest import ROOT
from tests.unit.programs import load

ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64
HERE, THERE, ELSEWHERE = (f"ssh://box@{name}/./web" for name in ("here", "there", "elsewhere"))


@pytest.fixture(scope="module")
def program() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "files/borg"))
        return load(ROOT / "files/borg/backup")


@pytest.fixture(scope="module")
def store(program: ModuleType) -> ModuleType:
    return sys.modules["backup_store"]


def settings(place: str, wanted: str = "", replaces: str = "") -> dict[str, str]:
    return {"repository": place, "repository_id": wanted, "repository_replaces": replaces}


# --- which repository it is -----------------------------------------------------------------------

KNOWN = {ELSEWHERE: THREE, HERE: ONE}
# What the server remembers, its settings, and the id of what is there; whether it moved there.
GOES_ON: dict[str, tuple[dict[str, str], dict[str, str], str | None, bool]] = {
    "nothing known, nothing there": ({}, settings(HERE), None, False),
    "nothing known, one there": ({}, settings(HERE), ONE, False),
    "nothing known, the one that is named": ({}, settings(HERE, ONE), ONE, False),
    "as before": (KNOWN, settings(HERE), ONE, False),
    "as before, still named": (KNOWN, settings(HERE, ONE), ONE, False),
    "back where another one of ours is": (KNOWN, settings(ELSEWHERE), THREE, False),
    "moved, and named": (KNOWN, settings(THERE, ONE), ONE, True),
    "another one, and named": (KNOWN, settings(THERE, TWO), TWO, True),
    "another one at the same place, and named": (KNOWN, settings(HERE, TWO), TWO, True),
    "given up for a new place": (KNOWN, settings(THERE, replaces=ONE), None, False),
    "lost, and begun anew": (KNOWN, settings(HERE, replaces=ONE), None, False),
    "replaced long ago": ({HERE: TWO}, settings(HERE, replaces=ONE), TWO, False),
}
REFUSED: dict[str, tuple[dict[str, str], dict[str, str], str | None, str]] = {
    "emptied": (KNOWN, settings(HERE), None, f'borg_repository_replaces = "{ONE}"'),
    "a new place": (KNOWN, settings(THERE), None, f"{ONE} at {HERE}"),
    "emptied again after it was replaced": (
        {HERE: TWO},
        settings(HERE, replaces=ONE),
        None,
        f'borg_repository_replaces = "{TWO}"',
    ),
    "made anew by others": (KNOWN, settings(HERE), TWO, f'borg_repository_id = "{TWO}"'),
    "somebody else's": (KNOWN, settings(THERE), TWO, f"this is another repository, {TWO}"),
    "moved": (KNOWN, settings(THERE), ONE, f"{ONE} was at {HERE}, and is at {THERE} now"),
    "an older one of ours, moved": (KNOWN, settings(THERE), THREE, f"was at {ELSEWHERE}"),
    "moved, and another one named": (KNOWN, settings(THERE, TWO), ONE, f"and there is {ONE}"),
    "named, and not there": (KNOWN, settings(THERE, ONE), None, f"{ONE} is to be at {THERE}"),
    "named on a new server, and not there": ({}, settings(HERE, ONE), None, "is to be at"),
    "named on a new server, and another": ({}, settings(HERE, ONE), TWO, "is to be at"),
    "replaces what is somebody else's": (
        KNOWN,
        settings(THERE, replaces=ONE),
        TWO,
        "this is another repository",
    ),
}


@pytest.mark.parametrize("what", GOES_ON)
def test_it_goes_on(store: ModuleType, what: str) -> None:
    known, data, found, moved = GOES_ON[what]
    assert store.judge(known, data, found) is moved


@pytest.mark.parametrize("what", REFUSED)
def test_it_neither_begins_anew_nor_takes_another_one_in_silence(
    store: ModuleType, what: str
) -> None:
    known, data, found, words = REFUSED[what]
    with pytest.raises(store.Failed) as error:
        store.judge(known, data, found)
    assert words in str(error.value)
    assert str(error.value).startswith(("borg_repository", store.REPOSITORY_GONE))
    assert "\n" not in str(error.value)


def test_what_is_remembered_is_as_long_as_places_were_used(
    store: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "STATE", tmp_path)
    monkeypatch.setattr(store, "CONFIG", tmp_path / "config.yaml")
    monkeypatch.setattr(store.pwd, "getpwuid", lambda _: type("Root", (), {"pw_dir": tmp_path}))
    assert store.remembered() == {}
    # A server that was set up before: borg's own memory, of the place that is configured alone.
    for one, place in ((ONE, HERE), (TWO, THERE)):
        directory = tmp_path / ".config/borg/security" / one
        directory.mkdir(parents=True)
        (directory / "location").write_text(place)
    assert store.remembered() == {}
    store.CONFIG.write_text(f'repositories:\n    - path: "{HERE}"\n')
    assert store.remembered() == {HERE: ONE}
    store.remember(store.remembered(), THERE, TWO)
    store.remember(store.remembered(), HERE, THREE)
    assert list(store.remembered().items()) == [(THERE, TWO), (HERE, THREE)]


def test_settings_of_an_older_kind_are_said(store: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("# Managed by Terrafirma: tasks/borg.py\n")
    with pytest.raises(store.Failed, match="run the deploy"):
        store.read(tmp_path / "config.yaml")


# --- databases ------------------------------------------------------------------------------------

NAMES = [
    *("api", "a b", 'it\'s "odd"', "-x", "--file=/etc/x", "dbname=api", "all", "a/b", ".", ".."),
    *("%41", "$(id)", "`id`;&|<>", "ünï", "a\\b", "a\nb", "*", "~", "#", "globals.sql", "a,b", "'"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_survives_borgmatic_the_shell_and_the_file_system(
    program: ModuleType, name: str
) -> None:
    encoded = program.encoded(name)
    assert unquote(encoded) == name
    assert shlex.split(encoded) == [encoded] == encoded.split(" ")
    assert not set(encoded) & set("/*~#$`;&|<>'\"\\")
    assert encoded not in ("all", ".", "..")
    assert not encoded.startswith("-")


def test_names_that_most_have_stay(program: ModuleType) -> None:
    for name in ("api", "shop_2", "a-b", "a.b"):
        assert program.encoded(name) == name


def test_a_name_is_no_option_and_no_connection_string(program: ModuleType) -> None:
    assert program.connection("-x") == "--dbname=dbname='-x'"
    assert program.connection("host=evil user=x") == "--dbname=dbname='host=evil user=x'"
    assert program.connection("it's \\") == "--dbname=dbname='it\\'s \\\\'"


@pytest.mark.parametrize("version", [15, 16, 17])
def test_it_comes_to_postgresql_as_all_the_rest_does(program: ModuleType, version: int) -> None:
    """And neither libraries nor triggers of a database's owner keep a dump from being made."""
    command = program.postgres(str(version), "pg_dump", "--x")
    (options,) = [word for word in command if word.startswith("PGOPTIONS=")]
    ours = {part.strip() for part in options.removeprefix("PGOPTIONS=").split("-c ")}
    assert {part.strip() for part in psql_options(version).split("-c ")} <= ours
    assert "session_preload_libraries= " in options
    assert ("event_triggers=off" in options) is (version >= 17)
    assert command[-2:] == [f"/usr/lib/postgresql/{version}/bin/pg_dump", "--x"]


@pytest.mark.parametrize("sections", [False, True])
def test_borgmatic_gets_the_databases_that_there_are(program: ModuleType, sections: bool) -> None:
    given = {"version": "17", "sections": sections}
    words = program.override(given, ["api", "a b"])
    assert words[::2] == ["--override", "--override"]
    values: dict[str, Any] = dict(word.split("=", 1) for word in words[1::2])
    prefix = "hooks." if sections else ""
    databases = json.loads(values[f"{prefix}postgresql_databases"])
    assert [one["name"] for one in databases] == ["api", "a%20b"]
    assert all(one["pg_dump_command"].endswith(" dump 17") for one in databases)
    # It waits for a lock, but not for ever.
    assert all("--lock-wait-timeout=" in one["options"] for one in databases)
    assert values[f"{prefix}before_backup"] == "[]"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'error: FATAL:  no' >&2; exit 1", 'pg_dump of "a b": error: FATAL:  no\n'),
        ("kill -9 $$", 'pg_dump of "a b": it was killed (exit code -9)\n'),
        # borg went away: its own words are the cause.
        ("kill -13 $$", None),
        ("echo 'pg_dump: error: could not write: Broken pipe' >&2; exit 1", None),
    ],
)  # fmt: skip
def test_a_dump_that_failed_says_why_where_borgmatic_would_not(
    program: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    said: str | None,
) -> None:
    monkeypatch.setattr(program, "SAID", tmp_path / "said")
    monkeypatch.setattr(program, "postgres", lambda *_: ["sh", "-c", script])
    assert program.dump("17", ["--format", "custom", "a%20b"]) == 1
    assert (program.SAID.read_text() if program.SAID.exists() else None) == said

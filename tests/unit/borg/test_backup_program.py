"""The backup program: which repository it accepts, and how it names and dumps databases."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest

from terrafirma.postgres.facts import psql_options
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
    return {"place": place, "repository_id": wanted, "repository_replaces": replaces}


# --- what a killed backup began -------------------------------------------------------------------


@pytest.mark.parametrize("is_held", [False, True])
def test_another_backup_keeps_what_it_began(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], is_held: bool,
) -> None:  # fmt: skip
    """The unit that ends may have waited for a backup by hand, whose commands go on."""
    monkeypatch.setattr(program, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(program.backup_volumes, "end", lambda: {"backup_after of a/b": "exit 1"})
    monkeypatch.setattr(sys, "argv", ["backup", "end"])
    with (tmp_path / "lock").open("w") as lock:
        if is_held:
            program.locked(lock)
        program.main()
    assert capsys.readouterr().err == ("" if is_held else "backup_after of a/b: exit 1\n")


# --- which repository it is -----------------------------------------------------------------------

KNOWN = {ELSEWHERE: THREE, HERE: ONE}
# The repositories that the server remembers, its settings, and the id of the repository there.
GOES_ON: dict[str, tuple[dict[str, str], dict[str, str], str | None]] = {
    "nothing known, nothing there": ({}, settings(HERE), None),
    "nothing known, one there": ({}, settings(HERE), ONE),
    "nothing known, the one that is named": ({}, settings(HERE, ONE), ONE),
    "as before": (KNOWN, settings(HERE), ONE),
    "as before, still named": (KNOWN, settings(HERE, ONE), ONE),
    "back where another one of ours is": (KNOWN, settings(ELSEWHERE), THREE),
    "moved, and named": (KNOWN, settings(THERE, ONE), ONE),
    "another one, and named": (KNOWN, settings(THERE, TWO), TWO),
    "another one at the same place, and named": (KNOWN, settings(HERE, TWO), TWO),
    "given up for a new place": (KNOWN, settings(THERE, replaces=ONE), None),
    "lost, and begun anew": (KNOWN, settings(HERE, replaces=ONE), None),
    "replaced long ago": ({HERE: TWO}, settings(HERE, replaces=ONE), TWO),
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
    "created again by others": (KNOWN, settings(HERE), TWO, f'borg_repository_id = "{TWO}"'),
    "another server's": (KNOWN, settings(THERE), TWO, f"this is another repository, {TWO}"),
    "moved": (KNOWN, settings(THERE), ONE, f"{ONE} was at {HERE}, and is at {THERE} now"),
    "an older one of ours, moved": (KNOWN, settings(THERE), THREE, f"was at {ELSEWHERE}"),
    "moved, and another one named": (KNOWN, settings(THERE, TWO), ONE, f"but {ONE} is there"),
    "named, and not there": (KNOWN, settings(THERE, ONE), None, f"{ONE} should be at {THERE}"),
    "named on a new server, and not there": ({}, settings(HERE, ONE), None, "should be at"),
    "named on a new server, and another": ({}, settings(HERE, ONE), TWO, "should be at"),
    "replaces another server's": (
        KNOWN,
        settings(THERE, replaces=ONE),
        TWO,
        "this is another repository",
    ),
}


@pytest.mark.parametrize("what", GOES_ON)
def test_it_accepts_a_repository(store: ModuleType, what: str) -> None:
    store.judge(*GOES_ON[what])


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses_to_start_over_or_to_use_another_repository(
    store: ModuleType, what: str
) -> None:
    known, data, found, words = REFUSED[what]
    with pytest.raises(store.Failed) as error:
        store.judge(known, data, found)
    assert words in str(error.value)
    assert str(error.value).startswith(("borg_repository", store.REPOSITORY_GONE))
    assert "\n" not in str(error.value)


def test_repositories_are_remembered_by_their_places(
    store: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "STATE", tmp_path)
    monkeypatch.setattr(store, "CONFIG", tmp_path / "config.yaml")
    monkeypatch.setattr(store.pwd, "getpwuid", lambda _: type("Root", (), {"pw_dir": tmp_path}))
    assert store.remembered() == {}
    # A server set up by an earlier version: borg's own memory of the configured place.
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


def test_a_configuration_of_an_earlier_version_is_refused(
    store: ModuleType, tmp_path: Path
) -> None:
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


def test_ordinary_names_are_not_encoded(program: ModuleType) -> None:
    for name in ("api", "shop_2", "a-b", "a.b"):
        assert program.encoded(name) == name


def test_a_name_is_no_option_and_no_connection_string(program: ModuleType) -> None:
    assert program.connection("-x") == "--dbname=dbname='-x'"
    assert program.connection("host=evil user=x") == "--dbname=dbname='host=evil user=x'"
    assert program.connection("it's \\") == "--dbname=dbname='it\\'s \\\\'"


@pytest.mark.parametrize("version", [15, 16, 17])
def test_it_connects_to_postgresql_like_the_facts(program: ModuleType, version: int) -> None:
    """Libraries and triggers of a database's owner cannot hinder a dump either."""
    command = program.postgres(str(version), "pg_dump", "--x")
    (options,) = [word for word in command if word.startswith("PGOPTIONS=")]
    ours = {part.strip() for part in options.removeprefix("PGOPTIONS=").split("-c ")}
    assert {part.strip() for part in psql_options(version).split("-c ")} <= ours
    assert "session_preload_libraries= " in options
    assert ("event_triggers=off" in options) is (version >= 17)
    assert command[-2:] == [f"/usr/lib/postgresql/{version}/bin/pg_dump", "--x"]


@pytest.mark.parametrize("sections", [False, True])
def test_borgmatic_gets_the_databases_that_there_are(program: ModuleType, sections: bool) -> None:
    given = {"version": "17", "sections": sections, "directories": ["/etc"]}
    words = program.override(given, "web-1.checkpoint", ["api", "a b"], ["/srv/volumes/data"])
    assert {*words[::2]} == {"--override"}
    values: dict[str, Any] = dict(word.split("=", 1) for word in words[1::2])
    prefix = "hooks." if sections else ""
    databases = json.loads(values[f"{prefix}postgresql_databases"])
    place = "location." if sections else ""
    assert json.loads(values[f"{place}source_directories"]) == ["/etc", "/srv/volumes/data"]
    assert json.loads(values[f"{place}patterns"]) == ["+ pp:/srv/volumes/data"]
    assert [one["name"] for one in databases] == ["api", "a%20b"]
    assert all(one["pg_dump_command"].endswith(" dump 17") for one in databases)
    # A dump waits for a lock, but not for ever.
    assert all("--lock-wait-timeout=" in one["options"] for one in databases)
    assert values[f"{prefix}before_backup"] == "[]"
    prefix = "storage." if sections else ""
    assert values[f"{prefix}archive_name_format"] == "web-1.checkpoint"


# --- with borg itself -----------------------------------------------------------------------------


@pytest.fixture
def shop(
    program: ModuleType, store: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Settings for a repository on a backup host; a local shell in `box` takes the host's place."""
    if not shutil.which("borg"):
        pytest.skip("no borg here")
    box, home = tmp_path / "box", tmp_path / "home"
    ssh = tmp_path / "ssh"
    # Skip the options and the host's name, which come before the command.
    ssh.write_text(
        f"#!/bin/sh\nwhile case $1 in -*) :;; *) ! :;; esac; do shift; done; shift\n"
        f'cd {box} && exec sh -c "$*"\n'
    )
    ssh.chmod(0o755)
    for directory in (box, home, tmp_path / "state"):
        directory.mkdir()
    monkeypatch.setattr(store.pwd, "getpwuid", lambda _: type("Root", (), {"pw_dir": str(home)}))
    # Skip borg's self-test and its support for mounts, which take half of its time.
    lean = {"BORG_SELFTEST": "disabled", "BORG_FUSE_IMPL": "none"}
    plain = store.environment
    for module in (program, store):
        monkeypatch.setattr(module, "environment", lambda ours, **more: plain(ours, **more, **lean))
        monkeypatch.setattr(module, "STATE", tmp_path / "state")
        monkeypatch.setattr(module, "CONFIG", tmp_path / "config.yaml")

    def configured(place: str, **more: str) -> dict[str, Any]:
        ours = {
            "repository": place, "repository_id": "", "repository_replaces": "", "remote_path": "",
            "known_hosts": [], "ssh_command": str(ssh), "passcommand": "echo x", "directories": [],
        }  # fmt: skip
        text = f'# For the program that runs borgmatic: {json.dumps(ours | more)}\n- "{place}"\n'
        store.CONFIG.write_text(text)
        settings = store.read(store.CONFIG)
        assert isinstance(settings, dict)
        return settings

    return configured


A, B = "ssh://box@a.example/./r", "ssh://box@b.example/./r"


def test_a_repository_that_moves_back_is_used_there(
    store: ModuleType, shop: Callable[..., dict[str, Any]]
) -> None:
    def prove(place: str, **more: str) -> None:
        settings = shop(place, **more)
        store.prove(store.CONFIG)
        # Use the repository as every backup does.
        store.borg(settings, "create", f"::{time.monotonic()}", __file__)

    prove(A)
    identity = store.remembered()[A]
    with pytest.raises(store.Failed, match=f'borg_repository_id = "{identity}"'):
        prove(B)
    prove(B, repository_id=identity)
    prove(A)
    prove(B)
    prove(A, repository_id=identity)
    # If the server's own memory is lost, borg's memory is no obstacle.
    (store.STATE / "repositories.json").unlink()
    prove(A)


def test_borgs_memory_replaces_a_broken_file(
    store: ModuleType, shop: Callable[..., dict[str, Any]]
) -> None:
    shop(A)
    store.prove(store.CONFIG)
    known = store.remembered()
    for broken in ("", "[]", "null", '"x"', "7", "{", '{"a": null}', '{"a": "b"}', "\xff"):
        (store.STATE / "repositories.json").write_text(broken, encoding="latin-1")
        assert store.remembered() == known
    store.prove(store.CONFIG)
    assert store.remembered() == known


@pytest.mark.parametrize("path", ["./r/", "./a/../r", ".//r", "./r/.", "~/r/", "/srv/r/", "srv//r"])
def test_another_spelling_is_the_same_repository(
    store: ModuleType, shop: Callable[..., dict[str, Any]], tmp_path: Path, path: str
) -> None:
    """Only borg remembers the repository."""
    settings = shop(f"ssh://box@a.example/{path}")
    location = tmp_path / f"home/.config/borg/security/{ONE}/location"
    location.parent.mkdir(parents=True)
    # borg's own code writes the file.
    code = "import sys; from borg.helpers import Location;"
    code += "print(Location(sys.argv[1]).canonical_path(), end='')"
    location.write_text(
        subprocess.check_output(["/usr/bin/python3", "-c", code, settings["repository"]], text=True)
    )
    assert store.remembered() == {settings["place"]: ONE}


@pytest.mark.parametrize("kind", ["keyfile-blake2", "authenticated-blake2", "repokey", "keyfile"])
def test_a_repository_that_opened_before_goes_on(
    store: ModuleType, shop: Callable[..., dict[str, Any]], tmp_path: Path, kind: str
) -> None:
    settings = shop(A)
    store.borg(settings, "init", "--encryption", kind)
    store.prove(store.CONFIG)
    # Another server lacks the key file, or borg's consent to an unencrypted repository.
    shutil.rmtree(tmp_path / "home")
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "state").mkdir()
    if kind == "repokey":
        store.prove(store.CONFIG)
        return
    with pytest.raises(store.Failed, match=r"copy the file to|is not encrypted"):
        store.prove(store.CONFIG)
    assert not (tmp_path / "state/repositories.json").exists()


def test_prune_keeps_the_newest_archive_with_a_missing_database(
    program: ModuleType,
    store: ModuleType,
    shop: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = shop(A)
    store.borg(settings, "init", "--encryption", "repokey")
    dumps = tmp_path / "borgmatic/postgresql_databases/localhost"
    dumps.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def add(name: str, *databases: str) -> None:
        for database in databases:
            (dumps / program.encoded(database)).write_text(name)
        environment = store.environment(settings)
        subprocess.run(["borg", "create", f"::{name}", "borgmatic"], env=environment, check=True)
        shutil.rmtree(dumps)
        dumps.mkdir()

    add("web-1", "api", "a b")
    add("web-2", "api", "apis")
    add("web-3", "apis")
    add("web-4")
    archives = ["web-1", "web-2", "web-3", "web-4"]
    held = program.holders(settings, archives, dict.fromkeys(["api", "a b", "new"], "why"))
    assert held == {"api": "web-2", "a b": "web-1"}

    def borgmatic(_: object, action: str) -> None:
        assert action == "prune"
        store.borg(settings, "prune", "--keep-last", "1", "--glob-archives", "web-*")

    monkeypatch.setattr(program, "borgmatic", borgmatic)
    program.prune(settings, {*held.values()})
    assert sorted(store.look(settings)[1]) == ["web-1", "web-2", "web-4"]


# --- failures -------------------------------------------------------------------------------------


def test_only_root_can_hold_the_lock_and_waiting_ends(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program.LOCK.parent == program.STATE
    assert "TimeoutStartSec=" in (ROOT / "templates/borg/borgmatic.service.j2").read_text()
    monkeypatch.setattr(program, "PATIENCE", 1)
    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("w") as other:
        program.locked(one)
        with pytest.raises(program.Failed, match="another backup has been running"):
            program.locked(other)
        one.close()
        program.locked(other)


@pytest.mark.parametrize(
    ("action", "left_out", "code"),
    [
        ("run", {}, 0),
        ("run", {"shop": "it allows no connections"}, 1),
        # A deploy reports it and succeeds, because the repository is proved.
        ("create", {"shop": "it allows no connections"}, 0),
    ],
)
def test_a_night_without_one_database_is_a_failure(
    program: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    left_out: dict[str, str],
    code: int,
) -> None:
    done: list[str] = []
    monkeypatch.setattr(program, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(program, "read", lambda _: settings(HERE))
    monkeypatch.setattr(program, "create", lambda _: (program.reasons(left_out), set()))
    monkeypatch.setattr(program.backup_result, "LAST", tmp_path / "last.json")
    monkeypatch.setattr(program, "prune", lambda *_: done.append("prune"))
    monkeypatch.setattr(program, "borgmatic", lambda _, *actions: done.extend(actions))
    monkeypatch.setattr(sys, "argv", ["backup", action])
    ended = 0
    try:
        program.main()
    except SystemExit as end:
        ended = int(end.code or 0)
    assert ended == code
    # Old archives are pruned even if one database fails every night.
    assert done == (["prune", "compact", "check"] if action == "run" else [])
    words = json.loads((tmp_path / "last.json").read_text())["words"]
    incomplete = ' is incomplete: "shop": it allows no connections: `systemctl status borgmatic`'
    assert incomplete in words if left_out else words == ""


def test_what_an_archive_lacks(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A database and the dump of a service: each has its line, and both are noted."""
    volumes = program.backup_volumes
    quiet = volumes.Quiet([], {"backup_command of jobs/queue": "exit 1: no"}, [])
    monkeypatch.setattr(quiet, "remember", lambda *_: {"jobs/queue": "web-1"})
    for module, name, answer in (
        (volumes, "quiet", lambda: nullcontext(quiet)),
        (program, "look", lambda *_: (ONE, [f"{socket.gethostname()}-1"])),
        (program, "remembered", lambda: {HERE: ONE}),
        (program, "roles", lambda _: None),
        (program, "make", lambda *_: ("web-2.checkpoint", ["api"], {"old": "it is invalid"})),
        (program, "read_back", lambda *_: None),
        (program, "rename", lambda *_: None),
        (program, "holders", lambda *_: {"old": "web-0"}),
    ):
        monkeypatch.setattr(module, name, answer)
    lacks, held = program.create(settings(HERE) | {"directories": []})
    database = '"old": it is invalid (its last dump: web-0)'
    service = "backup_command of jobs/queue: exit 1: no (it last succeeded for web-1)"
    assert lacks == f"{database}; {service}"
    assert held == {"web-0", "web-1"}
    said = capsys.readouterr().err.splitlines()
    assert said == [f"not in the backup: {database}", f"incomplete: {service}"]


def test_what_went_wrong_is_noted_in_one_line(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a backup, and whichever command began it."""
    last = tmp_path / "last.json"

    def ended(action: str, settings: Callable[[object], Any]) -> str:
        last.unlink(missing_ok=True)
        monkeypatch.setattr(program, "read", settings)
        monkeypatch.setattr(sys, "argv", ["backup", action])
        with pytest.raises(SystemExit):
            program.main()
        return str(json.loads(last.read_text())["words"])

    def refuses(_: object) -> None:
        raise program.Failed(
            "box does not let this key in; add it to authorized_keys:\nssh-ed25519"
        )

    def is_full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(program.backup_result, "LAST", last)
    for action in ("run", "create"):
        assert re.fullmatch(
            r"the last backup \(20\d\d-\d\d-\d\d \d\d:\d\d UTC\) failed: box does not let this "
            r"key in; add it to authorized_keys: `systemctl status borgmatic`, "
            r"`journalctl -u borgmatic`",
            ended(action, refuses),
        )
    assert " failed: OSError: [Errno 28] No space left on device: `" in ended("run", is_full)


def test_a_killed_backup_is_noted_when_its_unit_ends(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = program.backup_result
    monkeypatch.setattr(result, "LAST", tmp_path / "last.json")

    def words() -> str:
        return str(json.loads(result.LAST.read_text())["words"])

    # By hand, without a unit.
    monkeypatch.delenv("INVOCATION_ID", raising=False)
    result.note("")
    result.note_if_killed()
    assert words() == ""
    # The unit was killed; the note is of the night before.
    monkeypatch.setenv("INVOCATION_ID", "b")
    monkeypatch.setenv("SERVICE_RESULT", "timeout")
    result.note_if_killed()
    assert " was ended before it was complete (timeout): `systemctl status borgmatic`" in words()
    monkeypatch.setenv("SERVICE_RESULT", "success")
    monkeypatch.setenv("INVOCATION_ID", "b2")
    result.note_if_killed()
    assert " was ended before it was complete (it was stopped): `" in words()
    # The backup noted its own result.
    result.note("failed: no room")
    result.note_if_killed()
    assert " failed: no room: `" in words()
    monkeypatch.setenv("INVOCATION_ID", "c")
    result.note("")
    result.note_if_killed()
    assert words() == ""


def test_a_full_disk_does_not_hide_how_a_backup_ended(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(program.backup_result, "LAST", tmp_path / "gone" / "last.json")
    program.backup_result.note("failed: no room")
    assert "the result of the backup is not noted: " in capsys.readouterr().err


SAID = """
pg_dump of "api": pg_dump: error: one
/root: Error
 ERROR pg_dump of "a \\"b\\": c": two: 2
"""


def test_databases_that_could_not_be_dumped(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "SAID", tmp_path / "said")
    assert program.undumped() == {}
    program.SAID.write_text(SAID)
    assert program.undumped() == {"api": "pg_dump: error: one", 'a "b": c': "two: 2"}
    program.SAID.write_text('no dump\npg_dumpall of the roles: x\npg_dump of "x')
    assert program.undumped() == {}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'error: FATAL:  no' >&2; exit 1", 'pg_dump of "a b": error: FATAL:  no\n'),
        ("kill -9 $$", 'pg_dump of "a b": it was killed (exit code -9)\n'),
        # borg died: its own errors are the cause.
        ("kill -13 $$", None),
        ("echo 'pg_dump: error: could not write: Broken pipe' >&2; exit 1", None),
    ],
)  # fmt: skip
def test_the_error_of_a_failed_dump_is_kept(
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


@pytest.mark.parametrize(
    ("broken", "once", "left_out"),
    [
        ({}, {}, []),
        ({"b"}, {}, ["b"]),
        ({"a", "b"}, {}, ["a", "b"]),
        ({"a", "b", "c"}, {}, ["a", "b", "c"]),
        ({}, {"a"}, []),
        ({"b"}, {"a"}, ["b"]),
    ],
)
def test_a_database_that_cannot_be_dumped_does_not_end_the_backup(
    program: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: set[str],
    once: set[str],
    left_out: list[str],
) -> None:
    once = set(once)
    monkeypatch.setattr(program, "SAID", tmp_path / "said")

    def borgmatic(_: object, *words: str) -> str:
        names = {one["name"] for one in json.loads(words[1].partition("=")[2])}
        failing = sorted(names & {*broken, *once})
        if not failing:
            return ""
        once.discard(failing[0])
        program.SAID.write_text(f"pg_dump of {json.dumps(failing[0])}: corrupt\n")
        raise program.Failed("borgmatic failed")

    monkeypatch.setattr(program, "databases", lambda _: (["a", "b", "c"], {"shut": "closed"}))
    monkeypatch.setattr(program, "borgmatic", borgmatic)
    monkeypatch.setattr(program, "borg", lambda *_: "")
    archive, names, missing = program.make({"version": "17", "sections": False}, [])
    assert archive.startswith(f"{socket.gethostname()}-20")
    assert archive.endswith(program.UNPROVED)
    assert names == [one for one in ("a", "b", "c") if one not in left_out]
    assert missing == {"shut": "closed"} | dict.fromkeys(left_out, "corrupt")


def test_any_other_failure_ends_the_backup(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "SAID", tmp_path / "said")

    def borgmatic(*_: object) -> str:
        raise program.Failed("the connection ended")

    monkeypatch.setattr(program, "databases", lambda _: (["a"], {}))
    monkeypatch.setattr(program, "borgmatic", borgmatic)
    with pytest.raises(program.Failed, match="the connection ended"):
        program.make({"version": "17", "sections": False}, [])

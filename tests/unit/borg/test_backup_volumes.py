"""The volumes of applications in a backup: borg's patterns, and what becomes of troubles."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT
from tests.unit.programs import load

STORE = "/var/lib/docker/volumes"
GOOD = {"volumes": [f"{STORE}/shop_data"], "troubles": {}, "good": ["shop/db"]}
FAILED = {**GOOD, "troubles": {"backup_command of shop/db": "exit 3: no room"}, "good": []}

Answers = Callable[[str], None]


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "files/borg"))
    module = load(ROOT / "files/borg/backup_volumes.py")
    # `dataclass` looks its module up.
    monkeypatch.setattr(module, "PROGRAM", str(tmp_path / "terrafirma"))
    monkeypatch.setattr(module, "KNOWN", tmp_path / "volumes.json")
    monkeypatch.setattr(module, "DUMPED", tmp_path / "dumped.json")
    return module


@pytest.fixture
def answers(volumes: ModuleType) -> Answers:
    """The program for applications answers this to `backup begin`."""

    def write(script: str) -> None:
        path = Path(volumes.PROGRAM)
        path.write_text(f'#!/bin/sh\ncase "$2" in begin) {script};; end) ;; esac\n')
        path.chmod(0o755)

    return write


def told(answer: object) -> str:
    return f"echo '{json.dumps(answer)}'"


def test_volumes_below_a_directory_of_the_backup(volumes: ModuleType) -> None:
    found = volumes.location(["/etc", "/var"], [f"{STORE}/shop_data", f"{STORE}/api_files"])
    assert found == {
        "source_directories": ["/etc", "/var"],
        "patterns": [
            *(f"+ pf:{path}" for path in ("/var", "/var/lib", "/var/lib/docker", STORE)),
            f"+ pp:{STORE}/api_files", f"+ pp:{STORE}/shop_data",
        ],
    }  # fmt: skip


def test_volumes_that_no_directory_of_the_backup_has(volumes: ModuleType) -> None:
    assert volumes.location(["/etc"], [f"{STORE}/shop_data"]) == {
        "source_directories": ["/etc", f"{STORE}/shop_data"],
        "patterns": [f"+ pp:{STORE}/shop_data"],
    }


def test_the_archive_with_the_last_good_dump_is_held(volumes: ModuleType, answers: Answers) -> None:
    """Prune alone would keep the newest archive of a day."""
    answers(told(GOOD))
    with volumes.quiet() as quiet:
        assert quiet.volumes == GOOD["volumes"]
    assert quiet.remember("web-1", []) == {}
    assert quiet.words({}) == ""
    answers(told(FAILED))
    for archive in ("web-2", "web-3"):
        with volumes.quiet() as quiet:
            pass
        dumped = quiet.remember(archive, ["web-1", "web-2"])
        assert dumped == {"shop/db": "web-1"}
        assert quiet.words(dumped) == (
            "backup_command of shop/db: exit 3: no room (it last succeeded for web-1)"
        )
    # Somebody has removed that archive.
    dumped = quiet.remember("web-4", ["web-2"])
    assert dumped == {}
    assert quiet.words(dumped).endswith("(it last succeeded for no archive)")


@pytest.mark.parametrize(
    "answer", ["exit 1", told({**GOOD, "good": [], "troubles": {"the description of shop": "["}})]
)
def test_it_is_held_also_where_nothing_is_known_of_the_service(
    volumes: ModuleType, answers: Answers, answer: str
) -> None:
    answers(told({**GOOD, "good": ["shop/db", "shop-2/db"]}))
    with volumes.quiet() as quiet:
        pass
    quiet.remember("web-1", [])
    answers(answer)
    with volumes.quiet() as quiet:
        pass
    held = quiet.remember("web-2", ["web-1"])
    assert held["shop/db"] == "web-1"
    assert ("shop-2/db" in held) == (answer == "exit 1")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'terrafirma: no Docker' >&2; exit 1", "terrafirma: no Docker"),
        ("exit 2", "exit 2"),
        ("echo oops", "it answered 'oops\\n'"),
    ],
)
def test_without_an_answer_the_last_volumes_are_backed_up(
    volumes: ModuleType, answers: Answers, script: str, why: str
) -> None:
    answers(told(GOOD))
    with volumes.quiet():
        pass
    answers(script)
    with volumes.quiet() as quiet:
        assert quiet.volumes == GOOD["volumes"]
    assert quiet.words({}) == f"the volumes of the last backup are in it: {why}"
    Path(volumes.PROGRAM).unlink()
    with volumes.quiet() as quiet:
        assert quiet.volumes == GOOD["volumes"]
    assert "No such file" in quiet.words({})


def test_the_commands_afterwards_run_also_after_a_failure(
    volumes: ModuleType, answers: Answers, tmp_path: Path
) -> None:
    path = Path(volumes.PROGRAM)
    answers(told(GOOD))
    ended = {"troubles": {"backup_after of shop/db": "exit 1"}}
    path.write_text(path.read_text().replace("end) ;;", f"end) touch {tmp_path}/over; "
                                             f"{told(ended)};;"))  # fmt: skip
    with pytest.raises(ValueError, match="borg"), volumes.quiet() as quiet:
        raise ValueError("borg")
    assert (tmp_path / "over").exists()
    assert quiet.words({}) == "backup_after of shop/db: exit 1"
    assert sys.modules["backup_store"]


def test_a_volume_on_a_file_system_of_its_own(volumes: ModuleType, tmp_path: Path) -> None:
    """With borgmatic 1.7, borg does not go there by itself."""
    elsewhere = "/proc/self"
    for stays, sources in ((False, ["/"]), (True, ["/", elsewhere])):
        assert volumes.location(["/"], [elsewhere], stays=stays)["source_directories"] == sources
    own = str(tmp_path)
    assert volumes.location([own], [f"{own}/a"], stays=False)["source_directories"] == [own]
    (tmp_path / "a").mkdir()
    assert volumes.location([own], [f"{own}/a"], stays=True)["source_directories"] == [own]

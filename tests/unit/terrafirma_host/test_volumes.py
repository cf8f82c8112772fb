"""New volumes of the settings belong to the user of their containers."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import engine, volumes
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

PASSWD = "root:x:0:0::/root:/bin/sh\nnode:x:1000:1001::/home/node:/bin/sh\nodd\n"
GROUPS = "root:x:0:\nnode:x:1001:\nwww:x:33:node\n"


@pytest.mark.parametrize(
    ("user", "group", "ids"),
    [
        ("node", "", (1000, 1001)),
        ("node", "www", (1000, 33)),
        ("node", "7", (1000, 7)),
        ("1000", "", (1000, 1001)),
        ("65532", "", (65532, 0)),
        ("65532", "www", (65532, 33)),
    ],
)
def test_a_user_of_an_image_has_these_ids(user: str, group: str, ids: tuple[int, int]) -> None:
    assert volumes.resolved(user, group, PASSWD, GROUPS) == ids


@pytest.mark.parametrize(
    ("user", "group", "passwd", "said"),
    [
        ("app", "", PASSWD, "the image has no user 'app'"),
        ("node", "app", PASSWD, "the image has no group 'app'"),
        ("evil", "", "evil:x:-1:0::/:", "the image's user has the id '-1', which is none"),
        ("99999999999", "", "", "the image's user has the id '99999999999', which is none"),
    ],
)
def test_a_user_that_is_none_is_refused(user: str, group: str, passwd: str, said: str) -> None:
    with pytest.raises(Failed, match=said):
        volumes.resolved(user, group, passwd, GROUPS)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    return directory


@pytest.mark.parametrize(
    ("mode", "owner", "foreign"),
    [
        (0o755, (0, 0), False),
        (0o755, (os.getuid(), 5), False),
        (0o555, (os.getuid() + 1, 5), True),
        (0o755, (os.getuid() + 1, os.getgid()), True),
        (0o775, (os.getuid() + 1, os.getgid()), False),
        (0o777, (os.getuid() + 1, os.getgid() + 1), False),
    ],
)
def test_who_writes_a_volume(place: Path, mode: int, owner: tuple[int, int], foreign: bool) -> None:
    place.chmod(mode)
    said = volumes.foreign("api_data", place, owner)
    assert bool(said) is foreign
    if foreign:
        assert f"`chown -R {owner[0]}:{owner[1]} {place}`" in said


Engine = list[tuple[str, ...]]


@pytest.fixture
def orders(
    app: Application, place: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Application, Engine]:
    """An application with a volume, and what the engine and the kernel are told about it."""
    told: Engine = []
    volume = {"Name": "api_data", "Driver": "local", "Options": None, "Mountpoint": str(place)}

    def inspect(kind: str, names: Any) -> list[dict[str, Any]]:
        return [volume] if kind == "volume" else [{"Config": {"User": "4000:4001"}}]

    def owned(path: Path, owner: tuple[int, int]) -> None:
        told.append(("own", path.name, *map(str, owner)))

    monkeypatch.setattr(engine, "inspect", inspect)
    monkeypatch.setattr(volumes, "run", lambda *words, **_: told.append(words))
    monkeypatch.setattr(volumes, "succeeds", lambda *_: True)
    monkeypatch.setattr(volumes, "_give", owned)
    return replace(app, volumes={"data": "/data"}), told


PROJECT: dict[str, Any] = {"services": {"api": {}}}


def test_a_new_volume_gets_the_content_of_the_image_and_its_user(
    orders: tuple[Application, Engine], capsys: pytest.CaptureFixture[str]
) -> None:
    app, told = orders
    note = app.directory / volumes.FILLING
    note.write_text("api_data\n")
    volumes.prepare(app, PROJECT, "terrafirma/api:1")
    create = [words for words in told if words[:2] == ("docker", "create")][-1]
    assert "--mount=type=volume,source=api_data,target=/data" in create
    assert told[-1] == ("own", "data", "4000", "4001")
    assert not note.exists()


def test_an_empty_volume_of_another_user_is_new(orders: tuple[Application, Engine]) -> None:
    """A release failed before, and the next one runs under another user."""
    app, told = orders
    volumes.prepare(app, PROJECT, "terrafirma/api:1")
    assert told[-1] == ("own", "data", "4000", "4001")


def test_a_volume_with_files_stays_as_it_is(
    orders: tuple[Application, Engine], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app, told = orders
    (place / "upload").touch()
    volumes.prepare(app, PROJECT, "terrafirma/api:1")
    assert not [words for words in told if words[0] == "own"]
    assert "the volume api_data belongs to the id" in capsys.readouterr().out
    # Root writes everywhere.
    told.clear()
    volumes.prepare(app, {"services": {"api": {"user": "0"}}}, "terrafirma/api:1")
    assert "belongs to" not in capsys.readouterr().out
    assert not [words for words in told if words[0] == "own"]


def test_a_volume_that_is_made_is_noted_as_new(
    host: Path, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is made: a release that is killed leaves the note to the next one."""
    made = []

    def run(*words: str, **_: Any) -> str:
        made.append((words, (app.directory / volumes.FILLING).read_text()))
        return ""

    monkeypatch.setattr(engine, "inspect", lambda *_: [])
    monkeypatch.setattr(volumes, "run", run)
    project = {"name": "api", "volumes": {"data": {"name": "api_data"}}}
    volumes.make(replace(app, volumes={"data": "/data"}), project)
    ((words, noted),) = made
    assert words[-1] == "api_data"
    assert noted == "api_data\n"


def test_a_link_in_a_volume_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    place = tmp_path / "data"
    (place / "inner").mkdir(parents=True)
    (place / "link").symlink_to(outside)
    given = []

    def chown(path: Any, *_: Any, **how: Any) -> None:
        given.append((path, how["follow_symlinks"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "chown", chown)
        patch.setattr(os, "fchown", lambda *_: None)
        volumes._give(place, (4000, 4001))
    assert sorted(given) == [("inner", False), ("link", False)]

"""Files: the state of paths on a host, source directories, and templates."""

import getpass
import grp
import os
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from terrafirma.app.hashes import look, tree_digest
from terrafirma.host.files import (
    File,
    PathStates,
    render,
    source,
    template,
)
from tests.conftest import ROOT
from tests.unit.facts import ask

# --- files ----------------------------------------------------------------------------------------


def test_paths_of_a_host() -> None:
    assert PathStates().process(
        [
            "644|root|root|regular file|/etc/hostname",
            "700|root|root|directory|/etc/terrafirma/secrets",
            "666|root|root|character special file|/dev/null",
            "600|prod|prod|regular empty file|/home/prod/a|b",
            "465c49ce69b998fd4f6d15bd24f74a9e9fc651f4902cbafb055252008e2d66f7  /etc/hostname",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  /home/prod/a|b",
        ]
    ) == {
        "/etc/hostname": {
            "kind": "file",
            "mode": "644",
            "user": "root",
            "group": "root",
            "sha256": "465c49ce69b998fd4f6d15bd24f74a9e9fc651f4902cbafb055252008e2d66f7",
        },
        "/etc/terrafirma/secrets": {
            "kind": "directory",
            "mode": "700",
            "user": "root",
            "group": "root",
            "sha256": "",
        },
        "/dev/null": {
            "kind": "other",
            "mode": "666",
            "user": "root",
            "group": "root",
            "sha256": "",
        },
        "/home/prod/a|b": {
            "kind": "file",
            "mode": "600",
            "user": "prod",
            "group": "prod",
            "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        },
    }


def test_paths_of_this_machine(tmp_path: Path) -> None:
    hello, empty, directory = (tmp_path / name for name in ("it's $HOME", "empty", "directory"))
    hello.write_text("hello\n")
    hello.chmod(0o640)
    empty.touch(0o600)
    directory.mkdir(0o2750)
    directory.chmod(0o2750)
    link, broken = tmp_path / "link", tmp_path / "broken"
    link.symlink_to(hello)
    broken.symlink_to(tmp_path / "nowhere")
    known = ask(
        PathStates,
        paths=[str(one) for one in (hello, broken, empty, directory, link, tmp_path / "no")],
    )
    assert list(known) == [str(hello), str(empty), str(directory), str(link)]
    assert known[str(hello)] == {
        "kind": "file",
        "mode": "640",
        "user": getpass.getuser(),
        "group": grp.getgrgid(hello.stat().st_gid).gr_name,
        "sha256": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
    }
    assert known[str(link)] == known[str(hello)]
    assert known[str(empty)]["kind"] == "file"
    assert known[str(empty)]["sha256"].startswith("e3b0c44298fc1c14")
    assert known[str(directory)]["kind"] == "directory"
    assert known[str(directory)]["mode"] == "2750"
    assert ask(PathStates, paths=["/dev/null"])["/dev/null"]["kind"] == "other"
    # The shell expands the pattern, and skips names that ours never have; one path is named twice.
    (tmp_path / "di\nre\\c").touch()
    os.mkfifo(tmp_path / "dipipe")
    patterns = [f"{tmp_path}/{name}" for name in ("it*", "di*", "no/*")]
    found = ask(PathStates, paths=[str(empty)], patterns=patterns)
    assert list(found) == [str(empty), str(tmp_path / "dipipe"), str(directory)]
    assert found[str(directory)] == known[str(directory)]


# --- sources --------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.txt", "a/z.txt", "a/b/c.txt", "a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_source_files_have_a_fixed_order(tree: Path) -> None:
    assert look(tree).paths == ["a/b/c.txt", "a/z.txt", "a.txt", "b.txt"]


def test_source_files_leave_out_what_is_no_source(tree: Path) -> None:
    before = look(tree).paths
    for name in (
        *(".git/HEAD", "a/__pycache__/a.pyc", ".venv/bin/x", "web/node_modules/x/y.js"),
        *(".env", "a/.env", ".env.production", "a/b/.env.local", ".DS_Store", "a/.DS_Store"),
        *(".pytest_cache/v/x", ".mypy_cache/3.11/x", "a/.ruff_cache/0.14/x"),
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    (tree / "empty").mkdir()
    assert look(tree).paths == before


def test_source_files_have_what_is_only_named_like_it(tree: Path) -> None:
    names = ["a/env.py", "cache/redis.py", "cached.py", "env/config", "environment"]
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    assert set(names) < {*look(tree).paths}


def test_source_files_of_a_tree_below_such_a_directory(tmp_path: Path) -> None:
    """Only names below the source count, not the directories above it."""
    directory = tmp_path / "node_modules" / "api"
    directory.mkdir(parents=True)
    (directory / "Dockerfile").touch()
    assert look(directory).paths == ["Dockerfile"]


def test_a_digest_is_of_names_contents_and_executability(tree: Path) -> None:
    digests = {tree_digest(tree)}
    (tree / "a.txt").write_text("other")
    digests.add(tree_digest(tree))
    (tree / "b.txt").rename(tree / "c.txt")
    digests.add(tree_digest(tree))
    (tree / "c.txt").chmod(0o755)
    digests.add(tree_digest(tree))
    (tree / "a.txt").unlink()
    digests.add(tree_digest(tree))
    assert len(digests) == 5


def test_a_digest_is_of_nothing_else(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = tree_digest(tree)
    os.utime(tree / "a.txt", (1, 1))
    (tree / "b.txt").chmod(0o600)
    (tree / "empty").mkdir()
    assert tree_digest(tree) == before
    other = tmp_path_factory.mktemp("other")
    for path in reversed(look(tree).paths):
        copy = other / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((tree / path).read_bytes())
    assert tree_digest(other) == before


# --- templates and files --------------------------------------------------------------------------


def test_an_undefined_name_in_a_template_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="wait_seconds"):
        render("apt/60terrafirma.j2")


def test_a_template_and_a_copy_become_files_with_an_owner() -> None:
    file = template("apt/60terrafirma.j2", "/x", data={"wait_seconds": 7}, mode="600", user="me")
    assert file == File("/x", file.content, "600", "me", "root")
    assert '"7"' in file.content
    copy = source("terrafirma", "/y", mode="755")
    program = ROOT / "files" / "terrafirma"
    assert copy == File("/y", program.read_text(), "755", "root", "root")

"""Operations that need no server, applied to this machine."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from terrafirma.app.hashes import look, tree_digest
from tests.conftest import ROOT, Pyinfra

# --- on this machine ------------------------------------------------------------------------------


class Local:
    """Applies deploy_local.py, or another deploy, to this machine, in a directory of its own."""

    def __init__(
        self, pyinfra: Pyinfra, directory: Path, deploy: str = "tests/unit/host/deploy_local.py"
    ) -> None:
        self.pyinfra = pyinfra
        self.root = directory
        self.deploy = deploy

    def _run(self, how: str) -> dict[str, Any]:
        return self.pyinfra.run("@local", self.deploy, how, "--data", f"x_directory={self.root}")

    def apply(self) -> dict[str, list[str]]:
        """The names of the operations that changed something, and of those that failed."""
        operations = self._run("-y")["results"]["operations"]
        return {
            kind: [one["name"] for one in operations if one[kind]] for kind in ("success", "error")
        }

    def plan(self) -> list[str]:
        return [one["name"] for one in self._run("--dry")["plan"] if one["hosts_with_change"]]

    def read(self, name: str) -> str:
        return (self.root / name).read_text()

    def mode(self, name: str) -> str:
        return f"{(self.root / name).stat().st_mode & 0o7777:o}"


@pytest.fixture(scope="module")
def local(pyinfra: Pyinfra, tmp_path_factory: pytest.TempPathFactory) -> Local:
    root = tmp_path_factory.mktemp("local")
    (root / "stale").write_text("old\n")
    (root / "foreign").write_text("precious\n")
    (root / "foreign").chmod(0o600)
    (root / "refused").write_text("still good\n")
    (root / "occupied").mkdir()
    (root / "source" / "bin").mkdir(parents=True)
    (root / "source" / "Dockerfile").write_text("FROM scratch\n")
    (root / "source" / "bin" / "run").write_text("#!/bin/sh\n")
    (root / "source" / "bin" / "run").chmod(0o700)
    (root / "source" / ".git").mkdir()
    (root / "source" / ".git" / "HEAD").write_text("x")
    (root / "source" / ".env").write_text("PASSWORD=secret\n")
    (root / "source" / ".pytest_cache").mkdir()
    (root / "source" / ".pytest_cache" / "README.md").write_text("x")
    (root / "copies" / "0ld").mkdir(parents=True)
    # A run died while it uploaded a source.
    (root / "copies" / ".new-x" / "half").mkdir(parents=True)
    words = "import sys; from terrafirma_host.delivery import main; main(sys.argv[1:])"
    (root / "program").write_text(
        f"#!/bin/sh\nPYTHONPATH={ROOT}/files exec {sys.executable} -c '{words}' \"$@\"\n"
    )
    (root / "program").chmod(0o755)
    (root / "copies" / "data").mkdir()
    return Local(pyinfra, root)


@pytest.fixture(scope="module")
def applied(local: Local) -> dict[str, list[str]]:
    return local.apply()


@pytest.mark.usefixtures("applied")
class TestApplied:
    def test_files_have_their_content_and_mode(self, local: Local) -> None:
        assert local.read("deep/er/plain") == "without a line break at its end\n"
        assert local.mode("deep/er/plain") == "644"
        odd = "it's $HOME/odd"
        assert local.read(odd) == "`touch canary`\n$(touch canary)\n%s \\n ünïcode\n"
        assert local.mode(odd) == "600"
        assert list(ROOT.glob("canary")) == []

    def test_directories_have_their_mode(self, local: Local) -> None:
        assert local.mode("private") == "700"

    def test_directories_on_the_way_to_a_file_are_open(self, local: Local) -> None:
        """If a run made /etc/postgresql-common closed, the package would leave it closed."""
        assert (local.mode("deep/er"), local.mode("deep")) == ("755", "755")

    def test_what_must_not_be_there_is_gone(self, local: Local) -> None:
        assert not (local.root / "stale").exists()

    def test_a_foreign_file_is_kept(self, local: Local) -> None:
        assert local.read("foreign") == "# Managed by Terrafirma: x\n1\n"
        assert local.read("foreign.before-terrafirma") == "precious\n"
        assert local.mode("foreign.before-terrafirma") == "600"

    def test_a_file_that_its_check_accepts_is_put(self, local: Local) -> None:
        assert local.read("checked").endswith("good\n")
        assert local.mode("checked") == "640"
        assert not (local.root / "checked.before-terrafirma").exists()

    def test_a_file_that_its_check_refuses_is_not(
        self, local: Local, applied: dict[str, list[str]]
    ) -> None:
        assert local.read("refused") == "still good\n"
        assert "Put what its check refuses" in applied["error"]

    def test_a_directory_in_the_way_is_an_error(
        self, local: Local, applied: dict[str, list[str]]
    ) -> None:
        assert "Put a file where a directory is" in applied["error"]
        assert list((local.root / "occupied").iterdir()) == []

    def test_nothing_half_done_is_left(self, local: Local) -> None:
        assert [path for path in local.root.rglob("*") if path.name.endswith("-new")] == []

    def test_a_source_is_there_as_a_whole(self, local: Local) -> None:
        copy = local.root / "copies" / tree_digest(local.root / "source")
        assert tree_digest(copy) == tree_digest(local.root / "source")
        assert look(copy).paths == ["Dockerfile", "bin/run"]
        assert {path.name for path in copy.iterdir()} == {"Dockerfile", "bin"}
        assert copy.stat().st_mode & 0o777 == 0o700
        # Containers run under other ids, and get these files copied or mounted.
        modes = {str(path.relative_to(copy)): path.stat().st_mode & 0o777
                 for path in copy.rglob("*")}  # fmt: skip
        assert modes == {"Dockerfile": 0o644, "bin": 0o755, "bin/run": 0o755}

    def test_other_sources_are_kept(self, local: Local) -> None:
        """Only the program on the host decides which sources of earlier releases can go."""
        names = {path.name for path in (local.root / "copies").iterdir()}
        assert names == {".new-x", "0ld", "data", tree_digest(local.root / "source")}


FAILING = ["Put what its check refuses", "Put a file where a directory is"]


@pytest.mark.usefixtures("applied")
def test_applied_again_nothing_changes_and_drift_is_repaired(local: Local) -> None:
    assert [name for name in local.plan() if name not in FAILING] == []
    (local.root / "foreign").write_text("# by hand\n")
    (local.root / "checked").chmod(0o600)
    (local.root / "private").chmod(0o755)
    (local.root / "stale").touch()
    repaired = [
        "Put files and directories",
        "Replace a foreign file",
        "Put what its check accepts",
    ]
    assert [name for name in local.apply()["success"] if name not in FAILING] == repaired
    assert local.read("foreign") == "# Managed by Terrafirma: x\n1\n"
    assert local.read("foreign.before-terrafirma") == "precious\n"
    assert (local.mode("checked"), local.mode("private")) == ("640", "700")
    assert not (local.root / "stale").exists()


@pytest.mark.usefixtures("applied")
@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a file to another group")
@pytest.mark.parametrize("name", ["checked", "private"])
def test_a_wrong_group_is_repaired(local: Local, name: str) -> None:
    path = local.root / name
    before = path.stat().st_gid
    os.chown(path, -1, before + 1)
    assert [one for one in local.plan() if one not in FAILING] != []
    local.apply()
    assert path.stat().st_gid == before


# --- in another user's directory ------------------------------------------------------------------


@pytest.fixture
def owned(pyinfra: Pyinfra) -> Iterator[Local]:
    """Below a directory that every user may enter; pytest's own are closed."""
    root = Path(mkdtemp())
    root.chmod(0o755)
    theirs = root / "theirs"
    theirs.mkdir()
    shutil.chown(theirs, "nobody", "nogroup")
    (theirs / "refused").write_text("still good\n")
    for name in ("victim", "victim.terrafirma-new"):
        (root / name).write_text("precious\n")
        (root / name).chmod(0o600)
    # Links that the owner of the directory could lay for root to follow.
    for name in ("link", "link.terrafirma-new", "link.before-terrafirma"):
        (theirs / name).symlink_to(root / "victim")
    (theirs / "closed").write_text("root's\n")
    (theirs / "closed").chmod(0o600)
    (root / "roots").mkdir()
    (theirs / "directory").symlink_to(root / "roots")
    try:
        yield Local(pyinfra, root, "tests/unit/host/deploy_owned.py")
    finally:
        shutil.rmtree(root)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_file_in_another_users_directory_is_written_by_its_owner(owned: Local) -> None:
    answer = owned.apply()
    assert answer["success"] == [
        "Put what its check accepts",
        "Put over a link",
        "Put over what is closed",
    ]
    assert answer["error"] == ["Put what its check refuses", "Put below a link"]
    theirs = owned.root / "theirs"
    for name in ("accepted", "link", "closed"):
        assert owned.read(f"theirs/{name}") == "# Managed by Terrafirma: x\ngood\n"
        assert (owned.mode(f"theirs/{name}"), (theirs / name).owner()) == ("640", "nobody")
        assert not (theirs / name).is_symlink()
    assert owned.read("theirs/refused") == "still good\n"
    assert owned.read("theirs/closed.before-terrafirma") == "root's\n"
    assert (owned.read("victim"), owned.mode("victim")) == ("precious\n", "600")
    assert (owned.root / "victim").owner() == "root"
    assert list((owned.root / "roots").iterdir()) == []
    assert [path.name for path in theirs.iterdir() if path.name.endswith("-new")] == []
    assert owned.plan() == ["Put what its check refuses", "Put below a link"]

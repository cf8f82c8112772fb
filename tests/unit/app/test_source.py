"""Sources on their way to a host, and the digests of their files."""

import io
import json
import os
import shutil
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyinfra.connectors.util import CommandOutput, OutputLine
from terrafirma_host import delivery, sources
from terrafirma_host.shell import Failed

from terrafirma.app import source
from terrafirma.app.hashes import look, tree_digest
from terrafirma.app.source import Delivery
from terrafirma.host import cache


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "source"
    for name in ("Dockerfile", "a/b/c.txt", "a/z.txt", "run", "café-\udce9"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(f"{name}\n" * 40, errors="surrogateescape")
    (tree / "run").chmod(0o700)
    (tree / "link").symlink_to("a/b")
    return tree


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The sources on the host."""
    return tmp_path / "host" / "sources"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The files that are read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found: list[str] = []
    plain = sources.sha256

    def sha256(path: str, state: os.stat_result | None = None) -> str:
        found.append(Path(path).name)
        return plain(path, state)

    monkeypatch.setattr(sources, "sha256", sha256)
    return found


def on_its_way(tree: Path, there: Path) -> Delivery:
    sent = Delivery(look(tree), str(there / tree_digest(tree)))
    sent.answered([delivery.have(there)])
    return sent


def arrive(sent: Delivery) -> int:
    """Deliver a source; returns the number of bytes that were sent."""
    content = b"".join(sent.stream())
    delivery.take(Path(sent.dest), io.BytesIO(content))
    return len(content)


def members(sent: Delivery) -> list[str]:
    return [path for path, _, _ in sent._sorted(sent.look.entries)[2]]


def rewrite(tree: Path) -> None:
    (tree / "a/z.txt").write_text("other\n")


def rename(tree: Path) -> None:
    (tree / "a").rename(tree / "b")


def lead(tree: Path) -> None:
    (tree / "link").unlink()
    (tree / "link").symlink_to("a")


def exchange(tree: Path) -> None:
    """A file becomes a directory, a directory a file, and a link a file."""
    (tree / "run").unlink()
    (tree / "run").mkdir()
    (tree / "run/it").write_text("x")
    shutil.rmtree(tree / "a")
    (tree / "a").write_text("x")
    (tree / "link").unlink()
    (tree / "link").write_text("x")


CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "a file": (rewrite, {"a/z.txt"}),
    "a mode": (lambda tree: (tree / "run").chmod(0o600), {"run"}),
    "a new file": (lambda tree: (tree / "new").write_text("x"), {"new"}),
    "one file less": (lambda tree: (tree / "a/z.txt").unlink(), set()),
    "the name of a directory": (rename, set()),
    "a copy": (lambda tree: shutil.copy(tree / "a/z.txt", tree / "copy"), set()),
    "where a link leads": (lead, {"link"}),
    "kinds": (exchange, {"run/it", "a", "link"}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_only_what_has_changed_is_sent(tree: Path, there: Path, what: str) -> None:
    change, sent = CHANGES[what]
    first = on_its_way(tree, there)
    arrive(first)
    assert tree_digest(tree) == sources.tree_digest(Path(first.dest)) == Path(first.dest).name
    change(tree)
    second = on_its_way(tree, there)
    assert {*members(second)} == sent
    arrive(second)
    assert sources.tree_digest(Path(second.dest)) == tree_digest(tree)
    # The earlier source is as it was, though both have the same files.
    assert sources.tree_digest(Path(first.dest)) == Path(first.dest).name
    names = {Path(one.dest).name for one in (first, second)}
    assert {path.name for path in there.iterdir()} == names
    found = [path for path in Path(second.dest).rglob("*") if not path.is_symlink()]
    modes = {path.stat().st_mode & 0o777 for path in found}
    assert modes <= {0o755, 0o644}
    assert Path(second.dest).stat().st_mode & 0o777 == 0o700


def test_files_that_stay_need_no_room(tree: Path, there: Path) -> None:
    first = on_its_way(tree, there)
    arrive(first)
    rewrite(tree)
    second = on_its_way(tree, there)
    arrive(second)
    assert (Path(first.dest) / "run").samefile(Path(second.dest) / "run")
    assert not (Path(first.dest) / "a/z.txt").samefile(Path(second.dest) / "a/z.txt")


def test_a_file_with_other_content_has_another_time(tree: Path, there: Path) -> None:
    """The builder takes a file with the same path, size and time for unchanged."""
    for name in ("one", "two"):
        (tree / name).write_text(name)
    first = on_its_way(tree, there)
    arrive(first)
    for name in ("one", "two"):
        # As they mostly are: within a tick of the kernel's clock.
        os.utime(Path(first.dest) / name, ns=(10**18, 10**18))
    (tree / "one").write_text("two")
    (tree / "two").write_text("one")
    second = on_its_way(tree, there)
    assert members(second) == []
    arrive(second)
    for name in ("one", "two"):
        assert (Path(second.dest) / name).stat().st_mtime_ns != 10**18


def test_without_a_list_the_host_reads_its_files(tree: Path, there: Path) -> None:
    """A source that an earlier version has uploaded has none."""
    arrive(on_its_way(tree, there))
    (there.parent / "lists" / tree_digest(tree)).unlink()
    rewrite(tree)
    assert members(on_its_way(tree, there)) == ["a/z.txt"]


def test_a_source_that_was_tampered_with_is_not_used(tree: Path, there: Path) -> None:
    first = on_its_way(tree, there)
    arrive(first)
    (Path(first.dest) / "run").write_text("tampered with")
    rewrite(tree)
    second = on_its_way(tree, there)
    with pytest.raises(Failed, match=delivery.OTHER):
        arrive(second)
    assert not Path(second.dest).exists()
    second.answered([])
    arrive(second)
    assert sources.tree_digest(Path(second.dest)) == tree_digest(tree)


def test_half_an_upload_leaves_nothing(tree: Path, there: Path) -> None:
    sent = on_its_way(tree, there)
    whole = b"".join(sent.stream())
    for part in (b"", whole[:10], whole[:-1], whole[: len(whole) // 2], b"x" * 100):
        rest = io.BytesIO(part)
        with pytest.raises((Failed, OSError)):
            delivery.take(Path(sent.dest), rest)
        # The sender reads the error only after it has sent everything.
        assert rest.read() == b""
    assert [*there.iterdir()] == []


def test_a_file_that_changes_meanwhile_is_one_line(tree: Path, there: Path) -> None:
    sent = on_its_way(tree, there)
    (tree / "run").write_text("later")
    with pytest.raises((Failed, OSError)):
        arrive(sent)
    assert sent.trouble == "source was changed during its upload: run it again"
    assert [*there.iterdir()] == []


@pytest.mark.parametrize("content", ["short", "another of the same length\n"])
def test_a_file_that_changes_while_it_is_sent(tree: Path, there: Path, content: str) -> None:
    (tree / "run").write_text("some text of the same size\n")
    sent = on_its_way(tree, there)
    assert sent.look.digest
    (tree / "run").write_text(content)
    with pytest.raises((Failed, OSError)):
        arrive(sent)
    assert sent.trouble == "run was changed during its upload: run it again"


def test_a_file_that_is_gone_while_it_is_sent(tree: Path, there: Path) -> None:
    sent = on_its_way(tree, there)
    assert sent.look.digest
    (tree / "a/z.txt").unlink()
    with pytest.raises((Failed, OSError)):
        arrive(sent)
    assert sent.trouble == "a/z.txt: No such file or directory"


def test_a_tar_that_cannot_be_unpacked_is_one_line(
    tree: Path, there: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tar").write_text(
        "#!/bin/sh\necho 'tar: run: No space left on device' >&2\nexit 2\n"
    )
    (tmp_path / "tar").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tree / "large").write_bytes(os.urandom(2**20))
    with pytest.raises(Failed, match=r"whole: tar: run: No space left on device$"):
        arrive(on_its_way(tree, there))
    assert [*there.iterdir()] == []


def test_the_host_reads_what_has_arrived_and_no_more(
    tree: Path, there: Path, reads: list[str]
) -> None:
    arrive(on_its_way(tree, there))
    rewrite(tree)
    rename(tree)
    second = on_its_way(tree, there)
    assert second.look.digest
    reads.clear()
    arrive(second)
    # One file has arrived, and the other one is a copy, since it has another name.
    assert sorted(reads) == ["c.txt", "z.txt"]
    assert sources.digest(sources.all_entries(Path(second.dest))) == Path(second.dest).name


def test_a_list_of_an_earlier_version_has_no_states(tree: Path, there: Path) -> None:
    first = on_its_way(tree, there)
    arrive(first)
    delivery.note(Path(first.dest), first.look.entries)
    rewrite(tree)
    second = on_its_way(tree, there)
    assert members(second) == ["a/z.txt"]
    arrive(second)
    assert sources.tree_digest(Path(second.dest)) == tree_digest(tree)


@pytest.mark.promise("An upload needs the same memory whatever the size of the source")
def test_an_upload_needs_little_memory(tree: Path, there: Path) -> None:
    (tree / "large").write_bytes(os.urandom(2**20) * 48)
    sent = on_its_way(tree, there)
    tracemalloc.start()
    try:
        size = sum(map(len, sent.stream()))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > 2**20
    assert most < 8 * 2**20


# --- what the deploy says -------------------------------------------------------------------------


class Machine:
    """A host that keeps sources in a directory, and notes what it was asked."""

    def __init__(self, said: str = "") -> None:
        self.asked: list[str] = []
        self.said = said
        self.data = {"_sudo": True}
        self.print_prefix = "[web1] "

    def run_shell_command(self, command: Any, **more: Any) -> tuple[bool, CommandOutput]:
        word, path = str(command).removeprefix("source ").split()
        self.asked.append(word)
        if self.said and word in self.said:
            return False, CommandOutput([OutputLine("stderr", self.said)])
        try:
            if word == "have":
                return True, CommandOutput([OutputLine("stdout", delivery.have(Path(path)))])
            delivery.take(Path(path), io.BytesIO(b"".join(more["_stdin"])))
        except (Failed, OSError) as error:
            return False, CommandOutput([OutputLine("stderr", f"terrafirma: {error}")])
        return True, CommandOutput([])


def upload(machine: Any, tree: Path, there: Path, **fields: str) -> tuple[bool, list[str]]:
    said: list[str] = []
    sent = Delivery(look(tree), fields.get("dest") or str(there / tree_digest(tree)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "logger", SimpleNamespace(error=said.append))
        return source._upload(None, machine, sent, "source"), said  # type: ignore[arg-type]


def test_a_host_is_asked_and_sent_once(tree: Path, there: Path) -> None:
    machine = Machine()
    assert upload(machine, tree, there) == (True, [])
    assert machine.asked == ["have", "take"]


def test_everything_is_sent_where_the_host_has_other_files(tree: Path, there: Path) -> None:
    assert upload(Machine(), tree, there)[0]
    (there / tree_digest(tree) / "run").write_text("tampered with")
    rewrite(tree)
    machine = Machine()
    assert upload(machine, tree, there) == (True, [])
    assert machine.asked == ["have", "take", "take"]


def test_an_answer_that_is_none_means_that_the_host_has_nothing(tree: Path, there: Path) -> None:
    machine = Machine(said="terrafirma: have: no such command")
    assert upload(machine, tree, there) == (True, [])
    assert upload(machine, tree, there) == (True, [])


def test_an_error_of_the_host_is_shown(tree: Path, there: Path) -> None:
    machine = Machine(said="terrafirma: cannot take: No space left on device")
    assert upload(machine, tree, there) == (False, [f"[web1] {machine.said}"])
    assert machine.asked == ["have", "take"]


def test_an_error_here_is_shown_instead_of_the_host_s(tree: Path, there: Path) -> None:
    said = upload(Machine(), tree, there, dest=str(there / ("a" * 64)))
    assert said == (False, ["[web1] source was changed during its upload: run it again"])


def test_a_connection_that_breaks_is_one_line(tree: Path, there: Path) -> None:
    def run(command: Any, **more: Any) -> tuple[bool, CommandOutput]:
        if more.get("_stdin"):
            raise OSError("Socket is closed")
        return True, CommandOutput([])

    machine = SimpleNamespace(run_shell_command=run, data={}, print_prefix="")
    words = "the connection broke during the upload (Socket is closed): run it again"
    assert upload(machine, tree, there) == (False, [words])


# --- digests that are kept ------------------------------------------------------------------------


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is a minute ahead, so that files count as old."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 60 * 10**9)


@pytest.mark.usefixtures("old")
def test_files_are_read_once(tree: Path, reads: list[str]) -> None:
    before = tree_digest(tree)
    assert len(reads) == 5
    reads.clear()
    assert tree_digest(tree) == before
    assert reads == []
    rewrite(tree)
    assert tree_digest(tree) != before
    assert reads == ["z.txt"]
    assert sources.tree_digest(tree) == tree_digest(tree)


@pytest.mark.usefixtures("old")
def test_a_file_that_pretends_to_be_old_is_read(tree: Path, reads: list[str]) -> None:
    state = (tree / "run").stat()
    before = tree_digest(tree)
    text = (tree / "run").read_text()
    time.sleep(0.02)
    (tree / "run").write_text(text[::-1])
    os.utime(tree / "run", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (tree / "run").stat().st_size == state.st_size
    assert tree_digest(tree) != before


def test_a_file_that_was_just_written_is_read_again(tree: Path, reads: list[str]) -> None:
    """Within a tick of the clock, a second change would leave the same time."""
    tree_digest(tree)
    reads.clear()
    tree_digest(tree)
    assert len(reads) == 5


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("how", ["no JSON", "a list", "another form", "another user's"])
def test_kept_digests_that_are_none(tree: Path, reads: list[str], how: str) -> None:
    before = tree_digest(tree)
    (kept,) = cache.directory("sources").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    wrong = {name: [*state[:4], "0" * 64] for name, state in json.loads(kept.read_text()).items()}
    content = {"no JSON": "{", "a list": "[1]", "another form": '{"run": [1]}'}
    kept.write_text(content.get(how, json.dumps(wrong)))
    if how == "another user's":
        kept.chmod(0o666)
    reads.clear()
    assert tree_digest(tree) == before
    assert len(reads) == 5


@pytest.mark.usefixtures("old")
def test_digests_of_another_owner_are_none(
    tree: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree_digest(tree)
    (kept,) = cache.directory("sources").iterdir()
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    reads.clear()
    tree_digest(tree)
    assert len(reads) == 5
    assert kept.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("old", "reads")
def test_runs_at_the_same_time_leave_one_whole_file(tree: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = {*pool.map(lambda _: tree_digest(tree), range(40))}
    assert found == {sources.tree_digest(tree)}
    (kept,) = cache.directory("sources").iterdir()
    assert len(cache.read(kept)) == 5


@pytest.mark.usefixtures("old")
def test_without_a_home_files_are_read(
    tree: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert tree_digest(tree) == tree_digest(tree)
    assert len(reads) == 10

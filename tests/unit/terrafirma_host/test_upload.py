"""A source that arrives with a deploy key: unpacked, or refused."""

import io
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from terrafirma_host import upload
from terrafirma_host.compose import Compose
from terrafirma_host.shell import Failed
from terrafirma_host.sources import tree_digest
from terrafirma_host.spec import Application

from terrafirma.app import hashes


def test_a_key_brings_no_other_compose_files(host: Path, app: Application) -> None:
    """The deploy decides what a container may do on the host."""

    def source(name: str, text: str) -> Path:
        directory = host / "opt" / "api" / "sources" / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "compose.yaml").write_text(text)
        return directory

    deploys = source("0123", "services: {api: {build: .}}\n")
    deployed = replace(app, source=str(deploys), compose=("compose.yaml",), automated=True)
    theirs = deployed.with_source(source("4567", "services: {api: {build: .}}\n"))
    upload.refuse_other_compose_files(deployed, theirs)
    # Root reads the deploy's files, also for later code, whatever happens to the sent ones.
    for brought in (theirs, theirs.with_source(source("cdef", ""))):
        assert Compose(brought).files() == [f"{deploys}/compose.yaml"]
    other = deployed.with_source(source("89ab", "include: [{path: x, env_file: /etc/shadow}]\n"))
    with pytest.raises(Failed, match="yaml, as it was sent, is not that of the deploy: run deploy"):
        upload.refuse_other_compose_files(deployed, other)
    assert not (host / "asked").exists()
    # Without compose files there is a Dockerfile only.
    upload.refuse_other_compose_files(app, app)
    # Without a key, old code has its own compose files.
    own = replace(deployed, automated=False).with_source(Path("/then"))
    assert Compose(own).files() == ["/then/compose.yaml"]


def tar(*members: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w:gz") -> io.BytesIO:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode=mode) as made:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                made.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            info.mode = 0o755 if member[0].endswith(".sh") else 0o644
            made.addfile(info, io.BytesIO(member[1]))
    archive.seek(0)
    return archive


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


DOCKERFILE = ("Dockerfile", b"FROM scratch\n")


def test_a_source_is_unpacked_once_under_the_name_of_its_content(app: Application) -> None:
    first = upload.unpack(app, tar(DOCKERFILE, ("bin/run.sh", b"#!/bin/sh\n"), ("ü", b"")))
    assert first == app.directory / "sources" / tree_digest(first)
    assert (first / "bin" / "run.sh").stat().st_mode & 0o100
    assert first.stat().st_mode & 0o777 == 0o700
    assert upload.unpack(app, tar(("ü", b""), ("bin/run.sh", b"#!/bin/sh\n"), DOCKERFILE)) == first
    other = upload.unpack(app, tar(DOCKERFILE))
    assert {one.name for one in first.parent.iterdir()} == {first.name, other.name}


def test_a_source_has_times_of_its_own(app: Application) -> None:
    """The builder takes a file with the same path, size and time for unchanged."""
    there = upload.unpack(app, tar(DOCKERFILE, ("bin/run.sh", b"x")))
    assert all(time.time() - path.stat().st_mtime < 60 for path in (there, *there.rglob("*")))


def test_a_source_may_have_names_that_are_no_text(app: Application) -> None:
    odd = special("latin-\udce9", tarfile.REGTYPE)
    assert upload.unpack(app, tar(DOCKERFILE, odd)).is_dir()


def test_a_source_has_the_files_that_the_deploy_would_upload(
    app: Application, tmp_path: Path
) -> None:
    """So the release of a commit is the same, whoever makes it."""
    members = (
        DOCKERFILE, (".dockerignore", b"*.log\ndocs\n!docs/a\n"), ("x.log", b"1"), ("a.py", b""),
        ("docs/a", b""), ("docs/b/c", b""), (".env", b"A=1"), (".env.example", b"A="),
    )  # fmt: skip
    there = upload.unpack(app, tar(*members))
    here = tmp_path / "here"
    with tarfile.open(fileobj=tar(*members)) as archive:
        archive.extractall(here, filter="data")
    assert hashes.tree_digest(here) == there.name
    names = {str(path.relative_to(there)) for path in there.rglob("*")}
    assert names == {"Dockerfile", ".dockerignore", "a.py", "docs", "docs/a", ".env.example"}


def test_a_dockerignore_that_is_sent_reads_no_file_of_the_host(
    app: Application, roots: Path
) -> None:
    link = special(".dockerignore", tarfile.SYMTYPE, "a/ignored")
    assert (upload.unpack(app, tar(DOCKERFILE, ("a/ignored", b"["), link)) / "a").is_dir()
    with pytest.raises(Failed, match=r"^\.dockerignore: line 1: '\[' is no pattern"):
        upload.unpack(app, tar(DOCKERFILE, (".dockerignore", b"[")))


HOSTILE: dict[str, Callable[[], io.BytesIO]] = {
    "nothing": lambda: io.BytesIO(b""),
    "no gzip": lambda: io.BytesIO(b"x" * 2000),
    "no compression": lambda: tar(DOCKERFILE, mode="w"),
    "half": lambda: io.BytesIO(tar(DOCKERFILE, ("x", bytes(range(256)) * 99)).getvalue()[:-200]),
    "damage": lambda: io.BytesIO(tar(DOCKERFILE).getvalue()[:20] + b"\xff" * 90),
    "no Dockerfile": lambda: tar(("README.md", b"")),
    "a directory called Dockerfile": lambda: tar(("Dockerfile/x", b"")),
    "a way out": lambda: tar(DOCKERFILE, ("../../../canary", b"x")),
    "a link out": lambda: tar(DOCKERFILE, special("x", tarfile.SYMTYPE, "/etc/shadow")),
    "a hard link out": lambda: tar(DOCKERFILE, special("x", tarfile.LNKTYPE, "../../shadow")),
    "through a link": lambda: tar(
        DOCKERFILE, special("x", tarfile.SYMTYPE, "../.."), ("x/canary", b"x")
    ),
    "a device": lambda: tar(DOCKERFILE, special("x", tarfile.CHRTYPE)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_source_that_is_none_leaves_nothing(app: Application, roots: Path, kind: str) -> None:
    before = {path for path in roots.rglob("*") if "sources" not in path.parts}
    with pytest.raises(Failed, match=r"^the source (is no gzipped tar|that was sent has no file)"):
        upload.unpack(app, HOSTILE[kind]())
    assert list((app.directory / "sources").iterdir()) == []
    assert {path for path in roots.rglob("*") if "sources" not in path.parts} == before


def test_where_a_link_leads_is_a_part_of_the_content(app: Application) -> None:
    """A link to a directory, too; both sides name a source alike."""
    first, second = (
        upload.unpack(app, tar(DOCKERFILE, special("now", tarfile.SYMTYPE, where)))
        for where in ("v1", "v2")
    )
    assert first != second
    assert hashes.tree_digest(first) == first.name
    (first / "v1").mkdir()
    assert tree_digest(first) == hashes.tree_digest(first) == first.name


def test_a_link_may_lead_nowhere(app: Application) -> None:
    nowhere = special("a", tarfile.SYMTYPE, "generated/later")
    loop = special("b", tarfile.SYMTYPE, "b")
    assert (upload.unpack(app, tar(DOCKERFILE, nowhere, loop)) / "a").is_symlink()


def test_a_source_is_not_larger_than_it_may_be(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "LARGEST", 2**20)
    upload.unpack(app, tar(DOCKERFILE, ("a", bytes(2**19)), ("b", bytes(2**18))))
    negative = special("d", tarfile.DIRTYPE)
    negative.size = -(2**30)
    for members in (
        [("a", bytes(2**19)), ("c", bytes(2**19))],
        [negative, ("a", bytes(2**20))],
        # Empty files that still have a name each.
        [(f"{number}", b"") for number in range(300)],
    ):
        with pytest.raises(Failed, match="the source that was sent has more than 1 MB"):
            upload.unpack(app, tar(DOCKERFILE, *members))
    assert len(list((app.directory / "sources").iterdir())) == 1


def test_a_source_of_a_project_has_its_files(app: Application) -> None:
    project = replace(app, compose=("compose.yaml", "deploy/more.yaml"))
    with pytest.raises(Failed, match=r"has no file 'deploy/more.yaml'"):
        upload.unpack(project, tar(("compose.yaml", b"")))
    assert upload.unpack(project, tar(("compose.yaml", b""), ("deploy/more.yaml", b""))).is_dir()

"""How often a run looks at a source, and which files count before a build."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api import DeployError
from pyinfra.context import ctx_state
from terrafirma_host import sources

from terrafirma.app import check
from terrafirma.app.description import description, refuse_further_files, source_in
from terrafirma.app.early import early
from terrafirma.app.hashes import look, tree_digest
from terrafirma.app.preflight import refuse_project
from terrafirma.app.selection import refuse_unreadable, selection
from terrafirma.app.settings import Application
from terrafirma.app.source import Delivery
from tests.unit.settings import HOST, application, server

COMPOSE = """\
services:
  web:
    build: .
    env_file: web.vars
    volumes: ["./conf:/conf:ro", "./linked/one.cfg:/one.cfg:ro", "./data:/data", "./none:/none"]
"""
FILES = (
    *("Dockerfile", "web.vars", "conf/app.conf", "conf/more.conf", "real/one.cfg", "real/two.cfg"),
    *("src/a.py", "src/b.py", "src/deep/c.py", "data/.gitkeep", "ignored/deep/x", "ignored/y"),
)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    top = tmp_path / "shop"
    for name in FILES:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("A=1\n" if name == "web.vars" else f"{name}\n")
    (top / "linked").symlink_to("real")
    (top / ".dockerignore").write_text("ignored\n")
    (top / "compose.yaml").write_text(COMPOSE)
    return top


@pytest.fixture
def run() -> Iterator[None]:
    """The calls in the test belong to one run."""

    class State:
        pass

    with ctx_state.use(State()):
        yield
    ctx_state.reset()


def shop(source: Path) -> Application:
    data = {"source": str(source), "compose": ["compose.yaml"], "service": "web"}
    return application("shop", **data, shared=["data", "none"])


def prepared(app: Application) -> str:
    """What tasks/app.py does with a source before it changes anything; returns the digest."""
    refuse_unreadable(HOST, app)
    refuse_further_files(HOST, app, server().users)
    described = description(app, server().users)
    refuse_project(HOST, app, described)
    return Path(source_in(described)).name


@pytest.fixture
def seen(source: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each directory of the source is listed, and each file read for its digest."""
    found: Counter[str] = Counter()
    plain, plain_sha256 = os.scandir, sources.sha256

    def scandir(path: Any = ".") -> Any:
        if not isinstance(path, int) and Path(path).is_relative_to(source):
            found[f"list {Path(path).relative_to(source)}"] += 1
        return plain(path)

    def sha256(path: str, state: os.stat_result | None = None) -> str:
        found[f"read {Path(path).relative_to(source)}"] += 1
        return plain_sha256(path, state)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(sources, "sha256", sha256)
    return found


@pytest.mark.usefixtures("run")
@pytest.mark.promise(
    "A run walks through a source once, and neither lists nor reads what is ignored"
)
def test_a_run_looks_once(source: Path, seen: Counter[str]) -> None:
    app = shop(source)
    digest = prepared(app)
    # On a second host, and when it is sent.
    assert prepared(app) == digest
    sent = Delivery(look(app.source_directory, selection(app)), f"/sources/{digest}")
    assert b"".join(sent.stream())
    assert sent.trouble == ""
    directories = {
        "list .",
        *(f"list {name}" for name in ("conf", "data", "real", "src", "src/deep")),
    }
    files = {f"read {name}" for name in (*FILES, "compose.yaml", ".dockerignore")}
    assert seen.keys() == directories | {one for one in files if "ignored" not in one}
    assert {*seen.values()} == {1}


@pytest.mark.usefixtures("run")
def test_all_hosts_of_a_run_get_the_source_that_the_plan_shows(source: Path) -> None:
    before = tree_digest(source)
    (source / "new").write_text("later")
    assert tree_digest(source) == before
    ctx_state.reset()
    assert tree_digest(source) != before


def test_an_ignored_file_makes_no_other_source(source: Path) -> None:
    before = prepared(shop(source))
    (source / "ignored/y").write_text("changed")
    assert prepared(shop(source)) == before


CHANGES = {
    "src/a.py": 0,
    "conf/more.conf": 0,
    "src/new.py": 0,
    "src/new/new.py": 1,
    "web.vars": 1,
    "compose.yaml": 1,
    "none/.gitkeep": 1,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_project_is_read_again_only_if_what_counts_has_changed(
    source: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    read: list[str] = []

    real = check.examine

    def examine(app: Application, described: str) -> check.Report:
        read.append(described)
        return real(app, described)

    monkeypatch.setattr("terrafirma.app.check.examine", examine)
    before = prepared(shop(source))
    assert len(read) == 1
    (source / name).parent.mkdir(exist_ok=True)
    with (source / name).open("a") as file:
        file.write("# B\n")
    assert prepared(shop(source)) != before
    assert len(read) == 1 + CHANGES[name]


@pytest.mark.parametrize("text", [COMPOSE, COMPOSE.replace("./conf", "${CONF}/conf")])
def test_few_files_decide_and_the_project_is_the_same(
    source: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (source / "compose.yaml").write_text(text)
    app = shop(source)
    found = early(app)
    if "${" in text:
        assert {one.path for one in found.read} == look(source, selection(app)).uploaded
    else:
        assert {one.path for one in found.read} == {
            *(".dockerignore", "Dockerfile", "compose.yaml", "web.vars", "linked", "real/one.cfg")
        }
        assert found.there == ["conf/app.conf", "data/.gitkeep", "src/a.py", "src/deep/c.py"]
    described = description(app, server().users)
    few = check.examine(app, described)
    everything = early(app).__class__(look(source, selection(app)).entries, [])
    monkeypatch.setattr("terrafirma.app.laptop.early", lambda _: everything)
    whole = check.examine(app, described)
    assert (few.refusals, few.lines) == (whole.refusals, whole.lines)


def test_a_compose_file_may_be_long(source: Path) -> None:
    (source / "compose.yaml").write_text(f"{COMPOSE}# {'x' * 2**19}\n")
    assert prepared(shop(source))


def test_a_variable_of_env_file_decides_too(source: Path) -> None:
    variables = source.with_name("shop.env")
    (source / "compose.yaml").write_text(f"{COMPOSE}    mem_limit: ${{MEMORY}}\n")
    data = {"source": str(source), "compose": ["compose.yaml"], "service": "web"}
    app = application("shop", **data, shared=["data", "none"], env_file=[str(variables)])
    variables.write_text("MEMORY=64m\n")
    prepared(app)
    variables.write_text("MEMORY=much\n")
    with pytest.raises(DeployError, match="much"):
        prepared(app)


@pytest.mark.parametrize(
    "text", ["include: [base]", "include: [{path: [base]}]",
             "services: {web: {extends: {file: base, service: web}}}"]
)  # fmt: skip
def test_a_compose_file_may_have_any_name(source: Path, text: str) -> None:
    """What it names is there before a build, too."""
    (source / "base").write_text(COMPOSE)
    (source / "compose.yaml").write_text(text)
    assert {"web.vars", "real/one.cfg"} <= {one.path for one in early(shop(source)).read}


def test_without_compose_files_the_dockerfile_decides(source: Path) -> None:
    app = application("shop", source=str(source))
    assert {one.path for one in early(app).read} == {
        *(".dockerignore", "Dockerfile", "compose.yaml", "linked")
    }
    assert early(app).there == []

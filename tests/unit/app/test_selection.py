"""Which files of a source are uploaded, and make another release."""

import os
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api import DeployError
from terrafirma_host import sources
from terrafirma_host.sources import Selection

from terrafirma.app.description import uploaded_source
from terrafirma.app.selection import refuse_unreadable, selection
from terrafirma.app.settings import Application
from tests.unit.settings import HOST, application

WEB = "services: {web: {build: .}}"


def source(tmp_path: Path, *names: str, **texts: str) -> Path:
    """A source with these empty files, and with `texts` by name (`_` is a dot at the beginning)."""
    directory = tmp_path / "source"
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    for name, text in texts.items():
        path = directory / name.replace("__", "/").replace("_dockerignore", ".dockerignore")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def project(directory: Path, **fields: Any) -> Application:
    (directory / "compose.yaml").touch()
    return application("web", source=str(directory), **{"compose": ["compose.yaml"], **fields})


def uploaded(app: Application) -> list[str]:
    return sources.files(app.source_directory, selection(app))


def with_dockerfile(directory: Path) -> Application:
    (directory / "Dockerfile").touch()
    return application(source=str(directory))


def test_a_dockerignore_decides(tmp_path: Path) -> None:
    app = with_dockerfile(
        source(
            tmp_path, "a.py", "logs/x.log", "data/big", "node_modules/x.js", ".env", ".git/HEAD",
            ".venv/x", "__pycache__/a.pyc", ".mypy_cache/x", ".env.example", "a/.env.local",
            "web/.env.production.sample", _dockerignore="logs\ndata/*\n!data/small\nDockerfile\n",
        )
    )  # fmt: skip
    (app.source_directory / "data" / "small").touch()
    # The builder reads the Dockerfile and .dockerignore itself.
    known = [".dockerignore", ".env.example", "Dockerfile", "a.py", "data/small",
             "node_modules/x.js", "web/.env.production.sample"]  # fmt: skip
    assert uploaded(app) == known
    (app.source_directory / ".dockerignore").unlink()
    without = {*known, "logs/x.log", "data/big"} - {".dockerignore", "node_modules/x.js"}
    assert {*uploaded(app)} == without


@pytest.mark.promise("A change of a file that .dockerignore names makes no release")
def test_an_ignored_file_makes_no_release(tmp_path: Path) -> None:
    directory = source(tmp_path, "a.py", "log", _dockerignore="log\n")
    app = with_dockerfile(directory)
    before = uploaded_source(app)
    (directory / "log").write_text("a line\n")
    (directory / ".env").write_text("A=1\n")
    assert uploaded_source(app) == before
    (directory / "a.py").write_text("\n")
    assert uploaded_source(app) != before


def test_an_exception_that_names_a_private_file_brings_it(tmp_path: Path) -> None:
    directory = source(tmp_path, ".git/HEAD", ".env", "a/.env", "a/b.py",
                       _dockerignore="*\n!.git\n!a\n")  # fmt: skip
    # `!a` is about a directory, and says nothing about the secrets in it.
    assert uploaded(with_dockerfile(directory)) == [
        ".dockerignore", ".git/HEAD", "Dockerfile", "a/b.py",
    ]  # fmt: skip


def test_a_file_beside_the_dockerfile_counts_instead(tmp_path: Path) -> None:
    directory = source(tmp_path, "a", "b", _dockerignore="a\n")
    (directory / "Dockerfile.dockerignore").write_text("b\n")
    assert uploaded(with_dockerfile(directory)) == [
        ".dockerignore", "Dockerfile", "Dockerfile.dockerignore", "a",
    ]  # fmt: skip


# A compose file, further files, and what is left out of those.
PROJECTS: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "one directory": (WEB, {".dockerignore": "x\n", "x": "", "y": ""}, ["x"]),
    "one directory in long words": (
        "services: {web: {build: {context: ./api}}}",
        {"api/.dockerignore": "x\n", "api/x": "", "x": ""},
        ["api/x"],
    ),
    "a directory in a directory that ignores it": (
        "services: {web: {build: .}, jobs: {build: {context: jobs}}}",
        {".dockerignore": "jobs\nx\n", "jobs/x": "", "jobs/y": "", "jobs/.dockerignore": "y\n",
         "jobs/Dockerfile": "", "x": ""},
        ["jobs/y", "x"],
    ),
    "a file that another build needs": (
        "services: {web: {build: .}, jobs: {build: {context: ., dockerfile: j.Dockerfile}}}",
        {".dockerignore": "x\ny\n", "j.Dockerfile.dockerignore": "y\n", "x": "", "y": "",
         "j.Dockerfile": ""},
        ["y"],
    ),
    "files that compose files name": (
        "services: {web: {build: ., volumes: ['./nginx/a.conf:/a:ro', {type: bind, source: conf, "
        "target: /b}], env_file: [a.env], security_opt: ['seccomp:./p.json'], extends: {file: "
        "base.yml, service: x}}}\nconfigs: {c: {file: ./c.txt}}\ninclude: [more/compose.yaml]",
        {".dockerignore": "*\n", "nginx/a.conf": "", "nginx/b.conf": "", "conf/x/y": "",
         "a.env": "", "p.json": "", "base.yml": "", "c.txt": "", "more/compose.yaml": "", "z": ""},
        ["nginx/b.conf", "z"],
    ),
    "a directory of an included file": (
        "include: [more/compose.yaml]\n" + WEB,
        {".dockerignore": "more\n", "more/compose.yaml": "services: {x: {build: ./x}}",
         "more/x/y": "", "more/x/z": "", "more/x/.dockerignore": "z\n", "more/a": ""},
        ["more/a", "more/x/z"],
    ),
    "a mount of everything": (
        "services: {web: {build: ., volumes: ['.:/app']}}",
        {".dockerignore": "x\n", "x": "", "y": ""},
        ["x"],
    ),
    "a directory of a variable": (
        "services: {web: {build: {context: '${WHERE}'}}}",
        {".dockerignore": "x\n", "x": "", "api/.dockerignore": "x\n", "api/x": ""},
        [],
    ),
    "… with a default": (
        "services: {web: {build: {context: '${WHERE:-./api}'}}}",
        {".dockerignore": "x\n", "x": "", "api/.dockerignore": "x\n", "api/x": ""},
        ["api/x"],
    ),
    "a repository": (
        "services: {web: {build: 'https://example.com/x.git'}}",
        {".dockerignore": "x\n", "x": ""},
        [],
    ),
    "a further directory of a build": (
        "services: {web: {build: {context: api, additional_contexts: {lib: ./lib}}}}",
        {"lib/.dockerignore": "x\n", "lib/x": "", "lib/y": "", "api/z": ""},
        ["lib/x"],
    ),
    "a volume is no directory": (
        "services: {web: {build: ., volumes: ['data:/data']}}\nvolumes: {data: }",
        {".dockerignore": "data\n", "data/x": ""},
        ["data/x"],
    ),
    "no YAML": ("services: {", {".dockerignore": "x\n", "x": ""}, []),
}  # fmt: skip


@pytest.mark.parametrize("what", PROJECTS)
def test_the_files_of_a_project(tmp_path: Path, what: str) -> None:
    text, files, out = PROJECTS[what]
    directory = source(tmp_path, *files)
    for name, content in files.items():
        (directory / name).write_text(content)
    app = project(directory)
    (directory / "compose.yaml").write_text(text)
    assert {*files, "compose.yaml"} - {*uploaded(app)} == {*out}
    # Both sides use the same description.
    assert Selection.of(selection(app).as_json()) == selection(app)


REFUSED: dict[str, tuple[str, str]] = {
    "a pattern": ("x\n[\n", ".dockerignore: line 2: '[' is no pattern"),
    "an exclamation mark": ("!\n", ".dockerignore: line 1: '!' alone"),
    "a long one": ("# long\n" * 2**18, ".dockerignore: more than 1 MB"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_dockerignore_that_is_refused(tmp_path: Path, what: str) -> None:
    text, words = REFUSED[what]
    app = with_dockerfile(source(tmp_path, _dockerignore=text))
    with pytest.raises(DeployError) as refused:
        refuse_unreadable(HOST, app)
    assert str(refused.value).startswith(f"db1: apps.api.source: {words}")


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source with a file and a directory that only another user may read."""
    directory = source(tmp_path, "a/closed", "b/closed/x", "Dockerfile")
    if os.geteuid():
        (directory / "a/closed").chmod(0)
        (directory / "b/closed").chmod(0)
        return directory
    opening, scanning = os.open, os.scandir

    def shut(path: Any) -> None:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))

    def opened(path: Any, *args: Any, **more: Any) -> Any:
        shut(path)
        return opening(path, *args, **more)

    def scanned(path: Any) -> Any:
        shut(path)
        return scanning(path)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "scandir", scanned)
    return directory


@pytest.mark.parametrize(
    ("ignore", "words"),
    [
        ("b\n", "a/closed: Permission denied: make it readable, or name it in .dockerignore"),
        ("a\n", "b/closed: Permission denied: make it readable, or name it in .dockerignore"),
        ("a\nb\n", ""),
        # An exception might be in there, but what cannot be seen is none.
        ("a\nb\n!**/y\n", ""),
    ],
)
def test_what_cannot_be_read_is_one_line(closed: Path, ignore: str, words: str) -> None:
    (closed / ".dockerignore").write_text(ignore)
    app = application(source=str(closed))
    if not words:
        refuse_unreadable(HOST, app)
        return
    with pytest.raises(DeployError) as refused:
        refuse_unreadable(HOST, app)
    assert str(refused.value) == f"db1: apps.api.source: {words}"

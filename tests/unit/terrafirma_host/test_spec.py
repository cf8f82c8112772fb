"""The description of an application, and the records of its releases."""

import inspect
import json
import os
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyinfra.api import DeployError
from terrafirma_host import sources, spec
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application, Release, Serving, identity, known_releases, make_key

from terrafirma.app import hashes
from terrafirma.app.description import description, refuse_further_files, revision, uploaded_source
from terrafirma.users.settings import Users
from tests.conftest import ROOT
from tests.unit.settings import API, KEY, application, entry, of, server
from tests.unit.terrafirma_host.applications import described, records

# --- the description ------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "source": {},
    "image": {
        "source": "",
        "image": "registry.acme.com/api:1",
        "registries": {"registry.acme.com:5000": {"user": "ci", "password": "command:pass x"}},
    },
    "compose": {
        "source": "examples/compose",
        "compose": ["compose.yaml"],
        "user": "",
        "service": "web",
        "stateful": ["redis"],
        "migrate": ["migrate"],
        "secrets": {"token": "env:S3CRET", "other": "command:echo s3cret", "key": "generated"},
    },
    "another": entry("web", secrets={"token": "env:S3CRET"}),
}


def told(fields: dict[str, Any], **data: Any) -> dict[str, Any]:
    """The description of an application with these fields."""
    placed = server(apps={"api": API | fields}, **data).with_ports({})
    (app,) = placed.apps
    answer: dict[str, Any] = json.loads(description(app, placed.users))
    return answer


@pytest.mark.parametrize("kind", KINDS)
def test_a_description_has_all_fields_of_the_program_and_no_others(kind: str) -> None:
    data = told(KINDS[kind])
    assert data.pop("managed by Terrafirma") == "tasks/app.py"
    app = Application.of(data)
    for name in data:
        value = getattr(app, name)
        assert value == (tuple(data[name]) if isinstance(value, tuple) else data[name])
    with pytest.raises(Failed, match=r"for another version \(compose_in\): run deploy.py"):
        Application.of(data | {"compose_in": "/etc"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_description_has_no_secret(kind: str) -> None:
    """Not even the source of a secret, which only concerns the machine that deploys."""
    text = json.dumps(told(KINDS[kind]))
    assert "s3cret" not in text.lower()
    assert not re.search(r"\b(env|command):|generated", text)


def test_a_description_names_the_files_of_secrets() -> None:
    directory = "/etc/terrafirma/secrets/app/api"
    assert told({})["secrets"] == {"database_url": f"{directory}/database_url"}
    assert told({"databases": ["stats"]})["secrets"] == {
        name: f"{directory}/{name}" for name in ("database_url", "database_url_stats")
    }
    assert told({"database": ""})["secrets"] == {}
    password = f"{directory}/.registry_registry.acme.com_5000"
    assert told(KINDS["image"])["registries"] == {
        "registry.acme.com:5000": {"user": "ci", "password": password}
    }
    assert told({})["registries"] == {}
    names = ("token", "other", "key", "database_url")
    assert told(KINDS["compose"])["secrets"] == {name: f"{directory}/{name}" for name in names}


def test_the_service_is_called_like_the_application_if_nothing_else_is_said() -> None:
    assert told({})["service"] == "api"
    assert told(KINDS["compose"])["service"] == "web"


def test_variables_are_text_as_programs_read_it() -> None:
    values = {"A": True, "B": False, "C": 7, "D": 0.5, "E": "True", "F": "$x"}
    assert told({"env": values})["env"] == {
        "A": "true",
        "B": "false",
        "C": "7",
        "D": "0.5",
        "E": "True",
        "F": "$x",
    }


@pytest.mark.parametrize(("released", "automated"), [(["api"], True), (["web"], False)])
def test_an_application_with_a_deploy_key_is_automated(
    released: list[str], automated: bool
) -> None:
    accounts = [{"name": "ci", "keys": [KEY], "releases": released}, {"name": "dev"}]
    assert told({}, users_accounts=accounts)["automated"] is automated
    assert told({}, users_accounts=[{"name": "dev"}])["automated"] is False


# The guarded path; the page that a release requests through Caddy, "" for the health path;
# whether Caddy's own answer there counts, too.
@pytest.mark.parametrize(
    ("guard", "smoke", "guarded"),
    [
        ("/admin/*", "/admin/up", True),
        ("/admin/*", "/admin", True),
        ("/up", "/hello", False),
        ("/up", "", True),
        ("/*", "", True),
        ("/admin/*", "/hello", False),
        ("/admin/*", "", False),
    ],
)
def test_a_page_behind_a_guard_is_known_as_such(guard: str, smoke: str, guarded: bool) -> None:
    guards = [{"path": guard, "allow": ["10.0.0.0/8"]}]
    data = {"guards": guards, "health_path": "/up", "smoke_path": smoke}
    assert told(data)["guarded"] is guarded
    assert told(data | {"guards": []})["guarded"] is False


def test_a_source_is_named_after_its_content() -> None:
    digest = hashes.tree_digest(ROOT / "examples" / "api")
    assert uploaded_source(application()) == f"/opt/terrafirma/api/sources/{digest}"
    assert uploaded_source(application(source="", image="api:1")) == ""


def test_a_description_of_another_version_is_refused() -> None:
    data = told({})
    for other in (data | {"more": 1}, {key: data[key] for key in data if key != "keep"}):
        with pytest.raises(Failed, match=r"api is described for another version \((more|keep)\)"):
            Application.of(other)


def test_an_application_is_found_by_its_name(roots: Path) -> None:
    (roots / "apps" / "api.json").write_text(json.dumps(told({})))
    (roots / "apps" / "web.json").write_text("{}")
    assert Application.load("api") == described()
    assert spec.names() == ["api", "web"]
    with pytest.raises(Failed, match="there is no application 'shop'; there are: api, web"):
        Application.load("shop")
    (roots / "secret.json").write_text(json.dumps(told({})))
    for name in ("../secret", "", "Api", "a b", "-n", "api.json", "api\n", "a" * 63):
        with pytest.raises(Failed, match=r"is no application; there are: api, web"):
            Application.load(name)


def test_the_account_of_the_containers() -> None:
    assert replace(described(), user="").owner() == ""
    assert replace(described(), user="root").owner() == "0:0"
    with pytest.raises(Failed, match=r"no account 'nobody-here'; run tasks/users.py"):
        replace(described(), user="nobody-here").owner()


def test_a_secret_that_is_missing_is_named(app: Application) -> None:
    assert app.values() == {"database_url": "postgresql://s3cret\n"}
    missing = replace(app, secrets={**app.secrets, "token": "/no/where/token"})
    with pytest.raises(Failed, match=r"the secret /no/where/token is missing; run deploy.py"):
        missing.values()


# --- what makes a release -------------------------------------------------------------------------


def test_an_identity_stays(roots: Path) -> None:
    # Asking for an identity writes nothing, as in a dry run.
    with pytest.raises(Failed, match="no release yet"):
        identity("code")
    make_key()
    first = identity("code", "settings", "secrets")
    assert re.fullmatch(r"[0-9a-f]{12}", first)
    assert identity("code", "settings", "secrets") == first
    assert (roots / "secrets" / "release-key").stat().st_mode & 0o777 == 0o600


def test_an_identity_changes_with_each_part_and_is_of_no_other_parts(roots: Path) -> None:
    make_key()
    several = [
        *(("a", "b", "c"), ("x", "b", "c"), ("a", "x", "c"), ("a", "b", "x"), ("b", "a", "c")),
        # The same text, split elsewhere.
        *(("ab", "c"), ("abc",), ("a", "bc"), ("", "abc"), ("abc", ""), ("a", "", "bc")),
        *(("1:a1:b", "c"), ("a1:b", "c"), ("a", "b1:c"), (), ("",), ("é", "x"), ("éx",)),
    ]
    assert len({identity(*parts) for parts in several}) == len(several)


def test_an_identity_is_of_one_host_alone(roots: Path) -> None:
    """A reader of the identity cannot test guesses of a secret."""
    make_key()
    here = identity("code", "secret")
    make_key()
    assert identity("code", "secret") == here
    (roots / "secrets" / "release-key").unlink()
    make_key()
    assert identity("code", "secret") != here


# --- sources --------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    names = [
        *("Dockerfile", "b.txt", "a/z.txt", "a/b/c.txt", "a.txt", "a-b/x", "ünï/code \N{SNOWMAN}"),
        *("-n", "a b", "a|True|x", ".hidden/file", os.fsdecode(b"latin-\xe9")),
    ]
    tree = tmp_path / "tree"
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name, errors="surrogateescape")
    (tree / "a.txt").chmod(0o755)
    (tree / "b.txt").chmod(0o711)
    (tree / "a" / "z.txt").chmod(0o654)
    (tree / "empty").mkdir()
    (tree / "link").symlink_to("a.txt")
    (tree / "dangling").symlink_to("nowhere")
    return tree


def test_both_sides_name_a_source_alike(tree: Path) -> None:
    digests = set()
    for change in (
        lambda: None,
        lambda: (tree / "b.txt").chmod(0o600),
        lambda: (tree / "-n").write_text("other"),
        lambda: (tree / "a b").rename(tree / "a c"),
        lambda: (tree / "a" / "b" / "c.txt").unlink(),
    ):
        change()
        digest = sources.tree_digest(tree)
        assert digest == hashes.tree_digest(tree)
        digests.add(digest)
    assert len(digests) == 5


def test_a_revision_is_the_commit_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    assert revision(tmp_path / "nowhere") == ""
    said = revision(ROOT / "examples" / "api")
    assert said == "" or re.fullmatch(r"[0-9a-f]{40}\+?", said)


# --- records --------------------------------------------------------------------------------------


def test_a_release_is_read_as_it_was_written(app: Application) -> None:
    made = records(app, "0123456789ab", pulled=("a", "b"), revision="abc+", withdrawn=True)
    assert Release.load(app, "0123456789ab") == made
    assert Release.load(app, "ba9876543210") is None
    path = app.releases / "0123456789ab.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in app.releases.iterdir()] == [path.name]


def test_releases_come_with_the_newest_first(app: Application) -> None:
    assert known_releases(app) == []
    for number, release in ((3, "c"), (1, "a"), (2, "b"), (2, "bb")):
        records(app, release, at=f"2026-01-0{number}T00:00:00.000Z")
    assert [one.id for one in known_releases(app)] == ["c", "bb", "b", "a"]


def test_serving_json_is_read_as_it_was_written(app: Application) -> None:
    assert Serving.load(app) is None
    for serving in (
        Serving("0123456789ab", "blue", 4, 8000),
        Serving("ba9876543210", "green", 1, 8064),
    ):
        serving.save(app)
        assert Serving.load(app) == serving
    assert [one.name for one in app.directory.iterdir()] == ["serving.json"]


def test_the_history_has_its_newest_line_first(app: Application) -> None:
    assert spec.history(app) == []
    spec.append_history(app, "release", "a", "abc", "me")
    spec.append_history(app, "rollback", "b", "", 'it\'s "me"\nand you')
    newest, oldest = spec.history(app)
    assert (newest["action"], newest["release"]) == ("rollback", "b")
    assert newest["by"] == 'it\'s "me"\nand you'
    assert (oldest["revision"], oldest["by"]) == ("abc", "me")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", newest["at"])


@pytest.mark.parametrize("torn", ['{"at": "2026-01-31T12:', '{"at": "2026", "by": "a}', "\0\0\0"])
def test_a_line_that_a_full_disk_cut_short_costs_no_other(app: Application, torn: str) -> None:
    spec.append_history(app, "release", "a", "", "me")
    with (app.directory / "history.jsonl").open("a") as history:
        history.write(torn)
    assert [one["release"] for one in spec.history(app)] == ["a"]
    spec.append_history(app, "release", "b", "", "me")
    assert [one["release"] for one in spec.history(app)] == ["b", "a"]


def test_the_host_needs_no_package_of_ours() -> None:
    """It has Python 3.11 and nothing else."""
    for module in (ROOT / "files" / "terrafirma_host").glob("*.py"):
        imported = re.findall(r"^(?:from|import) (\w+)", module.read_text(), re.MULTILINE)
        assert {"pyinfra", "pydantic", "terrafirma", "yaml"}.isdisjoint(imported), module
    assert "terrafirma_host" in inspect.getsource(spec)


FURTHER = {
    "services: {web: {build: .}}": "",
    "services: {web: {extends: base}, base: {build: .}}": "",
    "services: {web: {extends: {service: base}}, base: {build: .}}": "",
    # A service may have that name.
    "services: {include: {build: .}}": "",
    "services: {web: {ports: !reset []}}": "",
    "": "",
    "include: [more.yaml]": "include",
    '{"include": ["more.yaml"]}': "include",
    "services: {web: {extends: {file: more.yaml, service: base}}}": "extends",
    "x-base: &base {file: m.yaml, service: b}\nservices: {w: {extends: *base}}": "extends",
    "x-base: &base {file: m.yaml}\nservices: {w: {extends: {<<: *base, service: b}}}": "extends",
    "x-more: &more {include: [m.yaml]}\n<<: *more": "include",
    "x-more: &more {include: [m.yaml]}\n<<: [*more]": "include",
    "x-more: {include: [m.yaml]}": "",
    "x-all: &all {extends: {file: m.yaml}}\nservices: {w: {<<: *all}}": "extends",
}


@pytest.mark.parametrize("text", FURTHER)
def test_with_a_key_no_compose_file_reads_others(tmp_path: Path, text: str) -> None:
    """The key could send those files: root would read them, and the files that they name."""
    (tmp_path / "compose.yaml").write_text(text)
    app = application("web", source=str(tmp_path), compose=["compose.yaml"])
    account = {"name": "ci", "keys": [KEY], "releases": [app.name]}
    host: Any = SimpleNamespace(name="web1")
    refuse_further_files(host, app, of(Users))
    with ExitStack() as stack:
        if FURTHER[text]:
            words = rf"^web1: apps.web.compose: compose.yaml reads .* \({FURTHER[text]}\), which"
            stack.enter_context(pytest.raises(DeployError, match=words))
        refuse_further_files(host, app, of(Users, users_accounts=[account]))


def test_a_compose_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {")
    app = application("web", source=str(tmp_path), compose=["compose.yaml"])
    account = {"name": "ci", "keys": [KEY], "releases": [app.name]}
    host: Any = SimpleNamespace(name="web1")
    with pytest.raises(
        DeployError, match=r"^web1: apps.web.compose: compose.yaml is not YAML: [^\n]*$"
    ):
        refuse_further_files(host, app, of(Users, users_accounts=[account]))

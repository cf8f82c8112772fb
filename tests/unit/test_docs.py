"""The tables of the manual agree with the tests and the code."""

import re
import runpy
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from docs import generated
from docs.settings import reference, schema_of, words
from terrafirma.app.settings import Application
from terrafirma.arguments import ARGUMENTS
from terrafirma.host.facts import HardwareState
from terrafirma.postgres.tuning import Hardware, huge_pages, tune
from terrafirma.rules import RULES, enough_hardware
from terrafirma.server import SECTIONS, Server
from terrafirma.settings import Refused
from tests.conftest import ROOT
from tests.e2e.databases import LOGINS, RIGHTS

POSTGRES = (ROOT / "docs/tasks/postgres.md").read_text()
GB = 1024 * 1024  # kB


def table(text: str, first: str) -> list[list[str]]:
    """The rows below the head that begins with the column `first`, without the marks of code."""
    _, _, after = text.partition(f"\n| {first} |")
    lines = after.split("\n\n", 1)[0].splitlines()[2:]
    assert lines, first
    return [[cell.strip().strip("`").strip() for cell in one.strip("|").split(" | ")]
            for one in lines]  # fmt: skip


def test_the_rights_of_the_manual_are_those_that_are_tried() -> None:
    assert table(POSTGRES, "Role | Database") == [list(right) for right in RIGHTS]


def test_the_logins_of_the_manual_are_those_that_are_tried() -> None:
    shown = [[cell.replace("`", "") for cell in row] for row in table(POSTGRES, "From")]
    assert shown == [[cell.replace("`", "") for cell in login] for login in LOGINS]


HARDWARE = {
    column: Hardware(memory=gb * GB, cores=cores, ssd=True)
    for column, (gb, cores) in enumerate(((2, 2), (8, 4), (32, 16), (128, 64)), 1)
}


def test_the_values_of_the_manual_are_those_of_the_code() -> None:
    rows = table(POSTGRES, "Setting")
    assert [row[0] for row in rows] == [
        *tune(HARDWARE[1], max_connections=100, version=17), "vm.nr_hugepages",
    ]  # fmt: skip
    for column, hardware in HARDWARE.items():
        tuned = tune(hardware, max_connections=100, version=17)
        wanted = [setting.value for setting in tuned.values()]
        wanted.append(str(huge_pages(hardware) or "none"))
        assert [row[column] for row in rows] == wanted
    # Each value has a reason.
    assert all(len(row) == 6 and len(row[5]) > 20 for row in rows), rows


DEFAULTS = {
    key: value
    for key, value in runpy.run_path(str(ROOT / "group_data/all.py")).items()
    if not key.startswith("__") and not callable(value)
}
API = {"source": "examples/api", "domain": "api.your-startup.com", "database": "api"}
SHOP = API | {"domain": "shop.your-startup.com"}
PROJECT = SHOP | {"source": "examples/compose", "compose": ["compose.yaml"]}
PRIVATE = {"source": "", "image": "registry.example.com/team/api:1.2"}
LOGIN = {"user": "deploy", "password": "generated"}


def api(**fields: Any) -> dict[str, Any]:
    return {"apps": {"api": API | fields}}


def api_and_shop(api: Any = API, **fields: Any) -> dict[str, Any]:
    return {"apps": {"api": api, "shop": SHOP | fields}}


def refusal(**data: Any) -> str:
    try:
        server = Server.of("web1", DEFAULTS | data)
    except Refused as error:
        return str(error)
    return "; ".join(words for rule in RULES for words in rule(server))


@pytest.mark.parametrize(
    ("task", "data"),
    [
        ("app", api(source="../our-api")),
        ("app", api(**PRIVATE, compose=["compose.yaml"])),
        ("app", api(image="registry.example.com/team/api:1.2")),
        ("app", api_and_shop(source="")),
        ("app", api(source="", image="Registry/API")),
        ("app", api(stateful=["redis"])),
        ("app", api(image="api:1", source="", target="web")),
        ("app", api(dockerfile="docker/Dockerfile")),
        ("app", api(dockerfile="../Dockerfile")),
        ("app", api(volumes={"files": "/run/secrets/files"})),
        ("app", api(writable=["/app/tmp"], volumes={"tmp": "/app/tmp"})),
        ("app", api(registries={"ghcr.io": {"user": "deploy"}})),
        ("app", api(registries={"ghcr.io": LOGIN})),
        ("app", api(registries={"ghcr": LOGIN})),
        ("app", api(**PRIVATE, registry_user="deploy", registry_password="command:pass x")),
        ("app", api(secrets={"database_url": "generated"})),
        ("app", api(database="", role="api")),
        ("app", api(database="shop")),
        ("app", api(role="shop")),
        ("app", api_and_shop(API | {"port": 8000}, port=8100)),
        ("app", api(port=65500)),
        ("app", api(port=5400)),
        ("app", api(replicas=10)),
        ("app", api(scratch=["redis"])),
        ("app", {"apps": {"shop": PROJECT | {"stateful": ["redis"], "scratch": ["redis"]}}}),
        ("app", {"apps": {"shop": PROJECT | {"stateful": ["redis"], "leave_out": ["redis"]}}}),
        ("app", {"apps": {"shop": PROJECT | {"database": "", "database_replaces": "db"}}}),
        (
            "app",
            {
                "apps": {
                    "shop": PROJECT
                    | {
                        "database": "api",
                        "stateful": ["db"],
                        "database_replaces": "db",
                    }
                }
            },
        ),
        (
            "app",
            {"apps": {"shop": PROJECT | {"service": "web", "services": {"web": {"replicas": 2}}}}},
        ),
        ("app", api(redirects=["api.your-startup.com"])),
        ("app", api_and_shop(domain="api.your-startup.com")),
        ("app", api(replica=6)),
        ("app", {"apps.ap.replicas": 6}),
        ("app", {"app_replicas": 6}),
        ("apt", {"docker_version": "28."}),
        ("apt", {"docker_version": 28.1}),
        ("apt", {"apt_urls": {"nginx": "https://mirror.acme.com"}}),
        ("apt", {"apt_urls": {"docker": "mirror.acme.com"}}),
        ("apt", {"apt_urls": {"docker": "https://deploy:word@mirror.acme.com"}}),
        ("apt", {"apt_keys": {"docker": "keys/docker.asc"}}),
        ("apt", {"apt_proxy": "http://deploy:word@proxy:3128"}),
        ("caddy", api(domain="API.example.com")),
        ("pgbouncer", api(pgbouncer=True)),
        ("pgbouncer", {"pgbouncer_enabled": True, "pgbouncer_port": 5432}),
        ("pgbouncer", {"pgbouncer_enabled": True, "pgbouncer_port": 8000, **api(port=8000)}),
        ("postgres", api(replicas=8, connections=10)),
        ("postgres", {"postgres_roles": [{"name": "postgres"}]}),
        ("users", {"users_accounts": [{"name": "prod"}, {"name": "ci", "releases": ["apy"]}]}),
        ("secrets", api(secrets={"mail_password": "born"})),
    ],
)
def test_the_refusals_of_the_manual_are_those_of_the_code(task: str, data: dict[str, Any]) -> None:
    page = ROOT / ("docs/secrets.md" if task == "secrets" else f"docs/tasks/{task}.md")
    said = refusal(**data)
    assert said
    assert f"`{said}`" in " ".join(page.read_text().split())


def test_preflight_sums_up_as_the_manual_says() -> None:
    page = (ROOT / "docs/tasks/preflight.md").read_text()
    server = Server.of("web1", DEFAULTS | api(memory_mb=512, cpus=4))
    found = list(enough_hardware(server, HardwareState(memory=8 * GB, cores=2, ssd=True)))
    assert len(found) == 2
    for said in found:
        assert f"`{said}`" in page


@pytest.mark.parametrize("page", ["docs/operations.md", "docs/commands/postgres_drop.md"])
def test_no_page_restores_as_superuser(page: str) -> None:
    """A restore runs the functions of a dump as the user who restores."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    commands = [line for line in text.splitlines() if re.search(r"\bpg_restore\b.* --dbname", line)]
    assert commands
    for command in commands:
        assert "sudo" not in command
        for word in ("--host localhost", "--username", "--no-owner", "--no-privileges"):
            assert word in command


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the titles."""
    titles = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        file, _, anchor = re.sub(r"\s+", "", link).partition("#")
        if file.startswith("https:"):
            continue
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    folders = "commands|docs|files|group_data|tasks|templates|terrafirma|testbed|tests"
    # A contributor is going to write these files.
    to_come = {"tasks/thing.py", "docs/tasks/thing.md", "commands/verb.py", "docs/commands/verb.md"}
    named = set(re.findall(rf"(?<![\w./])(?:{folders})/[\w/]+\.(?:py|md|sh|j2)", page.read_text()))
    # Links start at the directory of the page.
    named = {name for name in named - to_come if not (page.parent / name).exists()}
    assert {name for name in named if not (ROOT / name).exists()} <= {"group_data/servers.py"}


@pytest.mark.parametrize("folder", ["tasks", "commands"])
def test_every_task_and_command_has_its_page(folder: str) -> None:
    pages = {page.stem for page in (ROOT / "docs" / folder).glob("*.md")}
    assert pages == {program.stem for program in (ROOT / folder).glob("*.py")}
    index = (ROOT / "docs/README.md").read_text()
    assert {page for page in pages if f"({folder}/{page}.md)" not in index} == set()


# --- the reference of the settings ----------------------------------------------------------------


def test_every_key_has_its_row() -> None:
    rows = {row[0]: row[1:] for line in reference().splitlines() if line.startswith("| `")
            for row in [line.strip("| ").split(" | ")]}  # fmt: skip
    keys = chain(
        (f"{section.prefix}_{name}" for section in SECTIONS for name in section.model_fields),
        (name for name in Application.model_fields if name != "name"),
        (name for model in ARGUMENTS for name in model.model_fields),
    )
    for key in keys:
        assert len(rows[f"`{key}`"]) == 3, key
        assert all(rows[f"`{key}`"]), key


def test_values_are_said_in_words() -> None:
    text = reference()
    assert "text that matches" not in text, "a pattern has no title"
    for row in (
        "| `pgbouncer_port` | `6432` | integer; 1024 to 65535 | Port on localhost and",
        "| `postgres_version` | `None` | integer; 15 to 30, or text like `17.5`, or `None` "
        "| Major version",
        '| `borg_directories` | `["/etc", "/home", "/opt", "/root", "/srv", "/var"]` '
        "| list of: absolute path; not empty | Directories to back up",
        '| `postgres_databases` | `[{"name": "api", "owner": "api"}]` | list of: [Database]',
        "| `replicas` | `4` | integer; 1 to 64 | Containers that run at once. |",
        "| `domain` | required | domain name in lower case | Domain under",
        '| `upgrade` | `""` or `"back"` or `"clean"` | Empty: upgrade to the version',
    ):
        assert row in text


def test_keys_in_a_row_share_the_comment_above_them() -> None:
    words = re.escape(
        "How many archives to keep; `borg_schedule` decides how many are made in a day."
    )
    for key in ("borg_keep_daily", "borg_keep_weekly", "borg_keep_monthly"):
        assert re.search(rf"\| `{key}` \| .* \| {words} \|", reference())


def test_a_pattern_without_words_is_shown() -> None:
    assert words({"type": "string", "pattern": "^a$"}) == "text that matches `^a$`"
    properties = schema_of(Application)["properties"]
    assert words(properties["static"]) == (
        "dictionary of: path that starts with `/`, perhaps with `*` at its end → absolute path"
    )


def test_a_stale_page_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "ROOT", tmp_path)
    stale = "page.md is stale: run `make docs`"

    def run(*arguments: str) -> str | None:
        monkeypatch.setattr(sys, "argv", ["docs/page.py", *arguments])
        return generated.write("page.md", "new")

    assert run("--check") == stale
    (tmp_path / "page.md").write_text("old")
    assert run("--check") == stale
    assert run("--chekc") == "--chekc: the only argument is --check"
    assert (tmp_path / "page.md").read_text() == "old"
    assert run() is None
    assert (tmp_path / "page.md").read_text() == "new"
    assert run("--check") is None

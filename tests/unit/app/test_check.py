"""What a check says about a project on this machine; Compose itself reads the files."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api import DeployError
from terrafirma_host.shell import Failed

from terrafirma.app import check as checks
from terrafirma.app import laptop, preflight
from terrafirma.app.check import Report, check
from terrafirma.app.description import description
from terrafirma.app.guess import settings_of
from tests.conftest import ROOT, Pyinfra
from tests.unit.fake_host import api, fake, machine
from tests.unit.settings import HOST, application, server

WEB = "services: {web: {build: .}}"
SHOP = """\
services:
  web:
    build: .
    ports: ["8000:8000", "9000:9000"]
    environment: {TOKEN: }
    volumes: ["./conf:/conf:ro"]
    depends_on: {setup: {condition: service_completed_successfully}}
  setup: {build: {context: ., dockerfile: setup.Dockerfile}, command: ["true"]}
  mail: {image: acme/mail, scale: 2}
  db: {image: "postgres:17", volumes: ["pg:/var/lib/postgresql/data"], ports: ["5432"]}
  tool: {image: acme/tool, profiles: [dev]}
volumes: {pg: }
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("Dockerfile", "setup.Dockerfile", "conf/app.conf"):
        (tmp_path / "Shop" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "Shop" / name).touch()
    return tmp_path / "Shop"


def checked(source: Path, text: str = "", **data: Any) -> Report:
    if not text:
        return check({"source": str(source), **data})
    (source / "compose.yaml").write_text(text)
    compose = {"compose": ["compose.yaml"], "service": "web", "user": ""}
    return check({"source": str(source), **compose, **data})


def test_a_directory_with_a_dockerfile(source: Path) -> None:
    report = checked(source)
    assert report.served
    assert report.refusals == []
    assert report.proposed == {"domain": "app.example.com"}
    assert report.lines[0] == "shop: https://app.example.com"


@pytest.mark.promise(
    "Without a server, a check says what would become of each service, volume, port and variable"
)
def test_a_page_about_a_project(source: Path) -> None:
    report = checked(source, SHOP, domain="shop.acme.com", stateful=["db"], env={"LEVEL": "info"})
    assert report.served
    # PostgreSQL of the project's own is not dumped by itself.
    assert report.proposed.keys() == {"services"}
    page = "\n".join(report.lines)
    for words in (
        "shop: https://shop.acme.com",
        "web    web: 4 replicas on port 8000",
        "setup  one-shot: each release runs it to its end (built from setup.Dockerfile)",
        "mail   worker: 2 containers, new with each release (acme/mail)",
        "db     stateful: one container, which no release recreates (postgres:17)",
        "tool   not started: profiles dev (acme/tool)",
        "pg      lasts as shop_pg: db writes /var/lib/postgresql/data",
        "./conf  in the source: web reads /conf",
        "web 8000:8000  https://shop.acme.com, through Caddy",
        "web 9000:9000  not published; other services reach it as web:9000",
        "LEVEL  from env",
        "TOKEN  nothing sets it; web would pass it on",
    ):
        assert words in page


def test_a_page_about_an_image() -> None:
    report = check(
        {
            "image": "acme/wiki:3",
            "strategy": "stop-first",
            "writable": ["/tmp/wiki"],
            "cron": {"tidy": {"schedule": "hourly", "command": ["wiki", "tidy"]}},
        }
    )
    page = "\n".join(report.lines)
    for words in (
        "wiki: https://app.example.com",
        "(acme/wiki:3)",
        "tidy  hourly: wiki tidy",
        "one instance runs: a release stops it before the new one starts",
        "/tmp/wiki: writable, and empty in each new container",
    ):
        assert words in page


def test_a_port_for_udp(source: Path) -> None:
    text = "services: {web: {build: ., ports: ['80:8000', '53:53/udp']}}"
    page = "\n".join(checked(source, text).lines)
    assert "web 53:53/udp  not published: nothing leads UDP from the internet to it" in page


def test_what_is_proposed_is_tried(source: Path) -> None:
    report = checked(source, SHOP.replace('image: "postgres:17"', "build: ."))
    assert not report.served
    (line,) = report.refusals
    assert line.startswith("apps.shop.stateful: db writes the volume pg (at /var/lib/")
    assert report.proposed == {"domain": "app.example.com", "stateful": ["db"]}
    assert report.left == []
    data = {"source": str(source), "compose": ["compose.yaml"], "service": "web", "user": ""}
    assert check(data | report.proposed).served


def test_a_project_with_many_directories(source: Path) -> None:
    """Six mounts, as Mattermost has them: the line is whole, and what it proposes is tried."""
    names = [f"volumes-app-mattermost-{number}" for number in range(6)]
    mounts = [f"./{name.replace('-', '/')}:/mattermost/{name}" for name in names]
    report = checked(source, f"services: {{web: {{build: ., volumes: {mounts}}}}}")
    (line,) = report.refusals
    assert f", {names[2]} (at /mattermost/{names[2]}) and 3 more, and two releases" in line
    assert f'"{names[5]}"]' in line
    assert report.proposed == {"domain": "app.example.com", "strategy": "stop-first"}
    assert report.left == []


def test_no_store_of_a_database_is_proposed_as_scratch(source: Path) -> None:
    """Two servers on one directory of data would destroy it."""
    report = checked(source, SHOP, shared=["pg"])
    assert "take pg out of shared" in report.refusals[0]
    assert report.proposed == {"domain": "app.example.com"}
    assert report.left == report.refusals


def test_a_field_of_a_service_is_proposed_beside_those_that_it_has(source: Path) -> None:
    """Grafana has a volume, and is to be public: two of it would write the volume."""
    own = "{image: grafana/grafana, volumes: ['gf:/data']}"
    text = f"services: {{web: {{build: .}}, g: {own}}}\nvolumes: {{gf: }}"
    services = {"g": {"path": "/g/*", "health_path": "/api/health"}}
    report = checked(source, text, services=services)
    assert report.proposed == {
        "domain": "app.example.com",
        "strategy": "stop-first",
        "services": {"g": {**services["g"], "replicas": 1}},
    }
    assert report.left == []


@pytest.mark.parametrize(
    ("text", "service"),
    [
        ("a: {image: redis, ports: ['6379:6379']}, b: {build: ., profiles: [x]}", "b"),
        ("dev: {build: ., profiles: [dev], ports: ['80:80']}, db: {image: postgres}", "dev"),
        ("db: {image: 'postgres:17', ports: ['5432:5432']}, cache: {image: redis}", None),
    ],
)  # fmt: skip
def test_no_database_is_proposed_to_serve(source: Path, text: str, service: str | None) -> None:
    report = checked(source, f"services: {{{text}}}")
    assert report.proposed.get("service") == service
    assert report.served is False


def test_a_directory_of_tools_has_no_project(source: Path) -> None:
    (source / ".devcontainer").mkdir()
    (source / ".devcontainer" / "compose.yaml").write_text(WEB)
    assert settings_of(str(source)) == {"source": str(source)}


def test_an_enormous_file_is_refused(source: Path) -> None:
    (report,) = checked(source, f"{WEB}\n# {'x' * 2**20}").refusals
    assert report == (
        "apps.shop.compose: 'compose.yaml' has more than 1 MB, which no compose file has"
    )


@pytest.mark.parametrize("source", ["x\0y", "x" * 5000, "\ud800", 10**5000], ids=range(4))
def test_a_source_that_is_no_path(source: Any) -> None:
    (line,) = check({"source": source, "domain": "a.test"}).refusals
    assert ".source: " in line


def test_several_faults_at_once(source: Path) -> None:
    text = """\
services:
  web: {build: ., environment: {A: $A}, volumes: ["../data:/data:ro"]}
  db: {build: ., secrets: [key], volumes: ["pg:/data"]}
volumes: {pg: }
secrets: {key: {file: key.txt}}
"""
    said = checked(source, text).refusals
    assert len(said) == 4
    for words in (
        "apps.shop.env: ${A} (compose.yaml, line 2, web) is not set",
        "apps.shop: compose.yaml, line 2: web: volumes: ../data is outside of the source",
        "apps.shop.secrets: key is the file key.txt, which is not on the host",
        "apps.shop.stateful: db writes the volume pg (at /data), and two releases run at once",
    ):
        assert any(line.startswith(words) for line in said), said


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"source": "no/where"}, "apps.where.source: 'no/where' is not a directory with a Docker"),
        ({"image": "acme/Web"}, "apps.web.image: 'acme/Web' is no image"),
        ({"domian": "x"}, "apps.app.domian: there is no such key, did you mean apps.app.domain?"),
        ({"name": 7}, "apps.7.name: "),
    ],
)
def test_mistakes_in_the_data(data: dict[str, Any], words: str) -> None:
    assert words in check(data).refusals[0]


def test_a_file_that_stays_here_counts_as_missing(source: Path) -> None:
    (source / ".env").write_text("A=1\n")
    report = checked(source, "services: {web: {build: ., env_file: .env}}")
    assert "env_file reads .env, which is not uploaded" in report.refusals[0]


def test_secrets_have_a_placeholder(source: Path) -> None:
    text = "services: {web: {build: ., environment: {KEY: '${TOKEN:?}', URL: $DATABASE_URL}}}"
    report = checked(
        source, text, secrets={"token": "generated"}, secrets_env=True, database="shop"
    )
    assert report.served
    assert "placeholder" not in "\n".join(report.lines)


# --- before a run ---------------------------------------------------------------------------------


def test_a_run_with_a_wrong_project_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (source / "compose.yaml").write_text(WEB.replace(".}", "., env_file: .env}"))
    app = application("shop", source=str(source), compose=["compose.yaml"], service="web")
    (source / ".env").write_text("TOKEN=x\n")
    with pytest.raises(DeployError) as refused:
        preflight.refuse_project(HOST, app, description(app, server().users))
    assert all(line.startswith("db1: apps.shop") for line in str(refused.value).splitlines())
    assert not (tmp_path / "cache").exists()


def test_a_project_is_read_again_only_when_it_changes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read: list[str] = []
    real = checks.examine

    def examine(app: object, described: str) -> Report:
        read.append(described)
        return real(application("shop", **settings), described)

    monkeypatch.setattr(checks, "examine", examine)
    monkeypatch.setattr(preflight, "KEPT", 1)
    (source / "compose.yaml").write_text(WEB)
    settings = {"source": str(source), "compose": ["compose.yaml"], "service": "web"}
    for replicas, times in ((2, 1), (2, 1), (3, 2), (2, 3)):
        app = application("shop", **settings, replicas=replicas)
        preflight.refuse_project(HOST, app, description(app, server().users))
        assert len(read) == times


def test_compose_is_found_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = laptop.compose_program()
    assert Path(program).is_file()
    monkeypatch.setattr(laptop, "find_spec", lambda _: None)
    monkeypatch.setattr(laptop, "PLUGINS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    laptop.compose_program.cache_clear()
    with pytest.raises(Failed, match="no Docker Compose v2 on this machine"):
        laptop.compose_program()
    for version, found in (("1.29.2", False), ("v2.40.3", True)):
        (tmp_path / "docker-compose").write_text(f"#!/bin/sh\necho {version}\n")
        (tmp_path / "docker-compose").chmod(0o755)
        assert laptop._is_second(str(tmp_path / "docker-compose")) is found
    assert laptop.compose_program() == (str(tmp_path / "docker-compose"),)
    laptop.compose_program.cache_clear()


# --- the command ----------------------------------------------------------------------------------


def test_the_command_without_a_server(pyinfra: Pyinfra, source: Path) -> None:
    """With @local, the hosts of inventory.py are not connected to."""
    all_of_them = pyinfra.call("@local", "commands/check.py", "-y")
    assert all_of_them.returncode == 0
    assert "api: https://api.terrafirma.test" in all_of_them.stderr
    (source / "compose.yaml").write_text(SHOP.replace('image: "postgres:17"', "build: ."))
    other = pyinfra.call("@local", "commands/check.py", "-y", "--data", f"check={source}")
    assert other.returncode == 1
    assert "apps.shop.stateful: db writes the volume pg" in other.stderr
    assert '    "stateful": ["db"],' in other.stderr


def test_the_command_with_a_host(pyinfra: Pyinfra) -> None:
    for wanted, code, words in (
        ("", 0, "@fake/host\napi: https://api.terrafirma.test\n"),
        ("api", 0, "api: https://api.terrafirma.test\n"),
        ("no/where", 1, "check: 'no/where' is neither an application of apps nor a directory"),
    ):
        result = pyinfra.call("@fake/host", "commands/check.py", "-y", "--data", f"check={wanted}")
        assert result.returncode == code
        assert words in result.stderr


def test_any_directories(source: Path, tmp_path: Path) -> None:
    (source / "compose.yaml").write_text(SHOP.replace('image: "postgres:17"', "build: ."))
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.json").write_text('{"stateful": ["db"], "service": "web"}')
    words = [str(source), f"{source}:{tmp_path}/data.json", str(tmp_path / "empty")]
    result = subprocess.run(
        [sys.executable, "testbed/try.py", *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    said = result.stdout
    assert f"{source}: served with 2 lines\n" in said
    assert '  "stateful": ["db"]\n' in said
    assert f"{source}: served\n" in said
    assert f"{tmp_path}/empty: refused\n  apps.empty.source: " in said
    assert said.endswith("1 served with data, 1 served, 1 refused\n")


@pytest.mark.promise("A release whose project would be refused ends before anything changes")
def test_a_deploy_with_a_wrong_project_changes_nothing(pyinfra: Pyinfra, source: Path) -> None:
    (source / "compose.yaml").write_text(
        "services: {web: {build: ., environment: {A: $A}}, db: {build: ., volumes: ['pg:/d']}}\n"
        "volumes: {pg: }\n"
    )
    settings = api(source=str(source), compose=["compose.yaml"], service="web")
    result = pyinfra.call("@fake/host", "tasks/app.py", "-y", *fake(machine(), **settings))
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "Starting operation" not in result.stderr
    first, second = re.findall(r"@fake/host: apps\.api\..*", result.stderr)
    assert first.startswith("@fake/host: apps.api.env: ${A} (compose.yaml, line 1, web) is not set")
    assert second.startswith("@fake/host: apps.api.stateful: db writes the volume pg (at /d), and")

"""Compose projects as people have them: the host's database in one, several public services."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Pyinfra
from tests.e2e.clones import DEPLOYED, clone
from tests.e2e.support import Container, Mix, Target, changed, eventually, load, options

pytestmark = pytest.mark.e2e
long = pytest.mark.long

SHOP, DESK, KIOSK, STAFF, OFFICE = (
    f"{name}.terrafirma.test" for name in ("shop", "desk", "kiosk", "staff", "office")
)
# Some clients of each kind, few requests: every request to the shop opens a connection.
LIGHT = Mix(keep=2, fresh=1, http2=1, streams=2, timeout=20)
# The words of the example's, so that the server has the layer in its cache.
DOCKERFILE = (
    (ROOT / "examples/api/Dockerfile").read_text().partition("WORKDIR")[0]
    + """
WORKDIR /app
COPY main.py VERSION ./
EXPOSE 8000
"""
)
# A server that finishes its requests on SIGTERM.
SERVE = """
import json, os, signal, socket, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WHO = {"release": os.environ["TERRAFIRMA_RELEASE"], "replica": socket.gethostname()}


class Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128


def serve(answer):
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = answer(self)
            text = json.dumps(WHO | body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = Server(("", 8000), Answers)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
    server.server_close()
"""

# --- a shop: its own database, migration, worker and proxy ----------------------------------------

OWN_PASSWORD = "odd-p4ss-of-the-files"
COMPOSE = f"""\
name: shop
x-app: &app
  build: .
  image: acme/shop
  environment: &variables
    DATABASE_URL: postgres://shop:${{DB_PASSWORD:-{OWN_PASSWORD}}}@db:5432/shop?application_name=shop
services:
  traefik:
    image: traefik:v3.1
    command: --providers.docker
    ports: ["80:80", "443:443"]
    volumes: ["/var/run/docker.sock:/var/run/docker.sock:ro"]
  db:
    image: postgres:17
    container_name: shop-postgres
    restart: always
    environment:
      POSTGRES_USER: shop
      POSTGRES_PASSWORD: ${{DB_PASSWORD:-{OWN_PASSWORD}}}
      POSTGRES_DB: shop
    volumes: ["pgdata:/var/lib/postgresql/data"]
    ports: ["127.0.0.1:5432:5432"]
    healthcheck: {{test: [CMD-SHELL, pg_isready -U shop], interval: 5s}}
  migrate:
    <<: *app
    command: python3 main.py migrate
    depends_on:
      db: {{condition: service_healthy}}
  web:
    <<: *app
    command: python3 main.py web
    restart: unless-stopped
    ports: ["8000:8000"]
    volumes: ["./config/shop.ini:/etc/shop/shop.ini"]
    labels: ["traefik.enable=true", "traefik.http.routers.web.rule=Host(`shop.example.com`)"]
    depends_on:
      db: {{condition: service_healthy}}
      migrate: {{condition: service_completed_successfully}}
  worker:
    <<: *app
    command: python3 main.py worker
    restart: unless-stopped
    environment:
      <<: *variables
      PGHOST: db
      PGPORT: 5432
      PGUSER: shop
      PGPASSWORD: ${{DB_PASSWORD:-{OWN_PASSWORD}}}
      PGDATABASE: shop
    depends_on:
      db: {{condition: service_healthy}}
      migrate: {{condition: service_completed_successfully}}
  mail:
    image: axllent/mailpit
    profiles: [dev]
    ports: ["8025:8025"]
volumes:
  pgdata:
"""
# The web service takes the host from a file that the settings do not change, the worker from parts.
MAIN = """
import configparser, sys, time
import psycopg
from psycopg.conninfo import conninfo_to_dict

URL = os.environ["DATABASE_URL"]
RELEASE = os.environ["TERRAFIRMA_RELEASE"]
CONFIGURED = {}


def rows(web):
    if web.path == "/healthz":
        return 200, {}
    with psycopg.connect(**{**conninfo_to_dict(URL), "host": CONFIGURED["host"]}) as database:
        found = database.execute("select by, release from rows order by id").fetchall()
        name, role = database.execute("select current_database(), current_user").fetchone()
    return 200, {"rows": found, "database": name, "role": role, "title": CONFIGURED["title"]}


def work():
    while True:
        with psycopg.connect("") as database:
            database.execute("insert into rows (by, release) values ('worker', %s)", [RELEASE])
        signal.sigtimedwait([signal.SIGTERM], 60) and sys.exit()


match sys.argv[1]:
    case "web":
        parser = configparser.ConfigParser()
        parser.read_string("[shop]\\n" + open("/etc/shop/shop.ini").read())
        CONFIGURED = parser["shop"]
        serve(rows)
    case "worker":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        work()
    case "migrate":
        with psycopg.connect(URL) as database:
            database.execute(
                "create table if not exists rows"
                " (id bigint generated always as identity primary key, by text, release text)")
            database.execute("insert into rows (by, release) values ('migrate', %s)", [RELEASE])
"""

# --- a desk: one part of its domain, and another domain -------------------------------------------

PARTS = """\
services:
  web: {build: ., command: python3 main.py}
  api: {build: ., command: python3 main.py, expose: ["8000"]}
  staff: {build: ., command: python3 main.py, restart: always}
"""
PART = """
def answer(part):
    if part.path == "/healthz":
        return STATUS, {}
    return 200, {"path": part.path, "prefix": part.headers.get("X-Forwarded-Prefix", ""),
                 "service": os.environ["PART"]}


STATUS = 500 if os.environ["PART"] == "BROKEN" else 200
serve(answer)
"""


@dataclass
class Project:
    """An application of the server, whose source the tests change."""

    name: str
    domain: str
    server: Target
    source: Path
    fields: dict[str, Any]
    data: dict[str, Any]
    said: str = ""  # all output of runs

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.source / name).write_text(text)

    def change(self) -> None:
        self.write(VERSION=f"{time.time_ns()}\n")

    def call(
        self, *files: str, how: tuple[str, ...] = ("-y",), more: dict[str, Any] | None = None
    ) -> subprocess.CompletedProcess[str]:
        app = {"source": str(self.source), "domain": self.domain, "drain_seconds": 2,
               "start_seconds": 20, "stop_seconds": 5, "replicas": 2} | self.fields  # fmt: skip
        data = self.data | {"apps": {self.name: app}} | (more or {})
        result = self.server.pyinfra.imported.call(
            *how, *options(data), *self.server.arguments(), *(files or ("tasks/app.py",))
        )
        self.said += result.stdout + result.stderr
        assert "Traceback" not in result.stderr, result.stderr
        return result

    def deploy(self, *files: str, **more: Any) -> str:
        result = self.call(*files, **more)
        assert result.returncode == 0, result.stderr
        return result.stderr

    @property
    def serving(self) -> dict[str, Any]:
        said = self.server.run(f"cat /opt/terrafirma/{self.name}/serving.json")
        answer: dict[str, Any] = json.loads(said)
        return answer

    def ask(self, path: str = "/", domain: str = "") -> dict[str, Any]:
        name = domain or self.domain
        said = self.server.run(
            f"curl -sSkf --max-time 20 --resolve {name}:443:127.0.0.1 https://{name}{path}"
        )
        answer: dict[str, Any] = json.loads(said)
        return answer

    def running(self) -> list[str]:
        """The services of the slot that serves, and what else has the application's name."""
        names = self.server.run(
            f"docker ps --format '{{{{.Names}}}}' --filter label=terrafirma.app={self.name}"
        )
        slot = f"{self.name}-{self.serving['slot']}-"
        return sorted(one.removeprefix(slot) for one in names.split())


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with clone(pyinfra, "tf-test-compose", 2449, DEPLOYED) as one:
        yield one


@pytest.fixture(scope="module")
def shop(server: Target, tmp_path_factory: pytest.TempPathFactory) -> Project:
    source = tmp_path_factory.mktemp("source") / "shop"
    (source / "config").mkdir(parents=True)
    data = {
        "postgres_roles": [{"name": "api"}, {"name": "shop"}],
        "postgres_databases": [{"name": one, "owner": one} for one in ("api", "shop")],
    }
    fields = {
        "service": "web", "database": "shop", "database_replaces": "db", "leave_out": ["traefik"],
    }  # fmt: skip
    one = Project("shop", SHOP, server, source, fields, data)
    one.write(
        **{"Dockerfile": DOCKERFILE, "compose.yaml": COMPOSE, "main.py": SERVE + MAIN},
        **{"config/shop.ini": "host = db\ntitle = The Shop\n", "VERSION": "1\n"},
    )
    one.deploy("tasks/postgres.py", "tasks/app.py", "tasks/caddy.py", how=("-y", "-vvv", "--diff"))
    return one


@pytest.mark.promise(
    "A compose project with a database, a migration, a worker, a proxy and services for developers "
    "is served as it is: the host's PostgreSQL takes the place of its database, under its name"
)
def test_a_project_with_its_own_database(shop: Project) -> None:
    release = shop.serving["release"]
    said = shop.said
    for line in (
        "traefik: left out (leave_out)",
        "mail: not started: its profile (dev) is not in profiles",
        "db is left out: the host's database is in its place, under its name",
        "web: DATABASE_URL: the host's database, not db",
        "worker: DATABASE_URL, PGHOST, PGDATABASE, PGPASSWORD, PGPORT, PGUSER: the host's database",
        "web: ./config/shop.ini is mounted read-only at /etc/shop/shop.ini",
    ):
        assert line in said
    assert shop.running() == ["web-1", "web-2", "worker-1"]
    eventually(lambda: ["worker", release] in shop.ask()["rows"], 20)
    answer = shop.ask()
    assert ["migrate", release] in answer["rows"]
    assert (answer["database"], answer["role"], answer["title"]) == ("shop", "shop", "The Shop")
    host = shop.server.psql("select by, release from rows order by id", "shop").splitlines()
    assert host == ["|".join(row) for row in answer["rows"]]
    slot = shop.serving["slot"]
    write = f"docker exec shop-{slot}-web-1 sh -c 'echo x >> /etc/shop/shop.ini'"
    assert "Read-only file system" in shop.server.call(write).stderr


@pytest.mark.promise(like=test_a_project_with_its_own_database)
def test_a_second_run_changes_nothing(shop: Project) -> None:
    again = shop.call("tasks/postgres.py", "tasks/app.py", "tasks/caddy.py")
    assert changed(json.loads(again.stdout)) == []
    plan = json.loads(shop.call(how=("--dry", "-vvv")).stdout)["plan"]
    assert [step["name"] for step in plan if step["hosts_with_change"]] == []


@pytest.mark.promise(
    "No request fails while a compose project with the host's database is released or rolled back"
)
def test_it_is_released_and_rolled_back(shop: Project, outsider: Container) -> None:
    first = shop.serving["release"]
    with load(outsider, shop.server, domain=SHOP, rate=20, mix=LIGHT) as result:
        shop.change()
        shop.write(**{"config/shop.ini": "host = db\ntitle = The Other Shop\n"})
        shop.deploy()
        second = shop.serving["release"]
        assert shop.ask()["title"] == "The Other Shop"
        shop.deploy("commands/rollback.py", more={"rollback": "shop"})
    assert result["failed"] == []
    assert {one["release"] for one in result["answers"]} == {first, second}
    assert shop.serving["release"] == first
    assert shop.ask()["title"] == "The Shop"
    assert shop.running() == ["web-1", "web-2", "worker-1"]
    # Each release has migrated once.
    found = [release for by, release in shop.ask()["rows"] if by == "migrate"]
    assert found[:2] == [first, second]


def test_no_password_is_in_the_output(shop: Project) -> None:
    password = shop.server.run("cat /etc/terrafirma/secrets/postgres/shop")
    logs = shop.server.run("journalctl --no-pager -o cat | LC_ALL=C tr -cd '\\11\\12\\40-\\176'")
    log = shop.server.run("cat /opt/terrafirma/shop/log")
    for text in (shop.said, logs, log):
        assert password not in text
        assert OWN_PASSWORD not in text
    # Compose gets the values in its environment; no file of the release has them.
    where = shop.server.call(f"grep -rlF {password} /opt/terrafirma /run/terrafirma /var/log")
    assert where.stdout == ""


# --- several public services ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def desk(server: Target, tmp_path_factory: pytest.TempPathFactory) -> Project:
    one = in_parts("desk", DESK, server, tmp_path_factory)
    one.fields["services"] = public("staff")
    one.deploy("tasks/app.py", "tasks/caddy.py")
    return one


def in_parts(
    name: str, domain: str, server: Target, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    source = tmp_path_factory.mktemp("source") / name
    source.mkdir()
    fields: dict[str, Any] = {"service": "web", "env": {"PART": "web"}}
    one = Project(name, domain, server, source, fields, {})
    one.write(
        **{"Dockerfile": DOCKERFILE, "compose.yaml": PARTS, "main.py": SERVE + PART},
        VERSION="1\n",
    )
    return one


def public(part: str) -> dict[str, Any]:
    """The services beside the main one; `part`: what is said to be that of the staff."""
    return {
        "api": {"path": "/api/*", "strip": True, "replicas": 1, "env": {"PART": "api"}},
        "staff": {"domain": STAFF, "env": {"PART": part}},
    }


def parts(desk: Project) -> dict[str, str]:
    """The release of each service, which is asked as visitors do."""
    found = {}
    for path, domain, service, got, prefix in (
        ("/users", DESK, "web", "/users", ""),
        ("/api/users?a=b", DESK, "api", "/users?a=b", "/api"),
        ("/api", DESK, "api", "/", "/api"),
        ("/apis", DESK, "web", "/apis", ""),
        ("/api/users", STAFF, "staff", "/api/users", ""),
    ):
        answer = desk.ask(path, domain)
        assert (answer["service"], answer["path"], answer["prefix"]) == (service, got, prefix)
        found[f"{domain}{path}"] = answer["release"]
    return found


@pytest.mark.promise(
    "Several services of a compose project are public, by a path or a domain, and one release "
    "makes all of them new without a failed request"
)
def test_several_public_services_are_released_together(desk: Project, outsider: Container) -> None:
    first = desk.serving["release"]
    assert {*parts(desk).values()} == {first}
    assert desk.running() == ["api-1", "staff-1", "staff-2", "web-1", "web-2"]
    again = desk.call("tasks/app.py", "tasks/caddy.py")
    assert changed(json.loads(again.stdout)) == []
    with (
        load(outsider, desk.server, "/", "/api/users", domain=DESK, rate=20, mix=LIGHT) as own,
        load(outsider, desk.server, domain=STAFF, rate=20, mix=LIGHT) as staff,
    ):
        desk.change()
        desk.deploy()
    second = desk.serving["release"]
    assert {*parts(desk).values()} == {second}
    for result in (own, staff):
        assert result["failed"] == []
        assert {one["release"] for one in result["answers"]} == {first, second}


@pytest.mark.promise(
    "If one public service of a release is not healthy, all of them stay those of the old release"
)
def test_one_public_service_that_is_not_healthy(desk: Project, outsider: Container) -> None:
    before, fields = desk.serving, desk.fields
    desk.fields = fields | {"services": public("BROKEN"), "start_seconds": 5}
    with (
        load(outsider, desk.server, "/", "/api/users", domain=DESK, rate=20, mix=LIGHT) as own,
        load(outsider, desk.server, domain=STAFF, rate=20, mix=LIGHT) as staff,
    ):
        result = desk.call()
    desk.fields = fields
    assert result.returncode != 0
    assert "staff" in result.stderr
    assert "it answers 500 to /healthz" in result.stderr
    assert desk.serving == before
    assert {*parts(desk).values()} == {before["release"]}
    for one in (own, staff):
        assert one["failed"] == []
        assert {answer["release"] for answer in one["answers"]} == {before["release"]}
    assert desk.running() == ["api-1", "staff-1", "staff-2", "web-1", "web-2"]
    # The run that failed has left what it was to release.
    assert changed(json.loads(desk.call().stdout)) == ["Write the description of desk"]


@long
@pytest.mark.promise(
    "No request fails while a service becomes public, gets another address, and is private again"
)
def test_a_service_becomes_public(
    server: Target, outsider: Container, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kiosk = in_parts("kiosk", KIOSK, server, tmp_path_factory)
    tasks = ("tasks/caddy.py", "tasks/app.py")
    kiosk.deploy(*tasks)
    assert kiosk.ask("/api/users")["service"] == "web"
    with load(outsider, server, domain=KIOSK, rate=20, mix=LIGHT) as result:
        kiosk.fields["services"] = public("staff")
        kiosk.deploy(*tasks)
        assert kiosk.ask("/api/users")["path"] == "/users"
        assert kiosk.ask("/", STAFF)["service"] == "staff"
        before = kiosk.serving
        kiosk.fields["services"]["api"]["path"] = "/v1/*"
        kiosk.fields["services"]["staff"]["domain"] = OFFICE
        kiosk.deploy(*tasks)
        assert kiosk.serving == before
        assert kiosk.ask("/v1/users")["path"] == "/users"
        assert kiosk.ask("/api/users")["service"] == "web"
        assert kiosk.ask("/", OFFICE)["service"] == "staff"
        assert changed(json.loads(kiosk.call(*tasks).stdout)) == []
        kiosk.fields["services"] = {}
        kiosk.deploy(*tasks)
        assert kiosk.ask("/v1/users")["service"] == "web"
    assert result["failed"] == []
    assert changed(json.loads(kiosk.call(*tasks).stdout)) == []

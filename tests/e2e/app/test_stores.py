"""Stores: no two processes write the same one, and no acknowledged row is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import HOST, clone
from tests.e2e.projects import CASES
from tests.e2e.support import Target, changed, options
from tests.unit.terrafirma_host.applications import described, told

pytestmark = pytest.mark.e2e
long = pytest.mark.long

DOMAIN = "shop.terrafirma.test"
# The beginning of a refusal, on the machine that deploys.
REFUSED = "127.0.0.1: apps.shop"
# Like a database, it reads its file once, and later writes all of it: with two processes, the one
# that writes last overwrites the other's rows.
STORE = """
import http.server, json, os, signal, sys
path = "/data/rows"
rows = json.load(open(path)) if os.path.exists(path) else []
class Store(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        rows.append(self.path[1:])
        with open(path + ".new", "w") as file:
            json.dump(rows, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(path + ".new", path)
        self.do_GET()
    def do_GET(self):
        body = json.dumps(rows).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
http.server.HTTPServer(("", 5000), Store).serve_forever()
"""
WEB = """
import http.server, signal, sys, urllib.request
class Web(http.server.BaseHTTPRequestHandler):
    def do_GET(self, method="GET"):
        status, body = 200, b"[]"
        if self.path != "/healthz":
            try:
                asked = urllib.request.Request("http://db:5000" + self.path, method=method)
                body = urllib.request.urlopen(asked, timeout=5).read()
            except OSError as error:
                status, body = 502, str(error).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self): self.do_GET("POST")
    def log_message(self, *_): pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
http.server.ThreadingHTTPServer(("", 8000), Web).serve_forever()
"""
COMPOSE = """
services:
  web: {build: {context: ., dockerfile: web.Dockerfile}, depends_on: [db], stop_signal: SIGTERM}
  db:
    build: {context: ., dockerfile: db.Dockerfile}
    volumes: ["data:/data"]
    healthcheck: {test: [CMD, python3, -c, "import urllib.request as r; r.urlopen('http://127.0.0.1:5000/')"], interval: 1s}
volumes: {data: }
"""  # noqa: E501
PYTHON = "RUN apt-get -q update && apt-get -qy install --no-install-recommends python3\n"
# Sends rows until each is acknowledged, and prints the acknowledged ones.
WRITER = """
import os, ssl, sys, time, urllib.request
domain, stop = sys.argv[1:]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
number = 0
while not os.path.exists(stop):
    number += 1
    asked = urllib.request.Request(f"https://{domain}/{os.getpid()}-{number}", method="POST")
    try:
        urllib.request.urlopen(asked, timeout=10, context=context).read()
        print(f"{os.getpid()}-{number}", flush=True)
    except OSError:
        time.sleep(0.05)
    time.sleep(0.02)
"""
READER = """
import ssl, sys, urllib.request
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
print(urllib.request.urlopen(sys.argv[1], timeout=10, context=context).read().decode())
"""


@dataclass
class Shop:
    """A server with a compose project of two services, whose files the tests change."""

    server: Target
    source: Path

    def data(self, **shop: Any) -> dict[str, Any]:
        described = {
            "source": str(self.source), "compose": ["compose.yaml"], "service": "web",
            "domain": DOMAIN, "user": "", "port": 9000, "replicas": 2, "drain_seconds": 2,
            "start_seconds": 30, "stop_seconds": 3,
        }  # fmt: skip
        return {"apps": {"shop": described | shop}}

    def call(self, **shop: Any) -> subprocess.CompletedProcess[str]:
        """Deploy another version of the same code."""
        (self.source / "VERSION").write_text(f"{time.monotonic_ns()}\n")
        return self.again(**shop)

    def again(self, **shop: Any) -> subprocess.CompletedProcess[str]:
        words = options(self.data(**shop))
        return self.server.pyinfra.imported.call(
            "-y", *words, *self.server.arguments(), "tasks/app.py"
        )

    def deploy(self, **shop: Any) -> str:
        result = self.call(**shop)
        assert result.returncode == 0, result.stderr
        return result.stderr

    def refuse(self, words: str, **shop: Any) -> None:
        """Check that a deploy builds and starts nothing, and prints one line with the reason."""
        before = self.server.run(
            "docker ps --all --quiet --no-trunc; docker image ls --quiet | sort"
        )
        result = self.call(**shop)
        assert result.returncode != 0, result.stdout
        assert "Traceback" not in result.stderr, result.stderr
        lines = [line for line in result.stderr.splitlines() if f"{REFUSED}." in line]
        assert len(lines) == 1, result.stderr
        assert words in lines[0]
        after = self.server.run(
            "docker ps --all --quiet --no-trunc; docker image ls --quiet | sort"
        )
        assert after == before

    def rows(self) -> list[str]:
        answer: list[str] = self.server.python(READER, f"https://{DOMAIN}/")
        return answer

    def container(self, service: str = "db") -> str:
        ours = "--filter label=terrafirma.app=shop"
        ours += f" --filter label=com.docker.compose.service={service}"
        names = "docker ps --format '{{.Names}} {{.ID}}'"
        return self.server.run(f"{names} {ours}")

    @contextmanager
    def ledger(self) -> Iterator[list[str]]:
        """Write rows during the block; the list then has those that were acknowledged."""
        stop = f"/run/stop-{time.monotonic_ns()}"
        process = subprocess.Popen(
            ["docker", "exec", "-i", self.server.name, "python3", "-c", WRITER, DOMAIN, stop],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        acknowledged: list[str] = []
        try:
            yield acknowledged
        finally:
            self.server.run(f"touch {stop}")
            said, _ = process.communicate(timeout=60)
            acknowledged += said.split()


@pytest.fixture(scope="module")
def shop(pyinfra: Pyinfra, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    source = tmp_path_factory.mktemp("source") / "shop"
    source.mkdir()
    (source / "compose.yaml").write_text(COMPOSE)
    for name, program in {"web": WEB, "db": STORE}.items():
        (source / f"{name}.py").write_text(program)
        more = "COPY VERSION /\n" * (name == "web")
        (source / f"{name}.Dockerfile").write_text(
            f"FROM debian:trixie\n{PYTHON}COPY {name}.py /\n{more}"
            f'ENTRYPOINT ["python3", "/{name}.py"]\n'
        )
    (source / "VERSION").touch()
    with clone(pyinfra, "tf-s-stores", 2531, HOST) as server:
        one = Shop(server, source)
        # Begin with the store in the slot, as an earlier version without this check made it.
        server.deploy(
            "tasks/users.py", "tasks/docker.py", "tasks/caddy.py", "tasks/app.py",
            **one.data(shared=["data"]),
        )  # fmt: skip
        server.run(f"echo 127.0.0.1 {DOMAIN} >> /etc/hosts")
        yield one


@pytest.mark.promise(
    "Two processes never write the same store by accident, and no acknowledged row is lost: such "
    "a release is refused, and a service that becomes stateful keeps its store"
)
def test_a_store_without_a_setting(shop: Shop) -> None:
    """The release is refused; the old one goes on serving with all acknowledged rows."""
    before = shop.container()
    with shop.ledger() as acknowledged:
        shop.refuse(
            "stateful: db writes the volume data (at /data), and two releases run at once: "
            'stateful = ["db"] for what runs once, or shared = ["data"] for what several'
        )
    assert acknowledged
    assert {*acknowledged} <= {*shop.rows()}
    assert shop.container() == before


@pytest.mark.promise(like=test_a_store_without_a_setting)
def test_a_store_that_another_container_writes(shop: Shop) -> None:
    """A container of another project would be a second writer."""
    shop.server.run(
        "docker run --detach --name theirs --volume shop_data:/d --entrypoint sleep"
        " debian:trixie infinity"
    )
    result = shop.call(stateful=["db"])
    assert result.returncode != 0
    words = "db writes the volume data, and the container theirs writes there now: end that"
    assert words in result.stderr
    assert "shop-blue-db-1" in shop.container()
    shop.server.run("docker rm --force theirs")


@pytest.mark.promise(like=test_a_store_without_a_setting)
def test_a_service_that_becomes_stateful(shop: Shop) -> None:
    """The old container stops, a new one has the same store, and no row is lost."""
    with shop.ledger() as acknowledged:
        said = shop.deploy(stateful=["db"])
    assert "db becomes stateful: shop-blue-db-1 stops, and the service starts again" in said
    assert len(acknowledged) > 20
    assert {*acknowledged} <= {*shop.rows()}
    assert shop.container().split()[0] == "shop-state-db-1"
    assert changed(json.loads(shop.again(stateful=["db"]).stdout)) == []


@pytest.mark.promise(like=test_a_store_without_a_setting)
def test_a_stateful_service(shop: Shop) -> None:
    """A release leaves it alone."""
    before = shop.container()
    with shop.ledger() as acknowledged:
        shop.deploy(stateful=["db"])
    assert len(acknowledged) > 20
    assert {*acknowledged} <= {*shop.rows()}
    assert shop.container() == before
    shop.refuse("stateful: db writes the volume data")
    result = shop.call(shared=["data"])
    assert result.returncode != 0
    assert "stateful: db still runs as shop-state-db-1, and is no longer named" in result.stderr
    assert shop.container() == before


@pytest.mark.promise(like=test_a_store_without_a_setting)
def test_a_database_that_is_shared_by_mistake(shop: Shop) -> None:
    """The name of its image reveals it."""
    shop.server.run("docker tag debian:trixie postgres:17")
    compose = shop.source / "compose.yaml"
    build = "build: {context: ., dockerfile: db.Dockerfile}"
    compose.write_text(COMPOSE.replace(build, "image: postgres:17"))
    rows = shop.rows()
    shop.refuse("shared: db writes the volume data as postgres:17", shared=["data"])
    shop.refuse("take data out of shared", shared=["data"], stateful=["db"])
    compose.write_text(COMPOSE)
    assert shop.rows() == rows


FAILING = {
    # These keys would collide with those of the generated file that overrides the project's.
    "security_opt": 'security_opt: ["no-new-privileges:true", "label=disable"]',
    "extra_hosts": "extra_hosts: {host.docker.internal: 172.17.0.1, other: 10.0.0.1}",
    "limits": "mem_limit: 1g, cpus: 2, cpu_quota: 50000",
    "secrets": "secrets: [{source: key, target: token}, other]",
    "links": 'links: ["db:base"]',
}
MORE = """
secrets: {key: {file: ./VERSION}, other: {file: ./VERSION}, token: {environment: NOTHING}}
"""


def test_keys_that_are_in_both_files(shop: Shop) -> None:
    """The generated file overrides the user's keys without a collision."""
    compose = shop.source / "compose.yaml"
    compose.write_text(
        COMPOSE.replace("depends_on: [db],", f"depends_on: [db], {', '.join(FAILING.values())},")
        + MORE
    )
    more = {"stateful": ["db"], "secrets": {"token": "generated"}, "memory_mb": 128, "cpus": 1}
    said = shop.deploy(**more)
    assert "secrets: token is that of the settings, not that of the compose files" in said
    web = shop.container("web").split()[0]
    (one,) = json.loads(shop.server.run(f"docker inspect {web}"))
    assert sorted(one["HostConfig"]["SecurityOpt"]) == ["label=disable", "no-new-privileges:true"]
    assert sorted(one["HostConfig"]["ExtraHosts"])[1:] == ["other:10.0.0.1"]
    assert one["HostConfig"]["Memory"] == 128 * 2**20
    token = shop.server.run("cat /etc/terrafirma/secrets/app/shop/token")
    assert shop.server.run(f"docker exec {web} cat /run/secrets/token") == token
    compose.write_text(COMPOSE)


# Listens on the port that its image EXPOSEs, and keeps what it is sent.
KEEPER = """
import http.server, os, signal, sys
class Keeper(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/healthz":
            open(f"/var/lib/own/{self.path[1:]}", "w").close()
        body = " ".join([str(os.getuid()), *sorted(os.listdir("/var/lib/own"))]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
http.server.ThreadingHTTPServer(("", 80), Keeper).serve_forever()
"""


@pytest.mark.promise(
    "A Dockerfile is taken as it is: with its path, user and port, and with volumes that last"
)
def test_a_volume_of_an_image(shop: Shop, tmp_path: Path) -> None:
    """It would be new with each release, which is refused; the proposed line makes it last."""
    (tmp_path / "docker").mkdir()
    (tmp_path / "keeper.py").write_text(KEEPER)
    (tmp_path / "docker" / "web").write_text(
        f"FROM debian:trixie AS web\n{PYTHON}COPY keeper.py /\n"
        "ARG SEED\nRUN mkdir /var/lib/own && touch /var/lib/own/$SEED\nVOLUME /var/lib/own\n"
        'USER 4000\nEXPOSE 80\nCMD ["python3", "/keeper.py"]\nFROM none\n'
    )
    solo = {
        "source": str(tmp_path), "dockerfile": "docker/web", "target": "web",
        "build_args": {"SEED": "seed"}, "domain": "solo.terrafirma.test", "port": 9200,
        "replicas": 2, "start_seconds": 30, "drain_seconds": 1, "stop_seconds": 3,
    }  # fmt: skip

    def release(**but: Any) -> subprocess.CompletedProcess[str]:
        words = options({"apps": {"solo": solo | but}})
        return shop.server.pyinfra.imported.call(
            "-y", *words, *shop.server.arguments(), "tasks/app.py"
        )

    result = release()
    assert result.returncode != 0
    assert "scratch: solo has a volume without a name at /var/lib/own, which is" in result.stderr
    assert 'volumes = {"own": "/var/lib/own"} keeps it' in result.stderr
    assert shop.server.run("docker ps --all --quiet --filter label=terrafirma.app=solo") == ""
    kept = {"volumes": {"own": "/var/lib/own"}}
    result = release(**kept)
    assert result.returncode == 0, result.stderr
    assert shop.server.run("curl -s http://127.0.0.1:9200/first") == "4000 first seed"
    # Another replica has the same files, and so has another release.
    assert shop.server.run("curl -s http://127.0.0.1:9201/second") == "4000 first second seed"
    result = release(**kept, env={"CHANGED": "1"})
    assert result.returncode == 0, result.stderr
    assert shop.server.run("curl -s http://127.0.0.1:9264/third") == "4000 first second seed third"


@long
def test_a_service_that_cannot_become_stateful_comes_back(shop: Shop) -> None:
    """The stateful container does not become healthy, so the old one starts again."""
    shutil.copyfile(shop.source / "db.py", shop.source / "queue.py")
    extra = COMPOSE.replace(
        "volumes: {data: }",
        "  queue:\n    build: {context: ., dockerfile: db.Dockerfile}\n"
        '    volumes: ["queue:/data"]\n    HEALTH\nvolumes: {data: , queue: }',
    )
    compose = shop.source / "compose.yaml"
    compose.write_text(extra.replace("HEALTH", "tty: false"))
    shop.deploy(stateful=["db"], shared=["queue"])
    before = shop.container("queue")
    assert before
    compose.write_text(
        extra.replace("HEALTH", 'healthcheck: {test: ["CMD", "false"], interval: 1s, retries: 2}')
    )
    with shop.ledger() as acknowledged:
        result = shop.call(stateful=["db", "queue"], start_seconds=8)
    assert result.returncode != 0
    assert "queue" in result.stderr
    assert shop.container("queue") == before
    assert {*acknowledged} <= {*shop.rows()}
    # After a kill in the middle, the next command starts the old container again …
    stop = f"docker stop --time 1 {before.split()[0]}"
    noted = "docker inspect --format '{{.Id}}' " + before.split()[0]
    shop.server.run(f"{noted} > /opt/terrafirma/shop/moving; {stop}")
    shop.server.run("terrafirma recover shop")
    assert shop.container("queue") == before
    # … but leaves a container alone that was stopped by hand.
    shop.server.run(f"{stop}; terrafirma recover shop")
    assert shop.container("queue") == ""
    shop.server.run(f"docker start {before.split()[0]}")
    compose.write_text(extra.replace("HEALTH", "tty: false"))
    shop.deploy(stateful=["db", "queue"])
    assert shop.container("queue").split()[0] == "shop-state-queue-1"
    compose.write_text(COMPOSE)


# The verdict of the program on the host about each project, without a release.
JUDGE = """
import json, pathlib, shutil, sys
sys.path.insert(0, "/usr/local/lib/terrafirma")
from terrafirma_host import release
from terrafirma_host.spec import Application
answers, source = {}, pathlib.Path(sys.argv[1])
for name, (description, files) in json.load(open(sys.argv[2])).items():
    shutil.rmtree(source, ignore_errors=True)
    for path, text in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            (source / path).symlink_to(text[3:])
        else:
            (source / path).write_text(text)
    answers[name] = release.status(Application.of(json.loads(description)))["trouble"]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def troubles(shop: Shop) -> dict[str, str]:
    source = "/opt/terrafirma/case/sources/case"
    asked = {}
    for name, case in CASES.items():
        usual = {"source": "examples/compose", "compose": ["compose.yaml"], "service": "web"}
        app = described(**{**usual, "user": "", "database": "", **case.settings})
        files = {"compose.yaml": case.compose, "Dockerfile": "FROM x\n", "db/Dockerfile": ""}
        asked[name] = (told(replace(app, name="case", source=source)), files | case.files)
    # A word of a command line has at most 128 kB.
    shop.server.run("cat > /root/cases.json", stdin=json.dumps(asked))
    answer: dict[str, str] = shop.server.python(JUDGE, source, "/root/cases.json")
    return answer


@pytest.mark.promise(
    "A compose project with a blank variable, a path outside its source or a missing secret "
    "is refused in one line before anything is built"
)
@pytest.mark.parametrize("name", CASES)
def test_projects(troubles: dict[str, str], name: str) -> None:
    case, said = CASES[name], troubles[name]
    if " does not answer: " in said:
        # All rules have passed if the program gets as far as the registry, which does not exist.
        said = ""
    assert "\n" not in said
    if case.refused:
        assert case.refused in said
    else:
        assert said == ""

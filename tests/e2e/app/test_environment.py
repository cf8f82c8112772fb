"""Variables and databases as applications read them, from a file that stays where it is."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Pyinfra
from tests.e2e.clones import DEPLOYED, clone
from tests.e2e.support import Target, beside_api, changed, options
from tests.e2e.test_nothing_leaks import ALL, READABLE, found

pytestmark = pytest.mark.e2e

COMPOSE = """\
services:
  web:
    build: .
    env_file: .env
    environment: {MODE: of compose, TAKEN: "<${GIVEN:?}>"}
  worker:
    build: .
    entrypoint: [sleep, infinity]
    healthcheck: {disable: true}
"""
KEY = "-----BEGIN X-----\nodd-l1ne-of-a-k3y\n-----END X-----"
VARIABLES = f"""\
# of the server
MODE=of the file
GIVEN=given
API_TOKEN='odd-t0ken-$GIVEN ${{x}} "q"'
SIGNING_KEY="{KEY}"
"""
ODD = ["odd-t0ken-$GIVEN", "odd-l1ne-of-a-k3y", "odd-g1ven-secret"]
ENV = {
    "SQLALCHEMY_URL": "{database.url:postgresql+psycopg}?application_name=shop",
    "DATABASE_URL": "{database.url}",
    "PGHOST": "{database.host}",
    "PGPORT": "{database.port}",
    "PGUSER": "{database.user}",
    "PGPASSWORD": "{database.password}",
    "PGDATABASE": "{databases.reports.name}",
    "STRIPE": "Bearer {secrets.stripe}",
    "LINES": "one\ntwo $THREE\n",
    "JSON": '{"a": {"b": "{{secrets.stripe}}"}}',
}
# The whole environment of a container, and an answer of each database.
LOOK = """
import json, os, psycopg
urls = os.environ["DATABASE_URL"], open("/run/secrets/database_url_reports").read().strip(), ""
names = [psycopg.connect(one).execute("select current_database()").fetchone()[0] for one in urls]
print(json.dumps([dict(os.environ), names, sorted(os.listdir("/app"))]))
"""
# Command lines of all processes; a process that begins is read often.
WATCH = """
import os, time
seen = set()
while not os.path.exists("/root/stop"):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            seen.add(open(f"/proc/{pid}/cmdline", "rb").read())
        except OSError:
            pass
    time.sleep(0.02)
open("/root/seen", "wb").write(b"\\n".join(seen).replace(b"\\0", b"\\n"))
"""


@dataclass
class Released:
    """A server on which the application was released."""

    server: Target
    project: Path
    data: dict[str, Any]
    said: str = ""
    seen: str = ""
    again: list[str] = field(default_factory=list)

    def look(self, service: str = "web") -> Any:
        slot = json.loads(self.server.run("cat /opt/terrafirma/shop/serving.json"))["slot"]
        container = f"shop-{slot}-{service}-1"
        return json.loads(self.server.run(f"docker exec -i {container} python3 -", stdin=LOOK))

    @property
    def password(self) -> str:
        return self.server.run("cat /etc/terrafirma/secrets/postgres/shop")


def application(directory: Path) -> dict[str, Any]:
    project = directory / "project"
    # Its image is in the server's build cache.
    shutil.copytree(ROOT / "examples/api", project)
    (project / "compose.yaml").write_text(COMPOSE)
    (project / ".dockerignore").write_text("!.env.production\n")
    (project / ".env").write_text("API_TOKEN=of a developer\n")
    (project / ".env.production").write_text(VARIABLES)
    return {
        **beside_api(
            shop={
                "source": str(project), "compose": ["compose.yaml"], "service": "web",
                "domain": "shop.terrafirma.test", "replicas": 1, "env": ENV,
                "env_file": [str(project / ".env.production")],
                "secrets": {"stripe": "env:TF_TEST_STRIPE"},
                "database": "shop", "databases": ["reports"],
                # Shows everything, as a failing program may.
                "migrate": ["sh", "-c", "env; cat /run/secrets/*"],
            }
        ),
        "postgres_roles": [{"name": "api"}, {"name": "shop"}],
        "postgres_databases": [
            {"name": "api", "owner": "api"},
            *({"name": name, "owner": "shop"} for name in ("shop", "reports")),
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with clone(pyinfra, "tf-test-environment", 2425, DEPLOYED) as one:
        yield one


@pytest.fixture(scope="module")
def released(server: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Released]:
    directory = tmp_path_factory.mktemp("shop")
    one = Released(server, directory / "project", application(directory))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF_TEST_STRIPE", "odd-g1ven-secret")
        watch = subprocess.Popen(
            ["docker", "exec", "-i", server.name, "python3", "-"], stdin=subprocess.PIPE, text=True
        )
        assert watch.stdin
        watch.stdin.write(WATCH)
        watch.stdin.close()
        tasks = ("tasks/postgres.py", "tasks/app.py", "tasks/caddy.py")
        for how in ("--dry", "-y"):
            result = server.pyinfra.imported.call(
                how, "-vvv", "--diff", *options(one.data), *server.arguments(), *tasks
            )
            assert result.returncode == 0, result.stderr
            one.said += result.stdout + result.stderr
        one.again = changed(server.deploy(*tasks, **one.data))
        server.run("touch /root/stop")
        assert watch.wait(30) == 0
        one.seen = server.run("cat /root/seen; rm /root/seen /root/stop")
        yield one


@pytest.mark.promise(
    "An application gets the address of its databases as a URL with any scheme, or in parts, under "
    "any name"
)
def test_variables_have_the_forms_that_applications_read(released: Released) -> None:
    environment, databases, _ = released.look()
    url = f"postgresql://shop:{released.password}@host.docker.internal:5432/shop"
    wanted = {
        "SQLALCHEMY_URL": url.replace("sql:", "sql+psycopg:") + "?application_name=shop",
        "DATABASE_URL": url,
        "PGHOST": "host.docker.internal",
        "PGPORT": "5432",
        "PGUSER": "shop",
        "PGPASSWORD": released.password,
        "PGDATABASE": "reports",
        "STRIPE": "Bearer odd-g1ven-secret",
        "LINES": "one\ntwo $THREE\n",
        "JSON": '{"a": {"b": "{secrets.stripe}"}}',
    }
    assert {name: environment[name] for name in wanted} == wanted
    # By a URL, a file, and parts.
    assert databases == ["shop", "reports", "reports"]
    assert released.again == []


@pytest.mark.promise(
    "A file of variables is sent from the machine that deploys as secrets, in the place of the "
    "env_file that a compose file reads"
)
def test_variables_of_a_file_reach_the_containers(released: Released) -> None:
    own = {
        "GIVEN": "given",
        "API_TOKEN": 'odd-t0ken-$GIVEN ${x} "q"',
        "SIGNING_KEY": KEY,
    }
    for service, mode in (("web", "of compose"), ("worker", "of the file")):
        environment, _, files = released.look(service)
        assert {name: environment[name] for name in own} == own
        assert environment["MODE"] == mode
        assert not [name for name in files if name.startswith(".env")]
    assert released.look()[0]["TAKEN"] == "<given>"


@pytest.mark.promise(like=test_variables_of_a_file_reach_the_containers)
def test_no_secret_in_a_variable_is_seen(released: Released) -> None:
    server, secrets = released.server, {*ODD, released.password}
    assert "docker-compose" in released.seen
    # The migration has printed them all.
    assert "DATABASE_URL=(a secret)" in released.said
    assert "PGPASSWORD=(a secret)" in released.said
    assert "PGHOST=host.docker.internal" in released.said
    assert "Give shop its secrets" in released.said
    images = server.run(
        "docker image ls -q 'terrafirma/shop*' | xargs docker image inspect;"
        " docker image ls -q 'terrafirma/shop*' | xargs -n 1 docker history --no-trunc"
    )
    logs = server.run("journalctl --no-pager -o cat | LC_ALL=C tr -cd '\\11\\12\\40-\\176'")
    for secret in secrets:
        for text in (released.said, released.seen, images, logs):
            assert secret not in text
    assert found(server, READABLE, secrets) == []
    # The engine keeps the variables of containers, in files of root.
    places = ("/etc/terrafirma/secrets/", "/run/containerd/", "/var/lib/containerd/")
    assert [one for one in found(server, ALL, secrets) if not one.startswith(places)] == []
    assert server.run("stat -c '%a %U' /etc/terrafirma/secrets/app/shop/.env_file") == "400 root"


def test_another_value_is_another_release(released: Released) -> None:
    file = released.project / ".env.production"
    file.write_text(VARIABLES.replace("GIVEN=given", "GIVEN=changed"))
    answer = released.server.deploy("tasks/app.py", **released.data)
    assert changed(answer) == ["Give shop its secrets", "Release shop, 1 replicas"]
    environment, _, _ = released.look()
    assert (environment["GIVEN"], environment["TAKEN"]) == ("changed", "<changed>")


def test_a_file_that_is_missing_or_wrong_is_refused_before_any_change(released: Released) -> None:
    file = released.project / ".env.production"
    file.write_text(f"GIVEN=1\n{ODD[0]}\n")
    line = released.server.refuse("tasks/app.py", **released.data)
    assert f"apps.shop.env_file: {file}, line 2: has no name of a variable: letters" in line
    assert ODD[0] not in line
    file.unlink()
    line = released.server.refuse("tasks/app.py", **released.data)
    assert f"apps.shop.env_file: cannot read '{file}' (No such file or directory)" in line

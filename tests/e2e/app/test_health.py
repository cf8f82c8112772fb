"""Health: a release succeeds only if it serves and goes on serving."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Pyinfra
from tests.e2e.clones import HOST, clone
from tests.e2e.support import DOMAIN, Target, changed, eventually, options
from tests.unit.terrafirma_host.health_kinds import KINDS, LENIENT

pytestmark = pytest.mark.e2e
long = pytest.mark.long

TASKS = ("preflight", "apt", "docker", "caddy", "app")
UNIT = "terrafirma-release-shop.service"

# Answers /healthz with the status and the Location in ANSWER.
WEB = """
import os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

time.sleep(float(os.environ.get("SLEEP", 0)))
status, _, location = os.environ.get("ANSWER", "200").partition(" ")

class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.path == "/healthz"
        self.send_response(int(status) if asked else 200)
        if asked and location:
            self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass

host, port = os.environ.get("LISTEN", "0.0.0.0:8000").split(":")
ThreadingHTTPServer((host, int(port)), Answers).serve_forever()
"""
DOCKERFILE = """
FROM debian:trixie
RUN apt-get update && apt-get install -y --no-install-recommends python3
COPY web.py /
"""
WEB_SERVICE: dict[str, Any] = {
    "build": ".",
    "command": ["python3", "/web.py"],
    # With an init, the container ends at once on SIGTERM.
    "init": True,
}


@dataclass
class Shop:
    """A server with a compose project: a web service, and services that a test adds."""

    server: Target
    source: Path

    def data(self, **fields: Any) -> dict[str, Any]:
        described = {
            "source": str(self.source),
            "domain": DOMAIN,
            "compose": ["compose.yaml"],
            "service": "web",
            "user": "",
            "replicas": 2,
            "start_seconds": 30,
            "drain_seconds": 5,
            "stop_seconds": 3,
        }
        return {"apps": {"shop": described | fields}}

    def write(self, web: dict[str, Any] | None = None, **services: Any) -> None:
        """Write the compose file of the next release."""
        variables = {"VERSION": str(time.time_ns()), **((web or {}).get("environment") or {})}
        built = {"web": WEB_SERVICE | (web or {}) | {"environment": variables}}
        for name, service in services.items():
            built[name] = {"build": ".", "init": True, **service}
        (self.source / "compose.yaml").write_text(json.dumps({"services": built}))

    def call(self, *files: str, **fields: Any) -> subprocess.CompletedProcess[str]:
        words = options(self.data(**fields))
        tasks = files or ("tasks/app.py",)
        return self.server.pyinfra.imported.call("-y", *words, *self.server.arguments(), *tasks)

    def release(self, *files: str, **fields: Any) -> dict[str, Any]:
        result = self.call(*files, **fields)
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    def refused(self, **fields: Any) -> str:
        """Make a release that fails, while the old one serves; returns the messages."""
        before = self.serving
        with self.serves():
            result = self.call(**fields)
        assert result.returncode != 0, result.stdout
        assert "Traceback" not in result.stderr
        assert self.serving == before
        slots = self.server.run("docker ps --all --format '{{.Names}}'").split()
        assert {name.split("-")[1] for name in slots} == {before["slot"]}
        return result.stderr

    @property
    def serving(self) -> dict[str, Any]:
        said = self.server.run("cat /opt/terrafirma/shop/serving.json")
        answer: dict[str, Any] = json.loads(said)
        return answer

    @contextmanager
    def serves(self) -> Iterator[None]:
        """Check that visitors get 200 all the time."""
        ask = (
            f"curl -sk -o /dev/null -w '%{{http_code}}\\n' --resolve {DOMAIN}:443:127.0.0.1"
            f" https://{DOMAIN}/healthz"
        )
        loop = f"touch /tmp/ask; while test -e /tmp/ask; do {ask}; sleep 0.2; done"
        with subprocess.Popen(
            ["docker", "exec", self.server.name, "sh", "-c", loop],
            stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                yield
            finally:
                self.server.run("rm -f /tmp/ask")
            codes = process.communicate(timeout=30)[0].split()
        assert set(codes) == {"200"}, codes
        assert len(codes) > 3

    def step(self, name: str) -> bool:
        said = self.server.call("cat /run/terrafirma/apps/shop.json").stdout
        return f'"step": "{name}"' in said


@pytest.fixture(scope="module")
def shop(pyinfra: Pyinfra, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    source = tmp_path_factory.mktemp("source") / "shop"
    source.mkdir()
    (source / "web.py").write_text(WEB)
    (source / "Dockerfile").write_text(DOCKERFILE)
    with clone(pyinfra, "tf-h-health", 2511, HOST) as server:
        one = Shop(server, source)
        one.write()
        one.release(*(f"tasks/{name}.py" for name in TASKS))
        yield one


# --- healthy answers ------------------------------------------------------------------------------


@pytest.mark.promise("Caddy accepts every answer that a release accepts as healthy")
def test_debians_caddy_accepts_what_a_release_accepts(shop: Shop) -> None:
    """Every kind of answer; tests/unit/terrafirma_host/test_health.py tests a newer Caddy."""
    program = (ROOT / "tests/unit/terrafirma_host/health_kinds.py").read_text()
    library = "/usr/local/lib/terrafirma"
    said = shop.server.run(f"python3 - /usr/bin/caddy {library}", stdin=program)
    verdicts = json.loads(said.splitlines()[-1])
    assert {name: ours for name, (ours, _) in verdicts.items()} == {
        name: good for name, (_, good) in KINDS.items()
    }
    # Caddy follows redirects, and some other answers depend on the version of Go in its build.
    more = {name for name, verdict in verdicts.items() if verdict == [False, True]}
    assert {"302 to a login", "303"} <= more <= LENIENT
    assert [True, False] not in verdicts.values()


def test_caddy_asks_the_same_question(shop: Shop) -> None:
    """The running Caddy has the same health check for both slots."""
    said = shop.server.run("curl -s -H 'Host: localhost:2019' localhost:2019/config/")
    found = [
        json.JSONDecoder().raw_decode(said[one.end() - 1 :])[0]
        for one in re.finditer(r'"active":\{', said)
    ]
    assert len(found) == 2
    assert found[0] == found[1]
    assert found[0]["expect_status"] == 2
    assert found[0]["interval"], found[0]["timeout"] == (10**9, 4 * 10**9)
    assert found[0]["headers"]["User-Agent"] == ["terrafirma"]


@pytest.mark.promise(
    "A redirect, or an application that listens on another port, fails the release, and the "
    "message says what to set"
)
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            f"308 https://{DOMAIN}/healthz/",
            f"it answers 308 to https://{DOMAIN}/healthz/: set health_path to /healthz/",
        ),
        pytest.param("302 /login", "that it answers itself, without a login", marks=long),
        pytest.param("401", "it answers 401 to /healthz: set health_path to a path", marks=long),
        pytest.param("404", "it answers 404 to /healthz: set health_path to a path", marks=long),
        pytest.param("405", "it answers 405 to /healthz: its health path has", marks=long),
    ],
)
def test_an_answer_that_will_not_change(shop: Shop, answer: str, words: str) -> None:
    """The release fails soon, instead of succeeding and causing an outage."""
    shop.write({"environment": {"ANSWER": answer}})
    started = time.monotonic()
    said = shop.refused(start_seconds=90)
    assert words in said
    assert re.search(r"shop-\w+-web-[12] is not healthy \(no success from /healthz on port", said)
    assert time.monotonic() - started < 80


@pytest.mark.promise(like=test_an_answer_that_will_not_change)
@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("0.0.0.0:3000", "it listens on 3000, not on 8000: set container_port to 3000"),
        pytest.param(
            "127.0.0.1:8000", "it listens on 127.0.0.1:8000 alone: let it listen on", marks=long
        ),
    ],
)
def test_an_application_that_listens_elsewhere(shop: Shop, listen: str, words: str) -> None:
    shop.write({"environment": {"LISTEN": listen}})
    assert words in shop.refused(start_seconds=5)


# --- other services -------------------------------------------------------------------------------


WORKS = "while ! test -e /flags/broken; do sleep 0.1; done; echo no luck today; exit 9"


@pytest.mark.promise(
    "A worker that exits fails the release; a service may exit if the compose file marks it as "
    "one that runs once, in any of Compose's ways"
)
def test_workers_and_services_that_run_once(shop: Shop) -> None:
    """The web service restarts after a crash, whatever restart policy the files have."""
    setup = {"command": ["true"]}
    shop.write(
        {
            "restart": "no",
            # Compose prefers this policy.
            "deploy": {"restart_policy": {"condition": "none"}},
            "depends_on": {"setup": {"condition": "service_completed_successfully"}},
        },
        setup=setup,
        seed={"command": ["true"], "deploy": {"restart_policy": {"condition": "on-failure"}}},
        # The second attempt succeeds.
        tries={
            "command": ["sh", "-c", "test -e /tmp/there || { touch /tmp/there; exit 1; }"],
            "restart": "on-failure:5",
        },
        worker={
            "command": ["sh", "-c", WORKS],
            "restart": "always",
            "volumes": ["/srv/flags:/flags:ro"],
        },
    )
    shop.server.run("mkdir -p /srv/flags && rm -f /srv/flags/broken")
    with shop.serves():
        result = shop.call()
    assert result.returncode == 0, result.stderr
    assert "web serves: its restart policy is unless-stopped here, not no" in result.stderr
    assert changed(shop.release()) == []
    slot = shop.serving["slot"]
    name = f"shop-{slot}-web-1"
    pid = shop.server.run(f"docker inspect --format '{{{{.State.Pid}}}}' {name}")
    shop.server.run(f"kill -9 {pid}")
    state = f"docker inspect --format '{{{{.State.Running}}}} {{{{.State.Pid}}}}' {name}"
    eventually(lambda: shop.server.run(state) not in (f"true {pid}", "false 0"), 20)
    # New containers do not repair a worker that keeps failing: a run reports it.
    shop.server.run("touch /srv/flags/broken")
    time.sleep(2)
    result = shop.call(start_seconds=5)
    assert result.returncode != 0, result.stdout
    assert "no luck today" in result.stderr
    assert "it ended with code 9, and was started" in result.stderr
    shop.server.run("rm /srv/flags/broken")


ENDS = "sleep 3; echo no luck today; exit 1"


@pytest.mark.promise(like=test_workers_and_services_that_run_once)
@pytest.mark.parametrize(
    ("worker", "words"),
    [
        ({"command": ["false"]}, "does not stay up"),
        pytest.param({"command": ["sh", "-c", ENDS]}, "no luck today", marks=long),
        pytest.param({"command": ["true"]}, '`restart: "no"` is for what runs once', marks=long),
        pytest.param({"command": ["nowhere"]}, "nowhere", marks=long),
        pytest.param(
            {"command": ["sh", "-c", "exit 3"], "restart": "no"},
            "worker-1 failed with code 3",
            marks=long,
        ),
        pytest.param(
            {"command": ["sh", "-c", "exit 3"], "restart": "on-failure:2"},
            "worker-1 failed with code 3",
            marks=long,
        ),
    ],
)
def test_a_worker_that_ends(shop: Shop, worker: dict[str, Any], words: str) -> None:
    shop.write(worker=worker)
    assert words in shop.refused()


@long
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sleep infinity", "has not done its work within 5 s (start_seconds), and others wait"),
        (
            "sleep infinity",
            "others wait for the end of setup, for which it has 5 s (start_seconds)",
        ),
        ("echo why; exit 7", "setup-1 failed with code 7; its log:"),
    ],
)
def test_a_service_that_others_wait_for_in_vain(shop: Shop, command: str, words: str) -> None:
    waits = {"depends_on": {"setup": {"condition": "service_completed_successfully"}}}
    shop.write(waits, setup={"command": ["sh", "-c", command]})
    started = time.monotonic()
    assert words in shop.refused(start_seconds=5)
    assert time.monotonic() - started < 70


# --- stopped releases -----------------------------------------------------------------------------


@pytest.mark.promise(
    "A release whose unit is stopped fails for the caller, and the old release goes on serving"
)
@pytest.mark.parametrize(
    ("step", "how", "ends"),
    [
        ("health", f"systemctl stop {UNIT}", "stopped by SIGTERM, at the step 'health'"),
        pytest.param(
            "health", f"systemctl kill --kill-whom=main {UNIT}", "stopped by SIGTERM", marks=long
        ),
        pytest.param(
            "health", f"systemctl kill --signal=HUP --kill-whom=main {UNIT}", "by SIGHUP",
            marks=long,
        ),
        pytest.param(
            "health", f"systemctl kill --signal=KILL {UNIT}", "was stopped before its end",
            marks=long,
        ),
        pytest.param(
            "health", "pkill -f '[s]ystemd-run --quiet --wait'", "nobody waits for the release",
            marks=long,
        ),
    ],
)  # fmt: skip
def test_a_release_that_is_stopped_is_no_success(
    shop: Shop, step: str, how: str, ends: str
) -> None:
    shop.write({"environment": {"SLEEP": "12"}})
    before = shop.serving
    there = shop.server.run("docker ps -aq --filter name=shop- | sort")

    def stop() -> None:
        eventually(lambda: shop.step(step), 60)
        time.sleep(1)
        shop.server.run(how)

    thread = threading.Thread(target=stop)
    with shop.serves():
        thread.start()
        result = shop.call()
        thread.join()
        assert result.returncode != 0, result.stdout
        assert ends in result.stderr
        # If only the caller is gone, the release goes on to its end.
        gone = "systemctl show --property ActiveState --value"
        eventually(lambda: shop.server.run(f"{gone} {UNIT}") == "inactive", 60)
    if "nobody waits" not in ends:
        assert shop.serving == before
        assert shop.server.run("docker ps -aq --filter name=shop- | sort") == there


@long
def test_a_release_that_is_stopped_after_commit_is_a_success(shop: Shop) -> None:
    shop.write({"environment": {"SLEEP": "1"}})
    before = shop.serving

    def stop() -> None:
        eventually(lambda: shop.step("drain"), 60)
        shop.server.run(f"systemctl stop {UNIT}")

    thread = threading.Thread(target=stop)
    thread.start()
    with shop.serves():
        result = shop.call()
    thread.join()
    assert result.returncode == 0, result.stderr
    assert "warning: stopped by SIGTERM, at the step 'drain'" in result.stderr
    assert shop.serving["release"] != before["release"]
    assert changed(shop.release()) == []


# --- output of containers -------------------------------------------------------------------------


def test_output_of_a_container_is_shown_as_text(shop: Shop) -> None:
    """The output has an error at its beginning, much text, and control sequences."""
    program = (
        "import sys\n"
        "print('\\x1b]0;owned\\x07\\x1b[31mKeyError: the first words\\x1b[0m\\x1b[2J')\n"
        "for n in range(500): print('frame', n)\n"
        "print('x' * 260_000 + '\\u202egnorw\\x9b1m\\rend')\n"
        "sys.exit(1)\n"
    )
    shop.write({"command": ["python3", "-c", program.replace("$", "$$")]})
    said = shop.refused()
    assert "KeyError: the first words" in said
    assert "frame 499" in said
    assert "more lines …" in said
    lines = [line for line in said.splitlines() if "frame" in line or "xxx" in line]
    assert len(lines) < 40
    assert max(map(len, lines)) < 1100
    log = shop.server.run("cat /opt/terrafirma/shop/log")
    for text in (*lines, log):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


@long
def test_logs_are_text_too(shop: Shop) -> None:
    worker = {"command": ["sh", "-c", r"printf '\033[31mred\033[0m\n'; exec sleep infinity"]}
    shop.write(worker=worker)
    shop.release()
    said = shop.server.run("terrafirma logs shop")
    assert re.search(r"worker-1 +\| red$", said, re.MULTILINE)
    assert "\x1b" not in said
    said = shop.server.run("timeout 5 terrafirma logs shop --follow; echo $?")
    assert "red" in said
    assert "\x1b" not in said

"""Releases under constant load: all that serves is new or old, and no request fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Pyinfra
from tests.e2e.support import (
    EVERYTHING,
    Container,
    Load,
    Target,
    changed,
    eventually,
    load,
    options,
    target,
)

pytestmark = pytest.mark.e2e

# Of each case; TERRAFIRMA_REQUESTS=20000 for the figures of the manual.
REQUESTS = int(os.environ.get("TERRAFIRMA_REQUESTS", "4000"))
PATHS = ("/whoami", "/whoami", "/whoami", "/")
STEPS = ("prepare", "migrate", "start", "health", "switch", "smoke", "commit", "drain", "stop")


@dataclass
class Site:
    """A server with the example application, whose source the tests change."""

    server: Target
    outsider: Container
    source: Path

    @property
    def data(self) -> dict[str, Any]:
        return {
            "app_source": str(self.source),
            "app_drain_seconds": 15,
            "app_start_seconds": 60,
            "app_replicas": 2,
            "app_secrets": {"token": "born"},
        }

    def call(self, *files: str, **data: Any) -> subprocess.CompletedProcess[str]:
        merged = options(self.data | data)
        return self.server.pyinfra.call(
            "-y", *merged, *self.server.arguments(), *(files or ("tasks/app.py",))
        )

    def deploy(self, *files: str, **data: Any) -> dict[str, Any]:
        result = self.call(*files, **data)
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    def change(self, text: str = "") -> None:
        """The next release of the same code."""
        path = self.source / "VERSION"
        path.write_text(f"{time.monotonic_ns()}{text}\n")

    @property
    def serving(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.server.run("cat /opt/terrafirma/api/serving.json"))
        return answer

    @property
    def slots(self) -> list[str]:
        """The slots that have containers, running or not."""
        names = self.server.run("docker ps --all --format '{{.Names}}'").split()
        return sorted({name.split("-")[1] for name in names if name.startswith("api-")})

    @contextmanager
    def load(self, requests: int = REQUESTS) -> Iterator[Load]:
        with load(self.outsider, self.server, *PATHS, requests=requests, mix=EVERYTHING) as result:
            yield result

    def is_converged(self, **data: Any) -> bool:
        return changed(self.deploy(**data)) == []


@pytest.fixture(scope="module")
def site(
    pyinfra: Pyinfra, outsider: Container, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    source = tmp_path_factory.mktemp("source") / "api"
    shutil.copytree(ROOT / "examples/api", source)
    with target(pyinfra, "tf-test-releases", 2441) as server:
        one = Site(server, outsider, source)
        one.deploy("deploy.py")
        yield one


def releases_of(result: Load) -> set[str]:
    return {answer["release"] for answer in result["answers"]}


def nothing_failed(result: Load, requests: int = REQUESTS) -> None:
    assert result["failed"] == [], result["failed"][:5]
    assert result["requests"] >= requests


def test_a_good_release(site: Site) -> None:
    before = site.serving
    with site.load() as result:
        site.change()
        site.deploy()
        committed = time.time()
    nothing_failed(result)
    after = site.serving
    assert after["release"] != before["release"]
    assert after["slot"] != before["slot"]
    assert releases_of(result) == {before["release"], after["release"]}
    # Never mixed: whatever was asked for once the new one served, it answered.
    late = [one for one in result["answers"] if one["release"] == before["release"]]
    assert max(one["asked"] for one in late) < committed
    assert site.slots == [after["slot"]]
    assert site.is_converged()


def test_a_rollback(site: Site) -> None:
    new = site.serving["release"]
    started = time.monotonic()
    with site.load() as result:
        answer = site.deploy("tasks/rollback.py", app_rollback="api")
        took = time.monotonic() - started
    assert changed(answer)
    nothing_failed(result)
    old = site.serving["release"]
    assert old != new
    assert took < 40
    # The data still describe what was taken back: a run does not bring it back by itself.
    said = site.call()
    assert said.returncode == 0
    assert f"release {new} was taken back" in said.stderr
    assert changed(json.loads(said.stdout)) == []
    shown = site.server.run("terrafirma releases api")
    assert re.search(rf"rollback +{old}", shown)
    assert re.search(rf"{new} .*taken back, kept", shown)
    # By name, it comes back.
    site.deploy("tasks/rollback.py", app_rollback=f"api:{new}")
    assert site.serving["release"] == new
    assert site.is_converged()


def test_more_and_fewer_replicas(site: Site) -> None:
    release = site.serving["release"]
    with site.load() as result:
        site.deploy(app_replicas=6)
        assert site.serving["replicas"] == 6
        site.deploy(app_replicas=2)
    nothing_failed(result)
    assert releases_of(result) == {release}
    assert len({one["replica"] for one in result["answers"]}) == 10
    assert site.is_converged()


def test_a_change_of_the_site(site: Site) -> None:
    with site.load() as result:
        for name in ("one", "two", "three"):
            site.deploy("tasks/caddy.py", app_headers={"X-Test": name})
        site.deploy("tasks/caddy.py")
    nothing_failed(result)


def test_another_secret_is_another_release(site: Site) -> None:
    before = site.serving["release"]
    with site.load() as result:
        site.server.run("rm /etc/terrafirma/secrets/app/api/token")
        site.deploy()
    nothing_failed(result)
    assert site.serving["release"] != before


def test_a_restart_of_the_engine(site: Site) -> None:
    with site.load() as result:
        site.server.run("systemctl restart docker")
    nothing_failed(result)
    assert site.is_converged()


def broken(site: Site, name: str) -> dict[str, Any]:
    """Break the next release; what a deploy is told besides."""
    main = site.source / "main.py"
    docker = site.source / "Dockerfile"
    match name:
        case "does not build":
            docker.write_text(docker.read_text() + "RUN echo no luck today && false\n")
        case "crashes at its start":
            main.write_text("raise SystemExit('no luck today')\n")
        case "never becomes healthy":
            main.write_text(main.read_text().replace('"select 1"', '"select no_luck_today"'))
            return {"app_start_seconds": 15}
        case "fails the smoke test":
            return {"app_smoke_path": "/no/luck/today", "app_env": {"A": str(time.time_ns())}}
        case "fails its migration":
            site.change()
            return {"app_migrate": ["sh", "-c", "echo no luck today >&2; exit 3"]}
        case "finds a port taken":
            site.change()
            slot = "green" if site.serving["slot"] == "blue" else "blue"
            port = {"blue": 8000, "green": 8064}[slot]
            serve = f"python3 -m http.server {port} --bind 127.0.0.1"
            site.server.run(f"systemd-run --quiet --unit squatter {serve}")
            eventually(lambda: site.server.call(f"curl -s 127.0.0.1:{port}").returncode == 0, 10)
        case "finds the disk full":
            docker.write_text(
                docker.read_text() + "RUN dd if=/dev/zero of=/big bs=1M count=100000 2>&1\n"
            )
            return {}
        case "has no valid snippet":
            snippet = site.source.parent / "snippet"
            snippet.write_text("no_luck_today\n")
            return {"app_snippet": str(snippet)}
    return {}


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("does not build", (), "the image does not build"),
        ("crashes at its start", (), "does not stay up; its last words"),
        ("never becomes healthy", (), "no_luck_today"),
        ("fails the smoke test", (), "/no/luck/today answers 404"),
        ("fails its migration", (), "the migration failed: docker compose: no luck today"),
        ("finds a port taken", (), "address already in use"),
        ("has no valid snippet", ("tasks/caddy.py", "tasks/app.py"), "no_luck_today"),
    ],
)
def test_a_broken_release(site: Site, name: str, files: tuple[str, ...], words: str) -> None:
    kept = site.source.with_name("kept")
    shutil.copytree(site.source, kept)
    before = site.serving
    try:
        with site.load() as result:
            data = broken(site, name)
            answer = site.call(*files, **data)
            # It is over: what was started is gone, and says no more.
            assert site.slots == [before["slot"]]
    finally:
        shutil.rmtree(site.source)
        kept.rename(site.source)
        site.server.call("systemctl stop squatter")
    nothing_failed(result)
    assert answer.returncode == 1
    assert words in answer.stderr, answer.stderr[-3000:]
    assert "Traceback" not in answer.stderr
    assert site.serving == before
    assert releases_of(result) == {before["release"]}
    # With its cause gone, the same run makes a release, or has nothing to do.
    site.deploy("tasks/caddy.py", "tasks/app.py")
    assert site.is_converged()


@pytest.mark.parametrize("step", STEPS)
def test_a_release_that_is_killed(site: Site, step: str) -> None:
    before = site.serving["release"]
    data = {"app_migrate": ["sleep", "1"], "app_env": {"STEP": step}}
    site.change()
    with site.load(REQUESTS // 2) as result:
        process = start(site, **data)
        wait_for_step(site, step)
        # All of it at once: who deploys, and what works on the host.
        process.kill()
        site.server.run("systemctl kill --signal KILL terrafirma-api.service", timeout=60)
        process.wait(timeout=60)
        eventually(lambda: not unit_runs(site), 90)
        # Before anybody runs anything again.
        after = site.serving["release"]
        asked = time.time()
        time.sleep(1)
    nothing_failed(result, REQUESTS // 2)
    if step not in ("drain", "stop"):
        assert after == before
    late = {one["release"] for one in result["answers"] if one["asked"] > asked}
    assert late == {after}
    site.deploy(**data)
    assert site.serving["release"] not in ("", before)
    assert site.slots == [site.serving["slot"]]
    assert site.is_converged(**data)


def start(site: Site, **data: Any) -> subprocess.Popen[str]:
    command = [str(ROOT / ".venv/bin/python"), "-m", "pyinfra", "-y", *options(site.data | data)]
    return subprocess.Popen(
        [*command, *site.server.arguments(), "tasks/app.py"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def wait_for_step(site: Site, step: str) -> None:
    """A look each 10 ms, on the server: some steps are short."""
    order = [*STEPS, "prune"]
    later = "|".join(order[order.index(step) :])
    site.server.run(
        "for n in $(seq 6000); do grep -qE"
        f' \'"step": "({later})"\' /run/terrafirma/apps/api.json 2> /dev/null && exit 0;'
        " sleep 0.01; done; exit 1",
        timeout=120,
    )


def unit_runs(site: Site) -> bool:
    state = site.server.run("systemctl show -p ActiveState --value terrafirma-api.service")
    return state not in ("inactive", "failed")


def test_a_deploy_that_loses_its_connection_goes_on(site: Site) -> None:
    before = site.serving["release"]
    site.change()
    with site.load(REQUESTS // 2) as result:
        process = start(site)
        wait_for_step(site, "start")
        process.kill()
        process.wait(timeout=60)
        eventually(lambda: site.serving["release"] != before, 90)
        eventually(lambda: not unit_runs(site), 60)
    nothing_failed(result, REQUESTS // 2)
    assert site.is_converged()


def test_two_at_once(site: Site) -> None:
    site.change()
    process = start(site)
    try:
        wait_for_step(site, "prepare")
        answer = site.server.call("terrafirma restart api")
        assert answer.returncode == 1
        assert "another release of api is going on: " in answer.stderr
        assert re.search(r"\S+@\S+ does the release since 20\S+, now at the step", answer.stderr)
    finally:
        process.wait(timeout=180)
    assert site.is_converged()


@pytest.mark.parametrize("count", [1, 2])
def test_replicas_that_are_killed(site: Site, count: int) -> None:
    site.deploy(app_replicas=4)
    with site.load() as result:
        names = site.server.run("docker ps --format '{{.Names}}' | grep '^api-'").split()
        pids = site.server.run(
            f"docker inspect --format '{{{{.State.Pid}}}}' {' '.join(names[:count])}"
        )
        site.server.run(f"kill -9 {' '.join(pids.split())}")
        eventually(
            lambda: "starting" not in site.server.run("docker ps --format '{{.Status}}'"), 60
        )
    # What was under way on a killed replica: a POST is not tried again, nor is half an answer.
    lost = [one for one in result["failed"] if one["method"] == "GET" and one["kind"] != "events"]
    assert lost == []
    assert len(result["failed"]) <= 40 * count
    assert site.deploy()["results"]["totals"]["error"] == 0


@pytest.mark.parametrize("unit", ["caddy", "docker"])
def test_a_server_that_is_killed(site: Site, unit: str) -> None:
    with site.load() as result:
        site.server.run(f"systemctl kill --signal KILL {unit}")
        time.sleep(5)
    if unit == "docker":
        nothing_failed(result)
    else:
        # In it are the connections themselves.
        assert result["gap_seconds"] < 10
        assert {one["kind"] for one in result["failed"]} <= set(result["kinds"])
    site.server.run(f"systemctl is-active {unit}")
    assert site.is_converged()

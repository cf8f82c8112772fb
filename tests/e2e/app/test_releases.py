"""Releases under constant load: the old or the new release answers every request."""

from __future__ import annotations

import base64
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
from tests.e2e.clones import DEPLOYED, clone
from tests.e2e.support import (
    DOMAIN,
    EVERYTHING,
    Container,
    Load,
    Mix,
    Registry,
    Target,
    api,
    beside_api,
    changed,
    eventually,
    is_releasing,
    load,
    open_ports,
    options,
    output,
    registry,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.budget(
        minutes=8, why="a release for each way to fail, with clients that ask all the time"
    ),
]
long = pytest.mark.long

# Requests of each case; `make long` sends 20,000, as fast as possible.
REQUESTS = int(os.environ.get("TERRAFIRMA_REQUESTS", "2000"))
RATE = 200 if REQUESTS <= 2000 else 0
# Duration of the slowest request, and how long a release waits for requests under way, in seconds;
# connections that stay open use all of that time.
SLOW, DRAIN = (2, 4) if REQUESTS <= 2000 else (5, 9)
MIX = EVERYTHING | Mix(slow_path=f"/slow?seconds={SLOW}")
PATHS = ("/whoami", "/whoami", "/whoami", "/")
STEPS = ("prepare", "migrate", "start", "health", "switch", "smoke", "commit", "drain", "stop")

# A separate disk for images, so that a build that fills it does not fill this machine's.
SMALL_DISK = """
set -e
running=$(docker ps --quiet)
docker stop --time 5 $running
systemctl stop docker.socket docker.service
mkdir /srv/small && mount -t tmpfs -o size=3g tmpfs /srv/small
cp -a /var/lib/docker/. /srv/small
mount --bind /srv/small /var/lib/docker && umount /srv/small
systemctl start docker.service
docker start $running
"""


@dataclass
class Site:
    """A server with the example application, whose source the tests change."""

    server: Target
    outsider: Container
    source: Path

    @property
    def data(self) -> dict[str, Any]:
        return api(
            source=str(self.source),
            drain_seconds=DRAIN,
            start_seconds=60,
            replicas=2,
            secrets={"token": "generated"},
        )

    def call(self, *files: str, **data: Any) -> subprocess.CompletedProcess[str]:
        merged = options(self.data | data)
        return self.server.pyinfra.imported.call(
            "-y", *merged, *self.server.arguments(), *(files or ("tasks/app.py",))
        )

    def deploy(self, *files: str, **data: Any) -> dict[str, Any]:
        result = self.call(*files, **data)
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    def change(self, text: str = "") -> None:
        """Make the source differ, so that the same code is another release."""
        path = self.source / "VERSION"
        path.write_text(f"{time.monotonic_ns()}{text}\n")

    @property
    def serving(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.server.run("cat /opt/terrafirma/api/serving.json"))
        return answer

    @property
    def image(self) -> str:
        """The image that serves."""
        return self.server.run(
            "docker inspect --format '{{.Image}}' $(docker ps -q --filter name=^api- | head -n 1)"
        )

    @property
    def slots(self) -> list[str]:
        """The slots that have containers, running or not."""
        names = self.server.run("docker ps --all --format '{{.Names}}'").split()
        return sorted({name.split("-")[1] for name in names if name.startswith("api-")})

    @contextmanager
    def load(self) -> Iterator[Load]:
        with load(
            self.outsider, self.server, *PATHS, requests=REQUESTS, rate=RATE, mix=MIX
        ) as result:
            yield result

    def is_converged(self, **data: Any) -> bool:
        return changed(self.deploy(**data)) == []


@pytest.fixture(scope="module")
def site(
    pyinfra: Pyinfra, outsider: Container, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    source = tmp_path_factory.mktemp("source") / "api"
    shutil.copytree(ROOT / "examples/api", source)
    with (source / ".dockerignore").open("a") as ignored:
        ignored.write("!VERSION\n")
    with clone(pyinfra, "tf-test-releases", 2441, DEPLOYED) as server:
        server.run(SMALL_DISK)
        one = Site(server, outsider, source)
        one.deploy("deploy.py")
        yield one


@pytest.fixture(scope="module")
def images() -> Iterator[Registry]:
    with registry("tf-test-images") as one:
        yield one


def releases_of(result: Load) -> set[str]:
    return {answer["release"] for answer in result["answers"]}


def nothing_failed(result: Load) -> None:
    assert result["failed"] == [], json.dumps(result["failed"][:5])
    assert result["requests"] >= REQUESTS


@pytest.mark.promise(
    "A release or a rollback fails no request over HTTP/1.1 and HTTP/2, slow requests, "
    "POSTs and event streams included"
)
@pytest.mark.smoke
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
    # Never mixed: once the new release serves, it answers every new request.
    late = [one for one in result["answers"] if one["release"] == before["release"]]
    assert max(one["asked"] for one in late) < committed
    assert site.slots == [after["slot"]]
    assert site.is_converged()


@pytest.mark.promise(like=test_a_good_release)
@pytest.mark.smoke
def test_a_rollback(site: Site) -> None:
    new = site.serving["release"]
    started = time.monotonic()
    with site.load() as result:
        answer = site.deploy("commands/rollback.py", rollback="api")
        took = time.monotonic() - started
    assert changed(answer)
    nothing_failed(result)
    old = site.serving["release"]
    assert old != new
    assert took < 120
    # The settings still describe the rolled back release, but a run does not release it again.
    said = site.call()
    assert said.returncode == 0
    assert f"release {new} was rolled back, and {old} serves: change the source" in said.stderr
    assert changed(json.loads(said.stdout)) == []
    # A run still gives changed settings to the release that serves.
    changed_settings = api(env={"CHANGED": "after the way back"})
    site.deploy(**changed_settings)
    assert site.is_converged(**changed_settings)
    assert site.serving["release"] not in (old, new)
    assert "CHANGED=after" in site.server.run("terrafirma run api -- env")
    site.deploy()
    assert site.serving["release"] == old
    shown = site.server.run("terrafirma releases api")
    assert re.search(rf"rollback +{old}", shown)
    assert re.search(rf"{new} .*rolled back, kept", shown)
    # A rollback that names the release brings it back, and withdraws nothing: without a name, the
    # next rollback goes back again.
    for release, serves in ((f"api:{new}", new), ("api", old), (f"api:{new}", new)):
        site.deploy("commands/rollback.py", rollback=release)
        assert site.serving["release"] == serves
    assert site.is_converged()


@pytest.mark.promise("Scaling from two replicas to six and back fails no request")
def test_more_and_fewer_replicas(site: Site) -> None:
    release = site.serving["release"]
    with site.load() as result:
        site.deploy(**api(replicas=6))
        assert site.serving["replicas"] == 6
        site.deploy(**api(replicas=2))
    nothing_failed(result)
    assert releases_of(result) == {release}
    assert len({one["replica"] for one in result["answers"]}) == 10
    assert site.is_converged()


@pytest.mark.promise("A changed header of the site fails no request")
@long
def test_a_change_of_the_site(site: Site) -> None:
    with site.load() as result:
        for name in ("one", "two"):
            site.deploy("tasks/caddy.py", **api(headers={"X-Test": name}))
        site.deploy("tasks/caddy.py")
    # Only a change of the site reloads Caddy; docs/limits.md says how Debian's Caddy behaves then.
    lost = [one for one in result["failed"] if "INTERNAL_ERROR" not in one["words"]]
    assert lost == [], json.dumps(lost)
    assert len(result["failed"]) <= 2
    assert result["requests"] >= REQUESTS


@long
def test_a_websocket_outlives_a_release(site: Site) -> None:
    """The WebSocket stays until the drain time ends; then it is closed with a close frame."""
    with site.load() as result:
        started = time.monotonic()
        site.change()
        site.deploy(**api(drain_seconds=3))
        took = time.monotonic() - started
    nothing_failed(result)
    assert took < 60
    assert result["reconnected"] >= 1


@pytest.mark.promise("A changed health path reaches Caddy together with the release that has it")
@long
def test_a_release_with_another_health_path(site: Site) -> None:
    """Caddy uses the health path of each slot's own release, so both slots stay healthy."""
    kept = {path: path.read_text() for path in map(site.source.joinpath, ("main.py", "Dockerfile"))}
    try:
        with site.load() as result:
            for path, text in kept.items():
                assert "/healthz" in text
                path.write_text(text.replace("/healthz", "/up"))
            site.deploy("tasks/caddy.py", "tasks/app.py", **api(health_path="/up"))
            moved = site.serving["release"]
            assert site.is_converged(**api(health_path="/up"))
            for path, text in kept.items():
                path.write_text(text)
            site.deploy("tasks/caddy.py", "tasks/app.py")
    finally:
        for path, text in kept.items():
            path.write_text(text)
    nothing_failed(result)
    assert releases_of(result) == {site.serving["release"], moved}


@pytest.mark.promise("A changed secret is released without a failed request")
def test_another_secret_is_another_release(site: Site) -> None:
    before = site.serving["release"]
    with site.load() as result:
        site.server.run("rm /etc/terrafirma/secrets/app/api/token")
        site.deploy()
    nothing_failed(result)
    assert site.serving["release"] != before


@pytest.mark.promise(
    "A secret of a failed release reaches no replica of the old one, not even a restarted one"
)
def test_a_secret_whose_release_failed_reaches_no_replica(site: Site) -> None:
    """Replicas have the secrets of their own release, even after Docker restarts them."""
    read = (
        "for one in $(docker ps --quiet --filter label=terrafirma.app=api);"
        " do docker exec $one cat /run/secrets/token; echo; done"
    )
    before = site.server.run(read).split()
    main = site.source / "main.py"
    kept = main.read_text()
    site.server.run("terrafirma secrets renew /etc/terrafirma/secrets/app/api token")
    main.write_text("raise SystemExit('no luck today')\n")
    assert site.call().returncode == 1
    main.write_text(kept)
    pids = site.server.run(
        "docker inspect --format '{{.State.Pid}}'"
        " $(docker ps --quiet --filter label=terrafirma.app=api)"
    )
    for pid in pids.split():
        site.server.run(f"kill -9 {pid}")
        eventually(lambda: site.server.call(read).stdout.split() == before, 30)
    site.server.run("systemctl restart docker")
    eventually(lambda: site.server.call(read).stdout.split() == before, 30)
    # The next release has the new secret.
    site.deploy()
    after = site.server.run(read).split()
    assert len(after) == len(before) == 2
    assert not set(after) & set(before)
    directory = "/etc/terrafirma/secrets/slots/api"
    assert site.server.run(f"ls {directory}").split() == [site.serving["slot"]]


@pytest.mark.promise("A restart of dockerd fails no request")
def test_a_restart_of_the_engine(site: Site) -> None:
    with site.load() as result:
        site.server.run("systemctl restart docker")
    nothing_failed(result)
    assert result["gap_seconds"] < 5
    assert site.is_converged()


# Connects to the ports all the time while the command runs, and for 3 s longer.
KNOCK = """
import json, socket, subprocess, sys, threading, time
command, *ports = sys.argv[1:]
over, refused, took = threading.Event(), [], []
def knock():
    while not over.wait(0.005):
        for port in ports:
            begun = time.monotonic()
            try:
                socket.create_connection(("127.0.0.1", int(port)), 5).close()
                took.append(time.monotonic() - begun)
            except OSError as error:
                refused.append(f"{port}: {error}")
thread = threading.Thread(target=knock)
thread.start()
subprocess.run(command, shell=True, check=True)
over.wait(3)
over.set()
thread.join()
print(json.dumps({"answered": len(took), "longest": max(took), "refused": refused}))
"""
KILLED = (
    # The engine restarts 2 s after each end, and each pause lets it get a bit further.
    "for after in 0 2.2 2.3 2.4 2.5 2.6 2.7 2.8; do sleep $after;"
    " systemctl kill --kill-whom main --signal KILL docker; done;"
    " for n in $(seq 300); do systemctl --quiet is-active docker && exit 0;"
    " sleep 0.1; done; exit 1"
)


@pytest.mark.promise("Replicas accept connections while dockerd starts")
@pytest.mark.parametrize(
    "command",
    [
        pytest.param("systemctl restart docker", id="once"),
        pytest.param(KILLED, id="killed", marks=long),
    ],
)
def test_a_port_answers_while_the_engine_starts(site: Site, command: str) -> None:
    """The test opens new connections; Caddy alone would mostly use those that it keeps open."""
    published = re.findall(
        r"127\.0\.0\.1:(\d+)->", site.server.run("docker ps --format '{{.Ports}}'")
    )
    assert len(published) == 2
    said = site.server.python(KNOCK, command, *published)
    assert said["refused"] == []
    assert said["answered"] > 500
    # No packet was lost and sent again, which takes a second.
    assert said["longest"] < 0.9
    # The copy of the rules was removed when the engine had started.
    assert "TERRAFIRMA" not in site.server.run("iptables --wait -t nat -S")
    assert site.is_converged()


def broken(site: Site, name: str) -> dict[str, Any]:
    """Break the next release; returns further settings for the deploy."""
    main = site.source / "main.py"
    docker = site.source / "Dockerfile"
    match name:
        case "does not build":
            docker.write_text(docker.read_text() + "RUN echo no luck today && false\n")
        case "crashes at its start":
            main.write_text("raise SystemExit('no luck today')\n")
        case "never becomes healthy":
            main.write_text(main.read_text().replace('"select 1"', '"select no_luck_today"'))
            return api(start_seconds=15)
        case "is asked at the wrong place":
            site.change()
            return api(start_seconds=10, health_path="/no/luck/today")
        case "fails the smoke test":
            return api(smoke_path="/no/luck/today", env={"A": str(time.time_ns())})
        case "fails its migration":
            site.change()
            return api(migrate=["sh", "-c", "echo no luck today >&2; exit 3"])
        case "finds a port taken":
            site.change()
            slot = "green" if site.serving["slot"] == "blue" else "blue"
            port = {"blue": 8000, "green": 8064}[slot]
            serve = f"python3 -m http.server {port} --bind 127.0.0.1"
            site.server.run(f"systemd-run --quiet --unit squatter {serve}")
            eventually(lambda: site.server.call(f"curl -s 127.0.0.1:{port}").returncode == 0, 10)
        case "finds the disk full":
            docker.write_text(
                docker.read_text() + "USER 0\nRUN dd if=/dev/zero of=/big bs=1M 2>&1\n"
            )
        case "has no valid snippet":
            snippet = site.source.parent / "snippet"
            snippet.write_text("no_luck_today\n")
            return api(snippet=str(snippet))
    return {}


@pytest.mark.promise(
    "A release that crashes, does not build, stays unhealthy, or fails its migration or "
    "smoke test fails no request, and all replicas of the old release go on serving"
)
@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("does not build", (), "the image does not build"),
        pytest.param(
            "crashes at its start",
            (),
            "does not stay up; its log",
            id="crashes",
            marks=pytest.mark.smoke,
        ),
        pytest.param("never becomes healthy", (), "no_luck_today", marks=long),
        (
            "is asked at the wrong place",
            ("tasks/caddy.py", "tasks/app.py"),
            "no success from /no/luck/today on port",
        ),
        ("fails the smoke test", (), "/no/luck/today answers 404"),
        ("fails its migration", (), "the migration failed: docker compose: no luck today"),
        pytest.param("finds a port taken", (), "address already in use", id="port", marks=long),
        pytest.param("finds the disk full", (), "o space left on device", id="disk", marks=long),
        pytest.param(
            "has no valid snippet", ("tasks/caddy.py", "tasks/app.py"), "no_luck_today", marks=long
        ),
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
            # The new containers are removed by the time the run ends.
            assert site.slots == [before["slot"]]
    finally:
        shutil.rmtree(site.source)
        kept.rename(site.source)
        site.server.call("systemctl stop squatter")
    nothing_failed(result)
    assert answer.returncode == 1
    assert words in answer.stderr, answer.stderr[-3000:]
    # The output of an application that never becomes healthy contains its own traceback.
    ours = r'File "[^"]*/(terrafirma|terrafirma_host|pyinfra\w*|tasks)[/"]'
    wrong = ours if name == "never becomes healthy" else "Traceback"
    assert not re.search(wrong, answer.stderr)
    assert site.serving == before
    over = time.time() - 1
    late = {one["release"] for one in result["answers"] if one["asked"] > over}
    assert late <= {before["release"]}
    if name != "fails the smoke test":  # in which the new release already serves
        assert releases_of(result) == {before["release"]}
    # Once the cause is gone, the same run makes a release, or has nothing to do.
    site.deploy("tasks/caddy.py", "tasks/app.py")
    assert site.is_converged()


@pytest.mark.promise(
    "A release that is killed at any step fails no request, and the next run completes it"
)
@pytest.mark.parametrize(
    "step",
    [step if step in ("health", "drain") else pytest.param(step, marks=long) for step in STEPS],
)
def test_a_release_that_is_killed(site: Site, step: str) -> None:
    before = site.serving["release"]
    data = api(migrate=["sleep", "1"], env={"STEP": step})
    site.change()
    with site.load() as result:
        process = start(site, **data)
        wait_for_step(site, step)
        # Kill pyinfra and the program on the host at once.
        process.kill()
        site.server.run("systemctl kill --signal KILL terrafirma-release-api.service", timeout=60)
        process.wait(timeout=60)
        eventually(lambda: not is_releasing(site.server), 90)
        # The state before any other run or command.
        after = site.serving["release"]
        asked = time.time()
        time.sleep(1)
    nothing_failed(result)
    # `switch` to `commit` are too short to be killed for sure, so either release may serve.
    if step in ("prepare", "migrate", "start", "health"):
        assert after == before
    if step in ("drain", "stop"):
        assert after != before
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
    """Poll on the server, every 10 ms, because some steps are short."""
    order = [*STEPS, "prune"]
    later = "|".join(order[order.index(step) :])
    site.server.run(
        "for n in $(seq 6000); do grep -qE"
        f' \'"step": "({later})"\' /run/terrafirma/apps/api.json 2> /dev/null && exit 0;'
        " sleep 0.01; done; exit 1",
        timeout=120,
    )


@pytest.mark.promise("A release outlives the connection that started it")
def test_a_deploy_that_loses_its_connection_goes_on(site: Site) -> None:
    before = site.serving["release"]
    site.change()
    with site.load() as result:
        process = start(site)
        wait_for_step(site, "start")
        process.kill()
        process.wait(timeout=60)
        eventually(lambda: site.serving["release"] != before, 90)
        eventually(lambda: not is_releasing(site.server), 60)
    nothing_failed(result)
    assert site.is_converged()


@pytest.mark.promise("Two releases of one application never run at once")
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


@pytest.mark.promise("A `kill -9` of one replica in four fails no GET")
@pytest.mark.parametrize("count", [1, pytest.param(2, marks=long)])
def test_replicas_that_are_killed(site: Site, count: int) -> None:
    site.deploy(**api(replicas=4))
    with site.load() as result:
        names = site.server.run("docker ps --format '{{.Names}}' | grep '^api-'").split()
        pids = site.server.run(
            f"docker inspect --format '{{{{.State.Pid}}}}' {' '.join(names[:count])}"
        )
        site.server.run(f"kill -9 {' '.join(pids.split())}")
        eventually(
            lambda: "starting" not in site.server.run("docker ps --format '{{.Status}}'"), 60
        )
    # Long connections to a killed replica break; a POST that it had begun is not sent again.
    lasting = ("websocket", "events")
    assert [
        one for one in result["failed"] if one["method"] == "GET" and one["kind"] not in lasting
    ] == []
    assert len(result["failed"]) <= 20 * count
    assert site.deploy()["results"]["totals"]["error"] == 0


@pytest.mark.promise("A `kill -9` of dockerd fails no request")
@pytest.mark.parametrize("unit", [pytest.param("caddy", marks=long), "docker"])
def test_a_server_that_is_killed(site: Site, unit: str) -> None:
    with site.load() as result:
        site.server.run(f"systemctl kill --signal KILL {unit}")
        time.sleep(5)
    # A killed Caddy loses all its connections.
    assert result["gap_seconds"] < {"docker": 5, "caddy": 10}[unit]
    if unit == "docker":
        nothing_failed(result)
    site.server.run(f"systemctl is-active {unit}")
    assert site.is_converged()


# --- other kinds of applications ------------------------------------------------------------------


@pytest.mark.promise(
    "Images come from a private registry, and its password is stored with the secrets and nowhere "
    "else"
)
@long
def test_an_image_of_a_private_registry(
    site: Site, images: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.trust(site.server)
    serving = site.image
    first = images.push(site.server, serving, "team/api:stable")
    monkeypatch.setenv("REGISTRY_PASSWORD", images.password)
    data = api(
        source="",
        image=first,
        registries={images.host: {"user": images.user, "password": "env:REGISTRY_PASSWORD"}},
    )
    with site.load() as result:
        site.deploy(**data)
    nothing_failed(result)
    before = site.serving
    asked = images.requests()
    assert site.is_converged(**data)
    # The plan and the execution ask once.
    assert images.requests() - asked == 1

    # A tag that moves makes another release.
    site.server.run(
        "DOCKER_BUILDKIT=0 docker build -q -t moved -",
        stdin=f"FROM {serving}\nENV MOVED=yes\n",
        timeout=120,
    )
    images.push(site.server, "moved", "team/api:stable")
    with site.load() as result:
        site.deploy(**data)
    nothing_failed(result)
    after = site.serving
    assert after["release"] != before["release"]
    assert "MOVED=yes" in site.server.run("docker exec $(docker ps -q | head -n 1) env")

    # A missing image, and a wrong password.
    with site.load() as result:
        answer = site.call(**data | api(image=f"{images.host}/team/api:never"))
        assert answer.returncode == 1
        assert f"team/api:never: {images.host} has no such image" in answer.stderr
        monkeypatch.setenv("REGISTRY_PASSWORD", "a-guess-that-is-wrong")
        answer = site.call(**data | api(image=f"{images.host}/team/api:other"))
        assert answer.returncode == 1
        assert f"does not show it to '{images.user}' (HTTP 401): is the password" in answer.stderr
    nothing_failed(result)
    assert site.serving == after
    monkeypatch.setenv("REGISTRY_PASSWORD", images.password)
    site.deploy(**data)

    # The password is in the directory of the secrets, for root, and nowhere else.
    found = site.server.run(
        f"grep -rlF {images.password} /etc /opt /root /home /run /var/lib/terrafirma /var/log"
        " 2> /dev/null || true"
    )
    assert found.split() == [
        f"/etc/terrafirma/secrets/app/api/.registry_{images.host.replace(':', '_')}"
    ]
    encoded = base64.b64encode(f"{images.user}:{images.password}".encode()).decode()
    assert site.server.run(f"grep -rlsF {encoded} /etc /opt /root /run || true") == ""


PRIVATE = """
services:
  web:
    build: .
  worker:
    image: HOST/team/worker:1
    entrypoint: [sleep, infinity]
    healthcheck: {disable: true}
  store:
    image: HOST/team/store:1
    entrypoint: [sleep, infinity]
    healthcheck: {disable: true}
"""


@pytest.mark.promise("Images of a compose project come from a private registry")
@long
def test_a_project_whose_images_are_private(
    site: Site, images: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.trust(site.server)
    serving = site.image
    base, *_ = (
        images.push(site.server, serving, f"team/{name}:1") for name in ("base", "worker", "store")
    )
    (tmp_path / "compose.yaml").write_text(PRIVATE.replace("HOST", images.host))
    (tmp_path / "Dockerfile").write_text(
        f"FROM {base}\nWORKDIR /web\nCOPY compose.yaml healthz\n"
        'ENTRYPOINT ["python3", "-m", "http.server", "8000"]\n'
    )
    depot = {
        "source": str(tmp_path), "compose": ["compose.yaml"], "service": "web",
        "stateful": ["store"], "domain": "depot.terrafirma.test", "user": "", "port": 9000,
        "replicas": 1, "drain_seconds": 1,
    }  # fmt: skip
    answer = site.call("tasks/caddy.py", "tasks/app.py", **beside_api(depot=depot))
    assert answer.returncode == 1
    assert (
        "does not show it to this address (without a login) (HTTP 401): registries" in answer.stderr
    )

    monkeypatch.setenv("REGISTRY_PASSWORD", images.password)
    depot |= {
        "registries": {images.host: {"user": images.user, "password": "env:REGISTRY_PASSWORD"}},
    }  # fmt: skip
    data = beside_api(depot=depot)
    site.deploy("tasks/app.py", **data)
    names = site.server.run("docker ps --format '{{.Names}}'").splitlines()
    assert sorted(name for name in names if name.startswith("depot-")) == [
        *("depot-blue-web-1", "depot-blue-worker-1", "depot-state-store-1"),
    ]
    assert site.is_converged(**data)
    site.deploy("tasks/caddy.py")
    site.server.run("terrafirma remove depot --confirm depot")


@long
def test_a_compose_project(site: Site, tmp_path: Path) -> None:
    project = tmp_path / "shop"
    shutil.copytree(ROOT / "examples/compose", project)
    shop = {
        "source": str(project), "compose": ["compose.yaml"], "service": "web",
        "stateful": ["redis"], "migrate": ["migrate"], "domain": "shop.terrafirma.test",
        "user": "", "port": 9000, "replicas": 2, "drain_seconds": 10,
    }  # fmt: skip
    data = beside_api(shop=shop)
    site.deploy("tasks/caddy.py", "tasks/app.py", **data)
    domain = "shop.terrafirma.test"
    ask = f"curl -sk --resolve {domain}:443:127.0.0.1 https://{domain}/"
    first = json.loads(site.server.run(ask))
    redis = "docker inspect --format '{{.Id}} {{.State.StartedAt}}' shop-state-redis-1"
    before = site.server.run(redis)
    assert site.is_converged(**data)

    with load(
        site.outsider, site.server, "/healthz", requests=REQUESTS, rate=RATE, domain=domain
    ) as result:
        main = project / "main.py"
        main.write_text(main.read_text() + "\n# another version\n")
        site.deploy("tasks/app.py", **data)
    nothing_failed(result)
    # Redis is left alone; the migration ran exactly once more.
    assert site.server.run(redis) == before
    second = json.loads(site.server.run(ask))
    assert len(second["migrations"]) == len(first["migrations"]) + 1
    names = site.server.run("docker ps --format '{{.Names}} {{.Ports}}'").splitlines()
    ours = sorted(line for line in names if line.startswith("shop-"))
    assert [line.split()[0] for line in ours] == [
        *("shop-green-web-1", "shop-green-web-2", "shop-green-worker-1", "shop-state-redis-1"),
    ]
    # No container has a port open to the internet.
    assert all("0.0.0.0" not in line for line in ours)
    assert open_ports(site.outsider, site.server, 8080, 6379, 9000, 9064) == []
    # The user's own files are unchanged.
    original = (ROOT / "examples/compose/compose.yaml").read_text()
    assert (project / "compose.yaml").read_text() == original

    # After the application leaves the settings, a run reports it, and one command removes it.
    answer = site.server.call("terrafirma remove shop --confirm shop")
    assert "terrafirma: Caddy serves shop: take it out of apps" in answer.stderr
    said = site.call("tasks/caddy.py", "tasks/app.py")
    assert said.returncode == 0
    assert "Not in apps, left alone: shop; `terrafirma remove shop` on the host ends" in said.stderr
    assert site.server.run(redis) == before
    answer = site.server.call("terrafirma remove shop")
    assert "removes its releases: add --confirm shop" in answer.stderr
    volumes = site.server.run("docker volume ls --quiet --filter label=terrafirma.app=shop")
    assert volumes
    said_of_it = site.server.run("terrafirma remove shop --confirm shop")
    assert f"shop is removed; left alone: {', '.join(volumes.split())}" in said_of_it
    for kind in ("container ls --all", "network ls", "image ls"):
        assert site.server.run(f"docker {kind} --quiet --filter label=terrafirma.app=shop") == ""
    assert site.server.run("find /etc /opt -path '*terrafirma*shop*' -o -name 'shop.green'") == ""
    assert site.server.run("docker volume ls --quiet --filter label=terrafirma.app=shop") == volumes
    assert site.is_converged()


# --- a deploy key, and every day ------------------------------------------------------------------


class Key:
    """An SSH key whose account may release some applications and do nothing else."""

    def __init__(self, site: Site, directory: Path, *releases: str) -> None:
        self.port = site.server.port
        self.path = directory / "key"
        output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.path))
        ci = {"name": "ci", "keys": [f"{self.path}.pub"], "releases": list(releases)}
        self.accounts = [{"name": "prod"}, {"name": "ingres", "sudo": ["ALL"]}, ci]

    def ask(self, words: str, sent: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [
            "ssh", "-F", "/dev/null", "-i", str(self.path), "-p", str(self.port),
            "-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile=.target/known_hosts",
            "ci@127.0.0.1", words,
        ]  # fmt: skip
        return subprocess.run(
            command, input=sent, capture_output=True, check=False, cwd=ROOT, timeout=300
        )


def tar(directory: Path) -> bytes:
    command = ["tar", "-czf", "-", "-C", str(directory), "."]
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_a_key_that_releases(site: Site, tmp_path: Path) -> None:
    key = Key(site, tmp_path, "api")
    data = {"users_accounts": key.accounts}
    site.deploy("tasks/users.py", "tasks/sshd.py", "tasks/app.py", **data)
    before = site.serving["release"]

    source = tmp_path / "api"
    shutil.copytree(site.source, source)
    (source / "VERSION").write_text("by key\n")
    with site.load() as result:
        answer = key.ask("release --revision 0123abcd", tar(source))
    assert answer.returncode == 0, answer.stderr
    nothing_failed(result)
    after = site.serving["release"]
    assert after != before
    shown = key.ask("releases").stdout.decode()
    assert re.search(rf"release +{after} +0123abcd +deploy key of ci +serves", shown)
    # A deploy, which has another source, does not undo the release of the key.
    assert site.is_converged(**data)
    assert site.serving["release"] == after
    # An invalid source changes nothing.
    answer = key.ask("release", b"no tar at all")
    assert answer.returncode == 1
    assert b"is no gzipped tar" in answer.stderr
    assert site.serving["release"] == after
    # Without such an account, the deploy's source counts again.
    site.deploy("tasks/users.py", "tasks/sshd.py", "tasks/app.py")
    assert site.serving["release"] == before


MOUNTING = """
services:
  web:
    build: .
    volumes: ["./etc:/shown:ro"]
"""
# Files that would make root read a secret, and quote it in an error.
READING = """
include: [{path: inc.yaml, env_file: /etc/terrafirma/secrets/app/api/token}]
services:
  web:
    build: .
    env_file: /etc/terrafirma/secrets/app/api/token
"""


@long
def test_a_key_of_a_compose_project(site: Site, tmp_path: Path) -> None:
    """The key decides the code in the containers; the deploy decides their rights on the host."""
    site.server.run(f"docker tag {site.image} base:1")
    project = tmp_path / "shop"
    (project / "etc").mkdir(parents=True)
    (project / "etc" / "who").write_text("deploy")
    (project / "compose.yaml").write_text(MOUNTING)
    (project / "Dockerfile").write_text(
        "FROM base:1\nWORKDIR /web\nCOPY etc/who healthz\n"
        'ENTRYPOINT ["python3", "-m", "http.server", "8000"]\n'
    )
    theirs = tmp_path / "theirs"
    shutil.copytree(project, theirs)
    shop = {
        "source": str(project), "compose": ["compose.yaml"], "service": "web",
        "domain": "shop.terrafirma.test", "user": "", "port": 9000, "replicas": 1,
        "drain_seconds": 1,
    }  # fmt: skip
    key = Key(site, tmp_path, "shop")
    data = {"users_accounts": key.accounts, **beside_api(shop=shop)}
    site.deploy("tasks/users.py", "tasks/sshd.py", "tasks/caddy.py", "tasks/app.py", **data)

    def seen(path: str) -> str:
        container = site.server.run("docker ps --quiet --filter name=shop-.*-web-1")
        return site.server.call(f"docker exec {container} cat {path}").stdout

    assert (seen("/shown/who"), seen("/web/healthz")) == ("deploy", "deploy")
    (theirs / "etc" / "who").write_text("key 1")
    assert key.ask("release", tar(theirs)).returncode == 0
    assert (seen("/shown/who"), seen("/web/healthz")) == ("key 1", "key 1")
    first = site.server.run("terrafirma releases shop | sed -n 2p").split()[2]
    (theirs / "etc" / "who").write_text("key 2")
    assert key.ask("release", tar(theirs)).returncode == 0
    assert site.is_converged(**data)

    token = site.server.run("cat /etc/terrafirma/secrets/app/api/token")
    for text in (READING, MOUNTING.replace("./etc", "/etc"), f"{MOUNTING}\n# the same\n"):
        (theirs / "compose.yaml").write_text(text)
        (theirs / "inc.yaml").write_text('services: {other: {mem_limit: "${TOKEN}"}}\n')
        answer = key.ask("release", tar(theirs))
        assert answer.returncode == 1
        assert answer.stderr.decode().splitlines()[-1] == (
            "terrafirma: compose.yaml, as it was sent, is not that of the deploy: "
            "run deploy.py with it"
        )
        assert token.encode() not in answer.stdout + answer.stderr
    assert (seen("/shown/who"), seen("/web/healthz")) == ("key 2", "key 2")

    # A mount that the deploy removes is gone: from the key's release, and after its rollback.
    (project / "compose.yaml").write_text("services: {web: {build: .}}\n")
    site.deploy("tasks/app.py", **data)
    assert (seen("/shown/who"), seen("/web/healthz")) == ("", "key 2")
    answer = key.ask(f"rollback shop {first}")
    assert answer.returncode == 0, answer.stderr
    assert (seen("/shown/who"), seen("/web/healthz")) == ("", "key 1")

    # A compose file that reads another one is refused before any change.
    (project / "compose.yaml").write_text("include: [inc.yaml]\nservices: {web: {build: .}}\n")
    refused = site.call("tasks/app.py", **data)
    assert "apps.shop.compose: compose.yaml reads further files (include), which" in refused.stderr
    site.deploy("tasks/users.py", "tasks/sshd.py", "tasks/caddy.py")
    site.server.run("terrafirma remove shop --confirm shop")


def test_every_day(site: Site) -> None:
    server = site.server
    assert (
        server.run("terrafirma run api -- sh -c 'echo $TERRAFIRMA_RELEASE'")
        == (site.serving["release"])
    )
    assert "Uvicorn running" in server.run("terrafirma logs api")
    with site.load() as result:
        server.run("terrafirma restart api", timeout=120)
    nothing_failed(result)
    assert len({one["replica"] for one in result["answers"]}) == 4

    page = f"curl -sk -w '%{{http_code}}' --resolve {DOMAIN}:443:127.0.0.1 https://{DOMAIN}/whoami"
    server.run("terrafirma maintenance api on")
    assert server.run(page).endswith("503")
    server.run("terrafirma maintenance api off")
    assert server.run(page).endswith("200")

    answer = server.call("terrafirma logs nobody")
    assert answer.returncode == 1
    words = "terrafirma: there is no application 'nobody'; there are: api"
    assert answer.stderr.startswith(words)


def test_a_dry_run_plans_a_release_and_changes_nothing(site: Site) -> None:
    site.change()
    digest = site.server.digest()
    assert site.server.plan("tasks/app.py", **site.data) == [
        *("Upload the source of api", "Write the description of api", "Release api, 2 replicas"),
    ]
    assert site.server.digest() == digest
    site.deploy()
    assert site.server.plan("tasks/app.py", **site.data) == []


@long
def test_five_releases_are_kept(site: Site) -> None:
    for _ in range(3):
        site.change()
        site.deploy(**api(keep_releases=2))
    (answer,) = json.loads(site.server.run("terrafirma releases api --json"))
    assert len(answer["kept"]) == 3
    assert answer["kept"][0] == site.serving["release"]
    tags = site.server.run("docker image ls --format '{{.Tag}}' terrafirma/api").split()
    assert sorted(tags) == sorted(answer["kept"])
    sources = site.server.run("ls /opt/terrafirma/api/sources").split()
    assert len(sources) == 3
    site.deploy("commands/rollback.py", rollback=f"api:{answer['kept'][-1]}")
    assert site.serving["release"] == answer["kept"][-1]

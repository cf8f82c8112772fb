"""An application with a SQLite file: one instance at a time, and all its rows; and its jobs."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Pyinfra
from tests.e2e.clones import HOST, clone
from tests.e2e.support import (
    AUTHORITY,
    Container,
    Target,
    changed,
    eventually,
    inside,
    options,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.budget(minutes=5, why="a release for each step at which it is killed"),
]
long = pytest.mark.long

NAME = "notes.terrafirma.test"
DATA = "/var/lib/docker/volumes/notes_data/_data"
DOCKERFILE = """
FROM debian:trixie
RUN apt-get update && apt-get install -y --no-install-recommends python3 \\
    && rm -rf /var/lib/apt/lists/*
COPY main.py /
EXPOSE 8000
ENTRYPOINT ["python3", "/main.py"]
"""
# It notes when it finds that another instance runs, which must never happen.
MAIN = """
import fcntl, json, os, signal, sqlite3, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RELEASE = os.environ["TERRAFIRMA_RELEASE"]
lock = open("/data/lock", "a")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    open("/data/both", "a").write(RELEASE)
    raise SystemExit("another instance runs")
database = sqlite3.connect("/data/notes.db", check_same_thread=False)
database.execute("create table if not exists notes (id text primary key)")
one_at_a_time = threading.Lock()


class Notes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(HEALTH, "")
        with one_at_a_time:
            ids = [row[0] for row in database.execute("select id from notes")]
        self.answer(200, json.dumps({"release": RELEASE, "ids": ids}))

    def do_POST(self):
        note = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with one_at_a_time, database:
            database.execute("insert into notes values (?)", [note])
        self.answer(201, RELEASE)

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True


HEALTH = 200
server = Server(("", 8000), Notes)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
"""
# Clients that each write one note after the other, until standard input ends.
WRITERS = """
import http.client, json, socket, ssl, sys, threading, time

address, domain, authority = sys.argv[1:]
context = ssl.create_default_context(cadata=authority)
over, acknowledged, failed, slowest = threading.Event(), [], [], [0]


def write(writer):
    number = 0
    while not over.is_set():
        number += 1
        note, begun = f"{time.time_ns()}-{writer}-{number}", time.monotonic()
        try:
            connection = http.client.HTTPSConnection(domain, timeout=60, context=context)
            connection._create_connection = lambda _, *rest: socket.create_connection(
                (address, 443), *rest)
            connection.request("POST", "/", note)
            answer = connection.getresponse()
            answer.read()
            if answer.status == 201:
                acknowledged.append(note)
            else:
                failed.append([note, answer.status, answer.headers.get("Retry-After")])
        except Exception as error:
            failed.append([note, repr(error), None])
        slowest[0] = max(slowest[0], time.monotonic() - begun)
        time.sleep(0.03)


threads = [threading.Thread(target=write, args=[writer]) for writer in range(4)]
for one in threads:
    one.start()
print("begun", flush=True)
sys.stdin.read()
over.set()
for one in threads:
    one.join()
print(json.dumps({"acknowledged": acknowledged, "failed": failed, "slowest": slowest[0]}))
"""


@dataclass
class Writing:
    acknowledged: list[str] = field(default_factory=list)
    failed: list[list[Any]] = field(default_factory=list)
    slowest: float = 0


@dataclass
class Notes:
    """A server with the application, whose source the tests change."""

    server: Target
    outsider: Container
    source: Path
    written: list[str] = field(default_factory=list)  # the notes that were acknowledged

    def data(self, **fields: Any) -> dict[str, Any]:
        app = {
            "source": str(self.source), "domain": NAME, "user": "", "volumes": {"data": "/data"},
            "strategy": "stop-first", "start_seconds": 20, "stop_seconds": 5,
        }  # fmt: skip
        return {"apps": {"notes": app | fields}}

    def call(self, *files: str, **fields: Any) -> subprocess.CompletedProcess[str]:
        return self.server.pyinfra.imported.call(
            "-y", *options(self.data(**fields)), *self.server.arguments(),
            *(files or ("tasks/app.py",)),
        )  # fmt: skip

    def deploy(self, *files: str, **fields: Any) -> str:
        """Returns what the run said."""
        result = self.call(*files, **fields)
        assert result.returncode == 0, result.stderr
        return result.stderr

    def back(self) -> str:
        """Roll back; returns what the run said."""
        result = self.server.pyinfra.imported.call(
            "-y", *options(self.data() | {"rollback": "notes"}), *self.server.arguments(),
            "commands/rollback.py",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stderr

    def change(self, main: str = MAIN) -> None:
        (self.source / "main.py").write_text(f"{main}\n# {time.time_ns()}\n")

    @property
    def serving(self) -> dict[str, Any]:
        path = "/opt/terrafirma/notes/serving.json"
        answer: dict[str, Any] = json.loads(self.server.run(f"cat {path}"))
        return answer

    def ask(self) -> dict[str, Any]:
        """The release that answers, and all notes."""
        said = self.server.run(
            f"curl -sSkf --resolve {NAME}:443:127.0.0.1 --max-time 40 https://{NAME}/"
        )
        answer: dict[str, Any] = json.loads(said)
        return answer

    @contextmanager
    def writing(self) -> Iterator[Writing]:
        """Clients write meanwhile; afterwards no acknowledged note is missing."""
        self.outsider.run("cat > /tmp/writers.py", stdin=WRITERS)
        authority = self.server.run(f"cat {AUTHORITY}")
        process = subprocess.Popen(
            [*inside(self.outsider.name), "python3", "/tmp/writers.py", self.server.address, NAME,
             authority],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        result = Writing()
        try:
            yield result
            time.sleep(1)
        finally:
            said, _ = process.communicate("", timeout=120)
        vars(result).update(json.loads(said))
        assert len(result.acknowledged) > 20
        self.written += result.acknowledged
        self.is_whole()

    def is_whole(self) -> None:
        """The release of serving.json answers, one container runs, and all notes are there."""
        answer = self.ask()
        assert answer["release"] == self.serving["release"]
        assert set(self.written) <= set(answer["ids"])
        slot = self.serving["slot"]
        names = self.server.run("docker ps --all --format '{{.Names}} {{.State}}'").splitlines()
        ours = [one for one in names if one.startswith(("notes-blue", "notes-green"))]
        assert ours == [f"notes-{slot}-notes-1 running"]
        assert "both" not in self.server.run(f"ls {DATA}").split()
        assert "held" not in self.server.run("ls /etc/caddy/upstreams")


@pytest.fixture(scope="module")
def notes(
    pyinfra: Pyinfra, outsider: Container, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Notes]:
    source = tmp_path_factory.mktemp("source") / "notes"
    source.mkdir()
    (source / "Dockerfile").write_text(DOCKERFILE)
    with clone(pyinfra, "tf-test-stop-first", 2447, HOST) as server:
        one = Notes(server, outsider, source)
        one.change()
        one.deploy("tasks/caddy.py", "tasks/app.py")
        yield one


@pytest.mark.promise(
    'With strategy = "stop-first", two instances of an application never run at once: requests '
    "wait while one release stops and the next one starts, and no row of its SQLite file is lost"
)
def test_a_release_and_a_rollback(notes: Notes) -> None:
    first = notes.serving["release"]
    with notes.writing() as result:
        notes.change()
        said = notes.deploy()
    assert result.failed == []
    second = notes.serving["release"]
    assert second != first
    assert (
        f"release {first} stops before release {second} starts: nothing answers for at most" in said
    )
    took = re.search(r"nothing answered for (\d+\.\d) s", said)
    assert took
    # Who waited the longest waited for about as long.
    assert float(took[1]) < 15
    assert result.slowest < float(took[1]) + 3
    assert changed(json.loads(notes.call().stdout)) == []

    with notes.writing() as result:
        said = notes.back()
    assert result.failed == []
    assert notes.serving["release"] == first
    assert f"the last time it took {took[1]} s" in said
    with notes.writing() as result:
        notes.server.run("terrafirma restart notes", timeout=120)
    assert result.failed == []


BROKEN = {
    "crashes": ("raise SystemExit('no luck today')", "does not stay up"),
    "is not healthy": (MAIN.replace("HEALTH = 200", "HEALTH = 500"), "it answers 500 to /healthz"),
    "fails its migration": (MAIN, "the migration failed: docker compose: no luck today"),
    "fails its smoke test": (MAIN, f"https://{NAME}/nowhere answers"),
}


@pytest.mark.promise(
    'A release with "stop-first" that fails brings the old instance back, and no row is lost'
)
@pytest.mark.parametrize(
    "what", [one if one == "crashes" else pytest.param(one, marks=long) for one in BROKEN]
)
def test_a_broken_release(notes: Notes, what: str) -> None:
    main, words = BROKEN[what]
    if what == "fails its smoke test":
        main = MAIN.replace('if self.path == "/healthz":', 'if self.path == "/nowhere":\n'
                            '            return self.answer(404, "")\n'
                            '        if self.path == "/healthz":')  # fmt: skip
    more: dict[str, dict[str, Any]] = {
        "fails its migration": {"migrate": ["sh", "-c", "echo no luck today >&2; exit 3"]},
        "fails its smoke test": {"smoke_path": "/nowhere"},
        "is not healthy": {"start_seconds": 6},
    }
    fields = more.get(what, {})
    before = notes.serving
    notes.change(main)
    with notes.writing() as result:
        answer = notes.call(**fields)
    assert answer.returncode == 1
    assert words in answer.stderr
    assert re.search(rf"release {before['release']} is back; nothing answered for", answer.stderr)
    assert notes.serving == before
    # Some may have waited for the release that was in their way, but none was lost.
    assert result.failed == []
    notes.change()
    notes.deploy()


@pytest.mark.promise(
    'A release with "stop-first" that is killed at any step leaves one instance, the old one '
    "before the commit and the new one after it"
)
@pytest.mark.parametrize(
    "step",
    [
        one if one == "health" else pytest.param(one, marks=long)
        for one in ("hold", "stop", "migrate", "start", "health", "smoke", "remove")
    ],
)
def test_a_release_that_is_killed(notes: Notes, step: str) -> None:
    before = notes.serving["release"]
    slow = "import time\ntime.sleep(3)\n" if step == "health" else ""
    notes.change(slow + MAIN)
    fields: dict[str, Any] = {"migrate": ["sleep", "1"]}
    process = subprocess.Popen(
        [str(ROOT / ".venv/bin/python"), "-m", "pyinfra", "-y", *options(notes.data(**fields)),
         *notes.server.arguments(), "tasks/app.py"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with notes.writing() as result:
        order = (
            "hold",
            "stop",
            "migrate",
            "start",
            "health",
            "switch",
            "smoke",
            "commit",
            "remove",
        )
        later = "|".join(order[order.index(step) :])
        notes.server.run(
            "for n in $(seq 6000); do grep -qE"
            f' \'"step": "({later})"\' /run/terrafirma/apps/notes.json 2> /dev/null && exec'
            " systemctl kill --signal KILL terrafirma-release-notes.service;"
            " sleep 0.01; done; cat /opt/terrafirma/notes/log; exit 1",
            timeout=240,
        )
        process.wait(timeout=120)
        state = "systemctl show -p ActiveState --value terrafirma-release-notes.service"
        eventually(lambda: notes.server.run(state) in ("inactive", "failed"), 60)
    assert result.failed == []
    if step in ("hold", "stop", "migrate", "start", "health"):
        assert notes.serving["release"] == before
    if step == "remove":
        assert notes.serving["release"] != before
    notes.deploy(**fields)
    notes.is_whole()


@long
def test_a_server_that_goes_down_meanwhile(notes: Notes) -> None:
    """Docker starts the new container at boot, and not the old one, until the recovery."""
    before = notes.serving["release"]
    notes.change("import time\ntime.sleep(8)\n" + MAIN)
    process = subprocess.Popen(
        [str(ROOT / ".venv/bin/python"), "-m", "pyinfra", "-y", *options(notes.data()),
         *notes.server.arguments(), "tasks/app.py"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    eventually(
        lambda: '"health"' in notes.server.call("cat /run/terrafirma/apps/notes.json").stdout, 90
    )
    subprocess.run(["docker", "kill", notes.server.name], check=True, capture_output=True)
    subprocess.run(["docker", "start", notes.server.name], check=True, capture_output=True)
    process.wait(timeout=120)
    done = "systemctl is-active terrafirma-recover.service"
    eventually(lambda: notes.server.call(done).stdout == "active\n", 90)
    assert notes.serving["release"] == before
    notes.is_whole()
    notes.change()
    notes.deploy()


@pytest.mark.promise(
    "Nobody waits for ever: after 30 s without an instance, requests get 503 with Retry-After"
)
@long
def test_an_application_that_starts_slowly(notes: Notes) -> None:
    notes.change("import time\ntime.sleep(40)\n" + MAIN)
    with notes.writing() as result:
        notes.deploy(start_seconds=90)
    assert result.failed
    assert {(status, again) for _, status, again in result.failed} == {(503, "5")}
    assert 29 < result.slowest < 34
    notes.change()
    notes.deploy()


def test_a_console_on_the_same_store_is_refused_before_anything_stops(notes: Notes) -> None:
    before = notes.serving
    console = subprocess.Popen(
        [*inside(notes.server.name), "terrafirma", "run", "notes", "--", "sleep", "60"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    find = "docker ps --quiet --filter label=com.docker.compose.project=notes-run"
    eventually(lambda: notes.server.run(find) != "", 30)
    notes.change()
    with notes.writing() as result:
        answer = notes.call()
    assert answer.returncode == 1
    assert re.search(r"notes-run-\S+ writes there now: end that container first", answer.stderr)
    assert (result.failed, notes.serving) == ([], before)
    assert result.slowest < 5
    notes.server.run(f"docker rm --force $({find})")
    console.wait(timeout=60)
    notes.deploy()


# --- scheduled jobs -------------------------------------------------------------------------------

# Longer than the time between two runs.
BEAT = "echo begin $TERRAFIRMA_RELEASE >> /data/jobs; sleep 3; echo end >> /data/jobs; echo beat"
JOBS = {
    "beat": {"schedule": "*:*:0/2", "command": ["sh", "-c", BEAT]},
    "fails": {"schedule": "yearly", "command": ["sh", "-c", "echo no luck today >&2; exit 3"]},
    "hangs": {"schedule": "yearly", "command": ["sleep", "60"], "timeout_seconds": 2},
}


def beats(notes: Notes) -> list[str]:
    """The releases in which the job ran; it never ran twice at once."""
    lines = notes.server.run(f"cat {DATA}/jobs").splitlines()
    assert all(line == "end" for line in lines[1::2])
    assert all(line.startswith("begin ") for line in lines[::2])
    return [line.split()[1] for line in lines[::2]]


@pytest.mark.promise(
    "A scheduled command runs in the release that serves, never twice at once, and its last result "
    "is shown"
)
def test_jobs(notes: Notes) -> None:
    server = notes.server
    said = notes.deploy(cron=JOBS)
    assert f"the job beat of notes runs *:*:0/2: sh -c {BEAT}" in said
    assert changed(json.loads(notes.call(cron=JOBS).stdout)) == []
    first = notes.serving["release"]
    eventually(lambda: server.call(f"grep -c end {DATA}/jobs").stdout > "1", 30)
    assert set(beats(notes)) == {first}
    # With a release, and back; it waits for a job under way, and no job runs meanwhile.
    notes.change()
    said = notes.deploy(cron=JOBS, migrate=["sh", "-c", "echo begin migration >> /data/jobs;"
                                            " sleep 3; echo end >> /data/jobs"])  # fmt: skip
    second = notes.serving["release"]
    eventually(lambda: beats(notes)[-1] == second, 30)
    notes.back()
    eventually(lambda: beats(notes)[-1] == notes.serving["release"] != second, 30)
    assert "beat" in server.run("journalctl --output cat --unit terrafirma-cron-notes.beat")
    notes.is_whole()

    answer = server.call("terrafirma cron notes fails")
    assert (answer.returncode, answer.stdout) == (3, "no luck today\n")
    answer = server.call("systemctl start terrafirma-cron-notes.hangs", timeout=60)
    assert answer.returncode == 1
    assert "terrafirma-cron-notes.hangs.service" in server.run("systemctl --failed --plain")
    shown = server.run("terrafirma releases notes")
    assert re.search(r"job beat, \*:\*:0/2: 20\S+ exit 0 after \S+ s; (runs now|next )", shown)
    assert re.search(r"job fails, yearly: 20\S+ exit 3 after \S+ s; next ", shown)
    late = r"exit 124 after \S+ s \(ended after 2 s \(timeout_seconds\)\); next "
    assert re.search(rf"job hangs, yearly: 20\S+ {late}", shown)
    said = notes.call(cron=JOBS).stderr
    assert "notes: the job fails failed: exit 3 at 20" in said

    refused = notes.call(cron={"beat": {"schedule": "noon-ish", "command": ["true"]}})
    assert "apps.notes.cron.beat.schedule: systemd does not understand 'noon-ish'" in refused.stderr
    notes.change()
    notes.deploy()
    assert server.call("ls /etc/systemd/system/terrafirma-cron-*").returncode != 0
    assert "terrafirma-cron" not in server.run("systemctl list-timers --all")
    server.run(f"rm {DATA}/jobs")

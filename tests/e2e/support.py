"""Servers to deploy to, as containers with systemd and SSH, and containers around them."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from tests.conftest import ROOT, Pyinfra
from tests.e2e.load import Order

# The tasks of the platform, in their order.
TASKS = [f"tasks/{task}.py" for task in (
    *("preflight", "apt", "users", "sshd", "docker", "firewall", "postgres", "pgbouncer"),
    *("caddy", "app", "updates", "borg", "exposure"),
)]  # fmt: skip

STATE = ROOT / ".target"
DOMAIN = "api.terrafirma.test"
AUTHORITY = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"
BYSTANDER = "terrafirma/bystander"
# The imports of tests/e2e/load.py, direct and indirect.
LIBRARIES = ("h11", "h2", "hpack", "hyperframe", "wsproto")


def execute(
    *command: str, stdin: str | None = None, timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )


def output(*command: str, stdin: str | None = None, timeout: int = 300) -> str:
    result = execute(*command, stdin=stdin, timeout=timeout)
    assert result.returncode == 0, f"{shlex.join(command)[:300]}\n{result.stdout}{result.stderr}"
    return result.stdout.strip()


def eventually(question: Callable[[], bool], seconds: float) -> float:
    """Wait until `question` is true, and return the seconds; fails after `seconds`."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if question():
            return time.monotonic() - started
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s: {question.__name__}")


# The main process of each container, and when it started.
_processes: dict[str, tuple[int, str]] = {}
_ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root")


def inside(container: str) -> tuple[str, ...]:
    """
    The prefix that makes a command run in a container.

    Root uses nsenter, which takes 15 ms, where `docker exec` takes 130.
    """
    if os.geteuid() != 0:
        return ("docker", "exec", "-i", container)
    process, started = _processes.get(container, (0, ""))
    if not process or _started(process) != started:
        state = output("docker", "inspect", "--format", "{{.State.Pid}}", container)
        process = int(state)
        if not process:
            # Between two boots: the command fails, as on any server.
            return ("docker", "exec", "-i", container)
        _processes[container] = process, _started(process)
    # Clear the environment first: tests that list the processes there also see nsenter.
    clean = ("env", "-i", *_ENVIRONMENT)
    return (*clean, "nsenter", "--target", str(process), "--all")


def _started(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return ""


@dataclass(frozen=True)
class Container:
    """A container of this machine's engine: a server, or a client of one."""

    name: str

    def call(
        self, command: str, *, stdin: str | None = None, timeout: int = 300
    ) -> subprocess.CompletedProcess[str]:
        return execute(*inside(self.name), "sh", "-c", command, stdin=stdin, timeout=timeout)

    def run(self, command: str, *, stdin: str | None = None, timeout: int = 300) -> str:
        return output(*inside(self.name), "sh", "-c", command, stdin=stdin, timeout=timeout)

    def python(self, program: str, *arguments: str) -> Any:
        """The output of `program`, which is JSON."""
        return json.loads(self.run(f"python3 - {shlex.join(arguments)}", stdin=program))

    @property
    def address(self) -> str:
        networks = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
        return output("docker", "inspect", "--format", networks, self.name).split()[0]


@dataclass(frozen=True)
class Target(Container):
    """A server to deploy to."""

    port: int
    pyinfra: Pyinfra

    def arguments(self, user: str = "root", key: str = ".target/id_ed25519") -> tuple[str, ...]:
        return (
            "--user", user, "--key", key, "--port", str(self.port),
            "--data", "ssh_known_hosts_file=.target/known_hosts", "127.0.0.1",
        )  # fmt: skip

    def deploy(
        self, *files: str, user: str = "root", key: str = ".target/id_ed25519", **data: Any
    ) -> dict[str, Any]:
        """
        Run these files, or `deploy.py`, and return the output of `--json`.

        The run is forked from a process that has imported pyinfra; to start a process as a user
        does, take `self.pyinfra.call`.
        """
        return self.pyinfra.imported.run(
            "-y", *options(data), *self.arguments(user, key), *named(files)
        )

    def plan(self, *files: str, user: str = "root", **data: Any) -> list[str]:
        """Names of the operations that would change something, according to a dry run."""
        answer = self.pyinfra.imported.run(
            "--dry", *options(data), *self.arguments(user), *named(files)
        )
        return [step["name"] for step in answer["plan"] if step["hosts_with_change"]]

    def refuse(
        self, *files: str, user: str = "root", key: str = ".target/id_ed25519", **data: Any
    ) -> str:
        """The one line with which a run is refused before it begins."""
        result = self.pyinfra.imported.call(
            "-y", *options(data), *self.arguments(user, key), *named(files)
        )
        assert result.returncode != 0, result.stdout
        assert "Traceback" not in result.stderr, result.stderr
        assert "Starting operation" not in result.stderr, result.stderr
        lines = [line for line in result.stderr.splitlines() if "127.0.0.1" in line]
        noise = ("Connected", "Ready", "Waiting")
        lines = [line for line in lines if not any(word in line for word in noise)]
        assert len(lines) == 1, result.stderr
        return lines[0]

    def reboot(self) -> None:
        output("docker", "restart", self.name)

    def psql(self, sql: str, database: str = "postgres") -> str:
        return self.run(f"runuser -u postgres -- psql -XAtq -d {database}", stdin=sql)

    def digest(self) -> str:
        """A digest of all that a run could change: files, packages, accounts, containers, roles."""
        return self.run(
            "find /etc /opt /usr/local /root/.ssh /home -type f -printf '%p %s %m %u %T@\\n'"
            " | grep -v -e ld.so.cache -e /etc/mtab | sort | sha256sum;"
            "dpkg -l | sha256sum; ! command -v docker > /dev/null || docker ps -aq --no-trunc"
        )


def named(files: tuple[str, ...]) -> tuple[str, ...]:
    return files or ("deploy.py",)


def options(data: dict[str, Any]) -> list[str]:
    values = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in data.items()
    }
    return [word for key, value in values.items() for word in ("--data", f"{key}={value}")]


def api(**fields: Any) -> dict[str, Any]:
    """Data that replace these fields of the example application in group_data/all.py."""
    return {f"apps.api.{name}": value for name, value in fields.items()}


def beside_api(**applications: dict[str, Any]) -> dict[str, Any]:
    """Data that add these applications to the one of group_data/all.py."""
    return {"apps": _applications() | applications}


@cache
def _applications() -> dict[str, Any]:
    return dict(runpy.run_path(str(ROOT / "group_data/all.py"))["apps"])


def changed(answer: dict[str, Any]) -> list[str]:
    """Names of the operations that changed something in a run."""
    return [step["name"] for step in answer["results"]["operations"] if step["success"]]


@cache
def image(name: str) -> None:
    """Make the image of a distribution or of the bystanders, unless it is up to date."""
    output(str(ROOT / "testbed/image.sh"), name, timeout=900)


@contextmanager
def target(
    pyinfra: Pyinfra, name: str, port: int, distro: str = "debian13", snapshot: str = ""
) -> Iterator[Target]:
    """A server, bare or from a snapshot; removed afterwards unless KEEP_TARGETS is set."""
    remove = [str(ROOT / "testbed/untarget.sh"), name]
    # A killed run may have left it.
    execute(*remove)
    output(
        "env", f"TERRAFIRMA_SNAPSHOT={snapshot}",
        str(ROOT / "testbed/target.sh"), name, str(port), distro, timeout=900,
    )  # fmt: skip
    try:
        yield Target(name, port, pyinfra)
    finally:
        if not os.environ.get("KEEP_TARGETS"):
            output(*remove)


@contextmanager
def bystander(name: str, *more: str) -> Iterator[Container]:
    """A container that is the internet for the servers; `more` goes to `docker run`."""
    image("bystander")
    execute("docker", "rm", "--force", name)
    output(
        "docker", "run", "--detach", "--name", name, "--label", "org.terrafirma.testbed=1",
        *more, BYSTANDER, "sleep", "infinity",
    )  # fmt: skip
    try:
        yield Container(name)
    finally:
        output("docker", "rm", "--force", name)


def is_releasing(server: Target) -> bool:
    """Whether a release of `api` is in progress on the server."""
    state = server.run("systemctl show -p ActiveState --value terrafirma-release-api.service")
    return state not in ("inactive", "failed")


REQUESTS = """
import http.client, json, socket, ssl, sys

address, domain, authority, count, *paths = sys.argv[1:]
context = ssl.create_default_context(cadata=authority)
answers = []
for number in range(int(count)):
    path = paths[number % len(paths)]
    # A new connection for each request, to the server's address, under its name.
    connection = http.client.HTTPSConnection(domain, timeout=10, context=context)
    connection._create_connection = lambda _, *rest: socket.create_connection((address, 443), *rest)
    connection.request("GET", path)
    answer = connection.getresponse()
    answers.append([answer.status, json.loads(answer.read() or b"null")])
    connection.close()
print(json.dumps(answers))
"""

OPEN_PORTS = """
import json, socket, sys

address, *ports = sys.argv[1:]
answers = []
for port in map(int, ports):
    with socket.socket() as one:
        one.settimeout(2)
        if one.connect_ex((address, port)) == 0:
            answers.append(port)
print(json.dumps(answers))
"""


def get(
    client: Container, server: Target, count: int = 1, *paths: str
) -> list[tuple[int, dict[str, Any]]]:
    """Status and body of `count` HTTPS requests, each on a new connection, with verification."""
    authority = server.run(f"cat {AUTHORITY}")
    answers = client.python(
        REQUESTS, server.address, DOMAIN, authority, str(count), *(paths or ("/",))
    )
    return [(status, body) for status, body in answers]


def open_ports(client: Container, server: Container, *ports: int) -> list[int]:
    """The `ports` that accept a connection from `client`."""
    answer = client.python(OPEN_PORTS, server.address, *map(str, ports))
    return [int(port) for port in answer]


def networks(server: Target) -> dict[str, str]:
    """Subnet of each bridge network, according to Docker."""
    inspected = json.loads(
        server.run("docker network inspect $(docker network ls -q --filter driver=bridge)")
    )
    return {one["Name"]: one["IPAM"]["Config"][0]["Subnet"] for one in inspected}


REGISTRY = """
version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/docker-registry}, delete: {enabled: true}}
http: {addr: ":5000", tls: {certificate: /srv/registry.crt, key: /srv/registry.key}}
auth: {htpasswd: {realm: registry, path: /srv/users}}
"""


@dataclass(frozen=True)
class Registry(Container):
    """An image registry that needs credentials, with a certificate that hosts must trust first."""

    user: str = "puller"
    password: str = "nobody-else-knows-this-one"

    @property
    def host(self) -> str:
        return f"{self.address}:5000"

    def requests(self) -> int:
        """How many questions about images it has answered."""
        return len([one for one in self.asked() if "/manifests/" in one])

    def asked(self) -> list[str]:
        """All requests that it has answered: "METHOD PATH", then the client."""
        lines = self.run("cat /var/log/registry.log")
        found = re.findall(r'"(\w+ /v2/[^ ]*) HTTP/[\d.]+" \d+ \d+ "[^"]*" "([^"]*)"', lines)
        return [f"{request} {client}" for request, client in found]

    def trust(self, server: Target) -> None:
        """Docker reads it at the next pull."""
        authority = self.run("cat /srv/registry.crt")
        directory = f"/etc/docker/certs.d/{self.host}"
        server.run(f"mkdir -p {directory} && cat > {directory}/ca.crt", stdin=f"{authority}\n")

    def push(self, server: Target, image: str, name: str) -> str:
        """Push an image from a server as `name:tag`, and return its full name."""
        reference = f"{self.host}/{name}"
        server.run(
            "set -e; export DOCKER_CONFIG=$(mktemp -d); trap 'rm -r $DOCKER_CONFIG' EXIT;"
            f" docker login --username {self.user} --password-stdin {self.host};"
            f" docker tag {image} {reference}; docker push --quiet {reference};"
            # Afterwards the server no longer has the image.
            f" docker image rm {reference}",
            stdin=self.password,
        )
        return reference


@contextmanager
def registry(name: str) -> Iterator[Registry]:
    with bystander(name) as container:
        one = Registry(container.name)
        one.run("cat > /srv/config.yml", stdin=REGISTRY)
        one.run(f"htpasswd -Bic /srv/users {one.user}", stdin=one.password)
        one.run(
            "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 30"
            f" -subj /CN=registry -addext subjectAltName=IP:{one.address}"
            " -keyout /srv/registry.key -out /srv/registry.crt"
        )
        one.run("docker-registry serve /srv/config.yml > /var/log/registry.log 2>&1 &")
        eventually(lambda: open_ports(one, one, 5000) == [5000], 30)
        yield one


class Mix(TypedDict, total=False):
    """The mix of clients; other parameters are as in load.Order."""

    keep: int
    fresh: int
    http2: int
    streams: int
    posts: float
    slow: int
    slow_path: str
    websocket: int
    events: int
    timeout: float


# All kinds of clients that a release must not disturb.
EVERYTHING = Mix(keep=6, fresh=2, http2=2, streams=6, posts=0.1, slow=4, websocket=1, events=1)


class Failure(TypedDict):
    at: float
    kind: str
    method: str
    path: str
    words: str


class Answers(TypedDict):
    """The answers of one replica of one release; `asked`: when the last request was sent."""

    release: str
    replica: str
    count: int
    first: float
    last: float
    asked: float


class Load(TypedDict):
    """The result of the clients, see tests/e2e/load.py; times are seconds since the epoch."""

    requests: int
    failed: list[Failure]
    replayed: int
    reconnected: int
    gap_seconds: float  # the longest time without a successful request
    answers: list[Answers]
    kinds: dict[str, dict[str, int]]  # requests, failed, replayed, reconnected, messages of each
    started: float
    stopped: float
    cpu_seconds: float  # CPU time of the clients themselves
    rate: float
    median_ms: float
    p99_ms: float
    slowest_ms: float


@contextmanager
def load(
    client: Container,
    server: Target,
    *paths: str,
    requests: int = 0,
    mix: Mix | None = None,
    rate: float = 0,
    domain: str = DOMAIN,
    authority: str = "",
) -> Iterator[Load]:
    """
    Clients that send requests until the block has ended and `requests` are done.

    Without a `mix` there are eight clients over HTTP/1.1, most of which keep their connection. The
    result is filled in after the block. The clients trust `authority`, or else Caddy's own.
    """
    order = Order(
        address=server.address,
        domain=domain,
        authority=authority or server.run(f"cat {AUTHORITY}"),
        paths=paths or ("/",),
        requests=requests,
        rate=rate,
        **(mix or {}),
    )
    client.run("mkdir -p /opt/load")
    # The client has no package index. The libraries are pure Python, so copies run there.
    site = sysconfig.get_path("purelib")
    files = subprocess.run(
        ["tar", "-c", "-C", site, *LIBRARIES, "-C", ROOT / "tests/e2e", "load.py"],
        stdout=subprocess.PIPE, check=True,
    ).stdout  # fmt: skip
    subprocess.run(["docker", "cp", "-", f"{client.name}:/opt/load"], input=files, check=True)
    process = subprocess.Popen(
        ["docker", "exec", "-i", client.name, "python3", "/opt/load/load.py",
         json.dumps(asdict(order))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    result = Load(
        requests=0, failed=[], replayed=0, reconnected=0, gap_seconds=0, answers=[], kinds={},
        started=0, stopped=0, cpu_seconds=0, rate=0, median_ms=0, p99_ms=0, slowest_ms=0,
    )  # fmt: skip
    try:
        assert json.loads(process.stdout.readline() or "{}") == {"begun": True}
        yield result
    except BaseException:
        process.kill()
        raise
    said, _ = process.communicate("", timeout=int(order.patience + 3 * order.timeout))
    result.update(json.loads(said))

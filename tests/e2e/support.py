"""Servers to deploy to: containers with systemd, reached over SSH, and others around them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

from tests.conftest import ROOT, Pyinfra

STATE = ROOT / ".target"
DOMAIN = "api.terrafirma.test"
IMAGE = "terrafirma/target:debian13"


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
    """Seconds until `question` is answered with yes; fails after `seconds`."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if question():
            return time.monotonic() - started
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s: {question.__name__}")


@dataclass(frozen=True)
class Container:
    """A container of this machine's engine: a server, or somebody who looks at one."""

    name: str

    def call(
        self, command: str, *, stdin: str | None = None, timeout: int = 300
    ) -> subprocess.CompletedProcess[str]:
        return execute(
            "docker", "exec", "-i", self.name, "sh", "-c", command, stdin=stdin, timeout=timeout
        )

    def run(self, command: str, *, stdin: str | None = None, timeout: int = 300) -> str:
        return output(
            "docker", "exec", "-i", self.name, "sh", "-c", command, stdin=stdin, timeout=timeout
        )

    def python(self, program: str, *arguments: str) -> Any:
        """What `program` printed, which is JSON."""
        return json.loads(self.run(f"python3 - {shlex.join(arguments)}", stdin=program))

    @property
    def address(self) -> str:
        networks = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
        return output("docker", "inspect", "--format", networks, self.name).split()[0]


@dataclass(frozen=True)
class Target(Container):
    """A server that Terrafirma is run against."""

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
        """Run these files of ours, `deploy.py` if none is named; what `--json` printed."""
        return self.pyinfra.run("-y", *options(data), *self.arguments(user, key), *named(files))

    def plan(self, *files: str, **data: Any) -> list[str]:
        """Names of the operations that a dry run says would change something."""
        answer = self.pyinfra.run("--dry", *options(data), *self.arguments(), *named(files))
        return [step["name"] for step in answer["plan"] if step["hosts_with_change"]]

    def refuse(
        self, *files: str, user: str = "root", key: str = ".target/id_ed25519", **data: Any
    ) -> str:
        """The one line with which a run stops that must not begin."""
        result = self.pyinfra.call("-y", *options(data), *self.arguments(user, key), *named(files))
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
        """What a run could change: files, packages, accounts, containers, roles."""
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


def changed(answer: dict[str, Any]) -> list[str]:
    """Names of the operations that changed something in a run."""
    return [step["name"] for step in answer["results"]["operations"] if step["success"]]


@contextmanager
def target(pyinfra: Pyinfra, name: str, port: int, distro: str = "debian13") -> Iterator[Target]:
    """A bare server; removed afterwards unless KEEP_TARGETS is set."""
    remove = [str(ROOT / "testbed/untarget.sh"), name]
    execute(*remove)
    output(str(ROOT / "testbed/target.sh"), name, str(port), distro, timeout=900)
    try:
        yield Target(name, port, pyinfra)
    finally:
        if not os.environ.get("KEEP_TARGETS"):
            output(*remove)


@contextmanager
def bystander(name: str) -> Iterator[Container]:
    """A container beside the servers: for them it is the internet."""
    execute("docker", "rm", "--force", name)
    output(
        "docker", "run", "--detach", "--name", name, "--label", "org.terrafirma.testbed=1",
        IMAGE, "sleep", "infinity",
    )  # fmt: skip
    try:
        yield Container(name)
    finally:
        output("docker", "rm", "--force", name)


REQUESTS = """
import http.client, json, socket, ssl, sys

address, domain, authority, count, *paths = sys.argv[1:]
context = ssl.create_default_context(cadata=authority)
answers = []
for number in range(int(count)):
    path = paths[number % len(paths)]
    # A fresh connection for each, to the server's address, under its name.
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
    """Status and body of so many HTTPS requests, each on a connection of its own, all verified."""
    authority = server.run("cat /var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt")
    answers = client.python(
        REQUESTS, server.address, DOMAIN, authority, str(count), *(paths or ("/",))
    )
    return [(status, body) for status, body in answers]


def open_ports(client: Container, server: Container, *ports: int) -> list[int]:
    """Those of `ports` that accept a connection from `client`."""
    answer = client.python(OPEN_PORTS, server.address, *map(str, ports))
    return [int(port) for port in answer]


LOAD = """
import http.client, json, socket, ssl, sys, threading

address, domain, authority, *paths = sys.argv[1:]
context = ssl.create_default_context(cadata=authority)
stop, failed, counts = threading.Event(), [], []

def connect():
    connection = http.client.HTTPSConnection(domain, timeout=15, context=context)
    connection._create_connection = lambda _, *rest: socket.create_connection((address, 443), *rest)
    return connection

def ask(keep):
    count, connection = 0, connect()
    while not stop.is_set():
        count += 1
        try:
            connection.request("GET", paths[count % len(paths)])
            answer = connection.getresponse()
            body = answer.read()
            length = int(answer.headers["Content-Length"] or len(body))
            if answer.status != 200 or len(body) != length:
                failed.append(f"{answer.status} {body[:80]!r}")
        except Exception as error:
            failed.append(repr(error))
            connection.close()
            connection = connect()
        if not keep:
            connection.close()
    counts.append(count)

threads = [threading.Thread(target=ask, args=(number % 4 != 0,)) for number in range(8)]
for thread in threads:
    thread.start()
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join()
print(json.dumps({"requests": sum(counts), "failed": failed}))
"""


class Load(TypedDict):
    requests: int
    failed: list[str]  # each with its status or error


@contextmanager
def load(client: Container, server: Target, *paths: str) -> Iterator[Load]:
    """Eight clients that ask without a pause until the block ends; most keep their connection."""
    authority = server.run("cat /var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt")
    arguments = [server.address, DOMAIN, authority, *(paths or ("/",))]
    process = subprocess.Popen(
        ["docker", "exec", "-i", client.name, "python3", "-c", LOAD, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    result = Load(requests=0, failed=[])
    try:
        yield result
    finally:
        said, _ = process.communicate("", timeout=60)
    result.update(json.loads(said))

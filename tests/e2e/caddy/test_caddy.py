"""Caddy: sites, reloads without a lost request, and certificates of a real authority."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from tests.conftest import ROOT, Pyinfra
from tests.e2e.support import (
    DOMAIN,
    Container,
    Target,
    api,
    bystander,
    changed,
    eventually,
    inside,
    open_ports,
    options,
    output,
    target,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.budget(minutes=5, why="certificates that run out, and requests that are drained"),
]

TASKS = ("tasks/preflight.py", "tasks/apt.py", "tasks/caddy.py")
TASK = "tasks/caddy.py"
PASSWORD = "hunter2-login"
GREEN = "/etc/caddy/upstreams/api.green"
SNIPPET = """\
# Lines of our own.
redir /old /new 307
respond /robots.txt `no robots`
@secret path /admin/door
handle @secret {
    respond "the door is open"
}
handle_errors {
    respond "an error page of our own: {err.status_code}"
}
"""


# --- client and replicas --------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, list[str]]
    body: str


@dataclass(frozen=True)
class Client:
    """A client outside of the server that trusts a single authority."""

    container: Container
    server: Target

    def command(self, url: str, *options: str) -> list[str]:
        name = url.split("/")[2]
        ports = (f"{name}:{port}:{self.server.address}" for port in (80, 443))
        return [
            "curl", "--silent", "--show-error", "--max-time", "60", "--cacert", "/ca.pem",
            *(word for port in ports for word in ("--resolve", port)), *options, url,
        ]  # fmt: skip

    def call(self, url: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = self.command(url, "--include", *options)
        return subprocess.run(
            [*inside(self.container.name), *command],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def ask(self, path: str, *options: str, name: str = DOMAIN, scheme: str = "https") -> Answer:
        result = self.call(f"{scheme}://{name}{path}", *options)
        assert result.returncode == 0, result.stderr
        # With a login, or before a large upload, interim answers (100) come first.
        head, _, body = result.stdout.replace("\r\n", "\n").partition("\n\n")
        while re.match(r"HTTP/\S+ 100", head):
            head, _, body = body.partition("\n\n")
        first, *lines = head.splitlines()
        headers: dict[str, list[str]] = {}
        for line in lines:
            key, _, value = line.partition(": ")
            headers.setdefault(key.lower(), []).append(value)
        return Answer(int(first.split()[1]), headers, body)

    def trust(self, certificate: str) -> None:
        self.container.run("cat > /ca.pem", stdin=certificate)


def replicas(server: Target, *numbers: int) -> None:
    """Run these replicas, with ports from 8000 on; numbers from 64 on are in the green slot."""
    server.run("cat > /opt/upstream.py", stdin=(ROOT / "tests/e2e/upstream.py").read_text())
    for number in numbers:
        server.run(
            f"systemctl is-active --quiet replica-{number} || systemd-run --quiet --collect"
            f" --unit replica-{number} python3 /opt/upstream.py {8000 + number} r{number}"
        )
        eventually(
            lambda number=number: (  # type: ignore[misc]
                server.call(f"curl -s 127.0.0.1:{8000 + number}/").returncode == 0
            ),
            10,
        )


def switch(server: Target, slot: str) -> None:
    """Let a slot serve, in the way of a release."""
    if slot == "green":
        words = "# Managed by Terrafirma: the release that serves is in green\n"
        server.run(f"cat > {GREEN}.new && mv {GREEN}.new {GREEN}", stdin=words)
    else:
        server.run(f"rm -f {GREEN}")


def under_way(server: Target, *ports: int) -> int:
    """The number of requests that Caddy has under way at these ports."""
    known = json.loads(server.run("curl -sf http://localhost:2019/reverse_proxy/upstreams"))
    wanted = {f"127.0.0.1:{port}" for port in ports}
    return sum(one["num_requests"] for one in known if one["address"] in wanted)


def install_newer(server: Target) -> None:
    """Replace the distribution's binary by the vendor's."""
    output("docker", "cp", str(ROOT / ".venv/bin/caddy"), f"{server.name}:/usr/bin/caddy.new")
    server.run(
        "chown root: /usr/bin/caddy.new && chmod 755 /usr/bin/caddy.new"
        " && mv /usr/bin/caddy.new /usr/bin/caddy && systemctl restart caddy"
    )


@pytest.fixture(scope="module")
def outside() -> Iterator[Container]:
    with bystander("tf-test-caddy-client") as container:
        yield container


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("caddy")
    (directory / "api.caddy").write_text(SNIPPET)
    return directory


def data(client: Client, files: Path) -> dict[str, Any]:
    """Settings of a site with every feature."""
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(5)).decode()
    return api(
        redirects=[f"www.{DOMAIN}"],
        headers={"X-Mine": 'ours, with a "quote"', "Referrer-Policy": ""},
        max_upload_mb=1,
        timeout_seconds=2,
        drain_seconds=6,
        guards=[
            {"path": "/admin/*", "allow": [client.container.address]},
            {"path": "/inner/*", "allow": ["192.0.2.0/24"]},
            {"path": "/login/*", "users": {"bob": hashed}},
            {"path": "/exact", "allow": ["192.0.2.0/24"]},
        ],
        static={"/assets/*": "/srv/assets", "/robots-too.txt": "/srv/assets"},
        snippet=str(files / "api.caddy"),
    )


@dataclass(frozen=True)
class Setup:
    """A server with such a site, and the results of its runs."""

    kind: str
    server: Target
    client: Client
    data: dict[str, Any]
    before: Answer
    second: dict[str, Any]
    plan: list[str]

    @property
    def newer(self) -> bool:
        return self.kind == "newer"


KINDS = {"debian13": 2461, "debian12": 2462, "newer": 2463}


@pytest.fixture(
    scope="module",
    params=[
        one if one == "debian13" else pytest.param(one, marks=pytest.mark.long) for one in KINDS
    ],
)
def setup(
    request: pytest.FixtureRequest, pyinfra: Pyinfra, outside: Container, files: Path
) -> Iterator[Setup]:
    kind = request.param
    distro = "debian12" if kind == "debian12" else "debian13"
    with target(pyinfra, f"tf-test-caddy-{kind}", KINDS[kind], distro) as server:
        client = Client(outside, server)
        settings = data(client, files)
        server.run("install -d /srv/assets/.git && echo body > /srv/assets/a.css")
        server.run(
            "echo x > /srv/assets/.git/config; echo x | tee /srv/assets/.env /srv/assets/.env.local"
        )
        server.run("echo too > /srv/assets/robots-too.txt")
        server.plan(TASK, **settings)
        if kind == "newer":
            server.deploy(*TASKS, **settings)
            install_newer(server)
        server.deploy(*TASKS, **settings)
        client.trust(
            server.run("cat /var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt")
        )
        before = client.ask("/")
        # A release writes the health check of its slot.
        asking = (
            f"health_uri /healthz\nhealth_headers {{\nHost {DOMAIN}\nX-Forwarded-Proto https\n}}\n"
        )
        for slot in ("blue", "green"):
            server.run(f"cat > /etc/caddy/upstreams/api.{slot}.caddy", stdin=asking)
        server.run("systemctl reload caddy")
        replicas(server, 0, 1, 64, 65)
        eventually(lambda: client.ask("/").status == 200, 15)
        # By then Caddy has checked the health of all ports, also of those without a replica.
        time.sleep(2)
        yield Setup(
            kind=kind,
            server=server,
            client=client,
            data=settings,
            before=before,
            second=server.deploy(TASK, **settings),
            plan=server.plan(TASK, **settings),
        )


# --- sites ----------------------------------------------------------------------------------------


def test_a_second_run_changes_nothing(setup: Setup) -> None:
    assert changed(setup.second) == []
    assert setup.plan == []
    assert setup.server.run("caddy version").startswith("v2.11" if setup.newer else "2.6")
    check = "caddy validate --adapter caddyfile --config /etc/caddy/Caddyfile 2>&1"
    assert "deprecated" not in setup.server.run(check)


def test_before_the_first_release_the_site_answers_502_over_https(setup: Setup) -> None:
    assert setup.before.status == 502


def test_every_replica_answers(setup: Setup) -> None:
    answers = [json.loads(setup.client.ask("/").body)["replica"] for _ in range(12)]
    assert {*answers} == {"r0", "r1"}


def test_clients_are_redirected_to_the_domain_and_to_https(setup: Setup) -> None:
    for scheme, name, where in (
        ("http", DOMAIN, f"https://{DOMAIN}/a?b=c"),
        ("http", f"www.{DOMAIN}", f"https://www.{DOMAIN}/a?b=c"),
        ("https", f"www.{DOMAIN}", f"https://{DOMAIN}/a?b=c"),
    ):
        answer = setup.client.ask("/a?b=c", name=name, scheme=scheme)
        assert (answer.status, answer.headers["location"]) == (308, [where])


@pytest.mark.promise("Guards, headers, limits and your own Caddyfile lines of a site work")
def test_headers(setup: Setup) -> None:
    usual = setup.client.ask("/").headers
    assert usual["strict-transport-security"] == ["max-age=31536000"]
    assert usual["x-content-type-options"] == ["nosniff"]
    assert usual["x-frame-options"] == ["SAMEORIGIN"]
    # Removed, and set, by `headers`.
    assert "referrer-policy" not in usual
    assert usual["x-mine"] == ['ours, with a "quote"']
    for silent in ("server", "via"):
        assert silent not in usual
    own = setup.client.ask("/framed").headers
    assert own["x-frame-options"] == ["DENY"]
    assert own["x-mine"] == ['ours, with a "quote"']
    assert own["x-content-type-options"] == ["nosniff"]


def test_clients_cannot_forge_their_address(setup: Setup) -> None:
    said = {
        "Forwarded": "for=192.0.2.9",
        "X-Real-IP": "192.0.2.9",
        "X-Forwarded-Port": "1",
        "X_Forwarded_For": "192.0.2.9",
        "X-Forwarded-For": "192.0.2.9",
        "X-Own": "kept",
    }
    options = [word for name, value in said.items() for word in ("-H", f"{name}: {value}")]
    arrived = json.loads(setup.client.ask("/headers", *options).body)["headers"]
    assert arrived["x-own"] == "kept"
    assert arrived["x-forwarded-for"] == setup.client.container.address
    assert "192.0.2.9" not in arrived.values()
    assert {"forwarded", "x-real-ip", "x-forwarded-port"}.isdisjoint(arrived)


@pytest.mark.parametrize("version", ["--http1.1", "--http2", "--http3-only"])
def test_every_version_of_http(setup: Setup, version: str) -> None:
    answer = setup.client.call(f"https://{DOMAIN}/", version)
    assert answer.returncode == 0, answer.stderr
    number = {"--http1.1": "1.1", "--http2": "2", "--http3-only": "3"}[version]
    assert answer.stdout.startswith(f"HTTP/{number} 200")
    if number != "3":
        assert 'h3=":443"' in answer.stdout


@pytest.mark.promise(like=test_headers)
def test_guards(setup: Setup) -> None:
    ask = setup.client.ask
    assert ask("/admin/x").status == 200
    for path in ("/inner", "/inner/x", "/INNER/x", "//inner/x", "/x/../inner/y", "/%69nner/x"):
        assert ask(path, "--path-as-is").status == 403, path
    assert ask("/exact").status == ask("/exact/").status == 403
    assert ask("/exact/x").status == 200
    assert ask("/login/x").status == ask("/login").status == 401
    assert ask("/login/x", "--user", "bob:wrong").status == 401
    assert ask("/login/x", "--user", f"bob:{PASSWORD}").status == 200
    # The server's address is not in `allow`, and the snippet's route cannot bypass the guard.
    here = f"curl -ks -o /dev/null -w '%{{http_code}}' --resolve {DOMAIN}:443:127.0.0.1 "
    assert setup.server.run(f"{here} https://{DOMAIN}/admin/door") == "403"
    assert ask("/admin/door").body == "the door is open"


def test_static_directories(setup: Setup) -> None:
    assert setup.client.ask("/assets/a.css").body == "body\n"
    assert setup.client.ask("/robots-too.txt").body == "too\n"
    for path in (
        "/assets/.git/config",
        "/assets/.env",
        "/assets/.env.local",
        "/assets/none",
        "/assets/x/../../etc/passwd",
    ):
        answer = setup.client.ask(path, "--path-as-is")
        assert answer.status in (400, 404) or "replica" in answer.body, path


@pytest.mark.promise(like=test_headers)
def test_lines_of_the_snippet(setup: Setup) -> None:
    assert setup.client.ask("/old").headers["location"] == ["/new"]
    assert setup.client.ask("/robots.txt").body == "no robots"
    assert setup.client.ask("/inner").body == "an error page of our own: 403"


def test_lines_that_caddy_refuses_replace_nothing(setup: Setup, tmp_path: Path) -> None:
    before = setup.server.run("sha256sum /etc/caddy/Caddyfile")
    (tmp_path / "bad.caddy").write_text("no_such_directive\n")
    result = setup.server.pyinfra.imported.call(
        "-y", *setup.server.arguments(), TASK, "--data", f"apps.api.snippet={tmp_path}/bad.caddy"
    )
    assert result.returncode != 0
    assert "unrecognized directive: no_such_directive" in result.stderr
    assert setup.server.run("sha256sum /etc/caddy/Caddyfile") == before
    assert setup.server.run("ls /etc/caddy | grep -c new || true") == "0"
    assert setup.client.ask("/").status == 200
    assert setup.server.plan(TASK, **setup.data) == []


@pytest.mark.promise(like=test_headers)
def test_limits(setup: Setup) -> None:
    client = setup.client
    client.container.run("head -c 3000000 /dev/zero > /large; head -c 900000 /dev/zero > /small")
    # The upload takes twice as long as a replica may take to answer.
    slow = ["--limit-rate", "225k", "--http1.1", "-H", "Expect:"]
    chunked = ["-H", "Transfer-Encoding: chunked", "--http1.1", "-H", "Expect:"]
    for how in ([], chunked, slow):
        started = time.monotonic()
        answer = client.ask("/upload", "--data-binary", "@/small", *how)
        assert json.loads(answer.body)["received"] == 900_000, how
        assert how != slow or time.monotonic() - started > 3
    for how in ([], ["--http1.1"]):
        assert client.ask("/upload", "--data-binary", "@/large", *how).status == 413, how
    # Without a stated length, the connection may end before the answer arrives.
    result = client.call(f"https://{DOMAIN}/upload", "--data-binary", "@/large", *chunked)
    assert "received" not in result.stdout
    assert re.search(r"^HTTP/\S+ 413", result.stdout, re.MULTILINE) or result.returncode in (55, 56)
    assert client.ask("/slow?seconds=1").status == 200
    # A request that waits for its answer is not sent to other replicas as well.
    for method in ("POST", "GET"):
        started = time.monotonic()
        assert client.ask("/slow?seconds=4", "-X", method).status == 504
        assert time.monotonic() - started < 3.5


@pytest.mark.promise("A POST waits while no replica can be reached, and is sent once")
def test_only_reading_requests_are_sent_again_after_a_break(setup: Setup) -> None:
    def seen(method: str) -> int:
        answers = (
            json.loads(setup.server.run(f"curl -s 127.0.0.1:{port}/seen"))["seen"]
            for port in (8000, 8001)
        )
        return sum(answer.get(f"{method} /break", 0) for answer in answers)

    assert setup.client.ask("/break", "-X", "POST").status == 502
    assert seen("POST") == 1
    eventually(lambda: setup.client.ask("/").status == 200, 15)
    assert setup.client.ask("/break").status in (502, 503)
    assert seen("GET") > 1


BROKEN = """
import socket, ssl, sys

address, domain = sys.argv[1:]
for number in range(8):
    plain = socket.create_connection((address, 443), timeout=10)
    secure = ssl.create_default_context(cafile="/ca.pem").wrap_socket(plain, server_hostname=domain)
    secure.sendall((
        f"POST /upload HTTP/1.1\\r\\nHost: {domain}\\r\\n"
        "Transfer-Encoding: chunked\\r\\n\\r\\nzz\\r\\n"
    ).encode())
    print(secure.recv(20).split()[1].decode())
    secure.close()
"""


def test_a_client_cannot_make_replicas_unavailable_for_others(setup: Setup) -> None:
    """Caddy blames the replica for a broken body, but avoids it only for a moment."""
    client = setup.client
    statuses = client.container.run(
        f"python3 - {setup.server.address} {DOMAIN}", stdin=BROKEN
    ).split()
    started = time.monotonic()
    assert client.ask("/").status == 200
    assert time.monotonic() - started < 3
    assert set(statuses) & {"502", "400"}


def test_missing_replicas_cost_no_request(setup: Setup) -> None:
    """A site has ports for eight replicas, of which six are missing. A POST works as well."""
    answers = [setup.client.ask("/", "-X", "POST", "-d", "x").status for _ in range(20)]
    assert answers == [200] * 20
    # This also holds right after a reload, when Caddy has not yet noticed that they are missing.
    setup.server.run("caddy reload --force --config /etc/caddy/Caddyfile 2>&1")
    answers = [setup.client.ask("/", "-X", "POST", "-d", "x").status for _ in range(20)]
    assert answers == [200] * 20


@pytest.mark.promise(like=test_only_reading_requests_are_sent_again_after_a_break)
def test_a_post_waits_while_no_replica_can_be_reached(setup: Setup) -> None:
    """It has reached no replica yet, so it may be sent, for example after a restart of Docker."""
    # Wait for ten seconds, which is the default: the two seconds of this site are too short here.
    longer = "/etc/caddy/Caddyfile.longer"
    setup.server.run(
        f"sed 's/lb_try_duration 2s/lb_try_duration 10s/' /etc/caddy/Caddyfile > {longer}"
        f" && ! cmp -s /etc/caddy/Caddyfile {longer}"
        f" && caddy reload --adapter caddyfile --config {longer} 2>&1"
    )
    try:
        setup.server.run("systemctl stop replica-0 replica-1; sleep 3")
        command = setup.client.command(
            f"https://{DOMAIN}/", "-X", "POST", "-d", "x", "-o", "/dev/null", "-w", "%{http_code}"
        )
        waiting = subprocess.Popen(
            ["docker", "exec", setup.client.container.name, *command],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(1)
        assert waiting.poll() is None
        replicas(setup.server, 0, 1)
        said, _ = waiting.communicate(timeout=30)
        assert said == "200"
    finally:
        replicas(setup.server, 0, 1)
        setup.server.run(f"rm {longer}; systemctl reload caddy")


def test_health_checks_look_like_a_visitors_requests(setup: Setup) -> None:
    seen = json.loads(setup.server.run("curl -s 127.0.0.1:8000/seen"))["seen"]
    assert f"health of {DOMAIN} https" in seen
    assert "health of 127.0.0.1:8000 None" not in seen


def test_the_log_holds_no_secret_and_is_closed_to_other_accounts(setup: Setup) -> None:
    setup.client.ask(
        "/login/x", "--user", f"bob:{PASSWORD}", "-H", "Cookie: session=hunter2-cookie"
    )
    log = setup.server.run("tail -n 1 /var/log/caddy/api.log")
    entry = json.loads(log)
    assert entry["request"]["uri"] == "/login/x"
    assert entry["user_id"] == "bob"
    assert "hunter2" not in log
    assert "Ym9iO" not in log
    assert setup.server.call("runuser -u nobody -- cat /var/log/caddy/api.log").returncode != 0
    assert setup.server.call("runuser -u nobody -- cat /etc/caddy/Caddyfile").returncode != 0


def test_only_the_host_reaches_the_admin_endpoint(setup: Setup) -> None:
    metrics = setup.server.run("curl -s http://localhost:2019/metrics")
    assert re.search(
        r"^caddy_http_requests?_(count|total|duration_seconds_count){", metrics, re.MULTILINE
    )
    assert open_ports(setup.client.container, setup.server, 80, 443, 2019, 8000) == [80, 443]


def test_maintenance(setup: Setup) -> None:
    path = "/etc/caddy/maintenance/api.caddy"
    setup.server.run(
        f"cat > {path} && systemctl reload caddy",
        stdin='# Managed by Terrafirma\nheader Retry-After 30\nerror "maintenance" 503\n',
    )
    try:
        for url in ("/", "/assets/a.css", "/admin/door"):
            answer = setup.client.ask(url)
            assert (answer.status, answer.headers["retry-after"]) == (503, ["30"]), url
    finally:
        setup.server.run(f"rm {path} && systemctl reload caddy")
    assert setup.client.ask("/").status == 200


# --- requests and connections during a release ----------------------------------------------------

WEBSOCKET = """
import base64, json, os, socket, ssl, sys, time

address, domain, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
context = ssl.create_default_context(cafile="/ca.pem")
plain = socket.create_connection((address, 443), timeout=10)
secure = context.wrap_socket(plain, server_hostname=domain)
key = base64.b64encode(os.urandom(16)).decode()
secure.sendall((
    f"GET /ws HTTP/1.1\\r\\nHost: {domain}\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
    f"Sec-WebSocket-Key: {key}\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n"
).encode())
head = b""
while b"\\r\\n\\r\\n" not in head:
    head += secure.recv(1)
assert b" 101 " in head, head

def exactly(size):
    data = b""
    while len(data) < size:
        piece = secure.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data

started, echoes, ended, closed = time.monotonic(), 0, None, None
print("open", flush=True)
try:
    while time.monotonic() - started < seconds:
        secure.sendall(bytes([0x81, 0x80 | 5, 0, 0, 0, 0]) + b"hello")
        first, length = exactly(2)
        data = exactly(length & 127)
        if first & 15 == 8:
            closed = int.from_bytes(data[:2], "big")
            break
        assert data.endswith(b" hello"), data
        echoes += 1
        time.sleep(0.1)
except (EOFError, OSError):
    closed = "cut off"
ended = time.monotonic() - started
print(json.dumps({"echoes": echoes, "closed": closed, "seconds": ended}))
"""


@contextmanager
def stream(client: Client, *command: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        ["docker", "exec", "-i", client.container.name, *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=10)


@contextmanager
def websocket(setup: Setup, seconds: int) -> Iterator[dict[str, Any]]:
    """Keep a WebSocket open for some seconds; the dictionary then has the result."""
    command = ("python3", "-c", WEBSOCKET, setup.server.address, DOMAIN, str(seconds))
    said: dict[str, Any] = {}
    with stream(setup.client, *command) as process:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        yield said
        said.update(json.loads(process.communicate(timeout=seconds + 20)[0]))


@pytest.mark.promise(
    "The switch between two slots fails no request and closes no connection; a WebSocket "
    "outlives ten switches"
)
def test_a_switch_loses_no_request_and_closes_no_connection(setup: Setup) -> None:
    """Ten switches, back and forth: no request is repeated, and a WebSocket stays open."""
    with websocket(setup, 35) as said:
        assert under_way(setup.server, 8000, 8001) == 1
        with asking(setup.client, DOMAIN, *["/"] * 19, "/slow?seconds=1") as seen:
            for number in range(10):
                time.sleep(0.5)
                slot = "blue" if number % 2 else "green"
                switch(setup.server, slot)
                answers = [json.loads(setup.client.ask("/").body)["replica"] for _ in range(3)]
                assert {*answers} <= ({"r0", "r1"} if slot == "blue" else {"r64", "r65"})
        assert under_way(setup.server, 8000, 8001) == 1
        assert under_way(setup.server, 8064, 8065) == 0
    assert seen["failed"] == []
    assert seen["again"] == []
    assert seen["requests"] > 200
    assert said["closed"] is None
    assert said["echoes"] > 100
    eventually(lambda: under_way(setup.server, 8000, 8001) == 0, 10)


@pytest.mark.long
def test_a_switch_loses_no_request_over_http_3(setup: Setup) -> None:
    replicas(setup.server, 0, 1, 64, 65)
    command = setup.client.command(
        f"https://{DOMAIN}/?[1-2000]", "--http3-only", "--max-time", "100", "--no-progress-meter",
        "--write-out", "%{http_code} %{http_version} %{num_connects}\\n", "--output", "/dev/null",
    )  # fmt: skip
    asking = subprocess.Popen(
        ["docker", "exec", setup.client.container.name, *command],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    switched = 0
    while asking.poll() is None:
        switch(setup.server, ("green", "blue")[switched % 2])
        switched += 1
        time.sleep(0.2)
    switch(setup.server, "blue")
    said, _ = asking.communicate(timeout=100)
    first, *rest = said.splitlines()
    assert first == "200 3 1"
    # All requests used the same connection.
    assert set(rest) == {"200 3 0"}
    assert len(rest) == 1999
    assert switched >= 3


def test_a_websocket_outlives_a_reload_with_newer_versions(setup: Setup) -> None:
    with websocket(setup, 20) as said:
        time.sleep(1)
        setup.server.run("caddy reload --force --config /etc/caddy/Caddyfile 2>&1")
    # Closed with code 1001, which tells a client to reconnect.
    assert said["closed"] == 1001
    if setup.newer:
        # It is closed drain_seconds after the reload.
        assert 6 <= said["seconds"] < 12
    else:
        assert said["seconds"] < 4


def test_events_and_slow_requests_outlive_a_release(setup: Setup) -> None:
    """Each event arrives when it is sent, compressed or not."""
    for option in ("--compressed", "--http1.1"):
        url = f"https://{DOMAIN}/events?count=12"
        with stream(setup.client, *setup.client.command(url, "--no-buffer", option)) as process:
            assert process.stdout
            times, lines = [], []
            for line in process.stdout:
                if line.strip():
                    times.append(time.monotonic())
                    lines.append(line.strip())
                if len(lines) == 2:
                    switch(setup.server, "green")
                if len(lines) == 4:
                    # A reload does not wait for the stream.
                    started = time.monotonic()
                    setup.server.run("caddy reload --force --config /etc/caddy/Caddyfile 2>&1")
                    assert time.monotonic() - started < 3
                    # The new configuration still counts the stream as under way.
                    assert under_way(setup.server, 8000, 8001) == 1
        switch(setup.server, "blue")
        assert [line.split()[-1] for line in lines] == [str(number) for number in range(12)]
        assert times[-1] - times[0] > 5


ASKING = """
import http.client, json, socket, ssl, sys, threading, time

address, domain, *paths = sys.argv[1:]
context = ssl.create_default_context(cafile="/ca.pem")
stop, failed, again, serials, count = threading.Event(), [], [], set(), [0] * 8

def connect():
    connection = http.client.HTTPSConnection(domain, timeout=15, context=context)
    connection._create_connection = lambda _, *rest: socket.create_connection((address, 443), *rest)
    connection.connect()
    serials.add(connection.sock.getpeercert()["serialNumber"])
    return connection

def get(connection, path):
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200 and body.endswith(b"}"), (answer.status, body[:80])

def ask(number):
    connection = None
    while not stop.is_set():
        path = paths[count[number] % len(paths)]
        count[number] += 1
        # Pause, so that only lost requests matter, and not how busy the machine is.
        time.sleep(0.01)
        for attempt in (1, 2):
            try:
                connection = connection or connect()
                get(connection, path)
                break
            except Exception as error:
                connection = None
                closed = isinstance(error, (ConnectionError, http.client.RemoteDisconnected))
                # During a reload, Debian's Caddy has no certificate for a moment.
                closed = closed or "TLSV1_ALERT_INTERNAL_ERROR" in str(error)
                # Repeat a request whose connection was closed before the answer, as browsers do.
                (again if closed and attempt == 1 else failed).append(repr(error))
                if not closed:
                    break
        # Half of the clients open a new connection each time, the others keep theirs.
        if connection and number % 2:
            connection.close()
            connection = None

threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(count))]
for thread in threads:
    thread.start()
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join()
print(json.dumps({
    "requests": sum(count), "failed": failed[:20], "again": again, "serials": sorted(serials)
}))
"""


@contextmanager
def asking(client: Client, name: str, *paths: str) -> Iterator[dict[str, Any]]:
    """Run eight clients until the block ends; each sends at most 100 requests a second."""
    process = subprocess.Popen(
        ["docker", "exec", "-i", client.container.name, "python3", "-c", ASKING,
         client.server.address, name, *paths],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    seen: dict[str, Any] = {}
    try:
        yield seen
    finally:
        printed, _ = process.communicate("", timeout=60)
    seen.update(json.loads(printed))


def test_no_answer_is_cut_off_when_the_sites_change(setup: Setup) -> None:
    """A reload of Caddy may close a connection as a request comes in: see docs/limits.md."""
    with asking(setup.client, DOMAIN, *["/"] * 19, "/slow?seconds=1") as seen:
        time.sleep(4)
        more = setup.data | api(headers={"X-Other": "1"})
        assert changed(setup.server.deploy(TASK, **more)) == ["Configure the sites", "Run Caddy"]
        time.sleep(4)
    assert seen["failed"] == []
    assert seen["requests"] > 200
    # One reload, and one request in flight at a time for each of eight connections.
    assert len(seen["again"]) <= 8
    assert setup.client.ask("/").headers["x-other"] == ["1"]
    assert changed(setup.server.deploy(TASK, **setup.data)) == ["Configure the sites", "Run Caddy"]


def test_the_certificates_are_in_the_backup(setup: Setup) -> None:
    """borg lists the files that it backs up with the default settings."""
    if setup.kind != "debian13":
        pytest.skip("the same store, and the same borg")
    config = runpy.run_path(str(ROOT / "group_data/all.py"))
    server = setup.server
    server.run("apt-get install -qy --no-install-recommends borgbackup")
    exclude = " ".join(f"--exclude '{pattern}'" for pattern in config["borg_exclude"])
    listed = server.run(
        "export BORG_PASSPHRASE=x; borg init -e repokey /tmp/store.borg && borg create"
        f" --exclude-caches {exclude} /tmp/store.borg::one {' '.join(config['borg_directories'])}"
        " 2> /dev/null; borg list --short /tmp/store.borg::one"
    ).splitlines()
    store = server.run("find /var/lib/caddy -type f").splitlines()
    assert any(path.endswith("/root.key") for path in store)
    assert {path.removeprefix("/") for path in store} <= {*listed}


# --- a real authority -----------------------------------------------------------------------------

AUTHORITY = """\
set -e
mkdir -p /pebble && cd /pebble
ec="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
openssl req -x509 $ec -keyout ca.key -out ca.pem -subj "/CN=for the address alone" -days 30
openssl req $ec -keyout key.pem -out csr.pem -subj "/CN=authority"
printf "subjectAltName=IP:$1" > names
openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out cert.pem
"""


@dataclass(frozen=True)
class Authority:
    """Pebble, with a DNS server of its own, in the role of a public authority."""

    container: Container
    root: Path  # root of the certificate of its own address

    def start(self, port: int, validity: int) -> None:
        """Start an authority whose certificates are valid for `validity` seconds."""
        settings = {
            "listenAddress": f"0.0.0.0:{port}",
            "managementListenAddress": f"0.0.0.0:{port + 1}",
            "certificate": "/pebble/cert.pem",
            "privateKey": "/pebble/key.pem",
            "httpPort": 80,
            "tlsPort": 443,
            "certificateValidityPeriod": validity,
        }
        self.container.run(f"cat > /pebble/{port}.json", stdin=json.dumps({"pebble": settings}))
        self.container.run(
            f"PEBBLE_VA_NOSLEEP=1 setsid pebble -config /pebble/{port}.json"
            f" -dnsserver 127.0.0.1:8053 > /pebble/{port}.log 2>&1 < /dev/null &"
        )
        eventually(lambda: bool(self.certificates(port)), 20)

    def certificates(self, port: int) -> str:
        """The root certificate that visitors of its sites trust."""
        return self.container.call(f"curl -sk https://127.0.0.1:{port + 1}/roots/0").stdout

    def url(self, port: int) -> str:
        return f"https://{self.container.address}:{port}/dir"

    def resolve(self, name: str, address: str) -> None:
        record = json.dumps({"host": f"{name}.", "addresses": [address]})
        self.container.run(f"curl -sf -d '{record}' http://127.0.0.1:8055/add-a")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    with bystander("tf-test-caddy-authority") as container:
        container.run(f"sh -s {container.address} 2>&1", stdin=AUTHORITY)
        container.run(
            "setsid pebble-challtestsrv -defaultIPv4 '' -defaultIPv6 '' -http01 '' -https01 ''"
            " -tlsalpn01 '' -doh '' > /pebble/dns.log 2>&1 < /dev/null &"
        )
        root = tmp_path_factory.mktemp("authority") / "root.pem"
        root.write_text(container.run("cat /pebble/ca.pem") + "\n")
        one = Authority(container, root)
        one.start(LASTING, 30 * 86400)
        one.start(SHORT, 45)
        yield one


LASTING, SHORT = 14000, 15000


@pytest.fixture
def signed(setup: Setup, authority: Authority) -> dict[str, Any]:
    """Settings that make `authority` the authority of the server."""
    if setup.kind == "debian12":
        pytest.skip("the same version of Caddy as on debian13")
    setup.client.trust(authority.certificates(LASTING))
    return {
        "caddy_email": "ops@terrafirma.test",
        "caddy_acme_ca": authority.url(LASTING),
        "caddy_acme_ca_root": str(authority.root),
    }


def points_here(setup: Setup, authority: Authority, name: str) -> None:
    authority.resolve(name, setup.server.address)
    setup.server.run(f"echo {setup.server.address} {name} >> /etc/hosts")


def said(setup: Setup, **settings: Any) -> str:
    """Run the task, which must succeed, and return its output."""
    arguments = (*options(settings), *setup.server.arguments(), TASK)
    result = setup.server.pyinfra.imported.call("-y", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.mark.promise("A real ACME authority signs certificates after either kind of challenge")
@pytest.mark.parametrize(
    ("kind", "other"), [("http-01", "tls-alpn-01"), ("tls-alpn-01", "http-01")]
)
def test_the_authority_signs_after_each_kind_of_challenge(
    setup: Setup,
    authority: Authority,
    signed: dict[str, Any],
    tmp_path: Path,
    kind: str,
    other: str,
) -> None:
    name = f"{kind}.{setup.kind}.test"
    points_here(setup, authority, name)
    directive = {"http-01": "disable_http_challenge", "tls-alpn-01": "disable_tlsalpn_challenge"}
    (tmp_path / "one.caddy").write_text(f"tls {{\nissuer acme {{\n{directive[other]}\n}}\n}}\n")
    printed = said(setup, **signed, **api(domain=name, snippet=str(tmp_path / "one.caddy")))
    assert "certificate yet" not in printed
    assert "leads to" not in printed
    # curl trusts only the authority's root, and resolves the name to the server.
    answer = setup.client.ask("/", name=name)
    assert (answer.status, json.loads(answer.body)["path"]) == (200, "/")
    chain = setup.client.call(f"https://{name}/", "--verbose").stderr
    assert re.search(r"issuer: CN=Pebble Intermediate CA", chain)
    # Caddy answered challenges of this kind only, and only to the authority.
    served = [
        json.loads(line)
        for line in setup.server.run("journalctl -u caddy -o cat | grep 'served key auth'").split(
            "\n"
        )
        if name in line
    ]
    assert {one["challenge"] for one in served} == {kind}
    assert {one["remote"].rpartition(":")[0] for one in served} == {authority.container.address}


@pytest.mark.promise(
    "A domain whose DNS record points elsewhere is reported, and stops no other site"
)
def test_a_name_that_leads_elsewhere_stops_no_other(
    setup: Setup, authority: Authority, signed: dict[str, Any]
) -> None:
    good, late, elsewhere = (f"{one}.{setup.kind}.test" for one in ("good", "late", "elsewhere"))
    points_here(setup, authority, good)
    authority.resolve(elsewhere, setup.client.container.address)
    setup.server.run(f"echo {setup.client.container.address} {elsewhere} >> /etc/hosts")
    settings = signed | api(domain=good, redirects=[late, elsewhere])
    printed = said(setup, **settings)
    assert f"{late} has no address, as far as the host can tell" in printed
    assert f"{elsewhere} leads to {setup.client.container.address}" in printed
    assert f"{late} has no certificate yet: " in printed
    assert re.search(rf"{elsewhere} has no certificate yet: .*(refused|connect)", printed), printed
    assert f"{good} has no certificate" not in printed
    assert setup.client.ask("/", name=good).status == 200
    # The next run reports it again, without waiting, and changes nothing.
    started = time.monotonic()
    again = said(setup, **settings)
    assert f"{late} has no certificate yet: " in again
    assert time.monotonic() - started < 20
    assert changed(setup.server.deploy(TASK, **settings)) == []
    # Correct one of the records.
    points_here(setup, authority, late)
    setup.server.run("systemctl reload caddy")
    eventually(lambda: setup.client.call(f"https://{late}/").returncode == 0, 40)
    assert setup.client.ask("/x", name=late).headers["location"] == [f"https://{good}/x"]
    after = said(setup, **settings)
    assert late not in after
    assert f"{elsewhere} has no certificate yet: " in after


def test_certificates_outlive_the_authority(
    setup: Setup, authority: Authority, signed: dict[str, Any]
) -> None:
    name = f"kept.{setup.kind}.test"
    points_here(setup, authority, name)
    settings = signed | api(domain=name)
    said(setup, **settings)
    shown = f"curl -sk -o /dev/null -w '%{{certs}}' --resolve {name}:443:127.0.0.1 https://{name}/"
    before = setup.server.run(shown)
    assert "BEGIN CERTIFICATE" in before
    authority.container.run(f"kill $(pgrep -f '[p]ebble/{LASTING}.json')")
    try:
        setup.server.run("systemctl restart caddy")
        assert changed(setup.server.deploy(TASK, **settings)) == []
        assert setup.client.ask("/", name=name).status == 200
        assert setup.server.run(shown) == before
    finally:
        authority.start(LASTING, 30 * 86400)


@pytest.mark.promise("Certificates are renewed in time, without a failed request")
@pytest.mark.long
def test_a_certificate_is_renewed_in_time_and_no_request_is_lost(
    setup: Setup, authority: Authority, signed: dict[str, Any], tmp_path: Path
) -> None:
    """The certificate is valid for 45 s; as always, Caddy renews it in the last third."""
    name = f"short.{setup.kind}.test"
    points_here(setup, authority, name)
    (tmp_path / "often.caddy").write_text("renew_interval 1s\n")
    settings = {
        **signed,
        **api(domain=name),
        "caddy_acme_ca": authority.url(SHORT),
        "caddy_snippet": str(tmp_path / "often.caddy"),
    }
    said(setup, **settings)
    # Newer versions of Caddy read renew_interval only when they start.
    setup.server.run("systemctl restart caddy")
    setup.client.trust(authority.certificates(SHORT))
    eventually(lambda: setup.client.call(f"https://{name}/").returncode == 0, 20)
    with asking(setup.client, name, "/") as seen:
        time.sleep(100)
    # A renewal does not close connections either.
    assert seen["again"] == []
    assert seen["failed"] == []
    assert seen["requests"] > 1000
    # The first certificate, and at least two renewed ones.
    assert len(seen["serials"]) >= 3, seen["serials"]
    assert name not in said(setup, **settings)

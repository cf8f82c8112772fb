"""What healthy means: we and a real Caddy check real servers."""

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from terrafirma_host import health
from terrafirma_host.health import Answer
from terrafirma_host.spec import Application

from tests.conftest import ROOT
from tests.unit.terrafirma_host.applications import described
from tests.unit.terrafirma_host.health_kinds import (
    DOMAIN,
    KINDS,
    OK,
    all_kinds,
    caddy_says,
    serving,
    status,
)

CADDY = str(ROOT / ".venv/bin/caddy")


@pytest.fixture
def asked() -> Application:
    return described(domain=DOMAIN, container_port=8000)


def test_which_answers_are_healthy(asked: Application) -> None:
    """The newest Caddy agrees; tests/e2e/app/test_health.py asks Debian's."""
    with all_kinds() as ports:
        theirs = caddy_says(CADDY, health.lines(asked), ports)
        ours = dict(zip(ports, health.ask_all(asked, ports.values()), strict=True))
    for name, (_, good) in KINDS.items():
        assert ours[name].good is good, (name, ours[name])
    assert {name: one.good for name, one in ours.items()} == theirs


def test_caddy_reads_these_lines_as_they_are_meant(asked: Application, tmp_path: Path) -> None:
    """The configuration shows whether Caddy has read the lines yet."""
    asked = replace(asked, health_path="/up", domain="www.acme.com")
    file = tmp_path / "Caddyfile"
    # The lines override the template's earlier ones.
    before = "health_interval 7s\nhealth_timeout 9s\n"
    file.write_text(f":80 {{\nreverse_proxy 127.0.0.1:1 {{\n{before}{health.lines(asked)}}}\n}}\n")
    said = subprocess.run(
        [CADDY, "adapt", "--config", file], capture_output=True, text=True, check=True
    ).stdout
    (route,) = json.loads(said)["apps"]["http"]["servers"]["srv0"]["routes"]
    active = route["handle"][0]["health_checks"]["active"]
    assert health.configured(asked).items() <= active.items()


def test_every_health_path_means_the_same_to_caddy() -> None:
    """A parser takes `//name/path` for a path on another host."""
    with pytest.raises(Exception, match="health_path"):
        described(health_path="//healthz")


ACCEPT = f"it was asked with Host: {DOMAIN}, which it has to accept"


def packed(body: bytes, *headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 500 Error", *headers, "", ""]).encode() + body


# A replica's answer; the message about it; whether a later answer would be the same.
HERE = f"Location: https://{DOMAIN}/healthz"
WORDS: dict[str, tuple[bytes, str, bool]] = {
    "a slash": (
        status("308 Permanent Redirect", f"{HERE}/"),
        f"it answers 308 to https://{DOMAIN}/healthz/: set health_path to /healthz/",
        True,
    ),
    "a slash, said in short": (
        status("301 Moved", "Location: /healthz/"),
        f"it answers 301 to https://{DOMAIN}/healthz/: set health_path to /healthz/",
        True,
    ),
    "a prefix": (
        status("302 Found", "Location: /en/healthz"),
        f"it answers 302 to https://{DOMAIN}/en/healthz: set health_path to /en/healthz",
        True,
    ),
    "https": (
        status("301 Moved", HERE),
        f"it answers 301 to https://{DOMAIN}/healthz, itself: it was asked with "
        "X-Forwarded-Proto: https, which it has to trust",
        True,
    ),
    "a login": (
        status("302 Found", "Location: /login?next=%2Fhealthz"),
        f"it answers 302 to https://{DOMAIN}/login?next=%2Fhealthz: set health_path to "
        "a path that it answers itself, without a login",
        True,
    ),
    "www": (
        status("301 Moved", "Location: https://www.acme.com/healthz"),
        "it answers 301 to https://www.acme.com/healthz, another host: let it answer its health "
        f"path under the name that it was asked with (Host: {DOMAIN})",
        True,
    ),
    "nowhere": (
        status("307 Temporary"),
        "it answers 307 to /healthz: its health path has to answer 2xx",
        True,
    ),
    "an address that is none": (
        status("302 Found", "Location: http://[::1/healthz"),
        "it answers 302 to http://[::1/healthz: its health path has to answer 2xx without a "
        "redirect",
        True,
    ),
    "no host of its": (
        status("400 Bad Request", body="<title>DisallowedHost\n at /healthz</title><p>x"),
        "it answers 400 to /healthz (DisallowedHost at /healthz): it was asked with Host: "
        f"{DOMAIN}, which it has to accept",
        True,
    ),
    "TLS, politely": (
        status("400 Bad Request", body="Client sent an HTTP request to an HTTPS server.\n"),
        "it answers 400 to /healthz (Client sent an HTTP request to an HTTPS server.): let it "
        "speak plain HTTP on 8000",
        True,
    ),
    "misdirected": (
        status("421 Misdirected"),
        f"it answers 421 to /healthz: it was asked with Host: {DOMAIN}, which it has to accept",
        True,
    ),
    "401": (
        status("401 Unauthorized", body='{"detail": "Not authenticated"}'),
        'it answers 401 to /healthz ({"detail": "Not authenticated"}): set health_path to '
        "a path that needs no login",
        True,
    ),
    "403": (
        status("403 Forbidden"),
        "it answers 403 to /healthz: set health_path to a path that needs no login",
        True,
    ),
    "404": (
        status("404 Not Found", body="<html><body><h1>Not&nbsp;Found</h1>"),
        "it answers 404 to /healthz (Not Found): set health_path to a path that it has",
        True,
    ),
    "405": (
        status("405 Method Not Allowed"),
        "it answers 405 to /healthz: its health path has to answer GET",
        True,
    ),
    "429": (
        status("429 Too Many Requests"),
        "it answers 429 to /healthz: exempt its health path from limits, Caddy asks each replica "
        "every second",
        False,
    ),
    "a host that Rails does not know": (
        status(
            "403 Forbidden",
            body="<title>Action Controller: Exception caught</title><style>h1 {}</style><header>"
            f"<h1>Blocked hosts: {DOMAIN}</h1></header>",
        ),
        f"it answers 403 to /healthz (Blocked hosts: {DOMAIN}): {ACCEPT}",
        True,
    ),
    "a host that Vite does not know": (
        status("403 Forbidden", body=f'Blocked request. This host ("{DOMAIN}") is not allowed.'),
        f'it answers 403 to /healthz (Blocked request. This host ("{DOMAIN}") is not allowed.): '
        f"{ACCEPT}",
        True,
    ),
    "a host that webpack does not know": (
        status("403 Forbidden", body="Invalid Host header"),
        f"it answers 403 to /healthz (Invalid Host header): {ACCEPT}",
        True,
    ),
    "a name alone": (
        status("403 Forbidden", body=f"{DOMAIN} is none of ours"),
        f"it answers 403 to /healthz ({DOMAIN} is none of ours): {ACCEPT}",
        True,
    ),
    "a page of its own": (
        status("403 Forbidden", body="<title>Sign in</title><p>Hosted by Acme"),
        "it answers 403 to /healthz (Sign in): set health_path to a path that needs no login",
        True,
    ),
    "a packed page": (
        packed(gzip.compress(b"<title>no database</title>"), "Content-Encoding: gzip"),
        "it answers 500 to /healthz (no database)",
        False,
    ),
    "a packed page that breaks off": (
        packed(gzip.compress(b"no database", 0)[:-8], "Content-Encoding: gzip"),
        "it answers 500 to /healthz (no database)",
        False,
    ),
    "a page that is packed otherwise": (
        packed(b"\x1b\x03\x00\xf8", "Content-Encoding: br"),
        "it answers 500 to /healthz",
        False,
    ),
    "a page that is not packed as it says": (
        packed(b"no database", "Content-Encoding: gzip"),
        "it answers 500 to /healthz",
        False,
    ),
    "a page in chunks": (
        packed(b"3\r\nno \r\n8;a=b\r\ndatabase\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
        "it answers 500 to /healthz (no database)",
        False,
    ),
    "a packed page in chunks": (
        packed(
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(gzip.compress(b"no disk")), gzip.compress(b"no disk")),
            "Transfer-Encoding: chunked",
            "Content-Encoding: gzip",
        ),
        "it answers 500 to /healthz (no disk)",
        False,
    ),
    "another port": (
        status("302 Found", f"Location: https://{DOMAIN}:8443/healthz"),
        f"it answers 302 to https://{DOMAIN}:8443/healthz, another port: let it answer its health "
        "path itself, without a redirect",
        True,
    ),
    "plain HTTP": (
        status("301 Moved", f"Location: http://{DOMAIN}/healthz"),
        f"it answers 301 to http://{DOMAIN}/healthz, plain HTTP: let it answer its health path "
        "itself, without a redirect",
        True,
    ),
    "its own port, said": (
        status("301 Moved", f"Location: https://{DOMAIN}:443/healthz"),
        f"it answers 301 to https://{DOMAIN}:443/healthz, itself: it was asked with "
        "X-Forwarded-Proto: https, which it has to trust",
        True,
    ),
    "a slash, by plain HTTP": (
        status("307 Temporary", f"Location: http://{DOMAIN}/healthz/"),
        f"it answers 307 to http://{DOMAIN}/healthz/: set health_path to /healthz/",
        True,
    ),
    "a login that ends alike": (
        status("302 Found", "Location: /login/healthz"),
        f"it answers 302 to https://{DOMAIN}/login/healthz: set health_path to "
        "a path that it answers itself, without a login",
        True,
    ),
    "a port that is none": (
        status("302 Found", f"Location: https://{DOMAIN}:x/healthz"),
        f"it answers 302 to https://{DOMAIN}:x/healthz: its health path has to answer 2xx without "
        "a redirect",
        True,
    ),
    "500": (
        status("500 Error", body="\x1b[31mKeyError\x1b[0m: 'DATABASE_URL'"),
        "it answers 500 to /healthz (KeyError: 'DATABASE_URL')",
        False,
    ),
    "503": (
        status("503 Unavailable", body="x" * 500),
        f"it answers 503 to /healthz ({'x' * 100}…)",
        False,
    ),
    "TLS": (
        b"\x15\x03\x01\x00\x02\x02\x16",
        "on port 8000, asked for /healthz: it speaks TLS there: let it speak plain HTTP, Caddy has "
        "the certificate; or set protocol to https",
        False,
    ),
    "gRPC": (
        b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        "on port 8000, asked for /healthz: it speaks HTTP/2 alone there (gRPC?): let it speak "
        "HTTP/1.1 as well; or set protocol to h2c",
        False,
    ),
    "another protocol": (
        b"-ERR unknown command 'GET'\r\n",
        "on port 8000, asked for /healthz: it speaks no HTTP there: "
        "\"-ERR unknown command 'GET'\\n\"",
        False,
    ),
    "half": (
        b"HTTP/1.1 200 OK\r\n",
        "on port 8000, asked for /healthz: its answer breaks off in its head",
        False,
    ),
    "two lengths": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "on port 8000, asked for /healthz: its answer has a Content-Length of 1 and 2",
        False,
    ),
    "nothing": (b"", "it does not listen on port 8000", False),
    "204": (b"HTTP/1.1 204 No\r\n\r\n", "it answers 204", False),
}


@pytest.mark.parametrize("name", WORDS)
def test_the_message_about_an_answer(asked: Application, name: str) -> None:
    sent, words, final = WORDS[name]
    with serving(sent) as port:
        answer = health.ask(asked, port)
    assert health.words(asked, answer) == words
    assert answer.final is final
    assert answer.good is (name == "204")


def test_the_timeout_covers_the_whole_head(asked: Application) -> None:
    sends, _ = KINDS["drips, 7 s in all"]
    with serving(sends) as port:
        started = time.monotonic()
        answer = health.ask(asked, port)
    assert time.monotonic() - started < 5
    assert answer.error == "no answer within 4 s"
    assert health.words(asked, answer) == ("on port 8000, asked for /healthz: no answer within 4 s")


def test_a_shorter_timeout_of_the_site_limits_the_check(asked: Application) -> None:
    """`response_header_timeout` of its transport ends Caddy's question, too."""
    sends, good = KINDS["after 2.5 s"]
    with serving(sends) as port:
        assert health.ask(asked, port).good is good
        short = replace(asked, timeout_seconds=1)
        assert health.ask(short, port).error == "no answer within 1 s"


def test_a_hanging_replica_does_not_delay_the_others(asked: Application) -> None:
    sends, _ = KINDS["after 5 s"]
    with ExitStack() as stack:
        ports = [stack.enter_context(serving(sends)) for _ in range(8)]
        ports.append(stack.enter_context(serving(OK)))
        started = time.monotonic()
        answers = health.ask_all(asked, ports)
    assert time.monotonic() - started < 6
    assert [one.good for one in answers] == [False] * 8 + [True]
    assert [one.port for one in answers] == ports
    assert health.ask_all(asked, []) == []


# --- where it listens instead ---------------------------------------------------------------------

LISTEN = """
import socket, sys
for one in sys.argv[1:]:
    host, _, port = one.rpartition("@")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    s = socket.socket(family); s.bind((host, int(port))); s.listen(); globals()[one] = s
print(flush=True); sys.stdin.read()
"""


@pytest.fixture
def listens() -> Iterator[object]:
    """A process in a network of its own that listens on these addresses only."""
    if os.geteuid() != 0:
        pytest.skip("a network of its own takes root")
    with ExitStack() as stack:

        def start(*where: str) -> int:
            process = stack.enter_context(
                subprocess.Popen(
                    ["unshare", "--net", "sh", "-c",
                     'ip link set lo up; exec "$@"', "sh", sys.executable, "-c", LISTEN, *where],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                )
            )  # fmt: skip
            stack.callback(process.kill)
            assert process.stdout
            if not process.stdout.readline():
                pytest.skip("no network of its own here")
            return process.pid

        yield start


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (["0.0.0.0@3000"], "it listens on 3000, not on 8000: set container_port to 3000"),
        (["::@3000"], "it listens on 3000, not on 8000: set container_port to 3000"),
        (["0.0.0.0@3000", "127.0.0.1@9229"], "it listens on 3000, not on 8000: set container_port "
         "to 3000"),
        (["0.0.0.0@80", "0.0.0.0@443"], "it listens on 80, 443, not on 8000: set container_port to "
         "the one for HTTP"),
        (["127.0.0.1@8000"], "it listens on 127.0.0.1:8000 alone: let it listen on 0.0.0.0, all "
         "addresses of its container"),
        (["::1@8000"], "it listens on [::1]:8000 alone: let it listen on 0.0.0.0, all addresses "
         "of its container"),
        (["127.0.0.1@5000"], "it listens on 127.0.0.1:5000 alone: let it listen on 0.0.0.0:8000"),
        (["0.0.0.0@8000"], "it listens on 0.0.0.0:8000, and closes connections without an answer"),
        # Docker's resolver listens in each container of a network.
        (["127.0.0.11@40000"], "it does not listen on port 8000"),
        ([], "it does not listen on port 8000"),
    ],
)  # fmt: skip
def test_the_message_about_a_wrong_address(
    asked: Application, listens: object, where: list[str], words: str
) -> None:
    assert callable(listens)
    silent = Answer(8064, error=health.CLOSED)
    assert health.words(asked, silent, listens(*where)) == words


def test_a_container_that_is_gone_listens_nowhere(asked: Application) -> None:
    silent = Answer(8064, error=health.CLOSED)
    for pid in (0, 2**22 + 1):
        assert health.words(asked, silent, pid) == "it does not listen on port 8000"


def test_a_port_that_refuses_and_one_that_hangs_up(asked: Application) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        assert health.ask(asked, port).error == health.CLOSED
    assert health.ask(asked, port).error == health.CLOSED

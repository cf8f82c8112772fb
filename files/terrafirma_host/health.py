"""
Managed by Terrafirma. What healthy means: for a release, for a run, and for Caddy.

A replica is healthy when it answers a GET of the health path with 2xx, in time and without a
redirect. This module makes that check, and writes the lines by which Caddy makes the same one.
Caddy 2.6 follows a redirect and judges the page behind it, Caddy from 2.8 on does not; so a
redirect is never healthy here. Every Caddy must accept what this module accepts, so an answer in
doubt is not healthy.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import unescape
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from terrafirma_host import http2
from terrafirma_host.http1 import PAGE, NoHttp, decoded, head_of, rest_of
from terrafirma_host.shell import plain
from terrafirma_host.spec import Application

# Seconds between Caddy's checks of a replica …
INTERVAL = 1
# … and for the whole head of the answer. The site's transport limits it as well, by `dial_timeout`
# and by `response_header_timeout` (timeout_seconds).
TIMEOUT = 4
CONNECT = 1

CLOSED = "the connection is closed without an answer"

# Answers that may change at the next try: too early, too many requests, locked.
PASSING = frozenset({408, 423, 425, 429})


@dataclass(frozen=True)
class Answer:
    """A replica's answer to a health check."""

    port: int
    status: int = 0  # 0: no answer in HTTP
    location: str = ""
    body: str = ""  # its first words, where the answer is not good
    error: str = ""  # why there is no status
    passed: bool = False  # a check without HTTP
    seconds: float = 0

    @property
    def good(self) -> bool:
        return self.passed or 200 <= self.status < 300

    @property
    def final(self) -> bool:
        """Whether a later check would have the same answer."""
        return 300 <= self.status < 500 and self.status not in PASSING


def headers(app: Application) -> dict[str, str]:
    """
    The headers of a visitor who comes through Caddy, and a name that filters can admit.

    Those of `health_headers` replace them.
    """
    own = {name.lower(): value for name, value in app.health_headers.items()}
    ours = {"Host": app.domain, "User-Agent": "terrafirma", "X-Forwarded-Proto": "https"}
    known = {name.lower() for name in ours}
    return {
        **{name: own.get(name.lower(), value) for name, value in ours.items()},
        **{one: value for one, value in app.health_headers.items() if one.lower() not in known},
    }


def name_of(app: Application) -> str:
    """The name of the host with which a health check asks."""
    return headers(app)["Host"]


def lines(app: Application) -> str:
    """The health check, for a Caddyfile."""
    sent = "".join(f"\t{name} {_token(value)}\n" for name, value in headers(app).items())
    return (
        f"health_uri {app.health_path}\n"
        "health_status 2xx\n"
        f"health_interval {INTERVAL}s\n"
        f"health_timeout {TIMEOUT}s\n"
        f"health_headers {{\n{sent}}}\n"
    )


def _token(value: str) -> str:
    """A value as one token of a Caddyfile; it has no backtick, which settings refuse."""
    return value if re.fullmatch(r"[\w./:+=,;@%-]+", value, re.ASCII) else f"`{value}`"


def said_headers(text: str) -> dict[str, str]:
    """The headers in the lines of a health check."""
    block = re.search(r"(?m)^health_headers \{\n((?:\t.*\n)*)\}$", text)
    found = re.findall(r"(?m)^\t(\S+) (`[^`\n]*`|\S+)$", block[1] if block else "")
    return {name: value.strip("`") for name, value in found}


def configured(app: Application) -> dict[str, object]:
    """The health check, as Caddy shows it in its configuration."""
    return {
        "uri": app.health_path,
        "expect_status": 2,
        "interval": INTERVAL * 10**9,
        "timeout": TIMEOUT * 10**9,
        "headers": {name: [value] for name, value in headers(app).items()},
    }


def ask(app: Application, port: int) -> Answer:
    """Check a replica as Caddy does; returns its answer."""
    sent = "".join(f"{name}: {value}\r\n" for name, value in headers(app).items())
    request = f"GET {app.health_path} HTTP/1.1\r\n{sent}Accept-Encoding: gzip\r\n\r\n"
    began = time.monotonic()
    limit = min(TIMEOUT, app.timeout_seconds)
    try:
        with _connected(app, port, limit) as connection:
            if app.protocol == "h2c":
                status = http2.get(connection, app.health_path, headers(app), began + limit)
                return Answer(port, status, seconds=time.monotonic() - began)
            connection.sendall(request.encode())
            status, fields, body = head_of(connection, began + limit)
            seconds = time.monotonic() - began
            if not 200 <= status < 300:
                body += rest_of(connection)
            location = fields.get("location", [""])[0]
            said = _first_words(decoded(fields, body))
            return Answer(port, status, location, said, seconds=seconds)
    except (NoHttp, http2.NoHttp2) as strange:
        error = str(strange)
    except ssl.SSLError as trouble:
        error = f"it speaks no TLS there ({trouble.reason or trouble}): set protocol to http"
    except TimeoutError:
        error = f"no answer within {limit} s"
    except ConnectionError:
        error = CLOSED
    except OSError as trouble:
        error = str(trouble)
    return Answer(port, error=error, seconds=time.monotonic() - began)


def _connected(app: Application, port: int, limit: float) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), min(CONNECT, limit))
    if app.protocol != "https":
        return connection
    # As for Caddy: on loopback a certificate proves nothing.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        connection.settimeout(limit)
        return context.wrap_socket(connection, server_hostname=app.domain)
    except BaseException:
        connection.close()
        raise


def ask_all(app: Application, ports: Iterable[int]) -> list[Answer]:
    """Check several replicas at once, so that one that hangs does not delay the others."""
    ports = list(ports)
    if not ports:
        return []
    with ThreadPoolExecutor(len(ports)) as pool:
        return list(pool.map(lambda port: ask(app, port), ports))


# --- the first words of an answer -----------------------------------------------------------------

# The words by which frameworks refuse an unknown host name.
_HOST = re.compile(
    r"(?i)\b((blocked|invalid|disallowed|unknown|untrusted|bad) ?hosts?\b"
    r"|(this |the )?host\b.{0,100}\bnot (allowed|permitted|trusted)\b|allowed.?hosts\b)"
)


def _first_words(body: bytes) -> str:
    """The title of an error page, or its words about the host name; else the first words."""
    text = body[:PAGE].decode(errors="replace")
    title = re.search(r"(?i)<title[^<>]*>([^<]*)", text)
    text = re.sub(r"(?is)<(style|script)\b.*?(</\1>|$)", " ", text)
    shown = _shown(text)
    if title:
        host = None if _HOST.search(_shown(title[1])) else _HOST.search(shown)
        shown = shown[host.start() :] if host else _shown(title[1])
    return shown if len(shown) <= 100 else f"{shown[:100]}…"


def _shown(page: str) -> str:
    return " ".join(plain(unescape(re.sub(r"<[^<>]*>", " ", page))).split())


# --- what an answer means -------------------------------------------------------------------------


def words(app: Application, answer: Answer, pid: int = 0) -> str:
    """
    What is wrong with an answer, and what would be right, in a line.

    + pid: the container's first process; where nothing answers, its network tells what listens
    """
    if answer.good:
        return "it passes its check" if answer.passed else f"it answers {answer.status}"
    if app.health not in ("http", "tcp"):
        return answer.error
    if not answer.status:
        return elsewhere(app, pid) if answer.error == CLOSED else _mute(app, answer)
    said = f" ({answer.body})" if answer.body else ""
    what = f"it answers {answer.status} to {app.health_path}{said}"
    match answer.status:
        case 400 if re.search(r"(?i)https|tls|ssl", answer.body):
            return f"{what}: let it speak plain HTTP on {app.container_port}"
        case 400 | 421:
            return f"{what}: it was asked with Host: {name_of(app)}, which it has to accept"
        case 403 if app.domain in answer.body or _HOST.search(answer.body):
            return f"{what}: it was asked with Host: {name_of(app)}, which it has to accept"
        case 401 | 403:
            return f"{what}: set health_path to a path that needs no login"
        case 404 | 410:
            return f"{what}: set health_path to a path that it has"
        case 405 | 415 | 501 if app.protocol == "h2c":
            return f"{what}: for a gRPC server set health to 'tcp', 'container' or a command"
        case 405 | 501:
            return f"{what}: its health path has to answer GET"
        case 429:
            return (f"{what}: exempt its health path from limits, Caddy asks each replica every "
                    "second")  # fmt: skip
        case status if 300 <= status < 400:
            return _redirect(app, answer)
    return what


def _mute(app: Application, answer: Answer) -> str:
    if app.health != "http":
        return f"on port {app.container_port}: {answer.error}"
    return f"on port {app.container_port}, asked for {app.health_path}: {answer.error}"


_LOGIN = re.compile(r"(?i)/(log-?in|sign-?in|o?auth|sso)")


def _redirect(app: Application, answer: Answer) -> str:
    here = f"https://{app.domain}{app.health_path}"
    what = f"it answers {answer.status}"
    if not answer.location:
        return f"{what} to {app.health_path}: its health path has to answer 2xx"
    try:
        there = urljoin(here, answer.location)
        parts = urlsplit(there)
        port = parts.port
    except ValueError:
        there, parts, port = answer.location, urlsplit(""), None
    what += f" to {there[:200]}"
    if not parts.hostname:
        return f"{what}: its health path has to answer 2xx without a redirect"
    if parts.hostname != app.domain:
        return (f"{what}, another host: let it answer its health path under the name that it was "
                f"asked with (Host: {name_of(app)})")  # fmt: skip
    if port not in (None, {"http": 80}.get(parts.scheme, 443)):
        return f"{what}, another port: let it answer its health path itself, without a redirect"
    if parts.path == app.health_path and parts.scheme == "http" and not parts.query:
        return f"{what}, plain HTTP: let it answer its health path itself, without a redirect"
    if parts.path == app.health_path and not parts.query:
        return (f"{what}, itself: it was asked with X-Forwarded-Proto: https, which it has to "
                "trust")  # fmt: skip
    bare = app.health_path.strip("/")
    same = parts.path.strip("/").lower() == bare.lower() or parts.path.endswith(f"/{bare}")
    if bare and same and not parts.query and not _LOGIN.search(parts.path):
        return f"{what}: set health_path to {parts.path}"
    return f"{what}: set health_path to a path that it answers itself, without a login"


def elsewhere(app: Application, pid: int) -> str:
    """A message about the addresses on which a container listens instead of the right one."""
    port = app.container_port
    found = listening(pid)
    if not found:
        return f"it does not listen on port {port}"
    here = [address for address, number in found if number == port]
    if here and all(address.is_loopback for address in here):
        return (f"it listens on {_at(here[0], port)} alone: let it listen on 0.0.0.0, all "
                "addresses of its container")  # fmt: skip
    if here:
        return f"it listens on {_at(here[0], port)}, and closes connections without an answer"
    open_to_others = sorted({number for address, number in found if not address.is_loopback})
    if len(open_to_others) == 1:
        other = open_to_others[0]
        return f"it listens on {other}, not on {port}: set container_port to {other}"
    if open_to_others:
        ports = ", ".join(map(str, open_to_others))
        return f"it listens on {ports}, not on {port}: set container_port to the one for HTTP"
    places = ", ".join(sorted({_at(*one) for one in found}))
    return f"it listens on {places} alone: let it listen on 0.0.0.0:{port}"


Address = IPv4Address | IPv6Address


def listening(pid: int, proc: Path = Path("/proc")) -> list[tuple[Address, int]]:
    """The addresses on which a container's processes listen, without Docker's own resolver."""
    found = []
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / str(pid) / "net" / table).read_text().splitlines()[1:] if pid else []
        except OSError:
            continue
        for line in lines:
            _, local, _, state, *_ = line.split()
            if state == "0A":
                address, _, port = local.partition(":")
                raw = bytes.fromhex(address)
                # Each four bytes are a number, with the last byte first.
                raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
                where = ip_address(raw)
                found.append((getattr(where, "ipv4_mapped", None) or where, int(port, 16)))
    return [one for one in found if str(one[0]) != "127.0.0.11"]


def _at(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"

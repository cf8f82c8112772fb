"""Managed by Terrafirma. Caddy in front of an application: its routing, reloads and answers."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from terrafirma_host import health, routes
from terrafirma_host.shell import Failed, content_of, run, say, sync, write
from terrafirma_host.spec import Application

UPSTREAMS = Path("/etc/caddy/upstreams")
MAINTENANCE = Path("/etc/caddy/maintenance")
CADDYFILE = Path("/etc/caddy/Caddyfile")

# Seconds that a site may take to get its first certificate.
CERTIFICATE = 30


def point(app: Application, slot: str) -> None:
    """
    Caddy sends new requests to this slot.

    Caddy checks with each request whether the marker file exists. So a switch needs no reload: no
    connection is closed, and requests under way stay with their replica.
    """
    path = marker(app)
    if slot == "green":
        if not path.exists():
            write(path, "# Managed by Terrafirma: the release that serves is in green\n")
    elif path.exists():
        path.unlink()
        sync(path.parent)


def expect(app: Application, slot: str) -> bool:
    """
    Caddy reaches a slot's replicas, and checks their health, as their own release describes.

    Returns whether Caddy was reloaded. It is reloaded only where that changes, which is rare.
    """
    if app.routed and has_site(app) and not has_site(app, name_of_routes(app)):
        raise Failed(f"Caddy's configuration has no routes of {app.name} yet: run deploy.py")
    # The first release writes the files of both slots, so that the second one needs no reload. A
    # file that another version of this program wrote for the other slot is written anew.
    changes: dict[Path, str | None] = {}
    for one in sorted(app.slots, key=slot.__eq__):
        wanted = _files(app if one == slot else as_asked(app, one), one)
        changes |= {path: text for path, text in wanted.items() if content_of(path) != text}
        changes |= dict.fromkeys(_routes_of(app, one) - wanted.keys())
    make_directories()
    # A run that was killed between the file and the reload left Caddy with the old check.
    if not changes and not (runs() and not _asks(app, slot)):
        return False
    _put(changes)
    return True


def _files(app: Application, slot: str) -> dict[Path, str]:
    """The files that say how Caddy reaches a slot's replicas, with their contents."""
    if app.routed:
        return {UPSTREAMS / name: text for name, text in routes.files(app, slot).items()}
    return {asking(app, slot): _question(app)}


def _routes_of(app: Application, slot: str) -> set[Path]:
    """The slot's files with routes for further domains."""
    return {*UPSTREAMS.glob(f"{app.name}.{slot}@*@routes")}


def _question(app: Application) -> str:
    return f"{routes.HEAD}\n{health.lines(app)}"


def make_directories() -> None:
    """The directories exist and Caddy's own user can read them, even before Caddy is installed."""
    for directory in (CADDYFILE.parent, UPSTREAMS, MAINTENANCE):
        if not directory.exists():
            directory.mkdir(parents=True)
            directory.chmod(0o755)


def _asks(app: Application, slot: str) -> bool:
    """Whether the running Caddy checks a slot's replicas so; true where it has no such replicas."""
    if app.routed:
        words = ("caddy", "adapt", "--adapter", "caddyfile", "--config", str(CADDYFILE))
        return bool(json.loads(run(*words, timeout=60)) == _admin("/config/"))
    first = f"127.0.0.1:{app.slots[slot]}"

    def proxies(node: Any) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            if any(one.get("dial") == first for one in node.get("upstreams") or ()):
                yield node
            node = list(node.values())
        if isinstance(node, list):
            for one in node:
                yield from proxies(one)

    for one in proxies(_admin("/config/")):
        active = (one.get("health_checks") or {}).get("active") or {}
        return bool(health.configured(app).items() <= active.items())
    return True


def expects(app: Application, slot: str) -> bool:
    """Whether the slot's files have what this version writes."""
    wanted = _files(as_asked(app, slot), slot)
    return all(content_of(path) == text for path, text in wanted.items()) and not (
        _routes_of(app, slot) - wanted.keys()
    )


def as_asked(app: Application, slot: str) -> Application:
    """The application with the protocol and the health check by which Caddy now knows a slot."""
    routing = content_of(UPSTREAMS / routes.name(app, slot)) if app.routed else ""
    if app.routed and (asked := routes.as_asked(app, routing)):
        return asked
    said = content_of(asking(app, slot))
    path = re.search(r"^health_uri (\S+)$", said, re.MULTILINE)
    sent = health.said_headers(said)
    if not path or "Host" not in sent:
        return app
    plain = replace(
        app, health="http", protocol="http", public={}, health_path=path[1], domain=sent["Host"],
        health_headers={},
    )  # fmt: skip
    usual = health.headers(plain)
    other = {name: value for name, value in sent.items() if usual.get(name) != value}
    return replace(plain, health_headers=other)


def asking(app: Application, slot: str) -> Path:
    return UPSTREAMS / f"{app.name}.{slot}.caddy"


def name_of_routes(app: Application, domain: str = "") -> str:
    """What the Caddyfile imports for the green slot of a domain."""
    return re.sub("routes$", "*routes", routes.name(app, "green", domain))


def slot_of(app: Application) -> str:
    """The slot to which Caddy sends requests."""
    return "green" if marker(app).exists() else "blue"


def marker(app: Application) -> Path:
    return UPSTREAMS / f"{app.name}.green"


def hold(app: Application) -> None:
    """Caddy lets new requests of an application wait, for the time that its site says."""
    make_directories()
    if not held(app).exists():
        write(held(app), "# Managed by Terrafirma: requests wait for the next release\n")


def let_through(app: Application) -> None:
    """Requests that wait go on, and new ones no longer wait."""
    if held(app).exists():
        held(app).unlink()
        sync(UPSTREAMS)


def held(app: Application) -> Path:
    return UPSTREAMS / f"{app.name}.held"


def maintenance(app: Application) -> Path:
    return MAINTENANCE / f"{app.name}.caddy"


def has_site(app: Application, named: str = "") -> bool:
    """Whether Caddy's configuration names the slots of an application, or the file of one."""
    try:
        return f"/{named or f'{app.name}.green'}\n" in CADDYFILE.read_text()
    except FileNotFoundError:
        return False


def forget(app: Application) -> None:
    """Remove all files of an application whose site is gone."""
    for slot in ("blue", "green"):
        for path in (asking(app, slot), UPSTREAMS / routes.name(app, slot), *_routes_of(app, slot)):
            path.unlink(missing_ok=True)
    for path in (marker(app), held(app), maintenance(app)):
        path.unlink(missing_ok=True)


def maintain(app: Application, on: bool) -> None:
    make_directories()
    page = (
        "# Managed by Terrafirma: terrafirma maintenance\n"
        "header Retry-After 120\n"
        'error "maintenance" 503\n'
        "handle_errors {\n"
        '\t@maintenance expression `{http.error.message} == "maintenance"`\n'
        '\trespond @maintenance "Down for maintenance, back soon." 503\n'
        "}\n"
    )
    _put({maintenance(app): page if on else None})


def _put(files: Mapping[Path, str | None]) -> None:
    """Write or remove files of Caddy's and reload; if anything fails, the old files are back."""
    before = {path: path.with_name(f".{path.name}.before") for path in files}
    for path, kept in before.items():
        kept.unlink(missing_ok=True)
        if path.exists():
            # A hard link: restoring the file needs no room on a full disk.
            kept.hardlink_to(path)
    try:
        for path, content in files.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                write(path, content)
        reload()
    except BaseException:
        for path, kept in before.items():
            if kept.exists():
                kept.rename(path)
            else:
                path.unlink(missing_ok=True)
        raise
    for kept in before.values():
        kept.unlink(missing_ok=True)


def reload() -> None:
    """Caddy serves by its current files; raises Failed where it does not accept them."""
    if not runs():
        say("Caddy does not run: it reads the file when it starts")
        return
    # As Caddy's own user: validating opens the log files and Caddy's own certificate authority.
    run(
        "runuser", "-u", "caddy", "--", "env", "HOME=/var/lib/caddy",
        "caddy", "validate", "--adapter", "caddyfile", "--config", CADDYFILE,
        timeout=60,
    )  # fmt: skip
    run("systemctl", "reload", "caddy", timeout=120)


def runs() -> bool:
    """Whether Caddy serves. Waits for a start: Caddy may have read the old files already."""
    if not CADDYFILE.exists():
        return False
    deadline = time.monotonic() + 60
    while True:
        state = run("systemctl", "show", "--property", "ActiveState", "--value", "caddy").strip()
        if state not in ("activating", "reloading", "deactivating") or time.monotonic() > deadline:
            return state == "active"
        time.sleep(0.2)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


class _Local(http.client.HTTPSConnection):
    """A connection to this host's own Caddy, under a site's name."""

    def connect(self) -> None:
        # A site whose name is an IP address is reached at that address only.
        address = self.host if _is_address(self.host) else "127.0.0.1"
        self.sock = socket.create_connection((address, 443), self.timeout)
        # A certificate that clients do not trust yet is no fault of the release.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host)


def watch(app: Application, seconds: float) -> None:
    """The application answers through Caddy for so many seconds on end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.5)
        smoke(app)


def smoke(app: Application) -> bool:
    """
    The application answers under its public names; raises Failed where it does not.

    Returns whether a page was requested.
    """
    if not runs():
        say("warning: Caddy does not run: the page is not requested")
        return False
    if not has_site(app):
        say(f"warning: Caddy has no site of {app.name} yet: the page is not requested")
        return False
    if maintenance(app).exists():
        say("maintenance is on: the page is not requested")
        return False
    asked = False
    for front in app.fronts:
        if has_front(app, front):
            asked = _smoke(front) or asked
        else:
            say(f"warning: Caddy has no site of {front.domain} yet: its page is not requested")
    return asked


def has_front(app: Application, front: Application) -> bool:
    """Whether Caddy's configuration has the domain of a public service."""
    return front.domain == app.domain or has_site(app, name_of_routes(app, front.domain))


def _smoke(app: Application) -> bool:
    """`smoke` of one public service."""
    where = f"https://{app.domain}{app.page}"
    deadline = time.monotonic() + CERTIFICATE
    while True:
        try:
            status = ask(app)
        except ssl.SSLError as error:
            if time.monotonic() > deadline:
                # Wrong DNS, for example: not the fault of the release, and older than it.
                say(f"warning: https://{app.domain} has no certificate ({error.reason}): see "
                    "`journalctl -u caddy`; the page was not requested")  # fmt: skip
                return False
            time.sleep(0.5)
            continue
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"{where}: {error or type(error).__name__}") from None
        if is_fine(app, status):
            return True
        why = ": Caddy finds no replica that can serve" if status == 503 else ""
        raise Failed(f"{where} answers {status}{why}")


def is_fine(app: Application, status: int) -> bool:
    """Whether a public service is there, by the status of its page."""
    if not app.page_is_good:
        # Caddy itself answers so where no replica does.
        return status not in (502, 503, 504)
    # With a guard, Caddy itself answers 401 or 403 before the application is reached.
    return status < 400 or (app.guarded and status in (401, 403))


def ask(app: Application, timeout: float = 30) -> int:
    """The status of a public service's page, through Caddy."""
    connection = _Local(app.domain, timeout=timeout)
    headers = {"User-Agent": "terrafirma"}
    try:
        if app.protocol == "h2c" and not app.page_is_good:
            # A call without a message: a gRPC server answers it, and may refuse a GET.
            headers |= {"Content-Type": "application/grpc", "TE": "trailers"}
            connection.request("POST", app.page, body=b"", headers=headers)
        else:
            connection.request("GET", app.page, headers=headers)
        # The status is enough: the body may have no end.
        return connection.getresponse().status
    finally:
        connection.close()


# Caddy takes new replicas of a slot for absent until its next health check.
# After a reload Caddy takes all replicas for healthy until its first check ends. That check begins
# before the reload returns; a replica that hangs fails the check at its timeout.
NOTICED = health.INTERVAL + 0.5
SETTLED = health.TIMEOUT + 0.5

# A request that Caddy has read but not yet sent on is not counted, so wait until the count has been
# zero for so many seconds.
QUIET = 1


def requests(ports: Iterable[int]) -> dict[int, int]:
    """The number of requests under way, streams included, at each port that Caddy knows."""
    known = {one["address"]: one["num_requests"] for one in _admin("/reverse_proxy/upstreams")}
    addresses = {port: f"127.0.0.1:{port}" for port in ports}
    return {port: known[address] for port, address in addresses.items() if address in known}


def _admin(path: str) -> Any:
    """The answer of Caddy's admin interface."""
    connection = http.client.HTTPConnection("127.0.0.1", 2019, timeout=5)
    try:
        connection.request("GET", path, headers={"Host": "localhost:2019"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def drain(ports: Iterable[int], seconds: float) -> None:
    """Wait until no request has been under way at these ports for a while, at most `seconds`."""
    if not runs():
        return
    ports = list(ports)
    started = time.monotonic()
    # The time since which nothing is under way, counted from the first answer that says so.
    quiet = float("inf")
    while time.monotonic() - quiet < QUIET:
        try:
            counted = requests(ports)
        except (OSError, LookupError, TypeError, ValueError, http.client.HTTPException) as error:
            say(f"warning: Caddy does not say what is under way ({error}): waiting {seconds:.0f} s")
            time.sleep(seconds)
            return
        if 0 < len(counted) < len(ports):
            # After a reload to fewer replicas Caddy no longer counts the requests at the others.
            say(f"Caddy no longer counts the requests at all replicas: waiting {seconds:.0f} s")
            time.sleep(seconds)
            return
        left = sum(counted.values())
        quiet = float("inf") if left else min(quiet, time.monotonic())
        if left and time.monotonic() - started > seconds:
            say(f"{left} requests are still under way after {seconds:.0f} s: they end now")
            return
        time.sleep(0.1)

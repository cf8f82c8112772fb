"""Managed by Terrafirma. Caddy in front of an application: its routing, reloads and answers."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from terrafirma_host import health
from terrafirma_host.shell import Failed, run, say, sync, write
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
    Caddy checks the health of a slot's replicas in the way that their own release describes.

    Returns whether Caddy was reloaded. It is reloaded only where the health check changes, which
    is rare.
    """
    # The first release writes the file of both slots, so that the second one needs no reload. A
    # file that another version of this program wrote for the other slot is written anew.
    texts = {one: _question(app if one == slot else as_asked(app, one)) for one in app.slots}
    changed = [one for one, text in texts.items() if _said(asking(app, one)) != text]
    make_directories()
    # A run that was killed between the file and the reload left Caddy with the old check.
    if not changed and not (runs() and not _asks(app, slot)):
        return False
    other = next(one for one in app.slots if one != slot)
    before = _said(asking(app, other))
    if other in changed:
        write(asking(app, other), texts[other])
    try:
        _put(asking(app, slot), texts[slot])
    except BaseException:
        if other in changed and before:
            write(asking(app, other), before)
        elif other in changed:
            asking(app, other).unlink()
        raise
    return True


def _question(app: Application) -> str:
    return f"# Managed by Terrafirma: the release in this slot\n{health.lines(app)}"


def make_directories() -> None:
    """The directories exist and Caddy's own user can read them, even before Caddy is installed."""
    for directory in (CADDYFILE.parent, UPSTREAMS, MAINTENANCE):
        if not directory.exists():
            directory.mkdir(parents=True)
            directory.chmod(0o755)


def _asks(app: Application, slot: str) -> bool:
    """Whether the running Caddy checks a slot's replicas so; true where it has no such replicas."""
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
    """Whether the slot's file has the health check that this version writes."""
    return _said(asking(app, slot)) == _question(as_asked(app, slot))


def as_asked(app: Application, slot: str) -> Application:
    """The application with the health path and the domain with which Caddy now checks a slot."""
    said = _said(asking(app, slot))
    path = re.search(r"^health_uri (\S+)$", said, re.MULTILINE)
    name = re.search(r"^\tHost (\S+)$", said, re.MULTILINE)
    return replace(app, health_path=path[1], domain=name[1]) if path and name else app


def asking(app: Application, slot: str) -> Path:
    return UPSTREAMS / f"{app.name}.{slot}.caddy"


def _said(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


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


def has_site(app: Application) -> bool:
    """Whether Caddy's configuration names the slots of an application."""
    try:
        return f"/{app.name}.green\n" in CADDYFILE.read_text()
    except FileNotFoundError:
        return False


def forget(app: Application) -> None:
    """Remove all files of an application whose site is gone."""
    slots = (asking(app, slot) for slot in ("blue", "green"))
    for path in (marker(app), held(app), *slots, maintenance(app)):
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
    _put(maintenance(app), page if on else None)


def _put(path: Path, content: str | None) -> None:
    """Write or remove a file of Caddy's and reload; if anything fails, the old file is back."""
    before = path.with_name(f".{path.name}.before")
    before.unlink(missing_ok=True)
    if path.exists():
        # A hard link: restoring the file needs no room on a full disk.
        before.hardlink_to(path)
    try:
        if content is None:
            path.unlink(missing_ok=True)
        else:
            write(path, content)
        reload()
    except BaseException:
        if before.exists():
            before.rename(path)
        else:
            path.unlink(missing_ok=True)
        raise
    before.unlink(missing_ok=True)


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
    The application answers under its public name; raises Failed where it does not.

    Returns whether the page was requested.
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
    path = app.smoke_path or app.health_path
    deadline = time.monotonic() + CERTIFICATE
    while True:
        try:
            status = _ask(app.domain, path)
        except ssl.SSLError as error:
            if time.monotonic() > deadline:
                # Wrong DNS, for example: not the fault of the release, and older than it.
                say(f"warning: https://{app.domain} has no certificate ({error.reason}): see "
                    "`journalctl -u caddy`; the page was not requested")  # fmt: skip
                return False
            time.sleep(0.5)
            continue
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"https://{app.domain}{path}: {error or type(error).__name__}") from None
        # With a guard, Caddy itself answers 401 or 403 before the application is reached.
        if status < 400 or (app.guarded and status in (401, 403)):
            return True
        why = ": Caddy finds no replica that can serve" if status == 503 else ""
        raise Failed(f"https://{app.domain}{path} answers {status}{why}")


def _ask(domain: str, path: str) -> int:
    connection = _Local(domain, timeout=30)
    try:
        connection.request("GET", path, headers={"User-Agent": "terrafirma"})
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

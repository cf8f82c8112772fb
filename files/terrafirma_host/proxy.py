"""Managed by Terrafirma. Where Caddy sends the requests of an application, and what it answers."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
from collections.abc import Iterable
from pathlib import Path

from terrafirma_host.shell import Failed, run, say, write
from terrafirma_host.spec import Application

UPSTREAMS = Path("/etc/caddy/upstreams")
MAINTENANCE = Path("/etc/caddy/maintenance")
CADDYFILE = Path("/etc/caddy/Caddyfile")

# How long a site may take to get its first certificate.
CERTIFICATE = 30


def point(app: Application, release: str, slot: str, ports: Iterable[int]) -> None:
    """Caddy sends what comes from now on to these ports; on any failure, where it did before."""
    lines = f"# Managed by Terrafirma: release {release} in {slot}\n"
    lines += f"to {' '.join(f'127.0.0.1:{port}' for port in ports)}\n"
    _put(UPSTREAMS / f"{app.name}.caddy", lines)


def slot_of(app: Application) -> str:
    """The slot that the file names; empty: none."""
    try:
        text = (UPSTREAMS / f"{app.name}.caddy").read_text()
    except FileNotFoundError:
        return ""
    found = re.match(r"# Managed by Terrafirma: release \S+ in (\w+)", text)
    return found[1] if found else ""


def maintain(app: Application, on: bool) -> None:
    path = MAINTENANCE / f"{app.name}.caddy"
    page = (
        "# Managed by Terrafirma: terrafirma maintenance\n"
        "header Retry-After 120\n"
        'error "maintenance" 503\n'
        "handle_errors {\n"
        '\t@maintenance expression `{http.error.message} == "maintenance"`\n'
        '\trespond @maintenance "Down for maintenance, back soon." 503\n'
        "}\n"
    )
    _put(path, page if on else None)


def _put(path: Path, content: str | None) -> None:
    """A file of Caddy's and a reload; whatever fails, the file is what it was."""
    _keep(path)
    try:
        if content is None:
            path.unlink(missing_ok=True)
        else:
            write(path, content)
        reload()
    except BaseException:
        _restore(path)
        raise


def _before(path: Path) -> Path:
    return path.with_name(f".{path.name}.before")


def _keep(path: Path) -> None:
    _before(path).unlink(missing_ok=True)
    if path.exists():
        # The same file under another name: the way back needs no room on a full disk.
        _before(path).hardlink_to(path)


def _restore(path: Path) -> None:
    if _before(path).exists():
        _before(path).rename(path)
    else:
        path.unlink(missing_ok=True)


def back(app: Application) -> None:
    """Caddy sends where it did before the last `point`; nowhere, where there was nothing."""
    _restore(UPSTREAMS / f"{app.name}.caddy")
    reload()


def reload() -> None:
    """Caddy goes by its files, if it accepts them."""
    if not runs():
        say("Caddy does not run: it reads the file when it starts")
        return
    # As the user that serves: validating opens the log files and Caddy's own authority.
    run(
        "runuser", "-u", "caddy", "--", "env", "HOME=/var/lib/caddy",
        "caddy", "validate", "--adapter", "caddyfile", "--config", CADDYFILE,
        timeout=60,
    )  # fmt: skip
    run("systemctl", "reload", "caddy", timeout=120)


def runs() -> bool:
    """Whether Caddy serves; one that is just starting may have read the files already."""
    if not CADDYFILE.exists():
        return False
    deadline = time.monotonic() + 60
    while True:
        state = run("systemctl", "show", "--property", "ActiveState", "--value", "caddy").strip()
        if state not in ("activating", "reloading", "deactivating") or time.monotonic() > deadline:
            return state == "active"
        time.sleep(0.2)


class _Local(http.client.HTTPSConnection):
    """To this host's own Caddy, under a site's name."""

    def connect(self) -> None:
        self.sock = socket.create_connection(("127.0.0.1", 443), self.timeout)
        # Whether the certificate is one that clients trust is the authority's affair.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host)


def smoke(app: Application) -> None:
    """The application answers under its public name; raises Failed where it does not."""
    if not runs():
        return
    if (MAINTENANCE / f"{app.name}.caddy").exists():
        say("maintenance is on: the page is not asked for")
        return
    path = app.smoke_path or app.health_path
    deadline = time.monotonic() + CERTIFICATE
    while True:
        try:
            status = _ask(app.domain, path)
        except ssl.SSLError as error:
            if time.monotonic() > deadline:
                # Wrong DNS, say. It is no fault of the release, and was so before it.
                say(f"warning: https://{app.domain} has no certificate ({error.reason}): see "
                    "`journalctl -u caddy`; the page was not asked for")  # fmt: skip
                return
            time.sleep(0.5)
            continue
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"https://{app.domain}{path}: {error or type(error).__name__}") from None
        # 401 and 403 are a guard's, before the application is reached.
        if status < 400 or status in (401, 403):
            return
        raise Failed(f"https://{app.domain}{path} answers {status}")


def _ask(domain: str, path: str) -> int:
    connection = _Local(domain, timeout=30)
    try:
        connection.request("GET", path, headers={"User-Agent": "terrafirma"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def healthy(port: int, path: str, domain: str) -> bool:
    """Whether a replica says so itself, when it is asked as Caddy asks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    headers = {"User-Agent": "terrafirma", "Host": domain, "X-Forwarded-Proto": "https"}
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        return 200 <= answer.status < 400
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def connections(ports: Iterable[int]) -> int:
    """How many connections of this host to these loopback ports there are."""
    wanted = {f"{port:04X}" for port in ports}
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, state, *_ = line.split()
        address, _, port = remote.partition(":")
        # 0100007F is 127.0.0.1, 01 is ESTABLISHED.
        count += address == "0100007F" and port in wanted and state == "01"
    return count


# After a reload, clients of HTTP/2 send to the old configuration for a second more.
QUIET = 3


def drain(ports: Iterable[int], seconds: float) -> None:
    """Wait until nothing has been under way there for a while, for at most so long."""
    ports = list(ports)
    busy = started = time.monotonic()
    while (now := time.monotonic()) - busy < QUIET:
        left = connections(ports)
        if left:
            busy = now
        if left and now - started > max(seconds, QUIET):
            say(f"{left} connections are still open after {seconds:.0f} s: they end now")
            return
        time.sleep(0.1)

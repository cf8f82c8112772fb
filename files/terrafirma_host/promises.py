"""
Managed by Terrafirma. Checks that the host keeps its promises.

Each replica answers its health path, PostgreSQL answers a query, and Caddy has a certificate for
each name that it serves and passes requests on to the applications. The checks change nothing, so
they may run at any time: before and after a reboot, or an upgrade. The command also reports the
last backup.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from terrafirma_host import checks, engine, health, proxy, spec
from terrafirma_host.postgres import Cluster, session
from terrafirma_host.shell import BROKEN, last, run, succeeds
from terrafirma_host.spec import Application, Serving

UNITS = Path("/etc/systemd/system")
# A cluster with one of these drop-ins is set aside and does not serve: see postgres_upgrade.py.
ASIDE = ("terrafirma-retired.conf", "terrafirma-unfinished.conf")

# How the last backup ended: see files/borg/backup_result.py.
BACKUP = Path("/var/lib/terrafirma/backup/last.json")

# Seconds for a query, and for a handshake.
QUERY = 15
HANDSHAKE = 10


def broken() -> list[str]:
    """The broken promises, each in a sentence; empty if all is as promised."""
    promises: tuple[Callable[[], Iterator[str]], ...] = (replicas, postgres, pooler, sites)
    with ThreadPoolExecutor(len(promises)) as pool:
        answers = list(pool.map(lambda promise: list(promise()), promises))
    return [words for answer in answers for words in answer]


def main(words: Sequence[str]) -> None:
    """Print the broken promises, one a line; the exit code is 1 if there are any."""
    wrong = [*broken(), *backup()]
    print("\n".join(wrong or ["all is as promised"]))
    if wrong:
        sys.exit(1)


def backup() -> Iterator[str]:
    """
    What is wrong with the last backup.

    It is not among `broken`: a reboot or an upgrade neither waits for the next backup nor is undone
    because of one.
    """
    try:
        words = json.loads(BACKUP.read_text())["words"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    if words and succeeds("systemctl", "is-enabled", "borgmatic.timer"):
        yield str(words)


# --- applications ---------------------------------------------------------------------------------


def released() -> Iterator[tuple[Application, Serving]]:
    """
    The applications that have a release, and how each serves.

    An application that is no longer in your settings may have a description for another version of
    this program: it is skipped, as at boot.
    """
    for name in spec.names():
        try:
            app = Application.load(name)
            serving = Serving.load(app)
        except (*BROKEN, AttributeError, LookupError, TypeError):
            continue
        if serving:
            yield app, serving


def replicas() -> Iterator[str]:
    for app, serving in released():
        there = engine.containers(app.project(serving.slot)) if app.routed else []
        for front in proxy.as_asked(app, serving.slot).fronts:
            if front.front and front.front not in serving.public:
                continue
            for answer in checks.ask_all(front, serving.ports_of(front.front), there):
                if not answer.good:
                    why = health.words(front, answer) if answer.status else answer.error
                    yield f"{app.name}: the replica on port {answer.port} is not healthy: {why}"


# --- PostgreSQL -----------------------------------------------------------------------------------


def clusters() -> list[str]:
    """The major versions of Terrafirma's clusters that serve."""
    found = []
    for mark in UNITS.glob("postgresql@*-main.service.d/terrafirma.conf"):
        version = re.fullmatch(r"postgresql@(\d+)-main\.service\.d", mark.parent.name)
        if version and not any((mark.parent / one).exists() for one in ASIDE):
            found.append(version[1])
    return sorted(found, key=int)


def postgres() -> Iterator[str]:
    for version in clusters():
        cluster = Cluster(version)
        try:
            run(
                *cluster.client("psql", "-XAtqc", "select 1"),
                env=session(version) | {"PGDATABASE": "postgres", "PGCONNECT_TIMEOUT": "5"},
                timeout=QUERY,
            )
        except BROKEN as error:
            yield f"PostgreSQL {version} answers no query: {last(str(error), 1)}"


def pooler() -> Iterator[str]:
    drop_in = UNITS / "pgbouncer.service.d/terrafirma.conf"
    if not drop_in.exists() or not succeeds("systemctl", "is-enabled", "pgbouncer.service"):
        return
    if not succeeds("systemctl", "is-active", "pgbouncer.service"):
        yield "PgBouncer does not run: `journalctl -u pgbouncer`"


# --- Caddy ----------------------------------------------------------------------------------------


def domains() -> list[str]:
    """The names of the sites in the Caddyfile; no other block there begins with a dotted name."""
    try:
        text = proxy.CADDYFILE.read_text()
    except FileNotFoundError:
        return []
    if "Managed by Terrafirma" not in text:
        return []
    return sorted(set(re.findall(r"^([\w-]+(?:\.[\w-]+)+|localhost) \{$", text, re.MULTILINE)))


def sites() -> Iterator[str]:
    names = domains()
    if not names:
        return
    try:
        runs = proxy.runs()
    except BROKEN:
        runs = False
    if not runs:
        yield "Caddy does not run: `journalctl -u caddy`"
        return
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(certificate, names))
    wrong = {name: why for name, why in zip(names, answers, strict=True) if why}
    for name, why in wrong.items():
        yield f"https://{name} has no good certificate: {why}"
    for app, _ in released():
        for front in app.fronts if not proxy.maintenance(app).exists() else ():
            if front.domain in names and front.domain not in wrong:
                yield from _page(front)


def certificate(name: str, port: int = 443) -> str:
    """
    What is wrong with the certificate that this host serves for `name`; empty: nothing.

    Only its names and dates count. Who signed it does not: the host need not know a private
    authority that the visitors trust.
    """
    try:
        shown = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        shown.check_hostname = False
        shown.verify_mode = ssl.CERT_NONE
        with _connected(name, port, shown) as connection:
            leaf = connection.getpeercert(binary_form=True)
        checked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Trust the certificate itself, so that only its names and dates are checked.
        checked.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        checked.load_verify_locations(cadata=leaf or b"")
        _connected(name, port, checked).close()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError as error:
        return f"there is none ({error.reason or error})"
    except OSError as error:
        return f"{error.strerror or error}"
    return ""


def _connected(name: str, port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    # A site whose name is an address is served at that address only.
    address = name if re.fullmatch(r"[\d.]+", name) else "127.0.0.1"
    plain = socket.create_connection((address, port), HANDSHAKE)
    try:
        return context.wrap_socket(plain, server_hostname=name)
    except BaseException:
        plain.close()
        raise


def _page(app: Application) -> Iterator[str]:
    path = app.page
    try:
        status = proxy.ask(app)
    except (OSError, http.client.HTTPException) as error:
        yield f"https://{app.domain}{path} is not answered: {error or type(error).__name__}"
        return
    if not proxy.is_fine(app, status):
        yield f"https://{app.domain}{path} answers {status}"

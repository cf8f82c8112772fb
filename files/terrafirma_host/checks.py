"""Managed by Terrafirma. Checks of health: by HTTP, TCP, a command, or the container's own."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from terrafirma_host import health
from terrafirma_host.engine import Container
from terrafirma_host.health import Answer
from terrafirma_host.shell import plain
from terrafirma_host.spec import Application

# Seconds that a command in a container may take.
COMMAND = 10
# Seconds in which a connection is closed that leads to nothing, as by another program's proxy.
HELD = 0.2


def ask_all(app: Application, ports: Iterable[int], there: Sequence[Container]) -> list[Answer]:
    """
    Check several replicas at once, so that one that hangs does not delay the others.

    + there: the containers; those of a check without HTTP are found by their ports
    """
    if app.health == "http":
        return health.ask_all(app, ports)
    ports = [*ports]
    if not ports:
        return []
    behind = {one.port: one for one in there}
    with ThreadPoolExecutor(len(ports)) as pool:
        return list(pool.map(lambda port: _ask(app, port, behind.get(port)), ports))


def _ask(app: Application, port: int, one: Container | None) -> Answer:
    began = monotonic()
    if app.health == "tcp":
        error = connect(port, min(health.CONNECT, app.timeout_seconds))
    elif not one:
        error = "its container does not run"
    elif app.health == "container":
        error = said(one)
    else:
        error = command(one, app.health)
    return Answer(port, passed=not error, error=error, seconds=monotonic() - began)


def connect(port: int, seconds: float) -> str:
    """Why a port does not accept connections; empty: it does."""
    try:
        connection = socket.create_connection(("127.0.0.1", port), seconds)
    except TimeoutError:
        return f"no connection within {seconds} s"
    except ConnectionError:
        return health.CLOSED
    except OSError as trouble:
        return str(trouble)
    with connection:
        connection.settimeout(HELD)
        try:
            return "" if connection.recv(1) else health.CLOSED
        except TimeoutError:
            # Most servers wait for the client to speak first.
            return ""
        except OSError:
            return health.CLOSED


def said(one: Container) -> str:
    """Why a container's own health check does not pass; empty: it does."""
    if not one.health and one.state == "running":
        return ("neither its image nor its service has a health check (HEALTHCHECK): add one, or "
                "set health to another kind")  # fmt: skip
    return "" if one.health == "healthy" else f"its own health check says {one.health or one.state}"


def command(one: Container, words: Sequence[str]) -> str:
    """Why a command in a container fails; empty: it succeeds."""
    try:
        result = subprocess.run(
            ["docker", "exec", one.id, *words], stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", timeout=COMMAND, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"`{' '.join(words)}` does not end within {COMMAND} s"
    if not result.returncode:
        return ""
    shown = " ".join(plain(f"{result.stdout} {result.stderr}").split())[-200:]
    return f"`{' '.join(words)}` ends with code {result.returncode}{shown and f': {shown}'}"


def final(app: Application, there: Sequence[Container]) -> str:
    """Why replicas can never become healthy; or ""."""
    for one in there:
        if app.health == "container" and one.service == app.service and one.state == "running":
            return "" if one.health else said(one)
    return ""

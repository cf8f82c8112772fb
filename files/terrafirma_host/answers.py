"""
Managed by Terrafirma. Whether what runs also answers: its replicas, its site, and its way out.

A run changes something, or fails, on the strength of this. So whatever does not answer is asked
again for a while, and what the host cannot do itself is no fault of a container.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import re
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from terrafirma_host import engine, health, proxy
from terrafirma_host.engine import Container
from terrafirma_host.spec import Application, Serving

# For so long an answer may be missing, in seconds: a replica may be busy, and Caddy about to ask.
PATIENCE = 10
AGAIN = 0.5
# Caddy's own answer, and somebody's elsewhere that the host reaches.
SITE = 5
AWAY = 1
# As long as Docker's own resolver takes at most for a name that it knows.
RESOLVER = 2

# A place in the world: an address, and a port.
Place = tuple[str, int]


@dataclass
class Found:
    """What does not answer, in words."""

    silent: list[str] = field(default_factory=list)  # replicas that others can replace
    troubles: list[str] = field(default_factory=list)  # what no release puts right
    notes: list[str] = field(default_factory=list)  # what may be meant to be so


def look(app: Application, serving: Serving) -> Found:
    """What is wrong with what serves, which runs as it should."""
    app = proxy.as_asked(app, serving.slot)
    found = Found()
    there = replicas(app, serving)
    with ThreadPoolExecutor(2) as pool:
        # Mostly they wait, and not for each other.
        asked = pool.submit(_replicas, app, there)
        pool.submit(way_out, there, found).result()
        found.silent, cut_off = asked.result()
    found.troubles += cut_off
    if not found.silent and not cut_off:
        site(app, found)
    return found


def silent(app: Application, serving: Serving) -> list[str]:
    """The replicas that run and do not answer, where others would, in words."""
    app = proxy.as_asked(app, serving.slot)
    return _replicas(app, replicas(app, serving))[0]


def replicas(app: Application, serving: Serving) -> list[Container]:
    """Those that should answer; one that is paused looks to Docker as if somebody wanted that."""
    return [
        one for one in engine.containers(app.project(serving.slot), app.service)
        if one.state in ("running", "paused")
    ]  # fmt: skip


# --- replicas -------------------------------------------------------------------------------------


def _replicas(app: Application, there: Sequence[Container]) -> tuple[list[str], list[str]]:
    """Those that others are to replace, and what others would not be better at."""
    gone = [f"{one.name} is paused" for one in there if one.state == "paused"]
    gone += [f"{one.name} is in no network" for one in there if one.pid and not one.port]
    runs = {one.port: one for one in there if one.state == "running" and one.port}
    answers = _asked(app, runs)
    mute = [one.name for one in runs.values() if not resolves(app, one)]
    gone += [f"{name} does not reach Docker's resolver (127.0.0.11)" for name in mute]
    bad = [one for one in answers if not one.good]
    lines = [f"{runs[one.port].name}: {health.words(app, one, runs[one.port].pid)}" for one in bad]
    if bad and len(bad) == len(there):
        if all(one.status for one in bad):
            return [], [f"no replica is healthy ({lines[0]})"]
        if all(answers_inside(app, runs[one.port]) for one in bad):
            return [], [
                "no port of the host leads to a replica, and they answer in their own network "
                f"(127.0.0.1:{bad[0].port}): {' and '.join(suspects()) or MAKE_ANEW}"
            ]
    return [*gone, *lines], []


def _asked(app: Application, runs: Mapping[int, Container]) -> list[health.Answer]:
    """The last answer of each."""
    # One that has just been started may take as long as at a release.
    begun = max((one.started for one in runs.values() if one.health != "healthy"), default=0)
    patience = max(PATIENCE, begun + app.start_seconds - time.time())
    deadline = time.monotonic() + patience
    last: dict[int, health.Answer] = {}
    while True:
        waiting = [port for port in runs if port not in last or not last[port].good]
        last |= {one.port: one for one in health.ask_all(app, waiting)}
        if all(one.good for one in last.values()) or time.monotonic() > deadline:
            return list(last.values())
        time.sleep(AGAIN)


MAKE_ANEW = (
    "run tasks/docker.py, which makes the kernel's rules anew; if it was not that, restart the "
    "replicas with `terrafirma restart`"
)


def answers_inside(app: Application, one: Container) -> bool:
    """Whether a replica that the host does not reach answers itself, and is in a network at all."""
    with suppress(OSError), inside(one):
        return health.ask(app, app.container_port).good and _has_a_way()
    return False


def resolves(app: Application, one: Container) -> bool:
    """Whether Docker's resolver answers a container, if it has that: rules there lead to it."""
    try:
        if "127.0.0.11" not in _text(Path(one.hosts).with_name("resolv.conf")):
            return True
        with inside(one):
            asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError:
        return True
    name = app.service.encode()[:63]
    question = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0)
    question += bytes([len(name)]) + name + b"\0" + struct.pack("!2H", 1, 1)
    with asked:
        asked.settimeout(RESOLVER)
        for _ in range(2):
            with suppress(OSError):
                asked.sendto(question, ("127.0.0.11", 53))
                asked.recv(4096)
                return True
    return False


# --- the site -------------------------------------------------------------------------------------


def site(app: Application, found: Found) -> None:
    """What Caddy answers in the name of an application whose replicas answer."""
    if not proxy.has_site(app):
        return
    if not proxy.runs():
        found.notes.append(f"Caddy does not run: https://{app.domain} is not asked for")
        return
    if proxy.maintenance(app).exists():
        found.notes.append(f"maintenance of {app.name} is on: its page is not asked for")
        return
    where = f"https://{app.domain}{app.smoke_path or app.health_path}"
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            status, text = _ask(app), ""
            if status < 400 or (app.guarded and status in (401, 403)):
                return
        except ssl.SSLError as error:
            found.notes.append(f"https://{app.domain} has no certificate ({error.reason}): see "
                               "`journalctl -u caddy`; the page was not asked for")  # fmt: skip
            return
        except (OSError, http.client.HTTPException) as error:
            status, text = 0, str(error) or type(error).__name__
        if time.monotonic() > deadline:
            break
        time.sleep(AGAIN)
    said = f"answers {status}" if status else f"does not answer ({text})"
    found.troubles.append(
        f"{where} {said} through Caddy, and the replicas answer: see `journalctl -u caddy`"
        + ("" if status else "; `systemctl restart caddy` starts it anew")
    )


def _ask(app: Application) -> int:
    connection = proxy._Local(app.domain, timeout=SITE)
    try:
        path = app.smoke_path or app.health_path
        connection.request("GET", path, headers={"User-Agent": "terrafirma"})
        return connection.getresponse().status
    finally:
        connection.close()


# --- the way out ----------------------------------------------------------------------------------


def way_out(there: Sequence[Container], found: Found) -> None:
    """What keeps containers from the world, if the host itself reaches it."""
    one = next((one for one in there if one.state == "running" and one.port), None)
    there_too = reached(places()) if one else []
    if not one or not there_too:
        return
    deadline = time.monotonic() + PATIENCE
    while not _goes_out(one, there_too):
        if own_rules():
            return
        if time.monotonic() > deadline:
            break
        time.sleep(AGAIN)
    else:
        return
    places_told = ", ".join(f"{address}:{port}" for address, port in there_too)
    words = (
        f"containers have no way out: the host reaches {places_told}, and {one.name} does not: "
        f"{' and '.join(suspects()) or 'a rule or a route of the host is in the way'}; rules of "
        "your own belong into the chain DOCKER-USER"
    )
    # A resolver alone says little: containers may be kept from that.
    only_resolvers = all(port == 53 for _, port in there_too)
    (found.notes if only_resolvers else found.troubles).append(words)


def _goes_out(one: Container, there_too: Sequence[Place]) -> bool:
    """Whether a container reaches one of those places, or is not meant to reach any."""
    for place in there_too:
        try:
            with inside(one):
                if not _has_a_way():
                    # A network of its own that leads nowhere is meant to.
                    return True
                sock = socket.socket()
        except OSError:
            return True
        with sock, suppress(OSError):
            sock.settimeout(AWAY * 2)
            sock.connect(place)
            return True
    return False


def places(etc: Path = Path("/etc"), run: Path = Path("/run")) -> Iterator[Place]:
    """Where the host itself goes: its resolvers, and where its packages come from."""
    for path in (etc / "resolv.conf", run / "systemd/resolve/resolv.conf"):
        for address in re.findall(r"(?m)^nameserver\s+([0-9.]+)$", _text(path)):
            if not address.startswith("127."):
                yield address, 53
    lists = [etc / "apt/sources.list", *sorted((etc / "apt/sources.list.d").glob("*"))]
    seen = set()
    for path in lists:
        for found in re.findall(r"(?m)^(?:deb|URIs:)[^#\n]*?(https?://[^\s/]+)", _text(path)):
            url = urlsplit(found)
            with suppress(ValueError):
                place = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
                if place[0] and place not in seen:
                    seen.add(place)
                    yield place


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def reached(places: Iterator[Place]) -> list[Place]:
    """Those that let the host in within a short time, by their addresses: one for each port."""
    # A resolver that is gone takes longer to say so than there is time.
    pool = ThreadPoolExecutor(8)
    try:
        asked = [pool.submit(_reaches, place) for place in [*places][:8]]
        deadline = time.monotonic() + AWAY
        found: dict[int, Place] = {}
        for one in asked:
            with suppress(TimeoutError):
                if place := one.result(max(0, deadline - time.monotonic())):
                    found.setdefault(place[1], place)
        return [*found.values()]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _reaches(place: Place) -> Place | None:
    try:
        with socket.create_connection(place, AWAY) as connection:
            address = connection.getpeername()[0]
            # The host's own is in no container's way.
            return None if connection.getsockname()[0] == address or ":" in address else (
                address, place[1])  # fmt: skip
    except OSError:
        return None


def own_rules() -> bool:
    """Whether somebody has rules where Docker says that they belong: what they drop is meant."""
    said = _said("iptables", "-w", "5", "-S", "DOCKER-USER").splitlines()
    return any(not line.startswith("-N") and "-j RETURN" not in line for line in said)


def suspects() -> list[str]:
    """What on a host is known to come between, in words."""
    found = []
    table = chain = ""
    for line in _said("nft", "list", "chains").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "table":
            table = rest.rstrip(" {")
        elif word == "chain":
            chain = rest.rstrip(" {")
        elif "policy drop" in line and table not in ("ip filter", "ip6 filter"):
            hook = rest.partition("hook ")[2].split(" ")[0]
            found.append(f"the chain {chain} of the table {table} (nft) drops what it has no rule "
                         f"for ({hook})")  # fmt: skip
    tracked, most = (_text(Path(f"/proc/sys/net/netfilter/nf_conntrack_{one}")) or "0"
                     for one in ("count", "max"))  # fmt: skip
    if int(most) and int(tracked) > int(most) * 0.95:
        found.append(f"the kernel follows {tracked.strip()} connections, and no more than "
                     f"{most.strip()} (net.netfilter.nf_conntrack_max)")  # fmt: skip
    return found


def _said(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout


# --- in the network of a container ----------------------------------------------------------------

_NETWORK = 0x40000000  # CLONE_NEWNET


@contextmanager
def inside(one: Container) -> Iterator[None]:
    """
    What this thread opens meanwhile, it opens in the network of a container, and keeps there.

    In the image there may be no program that could ask.
    """
    enter: Callable[[int, int], int] = ctypes.CDLL(None, use_errno=True).setns
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        theirs = os.open(f"/proc/{one.pid}/ns/net", os.O_RDONLY)
        try:
            if enter(theirs, _NETWORK):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(theirs)
        try:
            yield
        finally:
            if enter(own, _NETWORK):
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(own)


def _has_a_way() -> bool:
    """Whether there is a route to the world where this thread is; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.connect(("192.0.2.1", 9))
        return True
    return False

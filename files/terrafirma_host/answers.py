"""
Managed by Terrafirma. Whether an application answers: its replicas, its site, and the replicas'
way out to the internet.

A run replaces replicas, or fails, because of these answers. So a question without an answer is
repeated for a while, and a container is not blamed for a place that the host cannot reach either.
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from terrafirma_host import checks, engine, health, proxy
from terrafirma_host.engine import Container
from terrafirma_host.spec import Application, Serving

# Seconds that an answer may be missing: a replica may be busy, or Caddy about to check it.
PATIENCE = 10
AGAIN = 0.5  # seconds between two tries
SITE = 5  # seconds for an answer through Caddy
AWAY = 1  # seconds to connect to a place on the internet
# Seconds that Docker's own resolver takes at most for a name that it knows.
RESOLVER = 2

# A place on the internet: an address, and a port.
Place = tuple[str, int]


@dataclass
class Found:
    """Lines about whatever does not answer."""

    silent: list[str] = field(default_factory=list)  # replicas that new ones can replace
    troubles: list[str] = field(default_factory=list)  # problems that no release repairs
    notes: list[str] = field(default_factory=list)  # states that may be intended


def look(app: Application, serving: Serving) -> Found:
    """What is wrong with the release that serves, whose containers all run."""
    now, app = app, proxy.as_asked(app, serving.slot)
    found = Found()
    there = {front: replicas(one, serving) for front, one in fronts(app, serving).items()}
    with ThreadPoolExecutor(1 + len(there)) as pool:
        # All mostly wait, so ask at the same time.
        asked = [pool.submit(_replicas, one, there[front])
                 for front, one in fronts(app, serving).items()]  # fmt: skip
        pool.submit(way_out, there[""], found).result()
        for one in asked:
            silent, cut_off = one.result()
            found.silent += silent
            found.troubles += cut_off
    if not found.silent and not any(one.result()[1] for one in asked):
        for front in replace(app, domain=now.domain).fronts:
            if proxy.has_front(now, front):
                site(front, found)
    return found


def silent(app: Application, serving: Serving) -> list[str]:
    """Lines about replicas that run and do not answer, where new ones would."""
    app = proxy.as_asked(app, serving.slot)
    return [
        line
        for one in fronts(app, serving).values()
        for line in _replicas(one, replicas(one, serving))[0]
    ]


def fronts(app: Application, serving: Serving) -> dict[str, Application]:
    """The application as seen from each public service that serves, its own under ""."""
    return {one.front: one for one in app.fronts if not one.front or one.front in serving.public}


def replicas(app: Application, serving: Serving) -> list[Container]:
    """The replicas that should answer, paused ones included: Docker never resumes these itself."""
    return [
        one for one in engine.containers(app.project(serving.slot), app.service)
        if one.state in ("running", "paused")
    ]  # fmt: skip


# --- replicas -------------------------------------------------------------------------------------


def _replicas(app: Application, there: Sequence[Container]) -> tuple[list[str], list[str]]:
    """Lines about replicas to replace, and about problems that new replicas would have, too."""
    gone = [f"{one.name} is paused" for one in there if one.state == "paused"]
    gone += [f"{one.name} is in no network" for one in there if one.pid and not one.port]
    runs = {one.port: one for one in there if one.state == "running" and one.port}
    answers = _asked(app, runs)
    mute = [one.name for one in runs.values() if not resolves(app, one)]
    gone += [f"{name} does not reach Docker's resolver (127.0.0.11)" for name in mute]
    bad = [one for one in answers if not one.good]
    lines = []
    for one in bad:
        it = runs[one.port]
        lines += [f"{it.name}: {health.words(engine.asked(app, it), one, it.pid)}"]
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
    """The last answer of each replica."""
    # A replica that has just started has as much time as in a release.
    begun = max((one.started for one in runs.values() if one.health != "healthy"), default=0)
    patience = max(PATIENCE, begun + app.start_seconds - time.time())
    deadline = time.monotonic() + patience
    last: dict[int, health.Answer] = {}
    while True:
        waiting = [port for port in runs if port not in last or not last[port].good]
        # Its own health check says more with each look.
        if last and app.health == "container":
            runs = {one.port: one for one in engine.inspected([one.id for one in runs.values()])}
        last |= {one.port: one for one in checks.ask_all(app, waiting, [*runs.values()])}
        if all(one.good for one in last.values()) or time.monotonic() > deadline:
            return list(last.values())
        time.sleep(AGAIN)


MAKE_ANEW = (
    "run tasks/docker.py, which makes the kernel's rules anew; if it was not that, restart the "
    "replicas with `terrafirma restart`"
)


def answers_inside(app: Application, one: Container) -> bool:
    """Whether a replica answers within its own network, and that network leads anywhere."""
    if app.health not in ("http", "tcp"):
        return False
    with suppress(OSError), inside(one):
        port = engine.asked(app, one).container_port
        # In this thread: only it is in the container's network.
        well = (
            health.ask(app, port).good if app.health == "http"
            else not checks.connect(port, health.CONNECT)
        )  # fmt: skip
        return well and _has_a_way()
    return False


def resolves(app: Application, one: Container) -> bool:
    """Whether Docker's resolver, which needs rules in the container's network, answers there."""
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
    """Whether Caddy answers for an application whose replicas answer."""
    if not proxy.has_site(app):
        return
    if not proxy.runs():
        found.notes.append(f"Caddy does not run: https://{app.domain} is not requested")
        return
    if proxy.maintenance(app).exists():
        found.notes.append(f"maintenance of {app.name} is on: its page is not requested")
        return
    where = f"https://{app.domain}{app.page}"
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            status, text = proxy.ask(app, SITE), ""
            if proxy.is_fine(app, status):
                return
        except ssl.SSLError as error:
            found.notes.append(f"https://{app.domain} has no certificate ({error.reason}): see "
                               "`journalctl -u caddy`; the page was not requested")  # fmt: skip
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


# --- the way out ----------------------------------------------------------------------------------


def way_out(there: Sequence[Container], found: Found) -> None:
    """What keeps containers from the internet, if the host itself reaches it."""
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
    shown = ", ".join(f"{address}:{port}" for address, port in there_too)
    words = (
        f"containers have no way out: the host reaches {shown}, and {one.name} does not: "
        f"{' and '.join(suspects()) or 'a rule or a route of the host is in the way'}; rules of "
        "your own belong into the chain DOCKER-USER"
    )
    # A resolver alone proves little: a firewall may keep containers from it on purpose.
    only_resolvers = all(port == 53 for _, port in there_too)
    (found.notes if only_resolvers else found.troubles).append(words)


def _goes_out(one: Container, there_too: Sequence[Place]) -> bool:
    """Whether a container reaches one of these places, or has no route out on purpose."""
    for place in there_too:
        try:
            with inside(one):
                if not _has_a_way():
                    # An internal network is meant to lead nowhere.
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
    """Places that the host itself uses: its resolvers, and the sources of its packages."""
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
    """The places to which the host can connect quickly, by address: one for each port."""
    # Not `with`: it would wait for the lookup of a name, which may take long without a resolver.
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
            # An address of the host itself does not test the way out.
            return None if connection.getsockname()[0] == address or ":" in address else (
                address, place[1])  # fmt: skip
    except OSError:
        return None


def own_rules() -> bool:
    """Whether the chain that Docker leaves to users has rules: what these drop is intended."""
    said = _said("iptables", "-w", "5", "-S", "DOCKER-USER").splitlines()
    return any(not line.startswith("-N") and "-j RETURN" not in line for line in said)


def suspects() -> list[str]:
    """Lines about known causes on a host why packets do not arrive."""
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
    Within the block, this thread opens sockets in the network of a container.

    A command in the container would not do: its image may have no suitable program.
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
    """Whether this thread's network has a route to the internet; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.connect(("192.0.2.1", 9))
        return True
    return False

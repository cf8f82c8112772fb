"""The proof from outside: what connections from the machine that deploys find open."""

from __future__ import annotations

import errno
import random
import selectors
import socket
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from terrafirma.firewall.facts import FirewallState
from terrafirma.firewall.seen import plain
from terrafirma.firewall.settings import Opening

Outcome = Literal["open", "refused", "silent"]
Place = tuple[str, int]
"""An address and a TCP port."""

AT_ONCE = 200
"""Connections that are tried at the same time."""
PATIENCE = 3.0
"""Seconds for a port that is to be open: enough for a second attempt of the kernel's."""

# Besides what listens: ports of programs that are often open by mistake.
SAMPLE = (
    *(21, 23, 25, 53, 110, 111, 139, 143, 389, 445, 873, 2019, 2049, 2375, 2376, 2377, 3000, 3306),
    *(3389, 4369, 5000, 5432, 5601, 5672, 5900, 6379, 6432, 7946, 8000, 8001, 8064, 8080, 8443),
    *(9000, 9090, 9092, 9100, 9200, 10250, 11211, 15672, 19999, 27017),
)
EVERY = range(1, 65536)


@dataclass(frozen=True)
class View:
    """The addresses of a host that this machine can try, and why not more."""

    addresses: tuple[str, ...] = ()
    source: str = ""
    """This machine's address, as the host sees it, for the first of the addresses."""
    missing: tuple[str, ...] = ()


def look(sock: object, connection: str, known: Sequence[str]) -> View:
    """
    What of the host this machine can see.

    + sock: the socket of the SSH connection
    + connection: as SSH_CONNECTION on the host
    + known: the host's own addresses
    """
    client, _, there, port = (connection.split() + [""] * 4)[:4]
    if not isinstance(sock, socket.socket) or not there:
        return View(missing=("the connection goes through a jump host, or is no SSH",))
    peer, reached = sock.getpeername()[:2]
    peer, there, client = plain(peer), plain(there), plain(client)
    if ip_address(there).is_loopback:
        return View(missing=("this machine is the host itself",))
    if (peer, reached) != (there, int(port)):
        return View(missing=(
            f"the host is behind a NAT: {peer} port {reached} leads to its {there} port {port}",
        ))  # fmt: skip
    return _further(View((there,), client), known)


def _further(view: View, known: Sequence[str]) -> View:
    """The same with an address of the other IP version, if the host has one of the same kind."""
    first = ip_address(view.addresses[0])
    for one in map(ip_address, known):
        if one.version == first.version or one.is_global != first.is_global:
            continue
        if _has_route(str(one)):
            return View((*view.addresses, str(one)), view.source)
        words = f"this machine has no route to {one}: IPv{one.version} is not tried"
        return View(view.addresses, view.source, (words,))
    return view


def _has_route(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            # Sends nothing.
            one.connect((address, 9))
    except OSError:
        return False
    return True


def probe(places: Iterable[Place], patience: float) -> dict[Place, Outcome]:
    """Try to connect to each place, for `patience` seconds at most."""
    found: dict[Place, Outcome] = {}
    left = iter(places)
    with selectors.DefaultSelector() as selector:
        under_way: dict[socket.socket, tuple[Place, float]] = {}
        while True:
            while len(under_way) < AT_ONCE and (place := next(left, None)):
                if (one := _begin(place, found)) is not None:
                    under_way[one] = place, time.monotonic() + patience
                    selector.register(one, selectors.EVENT_WRITE)
            if not under_way:
                return found
            soonest = min(end for _, end in under_way.values())
            ready = selector.select(max(0, soonest - time.monotonic()))
            done: list[tuple[socket.socket, int | None]] = [
                (key.fileobj, key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))  # type: ignore[union-attr,misc]
                for key, _ in ready
            ]
            now = time.monotonic()
            ended = {one for one, _ in done}
            done += [(one, None) for one, (_, end) in under_way.items()
                     if end <= now and one not in ended]  # fmt: skip
            for one, code in done:
                found[under_way.pop(one)[0]] = _outcome(code)
                selector.unregister(one)
                one.close()


def _begin(place: Place, found: dict[Place, Outcome]) -> socket.socket | None:
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    one = socket.socket(family, socket.SOCK_STREAM)
    one.setblocking(False)
    code = one.connect_ex(place)
    if code == errno.EINPROGRESS:
        return one
    one.close()
    found[place] = _outcome(code)
    return None


def _outcome(code: int | None) -> Outcome:
    if code == 0:
        return "open"
    return "refused" if code == errno.ECONNREFUSED else "silent"


def sample(openings: Collection[Opening], state: FirewallState, count: int = 16) -> list[int]:
    """Ports that are to be closed: those with a listener, well-known ones, and `count` others."""
    declared = {port for one in wanted(openings) for port in one.range}
    some = random.sample(EVERY, count)
    return sorted({*SAMPLE, *state["listeners"], *some} - declared)


def wanted(openings: Collection[Opening]) -> list[Opening]:
    """Those openings that a connection from outside can try."""
    return [
        one for one in openings
        if "internet" in one.audience and one.protocol == "tcp" and not one.destinations
    ]  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """Where reality and declaration differ."""

    faults: tuple[str, ...]
    notes: tuple[str, ...]


def judge(
    found: Mapping[Place, Outcome],
    openings: Collection[Opening],
    state: FirewallState,
    view: View,
) -> Verdict:
    faults: list[str] = []
    notes: list[str] = []
    for (address, port), outcome in found.items():
        one = next((one for one in wanted(openings) if port in one.range), None)
        where = f"{port} at {address}"
        if outcome == "open" and (one is None or _shut(one, address, view)):
            who = state["listeners"].get(port, "no program that the host shows")
            why = f"is not declared{' for this machine' if one else ''}"
            faults.append(
                f"{where} is open and {why} ({who}); stop it, bind it to 127.0.0.1, or declare it "
                "in firewall_open"
            )
        elif one and outcome != "open" and _expected(one, address, view):
            where += f" ({one.comment or 'firewall_open'}) is declared, and"
            if outcome == "refused":
                notes.append(f"{where} nothing listens there")
            else:
                faults.append(
                    f"{where} does not answer: a firewall of the provider, or on the way, may drop "
                    "what comes"
                )
    return Verdict(tuple(faults), tuple(notes))


def _is_first(address: str, view: View) -> bool:
    return address == view.addresses[0]


def _shut(one: Opening, address: str, view: View) -> bool:
    """Whether the opening leaves this machine out, as far as it knows its own address."""
    return bool(one.sources) and _is_first(address, view) and not one.admits(view.source)


def _expected(one: Opening, address: str, view: View) -> bool:
    if one.rate or len(one.range) > 1:
        return False
    return not one.sources or (_is_first(address, view) and one.admits(view.source))


def unanswered(found: Mapping[Place, Outcome], view: View, ssh: Collection[int]) -> Iterator[str]:
    """Further addresses at which not even SSH answers this machine: that says nothing of them."""
    for address in view.addresses[1:]:
        if not any(found.get((address, port)) == "open" for port in ssh):
            yield address

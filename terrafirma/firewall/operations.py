"""The rules in force, and the proof from outside that they are right."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand

from terrafirma.firewall import outside
from terrafirma.firewall.facts import Firewall, FirewallState
from terrafirma.firewall.seen import ssh_ports
from terrafirma.guard.changes import Change
from terrafirma.host.asking import ask
from terrafirma.host.operation import failure, operation
from terrafirma.paths import FIREWALL, FIREWALL_LEAST, FIREWALL_RULES, FIREWALL_UNIT
from terrafirma.server import Server

_UNIT = f"/etc/systemd/system/{FIREWALL_UNIT}"
WAY_BACK = Change(
    "what is open",
    (
        *(FIREWALL_RULES, FIREWALL_LEAST, FIREWALL, _UNIT),
        f"/etc/systemd/system/sysinit.target.wants/{FIREWALL_UNIT}",
    ),
    commands=(
        f"systemctl daemon-reload; if test -e {FIREWALL_RULES} && test -x {FIREWALL};"
        f" then systemctl restart {FIREWALL_UNIT};"
        f" else systemctl stop {FIREWALL_UNIT}; nft delete table inet terrafirma; fi",
    ),
)
"""How a host returns to the rules from before, or to none."""


@operation
def enforce() -> Generator[StringCommand]:
    """Load the rules anew if somebody removed or changed them in the kernel."""
    if ask(host, Firewall)["in_force"]:
        host.noop("the rules of the file are in force")
    else:
        yield StringCommand(FIREWALL, "load")


@operation
def remove() -> Generator[StringCommand]:
    """No rules of ours, and nothing that loads them; other tables stay."""
    if not ask(host, Firewall)["there"]:
        host.noop("no rules of ours are there")
        return
    paths = map(QuoteString, (_UNIT, FIREWALL, FIREWALL_RULES, FIREWALL_LEAST))
    yield StringCommand(
        "{ systemctl disable --quiet --now", FIREWALL_UNIT, "2> /dev/null || true; } &&",
        "{ test ! -x", FIREWALL, "||", FIREWALL, "remove; } && rm -f", *paths,
        "&& systemctl daemon-reload",
    )  # fmt: skip


SHOWN = 5
"""Differences to print."""


@operation
def prove(server: Server, connection: str, *, every: bool = False) -> Generator[StringCommand]:
    """
    Try from this machine what is open, and fail where that is not what is declared.

    + connection: as SSH_CONNECTION on the host
    + every: try all ports, and not a sample
    """
    if not host.state.is_executing or not server.firewall.enabled:
        host.noop("tried when everything else is done" if server.firewall.enabled else "no rules")
        return
    state = ask(host, Firewall)
    view = outside.look(_socket(), connection, state["addresses"])
    verdict = _tried(server, state, view, ssh_ports(state, connection), every=every)
    for words in (*(f"Not proved from outside: {one}" for one in view.missing), *verdict.notes):
        host.log_styled(words, fg="yellow")
    if verdict.faults:
        more = len(verdict.faults) - SHOWN
        shown = "; ".join(verdict.faults[:SHOWN])
        yield failure(f"exposure: {shown}{f'; and {more} more' if more > 0 else ''}")
    else:
        host.noop(f"{', '.join(view.addresses) or 'no address'}: open is what is declared")


def _tried(
    server: Server, state: FirewallState, view: outside.View, ssh: Sequence[int], *, every: bool
) -> outside.Verdict:
    openings = server.openings(ssh)
    declared = {
        port for one in outside.wanted(openings) for port in one.range if len(one.range) < SHOWN
    }
    first = [(address, port) for address in view.addresses for port in sorted(declared)]
    began = time.monotonic()
    found = outside.probe(first, outside.PATIENCE)
    # A port that drops what it gets is recognised by its silence: four times what an answer takes.
    answered = [outcome for outcome in found.values() if outcome != "silent"]
    silence = min(1.0, max(0.25, 4 * (time.monotonic() - began))) if answered else 1.0
    mute = set(outside.unanswered(found, view, ssh))
    ports = outside.EVERY if every else outside.sample(openings, state)
    rest = ((address, port) for address in view.addresses if address not in mute
            for port in ports if port not in declared)  # fmt: skip
    found |= outside.probe(rest, silence)
    kept = {place: outcome for place, outcome in found.items() if place[0] not in mute}
    verdict = outside.judge(kept, openings, state, view)
    said = (f"{one}: not even SSH answers this machine there, so nothing of it is proved"
            for one in sorted(mute))  # fmt: skip
    return outside.Verdict(verdict.faults, (*verdict.notes, *said))


def _socket() -> object:
    client = getattr(host.connector, "client", None)
    transport = client and client.get_transport()
    return getattr(transport, "sock", None)

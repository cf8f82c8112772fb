"""Operations around a change to who reaches a host: it is proved, or undone."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from pyinfra import host, state
from pyinfra.api import Host, QuoteString, StringCommand

from terrafirma.guard.changes import Change
from terrafirma.guard.logins import (
    Login,
    administrators,
    fails,
    key_at_hand,
    named_keys,
    over_ssh,
)
from terrafirma.host.facts import MachineState
from terrafirma.host.operation import before_change, failure, is_unchanged, operation
from terrafirma.server import Server
from terrafirma.settings import ROOT

_STATE = "/var/lib/terrafirma/guard"
_PROGRAM = f"python3 -I {_STATE}/guard.py"
_SOURCE = ROOT / "files/terrafirma_host/guard.py"

Missing = Callable[[], Sequence[str]]
"""The accounts that are not to be let in yet; asked on the host when the change is proved."""


@dataclass(frozen=True)
class Guard:
    """One change, and the logins that have to work after it."""

    server: Server
    machine: MachineState
    change: Change
    missing: Missing = tuple
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def arm(self) -> StringCommand:
        """The command that saves the state before, and starts the timer."""
        order = {
            "token": self.token,
            "seconds": self.server.guard.seconds,
            "what": self.change.what,
            "paths": self.change.paths,
            "first": self.change.first,
            "commands": self.change.commands,
        }
        script = (
            f"umask 022; mkdir -p {_STATE.rpartition('/')[0]}; umask 077; mkdir -p {_STATE} && "
            f'cat > {_STATE}/guard.py && exec {_PROGRAM} arm "$1"'
        )
        return StringCommand(
            "sh -c", QuoteString(script), "sh", QuoteString(json.dumps(order)),
            _stdin=_SOURCE.read_text(),
        )  # fmt: skip

    @property
    def confirm(self) -> StringCommand:
        return StringCommand(_PROGRAM, "confirm", self.token)


@contextmanager
def guarded(
    server: Server, machine: MachineState, change: Change, missing: Missing = tuple
) -> Iterator[None]:
    """
    The operations of this block change who reaches the host, and are undone if nobody gets in.

    Before the first of them that changes something, a timer starts on the host; a run that changes
    nothing sends no command more. After the last, new connections prove that the connected account
    and each administrator whose private key is on this machine log in and become root. Then the
    timer is stopped. Otherwise, also if this machine dies, the host returns to the state before.
    """
    guard = Guard(server, machine, change, missing)
    watch(name="Watch over who reaches the host", guard=guard)
    yield
    prove(name="Prove that everybody still gets in", guard=guard)


@operation
def watch(guard: Guard) -> Generator[StringCommand]:
    """The next change of this run begins by saving the state before."""
    seconds = guard.server.guard.seconds
    if over_ssh(host):
        before_change(host, guard.arm, f"Undone within {seconds} s, unless new logins prove it")
    else:
        before_change(host, None, "Not over SSH: no login is tried, and nothing is undone")
    host.noop("its first change starts the timer")
    yield from ()


@operation
def prove(guard: Guard) -> Generator[StringCommand]:
    """Everybody still gets in, and the change stays; else it is undone, and the run fails."""
    if is_unchanged(host) or not over_ssh(host):
        host.noop("nothing changed")
        return
    if state.is_executing and (wrong := _wrong(host, guard)):
        # Without root there, the timer alone can undo it.
        host.log_styled(
            f"{wrong}; within {guard.server.guard.seconds} s the host is as before", fg="red"
        )
        yield StringCommand(_PROGRAM, "revert")
        yield failure(f"{host.name}: {wrong}; {guard.change.what}: the state before is back")
        return
    yield guard.confirm


def _wrong(host: Host, guard: Guard) -> str:
    """Why somebody no longer gets in; says who does."""
    user, server = guard.machine["user"], guard.server
    # Once sshd shuts root out, only an administrator's login can prove a change.
    last = user == "root" and not server.sshd.root_login
    if not last and (said := fails(host, Login("", root=guard.machine["root"]))):
        return f"ssh_user: {user} would no longer get in: {said}"
    proved, unproved = [] if last else [user], []
    declared = administrators(server, user)
    waiting = guard.missing() if declared else ()
    for account in declared:
        key = key_at_hand(host, account, named_keys(host, account.name))
        if key is None or account.name in waiting:
            unproved.append(account.name)
        elif said := fails(host, Login(account.name, key)):
            # No further login: refused ones count against this machine.
            return f"users_accounts: {account.name} would not get in: {said}"
        else:
            proved.append(account.name)
    if not proved:
        if said := fails(host, Login("", root=True)):
            return f"sshd_root_login: nobody would get in but root, which is shut out: {said}"
        proved = [user]
    host.log(f"A new login becomes root: {', '.join(proved)}")
    if unproved:
        host.log(f"Not tried, for want of a key here or of a rule in sshd: {', '.join(unproved)}")
    return ""

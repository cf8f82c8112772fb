"""Upgrade packages: the engines one after the other, then all others; one host after the other."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from weakref import WeakKeyDictionary

from gevent.lock import Semaphore
from pyinfra import host
from pyinfra.api import FunctionCommand, Host, State, StringCommand

from terrafirma.apt.upgrade import Plan, Wanted, make
from terrafirma.apt.upgrade_facts import Packages
from terrafirma.host.operation import failure, operation
from terrafirma.paths import HOST_PROGRAM

UPDATE = "apt-get -q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=600 update > /dev/null"

# pyinfra runs an operation on all hosts at once. What is wrong with a new version is seen on the
# first host, and the others still serve then.
_turn = Semaphore()
_failed: WeakKeyDictionary[State, list[str]] = WeakKeyDictionary()
# What whoever said "go on" has read, by host; nothing with -y, which shows no plan before the run.
_announced: WeakKeyDictionary[Host, frozenset[str]] = WeakKeyDictionary()


@operation
def upgrade(
    wanted: Sequence[Wanted], vendors: Collection[str] = ()
) -> Generator[StringCommand | FunctionCommand]:
    """
    Packages are the newest that the settings allow, or, where these do not do, those of before.

    + wanted: the engines
    + vendors: addresses of all archives that are a vendor's

    The plan is made anew when the turn of the host has come: by package lists that are fresh, and
    archives that were added in the same run.
    """
    plan = make(wanted, host.get_fact(Packages, names=names_of(wanted)), vendors)
    if plan.refusals:
        yield failure("; ".join(plan.refusals))
        return
    if not host.state.is_executing:
        _say(host, plan)
        engines = {step.wanted.name for step in plan.steps}
        engines |= {one.name for one in wanted if one.title in plan.awaited}
        _announced[host] = frozenset(engines)
    if plan or plan.stale:
        yield FunctionCommand(_take_turn, (tuple(wanted), tuple(vendors)), {})
    else:
        host.noop("; ".join(plan.notes) or "there is nothing to upgrade")


def names_of(wanted: Sequence[Wanted]) -> list[str]:
    """All packages that the engines are about."""
    return sorted({name for one in wanted
                   for name in (*one.packages, *one.replaces, *one.foreign)})  # fmt: skip


def _say(host: Host, plan: Plan) -> None:
    for line in plan.lines():
        host.log_styled(line, fg="yellow")


def _take_turn(
    state: State, host: Host, wanted: tuple[Wanted, ...], vendors: tuple[str, ...]
) -> bool:
    if _turn.locked():
        host.log("Waiting until the upgrade of another host has ended")
    with _turn:
        if before := _failed.get(state):
            host.log_styled(f"not begun, for the upgrade of {before[0]} failed", fg="red")
            return False
        if _carry_out(host, wanted, vendors):
            return True
        _failed.setdefault(state, []).append(host.name)
        return False


def _carry_out(host: Host, wanted: tuple[Wanted, ...], vendors: tuple[str, ...]) -> bool:
    # Where the lists cannot be refreshed, those that are there would be a plan of yesterday.
    if not _run(host, StringCommand(UPDATE)):
        return False
    plan = make(wanted, host.get_fact(Packages, names=names_of(wanted)), vendors)
    if plan.refusals or plan.awaited:
        for words in (
            *plan.refusals, *(f"{title}: its vendor offers nothing" for title in plan.awaited)
        ):  # fmt: skip
            host.log_styled(words, fg="red")
        return False
    if host in _announced:
        plan = plan.only(_announced[host])
    _say(host, plan)
    if not plan:
        return True
    return _run(host, StringCommand(HOST_PROGRAM, "upgrade"), stdin=plan.data())


def _run(host: Host, command: StringCommand, stdin: str = "") -> bool:
    """Run it, and show what it says as it says it: it may take minutes."""
    more = {key: host.data.get(key) for key in ("_sudo", "_sudo_password") if host.data.get(key)}
    if stdin:
        more["_stdin"] = [stdin]
    status, _ = host.run_shell_command(
        command, print_output=True, print_input=host.state.print_input, **more
    )
    return status

"""Upgrade packages on one host at a time: each engine in turn, then all other packages."""

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

# DPkg::Lock::Timeout does not cover the lock of the package lists, so wait for it here, for at most
# ten minutes. A source that cannot be fetched is a failure: its old list would hide new versions.
UPDATE = (
    "began=$(date +%s); until said=$(LC_ALL=C apt-get -q -o Acquire::Retries=3 "
    "-o APT::Update::Error-Mode=any update 2>&1 > /dev/null); do "
    'case "$said" in *"Could not get lock"*) '
    "test $(($(date +%s) - began)) -ge 600 || { sleep 5; continue; };; esac; "
    'printf "%s\\n" "$said" >&2; exit 1; done; printf "%s" "$said" >&2'
)

# pyinfra runs an operation on all hosts at once. Upgrade one host at a time instead: if the new
# version is broken, the others still serve.
_turn = Semaphore()
_failed: WeakKeyDictionary[State, list[str]] = WeakKeyDictionary()
# The engines in the plan that the user confirmed, by host; empty with -y, which confirms no plan.
_announced: WeakKeyDictionary[Host, frozenset[str]] = WeakKeyDictionary()


@operation
def upgrade(
    wanted: Sequence[Wanted], vendors: Collection[str] = ()
) -> Generator[StringCommand | FunctionCommand]:
    """
    Install the newest packages that the settings allow; roll an engine back if it then fails.

    + wanted: the engines
    + vendors: the repositories of all vendors, as apt lists them

    The plan is made again when the turn of the host has come, with fresh package lists and the
    repositories that were added in the same run.
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
    """All packages that belong to the engines, or conflict with them."""
    return sorted({
        name for one in wanted for name in (*one.packages, *one.held, *one.replaces, *one.foreign)
    })  # fmt: skip


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
            host.log_styled(f"not started, because the upgrade of {before[0]} failed", fg="red")
            return False
        done = False
        try:
            done = _carry_out(host, wanted, vendors)
        finally:
            # An exception, like a broken connection, is a failure as well.
            if not done:
                _failed.setdefault(state, []).append(host.name)
        return done


def _carry_out(host: Host, wanted: tuple[Wanted, ...], vendors: tuple[str, ...]) -> bool:
    # With an old list, the plan could be out of date.
    if not _run(host, StringCommand(UPDATE)):
        return False
    plan = make(wanted, host.get_fact(Packages, names=names_of(wanted)), vendors)
    if plan.refusals or plan.awaited:
        for words in (
            *plan.refusals, *(f"{title}: its vendor offers no version" for title in plan.awaited)
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
    """Run a command, and show its output at once, because it may take minutes."""
    more = {key: host.data.get(key) for key in ("_sudo", "_sudo_password") if host.data.get(key)}
    if stdin:
        more["_stdin"] = [stdin]
    status, _ = host.run_shell_command(
        command, print_output=True, print_input=host.state.print_input, **more
    )
    return status

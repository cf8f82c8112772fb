"""Releases of applications: the program on the host makes them, so that they outlive us."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import FunctionCommand, Host, QuoteString, State, StringCommand
from pyinfra.api.operation import OperationMeta

from terrafirma.facts.release import ReleaseStatus
from terrafirma.operations import failure, operation
from terrafirma.paths import HOST_PROGRAM


@operation
def release(
    app: str, *, description: str, revision: str, by: str, after: Sequence[OperationMeta] = ()
) -> Generator[FunctionCommand | StringCommand]:
    """
    An application that serves what its description says: all of it, or as before.

    + description: what NAME.json says, or is going to say
    + revision: of its source, for the list of releases
    + by: who releases
    + after: operations of the same run, whose changes make another release

    pyinfra's docker.compose runs `up` on each run, which stops all containers before new ones run.
    """
    known = host.get_fact(ReleaseStatus, app=app, _stdin=[description])
    planned = any(not meta.is_complete() and meta.will_change for meta in after)
    if known["withdrawn"]:
        host.log_styled(
            f"{app}: release {known['wanted']} was taken back, and {known['serving']} serves: "
            f"change it, or `terrafirma release {app} --again` on the host",
            fg="yellow",
        )
    if known["trouble"] and not planned:
        host.log(f"{app}: whether it is current is not known: {known['trouble'].splitlines()[0]}")
    # A plan shows no failure to come.
    planned_failure = [] if host.state.is_executing else known["troubles"]
    for words in [*known["silent"], *planned_failure, *known["notes"]]:
        host.log_styled(f"{app}: {words}", fg="yellow")
    if not known["current"] or planned:
        # What serves in the place of one that was taken back has the settings and secrets of now.
        how = (
            ["refresh"] if known["withdrawn"] else ["release", "--revision", QuoteString(revision)]
        )
        yield _streamed(*how, QuoteString(app), "--by", QuoteString(by))
        known = host.get_fact(ReleaseStatus, app=app, _stdin=[description])
    if known["troubles"]:
        yield failure(f"{app} does not answer: {'; '.join(known['troubles'])}")
    else:
        host.noop(f"release {known['serving']} of {app} serves, and answers")


@operation
def rollback(app: str, *, release: str, by: str) -> Generator[FunctionCommand]:
    """
    An earlier release of an application serves again.

    + release: which; empty: the one before
    """
    which = [QuoteString(release)] if release else []
    yield _streamed("rollback", QuoteString(app), *which, "--by", QuoteString(by))


@operation
def refresh(app: str, *, by: str) -> Generator[FunctionCommand]:
    """The code that serves, with the settings and secrets of now."""
    yield _streamed("refresh", QuoteString(app), "--by", QuoteString(by))


def _streamed(*words: str | QuoteString) -> FunctionCommand:
    return FunctionCommand(_stream, (StringCommand(HOST_PROGRAM, *words),), {})


def _stream(state: State, host: Host, command: StringCommand) -> bool:
    """Run it, and show what it says as it says it: it may take minutes."""
    sudo = {key: host.data.get(key) for key in ("_sudo", "_sudo_password") if host.data.get(key)}
    status, _ = host.run_shell_command(
        command, print_output=True, print_input=state.print_input, **sudo
    )
    return status

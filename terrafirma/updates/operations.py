"""Report what is due, and remove windows that your settings no longer have."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand

from terrafirma.host.files import path_states
from terrafirma.host.operation import operation
from terrafirma.updates.facts import UpdatesStatus


@operation
def say_what_is_due() -> Generator[StringCommand]:
    """Report what is due, and what was done in the windows; changes nothing."""
    status = host.get_fact(UpdatesStatus)
    for words in status["alarms"]:
        host.log_styled(words, fg="yellow", bold=True)
    for words in status["notes"]:
        host.log_styled(words, fg="green")
    host.noop("; ".join([*status["alarms"], *status["notes"]]) or "nothing is due")
    yield from ()


@operation
def no_units(names: Sequence[str]) -> Generator[StringCommand]:
    """Remove units that only Terrafirma writes; a service that runs is not stopped."""
    paths = {f"/etc/systemd/system/{name}": name for name in names}
    there = path_states(list(paths))
    if not there:
        host.noop(f"{', '.join(names)}: not there")
        return
    timers = [QuoteString(paths[path]) for path in there if path.endswith(".timer")]
    services = [QuoteString(paths[path]) for path in there if not path.endswith(".timer")]
    # A service that starts at boot, without a timer, is enabled itself.
    yield StringCommand(
        *(("systemctl disable --quiet --now", *timers, "&&") if timers else ()),
        *(("systemctl disable --quiet", *services, "&&") if services else ()),
        "rm -f", *map(QuoteString, there), "&& systemctl daemon-reload",
    )  # fmt: skip

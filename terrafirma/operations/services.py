"""systemd units."""

from __future__ import annotations

from collections.abc import Generator, Mapping

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand
from pyinfra.api.operation import OperationMeta

from terrafirma.facts.services import DAEMON_RELOAD, RELOADS, Unit
from terrafirma.operations import operation

Watch = Mapping[str, OperationMeta]


@operation
def unit(
    unit: str,
    *,
    unit_files: Watch | None = None,
    restart_on: Watch | None = None,
    reload_on: Watch | None = None,
    restart_command: str | None = None,
) -> Generator[StringCommand]:
    """
    A unit that runs, starts at boot, and runs with the present content of its files.

    + unit: its full name
    + unit_files: path of each file of systemd's that describes it, and the operation that writes it
    + restart_on: path of each file that it only reads as it starts, likewise
    + reload_on: the same for files that a reload reads
    + restart_command: instead of `systemctl restart`, and of `systemctl start`

    pyinfra's systemd.service restarts or reloads on each run or, with `_if=meta.did_change`,
    forgets it when a run dies in between. Here time stamps on the host decide. A unit that is not
    running is started; nothing is restarted where a reload is enough.
    """
    unit_files, restart_on, reload_on = unit_files or {}, restart_on or {}, reload_on or {}
    known = host.get_fact(
        Unit,
        unit=unit,
        unit_files=sorted(unit_files),
        restart_on=sorted(restart_on),
        reload_on=sorted(reload_on),
    )
    name = QuoteString(unit)
    commands: list[StringCommand] = []
    if known["stale_units"] or _planned(unit_files):
        commands.append(
            StringCommand("mkdir -p", RELOADS, "&& systemctl daemon-reload && touch", DAEMON_RELOAD)
        )
    if not known["enabled"]:
        commands.append(StringCommand("systemctl enable --quiet", name))
    if not known["active"]:
        start = restart_command or StringCommand("systemctl start", name)
        commands.append(StringCommand("systemctl reset-failed", name, "2> /dev/null;", start))
    elif known["stale"] or _planned(restart_on):
        commands.append(StringCommand(restart_command or StringCommand("systemctl restart", name)))
    elif known["stale_reload"] or _planned(reload_on):
        stamp = QuoteString(f"{RELOADS}/{unit}.reloaded")
        commands.append(
            StringCommand("mkdir -p", RELOADS, "&& systemctl reload", name, "&& touch", stamp)
        )
    if not commands:
        host.noop(f"{unit} runs with the present files")
    yield from commands


def _planned(watch: Watch) -> bool:
    """Whether an operation that has yet to run is going to write one of the files."""
    return any(not meta.is_complete() and meta.will_change for meta in watch.values())

"""systemd units that run with the present content of their files."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TypedDict

from pyinfra import host
from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from pyinfra.api.operation import OperationMeta
from typing_extensions import override

from terrafirma.host.operation import operation

# systemd does not record reloads, so `unit` below records its own here. The directory is empty
# after a reboot, which is right, because the unit has then just started.
RELOADS = "/run/terrafirma"
DAEMON_RELOAD = f"{RELOADS}/daemon-reload"


_NOT_ENABLED = ("", "disabled", "masked", "masked-runtime", "linked", "linked-runtime", "bad")


class UnitState(TypedDict):
    active: bool
    enabled: bool
    on_demand: bool  # systemd starts it by its socket, at a boot too
    stale_units: list[str]  # files of `unit_files` that changed since systemd read its units
    stale: list[str]  # files of `restart_on` that changed since the unit started
    stale_reload: list[str]  # files of `reload_on` that changed since it started or was reloaded
    stale_socket: list[str]  # files of `socket_files` that changed since systemd listens


def _changed_since(key: str, paths: Sequence[str], also: str) -> list[str | QuoteString]:
    if not paths:
        return []
    return [
        "for path in",
        *map(QuoteString, paths),
        f'; do test ! -e "$path" || find "$path" -prune -newerct "$since" {also}',
        f'-printf "{key}=%p\\n"; done;',
    ]


class Unit(FactBase[UnitState]):
    """
    State of one unit, and which of its files changed since it last read them.

    systemd's time stamps and the files' ctimes are compared on the host, so a restart that an
    interrupted run did not reach is still due in the next run.
    """

    @staticmethod
    @override
    def default() -> UnitState:
        return UnitState(
            active=False, enabled=False, on_demand=False,
            stale_units=[], stale=[], stale_reload=[], stale_socket=[],
        )  # fmt: skip

    @override
    def command(
        self,
        unit: str,
        unit_files: Sequence[str] = (),
        restart_on: Sequence[str] = (),
        reload_on: Sequence[str] = (),
        socket: str = "",
        socket_files: Sequence[str] = (),
    ) -> StringCommand:
        on_demand: list[StringCommand | str | QuoteString] = []
        if socket:
            words = QuoteString(socket)
            on_demand = [
                StringCommand("! systemctl is-active --quiet", words),
                StringCommand("|| ! systemctl is-enabled --quiet", words, "2> /dev/null"),
                "|| echo on_demand;",
            ]
        if socket_files:
            on_demand += [
                StringCommand("since=$(systemctl show --timestamp=us", QuoteString(socket)),
                '--property ActiveEnterTimestamp --value); after="";',
                'test -z "$since" || {', *_changed_since("stale_socket", socket_files, ""), "};",
            ]  # fmt: skip
        show = StringCommand("systemctl show --timestamp=us", QuoteString(unit), "--property")
        return StringCommand(
            show,
            "ActiveState,UnitFileState;",
            *on_demand,
            # systemd's NeedDaemonReload overlooks a file of ours that now overrides a package's,
            # and on Debian 12 notices a new drop-in one command late.
            "since=$(systemctl show --timestamp=us --property UnitsLoadStartTimestamp --value);",
            f'after=""; test ! -e {DAEMON_RELOAD} || after="-cnewer {DAEMON_RELOAD}";',
            *_changed_since("stale_unit", unit_files, "$after"),
            StringCommand("since=$(", show, " ActiveEnterTimestamp --value);", _separator=""),
            StringCommand("stamp=", QuoteString(f"{RELOADS}/{unit}.reloaded"), ";", _separator=""),
            'test -n "$since" || exit 0; echo started;',
            *_changed_since("stale", restart_on, ""),
            # If the unit was reloaded since its start, compare with the reload.
            'after=""; test ! -e "$stamp" || after="-cnewer $stamp";',
            *_changed_since("stale_reload", reload_on, "$after"),
        )

    @override
    def process(self, output: list[str]) -> UnitState:
        state = self.default()
        started = False
        for line in output:
            key, _, value = line.partition("=")
            match key:
                case "ActiveState":
                    state["active"] = value in ("active", "reloading")
                case "UnitFileState":
                    # "enabled-runtime" counts: PostgreSQL's generator enables instances this way.
                    state["enabled"] = value not in _NOT_ENABLED
                case "stale_unit":
                    state["stale_units"].append(value)
                case "on_demand":
                    state["on_demand"] = True
                case "started":
                    started = True
                case "stale":
                    state["stale"].append(value)
                case "stale_reload":
                    state["stale_reload"].append(value)
                case "stale_socket":
                    state["stale_socket"].append(value)
        if state["active"] and not started:
            raise FactProcessError(f"systemd does not say since when it is active: {output!r}")
        return state


Watch = Mapping[str, OperationMeta]


@operation
def unit(
    unit: str,
    *,
    unit_files: Watch | None = None,
    restart_on: Watch | None = None,
    reload_on: Watch | None = None,
    restart_command: str | None = None,
    socket: str = "",
    socket_files: Watch | None = None,
) -> Generator[StringCommand]:
    """
    A unit that runs, starts at boot, and runs with the present content of its files.

    + unit: its full name
    + unit_files: path of each systemd file of the unit, and the operation that writes it
    + restart_on: the same for files that the unit reads only when it starts
    + reload_on: the same for files that a reload reads
    + restart_command: replaces `systemctl restart` and `systemctl start`
    + socket: while systemd listens on it for the unit, the first client starts the unit, and a
      restart replaces each reload: the port stays open, and sshd, for one, does not find the
      socket again after a reload
    + socket_files: systemd files of the socket; a change of these closes the port for a moment

    pyinfra's systemd.service restarts or reloads on each run. With `_if=meta.did_change`, it loses
    the restart if a run dies in between. Here time stamps on the host decide. A unit that does not
    run is started, and a unit for which a reload is enough is not restarted.
    """
    unit_files, restart_on, reload_on = unit_files or {}, restart_on or {}, reload_on or {}
    socket_files = socket_files or {}
    known = host.get_fact(
        Unit,
        unit=unit,
        unit_files=sorted(unit_files),
        restart_on=sorted(restart_on),
        reload_on=sorted(reload_on),
        socket=socket,
        socket_files=sorted(socket_files),
    )
    name = QuoteString(unit)
    commands: list[StringCommand] = []
    if known["stale_units"] or _planned(unit_files):
        commands.append(
            StringCommand("mkdir -p", RELOADS, "&& systemctl daemon-reload && touch", DAEMON_RELOAD)
        )
    if not (known["enabled"] or known["on_demand"]):
        commands.append(StringCommand("systemctl enable --quiet", name))
    if known["on_demand"] and (known["stale_socket"] or _planned(socket_files)):
        # systemd listens anew only while the unit is down; its sessions go on.
        listen = StringCommand("systemctl restart", QuoteString(socket))
        stop = StringCommand("systemctl daemon-reload && systemctl stop", name, "&&")
        commands.append(StringCommand(stop, listen))
    elif not known["active"] and known["on_demand"]:
        pass  # it reads its files when it starts
    elif not known["active"]:
        start = restart_command or StringCommand("systemctl start", name)
        commands.append(StringCommand("systemctl reset-failed", name, "2> /dev/null;", start))
    elif known["stale"] or _planned(restart_on):
        commands.append(StringCommand(restart_command or StringCommand("systemctl restart", name)))
    elif known["stale_reload"] or _planned(reload_on):
        stamp = QuoteString(f"{RELOADS}/{unit}.reloaded")
        verb = "restart" if known["on_demand"] else "reload"
        commands.append(
            StringCommand("mkdir -p", RELOADS, f"&& systemctl {verb}", name, "&& touch", stamp)
        )
    if not commands:
        host.noop(f"{unit} runs with the present files")
    yield from commands


def _planned(watch: Watch) -> bool:
    """Whether an operation that has yet to run is going to write one of the files."""
    return any(not meta.is_complete() and meta.will_change for meta in watch.values())

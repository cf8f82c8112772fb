"""What would become of a project on a server, found out on the machine that deploys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from terrafirma_host import spec
from terrafirma_host.compose import Compose
from terrafirma_host.layers import Project
from terrafirma_host.shell import BROKEN, Failed

from terrafirma.app import dumps
from terrafirma.app.description import description, further_files
from terrafirma.app.guess import Usual, answers
from terrafirma.app.laptop import staged
from terrafirma.app.left_out import files_left_out
from terrafirma.app.page import page
from terrafirma.app.places import located
from terrafirma.app.selection import unreadable
from terrafirma.app.settings import Application
from terrafirma.server import Server
from terrafirma.settings import Refused, build, text
from terrafirma.users.settings import Users

ACCOUNTS = Users(accounts=({"name": "prod"},))  # type: ignore[arg-type]  # pydantic makes accounts
DOMAIN = "app.example.com"
"""Stands for the domain of an application whose settings have none yet."""

STEPS = 12
"""Proposals that are tried, one after the other."""


@dataclass(frozen=True)
class Report:
    """What would become of an application."""

    refusals: list[str]
    """Why it would be refused with its settings: a line for each reason."""
    lines: list[str] = field(default_factory=list)
    """What would become of each service, volume, port and variable."""
    proposed: dict[str, Any] = field(default_factory=dict)
    """Further fields of its settings, with which nothing would be refused, or less."""
    left: list[str] = field(default_factory=list)
    """Why it would be refused with the proposed fields, too."""
    app: Application | None = field(default=None, repr=False)
    described: spec.Application | None = field(default=None, repr=False)
    """What the program on the host makes of the application."""
    project: Project | None = field(default=None, repr=False)
    """What Compose makes of its files."""
    source: str = ""
    """The directory of its files in `project`."""

    @property
    def served(self) -> bool:
        return not self.refusals


def check(data: Mapping[str, Any], *, server: Server | None = None) -> Report:
    """
    What would become of an application with these settings.

    + data: an entry of `apps`; without `name`, it is named after its directory, and without
      `domain`, it has one that stands for any
    + server: where the other settings come from; without one, nothing is asked of them
    """
    users = server.users if server else ACCOUNTS
    given = {"name": _name(data), "domain": DOMAIN, **data}
    proposed: dict[str, Any] = {} if "domain" in data else {"domain": DOMAIN}
    first = report = _checked(given, users)
    refusals: list[str] = []
    for _ in range(STEPS):
        new = [line for line in report.refusals if line not in refusals]
        refusals += new
        wanted = {**given, **proposed}
        further = _further(wanted, new) | answers(wanted, report.project, new)
        if "leave_out" in further:
            # A proxy that is left out needs no socket.
            further.pop("docker_socket", None)
        if not further:
            break
        proposed |= further
        report = _checked({**given, **proposed}, users)
    usual = Usual({**given, **proposed}, report.app, report.project, report.source)
    if fields := usual.fields() | _dumps({**given, **proposed}, report):
        tried = _checked({**given, **proposed, **fields}, users)
        if len(tried.refusals) <= len(report.refusals):
            report, proposed = tried, proposed | fields
    lines = [*report.lines, *(f"  {line}" for line in usual.words())]
    return replace(first, refusals=refusals, lines=lines, proposed=proposed, left=report.refusals)


def shown(report: Report) -> list[str]:
    """The page about an application, with what has to be changed at its end."""
    lines = list(report.lines)
    if report.refusals:
        lines += ["  refused", *(f"    {line}" for line in report.refusals)]
    if report.proposed:
        title = "missing in its settings" if report.refusals else "proposed"
        lines += [f"  {title}", *(f"    {line}," for line in as_data(report.proposed))]
    if report.proposed and report.refusals and report.left:
        lines += ["  refused with these lines, too", *(f"    {line}" for line in report.left)]
    return lines


def as_data(fields: Mapping[str, Any]) -> list[str]:
    """The lines of an entry of `apps`, as a file of settings has them."""
    return [f"{json.dumps(key)}: {_python(value)}" for key, value in fields.items()]


def _python(value: Any) -> str:
    """JSON is Python, but for its words."""
    words = {"true": "True", "false": "False", "null": "None"}
    written = json.dumps(value, ensure_ascii=False)
    return words.get(written, written)


def read(app: Application, users: Users) -> Report:
    """What would become of an application whose settings are right."""
    if words := unreadable(app):
        return Report([f"{app.key('source')}: {words}"])
    if lines := [f"{app.key('compose')}: {line}" for line in further_files(app, users)]:
        return Report(lines)
    try:
        described = description(app, users)
    except Failed as error:
        # A file of `env_file` is missing, or has another form.
        return Report([app.key(str(error))])
    return examine(app, described)


def examine(app: Application, described: str) -> Report:
    """
    What would become of an application that can be described.

    + described: the content of NAME.json, from `description`
    """
    refusals = [f"{app.key('compose')}: {line}" for line in files_left_out(app)]
    try:
        with staged(app, described) as compose:
            project, faults = _read(compose)
            refusals += [_line(app, error, compose.app.source) for error in faults]
            lines = page(app, compose, project) if project else []
            source = compose.app.source
            found = Report(_causes(refusals), lines, app=app, project=project, source=source)
            return replace(found, described=compose.app)
    except BROKEN as error:
        return Report([*refusals, _line(app, error)])


def _checked(data: Mapping[str, Any], users: Users) -> Report:
    try:
        app = build(Application, data, f"apps.{text(data['name'])}.")
    except Refused as error:
        return Report(list(error.words))
    return read(app, users)


def _read(compose: Compose) -> tuple[Project | None, Sequence[Failed]]:
    try:
        project, faults = compose.faults()
        if not faults:
            compose.agree(project)
    except Failed as error:
        return None, [error]
    return project, faults


def _line(app: Application, error: object, source: str = "") -> str:
    """A message of the host's program in one line, under the field that it is about."""
    words = " ".join(str(error).split())
    if source:
        # The directory that stands for the source on the host.
        words = words.replace(f"{source}/", "./").replace(str(Path(source).parent), "..")
    words = located(app, words)
    first = words.partition(":")[0]
    return f"{app.key(first)}{words[len(first) :]}" if first in Application.model_fields else (
        f"apps.{app.name}: {words}")  # fmt: skip


def _causes(refusals: Sequence[str]) -> list[str]:
    """The refusals without those that only follow from others."""
    found: list[str] = []
    for line in dict.fromkeys(refusals):
        before = "\n".join(found)
        # A variable, an env file or a place that another line is about already.
        names = re.findall(r"\$\{\w+\}(?= \()|(?<=env file )\S+(?= not found)", line)
        names += re.findall(r"(?<=\()\S+(?= is outside of the source, which)", line)
        names += re.findall(r"(?<=writes the directory )(?:\.\./|/root/)\S+", line)
        if not names or not all(_named(name, before) for name in names):
            found.append(line)
    return found


def _named(name: str, said: str) -> bool:
    return name.replace("/root/", "~/").removeprefix("./") in said


def _name(data: Mapping[str, Any]) -> str:
    place = text(data.get("source") or data.get("image") or "app")
    last = place.rpartition("/")[2]
    if data.get("source"):
        with suppress(OSError, ValueError):
            last = Path(place).resolve().name
    words = re.findall(r"[a-z0-9]+", last.partition(":")[0].lower())
    return re.sub(r"^[^a-z]*", "", "-".join(words))[:31].strip("-") or "app"


# --- proposals ------------------------------------------------------------------------------------

# A refusal writes what would be right as settings have it: `stateful = ["db"]`.
_PROPOSAL = re.compile(
    r"\b([a-z_]+) = (\[[^\]]*\]|\{(?:[^{}]|\{[^{}]*\})*\}|\"[^\"]*\"|true|false|\d+)"
)


def _further(data: Mapping[str, Any], refusals: Sequence[str]) -> dict[str, Any]:
    """The fields that the refusals propose, together with what the settings have there."""
    found: dict[str, Any] = {}
    for line in refusals:
        for key, value in _proposals(line):
            before = found.get(key, data.get(key))
            merged = _merged(before, value)
            if merged != before:
                found[key] = merged
                break
    return found


def _proposals(line: str) -> Iterator[tuple[str, Any]]:
    for key, written in _PROPOSAL.findall(line):
        # Only a person knows that it is no database: two of one would destroy its data.
        known = f"{key} = {written} if it is no database" not in line
        if key in Application.model_fields and known:
            try:
                yield key, json.loads(written)
            except ValueError:
                continue


def _dumps(data: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """The settings of services with the commands by which their databases write dumps."""
    if not (report.served and report.described and report.project):
        return {}
    services = {**(data.get("services") or {})}
    for name, command in dumps.proposed(report.described, report.project).items():
        services[name] = {**(services.get(name) or {}), "backup_command": command}
    return {"services": services} if services != (data.get("services") or {}) else {}


def _merged(before: Any, value: Any) -> Any:
    if isinstance(value, list):
        return list(dict.fromkeys([*(before or []), *value]))
    if isinstance(value, dict):
        known = dict(before or {})
        return known | {
            key: _merged(known.get(key), one) if isinstance(one, dict) else one
            for key, one in value.items()
        }
    return value

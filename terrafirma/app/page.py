"""One page about a project: what becomes of each service, volume, port and variable."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from terrafirma_host import images, layers, spec, stores, values
from terrafirma_host.compose import Compose
from terrafirma_host.dumps import left_out
from terrafirma_host.layers import Project

from terrafirma.app import dumps
from terrafirma.app.environment import text_of
from terrafirma.app.settings import Application
from terrafirma.app.wanted import wanted


def page(app: Application, compose: Compose, project: Project) -> list[str]:
    """The lines of the page."""
    described = compose.app
    lines = [f"{app.name}: https://{app.domain}"]
    for title, rows in (
        ("services", _services(described, project)),
        ("volumes", _volumes(described, project)),
        ("ports", _ports(described, project)),
        ("variables", _variables(app, described, project)),
        ("scheduled", _jobs(described)),
        ("notes", [("", line) for line in (*wanted(app), *_notes(compose, project))]),
    ):
        rows = list(rows)
        width = max((len(name) for name, _ in rows), default=0)
        lines += [f"  {title}"] * bool(rows)
        lines += [f"    {f'{name:{width}}  ' if width else ''}{words}" for name, words in rows]
    return lines


def _services(app: spec.Application, project: Project) -> Iterator[tuple[str, str]]:
    running, once = layers.slot_services(app, project), layers.once(app, project)
    public = {one.service: one for one in app.fronts}
    for name, service in project["services"].items():
        times = layers.wanted(app, project, name)
        if front := public.get(name):
            words = f"{'public' if front.front else 'web'}: {front.replicas} replicas on "
            words += f"{_port(front, service)}, of which each {front.healthy}"
        elif name in app.stateful:
            words = "stateful: one container, which no release recreates"
        elif layers.migrates_by_service(app, project) and name in app.migrate:
            words = "migration: runs once before a release takes over"
        elif name in once:
            words = "one-shot: each release runs it to its end"
        elif name in running:
            words = f"worker: {_number(times, 'container')}, new with each release"
        elif profiles := service.get("profiles"):
            words = f"not started: profiles {', '.join(profiles)}"
        else:
            words = "left out"
        origin = app.image if app.image and not app.compose else _origin(service)
        yield name, f"{words} ({origin})"


def _port(app: spec.Application, service: Mapping[str, Any]) -> str:
    known = app.container_port or service.get("ports") or service.get("expose")
    return f"port {images.of_files(app, service)}" if known else "the port that the image EXPOSEs"


def _origin(service: Mapping[str, Any]) -> str:
    build = service.get("build")
    if not build:
        return str(service.get("image", "no image"))
    name = build.get("dockerfile") or "Dockerfile" if isinstance(build, dict) else "Dockerfile"
    return "built from a Dockerfile" if name == "Dockerfile" else f"built from {name}"


def _volumes(app: spec.Application, project: Project) -> Iterator[tuple[str, str]]:
    names = layers.volume_names(app, project)
    begun = _begun(app, project)
    users: dict[str, list[str]] = {}
    for name in begun:
        for mount in project["services"][name].get("volumes") or []:
            source = mount.get("source") or f"without a name, at {mount['target']}"
            how = f"{name} {'reads' if mount.get('read_only') else 'writes'} {mount['target']}"
            users.setdefault(_below(app, source), []).append(how)
    for source, uses in users.items():
        if source in names:
            words = f"lasts as {names[source]}"
            if left_out({"name": app.name, "backup_leave_out": app.backup_leave_out},
                        names[source]):  # fmt: skip
                words += ", in no backup"
        elif source in (project.get("volumes") or {}):
            words = "a volume of the host, which has to be there"
        elif source.startswith("/"):
            words = "a path of the host"
        elif source.startswith("without"):
            words = "new and empty with each release"
        else:
            words = "in the source"
        yield source, f"{words}: {', '.join(uses)}"


def _begun(app: spec.Application, project: Project) -> list[str]:
    """The services that are ever started."""
    begun = dict.fromkeys([*app.stateful, *stores.started(app, project)])
    return [name for name in begun if name in project["services"]]


def _below(app: spec.Application, path: str) -> str:
    """A path in the source as the files write it."""
    inside = app.source and (path == app.source or path.startswith(f"{app.source}/"))
    return f".{path[len(app.source) :]}" if inside else path


def _ports(app: spec.Application, project: Project) -> Iterator[tuple[str, str]]:
    public = {one.service: one for one in app.fronts}
    for name in [one for one in project["services"] if one in _begun(app, project)]:
        service, front = project["services"][name], public.get(name)
        for port in service.get("ports") or []:
            target = int(port["target"])
            if front and target == images.of_files(front, service):
                paths = app.public[name].paths if front.front else ()
                words = f"https://{front.domain}{paths[-1] if paths else ''}, through Caddy"
            else:
                words = f"not published; other services reach it as {name}:{target}"
            if port.get("protocol") == "udp":
                words = "not published: nothing leads UDP from the internet to it"
            published = port.get("published")
            where = f"{f'{published}:' if published else ''}{target}"
            yield f"{name} {where}{'/udp' if port.get('protocol') == 'udp' else ''}", words


def _variables(
    app: Application, described: spec.Application, project: Project
) -> Iterator[tuple[str, str]]:
    for name, value in app.env.items():
        hidden = bool(values.references(text_of(value)))
        yield name, "from env, a secret: it refers to one" if hidden else "from env"
    for name in described.variables:
        if name not in app.env:
            yield name, f"a secret, from {' and '.join(app.env_file)}"
    for name, origin in app.secrets.items():
        as_file = f"/run/secrets/{name}"
        where = f"${name.upper()} and {as_file}" if app.secrets_env else as_file
        # Where a secret comes from is no secret; its command may be long.
        yield where, "a secret, " + ("generated" if origin == "generated" else "given")
    for database, name in app.database_urls.items():
        as_file = f"/run/secrets/{name}"
        where = f"${name.upper()} and {as_file}" if app.secrets_env else as_file
        yield where, f"the address of the database {database}"
    begun = _begun(described, project)
    unset: dict[str, list[str]] = {}
    for name in begun:
        for variable, value in (project["services"][name].get("environment") or {}).items():
            if value is None and variable not in {*app.env, *described.variables}:
                unset.setdefault(variable, []).append(name)
    for variable, services in unset.items():
        yield variable, f"nothing sets it; {', '.join(services)} would pass it on"


def _jobs(app: spec.Application) -> Iterator[tuple[str, str]]:
    for name, job in app.cron.items():
        where = f" in {job['service']}" if job.get("service") else ""
        yield name, f"{job['schedule']}{where}: {' '.join(job['command'])}"


# Notes of a release that the page has in a row of its own.
_ROWS = re.compile(
    r": port [\d, ]+ is not published|: nothing sets \w+, which|: left out \(|: not sta"
)


def _notes(compose: Compose, project: Project) -> Iterable[str]:
    app = compose.app
    notes = [one for one in compose.notes if not _ROWS.search(one)]
    if app.stops_first:
        notes.append("one instance runs: a release stops it before the new one starts, and "
                     "requests wait meanwhile")  # fmt: skip
    notes += dumps.notes(app, project)
    if app.writable:
        notes.append(f"{', '.join(app.writable)}: writable, and empty in each new container")
    yield from dict.fromkeys([*notes, *layers.mended(app, project), *layers.limited(app, project)])


def _number(times: int, what: str) -> str:
    return f"{times} {what}{'s' if times != 1 else ''}"

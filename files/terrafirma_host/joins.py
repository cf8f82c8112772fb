"""Managed by Terrafirma. Services that join the network, processes or volumes of another one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from terrafirma_host import layers, stores
from terrafirma_host.kinds import Service
from terrafirma_host.layers import Project
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application


def refusals(app: Application, name: str, service: Service) -> Iterator[str]:
    """Why a service cannot have the network that its files name."""
    mode = service.get("network_mode") or ""
    public = name in app.public
    key, serves = ("services" if public else "service"), public or name == app.service
    if serves and mode.startswith("service:"):
        other = mode.partition(":")[2]
        way = (f"let {other} be the public service" if public
               else f'service = "{other}", and replicas = 1')  # fmt: skip
        yield (f"{key}: {name} has the network of {other} (network_mode: {mode}), which alone "
               f"can publish its port: {way}")  # fmt: skip
    elif serves and (mode == "none" or mode.startswith("container:")):
        yield (f"{key}: {name} has no network of its own (network_mode: {mode}), so no request "
               "reaches it: leave network_mode out")  # fmt: skip
    if mode != "host" or name in app.stateful:
        return
    what = f"{name} has the host's network (network_mode: host), and two releases"
    if serves:
        way = "leave network_mode out" if public else (
            "leave network_mode out, and write its port in ports")  # fmt: skip
        yield f"{key}: {what} of it would listen on the same ports: {way}"
    else:
        yield (f'stateful: {what} would listen on the same ports: stateful = ["{name}"] if it is '
               f'to run once, or leave_out = ["{name}"]')  # fmt: skip


def refuse(app: Application, project: Project) -> None:
    """Raise Failed where a service joins one that is in another project, or never starts."""
    begun = stores.started(app, project)
    for together in (begun, app.stateful):
        for name in together:
            for key, other in _joined(project, name):
                if other not in project["services"] or other in together:
                    continue
                if name in app.stateful and other in begun:
                    raise Failed(f"{name}: {key} joins {other}, which each release starts anew: "
                                 f"name {other} in stateful, too")  # fmt: skip
                how = "mount its volume by its name" if key == "volumes_from" else (
                    f"it is reached by the name {other}")  # fmt: skip
                raise Failed(f"{name}: {key} joins {other}, which is not started with it: {how}")


def lines(app: Application, project: Project, names: Iterable[str]) -> Iterator[str]:
    """Lines about services that join another one of which several containers run."""
    for name in names:
        for key, other in _joined(project, name):
            if other in project["services"] and key != "volumes_from":
                number = layers.wanted(app, project, other)
                if number > 1 and other not in app.stateful:
                    what = "network" if key == "network_mode" else key
                    yield (f"{name} has the {what} of {other} ({key}), and that of its first "
                           f"container alone: {number} run")  # fmt: skip


def _joined(project: Project, name: str) -> Iterator[tuple[str, str]]:
    """The keys by which a service joins others, with their names."""
    service = project["services"][name]
    for key in ("network_mode", "ipc", "pid"):
        word = service.get(key) or ""
        if word.startswith("service:"):
            yield key, word.removeprefix("service:")
    for one in service.get("volumes_from") or []:
        yield "volumes_from", one.partition(":")[0]

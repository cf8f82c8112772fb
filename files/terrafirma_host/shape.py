"""
Managed by Terrafirma. What follows from the files of a compose project, without a setting.

Whatever differs from `docker compose up` is said in a line. A change of a single service is a line
of our layer, under the key layers.SHAPE of the project.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from terrafirma_host import (
    bundled,
    databases,
    directories,
    joins,
    kinds,
    layer_keys,
    layers,
    mounts,
    replaced,
    stores,
)
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

MOST = 64
"""Containers of a service."""


@dataclass(frozen=True)
class Decided:
    """What follows from the files."""

    app: Application  # with the services that are stateful by themselves
    lines: list[str]  # differences from `docker compose up`
    refusals: list[str]  # one line each
    rewritten: dict[str, list[str]]  # service → variables with other values than in the files


def decide(app: Application, project: dict[str, Any]) -> Decided:
    """What follows from the files; `project` is changed where mounts and networks are others."""
    project[layers.SHAPE] = {}
    lines = [*_not_started(app, project), *directories.replace_mounts(app, project)]
    refusals: list[str] = []
    used = list(dict.fromkeys([*app.stateful, *stores.started(app, project)]))
    for name in used:
        refusals += mounts.refusals(app, name, project["services"][name])
        lines += _mounts(app, project, name)
    found = dict(_stateful(app, project))
    app = replace(app, stateful=(*app.stateful, *found))
    lines += found.values()
    rewritten: dict[str, list[str]] = {}
    if app.database_replaces:
        refusals += replaced.refusals(app, project)
        instead = replaced.replaced(app, project, used)
        app, rewritten = instead.app, instead.rewritten
        project[layers.HOSTS] = instead.names
        lines += instead.lines
    for name in used:
        refusals += joins.refusals(app, name, project["services"][name])
        refusals += _volumes_from(app, project, name)
    lines += joins.lines(app, project, used)
    lines += _networks(project, used)
    lines += _hardware(app, project, used)
    refusals += _addresses(project, used)
    refusals += _numbers(app, project)
    refusals += _short_names(app, project)
    lines += bundled.proxies(app, project)
    if untold := sorted(layers.untold(app, project)):
        lines.append(f"{', '.join(untold)}: no restart policy in the files: started again after "
                     "a failure, and after each end once the release is complete")  # fmt: skip
    return Decided(app, lines, refusals, rewritten)


def refuse(line: str) -> None:
    raise Failed(line)


def named(app: Application) -> set[str]:
    """The services that the settings name."""
    return {
        *(app.service, *app.stateful, *app.leave_out, *app.docker_socket, *app.services),
        *([app.database_replaces] if app.database_replaces else []),
    }


def refuse_unknown(app: Application, project: dict[str, Any]) -> None:
    """Raise Failed, in one line, where the settings name what the files do not have."""
    services = project["services"]
    known = ", ".join(services) or "none"
    for key, names in (
        ("service", [app.service]),
        ("stateful", app.stateful),
        ("leave_out", app.leave_out),
        ("database_replaces", [app.database_replaces] * bool(app.database_replaces)),
        ("docker_socket", app.docker_socket),
        ("services", list(app.services)),
    ):
        for name in names:
            if name not in services:
                raise Failed(f"{key}: the compose files have no service {name!r} ({known})")
    if app.service in app.stateful:
        raise Failed(f"stateful: {app.service} serves HTTP: a release recreates it")
    if app.service in app.absent:
        key = "leave_out" if app.service in app.leave_out else "database_replaces"
        raise Failed(f"{key}: {app.service} serves HTTP: name another one in service")
    for name in app.public:
        if name in app.absent:
            raise Failed(f"leave_out: {name} is public (services): take it out of one of the two")
    _refuse_migration(app, project)
    there = sorted({one for service in services.values() for one in service.get("profiles") or []})
    for name in app.profiles:
        if name not in there:
            raise Failed(f"profiles: the compose files have no profile {name!r} "
                         f"({', '.join(there) or 'none'})")  # fmt: skip


def _refuse_migration(app: Application, project: dict[str, Any]) -> None:
    """Raise Failed where a service that runs once before each release is to run otherwise, too."""
    if not layers.migrates_by_service(app, project):
        return
    (name,) = app.migrate
    for key, names in (
        ("service", {app.service}),
        ("stateful", {*app.stateful}),
        ("leave_out", {*app.leave_out}),
        ("database_replaces", {app.database_replaces}),
        ("services", {*app.public}),
    ):
        if name in names:
            raise Failed(f"migrate: the service {name} runs once before each release, and {key} "
                         "names it, too: take it out of one of the two")  # fmt: skip


def _not_started(app: Application, project: dict[str, Any]) -> Iterator[str]:
    if app.leave_out:
        yield f"{', '.join(app.leave_out)}: left out (leave_out)"
    begun = {*app.stateful, *app.absent, *stores.started(app, project)}
    for name, service in project["services"].items():
        if name not in begun:
            profiles = ", ".join(service.get("profiles") or [])
            yield f"{name}: not started: its profile ({profiles}) is not in profiles"


def _numbers(app: Application, project: dict[str, Any]) -> Iterator[str]:
    """Refusals of services of which more containers would run than a host could start."""
    for name in layers.slot_services(app, project):
        service = project["services"][name]
        if layers.wanted(app, project, name) > MOST:
            key = "scale" if "scale" in service else "replicas"
            yield (f"{name}: {key}: {layers.times(service)} containers, and a service has at most "
                   f"{MOST}: write 1 to {MOST}")  # fmt: skip


def _short_names(app: Application, project: dict[str, Any]) -> Iterator[str]:
    for key, name in layers.volume_names(app, project).items():
        if len(name) < 2:
            yield (f"volumes: {key}: Docker takes names of two letters and more, not {name!r}: "
                   "take a longer one")  # fmt: skip


# --- services that run once -----------------------------------------------------------------------


def _stateful(app: Application, project: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The services that are stateful by themselves, and why."""
    begun = stores.started(app, project)
    ends = {*app.migrate, *layers.ending(app, project)}
    web = kinds.tagged(project["services"][app.service].get("image") or "")
    for name in begun:
        service = project["services"][name]
        if name in (app.service, *app.public, *app.scratch, *ends):
            continue
        image = databases.database(project, name)
        own = [one for one in stores.of_service(app, project, name) if one.key]
        if image and not any(stores.shared(app, one) for one in own):
            yield name, (f"{name} runs {image}, a database by its name: it is stateful, and no "
                         "release recreates it")  # fmt: skip
        elif (
            own
            and not kinds.builder(project["services"], name)
            and kinds.tagged(service.get("image") or "") != web
            and not any(stores.shared(app, one) or _is_shared(app, project, one) for one in own)
        ):
            keys = ", ".join(dict.fromkeys(one.key for one in own))
            yield name, (f"{name} alone writes {keys}, and is not built here: it is stateful, and "
                         "no release recreates it")  # fmt: skip


def _is_shared(app: Application, project: dict[str, Any], store: stores.Store) -> bool:
    """Whether another service writes a store."""
    return any(
        stores.overlap(other.place, store.place)
        for name in (*app.stateful, *stores.started(app, project))
        if name != store.service
        for other in stores.of_service(app, project, name)
        if other.key
    )


# --- mounts ---------------------------------------------------------------------------------------


def _mounts(app: Application, project: dict[str, Any], name: str) -> list[str]:
    service = project["services"][name]
    volumes = dict(project.get("volumes") or {})
    found = mounts.changed(app, name, service, volumes)
    if found.lines:
        project["volumes"] = volumes
        service["volumes"] = found.mounts
        _set(project, name, "volumes", _override(found.mounts))
    return found.lines


def _volumes_from(app: Application, project: dict[str, Any], name: str) -> Iterator[str]:
    """
    A service of a slot mounts the volumes of a stateful one by their names.

    The two are in different projects, so `volumes_from` finds nothing.
    """
    service = project["services"][name]
    kept, taken = [], []
    for words in service.get("volumes_from") or []:
        other, _, mode = words.partition(":")
        apart = (other in app.stateful) != (name in app.stateful)
        if other not in project["services"] or not apart:
            kept.append(words)
            continue
        for mount in project["services"][other].get("volumes") or []:
            if mount["type"] == "volume" and not mount.get("source"):
                yield (f"{name}: volumes_from takes over {mount['target']} of {other}, a volume "
                       "without a name: give it a name")  # fmt: skip
                continue
            taken.append({**mount, **({"read_only": True} if mode.startswith("ro") else {})})
    if not taken:
        return
    there = {one["target"] for one in service.get("volumes") or []}
    service["volumes"] = [*(service.get("volumes") or []),
                          *(one for one in taken if one["target"] not in there)]  # fmt: skip
    service["volumes_from"] = kept
    _set(project, name, "volumes", _override(service["volumes"]))
    _set(project, name, "volumes_from", _override(kept) if kept else layer_keys.GONE)


# --- networks -------------------------------------------------------------------------------------


def _networks(project: dict[str, Any], used: Collection[str]) -> Iterator[str]:
    """Names and addresses in the networks: a container's name is one of its service's names."""
    fixed = _fixed(project, used)
    for name in dict.fromkeys(used):
        service = project["services"][name]
        given = service.get("container_name")
        entries = {}
        for key, entry in (service.get("networks") or {}).items():
            network = (project.get("networks") or {}).get(key) or {}
            if network.get("external"):
                continue
            found = {}
            if given and given != name and given not in project["services"]:
                found["aliases"] = _text([given])
            for word in ("ipv4_address", "ipv6_address"):
                if (entry or {}).get(word):
                    found[word] = layer_keys.GONE
            if found:
                inner = ", ".join(f"{_text(word)}: {value}" for word, value in found.items())
                entries[key] = f"{{{inner}}}"
        if entries:
            inner = ", ".join(f"{_text(key)}: {value}" for key, value in entries.items())
            _set(project, name, "networks", f"{{{inner}}}")
    own = [
        key
        for key, network in (project.get("networks") or {}).items()
        if ((network or {}).get("ipam") or {}).get("config") and not network.get("external")
    ]
    if own or fixed:
        what = ", ".join(own) or "networks"
        yield f"{what}: addresses are the engine's choice, because two releases run at once"
    for key in own:
        project["networks"][key]["ipam"] = {}


def _hardware(app: Application, project: dict[str, Any], used: Collection[str]) -> Iterator[str]:
    """Hardware addresses: containers of one network that share one do not reach each other."""
    for name in used:
        service = project["services"][name]
        networks = service.get("networks") or {}
        given = [key for key, entry in networks.items() if (entry or {}).get("mac_address")]
        if name in app.stateful or not (given or service.get("mac_address")):
            continue
        if service.get("mac_address"):
            _set(project, name, "mac_address", layer_keys.GONE)
        if given:
            kept = {
                key: {word: one for word, one in (entry or {}).items()
                      if word not in ("mac_address", "ipv4_address", "ipv6_address")}
                for key, entry in networks.items()
            }  # fmt: skip
            alias = service.get("container_name")
            for entry in kept.values() if alias and alias not in project["services"] else ():
                entry["aliases"] = [*(entry.get("aliases") or []), alias]
            _set(project, name, "networks", _override(kept))
        yield (f"{name}: mac_address is the engine's choice, because several containers run at "
               "once")  # fmt: skip


def _fixed(project: dict[str, Any], used: Collection[str]) -> dict[str, str]:
    """The addresses that the files give to services."""
    return {
        str(entry[word]): name
        for name in used
        for key, entry in (project["services"][name].get("networks") or {}).items()
        if not ((project.get("networks") or {}).get(key) or {}).get("external")
        for word in ("ipv4_address", "ipv6_address")
        if (entry or {}).get(word)
    }


def _addresses(project: dict[str, Any], used: Collection[str]) -> Iterator[str]:
    """Refusals of services that reach another one by an address that it has not."""
    for address, name in _fixed(project, used).items():
        for other in used:
            service = {key: value for key, value in project["services"][other].items()
                       if key != "networks"}  # fmt: skip
            if re.search(rf"(?<![\d.]){re.escape(address)}(?![\d.])", json.dumps(service)):
                yield (f"{other}: {address} is the address of {name} in the files, which two "
                       f"releases cannot both have: reach it as {name}")  # fmt: skip


def absent_networks(project: dict[str, Any], absent: Iterable[str]) -> list[str]:
    """External networks that are not on the host become the project's own; lines about them."""
    lines = []
    for key in absent:
        network = project["networks"][key]
        lines.append(f"the external network {network.get('name', key)} is not on this host: the "
                     "project has one of its own")  # fmt: skip
        project["networks"][key] = {"name": f"{project['name']}_{key}"}
    return lines


# --- lines of the layer ---------------------------------------------------------------------------


def _set(project: dict[str, Any], service: str, key: str, text: str) -> None:
    project[layers.SHAPE].setdefault(service, {})[key] = text


def _override(value: Any) -> str:
    return f"!override {_text(value)}"


def _text(value: Any) -> str:
    # What Compose prints has its dollar signs doubled already.
    return json.dumps(value)

"""
Managed by Terrafirma. The stores that outlive a container, and which services may write them.

Pure functions of `docker compose config` and of the VOLUMEs of images. Two releases run at once
while one takes over: a service that each release starts anew then runs twice.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from terrafirma_host import kinds, layers
from terrafirma_host.databases import DATA, database
from terrafirma_host.layers import Project
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

# Files and directories of a host that containers often mount, and that hold no data.
SYSTEM = tuple(
    "/dev /proc /sys /run /var/run /tmp/.X11-unix /lib/modules /usr/share/zoneinfo /etc/localtime"
    " /etc/timezone /etc/machine-id /etc/hostname /etc/hosts /etc/resolv.conf /etc/passwd"
    " /etc/group /etc/os-release".split()
)

# Names of volumes and directories with files that one process after the other adds.
FILES = re.compile(
    r"upload|media|static|asset|attachment|avatar|image|photo|document|public|backup|export|log\b"
)
SAID = 3
"""Places of a service that a message names; of more, the number is said."""

# The reason in a message where only an image's name tells that it is a database.
BY_NAME = "(by the image's name it is a database)"


@dataclass(frozen=True)
class Store:
    """A directory or volume that a service can write, and that outlives its container."""

    service: str
    target: str  # the path in the container
    key: str  # its name in the compose files: the key of a volume, or a path; "": anonymous
    place: str  # equal for two names of one store: a path of the host, or the name of a volume

    def __str__(self) -> str:
        what = "the directory" if self.key.startswith("/") else "the volume"
        return f"{self.service} writes {what} {self.key}"


def started(app: Application, project: Project) -> list[str]:
    """The services that each release starts, its migration included."""
    once = list(app.migrate) if layers.migrates_by_service(app, project) else []
    return [*layers.slot_services(app, project), *once]


def of_services(app: Application, project: Project, names: Iterable[str]) -> list[Store]:
    """The stores that these services write, without anonymous volumes."""
    return [
        store for name in names for store in of_service(app, project, name) if store.key
    ]  # fmt: skip


def of_service(
    app: Application, project: Project, name: str, seen: frozenset[str] = frozenset()
) -> list[Store]:
    """The stores that a service writes, also by `volumes_from`."""
    service = project["services"].get(name) or {}
    found = []
    for mount in service.get("volumes") or []:
        source = mount.get("source") or ""
        read_only = mount.get("read_only") or mount["type"] in ("tmpfs", "npipe", "image")
        if read_only or (mount["type"] == "bind" and is_system(source)):
            continue
        place = source
        if mount["type"] == "bind":
            place = place_of_path(source)
        elif source:
            volume = (project.get("volumes") or {}).get(source) or {}
            real = layers.volume_names(app, project).get(source) or volume.get("name", source)
            place = place_of_volume(real, volume.get("driver_opts") or {})
        found.append(Store(name, mount["target"], source, place))
    for words in service.get("volumes_from") or []:
        other, _, mode = words.removeprefix("container:").partition(":")
        if mode.split(",")[0] == "ro" or other in seen:
            continue
        if words.startswith("container:"):
            raise Failed(f"{name}: volumes_from takes over what the container {other} writes: "
                         "mount the volume by its name")  # fmt: skip
        taken = of_service(app, project, other, seen | {name})
        found += [Store(name, one.target, one.key, one.place) for one in taken]
    return found


def place_of_path(path: str) -> str:
    """The place of a host's path, with links resolved."""
    real = os.path.realpath(path)
    volume = re.search(r"/volumes/([^/]+)/_data(/|$)", real)
    return volume[1] if volume else real


def place_of_volume(name: str, options: Mapping[str, Any]) -> str:
    """The place of a volume: several volumes may stand for one directory, or one NFS export."""
    device, words = str(options.get("device") or ""), str(options.get("o") or "").split(",")
    kind = str(options.get("type") or "")
    if device.startswith("/") and kind != "tmpfs":
        return os.path.realpath(device)
    if device and kind != "tmpfs":
        server = next((word for word in words if word.startswith("addr=")), "")
        return f"{kind.rstrip('4')} {server} {device}"
    return name


def is_system(path: str) -> bool:
    """Whether a path of the host is a socket, a device or a setting, and holds no data."""
    return path.endswith(".sock") or any(PurePosixPath(path).is_relative_to(one) for one in SYSTEM)


def overlap(first: str, second: str) -> bool:
    """Whether two places are the same, or one is inside the other."""
    one, other = PurePosixPath(first), PurePosixPath(second)
    return one == other or (
        first.startswith("/")
        and second.startswith("/")
        and (one.is_relative_to(other) or other.is_relative_to(one))
    )


def shared(app: Application, store: Store) -> bool:
    """Whether your settings allow several containers to write this store at once."""
    # Several replicas write the volumes of the settings, unless there is never more than one.
    return (store.key in app.volumes and not app.stops_first) or any(
        store.key == entry
        or (entry.startswith("/") and PurePosixPath(store.key).is_relative_to(entry))
        for entry in app.shared
    )


def uncovered(service: Mapping[str, Any], volumes: Iterable[str]) -> list[str]:
    """The VOLUMEs of an image without a mount: each new container begins with them empty."""
    mounts = [mount["target"] for mount in service.get("volumes") or []]
    mounts += [one.partition(":")[0] for one in kinds.words_of(service, "tmpfs")]
    covered = {posixpath.normpath(one) for one in mounts}
    return sorted(one for one in volumes if posixpath.normpath(one) not in covered)


# --- what is refused ------------------------------------------------------------------------------


def refuse(app: Application, project: Project) -> None:
    """Raise Failed, in one line, where two containers would write a store that is not shared."""
    _refuse_unknown(app, project)
    _refuse_replicas(app)
    names = started(app, project)
    lasting = of_services(app, project, app.stateful)
    written = of_services(app, project, names)
    _refuse_writes_into_source(app, [*lasting, *written])
    _refuse_shared_databases(app, project, [*lasting, *written])
    _refuse_databases(app, project, names)
    _refuse_two_services(app, project, lasting, written)
    _refuse_several(app, project, lasting)
    ends = {*app.migrate} | layers.ending(app, project)
    own = [store for store in written if not shared(app, store)]
    if app.stops_first:
        # One release runs at a time, as with `docker compose up`.
        _refuse_several(app, project, [one for one in own if one.service != app.service], "shared")
        own = []
    if web := [store for store in own if store.service in (app.service, *app.public)]:
        web = [store for store in web if store.service == web[0].service]
        several = (
            f"shared = {_list(store.key for store in web)} if several processes may write there"
        )
        single = "" if web[0].service == app.service else f" and {_once(web[0].service)}"
        one = f'strategy = "stop-first"{single} if only one process may write there, as with SQLite'
        # Files that visitors upload have names of their own; anything else may be a database.
        files = all(FILES.search(f"{store.key} {store.target}") for store in web)
        ways = f"{several}, or {one}" if files else f"{one}, or {several}"
        raise Failed(
            f"shared: {_said(web)}, and two releases of it run at once: {ways}; else keep it in "
            "PostgreSQL, or in a service of its own that stateful names"
        )
    if lasts := [store for store in own if store.service not in ends]:
        raise Failed(
            f"stateful: {_said(lasts)}, and two releases run at once: "
            f"stateful = {_list(store.service for store in lasts)} for what runs once, or "
            f"shared = {_list(store.key for store in lasts)} for what several containers may "
            "write at once"
        )
    if own:
        keys, once = _list(store.key for store in own), {one.service for one in own}
        way = f", or stateful = {_list(sorted(once))} for what no release runs again"
        raise Failed(
            f"shared: {_said(own)} and ends, and each release runs it while the one before "
            f"serves: shared = {keys} if it may write there then"
            f"{'' if once & {*app.migrate} else way}"
        )
    for name in names:
        paths = [one.target for one in of_service(app, project, name) if not one.key]
        refuse_nameless(app, name, paths)


def refuse_nameless(app: Application, name: str, paths: Sequence[str]) -> None:
    """Raise Failed where each release of a service would begin with an empty directory."""
    if not paths or name in app.scratch:
        return
    ways = f'scratch = ["{name}"] if what is written there may be lost'
    if name == app.service:
        named = json.dumps({volume_key(path): path for path in paths})
        ways = f"volumes = {named} keeps it; {ways}"
    else:
        ways = f"mount a volume with a name there, and stateful or shared; {ways}"
    raise Failed(
        f"scratch: {name} has a volume without a name at {' and '.join(paths)}, which is new "
        f"and empty with each release: {ways}"
    )


def volume_key(path: str) -> str:
    """A name for a volume at a path of a container."""
    return re.sub("[^a-z0-9_.-]", "-", posixpath.basename(path).lower()).lstrip("_.-") or "data"


def _refuse_unknown(app: Application, project: Project) -> None:
    binds = [
        mount.get("source", "")
        for service in project["services"].values()
        for mount in service.get("volumes") or []
        if mount["type"] == "bind"
    ]
    volumes = list(project.get("volumes") or {})
    for entry in app.shared:
        below = [one for one in binds if PurePosixPath(one).is_relative_to(entry)]
        if entry not in volumes and not (entry.startswith("/") and below):
            known = ", ".join(sorted({*volumes, *binds})) or "none"
            raise Failed(f"shared: the compose files mount no {entry!r} ({known})")
    for name in app.scratch:
        if name not in project["services"]:
            known = ", ".join(project["services"])
            raise Failed(f"scratch: the compose files have no service {name!r} ({known})")


def _refuse_writes_into_source(app: Application, stores: Sequence[Store]) -> None:
    for store in stores:
        if app.source and PurePosixPath(store.key).is_relative_to(app.source):
            raise Failed(
                f"{store.service}: what it writes into {store.target} would go with its source: "
                "use a volume, an absolute path, or `:ro`"
            )


def _refuse_shared_databases(app: Application, project: Project, stores: Sequence[Store]) -> None:
    for store in stores:
        if shared(app, store) and _is_data(app, project, store):
            image = database(project, store.service)
            raise Failed(
                f"shared: {store} as {image}, which no second process may write {BY_NAME}: "
                f"take {store.key} out of shared, name {store.service} in stateful, and "
                f"mount it `:ro` in others; scratch = {_list([store.service])} if it is no database"
            )


def _refuse_databases(app: Application, project: Project, names: Sequence[str]) -> None:
    found = []
    for name in names:
        image = database(project, name)
        if not image or name in app.scratch or _is_client(app, project, name):
            continue
        if name == app.service and app.stops_first:
            continue
        keys = [store.key for store in of_service(app, project, name) if store.key]
        volume = f" on the volume {', '.join(keys)}" if keys else ""
        if name == app.service:
            raise Failed(
                f"service: {name} runs {image}{volume}, and two releases of it run at once: "
                f'strategy = "stop-first", or scratch = ["{name}"] if each may have its own, empty '
                f"store {BY_NAME}"
            )
        found.append((name, f"{name} runs {image}{volume}", bool(keys)))
    if found:
        ways = f"stateful = {_list(name for name, *_ in found)} for what lasts"
        if empty := [name for name, _, named in found if not named]:
            ways += f", or scratch = {_list(empty)} where each release may have its "
            ways += "own, empty store"
        if kept := [name for name, _, named in found if named]:
            ways += f", or scratch = {_list(kept)} if it is no database"
        said = " and ".join(words for _, words, _ in found)
        raise Failed(f"stateful: {said}, and two releases run at once {BY_NAME}: {ways}")


def _refuse_two_services(
    app: Application, project: Project, lasting: Sequence[Store], written: Sequence[Store]
) -> None:
    for number, one in enumerate(lasting):
        for other in (*lasting[number + 1 :], *written):
            apart = one.service == other.service or not overlap(one.place, other.place)
            if apart or shared(app, one) or shared(app, other):
                continue
            both = (one.service, other.service)
            prepares = _ends_before(project, *both[::-1])
            if other in lasting and (prepares or _ends_before(project, *both)):
                continue
            if prepares:
                way = f"name {other.service} in stateful, too"
            else:
                plain = [name for name in both if not database(project, name)]
                way = f"mount it `:ro` in {plain[0] if len(plain) == 1 else 'one of them'}"
                if not any(_is_data(app, project, store) for store in (one, other)):
                    way += f", or shared = {_list([one.key])} if several may write at once"
            raise Failed(f"shared: {one}, and {other.service} writes there too: {way}")


def _ends_before(project: Project, first: str, second: str) -> bool:
    """Whether the second service starts only after the first has done its work."""
    waits = project["services"][second].get("depends_on") or {}
    return bool(waits.get(first, {}).get("condition") == "service_completed_successfully")


def _is_data(app: Application, project: Project, store: Store) -> bool:
    """Whether a store is the data directory of a database, not a socket or copies."""
    name = store.service
    asks = name in app.scratch or _is_client(app, project, name)
    known = bool(database(project, name)) and not asks
    return known and any(overlap(store.target, one) for one in DATA)


def _refuse_several(
    app: Application, project: Project, written: Sequence[Store], key: str = "stateful"
) -> None:
    for store in written:
        times = layers.wanted(app, project, store.service)
        if times > 1 and not shared(app, store):
            service = store.service
            own = service in app.public or app.setting(service, "replicas")
            way = _once(service) if own else "`replicas: 1` in its file"
            if not _is_data(app, project, store):
                way += f", or shared = {_list([store.key])} if several may write at once"
            raise Failed(f"{key}: {store}, and runs {times} times: {way}")


def _refuse_replicas(app: Application) -> None:
    for name in app.stateful:
        if (number := app.setting(name, "replicas") or 1) > 1:
            raise Failed(f"services: {name} is stateful, and one container of it runs: leave its "
                         f"replicas ({number}) out")  # fmt: skip


def _once(service: str) -> str:
    """The line of your settings with which one container of a service runs."""
    return f"services = {json.dumps({service: {'replicas': 1}})}"


def _is_client(app: Application, project: Project, name: str) -> bool:
    """Whether a database's image runs as a client: with its own command, and it ends by itself."""
    service = project["services"][name]
    ends = name in layers.once(app, project) or name in app.migrate
    return ends and bool(service.get("command") or service.get("entrypoint"))


def _said(stores: Sequence[Store]) -> str:
    """What is written, in a line that stays short: the first places of each service."""
    said = []
    for service in dict.fromkeys(store.service for store in stores):
        first, *rest = [store for store in stores if store.service == service]
        words = f"{first} (at {first.target})"
        words += "".join(f", {one.key} (at {one.target})" for one in rest[: SAID - 1])
        if more := rest[SAID - 1 :]:
            words += f" and {len(more)} more"
        said.append(words)
    return " and ".join(said)


def _list(words: Iterable[str]) -> str:
    """A list as your settings write it."""
    return json.dumps(list(dict.fromkeys(words)))

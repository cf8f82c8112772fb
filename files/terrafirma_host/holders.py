"""
Managed by Terrafirma. Which containers write a store now: a stateful service never runs twice.

The engine is asked, whatever the files say: an earlier release, another application or a container
started by hand may write there. When a service becomes stateful, its container of an earlier
release is stopped, and it starts again on the same store and under the same name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from terrafirma_host import engine, layers, stateful, stores, volumes
from terrafirma_host.compose import Compose
from terrafirma_host.layers import Project
from terrafirma_host.shell import Failed, run, say, succeeds, write
from terrafirma_host.spec import Application, description, names
from terrafirma_host.stores import Store

Inspected = Mapping[str, Any]
"""The output of `docker container inspect` for one container."""

# Seconds that a database may take to stop cleanly; Docker kills it after that.
GRACE = 60

# A file in the directory of an application: the containers that are stopped while services move.
MOVING = "moving"

SERVICE = "com.docker.compose.service"
PROJECT = "com.docker.compose.project"


def refuse_images(app: Application, project: Project, images: Mapping[str, str]) -> None:
    """Raise Failed where an image has a VOLUME that no mount covers: empty in each release."""
    wanted = {name: images[name] for name in stores.started(app, project) if name in images}
    known = {
        tag: (one.get("Config") or {}).get("Volumes") or {}
        for one in engine.inspect("image", sorted({*wanted.values()}))
        for tag in one.get("RepoTags") or []
    }
    for name, image in wanted.items():
        service = project["services"][name]
        stores.refuse_nameless(app, name, stores.uncovered(service, known.get(image, {})))


def start_state(compose: Compose, project: Project, slot: str, leaves: str = "") -> None:
    """
    Start the stateful services, and connect them to the networks of a slot.

    + leaves: the compose project whose containers stop before the services of the slot start
    """
    app = compose.app
    moved = in_the_way(app, project, leaves)
    before = {one.id for one in engine.containers(app.project("state"))} if app.stateful else set()
    stateful.make_networks(app, project, slot)
    volumes.make(app, project)
    if moved:
        # Fetch and build images before anything stops.
        layer = compose.layer("state", layers.state_layer(app, project))
        compose.fetch(app.project("state"), layer, "up", "--no-start", "--no-recreate")
        # Noted before the first one stops: after a kill, the next release knows the containers.
        write(app.directory / MOVING, "".join(f"{one['Id']}\n" for one in moved), 0o600)
    try:
        for one in moved:
            _stop(app, one)
        stateful.start(compose, project)
        stateful.join(app, project, slot)
        for one in moved:
            _take_place(app, one)
    except BaseException:
        for one in moved:
            _come_back(app, one)
        _forget(app)
        raise
    for one in moved:
        succeeds("docker", "rm", one["Id"])
    _forget(app)
    if app.stateful:
        _say_nameless(app, before)


def _say_nameless(app: Application, before: set[str]) -> None:
    """Warn of anonymous volumes of new stateful containers: they last as long as the container."""
    new = [one.id for one in engine.containers(app.project("state")) if one.id not in before]
    for one in engine.inspect("container", new):
        for mount in one.get("Mounts") or []:
            if _is_nameless(mount):
                say(f"{_label(one, SERVICE)}: its data in {mount['Destination']} lasts as long as "
                    "its container: mount a volume with a name there")  # fmt: skip


def settle(app: Application) -> None:
    """Finish or undo the move of a service that a killed release began, so that it runs."""
    try:
        moved = (app.directory / MOVING).read_text().split()
    except FileNotFoundError:
        return
    # Only containers that a move stopped: one that ended otherwise is left as it is.
    for one in engine.inspect("container", moved):
        there = engine.containers(app.project("state"), _label(one, SERVICE))
        if any(new.state == "running" for new in there):
            _take_place(app, one)
            succeeds("docker", "rm", one["Id"])
        else:
            _come_back(app, one)
    _forget(app)


def _forget(app: Application) -> None:
    (app.directory / MOVING).unlink(missing_ok=True)


def in_the_way(app: Application, project: Project, leaves: str = "") -> list[Inspected]:
    """
    The containers of earlier releases that use the store of a service that becomes stateful.

    Raises Failed where another container writes a store that a service has to itself.
    """
    there = engine.containers(app.project("state")) if app.stateful else []
    gone = ("created", "exited", "dead")
    # A service that has done its work is not started again.
    runs = {one.service for one in there if one.done or one.state not in gone}
    lasting = [name for name in app.stateful if name not in runs]
    begun = stores.started(app, project)
    written = stores.of_services(app, project, [*lasting, *begun])
    if not (written or lasting or there):
        return []
    running = _running()
    _refuse_left(app, running, begun)
    conflicts = _conflicts(running, written)
    moving = [one for one in running if _in_slot(app, one) and _label(one, SERVICE) in lasting]
    found: dict[str, Inspected] = {}
    for one, _, store in conflicts:
        theirs = _label(one, "terrafirma.app")
        if stores.shared(app, store) and (theirs in ("", app.name) or _shares(theirs, store)):
            continue
        if one in moving:
            # It stops before any stateful service starts.
            found[one["Id"]] = one
            continue
        if leaves and _label(one, PROJECT) == leaves and store.service not in app.stateful:
            continue
        name = _name(one)
        way = (
            f"end that container first (`docker stop {name}`; where it serves, after "
            f"`terrafirma maintenance {app.name} on`)"
            if theirs in ("", app.name)
            else f"only one of the two may, unless shared of both names {store.key}"
        )
        raise Failed(f"{store}, and the container {name} writes there now: {way}")
    for one in moving:
        _refuse_another_place(app, project, one, conflicts)
    return [*found.values()]


def _running() -> list[Inspected]:
    ids = run("docker", "ps", "--quiet", "--no-trunc", timeout=engine.PROMPT).split()
    # For a moment Docker lists a container that has just stopped.
    return [
        one
        for one in engine.inspect("container", ids)
        if "Id" in one and one.get("State", {}).get("Status") not in ("exited", "dead")
    ]


def _conflicts(
    running: Sequence[Inspected], written: Sequence[Store]
) -> list[tuple[Inspected, Mapping[str, Any], Store]]:
    """Containers that write one of these stores, with the mount and the store."""
    mounts = [
        (one, mount) for one in running for mount in one.get("Mounts") or [] if mount.get("RW")
    ]
    volumes = {mount.get("Name") for _, mount in mounts} | {one.place for one in written}
    known = engine.inspect("volume", sorted(one for one in volumes if one and "/" not in one))
    # Two volumes may stand for one place, so compare places and not names.
    places = {one["Name"]: stores.place_of_volume(one["Name"], one.get("Options") or {})
              for one in known if "Name" in one}  # fmt: skip
    found = []
    for one, mount in mounts:
        name = mount.get("Name")
        place = places.get(name, name) if name else stores.place_of_path(mount.get("Source", ""))
        found += [
            (one, mount, store)
            for store in written
            if stores.overlap(place, places.get(store.place, store.place))
        ]
    return found


def _refuse_left(app: Application, running: Sequence[Inspected], begun: Sequence[str]) -> None:
    """Raise Failed where a slot would start a service that still runs as a stateful one."""
    for one in running:
        service, name = _label(one, SERVICE), _name(one)
        if _label(one, PROJECT) == app.project("state") and service in begun:
            raise Failed(
                f"stateful: {service} still runs as {name}, and is no longer named: name it "
                f"again, or end it first (`docker rm --force {name}`; its volumes stay)"
            )


def _refuse_another_place(
    app: Application, project: Project, one: Inspected,
    conflicts: Sequence[tuple[Inspected, Mapping[str, Any], Store]],
) -> None:  # fmt: skip
    """Raise Failed where a service would lose its data because its mount has another source."""
    service, name = _label(one, SERVICE), _name(one)
    kept = {
        mount["Destination"]
        for other, mount, store in conflicts
        if other is one and store.service == service and store.target == mount["Destination"]
    }
    for mount in one.get("Mounts") or []:
        lasts = mount.get("RW") and mount.get("Type") in ("volume", "bind")
        there = mount.get("Name") or mount.get("Source", "")
        if not lasts or stores.is_system(there) or _is_empty(mount):
            continue
        if mount["Destination"] not in kept:
            raise Failed(
                f"stateful: {name} has written to {mount['Destination']}, which is {there}, "
                f"and {service} would have another place there: mount that one (a volume with "
                "`external: true` and its name), or copy it and stop the container first"
            )


def _is_nameless(mount: Mapping[str, Any]) -> bool:
    return bool(re.fullmatch("[0-9a-f]{64}", mount.get("Name") or ""))


def _is_empty(mount: Mapping[str, Any]) -> bool:
    """Whether a mount is an anonymous volume without a file."""
    path = Path(mount.get("Source") or "/")
    return _is_nameless(mount) and path.is_dir() and not any(rest[1] for _, *rest in os.walk(path))


def _shares(application: str, store: Store) -> bool:
    """Whether another application also shares this store between containers."""
    if application not in names():
        return False
    try:
        other = Application.load(application)
    except Failed:
        # Described by the version before, which has compared the two, until its turn in a deploy.
        return bool(description(application).get("shared"))
    project = Compose(other).project()
    theirs = stores.of_services(other, project, project["services"])
    return all(
        stores.shared(other, one) for one in theirs if stores.overlap(one.place, store.place)
    )


def _stop(app: Application, one: Inspected) -> None:
    service = _label(one, SERVICE)
    patience = max(app.setting(service, "stop_seconds") or app.stop_seconds, GRACE)
    say(f"{service} becomes stateful: {_name(one)} stops, and the service starts "
        "again on the same store; until then it does not answer")  # fmt: skip
    run("docker", "stop", "--time", str(patience), one["Id"], timeout=patience + engine.PROMPT)


def _take_place(app: Application, one: Inspected) -> None:
    """Connect the new stateful container to the networks of the stopped one, under its names."""
    service = _label(one, SERVICE)
    for new in engine.containers(app.project("state"), service):
        (inspected,) = engine.inspect("container", [new.id])
        connected = inspected["NetworkSettings"]["Networks"]
        for network, how in one["NetworkSettings"]["Networks"].items():
            if network not in connected:
                aliases = sorted({service, _name(one), *(how.get("Aliases") or [])})
                words = [f"--alias={alias}" for alias in aliases]
                run("docker", "network", "connect", *words, network, new.id)


def _come_back(app: Application, one: Inspected) -> None:
    """Start the stopped container again, and stop the one that was to replace it."""
    there = [new.id for new in engine.containers(app.project("state"), _label(one, SERVICE))]
    for new in engine.inspect("container", there):
        succeeds("docker", "stop", "--time", str(GRACE), new["Id"])
        if new["Created"] > one["Created"]:
            # It was made for this move: the next release makes another one from its files.
            succeeds("docker", "rm", "--force", new["Id"])
    say(f"starting {_name(one)} again")
    run("docker", "start", one["Id"], timeout=engine.PROMPT)


def _in_slot(app: Application, one: Inspected) -> bool:
    own = _label(one, "terrafirma.app") == app.name
    return own and _label(one, PROJECT) in {app.project(slot) for slot in app.slots}


def _name(one: Inspected) -> str:
    return str(one["Name"]).lstrip("/")


def _label(one: Inspected, name: str) -> str:
    return str(((one.get("Config") or {}).get("Labels") or {}).get(name, ""))

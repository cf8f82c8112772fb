"""
Managed by Terrafirma. The layers that Compose merges over a project so that it runs in production.

Pure functions of the application's description and of `docker compose config`. The project's own
files stay as they are: Compose merges ours over them. JSON is YAML, and `!reset` and `!override`
are Compose's tags for keys that a layer removes or replaces.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from terrafirma_host import directories, kinds, layer_keys, layer_variables, values
from terrafirma_host import images as images_of
from terrafirma_host.kinds import policy
from terrafirma_host.layer_keys import GONE, as_json
from terrafirma_host.spec import Application

Project = Mapping[str, Any]
"""The output of `docker compose config --format json`."""

HOSTS = "x-terrafirma-hosts"
"""Key of a project with further names that lead to the host."""
SHAPE = "x-terrafirma"
"""Key of a project with the lines of our layer by which shape.py changes single services."""


def own_project(app: Application) -> str:
    """The project of an application without compose files: one service with few privileges."""
    service = {
        "image": "set-by-the-layer",
        "init": True,
        # An entry point that begins as root needs Docker's other capabilities, to prepare
        # directories and then to change to its user.
        "cap_drop": ["ALL"] if app.user else ["MKNOD", "NET_RAW", "SETFCAP"],
    }
    if app.source:
        build: dict[str, Any] = {"context": app.source}
        if app.dockerfile:
            build["dockerfile"] = app.dockerfile
        if app.target:
            build["target"] = app.target
        if app.build_args:
            # Escaped, so that Compose does not read a dollar sign as a variable.
            build["args"] = {name: str(value).replace("$", "$$")
                             for name, value in app.build_args.items()}  # fmt: skip
        service["build"] = build
    if app.user:
        service["environment"] = {"HOME": layer_variables.HOME}
    networks = {"default": {"name": app.network, "external": True}}
    return json.dumps({"services": {app.service: service}, "networks": networks}, indent=2) + "\n"


def slot_services(app: Application, project: Project) -> list[str]:
    """The services that each release starts anew."""
    once = set(app.migrate) if migrates_by_service(app, project) else set()
    return [
        name
        for name, service in project["services"].items()
        if name not in {*app.stateful, *once, *app.absent}
        # A service that your settings name needs no profile.
        and (name in {app.service, *app.public} or kinds.has_profile(service, app.profiles))
    ]


def once(app: Application, project: Project) -> set[str]:
    """The services of a slot that end when they have done their work."""
    return ending(app, project).intersection(slot_services(app, project))


def ending(app: Application, project: Project) -> set[str]:
    """
    The services that may end.

    The files say so by a restart policy, or by another service that waits for the end. A service
    that serves may not end: the web service, a stateful one, or one that others need healthy.
    """
    public = {one.service for one in app.fronts}
    serving = {*public, *app.stateful, *awaited(project, "service_healthy")}
    named = {
        name
        for name, one in project["services"].items()
        if policy(one) or (name not in app.stateful and kinds.looks_once(name, one))
    } - serving
    return (named | awaited(project, "service_completed_successfully")) - public


def awaited(project: Project, condition: str) -> set[str]:
    """The services that others wait for with this condition."""
    return kinds.awaited(project["services"], condition)


def untold(app: Application, project: Project) -> set[str]:
    """
    The services of a slot whose files have no restart policy, and do not say whether they end.

    Such a service begins with `on-failure`: one that ends with success has done its work. One that
    still runs when the release is complete gets `unless-stopped`, see slots.settle_policies.
    """
    public = {one.service for one in app.fronts}
    known = {*public, *ending(app, project), *awaited(project, "service_healthy")}
    return {
        name
        for name in slot_services(app, project)
        if name not in known
        and not kinds.says_policy(project["services"][name])
        and not project["services"][name].get("healthcheck")
    }


def mended(app: Application, project: Project) -> list[str]:
    """Lines about restart policies that are replaced because they would let a service stay down."""
    ends = ending(app, project)
    return [
        f"{name} serves: its restart policy is unless-stopped here, not {policy(service)}"
        for name, service in project["services"].items()
        if policy(service) and name in {*slot_services(app, project), *app.stateful} - ends
    ]


def limited(app: Application, project: Project) -> list[str]:
    """Lines about services with a time limit that their author may not expect, like a migration."""
    waited = awaited(project, "service_completed_successfully")
    return [
        f"others wait for the end of {name}, for which it has {app.start_seconds} s (start_seconds)"
        for name in slot_services(app, project)
        if name in waited
    ]


def lasting(app: Application, project: Project) -> list[str]:
    """The services of a slot that do not end, sorted, one entry for each container."""
    names: list[str] = []
    for name in slot_services(app, project):
        names += [name] * wanted(app, project, name)
    return sorted(name for name in names if name not in once(app, project))


def times(service: Mapping[str, Any]) -> int:
    """The number of containers that the files ask for."""
    number: int = service.get("scale", (service.get("deploy") or {}).get("replicas", 1))
    return number


def wanted(app: Application, project: Project, name: str) -> int:
    """The number of containers of a service."""
    own: int | None = app.setting(name, "replicas")
    if front := next((one for one in app.fronts if one.service == name), None):
        return front.replicas
    return times(project["services"][name]) if own is None else own


def migrates_by_service(app: Application, project: Project) -> bool:
    return len(app.migrate) == 1 and app.migrate[0] in project["services"] and bool(app.compose)


def built(project: Project, names: Collection[str]) -> list[str]:
    """The services that are built for these services: themselves, or others with their images."""
    made = (kinds.builder(project["services"], name) for name in names)
    return list(dict.fromkeys(one for one in made if one))


def image_name(app: Application, service: str, release: str) -> str:
    # A separate path component, so that the name cannot be that of another application.
    part = "" if service == app.service else f"/{service.lower()}"
    return f"terrafirma/{app.name}{part}:{release}"


def slot_layer(
    app: Application, project: Project, *, slot: str, release: str, replicas: int,
    images: Mapping[str, str], owner: str,
) -> str:  # fmt: skip
    """The layer for one of the two slots; with an empty `slot`, the part that both share."""
    running = slot_services(app, project)
    once = [name for name in app.migrate if migrates_by_service(app, project)]
    public = {one.service: one for one in app.fronts}
    lines = ["services:"]
    for name in project["services"]:
        if name not in (*running, *once):
            lines.append(f"  {as_json(name)}: {GONE}")
            continue
        layer = _slot_service(app, project, name, slot, release) | {
            "image": as_json(images.get(name, project["services"][name].get("image", ""))),
            "user": as_json(owner) if owner else None,
        }
        number = None
        if front := public.get(name):
            number = replicas if front is app else front.replicas if slot else 0
            layer |= _of_public(front, project, slot, number)
        if name == app.service:
            layer |= _of_web(app, project, layer)
        layer |= layer_keys.limits(app, project, name, number, layer)
        if name in once:
            # `run` starts it, `up` does not.
            layer |= {"profiles": '!override ["terrafirma-once"]', "restart": '"no"'}
        lines.append(f"  {as_json(name)}:")
        lines += [f"    {key}: {value}" for key, value in layer.items() if value is not None]
    lines += _external("networks", network_names(app, project, slot))
    lines += _external("volumes", volume_names(app, project))
    if app.secrets:
        directory = app.slot_secrets(slot)
        files = {name: {"file": str(directory / name)} for name in app.secrets}
        # A secret that the files also have is replaced as a whole.
        theirs = project.get("secrets") or {}
        lines += ["secrets:"] + [
            f"  {as_json(name)}: {'!override ' * (name in theirs)}{as_json(file)}"
            for name, file in files.items()
        ]
    return "\n".join(lines) + "\n"


def _slot_service(
    app: Application, project: Project, name: str, slot: str, release: str
) -> dict[str, str | None]:
    service, running = project["services"][name], {*slot_services(app, project)}
    return _common(app, project, name, slot, release) | {
        "build": GONE,
        "env_file": as_json([layer_variables.variables_file(app)]) if app.variables else None,
        "environment": as_json(
            layer_variables.home(app, service) | layer_variables.environment(app, name, release)
        ),
        "secrets": layer_keys.secrets(app, service),
        "links": layer_keys.links(service, running),
        "depends_on": layer_keys.dependencies(service, running - {name}),
        # A port that both slots publish would collide.
        "ports": "!reset []",
        # It runs whether or not Compose is told its profile.
        "profiles": "!reset []" if service.get("profiles") else None,
    }


def _of_public(
    front: Application, project: Project, slot: str, replicas: int
) -> dict[str, str | None]:
    """The keys of a service that Caddy serves."""
    first = front.slots.get(slot, 0)
    ports = str(first) if replicas == 1 else f"{first}-{first + replicas - 1}"
    port = front.container_port or images_of.of_files(front, project["services"][front.service])
    return {
        # Loopback only: the internet connects through Caddy.
        "ports": f"!override {as_json([f'127.0.0.1:{ports}:{port}'])}",
        "scale": GONE,
    }


def _of_web(
    app: Application, project: Project, layer: Mapping[str, str | None]
) -> dict[str, str | None]:
    """The keys of the application's own service alone."""
    service = project["services"][app.service]
    found: dict[str, str | None] = {**directories.layer(app, service)}
    if layer.get("volumes") and "volumes" in found:
        # Both change the mounts of the files.
        found["volumes"] = f"!override {as_json(service['volumes'])}"
    if app.own_init and not app.compose:
        found["init"] = "false"
    return found


def state_layer(app: Application, project: Project) -> str:
    """The layer for the stateful services, which no release recreates."""
    lines = ["services:"]
    for name, service in project["services"].items():
        if name not in app.stateful:
            lines.append(f"  {as_json(name)}: {GONE}")
            continue
        layer = _common(app, project, name, "state", "") | {
            "ports": "!reset []",
            "depends_on": layer_keys.dependencies(service, {*app.stateful} - {name}),
            "links": layer_keys.links(service, {*app.stateful}),
            # It runs without a profile being named.
            "profiles": "!reset []" if service.get("profiles") else None,
        }
        layer |= _built(app, project, name)
        if app.services.get(name):
            layer |= _of_stateful(app, project, name, layer)
        lines.append(f"  {as_json(name)}:")
        lines += [f"    {key}: {value}" for key, value in layer.items() if value is not None]
    lines += _external("volumes", volume_names(app, project))
    return "\n".join(lines) + "\n"


def _built(app: Application, project: Project, name: str) -> dict[str, str]:
    """How a stateful service is built whose image only the build of another service makes."""
    made = kinds.builder(project["services"], name)
    if made in ("", name):
        return {}
    build = project["services"][made]["build"]
    return {"build": as_json(build), "image": as_json(f"{app.name}-state-{name}")}


def _of_stateful(
    app: Application, project: Project, name: str, layer: Mapping[str, str | None]
) -> dict[str, str | None]:
    """What is set for one stateful service; the application's settings are not for it."""
    bare = replace(app, memory_mb=0, cpus=0)
    env = app.setting(name, "env") or {}
    found = layer_keys.limits(bare, project, name, None, layer)
    given = layer_variables.escaped(values.shown(env)) | layer_variables.hidden_of(name, env)
    return found | ({"environment": as_json(given)} if given else {})


def _common(
    app: Application, project: Project, name: str, slot: str, release: str
) -> dict[str, str | None]:
    service = project["services"][name]
    labels = {"terrafirma.app": app.name, "terrafirma.slot": slot}
    if release:
        labels["terrafirma.release"] = release
    signal, command = app.setting(name, "stop_signal"), app.setting(name, "command")
    return {
        "container_name": GONE,
        "labels": as_json(labels),
        **_restart(app, project, name),
        # PostgreSQL listens on docker0's address, to which this name resolves in every network.
        "extra_hosts": layer_keys.hosts(service, project.get(HOSTS) or []),
        "security_opt": layer_keys.security(service),
        "stop_grace_period": as_json(
            f"{layer_keys.own(app, name, 'stop_seconds', app.stop_seconds)}s"
        ),
        "stop_signal": as_json(signal) if signal else None,
        "command": f"!override {as_json(layer_variables.dollars(command))}" if command else None,
        # How shape.py changes what the files say.
        **(project.get(SHAPE) or {}).get(name, {}),
    }


def _restart(app: Application, project: Project, name: str) -> dict[str, str | None]:
    service, ends = project["services"][name], name in ending(app, project)
    # A service that may end, and has a restart policy for that, keeps the policy.
    if ends and policy(service):
        return {}
    ours = '"no"' if ends else '"unless-stopped"'
    if name in untold(app, project):
        ours = '"on-failure"'
    theirs = (service.get("deploy") or {}).get("restart_policy")
    return {"restart": ours, "deploy": f'{{"restart_policy": {GONE}}}' if theirs else None}


def aliases(project: Project, name: str, network: str) -> list[str]:
    """The names by which other services reach a stateful service in one of its networks."""
    service = project["services"][name]
    found = [name, service.get("container_name") or name]
    found += ((service.get("networks") or {}).get(network) or {}).get("aliases") or []
    links = [one for other in project["services"].values() for one in other.get("links") or []]
    found += [alias for target, _, alias in (one.partition(":") for one in links)
              if target == name and alias]  # fmt: skip
    return list(dict.fromkeys(found))


def network_names(app: Application, project: Project, slot: str) -> dict[str, str]:
    """The project's own networks, with their names in a slot."""
    return {
        key: app.project(slot) if key == "default" else f"{app.project(slot)}-{key}"
        for key, network in project.get("networks", {}).items()
        if not network.get("external")
    }


def volume_names(app: Application, project: Project) -> dict[str, str]:
    """The project's own volumes, with their names, which are the same in every slot."""
    named = {}
    for key, volume in project.get("volumes", {}).items():
        if not (volume or {}).get("external"):
            usual = f"{project.get('name', app.name)}_{key}"
            chosen = (volume or {}).get("name", usual)
            derived = chosen == usual
            named[key] = f"{app.name}_{key}" if derived else chosen
    return named


def _external(kind: str, named: Mapping[str, str]) -> list[str]:
    """Lines for networks or volumes that are there already."""
    if not named:
        return []
    return [f"{kind}:"] + [
        f"  {as_json(key)}: !override {as_json({'name': name, 'external': True})}"
        for key, name in named.items()
    ]

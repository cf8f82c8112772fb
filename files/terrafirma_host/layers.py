"""
Managed by Terrafirma. The layers that Compose merges over a project so that it runs in production.

Pure functions of the application's description and of `docker compose config`. The project's own
files stay as they are: Compose merges ours over them. JSON is YAML, and `!reset` and `!override`
are Compose's tags for keys that a layer removes or replaces.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from terrafirma_host import directories, kinds, values
from terrafirma_host import images as images_of
from terrafirma_host.kinds import policy
from terrafirma_host.spec import Application

Project = Mapping[str, Any]
"""The output of `docker compose config --format json`."""

GONE = "!reset null"
# Limits of a service in their older form, and their names in `deploy`.
OLDER = {"mem_limit": "memory", "cpus": "cpus", "pids_limit": "pids"}

HOME = "/tmp"
"""The home of the id of an account, which no image knows: Docker would take `/`."""

HIDDEN = "TERRAFIRMA_SECRET_"
"""The start of variables by which Compose gets secret values."""
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
        service["environment"] = {"HOME": HOME}
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


def build_layer(app: Application, project: Project, release: str) -> str:
    """Names and labels for the images that are built here."""
    started = [*slot_services(app, project), *app.migrate * migrates_by_service(app, project)]
    services = {
        name: {
            "image": image_name(app, name, release),
            "build": {"labels": {"terrafirma.app": app.name}},
        }
        for name in built(project, started)
    }
    return f"services: {_text(services)}\n"


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
            lines.append(f"  {_text(name)}: {GONE}")
            continue
        layer = _slot_service(app, project, name, slot, release) | {
            "image": _text(images.get(name, project["services"][name].get("image", ""))),
            "user": _text(owner) if owner else None,
        }
        number = None
        if front := public.get(name):
            number = replicas if front is app else front.replicas if slot else 0
            layer |= _of_public(front, project, slot, number)
        if name == app.service:
            layer |= _of_web(app, project, layer)
        layer |= _limits(app, project, name, number, layer)
        if name in once:
            # `run` starts it, `up` does not.
            layer |= {"profiles": '!override ["terrafirma-once"]', "restart": '"no"'}
        lines.append(f"  {_text(name)}:")
        lines += [f"    {key}: {value}" for key, value in layer.items() if value is not None]
    lines += _networks(app, project, slot)
    lines += _volumes(app, project)
    if app.secrets:
        directory = app.slot_secrets(slot)
        files = {name: {"file": str(directory / name)} for name in app.secrets}
        # A secret that the files also have is replaced as a whole.
        theirs = project.get("secrets") or {}
        lines += ["secrets:"] + [
            f"  {_text(name)}: {'!override ' * (name in theirs)}{_text(file)}"
            for name, file in files.items()
        ]
    return "\n".join(lines) + "\n"


def _slot_service(
    app: Application, project: Project, name: str, slot: str, release: str
) -> dict[str, str | None]:
    service, running = project["services"][name], {*slot_services(app, project)}
    return _common(app, project, name, slot, release) | {
        "build": GONE,
        "env_file": _text([variables_file(app)]) if app.variables else None,
        "environment": _text(_home(app, service) | _environment(app, name, release)),
        "secrets": _secrets(app, service),
        "links": _links(service, running),
        "depends_on": _dependencies(service, running - {name}),
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
        "ports": f"!override {_text([f'127.0.0.1:{ports}:{port}'])}",
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
        found["volumes"] = f"!override {_text(service['volumes'])}"
    if app.own_init and not app.compose:
        found["init"] = "false"
    return found


def _limits(
    app: Application, project: Project, name: str, replicas: int | None,
    layer: Mapping[str, str | None],
) -> dict[str, str | None]:  # fmt: skip
    """The limits of a container, and how many of them there are."""
    service, limits = project["services"][name], {}
    memory = _own(app, name, "memory_mb", app.memory_mb)
    cpus = _own(app, name, "cpus", app.cpus)
    if memory:
        limits["memory"] = f"{memory}M"
    if cpus:
        limits["cpus"] = str(cpus)
    deploy: dict[str, Any] = {"resources": {"limits": limits}} if limits else {}
    if replicas is None:
        replicas = app.setting(name, "replicas")
    deploy |= {"replicas": replicas} if replicas is not None else {}
    # Compose refuses a limit that is set in two places.
    limited = ["mem_limit", "mem_reservation", "memswap_limit"] * bool(memory)
    limited += ["cpus", "cpu_period", "cpu_quota"] * bool(cpus)
    limited += ["scale"] * (replicas is not None)
    if limits:
        # It also refuses one limit here and another one in the older form: the files' move here.
        moved = {name: key for key, name in OLDER.items() if service.get(key)}
        limits |= {name: service[key] for name, key in moved.items() if name not in limits}
        limited += moved.values()
    text = _text(deploy)
    if more := layer.get("deploy"):
        # A restart policy in `deploy` would override ours.
        text = f"{text[:-1]}{', ' if len(text) > 2 else ''}{more[1:]}"
    return {**{key: GONE for key in limited if key in service}, "deploy": text}


def _own(app: Application, service: str, name: str, otherwise: Any) -> Any:
    own = app.setting(service, name)
    return otherwise if own is None else own


def state_layer(app: Application, project: Project) -> str:
    """The layer for the stateful services, which no release recreates."""
    lines = ["services:"]
    for name, service in project["services"].items():
        if name not in app.stateful:
            lines.append(f"  {_text(name)}: {GONE}")
            continue
        layer = _common(app, project, name, "state", "") | {
            "ports": "!reset []",
            "depends_on": _dependencies(service, {*app.stateful} - {name}),
            "links": _links(service, {*app.stateful}),
            # It runs without a profile being named.
            "profiles": "!reset []" if service.get("profiles") else None,
        }
        layer |= _built(app, project, name)
        if app.services.get(name):
            layer |= _of_stateful(app, project, name, layer)
        lines.append(f"  {_text(name)}:")
        lines += [f"    {key}: {value}" for key, value in layer.items() if value is not None]
    lines += _volumes(app, project)
    return "\n".join(lines) + "\n"


def _built(app: Application, project: Project, name: str) -> dict[str, str]:
    """How a stateful service is built whose image only the build of another service makes."""
    made = kinds.builder(project["services"], name)
    if made in ("", name):
        return {}
    build = project["services"][made]["build"]
    return {"build": _text(build), "image": _text(f"{app.name}-state-{name}")}


def _of_stateful(
    app: Application, project: Project, name: str, layer: Mapping[str, str | None]
) -> dict[str, str | None]:
    """What is set for one stateful service; the application's settings are not for it."""
    bare = replace(app, memory_mb=0, cpus=0)
    env = app.setting(name, "env") or {}
    found = _limits(bare, project, name, None, layer)
    given = _escaped(values.shown(env)) | _hidden_of(name, env)
    return found | ({"environment": _text(given)} if given else {})


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
        "labels": _text(labels),
        **_restart(app, project, name),
        # PostgreSQL listens on docker0's address, to which this name resolves in every network.
        "extra_hosts": _hosts(service, project.get(HOSTS) or []),
        "security_opt": _security(service),
        "stop_grace_period": _text(f"{_own(app, name, 'stop_seconds', app.stop_seconds)}s"),
        "stop_signal": _text(signal) if signal else None,
        "command": f"!override {_text(_dollars(command))}" if command else None,
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


def _hosts(service: Mapping[str, Any], further: Collection[str]) -> str | None:
    ours = [f"{name}:host-gateway" for name in ("host.docker.internal", *further)]
    if str(service.get("network_mode", "")).startswith(("service:", "container:")):
        # It has the hosts of the container that it joins.
        return None
    theirs = service.get("extra_hosts") or []
    names = ("host.docker.internal", *further)
    kept = [one for one in theirs if re.split("[=:]", one)[0] not in names]
    return f"{'!override ' * (kept != theirs)}{_text([*(kept if kept != theirs else []), *ours])}"


def _security(service: Mapping[str, Any]) -> str:
    ours = "no-new-privileges:true"
    theirs = service.get("security_opt") or []
    kept = [one for one in theirs if not re.match(r"no-new-privileges\b", one)]
    # Compose refuses a list with a duplicate.
    return f"{'!override ' * (kept != theirs)}{_text([*(kept if kept != theirs else []), ours])}"


def _secrets(app: Application, service: Mapping[str, Any]) -> str:
    theirs = service.get("secrets") or []
    targets = {name for own in app.secrets for name in (own, f"/run/secrets/{own}")}
    kept = [one for one in theirs if one.get("target") not in targets]
    if kept == theirs:
        return _text(list(app.secrets))
    return f"!override {_text([*kept, *({'source': name} for name in app.secrets)])}"


def _links(service: Mapping[str, Any], there: set[str]) -> str | None:
    """The links within a slot; a stateful service is found by a network alias instead."""
    theirs = service.get("links") or []
    kept = [one for one in theirs if one.partition(":")[0] in there]
    if kept == theirs:
        return None
    return f"!override {_text(kept)}" if kept else GONE


def aliases(project: Project, name: str, network: str) -> list[str]:
    """The names by which other services reach a stateful service in one of its networks."""
    service = project["services"][name]
    found = [name, service.get("container_name") or name]
    found += ((service.get("networks") or {}).get(network) or {}).get("aliases") or []
    links = [one for other in project["services"].values() for one in other.get("links") or []]
    found += [alias for target, _, alias in (one.partition(":") for one in links)
              if target == name and alias]  # fmt: skip
    return list(dict.fromkeys(found))


def hidden(name: str, service: str = "") -> str:
    """The variable that gives a variable's secret value to Compose, which Docker does not read."""
    # An env_file may set names like `discovery.type`, which Compose cannot fill in.
    plain = re.fullmatch(r"\w+", name, re.ASCII)
    # A name that is the value of a single service is another one.
    apart = f"{service.encode().hex()}_" if service else ""
    return f"{HIDDEN}{apart}{name if plain else f'0{name.encode().hex()}'}"


def lacking(text: str, there: Collection[str]) -> list[str]:
    """The variables whose secret values a layer takes from Compose's environment, if not there."""
    needed = re.findall(rf"\$\{{{HIDDEN}(\w+)\}}", text)
    # Without the name of a single service before it.
    return sorted({re.sub("^([2-7][0-9a-f])+_", "", one) for one in needed
                   if f"{HIDDEN}{one}" not in there})  # fmt: skip


def variables(app: Application) -> str:
    """
    A file for `env_file` with the variables of the settings' own `env_file`.

    Compose fills in their values from its own environment. So no file of ours has them, and they
    count for Compose as those of any `env_file`: what `environment` sets goes before.
    """
    return "".join(f"{name}=${{{hidden(name)}}}\n" for name in app.variables)


def variables_file(app: Application) -> str:
    """Where the file with `variables` is: by another path if it has other names."""
    names = hashlib.sha256(variables(app).encode()).hexdigest()[:12]
    return f"{app.directory}/layers/variables-{names}.env"


def env_files(app: Application, further: str) -> str:
    """The layer for services whose env_file is not on the host; `further` takes its place."""
    services = "".join(
        f"  {_text(name)}: {{env_file: !override {_text([*there, further])}}}\n"
        for name, there in app.env_files.items()
    )
    return f"services:\n{services}"


def _home(app: Application, service: Mapping[str, Any]) -> dict[str, str]:
    given = {*(service.get("environment") or {}), *app.variables}
    return {"HOME": HOME} if app.compose and app.user and "HOME" not in given else {}


def _environment(app: Application, service: str, release: str) -> dict[str, str]:
    own: Mapping[str, str] = app.setting(service, "env") or {}
    environment = _escaped({**values.shown(app.env), **values.shown(own)})
    names = [name.upper() for name in app.secrets] if app.secrets_env else []
    # Compose takes secret values from its own environment, so no file has them.
    secret = (name for name in (*names, *values.hidden(app.env)) if name not in environment)
    environment |= {name: f"${{{hidden(name)}}}" for name in secret if name not in own}
    environment |= _hidden_of(service, own)
    return environment | {"TERRAFIRMA_RELEASE": release}


def _hidden_of(service: str, env: Mapping[str, str]) -> dict[str, str]:
    return {name: f"${{{hidden(name, service)}}}" for name in values.hidden(env)}


def _escaped(env: Mapping[str, str]) -> dict[str, str]:
    """Variables whose values Compose leaves as they are: it would read a dollar sign."""
    return {name: str(value).replace("$", "$$") for name, value in env.items()}


def _dollars(words: list[str]) -> list[str]:
    return [one.replace("$", "$$") for one in words]


def _dependencies(service: Mapping[str, Any], there: set[str]) -> str | None:
    wanted = service.get("depends_on", {})
    kept = {name: how for name, how in wanted.items() if name in there}
    if kept == wanted:
        return None
    return f"!override {_text(kept)}" if kept else GONE


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


def _networks(app: Application, project: Project, slot: str) -> list[str]:
    named = network_names(app, project, slot)
    if not named:
        return []
    return ["networks:"] + [
        f"  {_text(key)}: !override {_text({'name': name, 'external': True})}"
        for key, name in named.items()
    ]


def _volumes(app: Application, project: Project) -> list[str]:
    named = volume_names(app, project)
    if not named:
        return []
    return ["volumes:"] + [
        f"  {_text(key)}: !override {_text({'name': name, 'external': True})}"
        for key, name in named.items()
    ]


def _text(value: Any) -> str:
    return json.dumps(value)

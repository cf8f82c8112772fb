"""Managed by Terrafirma. Keys of single services in the layers of layers.py."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from terrafirma_host.spec import Application

Project = Mapping[str, Any]
"""The output of `docker compose config --format json`."""

GONE = "!reset null"
# Limits of a service in their older form, and their names in `deploy`.
OLDER = {"mem_limit": "memory", "cpus": "cpus", "pids_limit": "pids"}


def limits(
    app: Application, project: Project, name: str, replicas: int | None,
    layer: Mapping[str, str | None],
) -> dict[str, str | None]:  # fmt: skip
    """The limits of a container, and how many of them there are."""
    service, limits = project["services"][name], {}
    memory = own(app, name, "memory_mb", app.memory_mb)
    cpus = own(app, name, "cpus", app.cpus)
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
    text = as_json(deploy)
    if more := layer.get("deploy"):
        # A restart policy in `deploy` would override ours.
        text = f"{text[:-1]}{', ' if len(text) > 2 else ''}{more[1:]}"
    return {**{key: GONE for key in limited if key in service}, "deploy": text}


def own(app: Application, service: str, name: str, otherwise: Any) -> Any:
    own = app.setting(service, name)
    return otherwise if own is None else own


def hosts(service: Mapping[str, Any], further: Collection[str]) -> str | None:
    ours = [f"{name}:host-gateway" for name in ("host.docker.internal", *further)]
    if str(service.get("network_mode", "")).startswith(("service:", "container:")):
        # It has the hosts of the container that it joins.
        return None
    theirs = service.get("extra_hosts") or []
    names = ("host.docker.internal", *further)
    kept = [one for one in theirs if re.split("[=:]", one)[0] not in names]
    return f"{'!override ' * (kept != theirs)}{as_json([*(kept if kept != theirs else []), *ours])}"


def security(service: Mapping[str, Any]) -> str:
    ours = "no-new-privileges:true"
    theirs = service.get("security_opt") or []
    kept = [one for one in theirs if not re.match(r"no-new-privileges\b", one)]
    # Compose refuses a list with a duplicate.
    return f"{'!override ' * (kept != theirs)}{as_json([*(kept if kept != theirs else []), ours])}"


def secrets(app: Application, service: Mapping[str, Any]) -> str:
    theirs = service.get("secrets") or []
    targets = {name for own in app.secrets for name in (own, f"/run/secrets/{own}")}
    kept = [one for one in theirs if one.get("target") not in targets]
    if kept == theirs:
        return as_json(list(app.secrets))
    return f"!override {as_json([*kept, *({'source': name} for name in app.secrets)])}"


def links(service: Mapping[str, Any], there: set[str]) -> str | None:
    """The links within a slot; a stateful service is found by a network alias instead."""
    theirs = service.get("links") or []
    kept = [one for one in theirs if one.partition(":")[0] in there]
    if kept == theirs:
        return None
    return f"!override {as_json(kept)}" if kept else GONE


def dependencies(service: Mapping[str, Any], there: set[str]) -> str | None:
    wanted = service.get("depends_on", {})
    kept = {name: how for name, how in wanted.items() if name in there}
    if kept == wanted:
        return None
    return f"!override {as_json(kept)}" if kept else GONE


def as_json(value: Any) -> str:
    return json.dumps(value)

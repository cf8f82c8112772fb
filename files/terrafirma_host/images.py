"""
Managed by Terrafirma. What an image says about its containers: a port, a user, an init of its own.

Pure functions of the `Config` in `docker image inspect` and of `docker compose config`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from terrafirma_host.spec import Application

Config = Mapping[str, Any]

USUAL = 8000
"""The port where neither the settings nor the compose files nor the image name one."""
# Of several ports, the one of these that comes first: the others are for metrics, TLS, a debugger,
# or for PHP's processes behind a web server in the same container.
PREFERRED = (USUAL, 80, 8080, 3000, 5000, 4000, 8888)

# Programs that have to be, or may be, the first process of a container.
INITS = frozenset(
    "init tini tini-static dumb-init catatonit docker-init my_init systemd s6-svscan"
    " runsvdir-init".split()
)


def port(app: Application, service: Mapping[str, Any], config: Config) -> tuple[int, str]:
    """The port on which the web service listens, and why in a few words where that is a guess."""
    if app.container_port:
        return app.container_port, ""
    named = _variable(app, service, config)
    for ports, what in (
        (_of_files(service), "the compose files name"),
        (_exposed(config), "the image EXPOSEs"),
    ):
        if not ports:
            continue
        chosen = named if named in ports else _preferred(ports)
        several = " and ".join(map(str, sorted(ports)))
        return chosen, f"{what} {several}" if len(ports) > 1 else ""
    if named:
        return named, "PORT says so, and the image EXPOSEs none"
    return USUAL, "the image EXPOSEs none"


def of_files(app: Application, service: Mapping[str, Any]) -> int:
    """The port of the web service as far as it is known without its image."""
    return port(app, service, {})[0]


def as_built(app: Application, service: Mapping[str, Any], config: Config) -> Application:
    """The application with what its image says, for the layer of a slot."""
    chosen, _ = port(app, service, config)
    env = app.env
    known = app.container_port or _of_files(service) or _exposed(config)
    if not (app.compose or known or "PORT" in _variables(app, service, config)):
        # Many servers listen on the port that this variable names, as hosting platforms set it.
        env = {**env, "PORT": str(chosen)}
    return replace(app, container_port=chosen, env=env, own_init=has_init(config))


def with_ports(
    app: Application, services: Mapping[str, Mapping[str, Any]], configs: Mapping[str, Config]
) -> Application:
    """The application with the ports of its other public services, for the layer of a slot."""
    public = {
        one.front: replace(
            app.public[one.front],
            container_port=port(one, services[one.service], configs[one.service])[0],
        )
        for one in app.fronts
        if one.front
    }
    return replace(app, public=public)


def said(app: Application, service: Mapping[str, Any], config: Config) -> list[str]:
    """A line about the port, where it is one of several or a guess."""
    chosen, why = port(app, service, config)
    if not why:
        return []
    of, key = (f" of {app.front}", "port") if app.front else ("", "container_port")
    return [f"requests go to port {chosen} of the containers{of}: {why}, and {key} is not set"]


def has_init(config: Config) -> bool:
    """Whether the image's own first process is an init, which must not get another one above."""
    words = [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]
    return bool(words) and posixpath.basename(str(words[0])) in INITS


def user(config: Config) -> str:
    return str(config.get("User") or "")


# --- ports ----------------------------------------------------------------------------------------


def _variables(app: Application, service: Mapping[str, Any], config: Config) -> dict[str, str]:
    found = dict(one.partition("=")[::2] for one in config.get("Env") or [])
    found |= {name: str(value) for name, value in (service.get("environment") or {}).items()}
    return found | {name: str(value) for name, value in app.env.items()}


def _variable(app: Application, service: Mapping[str, Any], config: Config) -> int:
    """The number that the variable PORT has in the containers, or 0."""
    value = _variables(app, service, config).get("PORT") or ""
    return int(value) if re.fullmatch("[0-9]{1,5}", value) and 0 < int(value) < 65536 else 0


def _of_files(service: Mapping[str, Any]) -> set[int]:
    published = {
        int(one["target"])
        for one in service.get("ports") or []
        if one.get("protocol", "tcp") == "tcp"
    }
    return published or _tcp(str(one) for one in service.get("expose") or [])


def _exposed(config: Config) -> set[int]:
    return _tcp(config.get("ExposedPorts") or {})


def _tcp(words: Iterable[str]) -> set[int]:
    """The TCP ports of words like `8000`, `8000/tcp` and `8000-8002`."""
    found: set[int] = set()
    for word in words:
        ports = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(/tcp)?", word)
        if ports:
            found |= {*range(int(ports[1]), int(ports[2] or ports[1]) + 1)}
    return {one for one in found if 0 < one < 65536}


def _preferred(ports: set[int]) -> int:
    return next((one for one in PREFERRED if one in ports), min(ports))

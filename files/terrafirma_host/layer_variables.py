"""
Managed by Terrafirma. The variables of containers in the layers that Compose merges.

Compose takes secret values from its own environment, so no file has them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from terrafirma_host import values
from terrafirma_host.layer_keys import as_json
from terrafirma_host.spec import Application

HOME = "/tmp"
"""The home of the id of an account, which no image knows: Docker would take `/`."""

HIDDEN = "TERRAFIRMA_SECRET_"
"""The start of variables by which Compose gets secret values."""


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
        f"  {as_json(name)}: {{env_file: !override {as_json([*there, further])}}}\n"
        for name, there in app.env_files.items()
    )
    return f"services:\n{services}"


def home(app: Application, service: Mapping[str, Any]) -> dict[str, str]:
    given = {*(service.get("environment") or {}), *app.variables}
    return {"HOME": HOME} if app.compose and app.user and "HOME" not in given else {}


def environment(app: Application, service: str, release: str) -> dict[str, str]:
    own: Mapping[str, str] = app.setting(service, "env") or {}
    environment = escaped({**values.shown(app.env), **values.shown(own)})
    names = [name.upper() for name in app.secrets] if app.secrets_env else []
    # Compose takes secret values from its own environment, so no file has them.
    secret = (name for name in (*names, *values.hidden(app.env)) if name not in environment)
    environment |= {name: f"${{{hidden(name)}}}" for name in secret if name not in own}
    environment |= hidden_of(service, own)
    return environment | {"TERRAFIRMA_RELEASE": release}


def hidden_of(service: str, env: Mapping[str, str]) -> dict[str, str]:
    return {name: f"${{{hidden(name, service)}}}" for name in values.hidden(env)}


def escaped(env: Mapping[str, str]) -> dict[str, str]:
    """Variables whose values Compose leaves as they are: it would read a dollar sign."""
    return {name: str(value).replace("$", "$$") for name, value in env.items()}


def dollars(words: list[str]) -> list[str]:
    return [one.replace("$", "$$") for one in words]

"""Secrets of an application that come from the machine that runs pyinfra."""

from __future__ import annotations

import json

from pyinfra.api import Host

from terrafirma.app import env_files
from terrafirma.app.env_files import ENV_FILE
from terrafirma.app.registries import file_of
from terrafirma.app.settings import Application
from terrafirma.host.given import HiddenText, value


def secrets(host: Host, app: Application) -> dict[str, str]:
    """
    The values of those secrets of `app` that are not generated on the server, by name.

    Raises DeployError when a value is missing or fits no file; its one line contains no value.
    """
    return {
        name: value(host, f"{app.key('secrets')}: {name}", source)
        for name, source in app.secrets.items()
        if source != "generated"
    }


def private(host: Host, app: Application) -> dict[str, str]:
    """Secrets of `app` that no container gets as a file, by their name on the host."""
    found: dict[str, str] = {}
    for registry, login in app.registries.items():
        key = app.key(f"registries.{registry}.password")
        found[file_of(registry)] = value(host, key, login.password)
    if app.env_file:
        found[ENV_FILE] = HiddenText(json.dumps(env_files.given(app), sort_keys=True))
    return found

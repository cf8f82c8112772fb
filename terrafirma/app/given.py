"""Secrets of an application that come from the machine that runs pyinfra."""

from __future__ import annotations

from pyinfra.api import Host

from terrafirma.app.settings import Application
from terrafirma.host.given import value


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


def registry_password(host: Host, app: Application) -> str:
    """The password of `app` for its registry, found as `secrets` are; empty if it needs none."""
    if not app.registry_password:
        return ""
    return value(host, app.key("registry_password"), app.registry_password)

"""
The site: the settings of every host in the inventory, read and checked once in a run.

A task begins with `server, machine = begin(host)`, and takes all settings from `server`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar
from weakref import WeakKeyDictionary

from pyinfra.api import DeployError, Host, Inventory

from terrafirma.app.facts import Kept, KeptState
from terrafirma.app.settings import Application
from terrafirma.host.facts import MachineState
from terrafirma.host.machine import ready, refuse_source, with_source
from terrafirma.rules import RULES
from terrafirma.server import Server
from terrafirma.settings import Model, Refused, build

M = TypeVar("M", bound=Model)

Site = Mapping[str, Server]
"""The servers, by the names of their hosts."""

# Read once: the data of an inventory stay the same during a run.
_sites: WeakKeyDictionary[Inventory, Site] = WeakKeyDictionary()
# Asked once: an application keeps its port throughout the run that releases it.
_kept: WeakKeyDictionary[Host, KeptState] = WeakKeyDictionary()


def begin(host: Host) -> tuple[Server, MachineState]:
    """
    The settings of `host`, and the state of the machine. From here on operations run there as root.

    Waits for cloud-init to finish, and says so. Raises DeployError, in one line, for all mistakes
    in the settings of any host, and for a machine that Terrafirma does not support.
    """
    server = site(host.inventory)[host.name]
    machine = ready(host, server.preflight.wait_seconds)
    refuse_source(host, machine, server.apt.source, backups=bool(server.borg.repository))
    return server, with_source(machine, server.apt.source)


def site(inventory: Inventory) -> Site:
    """
    All servers of the inventory; raises DeployError for the first host with wrong settings.

    A host with wrong settings that --limit leaves out is only named, and is not in the site.
    """
    if inventory not in _sites:
        servers: dict[str, Server] = {}
        everywhere = {name for host in inventory for name in _applications(host)}
        for host in inventory:
            try:
                servers[host.name] = _server(host, everywhere)
            except DeployError as error:
                if inventory.state.is_host_in_limit(host):
                    raise
                host.log_styled(f"not in this run: {error}", fg="yellow")
        _sites[inventory] = servers
    return _sites[inventory]


def _applications(host: Host) -> Collection[str]:
    apps = host.data.dict().get("apps")
    return apps if isinstance(apps, dict) else ()


def _server(host: Host, everywhere: Collection[str]) -> Server:
    data = host.data.dict()
    # --data reaches all hosts: skip its fields for applications that only other hosts have.
    elsewhere = {*everywhere} - {*_applications(host)}
    data = {
        key: value
        for key, value in data.items()
        if not (str(key).startswith("apps.") and str(key).split(".")[1] in elsewhere)
    }
    try:
        server = Server.of(host.name, data, host.groups)
        if wrong := [words for rule in RULES for words in rule(server)]:
            raise Refused(*wrong)
    except Refused as error:
        raise DeployError(f"{host.name}: {error}") from None
    return server


def placed(host: Host) -> Server:
    """The server of `host`, with a port for each application, which keeps the one it has there."""
    server = site(host.inventory)[host.name]
    try:
        return server.with_ports(kept(host)["ports"] if server.apps else {})
    except Refused as error:
        raise DeployError(f"{host.name}: {error}") from None


def kept(host: Host) -> KeptState:
    """What the host's applications had before the run, and keep."""
    if host not in _kept:
        _kept[host] = host.get_fact(Kept)
    return _kept[host]


def is_routed(host: Host, app: Application) -> bool:
    """
    Whether each release of `app` writes how Caddy reaches it.

    Once it does, it goes on to: a release that serves may need that, whatever the settings now say.
    """
    return app.needs_routes or app.name in kept(host)["routed"]


def arguments(host: Host, model: type[M]) -> M:
    """The arguments of a command, given with --data; raises DeployError."""
    data = host.data.dict()
    try:
        return build(model, {key: data[key] for key in model.model_fields if key in data}, "")
    except Refused as error:
        raise DeployError(f"{host.name}: {error}") from None

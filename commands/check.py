"""Show what would become of each application, from this machine alone: --data check=DIRECTORY."""

from pathlib import Path

from pyinfra import host, state
from pyinfra.api import DeployError
from pyinfra.api.output import echo
from pyinfra_cli.inventory import make_inventory_from_files

from terrafirma.app.check import check, read, shown
from terrafirma.app.guess import settings_of
from terrafirma.arguments import Check
from terrafirma.fields import here
from terrafirma.settings import ROOT
from terrafirma.site import arguments, site

wanted = arguments(host, Check).check
inventory = host.inventory
hosts = {host.name}

if host.name == "@local":
    # Without a connection to their hosts.
    inventory = make_inventory_from_files(
        str(ROOT / "inventory.py"), inventory.override_data, str(ROOT)
    )
    inventory.state = state
    hosts = {one.name for one in inventory}

servers = site(inventory)
apps = {
    (name, app.name): read(app, server.users)
    for name, server in servers.items()
    if name in hosts
    for app in server.apps
    if wanted in ("", app.name)
}
text = [line for (name, _), report in apps.items() for line in ["", name, *shown(report)]]
served = all(report.served for report in apps.values())

if wanted and not apps:
    if not Path(here(wanted)).is_dir():
        raise DeployError(
            f"{host.name}: check: {wanted!r} is neither an application of apps nor a directory"
        )
    report = check(settings_of(wanted))
    text, served = ["", *shown(report)], report.served

echo("\n".join([*text, ""]) if text else f"\n{host.name}: no application\n", err=True)
if not served:
    # This sets the exit code. An exception would end the run before the other hosts' reports.
    state.failed_hosts.add(host)

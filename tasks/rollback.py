"""An earlier release of an application serves again: --data app_rollback=APPLICATION[:RELEASE]."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.machine import ready
from terrafirma.operations.release import rollback
from terrafirma.release import deployer
from terrafirma.settings import App

ready(host)
settings = App.of(host)
name, _, release = settings.rollback.partition(":")
known = [app.name for app in settings.applications]

if name not in known:
    raise DeployError(
        f"{host.name}: app_rollback: {name!r} is none of {', '.join(known) or 'no applications'}; "
        "give one with --data app_rollback=APPLICATION, or APPLICATION:RELEASE"
    )

rollback(name=f"Go back with {name}", app=name, release=release, by=deployer())

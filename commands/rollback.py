"""Let an earlier release of an application serve again: --data rollback=APPLICATION[:RELEASE]."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.app.description import deployer
from terrafirma.app.operations import rollback
from terrafirma.arguments import Rollback
from terrafirma.site import arguments, begin

server, machine = begin(host)
name, _, release = arguments(host, Rollback).rollback.partition(":")
known = [app.name for app in server.apps]

if name not in known:
    raise DeployError(
        f"{host.name}: rollback: {name!r} is none of {', '.join(known) or 'no applications'}; "
        "give one with --data rollback=APPLICATION, or APPLICATION:RELEASE"
    )

rollback(name=f"Roll back {name}", app=name, release=release, by=deployer())

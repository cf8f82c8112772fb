"""List the releases of each application: times, revisions, people, and which ones are kept."""

from pyinfra import host, state
from pyinfra.api.output import echo
from pyinfra.facts.server import Command

from terrafirma.paths import HOST_PROGRAM
from terrafirma.site import begin

begin(host)
lines = host.get_fact(Command, command=f"test ! -x {HOST_PROGRAM} || {HOST_PROGRAM} releases")

if host not in state.failed_hosts:
    echo(f"\n{host.name}\n{lines or 'no application'}\n", err=True)

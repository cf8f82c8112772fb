"""What this machine finds open on the host is what is declared."""

from pyinfra import host

from terrafirma.firewall.operations import prove
from terrafirma.site import begin

server, machine = begin(host)

if server.firewall.proof:
    prove(
        name="Prove from outside what is open",
        server=server,
        connection=machine["connection"],
    )

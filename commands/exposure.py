"""Try all 65,535 TCP ports of a host from this machine: open must be what is declared."""

from pyinfra import host

from terrafirma.firewall.operations import prove
from terrafirma.site import begin

server, machine = begin(host)

prove(
    name="Prove from outside what is open, port by port",
    server=server,
    connection=machine["connection"],
    every=True,
)

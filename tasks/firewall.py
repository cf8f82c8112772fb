"""Only what is declared is open, over IPv4 and IPv6, also of what containers publish."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.firewall.facts import Firewall
from terrafirma.firewall.operations import WAY_BACK, enforce, remove
from terrafirma.firewall.rules import rules
from terrafirma.firewall.seen import obstacles, ssh_ports, subnets
from terrafirma.guard.operations import guarded
from terrafirma.host.asking import ask
from terrafirma.host.files import Entry, put, source, template
from terrafirma.host.packages import packages
from terrafirma.host.units import unit
from terrafirma.paths import FIREWALL, FIREWALL_LEAST, FIREWALL_RULES, FIREWALL_UNIT
from terrafirma.site import begin

server, machine = begin(host)
settings = server.firewall
unit_file = f"/etc/systemd/system/{FIREWALL_UNIT}"

if not settings.enabled:
    remove(name="Remove the rules")
else:
    state = ask(host, Firewall)
    if wrong := list(obstacles(server, state, machine["connection"])):
        raise DeployError(f"{host.name}: {'; '.join(wrong)}")
    if state["failed"]:
        host.log_styled(
            f"firewall: the rules did not load at the last start, so SSH alone was open: "
            f"{state['failed']}",
            fg="yellow",
        )

    packages(name="Install nft", packages=["nftables"])

    def files() -> list[Entry]:
        # Tasks before this one may change sshd's ports and Docker's networks.
        state = ask(host, Firewall)
        ports = ssh_ports(state, machine["connection"])
        opened = rules(server.openings(ports), subnets(server, state))
        data = {"rules": opened, "uplinks": state["uplinks"], "bridges": state["bridges"]}
        return [
            template("firewall/firewall-ssh.nft.j2", FIREWALL_LEAST, data={"ports": ports}),
            template("firewall/firewall.nft.j2", FIREWALL_RULES, data=data),
        ]

    with guarded(server, machine, WAY_BACK):
        program = put(
            name="Load the rules at boot, and whenever they are removed",
            entries=[
                source("firewall/firewall", FIREWALL, mode="755"),
                template("firewall/firewall.service.j2", unit_file, data={"program": FIREWALL}),
            ],
        )

        declared = put(name="Declare what is open", entries=files, check='nft -c -f "$new"')

        unit(
            name="Run the firewall",
            unit=FIREWALL_UNIT,
            unit_files={unit_file: program},
            restart_on={FIREWALL: program, FIREWALL_RULES: declared},
        )

        enforce(name="Close everything else")

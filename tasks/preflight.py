"""Refuses, before anything changes, a host on which `deploy.py` could not succeed."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.caddy.sites import warn_of_names
from terrafirma.host.facts import Hardware, Listeners
from terrafirma.host.lifetimes import warn_of_ends
from terrafirma.host.packages import wait_for_apt
from terrafirma.postgres.version import postgres_version
from terrafirma.rules import enough_hardware, limits_hardware
from terrafirma.site import begin, placed

server, machine = begin(host)
settings = server.preflight
version = postgres_version(host, server.postgres, machine)

if machine["free_gb"] < settings.free_disk_gb:
    raise DeployError(
        f"{host.name}: preflight_free_disk_gb: {machine['free_gb']:.1f} GB are free, "
        f"{settings.free_disk_gb} are needed; make room, or set it lower"
    )

hardware = host.get_fact(Hardware, path="/") if limits_hardware(server) else None
if hardware and (lacking := "; ".join(enough_hardware(server, hardware))):
    raise DeployError(f"{host.name}: {lacking}")

# Only the platform's own units may hold the ports on which the platform listens.
sockets = {socket.port: socket for socket in placed(host).sockets}
for listener in host.get_fact(Listeners, ports=list(sockets)):
    port, holder, unit = listener["port"], listener["process"], listener["unit"]
    ours, key = sockets[port].unit, sockets[port].key
    ours = f"postgresql@{version}-main.service" if ours == "postgresql" else ours
    if unit != ours:
        raise DeployError(
            f"{host.name}: port {port} ({key}): held by {holder or 'a program'} "
            f"({unit or 'in no unit'}), not by {ours}; stop it, or move it to another port"
        )

warn_of_names(host, server.apps, server.caddy)
warn_of_ends(host, machine, str(version))

wait_for_apt(name="Wait for other programs that install packages")

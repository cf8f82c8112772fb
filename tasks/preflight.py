"""A host that cannot become what `deploy.py` makes of it is refused before anything changes."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.facts.machine import Listeners
from terrafirma.machine import postgres_version, ready
from terrafirma.operations.packages import wait_for_apt
from terrafirma.settings import Postgres, Preflight

settings = Preflight.of(host)
postgres = Postgres.of(host)
machine = ready(host)
version = postgres_version(host, postgres.version)

if machine["free_gb"] < settings.free_disk_gb:
    raise DeployError(
        f"{host.name}: preflight_free_disk_gb: {machine['free_gb']:.1f} GB are free, "
        f"{settings.free_disk_gb} are needed; make room, or set it lower"
    )

# Who may hold the ports that the platform is going to serve.
units = {80: "caddy.service", 443: "caddy.service", postgres.port: f"postgresql@{version}-main.service"}
for listener in host.get_fact(Listeners, ports=list(units)):
    if listener["unit"] != units[listener["port"]]:
        raise DeployError(
            f"{host.name}: port {listener['port']}: held by {listener['process'] or 'a program'} "
            f"({listener['unit'] or 'in no unit'}), not by {units[listener['port']]}; stop it, or move it"
        )

wait_for_apt(name="Wait for other programs that install packages")

"""A host that cannot become what `deploy.py` makes of it is refused before anything changes."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.budget import refuse_overload
from terrafirma.facts.machine import Listeners
from terrafirma.machine import postgres_version, ready
from terrafirma.operations.packages import wait_for_apt
from terrafirma.pooler import pooler
from terrafirma.settings import App, Postgres, Preflight
from terrafirma.sites import warn_of_names

settings = Preflight.of(host)
postgres = Postgres.of(host)
pgbouncer = pooler(host)
machine = ready(host)
version = postgres_version(host, postgres)

if machine["free_gb"] < settings.free_disk_gb:
    raise DeployError(
        f"{host.name}: preflight_free_disk_gb: {machine['free_gb']:.1f} GB are free, "
        f"{settings.free_disk_gb} are needed; make room, or set it lower"
    )

refuse_overload(host)

# Who may hold the ports that the platform is going to serve.
units = {
    80: "caddy.service",
    443: "caddy.service",
    postgres.port: f"postgresql@{version}-main.service",
}
units |= {pgbouncer.port: "pgbouncer.service"} if pgbouncer.enabled else {}
units |= {port: "docker.service" for app in App.of(host).applications for port in app.ports}
for listener in host.get_fact(Listeners, ports=list(units)):
    port, holder, unit = listener["port"], listener["process"], listener["unit"]
    if unit != units[port]:
        raise DeployError(
            f"{host.name}: port {port}: held by {holder or 'a program'} ({unit or 'in no unit'}), "
            f"not by {units[port]}; stop it, or move it to another port"
        )

warn_of_names(host)

wait_for_apt(name="Wait for other programs that install packages")

"""Caddy serves the applications over HTTPS and spreads the requests over their replicas."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.machine import ready
from terrafirma.operations.files import Directory, put, template
from terrafirma.operations.packages import packages
from terrafirma.operations.services import unit
from terrafirma.settings import App, Caddy, is_public

machine = ready(host)
settings = Caddy.of(host)
caddyfile = "/etc/caddy/Caddyfile"
drop_in = "/etc/systemd/system/caddy.service.d/terrafirma.conf"

if machine["foreign_caddyfile"]:
    raise DeployError(
        f"{host.name}: app_domain: {caddyfile} on the host is not ours, and its sites would be "
        "gone; move it away"
    )

packages(name="Install Caddy", packages=["caddy"])

policy = put(
    name="Restart Caddy after a crash",
    entries=[template("caddy/restart.conf.j2", drop_in)],
)

sites = put(
    name="Configure the sites",
    entries=[
        Directory("/etc/caddy/upstreams"),
        Directory("/etc/caddy/maintenance"),
        template(
            "caddy/Caddyfile.j2",
            caddyfile,
            data={
                "email": settings.email,
                "acme_ca": settings.acme_ca,
                "log_size_mb": settings.log_size_mb,
                "log_files": settings.log_files,
                "sites": [
                    {
                        "name": app.name,
                        "domain": app.domain,
                        "public": is_public(app.domain) or bool(settings.acme_ca),
                        "health_path": app.health_path,
                    }
                    for app in App.of(host).applications
                ],
            },
        ),
    ],
    # As the user that serves: validating opens the log files and Caddy's own authority.
    check="runuser -u caddy -- env HOME=/var/lib/caddy "
    'caddy validate --adapter caddyfile --config "$new" > /dev/null',
)

unit(
    name="Run Caddy",
    unit="caddy.service",
    unit_files={drop_in: policy},
    reload_on={caddyfile: sites},
)

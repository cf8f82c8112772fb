"""Caddy serves the applications over HTTPS and spreads the requests over their replicas."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.app.facts import Kept
from terrafirma.apt.operations import install, look
from terrafirma.caddy.facts import CaddyVersion
from terrafirma.caddy.operations import certificates
from terrafirma.caddy.sites import (
    OLDEST,
    first_routes,
    is_certificate,
    lines,
    names,
    read,
    refuse_options,
    sites,
    warn_of_names,
)
from terrafirma.host.asking import ask
from terrafirma.host.files import Absent, Directory, Entry, File, put, template
from terrafirma.host.kernel import sysctl
from terrafirma.host.units import unit
from terrafirma.paths import CADDY_MAINTENANCE, CADDY_ROOT, CADDY_UPSTREAMS, CADDYFILE
from terrafirma.site import begin, is_routed, kept, placed

server, machine = begin(host)
settings = server.caddy
apps = placed(host).apps
drop_in = "/etc/systemd/system/caddy.service.d/terrafirma.conf"

if machine["foreign_caddyfile"]:
    raise DeployError(
        f"{host.name}: apps: {CADDYFILE} on the host is not ours, and a run would replace its "
        "sites; move it away"
    )

# Read the files of this machine now, so that a missing one ends the run before anything changes.
routed = {app.name for app in apps if is_routed(host, app)}
data = sites(host, apps, settings, routed)
options = lines(host, "caddy_snippet", settings.snippet)
refuse_options(host, options)
root = settings.acme_ca_root and read(host, "caddy_acme_ca_root", settings.acme_ca_root)
if root and not is_certificate(root):
    raise DeployError(
        f"{host.name}: caddy_acme_ca_root: {settings.acme_ca_root!r} is no certificate in PEM"
    )

look(host, server, machine, "caddy")
warn_of_names(host, apps, settings)

install(name="Install Caddy", server=server, machine=machine, engine="caddy")

policy = put(
    name="Restart Caddy after a crash",
    entries=[template("caddy/restart.conf.j2", drop_in)],
)

put(
    name="Configure the kernel to keep queued connections",
    entries=[template("caddy/sysctl.conf.j2", "/etc/sysctl.d/60-terrafirma-caddy.conf")],
)

sysctl(
    name="Keep queued connections across a reload",
    values={"net.ipv4.tcp_migrate_req": 1},
)

put(
    name="Create Caddy's directories",
    entries=[
        # The access logs are closed to other accounts: a logged URL may contain a secret.
        Directory("/var/log/caddy", mode="750", user="caddy", group="adm"),
        Directory("/etc/caddy"),
        Directory(CADDY_UPSTREAMS),
        Directory(CADDY_MAINTENANCE),
    ],
)


def configuration() -> list[Entry]:
    """The Caddyfile, made when the operation runs: the same run may first have to install Caddy."""
    return [
        template(
            "caddy/Caddyfile.j2",
            CADDYFILE,
            data={
                "version": host.get_fact(CaddyVersion) or OLDEST,
                "email": settings.email,
                "acme_ca": settings.acme_ca,
                "acme_ca_root": root and CADDY_ROOT,
                "options": options,
                "log_size_mb": settings.log_size_mb,
                "log_files": settings.log_files,
                "sites": data,
            },
            # It contains password hashes, those of `guards`.
            mode="640",
            group="caddy",
        ),
        *([] if root else [Absent(CADDY_ROOT)]),
    ]


fresh = [app for app in apps if app.name in routed - {*kept(host)["routed"]}]


def until_released() -> list[Entry]:
    """Asked when the operation runs: tasks/app.py may have released them before in the same run."""
    released = ask(host, Kept)["routed"]
    return [
        File(f"{CADDY_UPSTREAMS}/{name}", text)
        for app in fresh
        if app.name not in released
        for name, text in first_routes(app)
    ]


if fresh:
    put(name="Keep the routes to the releases that serve", entries=until_released)

trust = put(
    name="Trust the certificate authority's own certificate",
    entries=[File(CADDY_ROOT, root)] if root else [],
)

caddyfile = put(
    name="Configure the sites",
    entries=configuration,
    # As Caddy's user, because validation creates log files and Caddy's own authority.
    check="runuser -u caddy -- env HOME=/var/lib/caddy "
    'caddy validate --adapter caddyfile --config "$new" > /dev/null',
)

unit(
    name="Run Caddy",
    unit="caddy.service",
    unit_files={drop_in: policy},
    reload_on={CADDYFILE: caddyfile, CADDY_ROOT: trust},
)

certificates(name="Check for missing certificates", domains=list(names(apps)))

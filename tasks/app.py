"""The applications: N replicas of each on loopback ports, released without a failed request."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.app.description import (
    deployer,
    description,
    refuse_further_files,
    revision,
    source_in,
)
from terrafirma.app.env_files import refuse_env_files
from terrafirma.app.given import private, secrets
from terrafirma.app.operations import app_secrets, database_url, release
from terrafirma.app.preflight import refuse_project
from terrafirma.app.selection import refuse_unreadable, selection
from terrafirma.app.source import upload_source
from terrafirma.app.wanted import wanted
from terrafirma.host import program
from terrafirma.host.calendars import refuse_calendars
from terrafirma.host.files import Absent, Directory, File, put, template
from terrafirma.host.machine import distribution
from terrafirma.host.units import unit
from terrafirma.paths import APPLICATIONS, RECOVERY_UNIT, SECRETS
from terrafirma.site import begin, is_routed, kept, placed

server, machine = begin(host)
apps = placed(host).apps
descriptions = {}

for app in apps:
    if not distribution(machine).compose:
        raise DeployError(
            f"{host.name}: apps: {machine['name']}'s archive has no Docker Compose v2; use "
            "apt_source = 'upstream', Debian 13 or Ubuntu 24.04, or set apps to {}"
        )
    refuse_unreadable(host, app)
    refuse_further_files(host, app, server.users)
    refuse_env_files(host, app)
    descriptions[app.name] = description(app, server.users, routed=is_routed(host, app))
    refuse_project(host, app, descriptions[app.name])

schedules = {
    app.key(f"cron.{name}.schedule"): job.schedule for app in apps for name, job in app.cron.items()
}
refuse_calendars(host, schedules, "'hourly' or 'Mon..Fri 03:30'")

known = {block.partition("/")[0] for block in kept(host)["ports"]}
for other in sorted(known - {app.name for app in apps}):
    host.log(f"Not in apps, left alone: {other}; `terrafirma remove {other}` on the host ends it")

put(
    name="Install the command terrafirma",
    entries=[
        *program.entries(),
        # Earlier versions installed this program separately.
        Absent("/usr/local/lib/terrafirma/app-secrets"),
        Directory(SECRETS, "700"),
        Directory(APPLICATIONS, "700"),
    ],
)

for app in host.loop(apps):
    inputs = []
    if app.secrets or app.registries or app.env_file:
        inputs += [
            app_secrets(
                name=f"Give {app.name} its secrets",
                directory=app.secrets_directory,
                secrets=app.secrets,
                given=secrets(host, app),
                user=app.user,
                private=private(host, app),
            )
        ]
    for database, role in server.roles_of(app).items():
        which = "its database" if database == app.database else f"the database {database}"
        inputs += [
            database_url(
                name=f"Give {app.name} the address of {which}",
                path=f"{app.secrets_directory}/{app.database_urls[database]}",
                url=server.database_url(app, database, role),
                role=role,
                user=app.user,
            )
        ]
    if app.source:
        inputs += [
            upload_source(
                name=f"Upload the source of {app.name}",
                directory=app.source_directory,
                selection=selection(app),
                dest=source_in(descriptions[app.name]),
            )
        ]
    content = descriptions[app.name]
    inputs += [
        put(
            name=f"Write the description of {app.name}",
            entries=[File(f"{APPLICATIONS}/{app.name}.json", content, mode="600")],
        )
    ]

    release(
        name=f"Release {app.name}, {app.replicas} replicas",
        app=app.name,
        description=content,
        revision=revision(app.source_directory) if app.source else "",
        by=deployer(),
        after=inputs,
        notes=wanted(app),
    )

# Last, because the unit reads the descriptions.
recovery = f"/etc/systemd/system/{RECOVERY_UNIT}"
unit(
    name="Repair interrupted releases at boot",
    unit=RECOVERY_UNIT,
    unit_files={
        recovery: put(
            name="Write the unit that repairs releases at boot",
            entries=[template("app/recover.service.j2", recovery)],
        )
    },
)

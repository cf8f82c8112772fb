"""The distribution's security updates every day; restarts and reboots only in their windows."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.host.calendars import refuse_calendars
from terrafirma.host.files import put, template
from terrafirma.host.packages import packages
from terrafirma.host.program import entries
from terrafirma.host.units import unit
from terrafirma.paths import HOST_PROGRAM
from terrafirma.site import begin
from terrafirma.updates import engines
from terrafirma.updates.operations import no_units, say_what_is_due
from terrafirma.updates.origins import security_origins

server, machine = begin(host)
settings = server.updates
units = "/etc/systemd/system"

calendars = {"updates_reboot": settings.reboot, "updates_postgres": settings.postgres}
given = {key: value for key, value in calendars.items() if value}
refuse_calendars(host, given, "'Sun *-*-* 04:00:00'")

masked = machine["masked"]
if settings.security and masked:
    raise DeployError(
        f"{host.name}: updates_security: {masked[0]} is masked on the host; systemctl unmask it, "
        "or set updates_security to False"
    )

# How long a window is open, in seconds.
window = 3600
timeouts = {
    name: template(
        "updates/apt-daily.conf.j2",
        f"{units}/{name}.service.d/terrafirma.conf",
        data={"hours": hours},
    )
    for name, hours in (("apt-daily", 2), ("apt-daily-upgrade", 6))
}

configuration = put(
    name="Configure updates and restarts",
    entries=[
        template(
            "updates/60terrafirma-updates.j2",
            "/etc/apt/apt.conf.d/60terrafirma-updates",
            data={
                "security": settings.security,
                "origins": security_origins(machine["id"]),
                "packages": engines.PACKAGES,
            },
        ),
        template(
            "updates/needrestart.conf.j2",
            "/etc/needrestart/conf.d/terrafirma.conf",
            data={"units": engines.UNITS},
        ),
        *timeouts.values(),
    ],
    check='case "$path" in /etc/apt/*) apt-config -c "$new" dump > /dev/null;; esac',
)

# After the configuration, so that the programs follow it from the start.
packages(
    name="Install the programs for updates and restarts",
    packages=["needrestart", *(["unattended-upgrades"] if settings.security else [])],
)

# Without security updates apt-daily-upgrade has nothing to do, and a masked timer may stay so.
daily = ["apt-daily", *(["apt-daily-upgrade"] if settings.security else [])]
for name in host.loop([one for one in daily if f"{one}.timer" not in masked]):
    unit(
        name=f"Run {name} every day",
        unit=f"{name}.timer",
        unit_files={timeouts[name].path: configuration},
    )

put(name="Install the command terrafirma", entries=entries)

minor = str(server.postgres.version or "")
windows = {
    "reboot": (settings.reboot, {"program": HOST_PROGRAM, "seconds": window}),
    "postgres-minor": (
        settings.postgres,
        # A major version needs no limit: the names of the packages contain it.
        {"program": HOST_PROGRAM, "seconds": window, "version": minor if "." in minor else ""},
    ),
}
for name, (calendar, data) in host.loop(windows.items()):
    title, key = {
        "reboot": ("a reboot", "updates_reboot"),
        "postgres-minor": ("PostgreSQL's minor releases", "updates_postgres"),
    }[name]
    service, timer = f"terrafirma-{name}.service", f"terrafirma-{name}.timer"
    report = "terrafirma-reboot-report.service"
    reports = [report] if name == "reboot" else []
    if not calendar:
        no_units(name=f"Close the window for {title}", names=[service, timer, *reports])
        continue
    schedule = put(
        name=f"Schedule the window for {title}",
        entries=[
            template(f"updates/{name}.service.j2", f"{units}/{service}", data=data),
            template(f"updates/{name}.timer.j2", f"{units}/{timer}", data={"window": calendar}),
            *(
                template("updates/reboot-report.service.j2", f"{units}/{one}", data=data)
                for one in reports
            ),
        ],
    )
    files = {f"{units}/{one}": schedule for one in (service, timer)}
    unit(
        name=f"Open the window for {title}",
        unit=timer,
        unit_files=files,
        restart_on={f"{units}/{timer}": schedule},
    )
    for one in reports:
        unit(
            name="Check the host after a reboot",
            unit=one,
            unit_files={f"{units}/{one}": schedule},
        )

say_what_is_due(name="Report what is due")

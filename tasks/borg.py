"""Encrypted backups of databases and files on another host, the first of them made and listed."""

from pyinfra import host

from terrafirma.borg.operations import first_backup, keys, warn
from terrafirma.host.files import Directory, path_states, put, source, template
from terrafirma.host.packages import packages
from terrafirma.host.units import unit
from terrafirma.paths import (
    BACKUP_CONFIG,
    BACKUP_KEY,
    BACKUP_PROGRAM,
    BACKUP_SECRETS,
    BACKUP_STAMP,
    BACKUP_STATE,
)
from terrafirma.postgres.version import postgres_version
from terrafirma.site import begin

server, machine = begin(host)
settings = server.borg
service = "/etc/systemd/system/borgmatic.service"
timer = "/etc/systemd/system/borgmatic.timer"
known_hosts = "/etc/borgmatic/known_hosts"

if not settings.repository:
    # Nothing that once was set up is taken away: a backup that goes on does no harm.
    before = BACKUP_CONFIG in path_states([BACKUP_CONFIG])
    warn(
        name="No backups",
        message="borg_repository is empty, but backups go on as they were set up once; "
        "`systemctl disable --now borgmatic.timer` on the host ends them"
        if before
        else "There are no backups: set borg_repository to a repository on another host",
    )
else:
    packages(name="Install borgmatic", packages=["borgbackup", "borgmatic", "openssh-client"])

    keys(name="Create the keys", directory=BACKUP_SECRETS)

    put(
        name="Configure what is backed up, and where to",
        entries=[
            Directory(BACKUP_STATE, "700"),
            *(
                source(f"borg/{name}", f"{BACKUP_PROGRAM.removesuffix('backup')}{name}")
                for name in ("backup_causes.py", "backup_store.py")
            ),
            source("borg/backup", BACKUP_PROGRAM, mode="755"),
            template(
                "borg/config.yaml.j2",
                BACKUP_CONFIG,
                data={
                    **settings.model_dump(),
                    # The roles lie there. borgmatic takes what is below another directory once.
                    "directories": [*settings.directories, BACKUP_STATE],
                    "databases": server.postgres.databases,
                    "cluster": f"{postgres_version(host, server.postgres, machine)}/main",
                    "known_hosts": known_hosts,
                    "known_host_lines": settings.known_hosts,
                    "secrets": BACKUP_SECRETS,
                    "sections": (machine["id"], machine["version"]) == ("debian", "12"),
                    "state": BACKUP_STATE,
                },
                mode="600",
            ),
            # After the settings, which were proved with these lines.
            template(
                "borg/known_hosts.j2", known_hosts, data={"lines": settings.known_hosts}, mode="600"
            ),
        ],
        # What does not open the repository does not replace what does.
        check=f'case "$path" in {BACKUP_CONFIG}) {BACKUP_PROGRAM} prove "$new";; esac',
    )

    schedule = put(
        name="Schedule the backups",
        entries=[
            template("borg/borgmatic.service.j2", service, data={"program": BACKUP_PROGRAM}),
            template("borg/borgmatic.timer.j2", timer, data={"schedule": settings.schedule}),
        ],
        check='when=$(sed -n s/^OnCalendar=//p "$new"); '
        'test -z "$when" || systemd-analyze calendar "$when" > /dev/null ||'
        ' { echo "borg_schedule: systemd does not understand: $when" >&2; exit 1; }',
    )

    unit(
        name="Run the backups on time",
        unit="borgmatic.timer",
        unit_files={service: schedule, timer: schedule},
        restart_on={timer: schedule},
    )

    first_backup(
        name="Make a backup, and list it",
        configuration=[BACKUP_CONFIG, known_hosts, BACKUP_KEY, f"{BACKUP_SECRETS}/passphrase"],
        stamp=BACKUP_STAMP,
    )

"""Encrypted nightly backups of databases and files on another host, proved by a first backup."""

from pyinfra import host

from terrafirma.borg.operations import first_backup, keys, warn
from terrafirma.host import program
from terrafirma.host.files import Directory, path_states, put, source, template
from terrafirma.host.packages import packages
from terrafirma.host.units import unit
from terrafirma.paths import (
    BACKUP_CONFIG,
    BACKUP_KEY,
    BACKUP_PROGRAM,
    BACKUP_RESULT,
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
    # An earlier setup stays: backups that go on do no harm.
    before = BACKUP_CONFIG in path_states([BACKUP_CONFIG])
    warn(
        name="No backups",
        message="borg_repository is empty, but backups go on as an earlier run set them up; "
        "`systemctl disable --now borgmatic.timer` on the host ends them"
        if before
        else "There are no backups: set borg_repository to a repository on another host",
    )
else:
    packages(name="Install borgmatic", packages=["borgbackup", "borgmatic", "openssh-client"])

    keys(name="Create the backup keys", directory=BACKUP_SECRETS)

    put(
        name="Configure the backups",
        entries=[
            # It finds the volumes of applications.
            *program.entries(),
            Directory(BACKUP_STATE, "700"),
            *(
                source(f"borg/backup_{name}.py", f"{BACKUP_PROGRAM}_{name}.py")
                for name in ("causes", "result", "store", "volumes")
            ),
            source("borg/backup", BACKUP_PROGRAM, mode="755"),
            template(
                "borg/config.yaml.j2",
                BACKUP_CONFIG,
                data={
                    **settings.model_dump(),
                    # BACKUP_STATE holds the dump of the roles. If one of the other directories
                    # contains it, borgmatic still backs it up only once.
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
            # After the configuration, whose check below has proved these lines.
            template(
                "borg/known_hosts.j2", known_hosts, data={"lines": settings.known_hosts}, mode="600"
            ),
        ],
        # A configuration that fails to open the repository must not replace one that does.
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
        name="Start the backup timer",
        unit="borgmatic.timer",
        unit_files={service: schedule, timer: schedule},
        restart_on={timer: schedule},
    )

    first_backup(
        name="Make and verify a first backup",
        configuration=[BACKUP_CONFIG, known_hosts, BACKUP_KEY, f"{BACKUP_SECRETS}/passphrase"],
        stamp=BACKUP_STAMP,
        result=BACKUP_RESULT,
    )

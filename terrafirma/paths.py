"""Where things live on a host that more than one file of ours names."""

from __future__ import annotations

HOST_PROGRAM = "/usr/local/bin/terrafirma"
"""What one does with the host every day, and what the deploy does; from files/terrafirma."""

HOST_LIBRARY = "/usr/local/lib/terrafirma/terrafirma_host"
"""Its modules; from files/terrafirma_host."""

SECRETS = "/etc/terrafirma/secrets"
"""0700, root: everything secret that was generated on the server."""

PASSWORDS = f"{SECRETS}/postgres"
"""The passwords of PostgreSQL's roles: a file for each, named after it."""

PASSWORDS_PROGRAM = f"{HOST_PROGRAM} passwords"
"""Keeps roles and files equal."""

SECRETS_PROGRAM = f"{HOST_PROGRAM} secrets"
"""Keeps the secrets of the applications in their files."""

POSTGRES_CHECK = f"{HOST_PROGRAM} postgres-check"
"""Tries a new file of the server's settings."""

DOCKER_PORTS = "/usr/local/lib/terrafirma/docker-ports"
"""Bridges the starts of the engine; from files/docker/docker-ports."""
DOCKER_ENGINE = "/usr/local/lib/terrafirma/docker-engine"
"""Tries its configuration and restarts it; from files/docker/docker-engine."""

BACKUP_SECRETS = f"{SECRETS}/borg"
"""The passphrase of the repository and the SSH key that opens the backup host."""

BACKUP_KEY = f"{BACKUP_SECRETS}/id_ed25519.pub"
"""What the backup host must let in."""

BACKUP_CONFIG = "/etc/borgmatic/config.yaml"
"""borgmatic's configuration."""

BACKUP_PROGRAM = "/usr/local/lib/terrafirma/backup"
"""Makes backups and reads them back; from files/borg/backup."""

BACKUP_STATE = "/var/lib/terrafirma/backup"
"""The roles of the last dump."""

BACKUP_STAMP = f"{BACKUP_STATE}/proved-by"
"""Name of the archive that proved the configuration."""

UPDATES_STATE = "/var/lib/terrafirma/updates"
"""What the windows for a restart and for a reboot have brought about."""

DROPPED = "/var/lib/terrafirma/dropped"
"""The last dumps of databases that were dropped."""

UPGRADE_PROGRAM = f"{HOST_PROGRAM} postgres-upgrade"
"""Does what must not end with the connection."""

UPGRADE_STATE = "/var/lib/terrafirma/upgrade"
"""0700, root: the dump that was made before an upgrade, and what the last one said."""

UPGRADE_LOG = f"{UPGRADE_STATE}/log"
"""What the upgrade that is going on, or the last one, says."""

UPGRADE_UNIT = "terrafirma-postgres-upgrade.service"
"""The unit that an upgrade is, for as long as it lasts."""

PACKAGES_STATE = "/var/lib/terrafirma/packages"
"""0700, root: the packages of the engines as files, for a way back, and what an upgrade is at."""

POOLER_CONFIG = "/etc/pgbouncer/pgbouncer.ini"
"""What PgBouncer reads as it starts; it includes the rest."""

POOLER_USERS = "/etc/pgbouncer/userlist.txt"
"""The verifiers of the roles that PgBouncer lets in."""

POOLER_DROP_IN = "/etc/systemd/system/pgbouncer.service.d/terrafirma.conf"
"""Written before the package is installed: where it is, PgBouncer is ours."""

POOLER_CHECK = "/usr/local/lib/terrafirma/pgbouncer-check"
"""Tries a new file of PgBouncer's; from files/pgbouncer/pgbouncer-check."""

SUDOERS = "/etc/sudoers.d/90-terrafirma-"
"""What sudo allows an account: the file is named after it."""

RECOVERY_UNIT = "terrafirma-recover.service"
"""Puts right at boot what a release left that died with the host."""

APPLICATIONS = "/etc/terrafirma/apps"
"""What each application is to be: NAME.json, for the program above."""

CADDYFILE = "/etc/caddy/Caddyfile"
"""The sites; it imports what is in the two directories."""

CADDY_UPSTREAMS = "/etc/caddy/upstreams"
"""`NAME.green` for each application whose release in the slot green serves."""

CADDY_MAINTENANCE = "/etc/caddy/maintenance"
"""`NAME.caddy` for each application that is under maintenance."""

CADDY_ROOT = "/etc/caddy/acme-ca-root.pem"
"""Who signed the certificate of the certificate authority's own address."""

APT_PROXY = "/etc/apt/apt.conf.d/60terrafirma-proxy"
"""The proxy through which apt fetches, perhaps with a password."""

APT_PREFERENCES = "/etc/apt/preferences.d/terrafirma"
"""What is taken from the vendors' repositories."""

REPOSITORIES = "/var/lib/terrafirma/repositories"
"""0700, root: what each vendor's repository was tried for, and the digest of its source."""

OURS = (
    "/etc/apt/apt.conf.d/60terrafirma",
    APT_PROXY,
    APT_PREFERENCES,
    "/etc/apt/sources.list.d/terrafirma-*.sources",
    "/etc/apt/apt.conf.d/60terrafirma-updates",
    "/etc/needrestart/conf.d/*",
    "/etc/sudoers.d/90-terrafirma-*",
    "/etc/ssh/sshd_config.d/00-terrafirma.conf",
    "/etc/sysctl.d/60-terrafirma-*",
    "/etc/systemd/system/*.d/terrafirma.conf",
    "/etc/systemd/system/terrafirma-*",
    "/etc/systemd/system/borgmatic.*",
    "/etc/docker/daemon.json",
    "/etc/postgresql-common/createcluster.d/terrafirma.conf",
    "/etc/postgresql/*/main/*.conf",
    "/etc/postgresql/*/main/conf.d/terrafirma.conf",
    "/etc/pgbouncer/*",
    "/etc/caddy",
    "/etc/caddy/*",
    "/var/log/caddy",
    "/etc/borgmatic/*",
    "/etc/terrafirma/*",
    "/etc/terrafirma/apps/*",
    "/etc/terrafirma/secrets/*",
    "/opt/terrafirma/*/sources/*",
    "/usr/local/bin/terrafirma",
    "/usr/local/lib/terrafirma/*",
    "/usr/local/lib/terrafirma/terrafirma_host/*",
    "/var/lib/terrafirma/*",
    "/var/lib/terrafirma/repositories/*",
)
"""Patterns of nearly all paths that operations ask about: one question answers for them."""

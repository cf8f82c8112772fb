"""Paths on a host that several files of this project name."""

from __future__ import annotations

HOST_PROGRAM = "/usr/local/bin/terrafirma"
"""The command for everyday work on the host, also used by the deploy; from files/terrafirma."""

HOST_LIBRARY = "/usr/local/lib/terrafirma/terrafirma_host"
"""The modules of HOST_PROGRAM; from files/terrafirma_host."""

SECRETS = "/etc/terrafirma/secrets"
"""0700, root: all secrets that were generated on the server."""

PASSWORDS = f"{SECRETS}/postgres"
"""The passwords of PostgreSQL's roles: one file for each role, named after it."""

PASSWORDS_PROGRAM = f"{HOST_PROGRAM} passwords"
"""Keeps the passwords in PostgreSQL equal to those in the files."""

SECRETS_PROGRAM = f"{HOST_PROGRAM} secrets"
"""Keeps the secrets of the applications in their files."""

POSTGRES_CHECK = f"{HOST_PROGRAM} postgres-check"
"""Tries a new file of PostgreSQL's settings."""

DOCKER_PORTS = "/usr/local/lib/terrafirma/docker-ports"
"""Keeps published ports reachable while the engine starts; from files/docker/docker-ports."""
DOCKER_ENGINE = "/usr/local/lib/terrafirma/docker-engine"
"""Tries a new configuration of the engine and restarts it; from files/docker/docker-engine."""

FIREWALL = "/usr/local/lib/terrafirma/firewall"
"""Loads the firewall's rules, and again when another program removes them; from files/firewall."""
FIREWALL_RULES = "/etc/terrafirma/firewall.nft"
"""The firewall's rules."""
FIREWALL_LEAST = "/etc/terrafirma/firewall-ssh.nft"
"""Rules that let SSH in alone, for the case that those of FIREWALL_RULES do not load."""
FIREWALL_UNIT = "terrafirma-firewall.service"
"""Loads the rules before the network is up, and watches them."""

BACKUP_SECRETS = f"{SECRETS}/borg"
"""The passphrase of the repository, and the SSH key for the backup host."""

BACKUP_KEY = f"{BACKUP_SECRETS}/id_ed25519.pub"
"""The public key that the backup host must accept."""

BACKUP_CONFIG = "/etc/borgmatic/config.yaml"
"""borgmatic's configuration."""

BACKUP_PROGRAM = "/usr/local/lib/terrafirma/backup"
"""Makes backups and reads them back; from files/borg/backup."""

BACKUP_STATE = "/var/lib/terrafirma/backup"
"""The dump of the roles from the last backup."""

BACKUP_STAMP = f"{BACKUP_STATE}/proved-by"
"""Holds the name of the archive that proved the configuration."""

BACKUP_RESULT = f"{BACKUP_STATE}/last.json"
"""The result of the last backup; files/borg/backup_result.py writes it."""

UPDATES_STATE = "/var/lib/terrafirma/updates"
"""The results of the windows for a restart and for a reboot."""

DROPPED = "/var/lib/terrafirma/dropped"
"""The last dumps of databases that were dropped."""

UPGRADE_PROGRAM = f"{HOST_PROGRAM} postgres-upgrade"
"""Upgrades PostgreSQL; outlives the connection."""

UPGRADE_STATE = "/var/lib/terrafirma/upgrade"
"""0700, root: the dump from before an upgrade, and the log of the last upgrade."""

UPGRADE_LOG = f"{UPGRADE_STATE}/log"
"""The output of the current upgrade, or of the last one."""

UPGRADE_UNIT = "terrafirma-postgres-upgrade.service"
"""The unit in which an upgrade runs; exists only while it runs."""

PACKAGES_STATE = "/var/lib/terrafirma/packages"
"""0700, root: the engines' package files, for a rollback, and the state of an upgrade."""

POOLER_CONFIG = "/etc/pgbouncer/pgbouncer.ini"
"""The file that PgBouncer reads when it starts; it includes the others."""

POOLER_USERS = "/etc/pgbouncer/userlist.txt"
"""The password verifiers of the roles that PgBouncer accepts."""

POOLER_DROP_IN = "/etc/systemd/system/pgbouncer.service.d/terrafirma.conf"
"""Written before the package is installed, so its presence marks PgBouncer as ours."""

POOLER_CHECK = "/usr/local/lib/terrafirma/pgbouncer-check"
"""Tries a new PgBouncer file; from files/pgbouncer/pgbouncer-check."""

SUDOERS = "/etc/sudoers.d/90-terrafirma-"
"""Start of the path of an account's sudo rules; the account's name follows."""

SSHD_SOCKET = "/etc/systemd/system/ssh.socket.d/terrafirma.conf"
"""The ports on which systemd listens for sshd, where it does."""

RECOVERY_UNIT = "terrafirma-recover.service"
"""Repairs, at boot, what an interrupted release left when the host went down."""

APPLICATIONS = "/etc/terrafirma/apps"
"""The description of each application, NAME.json, which HOST_PROGRAM reads."""

CADDYFILE = "/etc/caddy/Caddyfile"
"""The sites; it imports the files of the two directories below."""

CADDY_UPSTREAMS = "/etc/caddy/upstreams"
"""Holds `NAME.green` for each application whose green slot serves."""

CADDY_MAINTENANCE = "/etc/caddy/maintenance"
"""Holds `NAME.caddy` for each application that shows its maintenance page."""

CADDY_ROOT = "/etc/caddy/acme-ca-root.pem"
"""The root certificate that vouches for the ACME server itself."""

APT_PROXY = "/etc/apt/apt.conf.d/60terrafirma-proxy"
"""The proxy through which apt fetches, perhaps with a password."""

APT_PREFERENCES = "/etc/apt/preferences.d/terrafirma"
"""The preferences that limit which packages come from the vendors' repositories."""

REPOSITORIES = "/var/lib/terrafirma/repositories"
"""0700, root: for each vendor's repository, the tested properties and the digest of its source."""

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
"""Patterns for nearly all paths that operations ask about, so that one command reads them all."""

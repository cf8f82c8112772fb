"""
Every setting with its default; a group file or the inventory overrides any key.

Keep what differs for your servers in a file of your own, `group_data/servers.py` for the group
`servers` of inventory.py, and leave this one as it is.
"""

from terrafirma.host.connection import without_delay

# Saves 40 ms on every command of a run: see terrafirma/host/connection.py.
ssh_paramiko_connect_kwargs = {"transport_factory": without_delay}

# --- preflight: what a host must have before anything changes -------------------------------------

# Refuse a host with less free disk than this, in GB.
preflight_free_disk_gb = 2
# How long to wait for cloud-init, or for another program that holds apt's lock, in seconds.
preflight_wait_seconds = 600

# --- apt: package sources and base packages -------------------------------------------------------

# Where Docker, PostgreSQL and Caddy come from: "distro" is the distribution's own archive,
# "upstream" the repositories of their vendors, whose keys are pinned in terrafirma/apt/vendors.py.
apt_source = "distro"
# Other addresses of these repositories, as of a mirror: {"docker": "https://mirror.acme.com/docker"}
# is the directory that has `dists`; "pgdg", "docker" and "caddy".
apt_urls = {}
# Files on this machine with the vendors' keys, where the hosts cannot fetch them, by the same
# names. The pinned fingerprints hold for them as well.
apt_keys = {}
# Proxy through which apt fetches, "http://proxy:3128" or "http://user@proxy:3128"; the password of
# that user is in TERRAFIRMA_APT_PROXY_PASSWORD in the environment of pyinfra. Empty: none of ours.
apt_proxy = ""
# Refresh the package lists before an installation when they are older than this, in hours.
apt_cache_hours = 24
# Packages that every host gets.
apt_packages = ["ca-certificates", "curl", "gnupg", "lsb-release", "python3", "vim", "wget"]

# --- users: who may log in ------------------------------------------------------------------------

# The accounts of the host: `prod` owns the applications, `ingres` deploys, `dev` looks around.
users_accounts = [
    {"name": "prod"},
    {"name": "ingres", "sudo": ["ALL"]},
    {"name": "dev"},
]

# --- sshd -----------------------------------------------------------------------------------------

# Whether a password is enough to log in.
sshd_password_authentication = False
# Who may log in besides `users_accounts` and the user who runs the deploy.
sshd_allow_users = []

# --- docker ---------------------------------------------------------------------------------------

# Version, or its beginning: "28", "28.2". Empty: the newest that there is when it is installed.
docker_version = ""
# Docker takes the subnets of its networks from here; must not overlap a network that you use.
docker_address_pool = "10.210.0.0/16"
# Prefix length of each of these subnets.
docker_subnet_size = 24
# A container's log is rotated at this size …
docker_log_max_size = "20m"
# … and so many files of it are kept.
docker_log_max_files = 5
# Bridge networks for applications.
docker_networks = ["apps"]
# Further keys for daemon.json, as Docker documents them, but for those that would undo the design.
docker_daemon = {}

# --- postgres -------------------------------------------------------------------------------------

# Major version, one that the host's sources have, or a minor one as text, "17.5"; None: the major
# that the distribution ships.
postgres_version = None
# Take over a cluster that somebody else made on the host.
postgres_adopt = False
# Port on localhost and on the docker0 address.
postgres_port = 5432
# Roles; their passwords are generated on the server, in /etc/terrafirma/secrets/postgres.
postgres_roles = [{"name": "api"}]
# Databases, each with its owner, and who else may do what in it.
postgres_databases = [{"name": "api", "owner": "api"}]
# Packages with extensions that Terrafirma does not know by name.
postgres_packages = []
# Connections that the server accepts at most.
postgres_max_connections = 100
# Share of the host's memory that is PostgreSQL's; the applications have the rest.
postgres_memory_percent = 75
# Kind of disk, "ssd" or "hdd"; empty: what the host says.
postgres_disk = ""
# Settings for the server, as PostgreSQL documents them: they win over the tuned ones.
postgres_settings = {}

# The server's log in /var/log/postgresql is rotated by Debian's file in /etc/logrotate.d, which
# keeps ten weeks.

# --- pgbouncer: many clients share few connections to PostgreSQL ----------------------------------

# Whether PgBouncer runs; an application uses it when its `pgbouncer` says so.
pgbouncer_enabled = False
# Port on localhost and on the docker0 address.
pgbouncer_port = 6432
# Connections to PostgreSQL for each pair of a database and a role.
pgbouncer_pool_size = 20
# Clients that it accepts at most.
pgbouncer_max_clients = 1000
# Further settings, as PgBouncer documents them.
pgbouncer_settings = {}

# --- apps: the applications, N replicas of each, released without a failed request ----------------

# Each application under its name, with a source or an image, a domain, and what else differs from
# the defaults (docs/settings.md lists all fields); {}: none. `--data apps.api.replicas=6` replaces
# one field.
apps = {
    "api": {
        "source": "examples/api",
        "domain": "api.terrafirma.test",
        "database": "api",
    },
}

# --- caddy: HTTPS and load balancing --------------------------------------------------------------

# Version, or its beginning: "2", "2.10". Empty: the newest that there is when it is installed.
caddy_version = ""
# Address for the certificate authority's messages; empty: none.
caddy_email = ""
# ACME directory of the certificate authority; empty: Caddy's default. Names that no public
# authority signs (.test, .internal, localhost …) get a certificate of Caddy's own authority.
caddy_acme_ca = ""
# File on this machine with the root certificate that vouches for that authority's own address;
# empty: one that the host trusts.
caddy_acme_ca_root = ""
# An access log is rotated at this size, in MB …
caddy_log_size_mb = 50
# … and so many files of it are kept.
caddy_log_files = 10
# File on this machine with further global options, as the Caddyfile has them.
caddy_snippet = ""

# --- borg: backups --------------------------------------------------------------------------------

# Repository on another host, ssh://user@host:port/./path; empty: no backups.
borg_repository = ""
# The program borg there, where it is not in the account's PATH: "/usr/local/bin/borg", "borg-1.4".
borg_remote_path = ""
# Id of the repository that is to be there. Needed once, where it moved, or where this server is to
# go on with another one: the run says the id.
borg_repository_id = ""
# Id of the repository that a new one is to take the place of; the run says it where that is needed.
borg_repository_replaces = ""
# SSH host keys of that host, as lines of a known_hosts file.
borg_known_hosts = []
# What is backed up besides a dump of every database.
borg_directories = ["/etc", "/home", "/opt", "/root", "/srv", "/var"]
# Borg patterns that are left out; running databases and containers are dumped or rebuilt instead.
borg_exclude = [
    "/var/lib/postgresql",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/cache",
    "/var/tmp",
    "/home/*/.cache",
    "/root/.cache",
    "*/__pycache__",
    "*/.pyenv",
]
# Databases that are not dumped; without this, one that takes no connections makes each backup fail.
borg_exclude_databases = []
# Archives that are kept; there are as many a day as `borg_schedule` makes.
borg_keep_daily = 7
borg_keep_weekly = 4
borg_keep_monthly = 6
# When a backup is made, as systemd's OnCalendar (see man systemd.time).
borg_schedule = "*-*-* 02:00:00"

# --- updates: what the server installs by itself, and when it may restart for that ----------------

# Whether security updates of the distribution are installed every day; Docker, PostgreSQL, Caddy
# and PgBouncer are not among them.
updates_security = True
# When new minor releases of PostgreSQL are installed, which restarts it, as systemd's OnCalendar:
# "Sun *-*-* 04:00:00"; empty: never by themselves.
updates_postgres = ""
# When the server may reboot, if it is due; empty: each run says that it is due, and that is all.
updates_reboot = ""

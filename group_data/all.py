"""
Every setting with its default; a group file or the inventory overrides any key.

Leave this file as it is. Write the settings of your servers into a file of your own:
`group_data/servers.py` for the group `servers` of inventory.py.
"""

from terrafirma.host.connection import without_delay

# Saves 40 ms on every command of a run: see terrafirma/host/connection.py.
ssh_paramiko_connect_kwargs = {"transport_factory": without_delay}

# --- preflight: requirements for a host, checked before anything changes --------------------------

# Refuse a host with less free disk than this, in GB.
preflight_free_disk_gb = 2
# How long to wait for cloud-init, and for another program to release apt's lock, in seconds.
preflight_wait_seconds = 600

# --- apt: package sources and base packages -------------------------------------------------------

# Where Docker, PostgreSQL and Caddy come from: "distro" is the distribution's own archive,
# "upstream" the repositories of their vendors, whose keys are pinned in terrafirma/apt/vendors.py.
apt_source = "distro"
# Other addresses of the vendors' repositories, for example of a mirror, by "pgdg", "docker" and
# "caddy": {"docker": "https://mirror.acme.com/docker"}, the directory that contains `dists`.
apt_urls = {}
# Files on this machine with the vendors' keys, by the same names, if the hosts cannot fetch them.
# The keys must have the pinned fingerprints.
apt_keys = {}
# Proxy through which apt fetches, "http://proxy:3128" or "http://user@proxy:3128"; put the user's
# password into TERRAFIRMA_APT_PROXY_PASSWORD in the environment of pyinfra. Empty: apt uses the
# host's own configuration.
apt_proxy = ""
# Refresh the package lists before an installation when they are older than this, in hours.
apt_cache_hours = 24
# Packages that every host gets.
apt_packages = ["ca-certificates", "curl", "gnupg", "lsb-release", "python3", "vim", "wget"]

# --- users: who may log in ------------------------------------------------------------------------

# The accounts of the host: applications may run as `prod`, `ingres` deploys, `dev` looks around.
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
# Whether root may log in, with a key, if it is the user who runs the deploy or in
# `sshd_allow_users`. With False, root is shut out once an administrator's login is proved.
sshd_root_login = True
# The ports on which sshd listens, and no other; empty: those that it has.
sshd_ports = []
# How many keys a client may offer in one connection: at least as many as an agent has.
sshd_max_auth_tries = 4

# --- guard: changes that undo themselves ----------------------------------------------------------

# Within how many seconds the host is as before, when a change to sshd, keys, sudo or the firewall
# is not followed by a new login: because it keeps the deploying account out, or because the
# deploying machine died.
guard_seconds = 60

# --- docker ---------------------------------------------------------------------------------------

# Version, or its beginning: "28", "28.2". Empty: the newest at the time of the installation.
docker_version = ""
# Docker takes the subnets of its networks from this pool; it must not overlap a network in use.
docker_address_pool = "10.210.0.0/16"
# Prefix length of each of these subnets.
docker_subnet_size = 24
# Size at which a container's log is rotated.
docker_log_max_size = "20m"
# How many log files each container keeps.
docker_log_max_files = 5
# Bridge networks for applications.
docker_networks = ["apps"]
# Further keys for daemon.json, as Docker documents them, except those that would undo the design.
docker_daemon = {}

# --- firewall: what of the host is open, and to whom ----------------------------------------------

# Whether only what is declared is open: SSH, the sites, the databases of containers, firewall_open.
# False: Terrafirma's rules are removed, and any others stay.
firewall_enabled = True
# Addresses and networks from which SSH is open, that of your own machine among them; []: all.
firewall_ssh_sources = []
# What is open besides; docs/tasks/firewall.md has the fields of an entry:
# [{"port": 9100, "sources": ["203.0.113.0/24"], "rate": "10/minute", "comment": "node exporter"}].
firewall_open = []
# Whether a full run ends with connections from your machine, which prove what is open.
firewall_proof = True

# --- postgres -------------------------------------------------------------------------------------

# Major version, which the host's sources must have, or a minor version as text, "17.5"; None: the
# major version that the distribution ships.
postgres_version = None
# Take over an existing cluster that Terrafirma did not make.
postgres_adopt = False
# Port on localhost and on the docker0 address.
postgres_port = 5432
# Roles; their passwords are generated on the server, in /etc/terrafirma/secrets/postgres.
postgres_roles = [{"name": "api"}]
# Databases, each with its owner and the rights of other roles in it.
postgres_databases = [{"name": "api", "owner": "api"}]
# Packages with extensions that Terrafirma does not know by name.
postgres_packages = []
# The most connections that the server accepts.
postgres_max_connections = 100
# Share of the host's memory for PostgreSQL; the rest is for the applications.
postgres_memory_percent = 75
# Kind of disk, "ssd" or "hdd"; empty: as the host reports it.
postgres_disk = ""
# Settings for the server, as PostgreSQL documents them; they override the tuned values.
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
# The most clients that PgBouncer accepts.
pgbouncer_max_clients = 1000
# Further settings, as PgBouncer documents them.
pgbouncer_settings = {}

# --- apps: the applications, N replicas of each, released without a failed request ----------------

# Each application under its name, with a source or an image, a domain, and every field that differs
# from its default (docs/settings.md lists all fields); {}: none. `--data apps.api.replicas=6`
# replaces one field.
apps = {
    "api": {
        "source": "examples/api",
        "domain": "api.terrafirma.test",
        "database": "api",
        "user": "prod",
        "read_only": True,
    },
}

# --- caddy: HTTPS and load balancing --------------------------------------------------------------

# Version, or its beginning: "2", "2.10". Empty: the newest at the time of the installation.
caddy_version = ""
# Your email address, for messages from the certificate authority; empty: none.
caddy_email = ""
# ACME directory of the certificate authority; empty: Caddy's default. Names that no public
# authority signs (.test, .internal, localhost …) get a certificate of Caddy's own authority.
caddy_acme_ca = ""
# File on this machine with the root certificate that vouches for that authority's own address;
# empty: one that the host trusts.
caddy_acme_ca_root = ""
# Size at which an access log is rotated, in MB.
caddy_log_size_mb = 50
# How many files of an access log are kept.
caddy_log_files = 10
# File on this machine with further global options, in the syntax of the Caddyfile.
caddy_snippet = ""

# --- borg: backups --------------------------------------------------------------------------------

# Repository on another host, ssh://user@host:port/./path; empty: no backups.
borg_repository = ""
# The borg program there, if it is not in the account's PATH: "/usr/local/bin/borg", "borg-1.4".
borg_remote_path = ""
# Id of the expected repository. Needed once, after the repository moved, or to continue with
# another one: the run then prints the id.
borg_repository_id = ""
# Id of the repository that a new one replaces; the run prints the id when it is needed.
borg_repository_replaces = ""
# SSH host keys of that host, as lines of a known_hosts file.
borg_known_hosts = []
# Directories to back up, besides a dump of every database.
borg_directories = ["/etc", "/home", "/opt", "/root", "/srv", "/var"]
# Borg patterns to leave out: databases are dumped instead, and containers rebuilt.
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
# Databases not to dump; a database that accepts no connections makes every backup fail, unless it
# is listed here.
borg_exclude_databases = []
# How many archives to keep; `borg_schedule` decides how many are made in a day.
borg_keep_daily = 7
borg_keep_weekly = 4
borg_keep_monthly = 6
# When to make a backup, in the form of systemd's OnCalendar (see man systemd.time).
borg_schedule = "*-*-* 02:00:00"

# --- updates: automatic installations, and times when the server may restart for them -------------

# Whether the distribution's security updates are installed every day, except those of Docker,
# PostgreSQL, Caddy and PgBouncer.
updates_security = True
# When new minor releases of PostgreSQL are installed, which restarts it, as systemd's OnCalendar:
# "Sun *-*-* 04:00:00"; empty: never automatically.
updates_postgres = ""
# When the server may reboot if it needs to; empty: never, and each run reports a pending reboot.
updates_reboot = ""

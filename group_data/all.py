"""
Every setting with its default; a group file or the inventory overrides any key.

Keep what differs for your servers in a file of your own, `group_data/servers.py` for the group
`servers` of inventory.py, and leave this one as it is.
"""

from terrafirma.connection import without_delay

# Saves 40 ms on every command of a run: see terrafirma/connection.py.
ssh_paramiko_connect_kwargs = {"transport_factory": without_delay}

# --- preflight: what a host must have before anything changes -------------------------------------

# Refuse a host with less free disk than this, in GB.
preflight_free_disk_gb = 2
# How long to wait for cloud-init, or for another program that holds apt's lock, in seconds.
preflight_wait_seconds = 600

# --- apt: package sources and base packages -------------------------------------------------------

# Where packages come from: "distro" is the distribution's own archive ("upstream", the vendors'
# repositories, is not built yet).
apt_source = "distro"
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

# Major version, one that the host's archives have; None: the one that the distribution ships.
postgres_version = None
# For tasks/postgres_upgrade.py, on the command line: "back" to the cluster from before the upgrade,
# "clean" removes the one that is no longer used.
postgres_upgrade = ""
# Take over a cluster that somebody else made on the host.
postgres_adopt = False
# Port on localhost and on the docker0 address.
postgres_port = 5432
# Roles; their passwords are made on the server, in /etc/terrafirma/secrets/postgres.
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
# For tasks/postgres_rotate.py alone, given with --data: the role that gets a new password.
postgres_rotate = ""
# For tasks/postgres_drop.py alone, given with --data: the database or the role that goes …
postgres_drop = ""
postgres_drop_role = ""
# … and its name once more.
postgres_confirm = ""

# --- pgbouncer: many clients share few connections to PostgreSQL ----------------------------------

# Whether PgBouncer runs; an application uses it when `app_pgbouncer` says so.
pgbouncer_enabled = False
# Port on localhost and on the docker0 address.
pgbouncer_port = 6432
# Connections to PostgreSQL for each pair of a database and a role.
pgbouncer_pool_size = 20
# Clients that it accepts at most.
pgbouncer_max_clients = 1000
# Further settings, as PgBouncer documents them.
pgbouncer_settings = {}

# --- app: the application, N replicas of it, released without a failed request --------------------

# Name of the compose projects, the images and the directory on the host.
app_name = "api"
# Directory on this machine with its Dockerfile, or with the compose files of `app_compose`; empty,
# like `app_image`: no application.
app_source = "examples/api"
# Instead of a source: image of a registry, with a tag or a digest …
app_image = ""
# With a source: host of the registry that its base images, or those of its compose files, come
# from, when it asks for a password.
app_registry = ""
# Who logs in there, or to the registry of `app_image`, with a password that is "env:NAME" or
# "command:…".
app_registry_user = ""
app_registry_password = ""
# Compose files of a project of its own below `app_source` …
app_compose = []
# … its service that serves HTTP, if that is not called like the application …
app_service = ""
# … and those that no release recreates.
app_stateful = []
# Its volumes, by their keys, and directories of the host that several containers may write at once:
# uploads, say; never a database's …
app_shared = []
# … and services of which each release may have its own, empty store: caches, say.
app_scratch = []
# Command, in words, that runs once before a release; ["NAME"]: that service of the project.
app_migrate = []
# Variables of its environment; nothing secret.
app_env = {}
# Secrets, each a file /run/secrets/NAME: "born" on the server, or "env:NAME" or "command:…" here.
app_secrets = {}
# Whether they are variables of the environment too.
app_secrets_env = False
# Name under which Caddy serves it …
app_domain = "api.terrafirma.test"
# … and further names, from which clients are sent there.
app_redirects = []
# How long a browser insists on HTTPS after a visit, in seconds; 0: not at all.
app_hsts_seconds = 31_536_000
# Headers of every answer, beside the usual ones for security; an empty value takes one away.
app_headers = {}
# Largest body of a request, in MB.
app_max_upload_mb = 100
# How long a replica may take until its answer begins, in seconds.
app_timeout_seconds = 60
# Parts that ask for a password, or that only some addresses may see.
app_guards = []
# Directories on the host that Caddy serves by itself, by path.
app_static = {}
# File on this machine with further lines for the site, as the Caddyfile has them.
app_snippet = ""
# Its database, one of `postgres_databases`; empty: none.
app_database = "api"
# Role as which it connects, one of `postgres_roles`; empty: the owner of the database.
app_role = ""
# Connections that one replica holds at most: the size of its pool.
app_connections = 5
# Whether its URL leads through PgBouncer.
app_pgbouncer = False
# Containers that run at once.
app_replicas = 4
# Memory, in MB, and processors that one container may take; 0: no limit.
app_memory_mb = 0
app_cpus = 0
# First of its loopback ports: 64 for each of its two slots, one for each replica.
app_port = 8000
# Port on which it listens in its container.
app_container_port = 8000
# Path that answers a GET with 2xx, and no redirect, when a replica can serve …
app_health_path = "/healthz"
# … and the one that is asked through Caddy before a release counts; empty: the same.
app_smoke_path = ""
# Account on the host, one of `users_accounts`, under whose id the containers run.
app_user = "prod"
# Docker network of the applications, one of `docker_networks`.
app_network = "apps"
# How long the replicas of a release may take to become healthy, in seconds …
app_start_seconds = 120
# … how long requests that are under way may take when another release takes over …
app_drain_seconds = 30
# … and how long a container may then take to stop.
app_stop_seconds = 10
# Releases that `tasks/rollback.py` can go back to.
app_keep_releases = 5
# For tasks/rollback.py alone, given with --data: APPLICATION, or APPLICATION:RELEASE.
app_rollback = ""
# Further applications, each with name, source or image, domain, port and what else differs.
app_more = []

# --- caddy: HTTPS and load balancing --------------------------------------------------------------

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
# Archives that are kept.
borg_keep_daily = 7
borg_keep_weekly = 4
borg_keep_monthly = 6
# When a backup is made, as systemd's OnCalendar (see man systemd.time).
borg_schedule = "*-*-* 02:00:00"

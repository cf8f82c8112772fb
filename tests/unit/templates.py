"""Templates rendered as in a run, with data for each; undefined names are errors."""

import os
from ipaddress import ip_network
from typing import Any

from terrafirma.apt.vendors import VENDORS, repository
from terrafirma.firewall.rules import rules as rules_of_firewall
from terrafirma.firewall.settings import Opening
from terrafirma.host.files import render
from terrafirma.postgres.settings import Database
from terrafirma.postgres.tuning import Tuned
from terrafirma.updates import engines
from terrafirma.updates.origins import security_origins
from tests.conftest import ROOT

VENDORS_OF_TRIXIE = [
    repository(name, distribution="debian", codename="trixie", architecture="amd64")
    for name in VENDORS
]
DATABASES = (Database(name="api", owner="api"), Database(name="jobs", owner="worker"))
VISITORS = (("api", "api"), ("api", "reader"), ("jobs", "worker"))
BRIDGE = {"name": "bridge", "subnet": "10.210.0.0/24"}
APPS = {"name": "apps", "subnet": "10.210.1.0/24"}
APPS_6 = {"name": "apps", "subnet": "fd00:1::/64"}


SERVER = {
    "listen_addresses": Tuned("'localhost,10.210.0.1'", ""),
    "port": Tuned("5432", ""),
    "max_connections": Tuned("100", "postgres_max_connections"),
    "x.y": Tuned("'it''s # no comment'", "postgres_settings"),
}

BCRYPT = "$2b$05$CmPv0xRvR5sSyz9vWiX9mOK8jNmGCyjRvzcSjPdVlPV7TfJPAu9Mi"
SITE = {
    "name": "api",
    "domain": "api.terrafirma.test",
    "public": False,
    "redirects": [],
    "headers": ['?Strict-Transport-Security "max-age=31536000"', "-Server"],
    "set_headers": [],
    "redirect_headers": ['?Strict-Transport-Security "max-age=31536000"', "-Server"],
    "max_upload_mb": 100,
    "timeout_seconds": 60,
    "drain_seconds": 30,
    "stops_first": False,
    "guards": [],
    "static": [],
    "snippet": None,
    "blue": ["127.0.0.1:8000", "127.0.0.1:8001"],
    "green": ["127.0.0.1:8064", "127.0.0.1:8065"],
    "routes": None,
    "shared": False,
}
OPENINGS = (
    Opening(port="22", comment="sshd"),
    Opening(port="443", protocol="udp", clients="everyone", comment="Caddy"),
    Opening(port="5432", clients="containers"),
    Opening(
        port="9000-9001",
        sources=tuple(map(ip_network, ("192.0.2.0/24", "192.0.2.7", "2001:db8::/32"))),
        rate="3/minute",
        comment="a (b), c",
    ),
    Opening(port="80", destinations=(ip_network("2001:db8:1::/64"),)),
)
# `make venv` installs Caddy; otherwise use the system's.
CADDY_PATH = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"

DATA: dict[str, dict[str, Any]] = {
    "apt/60terrafirma.j2": {"wait_seconds": 600},
    "apt/60terrafirma-proxy.j2": {"proxy": "http://deploy:s3cret@proxy:3128"},
    "apt/preferences.j2": {"repositories": VENDORS_OF_TRIXIE},
    "borg/borgmatic.service.j2": {
        "program": "/usr/local/lib/terrafirma/backup",
    },
    "borg/borgmatic.timer.j2": {"schedule": "*-*-* 02:00:00"},
    "borg/config.yaml.j2": {
        "repository": "ssh://b@backup.acme.com:23/./web",
        "directories": ("/etc", "/home"),
        "exclude": ("/var/cache", "*/__pycache__", 're:it\'s "odd" & <new>'),
        "keep_daily": 7,
        "keep_weekly": 4,
        "keep_monthly": 6,
        "schedule": "daily",
        "cluster": "17/main",
        "databases": DATABASES,
        "known_hosts": "/etc/borgmatic/known_hosts",
        "known_host_lines": ("a ssh-ed25519 AAAA",),
        "remote_path": "borg-1.4",
        "repository_id": "",
        "repository_replaces": "",
        "exclude_databases": ('it\'s "odd" </script>',),
        "secrets": "/etc/terrafirma/secrets/borg",
        "sections": False,
        "state": "/var/lib/terrafirma/backup",
    },
    "borg/known_hosts.j2": {"lines": ("a ssh-ed25519 AAAA", "b ssh-rsa BBBB")},
    "caddy/Caddyfile.j2": {
        "version": (2, 6),
        "email": "",
        "acme_ca": "",
        "acme_ca_root": "",
        "options": None,
        "log_size_mb": 50,
        "log_files": 10,
        "sites": [
            SITE,
            SITE
            | {
                "name": "web",
                "domain": "www.acme.com",
                "public": True,
                "redirects": [
                    {"domain": "acme.com", "public": True},
                    {"domain": "web.acme.test", "public": False},
                ],
                "headers": ["?X-Frame-Options SAMEORIGIN"],
                "set_headers": ['X-Mine `a "b" {c}`', "-Via"],
                "max_upload_mb": 7,
                "timeout_seconds": 90,
                "drain_seconds": 45,
                "guards": [
                    {"paths": ["/*"], "allow": ("192.0.2.0/24", "2001:db8::/32"), "users": {}},
                    {"paths": ["/a", "/a/*"], "allow": (), "users": {"bob": BCRYPT}},
                ],
                "static": [
                    {"directive": "handle_path", "path": "/assets/*", "root": "/srv/assets"},
                    {"directive": "handle", "path": "/icon.ico", "root": "/srv/icons"},
                ],
                "snippet": {"file": "web.caddy", "text": "redir /old /new"},
                "blue": ["127.0.0.1:9000"],
                "green": ["127.0.0.1:9064"],
            },
        ],
    },
    "app/recover.service.j2": {},
    "caddy/restart.conf.j2": {},
    "caddy/sysctl.conf.j2": {},
    "docker/service.conf.j2": {
        "docker_ports": "/usr/local/lib/terrafirma/docker-ports",
        "docker_engine": "/usr/local/lib/terrafirma/docker-engine",
        "ipv6": True,
    },
    "firewall/firewall-ssh.nft.j2": {"ports": [22, 2222]},
    "firewall/firewall.nft.j2": {
        "rules": rules_of_firewall(OPENINGS, ["10.210.0.0/16", "10.210.1.0/24", "fd00:1::/64"]),
        "uplinks": ["br0"],
        "bridges": ["mine"],
    },
    "firewall/firewall.service.j2": {"program": "/usr/local/lib/terrafirma/firewall"},
    "pgbouncer/hba.conf.j2": {"visitors": VISITORS, "networks": [BRIDGE, APPS, APPS_6]},
    "pgbouncer/pgbouncer.ini.j2": {
        "addresses": ["localhost", "10.210.0.1"],
        "port": 6432,
        "settings": {"listen_backlog": "512"},
    },
    "pgbouncer/restart.conf.j2": {},
    "pgbouncer/terrafirma.ini.j2": {
        "pool_size": 20,
        "max_clients": 1000,
        "prepared_statements": True,
        "settings": {"query_wait_timeout": "10"},
        "databases": ["api", "jobs"],
        "server_port": 5432,
        "limits": {"worker": 5},
    },
    "postgres/createcluster.conf.j2": {},
    "postgres/hand_over.sql.j2": {"database": "shop", "old": "'api'", "new": "shop_owner"},
    "postgres/pg_hba.conf.j2": {"visitors": VISITORS, "networks": [BRIDGE, APPS, APPS_6]},
    "postgres/restart.conf.j2": {},
    "postgres/start.conf.j2": {},
    "postgres/sysctl.conf.j2": {"huge_pages": 0},
    "postgres/terrafirma.conf.j2": {"settings": SERVER},
    "sshd/00-terrafirma.conf.j2": {
        "password_authentication": False,
        "root_login": True,
        "users": ["dev", "root"],
        "ports": [22, 2222],
        "hardening": {"Ciphers": "aes256-ctr"},
        "forwards": {"dev": {"AllowTcpForwarding": "local", "PermitOpen": "127.0.0.1:5432"}},
    },
    "updates/60terrafirma-updates.j2": {
        "security": True,
        "origins": security_origins("debian"),
        "packages": engines.PACKAGES,
    },
    "updates/apt-daily.conf.j2": {"hours": 2},
    "updates/needrestart.conf.j2": {"units": engines.UNITS},
    "updates/postgres-minor.service.j2": {
        "program": "/usr/local/bin/terrafirma",
        "seconds": 3600,
        "version": "17.5",
    },
    "updates/postgres-minor.timer.j2": {"window": "Sun *-*-* 04:00:00"},
    "updates/reboot-report.service.j2": {"program": "/usr/local/bin/terrafirma"},
    "updates/reboot.service.j2": {"program": "/usr/local/bin/terrafirma", "seconds": 3600},
    "updates/reboot.timer.j2": {"window": "Sun *-*-* 04:00:00"},
    "users/authorized_keys.j2": {
        "keys": ("ssh-ed25519 AAAA me", "ssh-rsa BBBB"),
        "command": "",
    },
    "users/sudoers.j2": {"name": "dev", "commands": ("/bin/a b", "/bin/c"), "command": ""},
}


def rendered(template: str, **data: Any) -> str:
    return render(template, **DATA[template] | data)


def settled(text: str) -> list[str]:
    """The lines without comments and empty lines."""
    return [
        line.strip()
        for line in text.splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]


def rules(**data: Any) -> list[list[str]]:
    return [line.split() for line in settled(rendered("postgres/pg_hba.conf.j2", **data))]


NETWORKS: list[list[dict[str, Any]]] = [[], [BRIDGE], [BRIDGE, APPS, APPS_6]]

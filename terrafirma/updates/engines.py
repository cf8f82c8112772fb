"""
Packages that are never upgraded, and units that are never restarted, without an announcement.

These are the packages and units of the engines, sshd, and jobs that must not be interrupted.
"""

from __future__ import annotations

PACKAGES = (
    r"docker([.-].*)?",  # docker.io, docker-ce, their clients and plugins
    r"containerd(\.io)?",
    r"runc",
    r"postgresql.*",  # the server, its client, its extensions, and postgresql-common
    r"pgbouncer",
    r"caddy",
)
"""Regular expressions that match whole package names, of either source."""

UNITS = (
    *("docker", "containerd", "postgresql", "pgbouncer", "caddy"),
    # Open sessions continue, but new connections fail during a restart.
    "ssh",
    # An interrupted release, upgrade or backup is worse than an old library.
    *("terrafirma-", "borgmatic", "apt-daily", "unattended-upgrades"),
)
"""How the names of units begin."""

"""
What never moves or restarts by itself: the packages and units of engines, and what is under way.

Whoever upgrades one of them says so first, and looks at it afterwards.
"""

from __future__ import annotations

PACKAGES = (
    r"docker([.-].*)?",  # docker.io, docker-ce, their clients and plugins
    r"containerd(\.io)?",
    r"runc",
    r"postgresql.*",  # the server, its client, its extensions, and what starts clusters
    r"pgbouncer",
    r"caddy",
)
"""Regular expressions of whole names of packages, of the distribution's and the vendors'."""

UNITS = (
    *("docker", "containerd", "postgresql", "pgbouncer", "caddy"),
    # Sessions go on, but whoever is about to come in finds nobody.
    "ssh",
    # A release, an upgrade, a backup: half of one is worse than an old library.
    *("terrafirma-", "borgmatic", "apt-daily", "unattended-upgrades"),
)
"""How the names of units begin."""

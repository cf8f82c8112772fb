"""The archives of security updates, in the form of unattended-upgrades."""

from __future__ import annotations

_ORIGINS = {
    "debian": ("origin=Debian,codename=${distro_codename}-security,label=Debian-Security",),
    "ubuntu": (
        "origin=Ubuntu,archive=${distro_codename}-security,label=Ubuntu",
        # Only hosts with Ubuntu Pro have lists of these.
        "origin=UbuntuESM,archive=${distro_codename}-infra-security",
        "origin=UbuntuESMApps,archive=${distro_codename}-apps-security",
    ),
}


def security_origins(distribution: str) -> tuple[str, ...]:
    """The security archives of a supported distribution, by its ID in /etc/os-release."""
    return _ORIGINS[distribution]

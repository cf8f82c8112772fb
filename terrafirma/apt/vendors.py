"""
The vendors' repositories: where they are, who signs them, and what is taken from them.

Whoever has a pinned key decides what root runs on the hosts: a fingerprint is changed here, in
code, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from terrafirma.apt.settings import VendorName

DEBIAN_AND_UBUNTU = (
    *(("debian", "12"), ("debian", "13")),
    *(("ubuntu", "22.04"), ("ubuntu", "24.04"), ("ubuntu", "26.04")),
)


@dataclass(frozen=True)
class Vendor:
    """A vendor's repository, as the vendor's own instructions have it."""

    name: VendorName
    title: str
    fingerprints: tuple[str, ...]
    """Of the primary keys that may sign it."""
    url: str
    """`{id}`: debian or ubuntu."""
    suite: str
    """`{codename}`: that of the distribution."""
    component: str
    key: str
    """Where the vendor offers the key."""
    mirrored_key: str
    """Where a copy of the repository has the key, from its URL on; the host tries both."""
    probe: tuple[str, ...]
    """Packages of the host's own architecture that a repository must offer."""
    packages: tuple[str, ...]
    """Names and patterns of the packages that are taken from it, and of no others."""
    pin: str
    """How apt tells what comes from it, see man apt_preferences."""
    architectures: tuple[str, ...] = ("amd64", "arm64")
    distributions: tuple[tuple[str, str], ...] = DEBIAN_AND_UBUNTU


VENDORS: Mapping[VendorName, Vendor] = {
    "pgdg": Vendor(
        name="pgdg",
        title="PGDG",
        fingerprints=("B97B0AFCAA1A47F044F244A07FCC7D46ACCC4CF8",),
        url="https://apt.postgresql.org/pub/repos/apt",
        suite="{codename}-pgdg",
        component="main",
        key="https://www.postgresql.org/media/keys/ACCC4CF8.asc",
        mirrored_key="ACCC4CF8.asc",
        probe=("libpq5",),
        # The libraries of the client are built from one source, and want each other's version.
        packages=("postgresql-*", "libpq*", "libecpg*", "libpgtypes*"),
        pin="n={codename}-pgdg",
    ),
    "docker": Vendor(
        name="docker",
        title="Docker",
        fingerprints=("9DC858229FC7DD38854AE2D88D81803C0EBFCD88",),
        url="https://download.docker.com/linux/{id}",
        suite="{codename}",
        component="stable",
        key="https://download.docker.com/linux/{id}/gpg",
        mirrored_key="gpg",
        probe=("docker-ce", "containerd.io"),
        packages=("docker-*", "containerd.io"),
        pin="o=Docker",
    ),
    "caddy": Vendor(
        name="caddy",
        title="Caddy",
        fingerprints=("65760C51EDEA2017CEA2CA15155B6D79CA56EA34",),
        url="https://dl.cloudsmith.io/public/caddy/stable/deb/debian",
        suite="any-version",
        component="main",
        key="https://dl.cloudsmith.io/public/caddy/stable/gpg.key",
        mirrored_key="../../gpg.key",
        probe=("caddy",),
        packages=("caddy",),
        # Whatever a vendor keeps at the same service has the same suite.
        pin="o=cloudsmith/caddy/stable",
    ),
}


@dataclass(frozen=True)
class Repository:
    """A vendor's repository as one host uses it."""

    vendor: Vendor
    url: str
    suite: str
    architecture: str
    key_urls: tuple[str, ...]
    pin: str

    @property
    def path(self) -> str:
        """Where the host has its source, a file of apt's in the format deb822."""
        return f"/etc/apt/sources.list.d/terrafirma-{self.vendor.name}.sources"

    @property
    def listed(self) -> str:
        """As `apt-cache madison` names it, before the architecture."""
        return f"{self.url} {self.suite}/{self.vendor.component}"

    @property
    def head(self) -> str:
        """The source up to the key, which the host adds: it is fetched there."""
        return (
            "# Managed by Terrafirma: tasks/apt.py\n"
            "Types: deb\n"
            f"URIs: {self.url}\n"
            f"Suites: {self.suite}\n"
            f"Components: {self.vendor.component}\n"
            f"Architectures: {self.architecture}\n"
            "Signed-By:\n"
        )


def repository(
    name: VendorName,
    *,
    distribution: str,
    codename: str,
    architecture: str,
    urls: Mapping[VendorName, str] | None = None,
) -> Repository:
    """
    A vendor's repository for a host.

    + distribution: "debian" or "ubuntu"
    + codename: of its release, like "trixie"
    + architecture: dpkg's name, like "amd64"
    + urls: addresses in place of the vendors' own, as `apt_urls`
    """
    vendor = VENDORS[name]
    own = vendor.url.format(id=distribution)
    url = (urls or {}).get(name, own)
    keys = [vendor.key.format(id=distribution)]
    if url != own:
        keys.insert(0, _beside(url, vendor.mirrored_key))
    return Repository(
        vendor=vendor,
        url=url,
        suite=vendor.suite.format(codename=codename),
        architecture=architecture,
        key_urls=tuple(keys),
        pin=vendor.pin.format(codename=codename),
    )


def _beside(url: str, path: str) -> str:
    while path.startswith("../"):
        path = path.removeprefix("../")
        # Not above the server's root.
        url = url.rpartition("/")[0] if url.count("/") > 2 else url
    return f"{url}/{path}"

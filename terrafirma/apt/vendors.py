"""
The vendors' repositories: their addresses, signing keys, and the packages taken from them.

The owner of a pinned key decides what root runs on the hosts. So fingerprints are in code, and no
setting changes them.
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
    """A repository, as described by its vendor's instructions."""

    name: VendorName
    title: str
    fingerprints: tuple[str, ...]
    """The primary keys that may sign the repository."""
    url: str
    """`{id}` stands for debian or ubuntu."""
    suite: str
    """`{codename}` stands for the codename of the distribution's release."""
    component: str
    key: str
    """The URL of the vendor's key."""
    mirrored_key: str
    """The path of the key, relative to a mirror's URL; the host tries both addresses."""
    probe: tuple[str, ...]
    """Packages that the repository must offer for the host's architecture."""
    packages: tuple[str, ...]
    """Names and patterns of the only packages that are taken from the repository."""
    pin: str
    """The pin by which apt recognizes the repository, see man apt_preferences."""
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
        # The client libraries are built from one source, and require each other's exact version.
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
        # Pin by origin: all repositories at Cloudsmith have the same suite.
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
        """The file of the source on the host, in the format deb822."""
        return f"/etc/apt/sources.list.d/terrafirma-{self.vendor.name}.sources"

    @property
    def listed(self) -> str:
        """The repository as `apt-cache madison` prints it, without the architecture."""
        return f"{self.url} {self.suite}/{self.vendor.component}"

    @property
    def head(self) -> str:
        """The source without the key, which the host fetches and appends."""
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
    + codename: of the distribution's release, like "trixie"
    + architecture: dpkg's name, like "amd64"
    + urls: the setting `apt_urls`
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
        # Stop at the server's root.
        url = url.rpartition("/")[0] if url.count("/") > 2 else url
    return f"{url}/{path}"

"""The vendors' repositories: sources for each distribution, and the keys that sign them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from terrafirma_host import openpgp

from terrafirma.apt.settings import VendorName
from terrafirma.apt.vendors import DEBIAN_AND_UBUNTU, VENDORS, repository
from terrafirma.host.files import render
from terrafirma.host.machine import ARCHITECTURES, DISTRIBUTIONS

# From the vendors' instructions: distribution, release, and codename in the names of the suites.
RELEASES = [
    ("debian", "12", "bookworm"),
    ("debian", "13", "trixie"),
    ("ubuntu", "22.04", "jammy"),
    ("ubuntu", "24.04", "noble"),
    ("ubuntu", "26.04", "resolute"),
]
PGDG = "https://apt.postgresql.org/pub/repos/apt"
DOCKER = "https://download.docker.com/linux"
CADDY = "https://dl.cloudsmith.io/public/caddy/stable/deb/debian"
# From the vendors, and from Debian's packages with their keys.
FINGERPRINTS: dict[VendorName, str] = {
    "pgdg": "B97B0AFCAA1A47F044F244A07FCC7D46ACCC4CF8",
    "docker": "9DC858229FC7DD38854AE2D88D81803C0EBFCD88",
    "caddy": "65760C51EDEA2017CEA2CA15155B6D79CA56EA34",
}
# The keys in Debian's packages postgresql-common and extrepo-offline-data.
SHIPPED: dict[str, VendorName] = {
    "usr/share/postgresql-common/pgdg/apt.postgresql.org.gpg": "pgdg",
    "usr/share/postgresql-common/pgdg/apt.postgresql.org.asc": "pgdg",
    "usr/share/extrepo/offline-data/debian/*/postgresql.asc": "pgdg",
    "usr/share/extrepo/offline-data/debian/*/docker-ce.asc": "docker",
    "usr/share/extrepo/offline-data/debian/*/caddyserver.asc": "caddy",
}


def test_the_table_has_all_supported_releases() -> None:
    assert {(name, version) for name, version, _ in RELEASES} == {*DEBIAN_AND_UBUNTU}
    assert {(name, version): codename for name, version, codename in RELEASES} == {
        key: held.codename for key, held in DISTRIBUTIONS.items()
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("name", "version", "codename"), RELEASES)
def test_the_source_of_each_vendor(
    name: str, version: str, codename: str, architecture: str
) -> None:
    sources = {
        vendor: repository(
            vendor, distribution=name, codename=codename, architecture=architecture
        ).head
        for vendor in VENDORS
    }
    end = f"Architectures: {architecture}\nSigned-By:\n"
    start = "# Managed by Terrafirma: tasks/apt.py\nTypes: deb\n"
    assert sources == {
        "pgdg": f"{start}URIs: {PGDG}\nSuites: {codename}-pgdg\nComponents: main\n{end}",
        "docker": f"{start}URIs: {DOCKER}/{name}\nSuites: {codename}\nComponents: stable\n{end}",
        "caddy": f"{start}URIs: {CADDY}\nSuites: any-version\nComponents: main\n{end}",
    }


def test_the_addresses_of_the_keys() -> None:
    urls = {
        name: repository(
            name, distribution="debian", codename="trixie", architecture="amd64"
        ).key_urls
        for name in VENDORS
    }
    assert urls == {
        "pgdg": ("https://www.postgresql.org/media/keys/ACCC4CF8.asc",),
        "docker": ("https://download.docker.com/linux/debian/gpg",),
        "caddy": ("https://dl.cloudsmith.io/public/caddy/stable/gpg.key",),
    }


@pytest.mark.parametrize(
    ("vendor", "url", "first"),
    [
        ("pgdg", "https://m.acme.com/pgdg", "https://m.acme.com/pgdg/ACCC4CF8.asc"),
        ("docker", "http://m.acme.com/linux/debian", "http://m.acme.com/linux/debian/gpg"),
        ("caddy", "https://m.acme.com/stable/deb/debian", "https://m.acme.com/stable/gpg.key"),
        ("caddy", "https://m.acme.com", "https://m.acme.com/gpg.key"),
    ],
)
def test_a_mirror_has_the_key_where_the_vendor_has_it(
    vendor: VendorName, url: str, first: str
) -> None:
    one = repository(
        vendor, distribution="debian", codename="trixie", architecture="amd64", urls={vendor: url}
    )
    assert one.url == url
    assert f"URIs: {url}\n" in one.head
    # The vendor's own address is tried next: the fingerprint is pinned in any case.
    own = VENDORS[vendor].key.format(id="debian")
    assert one.key_urls == (first, own)


def test_nothing_but_the_engines_is_taken_from_a_vendor() -> None:
    them = [
        repository(name, distribution="debian", codename="trixie", architecture="amd64")
        for name in VENDORS
    ]
    records = render("apt/preferences.j2", repositories=them).split("\n\n")[1:]
    found = [dict(re.findall(r"^([\w-]+): (.*)$", one, re.MULTILINE)) for one in records]
    pins = {one["Pin"] for one in found}
    assert pins == {
        "release n=trixie-pgdg",
        "release o=Docker",
        "release o=cloudsmith/caddy/stable",
    }
    for pin in pins:
        engine, others = (one for one in found if one["Pin"] == pin)
        assert engine["Pin-Priority"] == "600"
        assert (others["Package"], others["Pin-Priority"]) == ("*", "1")
        assert "*" not in engine["Package"].split()


def test_the_pinned_fingerprints() -> None:
    assert {name: vendor.fingerprints for name, vendor in VENDORS.items()} == {
        name: (fingerprint,) for name, fingerprint in FINGERPRINTS.items()
    }


def shipped() -> Iterator[tuple[Path, VendorName]]:
    """The keys in Debian's packages, installed here or unpacked below TERRAFIRMA_KEYS."""
    roots = [Path("/")]
    if unpacked := os.environ.get("TERRAFIRMA_KEYS"):
        roots += Path(unpacked).iterdir()
    for root in roots:
        for pattern, vendor in SHIPPED.items():
            for path in root.glob(pattern):
                yield path, vendor


def test_the_pinned_fingerprints_are_those_of_the_keys_that_debian_ships() -> None:
    found = [*shipped()]
    if not found:
        pytest.skip("neither postgresql-common nor extrepo-offline-data is here")
    for path, vendor in found:
        (key,) = openpgp.keys(openpgp.binary(path.read_bytes()))
        assert key.fingerprint == FINGERPRINTS[vendor], path
        assert (key.expires, key.revoked) == (None, False)

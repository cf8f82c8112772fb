"""
Publishes repositories as their vendors do: `publish.py ORDERS`, a JSON list, see Order.

Runs beside serve.py. Each possible fault of a repository is a field of the order.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path

ALL, WWW, GNUPG = Path("/srv/vendors"), Path("/srv/www"), Path("/srv/gnupg")


@dataclass(frozen=True)
class Vendor:
    """The layout of a vendor's repository; `{suite}` and `{codename}` are filled in."""

    root: str
    key: str
    component: str
    pool: str
    suite: str
    main: str  # the packages whose versions a test chooses
    origin: str


VENDORS = {
    "docker": Vendor(
        root="download.docker.com/linux/debian",
        key="download.docker.com/linux/debian/gpg",
        component="stable",
        pool="dists/{suite}/pool/stable/amd64",
        suite="{codename}",
        main=r"docker-ce(-cli)?",
        origin="Docker",
    ),
    "pgdg": Vendor(
        root="apt.postgresql.org/pub/repos/apt",
        key="www.postgresql.org/media/keys/ACCC4CF8.asc",
        component="main",
        pool="pool/{suite}/main/p",
        suite="{codename}-pgdg",
        main=r"postgresql-(client-)?\d+",
        origin="apt.postgresql.org",
    ),
    "caddy": Vendor(
        root="dl.cloudsmith.io/public/caddy/stable/deb/debian",
        key="dl.cloudsmith.io/public/caddy/stable/gpg.key",
        component="main",
        pool="pool/any-version/main/c/ca",
        suite="any-version",
        main="caddy",
        origin="cloudsmith/caddy/stable",
    ),
}


@dataclass(frozen=True)
class Order:
    vendor: str
    codename: str
    versions: list[str] | None = None  # of the main packages; default: all that start
    key: str = ""  # another key of `keys` than the vendor's; "nothing": none
    sign: str = ""  # another signer than the vendor; "nothing": no signature
    says: str = ""  # another codename in the release file
    until: float | None = None  # when the release expires
    architecture: str = ""  # another architecture of the index than that of the packages
    without: list[str] = field(default_factory=list)  # packages that are left out
    # After signing: change a letter in "packages" or "release"; "half": cut the index in half.
    spoil: str = ""


def stanzas(order: Order, vendor: Vendor) -> list[tuple[str, Path]]:
    """The stanza and the file of each offered package."""
    pool = ALL / "pool" / order.vendor
    pool = next(one for one in (pool / order.codename, pool / "any-version") if one.is_dir())
    found = []
    broken = json.loads((ALL / "broken.json").read_text())
    for path in sorted(pool.glob("*.deb")):
        text = Path(f"{path}.stanza").read_text()
        fields = dict(re.findall(r"^(\S+): (.*)$", text, re.MULTILINE))
        if fields["Package"] in order.without:
            continue
        if re.fullmatch(vendor.main, fields["Package"]):
            version = fields["Version"]
            if order.versions is None and version in broken:
                continue
            if order.versions is not None and version not in order.versions:
                continue
        found.append((text, path))
    return found


def publish(order: Order) -> None:
    vendor = VENDORS[order.vendor]
    suite = vendor.suite.format(codename=order.codename)
    root = WWW / vendor.root
    pool = vendor.pool.format(suite=suite)
    dists = root / "dists" / suite
    shutil.rmtree(dists, ignore_errors=True)
    shutil.rmtree(root / pool, ignore_errors=True)
    (root / pool).mkdir(parents=True)
    texts = []
    for text, path in stanzas(order, vendor):
        (root / pool / path.name).symlink_to(path)
        texts.append(
            re.sub("^Filename: .*", f"Filename: {pool}/{path.name}", text, flags=re.MULTILINE)
        )
    own = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, check=True)
    architecture = order.architecture or own.stdout.decode().strip()
    index = dists / vendor.component / f"binary-{architecture}"
    index.mkdir(parents=True)
    packages = "\n".join(texts).encode()
    (index / "Packages").write_bytes(packages)
    (index / "Packages.gz").write_bytes(gzip.compress(packages, mtime=0))
    release = [
        f"Origin: {vendor.origin}",
        f"Label: {vendor.origin}",
        f"Suite: {order.says or suite}",
        f"Codename: {order.says or suite}",
        f"Date: {formatdate()}",
        *([f"Valid-Until: {formatdate(order.until)}"] if order.until is not None else []),
        f"Architectures: {architecture}",
        f"Components: {vendor.component}",
        "SHA256:",
        *(
            f" {hashlib.sha256(one.read_bytes()).hexdigest()} {one.stat().st_size}"
            f" {one.relative_to(dists)}"
            for one in sorted(index.iterdir())
        ),
    ]
    (dists / "Release").write_text("\n".join(release) + "\n")
    sign(dists, order.sign or order.vendor)
    spoil(order.spoil, dists, index)
    key = WWW / vendor.key
    key.parent.mkdir(parents=True, exist_ok=True)
    key.unlink(missing_ok=True)
    if order.key != "nothing":
        shutil.copy(ALL / "keys" / f"{order.key or order.vendor}.asc", key)


def sign(dists: Path, name: str) -> None:
    if name == "nothing":
        return
    for mode, file in (("--clear-sign", "InRelease"), ("--detach-sign", "Release.gpg")):
        subprocess.run(
            ["gpg", "--homedir", GNUPG, "--batch", "--quiet", "--armor", "--local-user", f"={name}",
             "--output", dists / file, mode, dists / "Release"],
            check=True,
        )  # fmt: skip


def spoil(what: str, dists: Path, index: Path) -> None:
    for one in index.iterdir():
        if what == "packages":
            one.write_bytes(one.read_bytes()[:-9] + bytes(9))
        elif what == "half":
            one.write_bytes(one.read_bytes()[: one.stat().st_size // 2])
    if what == "release":
        for one in (dists / "InRelease", dists / "Release"):
            one.write_text(one.read_text().replace("Label: ", "Label: not "))


if __name__ == "__main__":
    for order in json.loads(sys.argv[1]):
        publish(Order(**order))

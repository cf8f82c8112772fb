"""
Stand-ins for the vendors of packages, which test servers cannot reach: a container beside the
servers serves their repositories, with the same layouts, names and keys of its own.

The packages are Debian's under the names and versions of the vendors, see tests/e2e/apt/. Only the
vendors have the private keys, and the pinned fingerprints are code: so tests run a copy of the
project with the fingerprints of the stand-ins' keys.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, Pyinfra
from tests.e2e.clones import DEPLOY
from tests.e2e.support import (
    BYSTANDER,
    STATE,
    Container,
    Target,
    bystander,
    eventually,
    execute,
    image,
    open_ports,
    output,
)

CODENAMES = {"debian13": "trixie", "debian12": "bookworm"}
NAMES = "download.docker.com apt.postgresql.org www.postgresql.org dl.cloudsmith.io mirror.test"
HERE = ROOT / "tests/e2e/apt"
# The vendor's own binary, from the packages that the tests need.
CADDY = Path(sysconfig.get_path("scripts")) / "caddy"
LABEL = "org.terrafirma.vendors"
# The fingerprints in the code, which the copy replaces.
PINNED = {
    "pgdg": "B97B0AFCAA1A47F044F244A07FCC7D46ACCC4CF8",
    "docker": "9DC858229FC7DD38854AE2D88D81803C0EBFCD88",
    "caddy": "65760C51EDEA2017CEA2CA15155B6D79CA56EA34",
}


@dataclass(frozen=True)
class Vendors(Container):
    """All vendors at one address; each test chooses what they offer, and what is wrong with it."""

    def publish(self, vendor: str, codename: str = "trixie", **order: Any) -> None:
        """Publish a vendor's repository as ordered, see Order in tests/e2e/apt/publish.py."""
        orders = json.dumps([{"vendor": vendor, "codename": codename, **order}])
        output("docker", "exec", self.name, "python3", "/srv/publish.py", orders)

    def publish_all(self, codename: str = "trixie") -> None:
        """Publish every vendor's repository with all versions that start, and without a fault."""
        orders = json.dumps([{"vendor": one, "codename": codename} for one in PINNED])
        output("docker", "exec", self.name, "python3", "/srv/publish.py", orders)

    def fail(self, **faults: Any) -> None:
        """Cause these faults from now on, see Faults in tests/e2e/apt/serve.py."""
        self.run("cat > /srv/faults.new && mv /srv/faults.new /srv/faults.json",
                 stdin=json.dumps(faults))  # fmt: skip

    def start(self) -> None:
        self.run("python3 /srv/serve.py > /srv/serve.log 2>&1 & echo $! > /srv/serve.pid")
        eventually(lambda: open_ports(self, self, 80, 443, 3128) == [80, 443, 3128], 30)

    def stop(self) -> None:
        self.run("kill $(cat /srv/serve.pid)")
        eventually(lambda: open_ports(self, self, 80, 443, 3128) == [], 30)

    def asked(self) -> list[str]:
        """The requests since the last call of this method."""
        return self.run("touch /srv/asked; cat /srv/asked; rm /srv/asked").splitlines()

    def versions(self, package: str, codename: str = "trixie") -> list[str]:
        """All existing versions of a package, the oldest first; the last one may not start."""
        pools = f"/srv/vendors/pool/*/{codename} /srv/vendors/pool/*/any-version"
        stanzas = self.run(f"cd / && cat $(find {pools} -name '{package}_*.stanza')")
        return sorted(re.findall("^Version: (.*)$", stanzas, re.MULTILINE), key=_numbers)

    def broken(self) -> list[str]:
        """The versions that do not start; they are offered only if `versions` names them."""
        return list(json.loads(self.run("cat /srv/vendors/broken.json")))

    def meet(self, server: Target) -> None:
        """Make the server find the vendors here, and trust their certificate."""
        authority = self.run("cat /srv/vendors/tls/authority.crt")
        server.run(
            f"echo '{self.address} {NAMES}' >> /etc/hosts"
            " && cat > /usr/local/share/ca-certificates/terrafirma-tests.crt"
            " && update-ca-certificates > /dev/null",
            stdin=f"{authority}\n",
        )

    def fingerprints(self) -> Mapping[str, str]:
        """The fingerprints of the stand-ins' keys; the key "stranger" is no vendor's."""
        return dict(json.loads(self.run("cat /srv/vendors/fingerprints.json")))

    @contextmanager
    def pinned(self, pyinfra: Pyinfra) -> Iterator[Pyinfra]:
        """pyinfra, run from a copy of the project that pins the stand-ins' keys."""
        with tempfile.TemporaryDirectory(prefix="terrafirma-") as directory:
            root = Path(directory)
            for name in (*DEPLOY, "inventory.py", "tests"):
                if (ROOT / name).is_dir():
                    leave = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / name, root / name, ignore=leave)
                else:
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, root / name)
            (root / ".target").symlink_to(STATE)
            table = root / "terrafirma/apt/vendors.py"
            text = table.read_text()
            for vendor, fingerprint in PINNED.items():
                assert text.count(fingerprint) == 1, vendor
                text = text.replace(fingerprint, self.fingerprints()[vendor])
            table.write_text(text)
            yield Pyinfra(root)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


@cache
def packages() -> str:
    """The volume with the packages and keys, which is created once."""
    image("bystander")
    bare = output("docker", "image", "inspect", "--format", "{{.Id}}", BYSTANDER)
    parts = [bare.encode(), (HERE / "repackage.py").read_bytes(), CADDY.read_bytes()]
    name = f"terrafirma-vendors-{hashlib.sha256(b''.join(parts)).hexdigest()[:16]}"
    with (STATE / "vendors.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        complete = ("test", "-e", "/srv/vendors/fingerprints.json")
        volume = ("--volume", f"{name}:/srv/vendors")
        if execute("docker", "run", "--rm", *volume, BYSTANDER, *complete).returncode:
            _make(name)
    return name


def _make(name: str) -> None:
    for volume in output("docker", "volume", "ls", "--quiet", "--filter", f"label={LABEL}").split():
        # A volume that another checkout uses cannot be removed, and stays.
        execute("docker", "volume", "rm", volume)
    execute("docker", "volume", "rm", name)
    output("docker", "volume", "create", "--label", "org.terrafirma.testbed=1",
           "--label", f"{LABEL}=1", name)  # fmt: skip
    with bystander(f"{name}-maker", "--volume", f"{name}:/srv/vendors") as maker:
        for path in (HERE / "repackage.py", CADDY):
            output("docker", "cp", str(path), f"{maker.name}:/srv/")
        # Timed tests run beside this.
        make = ("nice", "-n", "19", "python3", "/srv/repackage.py", "/srv/caddy", "/srv/vendors")
        output("docker", "exec", maker.name, *make, timeout=1200)


@contextmanager
def vendors(name: str, *codenames: str) -> Iterator[Vendors]:
    """Run the vendors, offering all versions that start, for Debian 13 by default."""
    with bystander(name, "--volume", f"{packages()}:/srv/vendors:ro") as container:
        one = Vendors(container.name)
        for program in ("publish.py", "serve.py"):
            output("docker", "cp", str(HERE / program), f"{one.name}:/srv/")
        one.run("cp -a /srv/vendors/gnupg /srv/gnupg && mkdir /srv/www")
        one.fail()
        for codename in codenames or ("trixie",):
            one.publish_all(codename)
        one.start()
        yield one

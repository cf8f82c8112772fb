"""Package sources (with apt_source = "upstream" also the vendors'), and the base packages."""

import shlex

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.apt.engines import ENGINES
from terrafirma.apt.operations import (
    PROXY_WORKS,
    keys_of,
    look,
    proxy_of,
    record_path,
    repositories,
)
from terrafirma.apt.operations import repositories_of as vendors_of
from terrafirma.host import program
from terrafirma.host.files import Absent, Directory, put, template
from terrafirma.host.machine import distribution
from terrafirma.host.packages import packages
from terrafirma.paths import APT_PREFERENCES, APT_PROXY, REPOSITORIES
from terrafirma.postgres.version import own_version
from terrafirma.site import begin

server, machine = begin(host)
settings = server.apt
upstream = settings.source == "upstream"
vendors = vendors_of(settings, machine)

# Before anything changes, refuse missing files or passwords, and engines from another source.
proxy, keys = proxy_of(host, settings), keys_of(host, settings)
major = own_version(machine) or server.postgres.major or distribution(machine).postgres
for name in ENGINES:
    look(host, server, machine, name, major)

if unsupported := [
    one.vendor.title for one in vendors if machine["architecture"] not in one.vendor.architectures
]:
    raise DeployError(
        f"{host.name}: apt_source: {', '.join(unsupported)} has no packages for "
        f"{machine['architecture']}; use apt_source = 'distro'"
    )

put(
    name="Make apt wait for its lock",
    entries=[
        template(
            "apt/60terrafirma.j2",
            "/etc/apt/apt.conf.d/60terrafirma",
            data={"wait_seconds": server.preflight.wait_seconds},
        )
    ],
)

put(
    name="Let apt fetch through the proxy" if proxy else "Configure no proxy for apt",
    entries=[
        template(
            "apt/60terrafirma-proxy.j2",
            APT_PROXY,
            data={"proxy": proxy},
            # It may contain a password, and apt reads it as root.
            mode="600",
            secret=True,
        )
        if proxy
        else Absent(APT_PROXY)
    ],
    # A broken proxy would make every installation on the host fail.
    check=PROXY_WORKS.format(proxy=shlex.quote(settings.proxy)) if proxy else None,
)

packages(name="Install the base packages", packages=settings.packages)

if upstream:
    packages(
        name="Install the programs that check the repositories",
        packages=["ca-certificates", "python3"],
    )

    put(
        name="Take only the engines from the vendors",
        entries=[
            Directory(REPOSITORIES, "700"),
            *program.entries(),
            # Before the sources, so that the vendors never provide any other package.
            template("apt/preferences.j2", APT_PREFERENCES, data={"repositories": vendors}),
        ],
    )

    repositories(
        name="Add the vendors' repositories",
        wanted=vendors,
        keys=keys,
        wait_seconds=server.preflight.wait_seconds,
    )
else:
    put(
        name="Use only the distribution's archive",
        entries=[
            *(Absent(one.path) for one in vendors),
            *(Absent(record_path(one)) for one in vendors),
            Absent(APT_PREFERENCES),
        ],
    )

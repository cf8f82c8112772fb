"""Packages, engines and the kernel are the newest that is allowed. Not a part of `deploy.py`."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.apt.engines import ENGINES, engine
from terrafirma.apt.upgrade import make, wanted
from terrafirma.apt.upgrade_facts import Packages
from terrafirma.apt.upgrade_operations import names_of, upgrade
from terrafirma.apt.vendors import VENDORS, repository
from terrafirma.host import program
from terrafirma.host.files import Directory, put
from terrafirma.host.machine import distribution
from terrafirma.host.packages import wait_for_apt
from terrafirma.paths import PACKAGES_STATE
from terrafirma.postgres.version import postgres_version
from terrafirma.site import begin

server, machine = begin(host)
held = distribution(machine)
# Of another major version, commands/postgres_upgrade.py is said here.
major = postgres_version(host, server.postgres, machine)
prefixes = {
    "docker": server.docker.version,
    "postgres": server.postgres.prefix_of_version or str(major),
    "caddy": server.caddy.version,
}
repositories = {
    vendor: repository(
        vendor,
        distribution=machine["id"],
        codename=held.codename,
        architecture=machine["architecture"],
        urls=server.apt.urls,
    )
    for vendor in VENDORS
}
vendors = [one.listed for one in repositories.values()]
engines = [engine(name, server.apt.source, held, major) for name in ENGINES]
them = [wanted(one, prefixes[one.name], repositories[one.vendor].listed) for one in engines]

plan = make(them, host.get_fact(Packages, names=names_of(them)), vendors)
if plan.refusals:
    raise DeployError(f"{host.name}: {'; '.join(plan.refusals)}")

wait_for_apt(name="Wait for apt's lock")

put(
    name="Prepare the host",
    entries=[Directory(PACKAGES_STATE, "700"), *program.entries()],
)

upgrade(name="Upgrade one engine after the other, then all other packages", wanted=them,
        vendors=vendors)  # fmt: skip

"""Upgrade the engines, all packages and the kernel, as far as the settings allow."""

from pyinfra import host, local
from pyinfra.api import DeployError

from terrafirma.apt.engines import ENGINES, engine
from terrafirma.apt.operations import allow_upgrade, prefix_of, repositories_of
from terrafirma.apt.upgrade import make, wanted
from terrafirma.apt.upgrade_facts import Packages
from terrafirma.apt.upgrade_operations import names_of, upgrade
from terrafirma.host import program
from terrafirma.host.files import Directory, put
from terrafirma.host.machine import distribution
from terrafirma.host.packages import wait_for_apt
from terrafirma.paths import PACKAGES_STATE
from terrafirma.postgres.version import postgres_version
from terrafirma.site import begin

server, machine = begin(host)
# Refuses another major version, which needs commands/postgres_upgrade.py.
major = postgres_version(host, server.postgres, machine)
repositories = {one.vendor.name: one.listed for one in repositories_of(server.apt, machine)}
engines = [
    wanted(one, prefix_of(server, one.name, major), repositories[one.vendor])
    for one in (engine(name, server.apt.source, distribution(machine), major) for name in ENGINES)
]
vendors = list(repositories.values())

plan = make(engines, host.get_fact(Packages, names=names_of(engines)), vendors)
if plan.refusals:
    raise DeployError(f"{host.name}: {'; '.join(plan.refusals)}")

wait_for_apt(name="Wait for apt's lock")

# Set up the sources here; an engine from another source is replaced below.
allow_upgrade(host)
local.include("tasks/apt.py")

put(
    name="Prepare the upgrade",
    entries=[Directory(PACKAGES_STATE, "700"), *program.entries()],
)

upgrade(
    name="Upgrade each engine in turn, then all other packages",
    wanted=engines,
    vendors=vendors,
)

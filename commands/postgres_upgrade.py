"""Upgrade PostgreSQL to a newer major version, or go back. Not a part of `deploy.py`."""

from pyinfra import host, local

from terrafirma.arguments import Upgrade as Arguments
from terrafirma.host import program
from terrafirma.host.files import Directory, PathStates, put
from terrafirma.host.packages import packages
from terrafirma.paths import UPGRADE_STATE
from terrafirma.postgres.upgrade import Upgrade, plan
from terrafirma.postgres.upgrade_operations import analyse, back_up, go_back, remove_retired, say
from terrafirma.postgres.version import own_version
from terrafirma.site import arguments, begin

server, machine = begin(host)
steps = plan(host, server.postgres, machine, arguments(host, Arguments).upgrade)
own = own_version(machine)
stamp = f"{UPGRADE_STATE}/{own}.unanalysed"

say(name="Show the plan", message=steps.message)

if steps.upgrade or steps.back or steps.clean:
    put(
        name="Prepare the host",
        entries=[Directory(UPGRADE_STATE, "700"), *program.entries()],
    )

if steps.upgrade:
    back_up(name="Back up the databases", upgrade=steps.upgrade)

    if steps.packages:
        packages(name="Install the packages of the extensions", packages=steps.packages)

    # This configures the new cluster, and moves the data to it before starting it.
    local.include("tasks/postgres.py")

    if server.borg.repository:
        # Backups name the cluster: point them to the new one, and prove that they work.
        local.include("tasks/borg.py")

elif steps.settle:
    if steps.back:
        go_back(name="Go back to the old cluster", upgrade=steps.back)

    # The old cluster lacks all changes since the upgrade: passwords, roles, networks, settings.
    local.include("tasks/postgres.py")

    if server.pgbouncer.enabled:
        # PgBouncer still has the verifiers of the new cluster.
        local.include("tasks/pgbouncer.py")

elif steps.clean:
    remove_retired(name="Remove the retired clusters", versions=list(steps.clean))

elif own and stamp in host.get_fact(PathStates, paths=[stamp]):
    analyse(name="Gather the planner's statistics", upgrade=Upgrade(own, own))

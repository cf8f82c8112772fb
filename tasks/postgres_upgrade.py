"""PostgreSQL's next major version, with all rows, and the way back. Not a part of `deploy.py`."""

from pyinfra import host, local

from terrafirma.facts.files import PathStates
from terrafirma.machine import own_version, ready
from terrafirma.operations.files import Directory, put, source
from terrafirma.operations.packages import packages
from terrafirma.operations.postgres_upgrade import analyse, back_up, go_back, remove_retired, say
from terrafirma.paths import UPGRADE_PROGRAM, UPGRADE_STATE
from terrafirma.settings import Borg, PgBouncer, Postgres
from terrafirma.upgrade import Upgrade, plan

machine = ready(host)
settings = Postgres.of(host)
steps = plan(host, settings)
own = own_version(machine)
stamp = f"{UPGRADE_STATE}/{own}.unanalysed"

say(name="What is to be done", message=steps.message)

if steps.upgrade or steps.back or steps.clean:
    put(
        name="Prepare the host",
        entries=[
            Directory(UPGRADE_STATE, "700"),
            source("postgres/postgres-upgrade", UPGRADE_PROGRAM, mode="755"),
        ],
    )

if steps.upgrade:
    back_up(name="Back up the databases", upgrade=steps.upgrade)

    if steps.packages:
        packages(name="Install what the extensions need", packages=steps.packages)

    # All that is true of the new cluster; between its configuration and its start, the data move.
    local.include("tasks/postgres.py")

    if Borg.of(host).repository:
        # It names the cluster, and proves that backups of the new one work.
        local.include("tasks/borg.py")

elif steps.settle:
    if steps.back:
        go_back(name="Go back to the old cluster", upgrade=steps.back)

    # Of passwords, roles and networks that have changed since the upgrade it knows nothing.
    local.include("tasks/postgres.py")

    if PgBouncer.of(host).enabled:
        # It has the verifiers of the new one.
        local.include("tasks/pgbouncer.py")

elif steps.clean:
    remove_retired(name="Remove what is no longer used", versions=list(steps.clean))

elif own and stamp in host.get_fact(PathStates, paths=[stamp]):
    analyse(name="Gather the planner's statistics", upgrade=Upgrade(own, own))

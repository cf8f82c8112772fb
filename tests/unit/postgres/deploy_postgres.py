"""Operations that test_said_to_psql.py runs on this machine, with a fake PostgreSQL."""

from pyinfra import host

from terrafirma.postgres.operations import contents, twin, undo_by_hand
from terrafirma.site import site

settings = site(host.inventory)[host.name].postgres

undo_by_hand(
    name="Undo what ALTER SYSTEM set",
    version=17,
    settings=lambda: {"work_mem": "4MB", "port": "5432"},
)

contents(name="Give access", version=17, settings=settings)

twin(name="Create the second login mig~", version=17, role=settings.roles[1], settings=settings)

"""pyinfra's own settings, and what it does put right; read before the inventory."""

from typing import NoReturn

from gevent.hub import Hub
from pyinfra import config
from pyinfra.api import Inventory
from pyinfra.api.exceptions import InventoryError, PyinfraError

from terrafirma.host import framing

config.REQUIRE_PYINFRA_VERSION = ">=3.10,<4"

# pyinfra says in one line what was wrong; gevent need not print a traceback before it.
Hub.NOT_ERROR += (PyinfraError,)


def refuse() -> NoReturn:
    raise InventoryError("no hosts: name a host that resolves, or an inventory file that is there")


# pyinfra takes a name that does not resolve for no hosts at all, does nothing, and exits with 0.
Inventory.empty = refuse  # type: ignore[method-assign]

# No start-up file, locale or PATH of the login has a part in our commands and their answers.
framing.install()

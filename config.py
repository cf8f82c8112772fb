"""pyinfra's own settings, and corrections of its behaviour; read before the inventory."""

from typing import NoReturn

from gevent.hub import Hub
from pyinfra import config
from pyinfra.api import Inventory
from pyinfra.api.exceptions import InventoryError, PyinfraError

from terrafirma.host import ahead, framing

config.REQUIRE_PYINFRA_VERSION = ">=3.10,<4"

# pyinfra reports an error in one line; keep gevent from printing a traceback before it.
Hub.NOT_ERROR += (PyinfraError,)


def refuse() -> NoReturn:
    raise InventoryError("no hosts: name a host that resolves, or an inventory file that exists")


# For a host name that does not resolve, pyinfra alone would do nothing and exit with 0.
Inventory.empty = refuse  # type: ignore[method-assign]

# Keep the login's start-up files, locale and PATH out of our commands and their answers.
framing.install()

# Ask a converged host in few round trips.
ahead.install()

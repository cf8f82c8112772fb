"""pyinfra's own settings, and corrections of its behaviour; read before the inventory."""

import inspect
import sys
from functools import partial
from importlib import import_module
from typing import NoReturn

from gevent.hub import Hub
from pyinfra import config
from pyinfra.api import Inventory
from pyinfra.api.exceptions import InventoryError, PyinfraError

# pyinfra keeps Python from writing bytecode, and each run would compile all our modules anew.
sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)

from terrafirma.host import ahead, framing  # noqa: E402 - they are compiled only once, too

config.REQUIRE_PYINFRA_VERSION = ">=3.10,<4"

# pyinfra reports an error in one line; keep gevent from printing a traceback before it.
Hub.NOT_ERROR += (PyinfraError,)


def refuse() -> NoReturn:
    raise InventoryError("no hosts: name a host that resolves, or an inventory file that exists")


# For a host name that does not resolve, pyinfra alone would do nothing and exit with 0.
Inventory.empty = refuse  # type: ignore[method-assign]

# pyinfra orders operations by the lines that lead to them, and would search the source around each.
for name in ("stack", "getframeinfo"):
    setattr(import_module("pyinfra.api.util"), name, partial(getattr(inspect, name), context=0))

# Keep the login's start-up files, locale and PATH out of our commands and their answers.
framing.install()

# Ask a converged host in few round trips.
ahead.install()

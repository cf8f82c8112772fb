"""pyinfra's own settings; read before the inventory."""

from pyinfra import config

config.REQUIRE_PYINFRA_VERSION = ">=3.10,<4"

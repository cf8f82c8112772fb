"""Where a secret of an application comes from."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from terrafirma.fields import one_line


def _secret_source(value: str) -> str:
    if value.startswith("command:") and "\n" in value:
        raise ValueError("has a line break: a command is one line")
    if value != "generated" and not re.fullmatch(r"env:[A-Za-z_]\w*|command:[^\s].*", value):
        # Not repeated: it may be the secret itself.
        raise ValueError(
            "is no source of a secret: use 'generated' (on the server), 'env:NAME' "
            "(from pyinfra's environment) or 'command:…' (the output of a command on this machine)"
        )
    return one_line(value)


SecretSource = Annotated[
    str, AfterValidator(_secret_source), Field(title="`generated`, `env:NAME` or `command:…`")
]

"""The values of environment variables: text of any number of lines, perhaps with references."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from terrafirma_host import values


def text_of(value: object) -> str:
    """The text of a value as a container gets it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str):
        given = "None" if value is None else f"a {type(value).__name__}"
        raise ValueError(f"{given} is not a valid value: use True, False, a number or text")
    # Not repeated: it may be a secret by mistake.
    if isinstance(value, str) and re.search(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", value
    ):
        raise ValueError("has a control character other than a line break or a tab")
    values.references(text_of(value))
    return value


EnvironmentValue = Annotated[
    Any,
    AfterValidator(_value),
    Field(title="`True`, `False`, number or text, perhaps with references"),
]

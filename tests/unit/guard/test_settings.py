"""Settings of the guard."""

from typing import Any

import pytest

from terrafirma.guard.settings import Guard
from terrafirma.settings import Settings
from tests.unit.settings import numbered, refusal

BAD: list[tuple[type[Settings], dict[str, Any], str, str]] = [
    (Guard, {"guard_seconds": 14}, "guard_seconds", "greater than or equal to 15"),
    (Guard, {"guard_seconds": 601}, "guard_seconds", "less than or equal to 600"),
    (Guard, {"guard_seconds": "a minute"}, "guard_seconds", "not 'a minute'"),
]


@pytest.mark.parametrize(("section", "data", "key", "right"), numbered(BAD, 2))
def test_bad_data_names_the_key_and_what_would_be_right(
    section: type[Settings], data: dict[str, Any], key: str, right: str
) -> None:
    message = refusal(section, **data)
    assert key in message
    assert right in message

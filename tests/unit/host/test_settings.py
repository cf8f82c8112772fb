"""Settings of preflight."""

from typing import Any

import pytest

from terrafirma.host.settings import Preflight
from terrafirma.settings import Settings
from tests.unit.settings import numbered, refusal

BAD: list[tuple[type[Settings], dict[str, Any], str, str]] = [
    # the host data; the key that the message names; the part that says what would be right
    (Preflight, {"preflight_free_disk_gb": -1}, "preflight_free_disk_gb", "greater than or equal"),
    (Preflight, {"preflight_free_disk_gb": "much"}, "preflight_free_disk_gb", ", not 'much'"),
    (Preflight, {"preflight_wait_seconds": 0}, "preflight_wait_seconds", "greater than or equal"),
    (
        Preflight,
        {"preflight_wait_seconds": 100_000},
        "preflight_wait_seconds",
        "less than or equal",
    ),
]


@pytest.mark.parametrize(("section", "data", "key", "right"), numbered(BAD, 2))
def test_bad_data_names_the_key_and_what_would_be_right(
    section: type[Settings], data: dict[str, Any], key: str, right: str
) -> None:
    message = refusal(section, **data)
    assert key in message
    assert right in message

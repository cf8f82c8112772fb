"""The settings of updates."""

from typing import Any

import pytest

from terrafirma.settings import Settings
from terrafirma.updates.settings import Updates
from tests.unit.settings import numbered, of, refusal

BAD: list[tuple[type[Settings], dict[str, Any], str, str]] = [
    (Updates, {"updates_security": "sometimes"}, "updates_security", "'sometimes'"),
    (Updates, {"updates_security": None}, "updates_security", "valid boolean"),
    (Updates, {"updates_postgres": True}, "updates_postgres", "valid string"),
    (Updates, {"updates_postgres": "daily\nUnit=evil.service"}, "updates_postgres", "line break"),
    (Updates, {"updates_reboot": 4}, "updates_reboot", "valid string"),
    (Updates, {"updates_reboot": "daily\nUnit=evil.service"}, "updates_reboot", "line break"),
    (Updates, {"updates_reboots": "daily"}, "updates_reboots", "did you mean updates_reboot?"),
]


@pytest.mark.parametrize(("section", "data", "key", "right"), numbered(BAD, 2))
def test_bad_data_names_the_key_and_what_would_be_right(
    section: type[Settings], data: dict[str, Any], key: str, right: str
) -> None:
    message = refusal(section, **data)
    assert key in message
    assert right in message


def test_nothing_restarts_by_default() -> None:
    settings = of(Updates)
    assert settings.security
    assert (settings.postgres, settings.reboot) == ("", "")

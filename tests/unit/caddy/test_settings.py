"""Which settings of Caddy are refused."""

from typing import Any

import pytest

from terrafirma.caddy.settings import Caddy
from terrafirma.settings import Settings
from tests.unit.settings import numbered, refusal

BAD: list[tuple[type[Settings], dict[str, Any], str, str]] = [
    # the settings; the key in the message; what would be right
    (Caddy, {"caddy_email": "me"}, "caddy_email", "'me' does not match"),
    (Caddy, {"caddy_email": "me@acme.com {"}, "caddy_email", "does not match"),
    (Caddy, {"caddy_acme_ca": "http://ca.acme.com"}, "caddy_acme_ca", "does not match"),
    (Caddy, {"caddy_acme_ca_root": "LICENSE"}, "caddy_acme_ca_root", "caddy_acme_ca is empty"),
    (
        Caddy,
        {"caddy_acme_ca": "https://ca.acme.com/d", "caddy_acme_ca_root": "no/where.pem"},
        "caddy_acme_ca_root",
        "cannot read 'no/where.pem'",
    ),
    (Caddy, {"caddy_snippet": "tests"}, "caddy_snippet", "cannot read 'tests'"),
    (Caddy, {"caddy_snippet": "~nobody-here/x"}, "caddy_snippet", "cannot read"),
    (Caddy, {"caddy_log_size_mb": 0}, "caddy_log_size_mb", "greater than or equal to 1"),
    (Caddy, {"caddy_log_files": 0}, "caddy_log_files", "greater than or equal to 1"),
]


@pytest.mark.parametrize(("section", "data", "key", "right"), numbered(BAD, 2))
def test_bad_data_names_the_key_and_what_would_be_right(
    section: type[Settings], data: dict[str, Any], key: str, right: str
) -> None:
    message = refusal(section, **data)
    assert key in message
    assert right in message

"""Settings of sshd."""

from typing import Any

import pytest

from terrafirma.settings import Settings
from terrafirma.sshd.settings import Sshd
from tests.unit.settings import numbered, refusal

BAD: list[tuple[type[Settings], dict[str, Any], str, str]] = [
    # the host data; the key that the message names; the part that says what would be right
    (Sshd, {"sshd_password_authentication": "perhaps"}, "sshd_password_authentication", "boolean"),
    (Sshd, {"sshd_allow_users": "me"}, "sshd_allow_users", "must be a list"),
    (Sshd, {"sshd_allow_users": ["me", "a b"]}, "sshd_allow_users.1", "'a b' does not match"),
    (
        Sshd,
        {"sshd_allow_users": ["me\nPermitRootLogin yes"]},
        "sshd_allow_users.0",
        "does not match",
    ),
    (Sshd, {"sshd_ports": [0]}, "sshd_ports.0", "greater than or equal to 1"),
    (Sshd, {"sshd_ports": [65536]}, "sshd_ports.0", "less than or equal to 65535"),
    (Sshd, {"sshd_ports": ["22 2222"]}, "sshd_ports.0", "integer"),
    (Sshd, {"sshd_ports": 22}, "sshd_ports", "must be a list"),
    (Sshd, {"sshd_ports": [22, 22]}, "sshd_ports", "twice"),
    (Sshd, {"sshd_max_auth_tries": 1}, "sshd_max_auth_tries", "greater than or equal to 2"),
    (Sshd, {"sshd_max_auth_tries": 11}, "sshd_max_auth_tries", "less than or equal to 10"),
    (
        Sshd,
        {"sshd_root_login": False, "sshd_allow_users": ["root"]},
        "sshd_root_login",
        "sshd_allow_users has root",
    ),
]


@pytest.mark.parametrize(("section", "data", "key", "right"), numbered(BAD, 2))
def test_bad_data_names_the_key_and_what_would_be_right(
    section: type[Settings], data: dict[str, Any], key: str, right: str
) -> None:
    message = refusal(section, **data)
    assert key in message
    assert right in message

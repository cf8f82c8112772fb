"""Which settings of Docker are refused, and which addresses it may use."""

from typing import Any

import pytest

from terrafirma.docker.settings import Docker
from terrafirma.settings import Settings
from tests.unit.settings import numbered, of, refusal

# --- bad data -------------------------------------------------------------------------------------

BAD: list[tuple[type[Settings], dict[str, Any], str, str]] = [
    # the settings; the key in the message; what would be right
    (Docker, {"docker_address_pool": "8.8.0.0/16"}, "docker_address_pool", "RFC 1918"),
    (Docker, {"docker_address_pool": "127.0.0.0/8"}, "docker_address_pool", "RFC 1918"),
    (Docker, {"docker_address_pool": "169.254.0.0/16"}, "docker_address_pool", "RFC 1918"),
    (Docker, {"docker_address_pool": "10.0.0.1/16"}, "docker_address_pool", "valid IPv4 network"),
    (Docker, {"docker_address_pool": "fd00::/16"}, "docker_address_pool", "valid IPv4 network"),
    (Docker, {"docker_subnet_size": 16}, "docker_subnet_size", "a number above 16"),
    (Docker, {"docker_subnet_size": 12}, "docker_subnet_size", "greater than or equal"),
    (Docker, {"docker_subnet_size": 31}, "docker_subnet_size", "less than or equal"),
    (Docker, {"docker_log_max_size": "20"}, "docker_log_max_size", "'20' does not match"),
    (Docker, {"docker_log_max_files": 0}, "docker_log_max_files", "greater than or equal"),
    (Docker, {"docker_networks": "apps"}, "docker_networks", "must be a list"),
    (Docker, {"docker_networks": ["a", "a"]}, "docker_networks", "'a' is there twice"),
    (Docker, {"docker_networks": ["host"]}, "docker_networks", "'host' is a name of Docker's own"),
    (
        Docker,
        {"docker_networks": ["bridge"]},
        "docker_networks",
        "'bridge' is a name of Docker's own",
    ),
    (Docker, {"docker_networks": ["-a"]}, "docker_networks.0", "'-a' does not match"),
    (Docker, {"docker_daemon": ["debug"]}, "docker_daemon", "valid dictionary"),
]


@pytest.mark.parametrize(("section", "data", "key", "right"), numbered(BAD, 2))
def test_bad_data_names_the_key_and_what_would_be_right(
    section: type[Settings], data: dict[str, Any], key: str, right: str
) -> None:
    message = refusal(section, **data)
    assert key in message
    assert right in message


# --- good data ------------------------------------------------------------------------------------


def test_addresses_of_docker_are_private() -> None:
    for pool in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"):
        assert str(of(Docker, docker_address_pool=pool).address_pool) == pool

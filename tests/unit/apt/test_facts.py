"""The offered versions, as apt-cache prints them."""

import pytest
from pyinfra.api import FactProcessError

from terrafirma.apt.facts import OfferedPackages

SAMPLE = """\
     caddy |     2.10.2 | https://dl.cloudsmith.io/public/caddy/stable/deb/debian any-version/main amd64 Packages
     caddy |   2.6.2-12 | http://archive.example/debian trixie/main amd64 Packages
     caddy |   2.6.2-12 | http://archive.example/debian trixie/main Sources
 docker-ce | 5:28.2.2-1~debian.13~trixie | https://download.docker.com/linux/debian trixie/stable amd64 Packages
 docker-ce | 5:28.1.1-1~debian.13~trixie | https://download.docker.com/linux/debian trixie/stable amd64 Packages
"""  # noqa: E501  # as it is printed


def test_each_version_has_its_source() -> None:
    assert OfferedPackages().process(SAMPLE.splitlines()) == {
        "caddy": [
            {
                "version": "2.10.2",
                "repository": "https://dl.cloudsmith.io/public/caddy/stable/deb/debian "
                "any-version/main",
            },
            {"version": "2.6.2-12", "repository": "http://archive.example/debian trixie/main"},
        ],
        "docker-ce": [
            {
                "version": f"5:{version}-1~debian.13~trixie",
                "repository": "https://download.docker.com/linux/debian trixie/stable",
            }
            for version in ("28.2.2", "28.1.1")
        ],
    }


@pytest.mark.parametrize("line", ["E: no lists", "caddy | 2.10.2", "caddy | 1 | http"])
def test_a_malformed_answer_is_a_failure(line: str) -> None:
    with pytest.raises(FactProcessError, match="apt-cache madison answered"):
        OfferedPackages().process([line])


def test_it_asks_for_all_engines_at_once() -> None:
    asked = OfferedPackages().command().split()
    for name in ("docker-ce", "docker.io", "caddy", "postgresql-17", "postgresql-client-18"):
        assert name in asked

"""The settings of package sources and of the engines' versions."""

from typing import Any

import pytest

from terrafirma.apt.settings import Apt
from terrafirma.caddy.settings import Caddy
from terrafirma.docker.settings import Docker
from terrafirma.postgres.settings import Postgres
from terrafirma.settings import Settings
from tests.unit.settings import numbered, of, refusal

BAD: list[tuple[type[Settings], dict[str, Any], str, str]] = [
    # the settings; the key that the message names; what would be right
    (Apt, {"apt_source": "vendor"}, "apt_source", "'distro' or 'upstream'"),
    (Apt, {"apt_cache_hours": 0}, "apt_cache_hours", "greater than or equal"),
    (Apt, {"apt_packages": "vim"}, "apt_packages", "must be a list"),
    (Apt, {"apt_packages": ["vim", "a b"]}, "apt_packages.1", "'a b' does not match"),
    (Apt, {"apt_packages": ["--reinstall"]}, "apt_packages.0", "does not match"),
    (Apt, {"apt_packages": ["vim\n"]}, "apt_packages.0", "does not match"),
    (Apt, {"apt_urls": "https://mirror.acme.com"}, "apt_urls", "dictionary"),
    (Apt, {"apt_urls": {"dokcer": "https://m.acme.com"}}, "apt_urls.dokcer", "'docker'"),
    (Apt, {"apt_urls": {"docker": ""}}, "apt_urls.docker", "no https:// or http:// URL"),
    (Apt, {"apt_urls": {"docker": "mirror.acme.com"}}, "apt_urls.docker", "no https://"),
    (Apt, {"apt_urls": {"docker": "ftp://mirror.acme.com"}}, "apt_urls.docker", "no https://"),
    (Apt, {"apt_urls": {"docker": "file:///srv/mirror"}}, "apt_urls.docker", "no https://"),
    (Apt, {"apt_urls": {"docker": "https://"}}, "apt_urls.docker", "no https://"),
    (Apt, {"apt_urls": {"docker": "https://m.acme.com:x/"}}, "apt_urls.docker", "no URL"),
    (Apt, {"apt_urls": {"docker": "https://m.acme.com/a b"}}, "apt_urls.docker", "character"),
    (Apt, {"apt_urls": {"docker": "https://m.acme.com/a\nb"}}, "apt_urls.docker", "line break"),
    (Apt, {"apt_urls": {"docker": 'https://m.acme.com/"'}}, "apt_urls.docker", "character"),
    (Apt, {"apt_urls": {"docker": "https://m.acme.com/?a=b"}}, "apt_urls.docker", "leave out"),
    (Apt, {"apt_urls": {"pgdg": "https://u:s3cret@m.acme.com"}}, "apt_urls.pgdg", "auth.conf.d"),
    (Apt, {"apt_keys": {"podman": "LICENSE"}}, "apt_keys.podman", "'caddy'"),
    (Apt, {"apt_keys": {"docker": "keys/none.asc"}}, "apt_keys", "cannot read 'keys/none.asc'"),
    (Apt, {"apt_keys": {"docker": "tests"}}, "apt_keys", "docker: cannot read 'tests'"),
    (Apt, {"apt_keys": {"docker": "~nobody-here/key"}}, "apt_keys", "cannot read"),
    (Apt, {"apt_proxy": "proxy:3128"}, "apt_proxy", "no http:// or https:// URL"),
    (Apt, {"apt_proxy": "socks5h://proxy:1080"}, "apt_proxy", "no http:// or https:// URL"),
    (Apt, {"apt_proxy": "http://u:s3cret@proxy:3128"}, "apt_proxy", "APT_PROXY_PASSWORD"),
    (Apt, {"apt_proxy": "http://u:@proxy:3128"}, "apt_proxy", "APT_PROXY_PASSWORD"),
    (Apt, {"apt_proxy": "http://@proxy:3128"}, "apt_proxy", "no user before the @"),
    (Apt, {"apt_proxy": "http://proxy:3128/path"}, "apt_proxy", "no path"),
    (Apt, {"apt_proxy": "http://proxy:99999"}, "apt_proxy", "no URL"),
    (Apt, {"apt_proxie": "http://proxy:3128"}, "apt_proxie", "did you mean apt_proxy?"),
    (Docker, {"docker_version": "28."}, "docker_version", "'28.' is no version"),
    (Docker, {"docker_version": "28."}, "docker_version", "write '28'"),
    (Docker, {"docker_version": "v28"}, "docker_version", "write '28'"),
    (Docker, {"docker_version": "28.x"}, "docker_version", "write '28'"),
    (Docker, {"docker_version": ">=28.1"}, "docker_version", "write '28.1'"),
    (Docker, {"docker_version": "028"}, "docker_version", "no version"),
    (Docker, {"docker_version": "latest"}, "docker_version", "like '28' or '28.2'"),
    (Docker, {"docker_version": "28.2.2\n"}, "docker_version", "write '28.2.2'"),
    (Docker, {"docker_version": 28.1}, "docker_version", "write 28.1 as text"),
    (Docker, {"docker_version": None}, "docker_version", "no text"),
    (
        *(Docker, {"docker_version": "5:28.2.2-1~debian.13~trixie"}, "docker_version"),
        "write '28.2.2'",
    ),
    (Caddy, {"caddy_version": "2.10-beta"}, "caddy_version", "write '2.10'"),
    (Caddy, {"caddy_version": True}, "caddy_version", "no text"),
    (Caddy, {"caddy_version": ["2"]}, "caddy_version", "no text"),
]


@pytest.mark.parametrize(("section", "data", "key", "right"), numbered(BAD, 2))
def test_bad_data_names_the_key_and_what_would_be_right(
    section: type[Settings], data: dict[str, Any], key: str, right: str
) -> None:
    message = refusal(section, **data)
    assert key in message
    assert right in message
    assert "s3cret" not in message


def test_good_settings_are_accepted() -> None:
    urls = {
        "pgdg": "http://mirror.acme.com/pgdg/",
        "docker": "https://10.0.0.1:8443/docker/linux/debian",
        "caddy": "https://[fd00::1]/caddy",
    }
    apt = of(Apt, apt_urls=urls, apt_keys={"caddy": "LICENSE"}, apt_proxy="http://u@proxy:3128/")
    # The slash at the end is dropped, so that one source has one address.
    assert apt.urls["pgdg"] == "http://mirror.acme.com/pgdg"
    assert apt.proxy == "http://u@proxy:3128"


@pytest.mark.parametrize(
    ("said", "meant"), [("", ""), (28, "28"), ("28", "28"), ("28.2", "28.2"), ("28.2.2", "28.2.2")]
)
def test_a_version_may_be_the_beginning_of_one(said: object, meant: str) -> None:
    assert of(Docker, docker_version=said).version == meant
    assert of(Caddy, caddy_version=said).version == meant


@pytest.mark.parametrize(
    ("said", "major", "prefix"),
    [
        (None, None, ""),
        (17, 17, "17"),
        ("17", 17, "17"),
        ("17.5", 17, "17.5"),
        ("18.0", 18, "18.0"),
    ],
)
def test_postgres_is_a_major_and_perhaps_a_minor_version(
    said: object, major: int | None, prefix: str
) -> None:
    postgres = of(Postgres, postgres_version=said)
    assert (postgres.major, postgres.prefix_of_version) == (major, prefix)

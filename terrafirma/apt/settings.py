"""The settings of package sources: vendors, mirrors, keys and the proxy."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field, model_validator

from terrafirma.fields import Line, PackageName, here, is_file
from terrafirma.settings import Settings

Source = Literal["distro", "upstream"]
VendorName = Literal["pgdg", "docker", "caddy"]


_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
# apt writes any other host or port in its own way, and then no longer by the name of the settings.
_HOST_AND_PORT = rf"({_LABEL}(\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(:[1-9]\d*)?"


def _split(url: str, schemes: tuple[str, ...], example: str) -> SplitResult:
    """Split a URL; error messages never quote a login."""
    seen = "the value" if re.search(r"[@?#]", url) else repr(url[:60])
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"{seen} is no URL, like {example}") from None
    known = tuple(f"{one}://" for one in schemes)
    # apt knows them in lower case alone.
    if not url.startswith(known) or not parts.hostname or port == 0:
        raise ValueError(f"{seen} is no {' or '.join(known)} URL, like {example}")
    # apt replaces $(ARCH).
    if found := re.search(r"[^!-~]|[\"\\|;{}<>`]|\$\(", url):
        raise ValueError(f"{seen}: the character {found[0]!r} is not allowed; it is like {example}")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise ValueError(f"{seen}: leave out what follows ? or #; it is like {example}")
    if not re.fullmatch(_HOST_AND_PORT, parts.netloc.rpartition("@")[2], re.ASCII):
        raise ValueError(
            f"{seen} has a host or a port that apt reads otherwise; it is like {example}"
        )
    return parts


def _repository(url: str) -> str:
    example = "https://mirror.example.com/apt"
    if _split(url, ("https", "http"), example).username is not None:
        raise ValueError(
            "it must not contain a login: put the login into a file of /etc/apt/auth.conf.d on the "
            "host, and the vendor's key into apt_keys"
        )
    return url.rstrip("/")


def _proxy(url: str) -> str:
    if not url:
        return url
    example = "http://proxy.example.com:3128"
    parts = _split(url, ("http", "https"), example)
    if parts.password is not None:
        raise ValueError(
            f"it must not contain a password: set {PROXY_PASSWORD} in the environment of pyinfra"
        )
    if parts.username == "":
        raise ValueError(f"there is no user before the @; it is like {example}")
    if parts.path not in ("", "/"):
        raise ValueError(f"a proxy has no path; it is like {example}")
    return url.rstrip("/")


RepositoryUrl = Annotated[
    Line, AfterValidator(_repository), Field(title="`https://` or `http://` URL")
]
ProxyUrl = Annotated[
    Line,
    AfterValidator(_proxy),
    Field(title="`http://` or `https://` URL without a password, or empty"),
]
PROXY_PASSWORD = "TERRAFIRMA_APT_PROXY_PASSWORD"
"""The environment variable of pyinfra with the password of the proxy's user."""


class Apt(Settings):
    prefix = "apt"

    source: Source
    cache_hours: int = Field(ge=1)
    packages: tuple[PackageName, ...]
    urls: dict[VendorName, RepositoryUrl]
    keys: dict[VendorName, Annotated[Line, Field(title="file on this machine")]]
    proxy: ProxyUrl

    @model_validator(mode="after")
    def _check(self) -> Self:
        for vendor, name in self.keys.items():
            if not is_file(here(name)):
                # Of a URL, a login would be in it.
                shown = "the value" if "@" in name else repr(name[:60])
                raise ValueError(
                    f"apt_keys: {vendor}: cannot read {shown}: name a file on this machine with "
                    "the vendor's key"
                )
        return self

"""The types that settings are made of: names, addresses, paths and keys, each with its check."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
)

from terrafirma.host import keys
from terrafirma.settings import ROOT

# docs/settings.md shows the title of a type as the values that it accepts.

# These names end up in SQL, file names, unit names and Docker labels, so none needs quoting.
Identifier = Annotated[
    str,
    Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$", title="a-z, 0-9 and `_`, first no digit, at most 63"),
]
ApplicationName = Annotated[
    str,
    Field(
        pattern=r"^[a-z](-?[a-z0-9]){0,30}$",
        title="a-z, 0-9 and single `-` between them, first a letter",
    ),
]
AccountName = Annotated[
    str,
    Field(
        pattern=r"^[a-z_][a-z0-9_-]{0,31}$",
        title="a-z, 0-9, `_` and `-`, first a letter or `_`, at most 32",
    ),
]
NetworkName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9_.-]*$",
        title="a-z, 0-9, `_`, `.` and `-`, first a letter or digit",
    ),
]
Port = Annotated[int, Field(ge=1, le=65535)]
# What sshd takes after PermitOpen, one address at a time.
Forward = Annotated[
    str,
    Field(
        pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-fA-F:]+\]):(\*|[1-9][0-9]{0,4})$",
        title="HOST:PORT",
    ),
]
# Ports below 1024 belong to the system's own services: SSH, HTTP, HTTPS …
UserPort = Annotated[int, Field(ge=1024, le=65535)]


def _absolute(path: str) -> str:
    if not re.fullmatch(r"/[\w.@/+-]*", path):
        raise ValueError(f"{path!r} is not an absolute path of letters, digits and . _ - + @ /")
    return path


def absolute_or_empty(path: str) -> str:
    return path and _absolute(path)


AbsolutePath = Annotated[str, AfterValidator(_absolute), Field(title="absolute path")]


def one_line(text: str) -> str:
    # Beside ASCII's also the line breaks of Unicode, and what cannot be encoded.
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", text):
        raise ValueError("has a line break or another control character")
    return text


Line = Annotated[str, AfterValidator(one_line), Field(title="one line")]
PackageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$", title="package name")]


def _public_key(value: str) -> str:
    """The key in `value`, or in the file on this machine that `value` names."""
    text = value
    if not re.search(r"(^|\s)(sk-)?(ssh|ecdsa)-\S+\s|PRIVATE KEY|\n", value):
        try:
            text = Path(value).expanduser().read_text()
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: no such user's home
            reason = getattr(error, "strerror", None) or "not a text file"
            raise ValueError(
                f"cannot read {value[:40]!r} ({reason}): name a public key file on this machine, "
                "or write the key itself ('ssh-ed25519 AAAA…')"
            ) from None
    try:
        return keys.parse(text).text
    except ValueError as error:
        shown = "the value" if "PRIVATE KEY" in value else repr(value[:40])
        raise ValueError(
            f"{shown} does not hold one SSH public key ('ssh-ed25519 AAAA…') but {error}"
        ) from None


PublicKey = Annotated[
    str,
    AfterValidator(_public_key),
    Field(title="SSH public key, or the file on this machine that holds it"),
]


def _known_host(line: str) -> str:
    """Refuse a line that ssh cannot read: ssh would skip the line and trust no key of the host."""
    _, _, key = line.removeprefix("@cert-authority ").strip().partition(" ")
    try:
        keys.parse(key)
    except ValueError as error:
        raise ValueError(
            f"{line[:40]!r} is not a line of a known_hosts file ('HOST ssh-ed25519 AAAA…'): after "
            f"the name there is {error}"
        ) from None
    return line


KnownHost = Annotated[
    Line, AfterValidator(_known_host), Field(title="one line of a known_hosts file")
]

# Domains for which no public authority issues certificates (RFC 2606, 6761, 6762, 8375, and
# ICANN's .internal).
_PRIVATE_DOMAINS = ("localhost", "test", "example", "invalid", "local", "internal", "home.arpa")
_EXAMPLE_DOMAINS = ("example.com", "example.net", "example.org")


def is_public(domain: str) -> bool:
    """Whether a public authority could sign a certificate for `domain`."""
    try:
        ip_address(domain)
    except ValueError:
        private = (*_PRIVATE_DOMAINS, *_EXAMPLE_DOMAINS)
        return "." in domain and not any(
            domain == name or domain.endswith(f".{name}") for name in private
        )
    return False


def _domain(value: str) -> str:
    label = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
    if len(value) > 253 or not re.fullmatch(rf"{label}(\.{label})*", value):
        raise ValueError(f"{value!r} is not a domain name in lower case, like api.example.com")
    return value


Domain = Annotated[str, AfterValidator(_domain), Field(title="domain name in lower case")]
# The settings of an extension start with its name and a dot: auto_explain.log_min_duration.
SettingName = Annotated[
    str,
    Field(
        pattern=r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$",
        title="name, perhaps after an extension's and a dot",
    ),
]


def setting(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str):
        given = "None" if value is None else f"a {type(value).__name__}"
        raise ValueError(f"{given} is not a valid value: use True, False, a number or text")
    return one_line(value) if isinstance(value, str) else value


Setting = Annotated[
    Any, AfterValidator(setting), Field(title="`True`, `False`, number or one line")
]
ServerSettings = dict[SettingName, Setting]
Seconds = Annotated[int, Field(strict=True, ge=1, le=3600)]


# Of 9 digits at most, which Python and dpkg read without an effort.
_NUMBER = r"(?:0|[1-9]\d{0,8})"


def version_prefix(value: Any, example: str = "'28' or '28.2'") -> str:
    """A version, or its first components; empty: any version."""
    if isinstance(value, float):
        # Python and JSON read 28.10 as 28.1.
        raise ValueError(f"write {value!r} as text, in quotes: {example}")
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 10**9:
            raise ValueError(
                f"it is no version: a number has more than 9 digits; it is like {example}"
            )
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"it is no text, like {example}")
    if value and not re.fullmatch(rf"{_NUMBER}(\.{_NUMBER}){{0,3}}", value, re.ASCII):
        # The versions of packages may begin with an epoch, and numbers with zeros: leave them out.
        bare = re.sub(r"(?<![\d.])\d+:(?=\d)|(?<!\d)0+(?=\d)", "", value[:200], flags=re.ASCII)
        found = re.search(r"(?<!\d)\d{1,9}(\.\d{1,9}){0,3}(?!\d)", bare, re.ASCII)
        hint = f"write {found[0]!r}" if found else f"it is like {example}"
        raise ValueError(
            f"{value[:40]!r} is no version or its beginning, numbers with dots between them; {hint}"
        )
    return value


VersionPrefix = Annotated[
    str,
    BeforeValidator(version_prefix),
    Field(title="version or its beginning, like `28` or `28.2`, or empty"),
]


def here(path: str) -> Path:
    """`path` on this machine; a relative one starts at the project."""
    try:
        return ROOT / Path(path).expanduser()
    except RuntimeError:
        # `~name` of an unknown user: no such file exists.
        return ROOT / path


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def refuse_duplicates(key: str, names: Any) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{key}: {name!r} is there twice")
        seen.add(name)

"""A host's version of Caddy, the addresses of its sites' names, and missing certificates."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override


class CaddyVersion(FactBase[tuple[int, int] | None]):
    """Major and minor version of the installed Caddy; None if it is not installed."""

    @override
    def command(self) -> str:
        return "! command -v caddy > /dev/null || caddy version"

    @override
    def process(self, output: list[str]) -> tuple[int, int]:
        found = re.match(r"v?(\d+)\.(\d+)\b", output[0])
        if not found:
            raise FactProcessError(f"caddy version answered {output[0]!r}")
        return int(found[1]), int(found[2])


class NamesState(TypedDict):
    own: list[str]  # the host's addresses, without those of loopback
    names: dict[str, list[str]]  # addresses of each name that the host can resolve


class Names(FactBase[NamesState]):
    """The addresses of `domains`, and of the host; a name without an answer in 5 s has none."""

    @staticmethod
    @override
    def default() -> NamesState:
        return NamesState(own=[], names={})

    @override
    def command(self, domains: Sequence[str]) -> StringCommand:
        return StringCommand(
            "ip -oneline address show scope global | awk '{ print \"own \" $4 }';",
            "for name in",
            *map(QuoteString, domains),
            '; do timeout 5 getent ahosts -- "$name" |',
            'awk -v name="$name" \'{ print "name", name, $1 }\' & done; wait',
        )

    @override
    def process(self, output: list[str]) -> NamesState:
        state = self.default()
        for line in output:
            try:
                match line.split():
                    case ["own", address]:
                        state["own"].append(str(ip_address(address.partition("/")[0])))
                    case ["name", name, address]:
                        addresses = state["names"].setdefault(name, [])
                        address = str(ip_address(address.partition("%")[0]))
                        # ahosts repeats an address for each kind of socket.
                        if address not in addresses:
                            addresses.append(address)
                    case _:
                        raise ValueError
            except ValueError:
                raise FactProcessError(f"ip and getent answered {line!r}") from None
        return state


class CertificatesState(TypedDict):
    missing: list[str]  # names without a valid certificate
    reasons: dict[str, str]  # the last error of each name in Caddy's log


_HANDSHAKE = """\
    timeout 5 openssl s_client -connect 127.0.0.1:443 -servername "$name" < /dev/null 2> /dev/null |
    openssl x509 -noout -checkend 0 > /dev/null 2>&1 || echo "missing $name"
"""


class Certificates(FactBase[CertificatesState]):
    """
    The `domains` for which Caddy has no valid certificate, and the reasons in its log.

    The test is a TLS handshake on loopback, because only Caddy knows which of its files it uses.
    """

    @staticmethod
    @override
    def default() -> CertificatesState:
        return CertificatesState(missing=[], reasons={})

    @override
    def command(self, domains: Sequence[str]) -> StringCommand:
        return StringCommand(
            'missing=""; for name in',
            *map(QuoteString, domains),
            f'; do missing="$missing$(\n{_HANDSHAKE})\n"; done;',
            'printf "%s" "$missing"; case $missing in *missing*)',
            # Only since Caddy's last start: before that its configuration may have been another.
            "run=$(systemctl show --value --property InvocationID caddy.service);",
            "journalctl --quiet --output cat --lines 5000 --unit caddy.service",
            '_SYSTEMD_INVOCATION_ID="$run"',
            "| grep -e '\"logger\":\"tls' -e 'acme_client\",' | grep -e '\"error\":' || true;",
            "esac",
        )

    @override
    def process(self, output: list[str]) -> CertificatesState:
        state = self.default()
        said: list[dict[str, str]] = []
        for line in output:
            if line.startswith("missing "):
                state["missing"].append(line.removeprefix("missing "))
            elif line.startswith("{"):
                with suppress(ValueError):
                    said.append(json.loads(line))
            elif line:
                raise FactProcessError(f"the certificates: {line!r}")
        for one in said:
            error = str(one.get("error", ""))
            named = re.match(r"\[([^\]]+)\]", error)
            name = one.get("identifier", named[1] if named else "")
            # Skip "no solvers available": it hides the error of the challenge that failed.
            if name in state["missing"] and "no solvers available" not in error:
                state["reasons"][name] = reason(error)
        return state


def reason(error: str) -> str:
    """
    The part of one of Caddy's errors that says what went wrong.

    An example of such an error:

    "[name] Obtain: [name] solving challenge: name: [name] authorization failed: HTTP 400
    urn:ietf:params:acme:error:dns - why (ca=https://authority/directory)"
    """
    text = re.sub(r"\s+", " ", error)
    text = re.sub(r" \(ca=\S+\)$", "", text)
    found = re.search(r"urn:ietf:params:acme:error:(\w+) - (.*)", text)
    if found:
        return f"{found[2]} ({found[1]})"
    return re.sub(r"^(\[[^\]]+\] ?((Obtain|Renew): )?)+", "", text)

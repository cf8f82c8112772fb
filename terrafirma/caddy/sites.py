"""What Caddy is told of each application, and whether the names of its sites lead to the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from ssl import PROTOCOL_TLS_CLIENT, SSLContext, SSLError
from typing import Any
from weakref import WeakSet

from pyinfra.api import DeployError, Host

from terrafirma.app.settings import Application, Guard
from terrafirma.caddy.facts import Names, NamesState
from terrafirma.caddy.settings import Caddy
from terrafirma.fields import is_public
from terrafirma.settings import ROOT

# The distribution's own, as long as none is installed.
OLDEST = (2, 6)

# Headers of every answer of every site, unless the application, or its `headers`, say another.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "strict-origin-when-cross-origin",
    "X-Frame-Options": "SAMEORIGIN",
}
_HSTS = "strict-transport-security"
# What tells a stranger which programs answer.
_SILENT = ("Server", "Via")

# Hosts of this run whose names have been looked at.
_looked: WeakSet[Host] = WeakSet()


def by_acme(domain: str, settings: Caddy) -> bool:
    """Whether an authority signs `domain` by ACME; Caddy's own authority signs what none would."""
    return is_public(domain) or bool(settings.acme_ca)


def names(apps: tuple[Application, ...]) -> Iterator[str]:
    """All names under which Caddy is asked for something."""
    for app in apps:
        yield app.domain
        yield from app.redirects


def site(host: Host, app: Application, settings: Caddy) -> dict[str, Any]:
    """What the template needs of one application."""
    return {
        "name": app.name,
        "domain": app.domain,
        "public": by_acme(app.domain, settings),
        "redirects": [
            {"domain": name, "public": by_acme(name, settings)} for name in app.redirects
        ],
        "headers": list(_default_headers(app)),
        "set_headers": list(_set_headers(app.headers)),
        "redirect_headers": [
            *_default_headers(app),
            *_set_headers({k: v for k, v in app.headers.items() if k.lower() == _HSTS}),
        ],
        "max_upload_mb": app.max_upload_mb,
        "timeout_seconds": app.timeout_seconds,
        "drain_seconds": app.drain_seconds,
        "guards": [
            {"paths": guarded(guard), "allow": guard.allow, "users": guard.users}
            for guard in app.guards
        ],
        "static": [
            {
                # Below /assets/* a file is looked up without /assets, a single file as it is.
                "directive": "handle_path" if path.endswith("*") else "handle",
                "path": path,
                "root": directory,
            }
            for path, directory in app.static.items()
        ],
        "snippet": lines(host, app.key("snippet"), app.snippet),
        # With room for more; those that are not there cost a refused connection.
        **{
            slot: [f"127.0.0.1:{first + number}" for number in range(app.room)]
            for slot, first in app.slots.items()
        },
    }


def lines(host: Host, key: str, name: str) -> dict[str, str] | None:
    """The text of a file on this machine with lines for the Caddyfile; None where none is named."""
    if not name:
        return None
    return {"file": name, "text": read(host, key, name).rstrip("\n")}


# Global options that would undo what releases and sites rest on: why, and what to do instead.
_OPTIONS = {
    "admin": "releases ask Caddy there what is under way, and a reload goes there: it is "
    "localhost:2019",
    "acme_ca": "set caddy_acme_ca",
    "acme_ca_root": "set caddy_acme_ca_root",
    "auto_https": "sites are HTTPS alone, and browsers are told so; give a site that has no "
    "certificate `tls` in the snippet of an application",
    "default_bind": "releases ask for the sites at 127.0.0.1; with `bind` in the snippet of an "
    "application, a site listens at an address of its own too",
    "email": "set caddy_email",
    "http_port": "clients and the authority for certificates come to port 80",
    "https_port": "clients come to port 443",
    "local_certs": "it would take away the certificates that browsers trust; names that no public "
    "authority signs have one of Caddy's own already",
    "persist_config": "Caddy starts with the Caddyfile, so that a boot serves what a run has said",
    "skip_install_trust": "it is set",
    "storage": "certificates are looked for, and backed up, in /var/lib/caddy",
}


def refuse_options(host: Host, options: dict[str, str] | None) -> None:
    """Raise DeployError where the global options of a snippet would undo the design."""
    depth = 0
    for line in (options or {}).get("text", "").splitlines():
        words = line.split("#")[0].split()
        if words and not depth and words[0] in _OPTIONS:
            raise DeployError(
                f"{host.name}: caddy_snippet: {words[0]} cannot be set: {_OPTIONS[words[0]]}"
            )
        depth += words.count("{") - words.count("}")


def read(host: Host, key: str, name: str) -> str:
    """The text of a file on this machine; raises DeployError where there is none."""
    try:
        return (ROOT / Path(name).expanduser()).read_text()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: no such user's home
        why = getattr(error, "strerror", None) or "not a text file"
        raise DeployError(f"{host.name}: {key}: cannot read {name!r} ({why})") from None


def is_certificate(text: str) -> bool:
    """Whether it is one in PEM, or several."""
    try:
        SSLContext(PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (SSLError, ValueError):
        return False
    return True


def quoted(value: str) -> str:
    """`value` as one word of a Caddyfile; it has no backtick (see settings.py)."""
    return f"`{value}`"


def _default_headers(app: Application) -> Iterator[str]:
    chosen = {name.lower() for name in app.headers}
    if app.hsts_seconds and _HSTS not in chosen:
        yield f'?Strict-Transport-Security "max-age={app.hsts_seconds}"'
    for name, value in SECURITY_HEADERS.items():
        if name.lower() not in chosen:
            yield f"?{name} {quoted(value)}"
    for name in _SILENT:
        if name.lower() not in chosen:
            yield f"-{name}"


def _set_headers(headers: Mapping[str, str]) -> Iterator[str]:
    for name, value in headers.items():
        yield f"{name} {quoted(value)}" if value else f"-{name}"


def guarded(guard: Guard) -> list[str]:
    """The paths of a guard as Caddy has them; to it, /admin/* is not /admin, nor that /admin/."""
    bare = guard.path.removesuffix("/*").rstrip("/")
    if not bare:
        return [guard.path]
    if guard.path.endswith("*"):
        return [guard.path] if bare == guard.path else [bare, guard.path]
    return [bare, f"{bare}/"]


def warn_of_names(host: Host, apps: tuple[Application, ...], settings: Caddy) -> None:
    """
    Say which names of sites do not lead to the host, once in a run.

    No certificate can be had for such a name. It is no reason to stop: perhaps the record is to
    come, or the address is another machine's that hands on what arrives.
    """
    domains = sorted(name for name in names(apps) if by_acme(name, settings))
    if host in _looked or not domains:
        return
    _looked.add(host)
    for message in astray(domains, host.get_fact(Names, domains=domains)):
        host.log_styled(message, fg="yellow")


def astray(domains: list[str], known: NamesState) -> Iterator[str]:
    """What is to be said of names that do not lead to the host."""
    own = {ip_address(one) for one in known["own"]}
    ours = ", ".join(map(str, sorted(own, key=str))) or "none"
    for name in domains:
        # The host's own name is often in its /etc/hosts, which says nothing about the world.
        found = [
            one for one in map(ip_address, known["names"].get(name, ())) if not one.is_loopback
        ]
        elsewhere = ", ".join(str(one) for one in found if one not in own)
        if name not in known["names"]:
            yield (
                f"{name} has no address, as far as the host can tell: there will be no certificate "
                "for it until its DNS record leads here"
            )
        elif elsewhere and any(one.is_global for one in own):
            yield (
                f"{name} leads to {elsewhere}, which is not the host ({ours}): there will be no "
                "certificate for it, unless what arrives there is handed on"
            )
        elif elsewhere:
            yield (
                f"{name} leads to {elsewhere}; the host knows itself as {ours} alone, so see to it "
                "that ports 80 and 443 of that address arrive here"
            )

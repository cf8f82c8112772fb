"""Template data for each site, and warnings about names that do not lead to the host."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from ssl import PROTOCOL_TLS_CLIENT, SSLContext, SSLError
from typing import Any
from weakref import WeakSet

from pyinfra.api import DeployError, Host

from terrafirma.app.public import matched
from terrafirma.app.settings import Application
from terrafirma.caddy.facts import Names, NamesState
from terrafirma.caddy.settings import Caddy
from terrafirma.fields import is_public
from terrafirma.paths import CADDY_UPSTREAMS
from terrafirma.settings import ROOT

# Caddy of the oldest distribution: the version to assume while Caddy is not installed.
OLDEST = (2, 6)

# Headers of every answer of every site, unless the application or its `headers` set their own.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "strict-origin-when-cross-origin",
    "X-Frame-Options": "SAMEORIGIN",
}
_HSTS = "strict-transport-security"
# Headers that would tell strangers which programs answer.
_SILENT = ("Server", "Via")

# Hosts whose names this run has checked already.
_looked: WeakSet[Host] = WeakSet()


def by_acme(domain: str, settings: Caddy) -> bool:
    """Whether `domain` gets its certificate by ACME; if not, from Caddy's own authority."""
    return is_public(domain) or bool(settings.acme_ca)


def names(apps: tuple[Application, ...]) -> Iterator[str]:
    """All names that Caddy serves or redirects."""
    for app in apps:
        yield app.domain
        yield from app.redirects
        yield from further_domains(app)


def further_domains(app: Application) -> list[str]:
    """The domains of its public services, without its own."""
    domains = dict.fromkeys(one.domain for one in app.public.values())
    return [name for name in domains if name and name != app.domain]


def sites(
    host: Host, apps: tuple[Application, ...], settings: Caddy, routed: Collection[str]
) -> list[dict[str, Any]]:
    """
    The data of all sites for the template.

    + routed: names of the applications whose releases write how Caddy reaches them
    """
    found = []
    for app in apps:
        main = site(host, app, settings)
        if app.name not in routed:
            found.append(main)
            continue
        found.append(main | {"routes": routes(app), "shared": True})
        found += [
            main
            | {
                "domain": domain,
                "public": by_acme(domain, settings),
                "redirects": [],
                "guards": list(_guards(app, domain)),
                "static": [],
                "snippet": None,
                "routes": routes(app, domain),
            }
            for domain in further_domains(app)
        ]
    return found


def routes(app: Application, domain: str = "") -> dict[str, str]:
    """
    For each slot, the file in which its release writes the routes of a domain, as Caddy imports it.

    The names are those of files/terrafirma_host/routes.py; with `*` the file may be missing.
    """
    return {
        slot: f"upstreams/{app.name}.{slot}@{domain}@*routes"
        if domain
        else f"upstreams/{app.name}.{slot}.*routes"
        for slot in app.slots
    }


def first_routes(app: Application) -> Iterator[tuple[str, str]]:
    """
    The name and the content of the routes for each slot, until a release has written its own.

    They lead to the release that serves, which has written only its health check so far.
    """
    for slot in app.slots:
        to = " ".join(_replicas(app, slot))
        yield (
            f"{app.name}.{slot}.routes",
            "# Managed by Terrafirma: until a release has written its own\n"
            f"reverse_proxy {{\n\tto {to}\n\timport terrafirma_proxy_{app.name}\n"
            f"\timport {CADDY_UPSTREAMS}/{app.name}.{slot}.*caddy\n"
            f"\ttransport http {{\n\t\timport terrafirma_transport_{app.name}\n\t}}\n}}\n",
        )


def _replicas(app: Application, slot: str) -> list[str]:
    # More ports than replicas, so that scaling needs no reload. An unused port costs a refused
    # connection.
    return [f"127.0.0.1:{app.slots[slot] + number}" for number in range(app.room)]


def _guards(app: Application, domain: str) -> Iterator[dict[str, Any]]:
    """The guards of a domain: the application's own, and those of its public services."""
    own = app.guards if domain == app.domain else ()
    of_services = (
        guard
        for one in app.public.values()
        if (one.domain or app.domain) == domain
        for guard in one.guards_of()
    )
    for guard in (*own, *of_services):
        yield {"paths": matched(guard.path), "allow": guard.allow, "users": guard.users}


def site(host: Host, app: Application, settings: Caddy) -> dict[str, Any]:
    """The data of one application for the template."""
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
        "stops_first": app.stops_first,
        "guards": list(_guards(app, app.domain)),
        "static": [
            {
                # With /assets/* the file's path in the directory begins after /assets; for a path
                # without `*` it is the full path.
                "directive": "handle_path" if path.endswith("*") else "handle",
                "path": path,
                "root": directory,
            }
            for path, directory in app.static.items()
        ],
        "snippet": lines(host, app.key("snippet"), app.snippet),
        **{slot: _replicas(app, slot) for slot in app.slots},
        "routes": None,
        "shared": False,
    }


def lines(host: Host, key: str, name: str) -> dict[str, str] | None:
    """A file on this machine with lines for the Caddyfile, and its text; None without a file."""
    if not name:
        return None
    return {"file": name, "text": read(host, key, name).rstrip("\n")}


# Global options that would break releases or sites: the reason, and what to do instead.
_OPTIONS = {
    "admin": "releases ask Caddy at localhost:2019 which requests are under way, and reloads are "
    "sent there",
    "acme_ca": "set caddy_acme_ca",
    "acme_ca_root": "set caddy_acme_ca_root",
    "auto_https": "sites are served over HTTPS only, which HSTS tells browsers; for a site without "
    "a certificate, set `tls` in the snippet of an application",
    "default_bind": "releases reach the sites at 127.0.0.1; to let a site listen at another "
    "address as well, set `bind` in the snippet of an application",
    "email": "set caddy_email",
    "http_port": "clients and the certificate authority connect to port 80",
    "https_port": "clients connect to port 443",
    "local_certs": "it would replace the certificates that browsers trust; names that no public "
    "authority signs already have a certificate of Caddy's own authority",
    "persist_config": "Caddy starts with the Caddyfile, so that after a boot it serves what the "
    "last run configured",
    "skip_install_trust": "it is already set",
    "storage": "certificates are checked, and backed up, in /var/lib/caddy",
}


def refuse_options(host: Host, options: dict[str, str] | None) -> None:
    """Raise DeployError if a snippet sets a global option that would break releases or sites."""
    depth = 0
    for line in (options or {}).get("text", "").splitlines():
        words = line.split("#")[0].split()
        if words and not depth and words[0] in _OPTIONS:
            raise DeployError(
                f"{host.name}: caddy_snippet: {words[0]} cannot be set: {_OPTIONS[words[0]]}"
            )
        depth += words.count("{") - words.count("}")


def read(host: Host, key: str, name: str) -> str:
    """The text of a file on this machine; raises DeployError if it cannot be read."""
    try:
        return (ROOT / Path(name).expanduser()).read_text()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: no such user's home
        why = getattr(error, "strerror", None) or "not a text file"
        raise DeployError(f"{host.name}: {key}: cannot read {name!r} ({why})") from None


def is_certificate(text: str) -> bool:
    """Whether a text is one or more certificates in PEM."""
    try:
        SSLContext(PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (SSLError, ValueError):
        return False
    return True


def quoted(value: str) -> str:
    """`value` as one token of a Caddyfile; it has no backtick, which app/settings.py refuses."""
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


def warn_of_names(host: Host, apps: tuple[Application, ...], settings: Caddy) -> None:
    """
    Warn of sites' names that do not lead to the host, once in a run.

    Such a name usually gets no certificate. The run goes on, because the DNS record may be on its
    way, or the address may be another machine's that forwards to the host.
    """
    domains = sorted(name for name in names(apps) if by_acme(name, settings))
    if host in _looked or not domains:
        return
    _looked.add(host)
    for message in astray(domains, host.get_fact(Names, domains=domains)):
        host.log_styled(message, fg="yellow")


def astray(domains: list[str], known: NamesState) -> Iterator[str]:
    """A warning for each name that does not lead to the host."""
    own = {ip_address(one) for one in known["own"]}
    ours = ", ".join(map(str, sorted(own, key=str))) or "none"
    for name in domains:
        # /etc/hosts often maps the host's own name to loopback, which no client sees.
        found = [
            one for one in map(ip_address, known["names"].get(name, ())) if not one.is_loopback
        ]
        elsewhere = ", ".join(str(one) for one in found if one not in own)
        if name not in known["names"]:
            yield (
                f"{name} has no address, as far as the host can tell: it gets no certificate until "
                "its DNS record leads here"
            )
        elif elsewhere and any(one.is_global for one in own):
            yield (
                f"{name} leads to {elsewhere}, which is not the host ({ours}): it gets no "
                "certificate unless that address forwards to the host"
            )
        elif elsewhere:
            yield (
                f"{name} leads to {elsewhere}; the host itself has no public address ({ours}), so "
                "make sure that ports 80 and 443 of that address are forwarded here"
            )

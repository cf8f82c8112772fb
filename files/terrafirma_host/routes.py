"""
Managed by Terrafirma. The routes of a release: what Caddy does with requests for its slot.

Pure functions of the description. An application of one service that speaks HTTP/1.1 and answers
health checks over HTTP needs no such routes: its Caddyfile has all but the health check. Any other
has, for each domain and slot, a file with routes. Its release writes them, so that paths, protocols
and health checks change at the same moment as the containers that they are for.

Caddy's own health checks speak HTTP alone. With any other kind of check Caddy knows only the ports
of the replicas that the release has found healthy, and leaves a replica alone that refuses
connections.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

from terrafirma_host import health
from terrafirma_host.public import Public
from terrafirma_host.spec import Application

HEAD = "# Managed by Terrafirma: the release in this slot"
ASKED = "# asked: "

# Ports of a slot that Caddy asks: more than replicas, so that scaling up needs no reload.
MOST = 64


def room(replicas: int) -> int:
    return min(MOST, max(8, 2 * replicas))


def files(app: Application, slot: str) -> dict[str, str]:
    """The files of a slot: their names below /etc/caddy/upstreams, and their contents."""
    domains: dict[str, list[Application]] = {}
    for front in app.fronts[1:]:
        domains.setdefault(front.domain, []).append(front)
    main = _routes(app, domains.pop(app.domain, []), slot)
    found = {name(app, slot): f"{HEAD}\n{ASKED}{json.dumps(_asked(app), sort_keys=True)}\n{main}"}
    for domain, fronts in domains.items():
        whole = next((one for one in fronts if not _public(app, one).paths), None)
        parts = [one for one in fronts if one is not whole]
        found[name(app, slot, domain)] = f"{HEAD}\n{_routes(whole, parts, slot, app)}"
    return found


def name(app: Application, slot: str, domain: str = "") -> str:
    """A file's name; in the Caddyfile a `*` comes before `routes`, so that it may be missing."""
    # A domain has no `@`, so that a pattern with one domain matches the file of no other.
    return f"{app.name}.{slot}@{domain}@routes" if domain else f"{app.name}.{slot}.routes"


# --- what a slot's release is asked ---------------------------------------------------------------


def _asked(app: Application) -> dict[str, object]:
    return {
        "domain": app.domain,
        "protocol": app.protocol,
        "health": app.health,
        "health_path": app.health_path,
        "health_headers": dict(app.health_headers),
        "replicas": app.replicas,
        "public": {name: asdict(one) for name, one in app.public.items()},
    }


def as_asked(app: Application, text: str) -> Application | None:
    """
    The application as the release in a slot was described; None: the slot's file does not say.

    Domains and paths of a public service are those of now: they need no other container.
    """
    line = next((one for one in text.splitlines() if one.startswith(ASKED)), "")
    if not line:
        return None
    try:
        said = json.loads(line.removeprefix(ASKED))
        public = {name: Public.of(one) for name, one in said.pop("public").items()}
        if isinstance(said["health"], list):
            said["health"] = tuple(said["health"])
        asked = replace(app, **said, public=public)
    except (ValueError, TypeError, KeyError, AttributeError):
        # Of another version of this program: what is described now is the best guess.
        return app
    for name, now in app.public.items():
        if name in public:
            public[name] = replace(
                public[name], domain=now.domain, paths=now.paths, prefix=now.prefix,
                guarded=now.guarded,
            )  # fmt: skip
    return asked


# --- the routes -----------------------------------------------------------------------------------


def _public(app: Application, front: Application) -> Public:
    return app.public[front.front]


def _routes(
    whole: Application | None, parts: list[Application], slot: str, of: Application | None = None
) -> str:
    """
    The routes of a domain: the most exact path first, and for all other requests `whole`.

    + of: the application, if `whole` is none
    """
    app = of or whole
    assert app
    lines: list[str] = []
    for front in sorted(parts, key=lambda one: _public(app, one).rank):
        one = _public(app, front)
        lines += [
            f"@{front.service} path {' '.join(one.paths)}",
            f"handle @{front.service} {{",
            *([f"\turi strip_prefix {one.prefix}"] if one.prefix else []),
            *(f"\t{line}" for line in _proxy(front, slot, one.prefix)),
            "}",
        ]
    lines += _proxy(whole, slot) if whole else ["error 404"]
    return "\n".join(lines) + "\n"


def _proxy(front: Application, slot: str, prefix: str = "") -> Iterator[str]:
    first = front.slots[slot]
    # Where Caddy checks no health, it must know no port without a replica; nor where requests wait
    # for the only one.
    exact = front.health != "http" or front.stops_first
    ports = front.replicas if exact else room(front.replicas)
    yield "reverse_proxy {"
    yield f"\tto {' '.join(f'127.0.0.1:{first + number}' for number in range(ports))}"
    yield f"\timport terrafirma_proxy_{front.name}"
    if front.health == "http":
        yield from (f"\t{line}" for line in health.lines(front).splitlines())
    if prefix:
        yield f"\theader_up X-Forwarded-Prefix {prefix}"
    if front.protocol == "https":
        # Newer versions replace the name that the visitor asked for.
        yield "\theader_up Host {http.request.hostport}"
    yield "\ttransport http {"
    yield f"\t\timport terrafirma_transport_{front.name}"
    yield from (f"\t\t{line}" for line in _TRANSPORTS[front.protocol])
    if front.protocol == "https":
        yield f"\t\ttls_server_name {front.domain}"
    yield "\t}"
    yield "}"


_TRANSPORTS: Mapping[str, tuple[str, ...]] = {
    "http": (),
    "h2c": ("versions h2c 2",),
    # Encrypted, but on loopback: the replica's certificate proves nothing more.
    "https": ("tls_insecure_skip_verify",),
}

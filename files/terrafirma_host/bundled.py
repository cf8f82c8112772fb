"""Managed by Terrafirma. Proxies that a compose project brings along, although Caddy is there."""

from __future__ import annotations

from collections.abc import Iterator

from terrafirma_host import layers
from terrafirma_host.image_names import Image
from terrafirma_host.kinds import Service
from terrafirma_host.layers import Project
from terrafirma_host.spec import Application

# Proxies by the last part of an image's name.
PROXIES = frozenset(
    "traefik nginx-proxy nginx-proxy-manager nginx nginx-unprivileged openresty caddy"
    " caddy-docker-proxy haproxy envoy swag httpd apache".split()
)
# Programs that fetch certificates for a proxy, or open a way in for it.
CERTIFICATES = frozenset(
    "certbot acme-companion letsencrypt-nginx-proxy-companion lego acme.sh".split()
)
LABELS = ("traefik.", "caddy")
VARIABLES = ("VIRTUAL_HOST", "LETSENCRYPT_HOST")


def proxies(app: Application, project: Project) -> Iterator[str]:
    """Lines about proxies of the project: left out, or behind Caddy."""
    services, begun = project["services"], layers.slot_services(app, project)
    # A proxy with volumes of its own is stateful by itself.
    for name in (*begun, *app.stateful):
        kind = _kind(name, services[name])
        if kind == "certificates":
            yield (f'{name} fetches certificates, which Caddy does here: leave_out = ["{name}"] '
                   "stops it")  # fmt: skip
        elif kind == "proxy" and name == app.service:
            behind = [one for one in begun if one != name
                      and one in (services[name].get("depends_on") or {})]  # fmt: skip
            more = f"; {', '.join(behind)} run as often as the files say" if behind else ""
            yield (f"{name} is a proxy behind Caddy: it has to pass on X-Forwarded-Proto as it "
                   f"comes (https), not its own{more}")  # fmt: skip
        elif kind == "proxy" and _is_public(services[name]):
            yield (f"{name} is a proxy of its own, which nobody reaches: Caddy has the ports 80 "
                   f'and 443. leave_out = ["{name}"] stops it, service = "{name}" puts it behind '
                   "Caddy")  # fmt: skip
    routed = [name for name in begun if name != app.service and _is_routed(services[name])]
    if routed:
        yield (f"{', '.join(routed)}: labels or variables for a proxy lead nobody here: Caddy "
               "serves what the settings name")  # fmt: skip


def _kind(name: str, service: Service) -> str:
    image = name if "build" in service else service.get("image") or ""
    last = Image.of(image.lower()).last
    if last in CERTIFICATES:
        return "certificates"
    return "proxy" if last in PROXIES else ""


def _is_public(service: Service) -> bool:
    ports = service.get("ports") or []
    return any(str(one.get("published")) in ("80", "443", "8080", "8443") for one in ports)


def _is_routed(service: Service) -> bool:
    labels, env = service.get("labels") or {}, service.get("environment") or {}
    return any(str(one).startswith(LABELS) for one in labels) or any(
        one in env for one in VARIABLES
    )

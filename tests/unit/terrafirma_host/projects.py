"""A compose project, and what its services mount."""

from dataclasses import replace
from typing import Any

from terrafirma_host.layers import Project

from tests.unit.terrafirma_host.applications import described

SHOP = replace(
    described(), name="shop", source="/opt/terrafirma/shop/sources/0123",
    compose=("compose.yaml",), service="web",
)  # fmt: skip


def volume(source: str, target: str = "/data", **more: Any) -> dict[str, Any]:
    return {"type": "volume", "source": source, "target": target, **more}


def bind(source: str, **more: Any) -> dict[str, Any]:
    return {"type": "bind", "source": source, "target": "/data", **more}


def project(volumes: dict[str, Any] | None = None, **services: Any) -> Project:
    return {
        "name": "shop",
        "services": {"web": {"build": {"context": SHOP.source}}} | services,
        "volumes": volumes or {},
    }

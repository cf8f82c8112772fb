"""Fixtures for several end-to-end modules."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.support import Container, Target, bystander, output


@pytest.fixture(scope="session")
def outsider() -> Iterator[Container]:
    with bystander(f"tf-test-outsider{os.environ.get('PYTEST_XDIST_WORKER', '')}") as container:
        yield container


@pytest.fixture(scope="session")
def new_key(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A new key pair, authorized nowhere; the path of the private key."""
    path = tmp_path_factory.mktemp("keys") / "id_ed25519"
    output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "somebody", "-f", str(path))
    return str(path)


# --- for modules whose fixture `hosts` is a server with backups, and the settings for its runs ----


@pytest.fixture(scope="module")
def server(hosts: tuple[Target, dict[str, Any]]) -> Target:
    return hosts[0]


@pytest.fixture(scope="module")
def data(hosts: tuple[Target, dict[str, Any]]) -> dict[str, Any]:
    return hosts[1]

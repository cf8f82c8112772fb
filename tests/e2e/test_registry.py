"""The image registry of other tests refuses clients without credentials."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import HOST, clone
from tests.e2e.support import Registry, Target, registry

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with clone(pyinfra, "tf-test-puller", 2436, HOST) as one:
        yield one


@pytest.fixture(scope="module")
def images() -> Iterator[Registry]:
    with registry("tf-test-registry") as one:
        yield one


def test_a_pull_needs_credentials(server: Target, images: Registry) -> None:
    server.run("echo 'FROM scratch\nLABEL one=1' | DOCKER_BUILDKIT=0 docker build -q -t one:1 -")
    assert "unknown authority" in server.call(f"docker pull {images.host}/one:1").stderr
    images.trust(server)
    reference = images.push(server, "one:1", "one:1")
    assert reference == f"{images.host}/one:1"
    server.run("docker image rm one:1")
    assert server.call(f"docker image inspect {reference}").returncode != 0

    assert "no basic auth credentials" in server.call(f"docker pull {reference}").stderr
    login = f"docker login --username {images.user} --password-stdin {images.host}"
    assert "401 Unauthorized" in server.call(login, stdin="a guess").stderr
    assert "no basic auth credentials" in server.call(f"docker pull {reference}").stderr
    server.run(login, stdin=images.password)
    server.run(f"docker pull {reference}")
    server.run(f"docker image inspect {reference}")
    server.run(f"docker logout {images.host}")
    assert images.password not in images.run("cat /var/log/registry.log /srv/users")

"""The parts of an image's name."""

import pytest
from terrafirma_host.image_names import Image

from tests.unit.terrafirma_host.docker import DIGEST


@pytest.mark.parametrize(
    ("image", "registry", "repository"),
    [
        ("api", "docker.io", "api"),
        ("api:1.2", "docker.io", "api"),
        ("team/api:1.2", "docker.io", "team/api"),
        ("docker.io/team/api:1.2", "docker.io", "docker.io/team/api"),
        ("index.docker.io/team/api", "docker.io", "index.docker.io/team/api"),
        ("ghcr.io/acme/api:1.2", "ghcr.io", "ghcr.io/acme/api"),
        ("localhost/api", "localhost", "localhost/api"),
        ("localhost:5000/api", "localhost:5000", "localhost:5000/api"),
        ("registry:5000/a/b/api:1.2", "registry:5000", "registry:5000/a/b/api"),
        (f"ghcr.io/acme/api@{DIGEST}", "ghcr.io", "ghcr.io/acme/api"),
        (f"registry:5000/api:1.2@{DIGEST}", "registry:5000", "registry:5000/api"),
    ],
)
def test_the_parts_of_a_name(image: str, registry: str, repository: str) -> None:
    found = Image.of(image)
    assert (found.host, found.repository, found.last) == (registry, repository, "api")


def test_the_path_and_the_tag_of_a_name() -> None:
    for name, parts in {
        "api": ("docker.io", "library/api", "latest"),
        "api:1.2": ("docker.io", "library/api", "1.2"),
        "team/api:1": ("docker.io", "team/api", "1"),
        "index.docker.io/team/api:1": ("docker.io", "team/api", "1"),
        "ghcr.io/a/b/c:x": ("ghcr.io", "a/b/c", "x"),
        "localhost/api": ("localhost", "api", "latest"),
        "registry:5000/api": ("registry:5000", "api", "latest"),
    }.items():
        image = Image.of(name)
        assert (image.host, image.path, image.tag) == parts

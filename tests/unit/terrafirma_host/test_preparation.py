"""What a release builds."""

from dataclasses import replace
from pathlib import Path

import pytest
from terrafirma_host import builds, preparation
from terrafirma_host.shell import Failed

from tests.unit.terrafirma_host.applications import described


@pytest.mark.parametrize("name", ["", "docker/web"])
def test_a_dockerfile_is_one_of_the_source(tmp_path: Path, name: str) -> None:
    """A deploy key may have sent a link, and the builder's messages quote what they read."""
    source = tmp_path / "source"
    (source / "docker").mkdir(parents=True)
    (source / "inner").write_text("FROM x\n")
    (tmp_path / "secret").write_text("s3cret\n")
    app = replace(described(), source=str(source), dockerfile=name)
    dockerfile = source / (name or "Dockerfile")
    dockerfile.symlink_to(source / "inner")
    preparation.refuse_dockerfile(app)
    dockerfile.unlink()
    dockerfile.symlink_to(tmp_path / "secret")
    with pytest.raises(Failed, match="is a link that leads out of the source"):
        preparation.refuse_dockerfile(app)
    # Compose files say themselves where theirs are.
    preparation.refuse_dockerfile(replace(app, compose=("compose.yaml",)))


def test_a_directory_of_a_dockerfile_is_one_of_the_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (source / "docker").symlink_to(tmp_path / "elsewhere")
    app = replace(described(), source=str(source), dockerfile="docker/web")
    with pytest.raises(Failed, match="dockerfile: docker/web is a link that leads out"):
        preparation.refuse_dockerfile(app)


def test_the_path_of_builds_leads_to_the_source_of_the_release(tmp_path: Path) -> None:
    app = replace(described(), root=str(tmp_path))
    app.directory.mkdir()
    # A release died before it had put the link in its place.
    (app.directory / ".building").symlink_to("/elsewhere")
    for name in ("one", "two"):
        path = builds.lead(replace(app, source=f"/sources/{name}"))
        assert Path(path).readlink() == Path("/sources", name)
        assert Path(path) == app.directory / "building"

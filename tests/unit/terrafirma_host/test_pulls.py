"""Images as they are pulled, with the passwords of registries; a script stands in for Docker."""

import base64
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import pulls
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

from tests.unit.terrafirma_host.docker import DIGEST


def test_an_image_with_a_digest_needs_no_registry(docker: Any, app: Application) -> None:
    asked = docker("exit 1")
    images = [f"ghcr.io/acme/api{tag}@{DIGEST}" for tag in ("", ":1.2")]
    found = pulls.resolve(app, images)
    assert found == dict.fromkeys(images, f"ghcr.io/acme/api@{DIGEST}")
    assert not asked.exists()


@pytest.fixture
def private(app: Application, roots: Path) -> Application:
    password = roots / "secrets" / ".registry_registry.test_5000"
    password.write_text("s3cret:s3cret\n")
    return replace(
        app.with_image("registry.test:5000/api:1"),
        registries={"registry.test:5000": {"user": "ci", "password": str(password)}},
    )


def test_a_password_is_there_for_as_long_as_it_is_needed(private: Application) -> None:
    with suppress(ZeroDivisionError), pulls.login(private) as env:
        directory = Path(env["DOCKER_CONFIG"])
        config = directory / "config.json"
        assert (directory.stat().st_mode & 0o777, config.stat().st_mode & 0o777) == (0o700, 0o600)
        auths = json.loads(config.read_text())["auths"]
        assert list(auths) == ["registry.test:5000"]
        known = base64.b64decode(auths["registry.test:5000"]["auth"])
        assert known == b"ci:s3cret:s3cret"
        raise ZeroDivisionError
    assert not directory.exists()


def test_there_may_be_several_registries(private: Application) -> None:
    login = private.registries["registry.test:5000"]
    several = replace(private, registries={"ghcr.io": login, "docker.io": login})
    with pulls.login(several) as env:
        config = json.loads((Path(env["DOCKER_CONFIG"]) / "config.json").read_text())
    # Docker knows its own by this name.
    assert list(config["auths"]) == ["ghcr.io", "https://index.docker.io/v1/"]


def test_a_password_is_no_argument(docker: Any, private: Application) -> None:
    asked = docker(
        """case $1 in
        image) echo "Error: No such image" >&2; echo '[]'; exit 1 ;;
        pull) test -s "$DOCKER_CONFIG/config.json" ;;
        esac"""
    )
    assert pulls.pull(private, f"registry.test:5000/api@{DIGEST}")
    assert asked.read_text().splitlines()[-1] == f"pull --quiet registry.test:5000/api@{DIGEST}"
    assert "s3cret" not in asked.read_text()


def test_a_password_that_is_missing_is_named(private: Application) -> None:
    login = {"user": "ci", "password": "/no/where"}
    missing = replace(private, registries={"registry.test:5000": login})
    with (
        pytest.raises(Failed, match=r"/no/where is missing; run deploy.py"),
        pulls.login(missing),
    ):
        pass
    with pulls.login(replace(private, registries={})) as env:
        assert env == {}


def test_an_image_for_another_architecture_is_refused(docker: Any, app: Application) -> None:
    docker(
        """case $1 in
        image) echo "Error: No such image" >&2; echo '[]'; exit 1 ;;
        pull) echo "no matching manifest for linux/arm64/v8 in the manifest list" >&2; exit 1 ;;
        esac"""
    )
    with pytest.raises(Failed, match=rf"@{DIGEST}: the registry has none for {os.uname().machine}"):
        pulls.pull(app, f"api@{DIGEST}")


def test_an_image_that_is_here_is_not_pulled(docker: Any, app: Application) -> None:
    asked = docker("echo '[{}]'")
    assert not pulls.pull(app, f"api@{DIGEST}")
    assert "pull" not in asked.read_text()

"""The directories of the web service that settings make writable or lasting."""

import json
from dataclasses import replace
from typing import Any

import pytest
from terrafirma_host import directories, layers
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

from tests.unit.terrafirma_host.applications import described

APP = replace(described(), user="", read_only=False)
SHOP = replace(APP, name="shop", service="web", compose=("compose.yaml",))
FILES = {"type": "volume", "source": "files", "target": "/files", "volume": {"nocopy": True}}


def added(app: Application, **service: Any) -> dict[str, Any]:
    project = {"name": app.name, "services": {app.service: service}}
    directories.add(app, project)
    return project


def test_a_project_stays_as_it_is_by_default() -> None:
    assert added(APP)["services"] == {"api": {}}
    assert directories.layer(APP, {}) == {}


@pytest.mark.parametrize(
    ("but", "memory"),
    [
        ({"read_only": True}, ["/tmp"]),
        ({"user": "prod"}, ["/tmp"]),
        ({"read_only": True, "writable": ("/app/tmp",)}, ["/app/tmp", "/tmp"]),
        ({"read_only": True, "writable": ("/tmp",)}, ["/tmp"]),
        ({"read_only": True, "volumes": {"tmp": "/tmp"}}, []),
        ({"writable": ("/app/tmp",)}, ["/app/tmp"]),
    ],
)
def test_directories_in_memory(but: dict[str, Any], memory: list[str]) -> None:
    app = replace(APP, **but)
    service = added(app)["services"]["api"]
    wanted = [f"{path}:mode=1777,exec" for path in memory]
    assert service.get("tmpfs", []) == wanted
    assert service.get("read_only", False) == app.read_only
    layer = directories.layer(app, service)
    assert json.loads(layer.get("tmpfs", "[]")) == wanted
    assert layer.get("read_only") == ("true" if app.read_only else None)


def test_a_volume_that_lasts_is_named_after_the_application() -> None:
    app = replace(APP, volumes={"files": "/files"})
    project = added(app)
    assert project["services"]["api"]["volumes"] == [FILES]
    assert project["volumes"] == {"files": {"name": "api_files"}}
    assert layers.volume_names(app, project) == {"files": "api_files"}
    assert json.loads(directories.layer(app, project["services"]["api"])["volumes"]) == [FILES]


def test_what_the_files_mount_stays() -> None:
    app = replace(SHOP, writable=("/app/tmp",), volumes={"files": "/files"}, read_only=True)
    theirs = [{"type": "bind", "source": "/srv", "target": "/srv"}]
    # A volume without a name at the same place gets the name.
    nameless = [{"type": "volume", "target": "/files/"}]
    service = added(app, volumes=[*theirs, *nameless], tmpfs="/tmp")["services"]["web"]
    assert service["volumes"] == [*theirs, FILES]
    assert service["tmpfs"] == ["/tmp", "/app/tmp:mode=1777,exec"]
    # Compose appends ours to those of the files.
    assert json.loads(directories.layer(app, service)["tmpfs"]) == ["/app/tmp:mode=1777,exec"]


@pytest.mark.parametrize(
    ("but", "service", "refused"),
    [
        (
            {"volumes": {"files": "/files"}},
            {"volumes": [{"type": "volume", "source": "data", "target": "/files"}]},
            "volumes: web has data at /files in the compose files: leave /files out of volumes, or",
        ),
        (
            {"writable": ("/cache",)},
            {"volumes": [{"type": "bind", "source": "/srv/cache", "target": "/cache/"}]},
            "writable: web has /srv/cache at /cache in the compose files: leave /cache out of wri",
        ),
        (
            {"writable": ("/cache",)},
            {"tmpfs": ["/cache:size=1m"]},
            "writable: web has tmpfs at /cache in the compose files",
        ),
    ],
)
def test_two_mounts_at_one_place_are_refused(
    but: dict[str, Any], service: dict[str, Any], refused: str
) -> None:
    with pytest.raises(Failed, match=refused):
        added(replace(SHOP, **but), **service)


def test_a_volume_of_the_files_keeps_its_name() -> None:
    app = replace(SHOP, volumes={"files": "/files"})
    project = {"name": "shop", "services": {"web": {}}, "volumes": {"files": {}}}
    with pytest.raises(Failed, match=r"volumes: the compose files have a volume 'files': take"):
        directories.add(app, project)

"""Mounts of the source: configuration, data and code; and the engine's socket."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import mounts

from tests.unit.terrafirma_host.projects import SHOP

# The path in the source, its files, the path in the container; what becomes of the mount.
MOUNTS: list[tuple[str, dict[str, str], str, str]] = [
    ("app.conf", {"app.conf": "x"}, "/etc/app.conf", "read"),
    ("settings.json", {"settings.json": "x"}, "/app/settings.json", "read"),
    ("app.db", {"app.db": "x"}, "/app/app.db", "is a file that is written at /app/app.db"),
    ("acme.json", {"acme.json": "x"}, "/acme.json", "is a file that is written at /acme.json"),
    ("app.log", {"app.log": "x"}, "/var/log/app.log", "is a file that is written at"),
    ("app.conf", {}, "/etc/app.conf", "is not in the source, so /etc/app.conf would be an empty"),
    (".env", {}, "/app/.env", "is not in the source, so /app/.env would be an empty directory"),
    ("nginx", {"nginx/a.conf": "x"}, "/etc/nginx/conf.d", "read"),
    ("init", {"init/a.sql": "x"}, "/docker-entrypoint-initdb.d", "read"),
    ("grafana", {"grafana/a.yml": "x"}, "/etc/grafana/provisioning", "read"),
    ("html", {"html/index.html": "x"}, "/usr/share/nginx/html", "read"),
    ("theme", {"theme/a.css": "x"}, "/opt/keycloak/themes", "read"),
    ("data", {}, "/var/lib/mysql", "data"),
    ("data", {"data/.gitkeep": ""}, "/data", "data"),
    ("data", {"data/seed.sql": "x"}, "/var/lib/postgresql/data", "data"),
    ("uploads", {"uploads/a.png": "x"}, "/app/uploads", "data"),
    ("config", {}, "/config", "data"),
    ("logs", {}, "/app/logs", "data"),
    (".", {"Dockerfile": "FROM x\nCOPY . /app\n"}, "/app", "code"),
    (".", {"Dockerfile": "FROM x\nCOPY . .\n"}, "/usr/src/app", "code"),
    (".", {"Dockerfile": "FROM x\nADD --chown=1:1 ./ ./\n"}, "/app", "code"),
    (".", {"Dockerfile": 'FROM x\nCOPY [".", "/app"]\n'}, "/app", "code"),
    ("src", {"Dockerfile": "FROM x\nCOPY src /app/src\n", "src/a": "x"}, "/app/src", "code"),
    ("src", {"Dockerfile": "FROM x\nCOPY a.txt /a\n", "src/a": "x"}, "/app/src", "read"),
    (".", {"Dockerfile": "FROM x\nCOPY --from=build . /a\nCOPY a.txt /\n"}, "/app", "read"),
    (".", {"Dockerfile": "FROM x\nCOPY requirements.txt \\\n  ./\n"}, "/app", "read"),
    (".", {"Dockerfile": "FROM x\r\nCOPY . /app\r\n"}, "/app", "code"),
    # Of a file that a deploy key may have sent, only the beginning is read.
    (".", {"Dockerfile": f"FROM x\n{'#' * mounts.LARGEST}\nCOPY . /app\n"}, "/app", "read"),
]


@pytest.mark.parametrize(("path", "files", "target", "kind"), MOUNTS)
def test_what_becomes_of_a_mount(
    tmp_path: Path, path: str, files: dict[str, str], target: str, kind: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    app = replace(SHOP, source=str(tmp_path))
    source = str(tmp_path if path == "." else tmp_path / path)
    mount = {"type": "bind", "source": source, "target": target}
    service = {"build": {"context": str(tmp_path)}, "volumes": [mount]}
    said = [*mounts.refusals(app, "web", service)]
    if kind not in mounts.KINDS:
        (line,) = said
        assert line.startswith(f"web: volumes: ./{path} {kind}")
        return
    assert said == []
    volumes: dict[str, Any] = {}
    found = mounts.changed(app, "web", service, volumes)
    (line,) = found.lines
    if kind == "read":
        assert found.mounts == [{**mount, "read_only": True}]
        assert "is mounted read-only at" in line
    elif kind == "code":
        assert found.mounts == []
        assert "the image has its own copy" in line
    else:
        (key,) = volumes
        assert found.mounts == [{"type": "volume", "source": key, "target": target}]
        assert f"is the volume {key}, not ./{path}" in line


def test_a_volume_that_kept_code_from_hiding_the_image_goes_with_it(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM x\nCOPY . /app\n")
    service = {
        "build": {"context": str(tmp_path)},
        "volumes": [
            {"type": "bind", "source": str(tmp_path), "target": "/app"},
            {"type": "volume", "target": "/app/node_modules"},
            {"type": "volume", "target": "/data"},
        ],
    }
    found = mounts.changed(replace(SHOP, source=str(tmp_path)), "web", service, {})
    assert found.mounts == [{"type": "volume", "target": "/data"}]


def test_a_volume_that_keeps_what_the_build_installs_goes(tmp_path: Path) -> None:
    mounted = [{"type": "volume", "target": path} for path in ("/code/node_modules", "/code/up")]
    service = {"build": {"context": str(tmp_path)}, "volumes": mounted}
    found = mounts.changed(replace(SHOP, source=str(tmp_path)), "web", service, {})
    assert found.mounts == mounted[1:]
    assert found.lines == [
        "web: /code/node_modules is the image's own directory, not a volume without a name: each "
        "release has what its build installs"
    ]
    # Nobody knows what is in there if the image comes from a registry.
    image = {"image": "web", "volumes": mounted}
    assert mounts.changed(replace(SHOP, source=str(tmp_path)), "web", image, {}).mounts == mounted


def test_a_volume_for_a_directory_has_a_name_of_its_own(tmp_path: Path) -> None:
    """Two services with one directory have one volume, and none that the files have, too."""
    app = replace(SHOP, source=str(tmp_path))
    volumes: dict[str, Any] = {"data-db": {"name": "shop_data-db"}}
    for target in ("/a", "/b"):
        mount = {"type": "bind", "source": f"{tmp_path}/data/db", "target": target}
        found = mounts.changed(app, "db", {"volumes": [mount]}, volumes)
        assert found.mounts[0]["source"] == "data-db-directory"
    assert [*volumes] == ["data-db", "data-db-directory"]


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("/var/run/docker.sock", True),
        ("/run/docker.sock", True),
        ("/run/user/1000/docker.sock", True),
        ("/run/containerd/containerd.sock", True),
        ("/", True),
        ("/run/", True),
        ("/var/run", True),
        ("/var/lib/docker", False),
        ("/run/mysqld/mysqld.sock", False),
        ("/srv/docker", False),
    ],
)
def test_the_engines_socket(source: str, refused: bool) -> None:
    service = {"volumes": [{"type": "bind", "source": source, "target": "/x", "read_only": True}]}
    said = [*mounts.refusals(SHOP, "top", service)]
    assert bool(said) is refused
    assert all('docker_socket = ["top"] if it may, or leave_out = ["top"]' in one for one in said)
    assert not [*mounts.refusals(replace(SHOP, docker_socket=("top",)), "top", service)]

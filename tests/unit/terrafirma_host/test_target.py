"""What identifies a release, and code that a deploy key sends."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application, Serving, serving_release
from terrafirma_host.target import Target, with_serving_code

from tests.unit.terrafirma_host.applications import records
from tests.unit.terrafirma_host.docker import DIGEST
from tests.unit.terrafirma_host.releases import release_id, uploaded


def test_changes_that_make_another_release(host: Path, app: Application) -> None:
    token = host / "secrets" / "token"
    token.write_text("one")
    further = host / "secrets" / ".env_file"
    further.write_text('{"A": "1", "B": "1"}')
    several: dict[str, Application] = {
        "variable of a file": replace(app, env_file=str(further), variables=("A",)),
        "variables of a file": replace(app, env_file=str(further), variables=("A", "B")),
        "as it is": app,
        "source": app.with_source(host / "opt" / "api" / "sources" / "4567"),
        "image": app.with_image("registry.test/api:1"),
        "migrate": replace(app, migrate=("migrate",)),
        "env": replace(app, env={"A": "1"}),
        "secret": replace(app, secrets={**app.secrets, "token": str(token)}),
        "reference": replace(app, env={"A": "{secrets.database_url}"}),
        "another reference": replace(app, env={"A": "{secrets.database_url}+"}),
        "secrets_env": replace(app, secrets_env=True),
        "container_port": replace(app, container_port=8080),
        "the usual container_port": replace(app, container_port=8000),
        "dockerfile": replace(app, dockerfile="docker/Dockerfile"),
        "target": replace(app, target="web"),
        "build_args": replace(app, build_args={"A": "1"}),
        "read_only": replace(app, read_only=not app.read_only),
        "writable": replace(app, writable=("/app/tmp",)),
        "volumes": replace(app, volumes={"files": "/files"}),
        "network": replace(app, network="jobs"),
        "user": replace(app, user="root"),
        "memory": replace(app, memory_mb=64),
        "cpus": replace(app, cpus=0.5),
        "stop_seconds": replace(app, stop_seconds=11),
    }
    ids = {what: release_id(one) for what, one in several.items()}
    assert len({*ids.values()}) == len(ids), ids
    # A moved tag, and a changed secret.
    (host / "digest").write_text("sha256:another")
    assert release_id(several["image"]) != ids["image"]
    further.write_text('{"A": "2", "B": "1"}')
    assert release_id(several["variable of a file"]) != ids["variable of a file"]
    token.write_text("two")
    assert release_id(several["secret"]) != ids["secret"]
    assert release_id(app) == ids["as it is"]


def test_another_way_to_build_is_other_code(host: Path, app: Application) -> None:
    """So a migration runs, and a rollback leads back."""
    ways: list[dict[str, Any]] = [
        *({}, {"dockerfile": "a"}, {"target": "a"}),
        *({"build_args": {"A": "1"}}, {"build_args": {"A": "2"}}),
    ]
    several = [replace(app, **how) for how in ways]
    assert len({Target.described(one).code for one in several}) == len(several)


def test_changes_that_make_no_other_release(host: Path, app: Application) -> None:
    """Longer timeouts, another page or more replicas must not replace those that serve."""
    before = release_id(app)
    for but in (
        *({"replicas": 9}, {"start_seconds": 300}, {"drain_seconds": 5}, {"keep": 9}),
        *({"domain": "www.acme.com"}, {"smoke_path": "/up"}, {"health_path": "/up"}),
        *({"automated": True}, {"registries": {"ghcr.io": {"user": "ci", "password": "/it"}}}),
    ):
        changed: dict[str, Any] = but
        assert release_id(replace(app, **changed)) == before, but


def test_with_a_deploy_key_the_serving_code_is_kept(app: Application) -> None:
    """Otherwise a changed setting would undo later releases."""
    theirs = uploaded(app.directory / "sources" / "theirs")
    records(app, "0123456789ab", source=theirs)
    Serving("0123456789ab", "blue", 4, 8000).save(app)
    assert with_serving_code(app) == app
    by_key = replace(app, automated=True)
    assert with_serving_code(by_key).source == theirs
    of_a_registry = by_key.with_image("api:1")
    # The description cannot run code of another kind, so it is released itself.
    assert with_serving_code(of_a_registry) == of_a_registry
    # … nor code with compose files that a key sent, which were never checked.
    (Path(theirs) / "compose.yaml").touch()
    project = replace(by_key, compose=("compose.yaml",))
    assert with_serving_code(project) == project
    records(app, "0123456789ab", source="", image=f"api@{DIGEST}")
    assert with_serving_code(of_a_registry).image == f"api@{DIGEST}"
    assert with_serving_code(by_key) == by_key


def test_without_a_release_there_is_none(app: Application) -> None:
    with pytest.raises(Failed, match="api has no release yet"):
        serving_release(app)
    Serving("0123456789ab", "blue", 4, 8000).save(app)
    with pytest.raises(Failed, match="api has no release yet"):
        serving_release(app)
    release = records(app, "0123456789ab")
    assert serving_release(app) == (Serving("0123456789ab", "blue", 4, 8000), release)

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import cli, engine, lease, proxy, release, spec

from terrafirma.release import description
from terrafirma.settings import App, Users
from tests.conftest import Pyinfra
from tests.unit.test_settings import of

Program = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def command_line(pyinfra: Pyinfra) -> Pyinfra:
    """Starts a process for each run, as users do."""
    return Pyinfra()


@pytest.fixture(scope="session")
def pyinfra(pyinfra: Pyinfra) -> Pyinfra:
    return pyinfra.imported


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Puts a shell script under the name of a program that need not be here."""

    def write(name: str, script: str) -> Path:
        directory = tmp_path / "programs"
        directory.mkdir(exist_ok=True)
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
        return directory

    return write


# --- the program on the host ----------------------------------------------------------------------


def described(**data: Any) -> spec.Application:
    """The application `api` as the program on the host is told of it, with this data."""
    settings = of(App, **{f"app_{key}": value for key, value in data.items()})
    (app,) = settings.applications
    return spec.Application.of(json.loads(description(app, settings, of(Users))))


def told(app: spec.Application) -> str:
    """The file by which the program is told of an application."""
    return json.dumps({name: getattr(app, name) for name in spec.Application.told()})


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program's directories on the host are below this one."""
    for name, path in {
        "SPECS": "apps",
        "ROOT": "opt",
        "KEY": "secrets/release-key",
        "SECRETS": "secrets",
        "SLOT_SECRETS": "secrets/slots",
        "RUNTIME": "run",
        "UPSTREAMS": "caddy/upstreams",
        "MAINTENANCE": "caddy/maintenance",
        "CADDYFILE": "caddy/Caddyfile",
    }.items():
        for module in (spec, lease, engine, proxy, release, cli):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / path)
    (tmp_path / "apps").mkdir()
    (tmp_path / "opt" / "api").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def app(roots: Path) -> spec.Application:
    """An application of one service, with a secret."""
    secret = roots / "secrets" / "database_url"
    secret.parent.mkdir(exist_ok=True)
    secret.write_text("postgresql://s3cret\n")
    source = roots / "opt" / "api" / "sources" / "0123"
    return replace(described(), source=str(source), secrets={"database_url": str(secret)}, user="")


def records(app: spec.Application, release: str, **but: Any) -> spec.Release:
    """A release that is known on the host."""
    made = spec.Release(
        id=release, source=app.source, image="", images={"api": f"terrafirma/api:{release}"},
        pulled=(), code="c0de", migrate="", revision="", by="me@here",
        at="2026-01-31T12:00:00.000Z", withdrawn=False,
    )  # fmt: skip
    made = replace(made, **but)
    made.save(app)
    return made

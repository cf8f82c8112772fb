"""A host with the program; for releases, a script stands in for Docker."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import (
    cli,
    compose,
    cron,
    lease,
    proxy,
    pulls,
    registries,
    release,
    shell,
    spec,
)
from terrafirma_host.spec import Application

from tests.unit.programs import Program
from tests.unit.terrafirma_host.applications import described, told
from tests.unit.terrafirma_host.docker import DIGEST
from tests.unit.terrafirma_host.pages import serving
from tests.unit.terrafirma_host.releases import Answering

DOCKER = """\
echo "$*" >> {root}/asked
case "$*" in
compose*" config --format json")
  for one; do case $one in *.yaml) cat "$one" ;; esac; done ;;
"image ls"*) cat {root}/images ;;
info*) echo '{{}}' ;;
"ps --all"*project=api-green*) ;;
"ps --all"*) echo one ;;
"container inspect"*) cat {root}/containers ;;
*inspect*) echo '[{{}}]' ;;
esac
"""


@pytest.fixture(autouse=True)
def _nothing_concealed() -> Iterator[None]:
    """No test conceals values in the output of another."""
    yield
    shell.CONCEALED.clear()


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
        "UNITS": "units",
    }.items():
        for module in (spec, lease, compose, pulls, proxy, release, cli, cron):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / path)
    (tmp_path / "apps").mkdir()
    (tmp_path / "opt" / "api").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def docker(roots: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets a script answer in the place of Docker; returns the file with the questions."""
    asked = roots / "asked"

    def write(script: str) -> Path:
        directory = program("docker", f'echo "$*" >> {asked}\n{script}')
        monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
        return asked

    return write


@pytest.fixture
def app(roots: Path) -> spec.Application:
    """An application of one service, with a secret."""
    secret = roots / "secrets" / "database_url"
    secret.parent.mkdir(exist_ok=True)
    secret.write_text("postgresql://s3cret\n")
    source = roots / "opt" / "api" / "sources" / "0123"
    return replace(described(), source=str(source), secrets={"database_url": str(secret)}, user="")


@pytest.fixture
def two_described(roots: Path, app: spec.Application) -> Path:
    """Two applications: `api` of a source, `web` of an image."""
    base = dict.fromkeys(json.loads(told(app)), "")
    for name, source in (("api", "/opt/terrafirma/api/sources/0123"), ("web", "")):
        data = base | {"name": name, "source": source, "automated": True}
        (roots / "apps" / f"{name}.json").write_text(json.dumps(data))
    return roots


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    # The umask is this process's.
    monkeypatch.setattr(os, "umask", lambda _: 0)


@pytest.fixture
def host(roots: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose Docker answers from these files, and whose Caddy does not run."""
    directory = program("docker", DOCKER.format(root=roots))
    program("ip", "echo 'docker0 UP 10.210.0.1/24'")
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    (roots / "digest").write_text(DIGEST)
    monkeypatch.setattr(registries, "known", lambda _, names: {
        name: (roots / "digest").read_text() for name in names
    })  # fmt: skip
    (roots / "containers").write_text("[]")
    (roots / "images").write_text("")
    spec.make_key()
    return roots


@pytest.fixture
def answering(host: Path, app: Application, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answering]:
    """Makes an application whose replicas answer at once, in either slot."""
    monkeypatch.setattr(proxy, "NOTICED", 0)
    with ExitStack() as stack:
        ports = [stack.enter_context(serving())[0] for _ in range(2)]

        def make(**but: Any) -> Application:
            data: dict[str, Any] = {
                "replicas": 1,
                "slots": dict(zip(("blue", "green"), ports, strict=True)),
                "health_path": "/200",
                "start_seconds": 5,
            }
            made = replace(app, **data | but)
            (host / "apps" / "api.json").write_text(told(made))
            return made

        yield make

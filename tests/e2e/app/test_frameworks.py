"""Whole applications of several frameworks, as their files are: released, changed, rolled back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.app.frameworks import ALL, CHEAP, Framework
from tests.e2e.app.nextjs import NEXTJS, trust_authorities
from tests.e2e.clones import HOST, clone
from tests.e2e.support import (
    AUTHORITY,
    Container,
    Load,
    Mix,
    Target,
    changed,
    eventually,
    load,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.budget(minutes=4, why="an image, three releases and a rollback for each framework"),
]

APPLICATIONS = ALL | {"nextjs": NEXTJS}
# The answer to one request, sent on the server as the internet would send it.
ASK = "curl -sS --fail --cacert {authority} --resolve {domain}:443:127.0.0.1 https://{domain}{path}"


@dataclass
class Site:
    """An application of a framework on a server."""

    server: Target
    name: str
    framework: Framework
    source: Path

    @property
    def domain(self) -> str:
        return f"{self.name}.terrafirma.test"

    def data(self, **fields: Any) -> dict[str, Any]:
        own = {
            "source": str(self.source), "domain": self.domain, "replicas": 2, "port": 9000,
            "drain_seconds": 2, "start_seconds": 60, "stop_seconds": 8,
        }  # fmt: skip
        if (self.source / ".env.production").exists():
            own["env_file"] = [str(self.source / ".env.production")]
        app = own | self.framework.data | fields
        if "database" not in app:
            return {"apps": {self.name: app}}
        return {
            "apps": {self.name: app | {"database": self.name}},
            "postgres_roles": [{"name": self.name}],
            "postgres_databases": [{"name": self.name, "owner": self.name}],
        }

    def deploy(self, *files: str, **fields: Any) -> dict[str, Any]:
        return self.server.deploy(*(files or ("tasks/app.py",)), **self.data(**fields))

    def roll_back(self) -> None:
        self.server.deploy("commands/rollback.py", **self.data(), rollback=self.name)

    def change(self) -> str:
        """Make another version of the same code."""
        text = f"version {time.monotonic_ns()}"
        (self.source / "VERSION").write_text(text)
        return text

    def ask(self, path: str, *words: str) -> str:
        asked = ASK.format(authority=AUTHORITY, domain=self.domain, path=path)
        return self.server.run(" ".join([asked, *words]))

    def keep(self, row: str) -> None:
        self.ask("/rows", "-H 'Content-Type: text/plain'", f"--data-binary {row}")

    @property
    def rows(self) -> list[str]:
        answer: list[str] = json.loads(self.ask("/rows"))
        return answer

    def remove(self) -> None:
        self.server.deploy("tasks/caddy.py", apps={})
        self.server.run(f"terrafirma remove {self.name} --confirm {self.name}")


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with clone(pyinfra, "tf-w-frameworks", 2541, HOST) as one:
        yield one


def lives(site: Site, outsider: Container) -> Load:
    """Release, keep rows, and under load: release again, roll back, scale; returns the load."""
    one = site.framework
    first = site.change()
    site.deploy("tasks/caddy.py", "tasks/app.py")
    assert first in site.ask("/")
    assert changed(site.deploy()) == []
    if one.keeps:
        site.keep("before")
        eventually(lambda: site.rows == ["before"], 20)
    mix = Mix(keep=3, fresh=1)
    with load(outsider, site.server, "/", domain=site.domain, rate=50, mix=mix) as result:
        second = site.change()
        site.deploy()
        assert second in site.ask("/")
        if one.keeps:
            site.keep("between")
        site.roll_back()
        assert first in site.ask("/")
        if "strategy" not in one.data:
            site.deploy(replicas=3)
    if one.keeps:
        site.keep("afterwards")
        wanted = ["afterwards", "before", "between"]
        eventually(lambda: site.rows == wanted, 20)
    return result


@pytest.fixture
def site(server: Target, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    name: str = request.param
    framework = APPLICATIONS[name]
    for path, text in framework.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    if "authorities.crt" in framework.files.get("Dockerfile", ""):
        trust_authorities(tmp_path)
    one = Site(server, name, framework, tmp_path)
    if "database" in framework.data:
        one.deploy("tasks/postgres.py")
    yield one
    one.remove()


def params(*, cheap: bool) -> list[Any]:
    names = [
        name
        for name, one in APPLICATIONS.items()
        if (name in CHEAP) == cheap and "strategy" not in one.data
    ]
    return [pytest.param(name, marks=() if cheap else pytest.mark.long) for name in names]


@pytest.mark.promise(
    "Applications of many frameworks are served as they are: a release, a rollback and more "
    "replicas fail no request, and uploads and rows are all there afterwards"
)
@pytest.mark.parametrize("site", params(cheap=True), indirect=True)
def test_a_whole_application(site: Site, outsider: Container) -> None:
    result = lives(site, outsider)
    assert result["failed"] == []
    assert result["requests"] > 100


@pytest.mark.parametrize("site", params(cheap=False), indirect=True)
@pytest.mark.promise(like=test_a_whole_application)
def test_further_whole_applications(site: Site, outsider: Container) -> None:
    result = lives(site, outsider)
    assert result["failed"] == []
    assert result["requests"] > 100


@pytest.mark.promise(
    "An application that allows one process only is stopped before the next release starts: rows "
    "are all there, and requests wait, or get 503 with the time to ask again"
)
@pytest.mark.parametrize("site", ["sqlite"], indirect=True)
def test_one_process_only(site: Site, outsider: Container) -> None:
    result = lives(site, outsider)
    assert {one["words"][:3] for one in result["failed"]} <= {"503"}
    assert result["gap_seconds"] < 30

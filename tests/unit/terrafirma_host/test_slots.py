"""The secrets of a slot, and its end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import engine, slots
from terrafirma_host.compose import Compose
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

from tests.unit.terrafirma_host.applications import described
from tests.unit.terrafirma_host.releases import FINE, WORKER, asked, containers


def test_the_secrets_of_a_slot_stay_those_of_its_release(host: Path, app: Application) -> None:
    """Also after Docker restarts one of its containers."""
    token = Path(app.secrets["database_url"])
    token.chmod(0o400)
    compose = Compose(app)
    slots.link_secrets(compose, "blue")
    there = app.slot_secrets("blue") / "database_url"
    assert there.samefile(token)
    # As `terrafirma secrets` writes a changed value: a new file under the old name.
    new = token.with_name("new")
    new.write_text("another")
    new.rename(token)
    assert there.read_text() == "postgresql://s3cret\n"
    assert there.stat().st_mode & 0o777 == 0o400
    # A release that began before was named after the old value.
    with pytest.raises(Failed, match="the secret database_url was changed during this release"):
        slots.link_secrets(compose, "green")
    slots.link_secrets(Compose(app), "green")
    slots.link_secrets(Compose(app), "blue")
    assert there.samefile(app.slot_secrets("green") / "database_url")
    slots.clear(app, "green")
    assert not app.slot_secrets("green").exists()
    assert there.read_text() == token.read_text() == "another"


def test_what_still_runs_is_started_again_from_now_on(host: Path, app: Application) -> None:
    worker = WORKER | {"policy": "on-failure"}
    project = {"services": {"api": {}, "w": {}, "x": {"restart": "on-failure"}}}
    containers(host, FINE, worker, worker | {"state": "exited", "once": 0},
               {"labels": {"com.docker.compose.service": "x"}, "policy": "on-failure"})  # fmt: skip
    slots.settle_policies(app, project, "blue")
    (update,) = [line for line in asked(host) if line.startswith("update ")]
    assert update.split()[1:3] == ["--restart", "unless-stopped"]
    assert len(update.split()) == 4


def test_a_described_application_has_both_slots() -> None:
    app = described()
    assert [slots.other_slot(app, slot) for slot in ("blue", "green")] == ["green", "blue"]
    assert not set(app.ports("blue", 64)) & set(app.ports("green", 64))


def test_each_container_stops_in_its_own_time(
    host: Path, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an option, Docker gives a container the time that its release has set for it."""
    asked: list[tuple[tuple[str, ...], float]] = []
    told = [{}, {"Config": {"StopTimeout": 60}}, {"Config": {}}]
    monkeypatch.setattr(engine, "inspect", lambda *_: told)
    monkeypatch.setattr(engine, "run", lambda *words, timeout: asked.append((words, timeout)))
    engine.stop(app, ["one", "two", "three"])
    engine.stop(app, [])
    assert asked == [(("docker", "stop", "one", "two", "three"), 60 + engine.PROMPT)]
    services: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {"stop_seconds": 30},
        "c": {"stop_seconds": None},
    }
    assert replace(app, services=services).slowest_stop == 30
    assert app.slowest_stop == app.stop_seconds == 10

"""Takeovers by new replicas: planned, run, and undone where a step fails."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import proxy, release, spec
from terrafirma_host.lease import Lease, lease
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application, Serving, serving_release
from terrafirma_host.takeover import Takeover
from terrafirma_host.target import Target
from terrafirma_host.uptime import Watch

from tests.unit.terrafirma_host.applications import records
from tests.unit.terrafirma_host.docker import inspected
from tests.unit.terrafirma_host.pages import serving
from tests.unit.terrafirma_host.releases import (
    FINE,
    RELEASE,
    WORKER,
    Answering,
    asked,
    containers,
    current,
    files,
    known,
    migrations,
    only_questions,
    release_id,
    target_of,
    uploaded,
)

# --- the plan -------------------------------------------------------------------------------------


def planned(app: Application, action: str = "release") -> str:
    """The plan as printed, without the name of the release; raises where it changes anything."""
    with lease(app, "me", action, 60) as held:
        target, serves = Target.described(app), Serving.load(app)
        before = files(spec.ROOT.parent)
        record = release.release_record(target, serves, "me", "")
        plan = Takeover(target, record, serves, held).plan()
        assert files(spec.ROOT.parent) == before
    assert [line.split()[0] for line in str(plan).splitlines()] == [one.name for one in plan.steps]
    return str(plan).replace(target.id, "ID")


def test_the_plan_of_a_first_release(host: Path, app: Application) -> None:
    app = replace(app, replicas=4, migrate=("manage.py", "migrate"), smoke_path="/up", keep=3)
    assert planned(replace(app, domain="www.acme.com")) == (
        "prepare  build or fetch the images of api\n"
        "migrate  run `manage.py migrate`\n"
        "start    start 4 replicas of release ID in blue\n"
        "health   wait until each answers /healthz\n"
        "switch   let Caddy send requests to blue\n"
        "smoke    request https://www.acme.com/up\n"
        "commit   record that blue serves\n"
        "prune    keep 3 earlier releases"
    )
    assert only_questions(host)


def test_the_plan_of_the_next_release(host: Path, app: Application) -> None:
    """It uses the other slot, and skips the migration that ran for this code."""
    app = replace(app, replicas=2, migrate=("migrate",), domain="www.acme.com", drain_seconds=30)
    records(app, RELEASE, code=Target.described(app).code, migrate="migrate")
    Serving(RELEASE, "blue", 4, 8000).save(app)
    plan = (
        "start    start 2 replicas of release ID in green\n"
        "health   wait until each answers /healthz\n"
        "switch   let Caddy send requests to green\n"
        "smoke    request https://www.acme.com/healthz\n"
        "commit   record that green serves\n"
        "drain    wait for requests under way in blue, at most 30 s\n"
        "stop     stop the replicas in blue\n"
        f"prune    keep {app.keep} earlier releases"
    )
    assert planned(app) == f"prepare  build or fetch the images of api\n{plan}"
    # Existing images are not made again.
    records(app, release_id(app), code="other")
    assert planned(app) == f"prepare  use the images of api\n{plan}"
    # Only a release prepares anything.
    for action in ("rollback", "restart", "refresh"):
        lines = planned(app, action).splitlines()
        assert [line.split() for line in lines] == [line.split() for line in plan.splitlines()]


# --- the step `health` ----------------------------------------------------------------------------


def watch(app: Application) -> Watch:
    return Watch(app, {"services": {}}, RELEASE, "blue")


def test_a_replica_that_does_not_stay_up_is_quoted(host: Path, app: Application) -> None:
    program = host / "programs" / "docker"
    program.write_text(f"{program.read_text()}case $1 in logs) echo 'no such table' ;; esac\n")
    containers(host, FINE, {"state": "exited", "health": ""})
    with pytest.raises(Failed, match="api-blue-api-2 does not stay up; its log:\nno such"):
        watch(app).until_up()


def test_a_replica_that_does_not_become_healthy_is_named(host: Path, app: Application) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    containers(host, FINE)
    app = replace(app, replicas=1, start_seconds=1, slots={"blue": port, "green": port + 64})
    words = f"is not healthy within 1 s \\(no success from /healthz on port {port}\\)"
    with pytest.raises(Failed, match=words):
        watch(app).until_up()


def test_earlier_restarts_do_not_count(host: Path, app: Application) -> None:
    """A replica that has served for months may have restarted; a worker that ran once has."""
    seed = {"labels": {"com.docker.compose.service": "seed"}, "state": "exited", "once": 0}
    containers(host, {"restarts": 7}, seed)
    with serving() as (port, requests):
        app = replace(
            app, replicas=1, start_seconds=9, slots={"blue": port, "green": port + 64},
            health_path="/200", domain="www.acme.com",
        )  # fmt: skip
        watch(app).until_up()
        assert requests == [("www.acme.com", "/200")]


def test_a_restart_loop_fails_the_release(host: Path, app: Application) -> None:
    containers(host, {"restarts": 7})
    text = (host / "containers").read_text()
    later = host / "later"
    later.write_text(text.replace('"RestartCount": 7', '"RestartCount": 10'))
    program = host / "programs" / "docker"
    # The second answer, and all later ones.
    program.write_text(
        program.read_text().replace(
            f"cat {host}/containers ;;", f"cat {host}/containers; cp {later} {host}/containers ;;"
        )
    )
    with pytest.raises(Failed, match="api-blue-api-1 does not stay up"):
        watch(replace(app, replicas=1, start_seconds=30)).until_up()


# --- the run, and what undoes it ------------------------------------------------------------------


def test_replicas_that_say_that_they_are_ill_serve_until_new_ones_do(
    host: Path, answering: Answering
) -> None:
    """They may serve better than none: perhaps only their database is slow."""
    app = answering()
    release.release(app, by="me")
    ill = inspected("api-blue-api-1", Health={"Status": "unhealthy"})
    ill["Config"]["Labels"]["terrafirma.release"] = current(app)[0]
    (host / "ill").write_text(json.dumps([ill]))
    program = host / "programs" / "docker"
    script = program.read_text()
    for old, new in (
        ('"ps --all"*) echo one ;;', '"ps --all"*project=api-blue*) echo ill ;;\n"ps "*) ;;'),
        ('"container inspect"*)', f'*"inspect ill") cat {host}/ill ;;\n"container inspect"*)'),
    ):
        script = script.replace(old, new)
    program.write_text(script)
    (host / "asked").unlink()
    release.release(app, by="me")
    assert current(app)[1] == proxy.slot_of(app) == "green"
    assert spec.history(app)[0]["action"] == "repair"
    done = asked(host)
    (up,) = [number for number, line in enumerate(done) if " up " in line]
    assert "--project-name api-green " in done[up]
    assert all(done.index(line) > up for line in done if line.startswith(("stop ", "rm ")))


def test_another_migration_runs_once(host: Path, answering: Answering) -> None:
    app = answering(migrate=("sh", "one"))
    release.release(app, by="me")
    # Changed settings run no migration.
    app = replace(app, env={"A": "1"})
    release.release(app, by="me")
    assert len(migrations(host)) == 1
    assert known(app, current(app)[0]).migrate == "sh one"
    # Neither do new containers, and a changed command still runs at the next release.
    other = replace(app, migrate=("sh", "two"))
    release.restart(other, by="me")
    assert len(migrations(host)) == 1
    release.release(other, by="me")
    assert len(migrations(host)) == 2
    assert known(other, current(other)[0]).migrate == "sh two"
    release.release(other, by="me")
    assert len(migrations(host)) == 2


def test_the_steps_are_taken_in_their_order(
    host: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the names that a waiting client sees; a release can be stopped at each."""
    taken = []
    step = Lease.step

    def remember(self: Lease, name: str) -> None:
        taken.append(name)
        step(self, name)

    monkeypatch.setattr(Lease, "step", remember)
    app = answering(migrate=("sh", "one"))
    release.release(app, by="me")
    first = ["lock", "prepare", "migrate", "start", "health", "switch", "smoke", "commit", "prune"]
    assert taken == first
    taken.clear()
    release.restart(app, by="me")
    later = ["start", "health", "switch", "smoke", "commit", "drain", "stop", "prune"]
    assert taken == ["lock", *later]
    taken.clear()
    release.release(replace(app, env={"A": "1"}), by="me")
    assert taken == ["lock", "prepare", *later]


STEPS: dict[str, tuple[type, str]] = {
    "start": (Takeover, "start"),
    "health": (Takeover, "await_health"),
    "switch": (Takeover, "switch"),
    "smoke": (Takeover, "smoke"),
    # The last action of `commit`, which decides.
    "commit": (Serving, "save"),
}


@pytest.mark.parametrize("step", STEPS)
def test_after_a_failed_step_the_old_release_serves(
    host: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Even if the step has done its work."""
    app = answering(source=uploaded(host / "opt" / "api" / "sources" / "0123"))
    release.release(app, by="me")
    first = current(app)[0]
    app = answering(source=uploaded(host / "opt" / "api" / "sources" / "4567"))
    release.release(app, by="me")
    before = current(app)
    of, name = STEPS[step]
    work = getattr(of, name)

    def then_fail(self: Any, *arguments: Any) -> None:
        if of is Takeover:
            work(self)
        raise OSError("no space left")

    monkeypatch.setattr(of, name, then_fail)
    with pytest.raises(Failed, match=f"^at the step {step!r}: no space left"):
        release.rollback(app, first, by="me")
    assert current(app) == before
    assert proxy.slot_of(app) == "green"
    assert not known(app, before[0]).withdrawn
    assert not app.slot_secrets("blue").exists()


@pytest.mark.parametrize("first", [True, False])
def test_a_page_that_does_not_answer_undoes_all_steps(
    host: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch,
    first: bool, capsys: Any,
) -> None:  # fmt: skip
    app = answering()
    if not first:
        release.release(app, by="me")
        before = current(app)
    seen = []

    def refuse(app: Application) -> None:
        seen.append(proxy.slot_of(app))
        raise Failed("the page answers 500")

    monkeypatch.setattr(proxy, "smoke", refuse)
    with pytest.raises(Failed, match="at the step 'smoke': the page answers 500"):
        release.release(replace(app, env={"A": "1"}), by="me")
    assert proxy.slot_of(app) == "blue"
    said = capsys.readouterr().out
    if first:
        assert Serving.load(app) is None
        assert "nothing serves: api had no release before" in said
    else:
        assert seen == ["green"]
        assert current(app) == before
        assert [one.id for one in spec.known_releases(app)] == [before[0]]


def test_a_worker_that_ends_before_the_commit_undoes_all_steps(
    host: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = answering()
    release.release(app, by="me")
    before = current(app)
    program = host / "programs" / "docker"
    # The starting slot has containers, too.
    program.write_text(program.read_text().replace("*project=api-green*) ;;", "*) echo one ;;"))
    containers(host, FINE)

    def meanwhile(_: Application) -> bool:
        containers(host, FINE, WORKER | {"state": "exited", "health": ""})
        return False

    monkeypatch.setattr(proxy, "smoke", meanwhile)
    with pytest.raises(Failed, match=r"at the step .smoke.: .*api-blue-api-2 does not stay up"):
        release.release(replace(app, env={"A": "1"}), by="me")
    assert (current(app), proxy.slot_of(app)) == (before, "blue")


def test_a_failing_undo_does_not_stop_the_others(
    host: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    app = answering()
    release.release(app, by="me")

    def refuse(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(proxy, "point", refuse)
    (host / "asked").unlink()
    (host / "images").write_text("terrafirma/api:stray\n")
    with lease(app, "me", "restart", 60) as held:
        serves, record = serving_release(app)
        takeover = Takeover(target_of(app), record, serves, held)
        takeover.undo(takeover.plan().takeover)
    assert "warning: no space left" in capsys.readouterr().out
    assert "image rm terrafirma/api:stray" in asked(host)


def test_a_failure_after_the_commit_undoes_nothing(
    host: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    app = answering()
    release.release(app, by="me")
    save = Serving.save

    def then_fail(self: Serving, app: Application) -> None:
        save(self, app)
        raise OSError("no sync")

    monkeypatch.setattr(Serving, "save", then_fail)
    now = replace(app, env={"A": "1"})
    release.release(now, by="me")
    assert current(now) == (release_id(now), "green")
    assert proxy.slot_of(now) == "green"
    assert "warning: no sync" in capsys.readouterr().out

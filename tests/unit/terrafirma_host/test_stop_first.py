"""Takeovers in which the old release stops first: whatever fails, two never run at once."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from terrafirma_host import cron, proxy, release, spec, stop_first
from terrafirma_host.lease import Lease, lease
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application, Serving
from terrafirma_host.stop_first import StopFirst
from terrafirma_host.takeover import Takeover
from terrafirma_host.target import Target

from tests.unit.terrafirma_host.applications import records
from tests.unit.terrafirma_host.docker import inspected
from tests.unit.terrafirma_host.releases import (
    RELEASE,
    Answering,
    current,
    migrations,
    uploaded,
)

# A Docker that keeps containers: each file in `there` is one, and has its state.
KEEPS = """\
echo "$*" >> {root}/asked
there={root}/there
running() {{ grep -l running $there/$1-* 2> /dev/null | wc -l; }}
both() {{ test $(running blue) = 0 || test $(running green) = 0 || echo "$*" >> {root}/both; }}
case "$*" in
compose*" config --format json"*)
  for one; do case $one in *.yaml) cat "$one" ;; esac; done ;;
compose*" up "*)
  test ! -e {root}/broken || {{ echo "no luck today" >&2; exit 1; }}
  case "$*" in *api-green*) slot=green ;; *) slot=blue ;; esac
  echo running > $there/$slot-api-1; both up ;;
compose*" run "*) both run ;;
"ps --all"*project=api-*)
  slot=$(echo "$*" | grep -o 'api-[a-z]*' | head -1 | cut -d- -f2)
  for one in $there/$slot-*; do test -e $one && echo ${{one##*/}}; done; true ;;
"stop "*) for one; do test -e $there/$one && echo exited > $there/$one; done; true ;;
"start "*) shift; for one; do echo running > $there/$one; done; both start ;;
"rm "*) for one; do rm -f $there/$one; done ;;
"container inspect "*)
  shift 2; comma="["
  for one; do
    test ! -e $there/$one || {{ echo "$comma"; comma=,
    sed "s/NAME/$one/; s/STATE/$(cat $there/$one)/" {root}/like; }}
  done; test "$comma" = , || echo "["; echo "]" ;;
"image ls"*) cat {root}/images ;;
*inspect*) echo '[{{}}]' ;;
esac
"""


@pytest.fixture
def engine(host: Path) -> Path:
    """The host, with a Docker that keeps containers; a file `both` tells that two slots ran."""
    (host / "there").mkdir()
    (host / "programs" / "docker").write_text(f"#!/bin/sh\n{KEEPS.format(root=host)}")
    like = inspected("api") | {"Id": "NAME", "State": {"Status": "STATE"}}
    (host / "like").write_text(json.dumps(like))
    return host


@pytest.fixture
def make(engine: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch) -> Answering:
    """Makes an application of which one instance may run, and whose replicas answer at once."""
    monkeypatch.setattr(stop_first, "FINISH", 0)

    def make(**but: Any) -> Application:
        return answering(strategy="stop-first", **but)

    return make


def running(host: Path) -> list[str]:
    there = (host / "there").iterdir()
    return sorted(one.name.split("-")[0] for one in there if "running" in one.read_text())


def source(host: Path, name: str) -> str:
    path = host / "opt" / "api" / "sources" / name
    return str(path) if path.exists() else uploaded(path)


def never_both(host: Path) -> bool:
    return not (host / "both").exists()


def waits(app: Application) -> bool:
    return proxy.held(app).exists()


# --- the plan -------------------------------------------------------------------------------------


def test_the_plan_of_a_release(engine: Path, make: Answering) -> None:
    app = make(migrate=("migrate",), domain="www.acme.com", drain_seconds=30)
    records(app, RELEASE, code="other")
    Serving(RELEASE, "blue", 1, 8000).save(app)
    with lease(app, "me", "release", 60) as held:
        target, serves = Target.described(app), Serving.load(app)
        record = release.release_record(target, serves, "me", "")
        made = stop_first.takeover(target, record, serves, held)
        assert isinstance(made, StopFirst)
        assert str(made.plan()).replace(target.id, "ID") == (
            "prepare  build or fetch the images of api\n"
            "hold     let new requests wait, and those under way finish, at most 0 s\n"
            "stop     stop the replicas in blue\n"
            "migrate  run `migrate`\n"
            "start    start 1 replicas of release ID in green\n"
            "health   wait until each answers /200\n"
            "switch   let Caddy send requests to green\n"
            "smoke    request https://www.acme.com/200\n"
            "commit   record that green serves\n"
            "remove   remove the stopped replicas in blue\n"
            f"prune    keep {app.keep} earlier releases"
        )
        # Where nothing serves, nothing stops.
        first = stop_first.takeover(target, record, None, held)
        assert type(first) is Takeover


# --- what succeeds --------------------------------------------------------------------------------


def test_a_release_a_rollback_and_a_restart(engine: Path, make: Answering, capsys: Any) -> None:
    first = make(source=source(engine, "0123"), migrate=("sh", "one"))
    release.release(first, by="me")
    assert (running(engine), "nothing answer" in capsys.readouterr().out) == (["blue"], False)
    second = make(source=source(engine, "4567"), migrate=("sh", "one"), stop_seconds=7)
    release.release(second, by="me")
    assert running(engine) == ["green"]
    assert current(second)[1] == proxy.slot_of(second) == "green"
    assert len(migrations(engine)) == 2
    said = capsys.readouterr().out
    assert re.search(
        r"release \w+ stops before release \w+ starts: nothing answers for at most 12 s, and as "
        r"long as the migration takes\nrequests wait for that in Caddy, at most 30 s each\n"
        r"stopping release \w+ in blue\nmigrating: sh one\n",
        said,
    )
    assert re.search(r"release \w+ of api serves\nnothing answered for \d+\.\d s\n$", said)
    line = spec.history(second)[0]
    assert re.fullmatch(r"\d+\.\d", line["silent_seconds"])

    release.rollback(second, "", by="me")
    assert running(engine) == ["blue"]
    took = line["silent_seconds"]
    assert f"at most 12 s; the last time it took {took} s\n" in capsys.readouterr().out
    release.restart(second, by="me")
    assert running(engine) == ["green"]
    assert len(list((engine / "there").iterdir())) == 1
    assert never_both(engine)
    assert not waits(second)
    assert not second.stopped.exists()


def test_several_replicas_become_one(engine: Path, make: Answering) -> None:
    """The strategy of the settings counts, whatever that of the release was that serves."""
    app = make()
    release.release(replace(app, strategy="start-first"), by="me")
    Serving(current(app)[0], "blue", 4, app.slots["blue"]).save(app)
    (engine / "there" / "blue-api-2").write_text("running\n")
    release.release(app, by="me")
    assert running(engine) == ["green"]
    assert never_both(engine)
    assert spec.history(app)[0]["action"] == "scale"


# --- what fails -----------------------------------------------------------------------------------

STEPS: dict[str, tuple[type, str]] = {
    "hold": (StopFirst, "hold"),
    "stop": (StopFirst, "stop_old"),
    "migrate": (StopFirst, "migrate"),
    "start": (Takeover, "start"),
    "health": (StopFirst, "await_health"),
    "switch": (StopFirst, "switch"),
    "smoke": (Takeover, "smoke"),
    # The last action of `commit`, which decides.
    "commit": (Serving, "save"),
}


@pytest.mark.parametrize("step", STEPS)
def test_after_a_failed_step_the_old_release_runs_again(
    engine: Path, make: Answering, monkeypatch: pytest.MonkeyPatch, capsys: Any, step: str
) -> None:
    app = make(source=source(engine, "0123"))
    release.release(app, by="me")
    before = current(app)
    of, name = STEPS[step]
    work = getattr(of, name)

    def then_fail(self: Any, *arguments: Any) -> None:
        if of is not Serving:
            work(self)
        raise OSError("no space left")

    monkeypatch.setattr(of, name, then_fail)
    with pytest.raises(Failed, match=f"^at the step {step!r}: no space left"):
        release.release(make(source=source(engine, "4567"), migrate=("one",)), by="me")
    assert current(app) == before
    assert (running(engine), proxy.slot_of(app), waits(app)) == (["blue"], "blue", False)
    assert len(list((engine / "there").iterdir())) == 1
    assert never_both(engine)
    assert not app.stopped.exists()
    said = capsys.readouterr().out
    assert re.search(rf"release {before[0]} is back; nothing answered for \d+\.\d s\n$", said)
    # It is no other container: a container has what it wrote outside of volumes.
    assert "starting release" in said or step == "hold"


def test_a_start_that_fails_says_why(engine: Path, make: Answering) -> None:
    app = make(source=source(engine, "0123"))
    release.release(app, by="me")
    (engine / "broken").touch()
    with pytest.raises(Failed, match=r"^at the step 'start': docker compose: no luck today"):
        release.release(make(source=source(engine, "4567")), by="me")
    assert running(engine) == ["blue"]


def test_new_containers_that_cannot_be_removed_keep_the_old_ones_down(
    engine: Path, make: Answering, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Both at once would be worse; the recovery that follows each release tries again."""
    app = make(source=source(engine, "0123"))
    release.release(app, by="me")
    program = engine / "programs" / "docker"
    script = program.read_text()

    def then_fail(self: Any) -> None:
        program.write_text(script.replace('"rm "*)', '"rm "*green*) exit 1 ;;\n"rm "*)'))
        raise Failed("never healthy")

    monkeypatch.setattr(StopFirst, "await_health", then_fail)
    program.write_text(script)
    with pytest.raises(Failed, match="never healthy"):
        release.release(make(source=source(engine, "4567")), by="me")
    said = capsys.readouterr().out
    assert said.count("warning: docker rm: exit 1") == 2
    assert re.search(r"release \w+ does not run; nothing answered for", said)
    assert running(engine) == []
    assert app.stopped.exists()
    program.write_text(script)
    release.recover(app, by="me")
    assert running(engine) == ["blue"]
    assert never_both(engine)


# --- what is killed -------------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing of ours handles it, as with `kill -9`."""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", [*STEPS, "remove"])
def test_after_a_kill_one_release_runs(
    engine: Path, make: Answering, monkeypatch: pytest.MonkeyPatch, step: str, moment: str
) -> None:
    """Before the commit the old one, after it the new one; at no time both."""
    app = make(source=source(engine, "0123"))
    release.release(app, by="me")
    before = current(app)
    take = Lease.step
    order = [*STEPS, "remove", "prune"]
    fatal = step if moment == "before" else order[order.index(step) + 1]

    def die(self: Lease, name: str) -> None:
        if name == fatal and self.what == "release":
            raise Killed
        take(self, name)

    monkeypatch.setattr(Lease, "step", die)
    monkeypatch.setattr(StopFirst, "undo", lambda *_: pytest.fail("nothing is undone after a kill"))
    new = make(source=source(engine, "4567"), migrate=("one",))
    with pytest.raises(Killed):
        release.release(new, by="me")
    committed = order.index(fatal) > order.index("commit")
    assert (current(new) != before) is committed
    # Until the recovery, requests wait from `hold` to `switch`.
    late = order.index(fatal)
    assert waits(app) is (order.index("hold") < late <= order.index("switch"))
    release.recover(new, by="me")
    slot = "green" if committed else "blue"
    assert current(new)[1] == slot
    assert (running(engine), proxy.slot_of(app), waits(app)) == ([slot], slot, False)
    assert len(list((engine / "there").iterdir())) == 1
    assert never_both(engine)
    assert not app.stopped.exists()
    # The next release completes it.
    monkeypatch.setattr(Lease, "step", take)
    release.release(new, by="me")
    assert running(engine) == ["green"]
    assert never_both(engine)


def test_a_recovery_starts_only_what_the_takeover_stopped(engine: Path, make: Answering) -> None:
    app = make()
    release.release(app, by="me")
    (engine / "there" / "blue-extra-1").write_text("exited\n")
    stop_first.stop(app, "blue")
    assert running(engine) == []
    release.recover(app, by="me")
    assert (engine / "there" / "blue-api-1").read_text() == "running\n"
    assert (engine / "there" / "blue-extra-1").read_text() == "exited\n"


def test_a_recovery_waits_for_containers_that_are_still_stopping(
    engine: Path, make: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker goes on to stop a container when the program that asked for it is killed."""
    app = make()
    release.release(app, by="me")
    one = engine / "there" / "blue-api-1"
    app.stopped.write_text("blue-api-1\n")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        if not slept:
            one.write_text("exited\n")
        slept.append(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    release.recover(app, by="me")
    assert slept
    assert running(engine) == ["blue"]
    # One that nothing stops is waited for as long as a stop may take.
    app.stopped.write_text("blue-api-1\n")
    monkeypatch.setattr(stop_first, "KILLED", -3600)
    # Only there: waiting for the end of a program sleeps, too.
    clock = SimpleNamespace(monotonic=time.monotonic, time=time.time)
    monkeypatch.setattr(stop_first, "time", clock)
    release.recover(app, by="me")
    assert running(engine) == ["blue"]


def test_a_release_that_cannot_run_again_is_in_the_way_of_no_other(
    engine: Path, make: Answering, capsys: Any
) -> None:
    app = make(source=source(engine, "0123"))
    release.release(app, by="me")
    stop_first.stop(app, "blue")
    program = engine / "programs" / "docker"
    script = program.read_text()
    program.write_text(script.replace('"start "*)', '"start "*) exit 1 ;;\n"start "*)'))
    release.release(make(source=source(engine, "4567")), by="me")
    assert "warning: docker start: exit 1" in capsys.readouterr().out
    assert running(engine) == ["green"]
    assert never_both(engine)


def test_a_job_waits_for_the_recovery(
    engine: Path, make: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make()
    release.release(app, by="me")
    app.stopped.write_text("blue-api-1\n")
    monkeypatch.setattr(stop_first, "KILLED", -3600)
    monkeypatch.setattr(cron, "RECOVERY", 0)
    with pytest.raises(Failed, match="a release of api was interrupted"), cron._turn(app):
        pytest.fail("it runs")
    release.recover(app, by="me")
    with cron._turn(app):
        pass

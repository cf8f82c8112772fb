"""Scheduled commands: their timers, what keeps them from running at once, runs and results."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import cli, cron, jobs, layer_variables, preparation, release, spec
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application, Serving
from terrafirma_host.target import Target

from tests.unit.programs import Program
from tests.unit.terrafirma_host.applications import records, told
from tests.unit.terrafirma_host.projects import SHOP, project
from tests.unit.terrafirma_host.releases import Answering, asked

CLEANUP = {
    "schedule": "hourly", "command": ["manage.py", "clearsessions"], "service": "",
    "timeout_seconds": 60,
}  # fmt: skip
REPORT = CLEANUP | {"schedule": "Mon 03:30", "command": ["report"], "timeout_seconds": 3600}
SYSTEMCTL = """\
echo "$*" >> {root}/systemctl
case "$*" in
"enable "*) for one; do :; done; mkdir -p {units}/timers.target.wants
  ln -sf {units}/$one {units}/timers.target.wants/$one ;;
"disable "*) for one; do rm -f {units}/timers.target.wants/$one; done ;;
"is-active "*) test ! -e {root}/inactive ;;
*NextElapse*) echo 'Sun 2026-11-29 01:00:00 UTC' ;;
*) echo inactive ;;
esac
"""


@pytest.fixture
def timers(host: Path, program: Program) -> Path:
    """The directory of units, with a systemctl that remembers."""
    units = host / "units"
    units.mkdir()
    program("systemctl", SYSTEMCTL.format(root=host, units=units))
    return units


def orders(host: Path) -> list[str]:
    """What systemctl was told since the last call."""
    path = host / "systemctl"
    text = path.read_text() if path.exists() else ""
    path.unlink(missing_ok=True)
    return [one for one in text.splitlines() if not one.startswith(("show", "is-active"))]


# --- timers ---------------------------------------------------------------------------------------


def test_a_release_makes_the_timers_agree_with_the_settings(
    host: Path, timers: Path, answering: Answering
) -> None:
    app = answering(cron={"cleanup": CLEANUP})
    release.release(app, by="me")
    name = "terrafirma-cron-api.cleanup"
    assert orders(host) == [
        *("daemon-reload", f"enable --quiet {name}.timer", f"restart {name}.timer"),
    ]
    service, timer = ((timers / f"{name}.{kind}").read_text() for kind in ("service", "timer"))
    assert "\nExecStart=/usr/local/bin/terrafirma cron api cleanup\n" in service
    assert "docker rm --force api.cron.cleanup " in service
    assert "\nOnCalendar=hourly\n" in timer
    assert "\nPersistent=true\n" in timer
    before = Serving.load(app)
    release.release(app, by="me")
    assert orders(host) == []

    # Another schedule restarts that timer and no container; a job that is gone has no timer.
    app = answering(cron={"cleanup": CLEANUP | {"schedule": "daily"}, "report": REPORT})
    assert not cron.agrees(app)
    release.release(app, by="me")
    assert orders(host) == [
        *("daemon-reload", f"enable --quiet {name}.timer", f"restart {name}.timer"),
        "enable --quiet terrafirma-cron-api.report.timer",
        "restart terrafirma-cron-api.report.timer",
    ]
    app = answering(cron={"report": REPORT})
    release.release(app, by="me")
    assert orders(host)[0] == f"disable --now --quiet {name}.timer"
    assert sorted(path.name for path in timers.glob("terra*")) == [
        *("terrafirma-cron-api.report.service", "terrafirma-cron-api.report.timer"),
    ]
    assert Serving.load(app) == before
    # A timer that somebody stopped, removed or changed runs again.
    for harm in (
        (host / "inactive").touch,
        (timers / "timers.target.wants/terrafirma-cron-api.report.timer").unlink,
        (timers / "terrafirma-cron-api.report.service").unlink,
        lambda: (timers / "terrafirma-cron-api.report.timer").write_text("OnCalendar=daily\n"),
    ):
        harm()
        assert not cron.agrees(app)
        release.release(app, by="me")
        (host / "inactive").unlink(missing_ok=True)
        assert cron.agrees(app)


def test_without_jobs_systemd_is_not_asked(host: Path, timers: Path, answering: Answering) -> None:
    app = answering()
    release.release(app, by="me")
    assert release.status(app)["cron"] == []
    assert not (host / "systemctl").exists()


def test_the_jobs_of_a_release_that_fails_never_run(
    host: Path, timers: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = answering(cron={"cleanup": CLEANUP})
    release.release(app, by="me")

    def fail(*_: Any) -> None:
        raise Failed("no luck today")

    monkeypatch.setattr("terrafirma_host.slots.start", fail)
    other = CLEANUP | {"command": ["of", "new", "code"]}
    with pytest.raises(Failed, match="no luck today"):
        release.release(replace(app, env={"A": "1"}, cron={"cleanup": other}), by="me")
    (job,) = cron.installed(app)
    assert job.command == ("manage.py", "clearsessions")


def test_the_end_of_an_application_ends_its_jobs(
    host: Path, timers: Path, answering: Answering
) -> None:
    app = answering(cron={"cleanup": CLEANUP, "report": REPORT})
    release.release(app, by="me")
    (timers / "terrafirma-cron-api2.report.timer").touch()
    orders(host)
    # As an application that another version described.
    release.remove(Application.of_any_version("api"), by="me")
    assert sorted(path.name for path in timers.glob("terra*")) == [
        "terrafirma-cron-api2.report.timer"
    ]
    assert orders(host) == [
        "stop terrafirma-cron-api.cleanup.service",
        "stop terrafirma-cron-api.report.service",
        "disable --now --quiet terrafirma-cron-api.cleanup.timer terrafirma-cron-api.report.timer",
        "daemon-reload",
    ]


@pytest.mark.parametrize(
    ("service", "known"),
    [("web", True), ("worker", True), ("", True), ("db", False), ("old", False), ("x", False)],
)
def test_a_job_runs_in_a_service_of_the_release(service: str, known: bool) -> None:
    files = project(worker={"image": "w"}, db={"image": "d"}, old={"image": "o", "profiles": ["x"]})
    app = replace(SHOP, stateful=("db",), cron={"cleanup": CLEANUP | {"service": service}})
    if known:
        jobs.refuse_unknown_services(app, files)
        return
    words = f"cron: cleanup: service: the releases start no service '{service}' (web, worker)"
    with pytest.raises(Failed) as refused:
        jobs.refuse_unknown_services(app, files)
    assert str(refused.value) == words


# --- what may run at once -------------------------------------------------------------------------


@pytest.fixture
def ready(host: Path, timers: Path, app: Application) -> Application:
    """An application with a release, and with two jobs."""
    app = replace(app, cron={"cleanup": CLEANUP, "report": REPORT})
    (host / "apps" / "api.json").write_text(told(app))
    records(app, "0123456789ab")
    Serving("0123456789ab", "green", 1, 8064).save(app)
    cron.agree(app)
    return app


DOCKER = """\
case "$*" in
compose*" run "*)
  echo "$*" >> {root}/asked
  echo "$$" > {root}/works
  while test -e {root}/wait; do sleep 0.02; done
  rm {root}/works
  printf 'cleaned \\033[31m7\\033[0m sessions\\n'; echo oops >&2
  exit $(cat {root}/code) ;;
"stop "*) echo "$*" >> {root}/asked; rm -f {root}/wait ;;
"rm "*) ;;
esac
"""


@pytest.fixture
def docker(host: Path, ready: Application) -> Path:
    (host / "programs" / "docker").write_text(f"#!/bin/sh\n{DOCKER.format(root=host)}")
    (host / "code").write_text("0")
    return host


class Working(threading.Thread):
    """A run of a job, beside the test."""

    def __init__(self, app: Application, name: str) -> None:
        super().__init__(daemon=True)
        self.app, self.job, self.code, self.said = app, name, -1, ""
        self.start()

    def run(self) -> None:
        try:
            self.code = cron.work(self.app, self.job)
        except Failed as error:
            self.said = str(error)


def until(question: Any) -> None:
    deadline = time.monotonic() + 10
    while not question():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_job_never_runs_twice_at_once(docker: Path, ready: Application) -> None:
    (docker / "wait").touch()
    first = Working(ready, "cleanup")
    until((docker / "works").exists)
    assert [job.name for job in cron.under_way(ready)] == ["cleanup"]
    with pytest.raises(Failed, match=r"^the job cleanup of api is under way$"):
        cron.work(ready, "cleanup")
    (docker / "wait").unlink()
    first.join()
    assert cron.under_way(ready) == []


def test_a_look_at_the_jobs_keeps_none_from_starting(
    docker: Path, ready: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look takes the lock of each job for a moment."""
    real, looking = cron._held, threading.Event()

    @contextmanager
    def slow(path: Path, how: int) -> Iterator[None]:
        with real(path, how):
            if path == cron._own(ready, "cleanup"):
                looking.set()
                time.sleep(0.3)
            yield

    monkeypatch.setattr(cron, "_held", slow)
    look = threading.Thread(target=cron.under_way, args=[ready])
    look.start()
    assert looking.wait(10)
    assert cron.work(ready, "cleanup") == 0
    look.join(10)


def test_a_job_that_waited_for_a_release_is_that_of_the_release(
    docker: Path, ready: Application
) -> None:
    with cron.paused(ready):
        waiting = Working(ready, "report")
        until(lambda: [job.name for job in cron.under_way(ready)] == ["report"])
        new = replace(ready, cron={"report": REPORT | {"command": ["other"]}}, network="jobs")
        (docker / "apps" / "api.json").write_text(told(new))
        cron.agree(new)
    waiting.join(10)
    assert waiting.code == 0
    assert asked(docker)[-1].endswith(" --entrypoint other api")


def test_a_job_that_a_release_has_ended_does_not_run(docker: Path, ready: Application) -> None:
    with cron.paused(ready):
        waiting = Working(ready, "report")
        until(lambda: cron.under_way(ready))
        new = replace(ready, cron={"cleanup": CLEANUP})
        (docker / "apps" / "api.json").write_text(told(new))
        cron.agree(new)
    waiting.join(10)
    assert (waiting.code, waiting.said) == (-1, "api has no job 'report' (cleanup)")
    assert not (docker / "asked").exists()


def test_a_release_waits_for_jobs_under_way_and_jobs_wait_for_it(
    docker: Path, ready: Application, capsys: Any
) -> None:
    (docker / "wait").touch()
    first = Working(ready, "cleanup")
    until((docker / "works").exists)
    order = []

    def migrate() -> None:
        with cron.paused(ready):
            order.append("paused")
            second.start()
            time.sleep(0.2)
            # It has its own lock, and waits for the release.
            assert not (docker / "works").exists()
        order.append("over")

    def report() -> None:
        cron.work(ready, "report")
        order.append("report")

    second = threading.Thread(target=report)
    pausing = threading.Thread(target=migrate)
    pausing.start()
    until(lambda: "waiting for" in capsys.readouterr().out)
    assert order == []
    (docker / "wait").unlink()
    for one in (first, pausing, second):
        one.join(10)
    assert order == ["paused", "over", "report"]


def test_no_job_begins_during_a_migration(
    host: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = answering(migrate=("one",))
    held = []

    def migrate(target: Target, images: Any, slot: str) -> None:
        with ExitStack() as stack:
            try:
                stack.enter_context(cron._held(cron._working(app), 2 | 4))
            except BlockingIOError:
                held.append(target.id)

    monkeypatch.setattr(preparation, "migrate", migrate)
    release.release(app, by="me")
    assert len(held) == 1
    with cron._turn(app):
        pass


# --- runs and results -----------------------------------------------------------------------------


@pytest.mark.usefixtures("root")
def test_a_job_runs_in_the_release_that_serves(
    docker: Path, ready: Application, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["cron", "api", "cleanup"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "cleaned 7 sessions\noops\n"
    (line,) = [one for one in asked(docker) if " run " in one]
    assert "--project-name api-run --progress quiet " in line
    assert line.endswith(
        f"--file {ready.directory}/layers/green.yaml run --rm --no-deps --no-TTY"
        " --interactive=false --name api.cron.cleanup --entrypoint manage.py api clearsessions"
    )
    Serving("0123456789ab", "blue", 1, 8000).save(ready)
    cron.work(ready, "report")
    assert f"{ready.directory}/layers/blue.yaml run " in asked(docker)[-1]


def test_a_job_runs_only_with_the_variables_of_its_release(
    docker: Path, ready: Application
) -> None:
    """After a release that failed, the description is of another one."""
    layer = ready.directory / "layers" / "green.yaml"
    further = layer.with_name(f"variables-{'a1' * 6}.env")
    layer.parent.mkdir(exist_ok=True)
    further.write_text(f"A=${{{layer_variables.hidden('A')}}}\n")
    own = f"${{{layer_variables.hidden('TOKEN', 'worker')}}}"
    layer.write_text(f'env_file: ["{further}"]\nenvironment: {{"X": "{own}", "Y": "$PLAIN"}}\n')
    words = r"^release 0123456789ab, which serves, has variables that are no longer described"
    with pytest.raises(Failed, match=rf"{words} \(A, TOKEN\): release what is described first$"):
        cron.work(ready, "cleanup")
    assert "no longer described (A, TOKEN)" in cron.failures(ready)[0]
    other = replace(ready, compose=("compose.yaml",))
    (docker / "apps" / "api.json").write_text(told(other))
    with pytest.raises(Failed, match=r"other compose files, than what is described now: release "):
        cron.work(other, "cleanup")
    assert not (docker / "asked").exists()


@pytest.mark.usefixtures("root")
def test_a_job_that_fails_is_shown(docker: Path, ready: Application, capsys: Any) -> None:
    assert cli.main(["cron", "api"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "job cleanup, hourly: has not run yet; next Sun 2026-11-29 01:00:00 UTC"
    (docker / "code").write_text("3")
    with pytest.raises(SystemExit) as ended:
        cli.main(["cron", "api", "cleanup"])
    assert ended.value.code == 3
    capsys.readouterr()
    assert cli.main(["releases", "api"]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"^  job cleanup, hourly: 20\S+ exit 3 after \d\S* s; next Sun", shown, re.MULTILINE
    )
    (line,) = cron.failures(ready)
    assert re.fullmatch(
        r"the job cleanup failed: exit 3 at 20\S+: journalctl -u terrafirma-cron-api.cleanup", line
    )
    (first, second) = cron.results(ready)
    assert (first["last"]["code"], first["last"]["release"]) == (3, "0123456789ab")
    assert (second["job"], second["last"], second["runs"]) == ("report", {}, False)
    (docker / "code").write_text("0")
    cron.work(ready, "cleanup")
    assert cron.failures(ready) == []
    cli.main(["releases", "api", "--json"])
    (answer,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["cron"][0]["last"]["code"] == 0


def test_a_job_that_takes_too_long_is_stopped(
    docker: Path, ready: Application, capsys: Any
) -> None:
    (docker / "wait").touch()
    quick = replace(ready, cron={"cleanup": CLEANUP | {"timeout_seconds": 0.2}})
    cron.agree(quick)
    assert cron.work(quick, "cleanup") == cron.LATE
    assert "stop api.cron.cleanup" in asked(docker)
    words = "ended after 0.2 s (timeout_seconds)"
    assert f"the job cleanup of api was {words}\n" in capsys.readouterr().out
    assert f"exit 124 at {spec.now()[:4]}" in cron.failures(quick)[0]
    assert words in cron.failures(quick)[0]


def test_a_job_that_cannot_run_says_why(docker: Path, ready: Application) -> None:
    with pytest.raises(Failed, match=r"^api has no job 'clean' \(cleanup, report\)$"):
        cron.work(ready, "clean")
    (ready.directory / "serving.json").unlink()
    with pytest.raises(Failed, match=r"^api has no release yet$"):
        cron.work(ready, "cleanup")
    assert "(api has no release yet)" in cron.failures(ready)[0]

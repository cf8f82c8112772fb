"""One release at a time: real processes hold the lease, and are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from terrafirma_host.lease import describe, lease
from terrafirma_host.shell import Failed, run, say, succeeds
from terrafirma_host.spec import Application

from tests.conftest import ROOT

HOLDER = """\
import subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
from terrafirma_host import lease

lease.RUNTIME = Path(sys.argv[1])
api = SimpleNamespace(name="api", directory=lease.RUNTIME)
with lease.lease(api, "ci@runner", "rollback", 600) as held:
    held.step("health")
    # Its child may outlive it.
    child = subprocess.Popen(["sleep", "60"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(roots: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease of `api`."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(roots / "run")],
        env=os.environ | {"PYTHONPATH": str(ROOT / "files")},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        yield process
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_a_second_holder_is_refused_and_the_error_names_the_first(
    holder: subprocess.Popen[str], app: Application
) -> None:
    started = time.monotonic()
    with pytest.raises(Failed) as error, lease(app, "me", "release", 60):
        pass
    assert time.monotonic() - started < 5
    message = str(error.value)
    assert message.startswith("another release of api is going on: ci@runner does the rollback")
    assert message.endswith(f", now at the step 'health' (process {holder.pid})")
    # The first holder is still described correctly.
    assert "ci@runner" in describe(app)


def test_another_application_is_not_held_up(
    holder: subprocess.Popen[str], app: Application
) -> None:
    with lease(replace(app, name="web"), "me", "release", 60) as held:
        assert held.data["application"] == "web"


def test_a_holder_that_was_killed_holds_nothing(
    holder: subprocess.Popen[str], app: Application
) -> None:
    """Although its file still exists, and its child still runs."""
    holder.kill()
    holder.wait()
    assert "ci@runner" in describe(app)
    with lease(app, "me", "release", 60) as held:
        held.step("start")
        assert describe(app).startswith("me does the release")


def test_a_lease_shows_its_current_step(app: Application, roots: Path) -> None:
    state = roots / "run" / "api.json"
    with lease(app, "me", "release", 60) as held:
        assert json.loads(state.read_text())["step"] == "lock"
        held.step("switch")
        data = json.loads(state.read_text())
        assert (data["application"], data["holder"], data["what"]) == ("api", "me", "release")
        assert (data["step"], data["pid"]) == ("switch", os.getpid())
    assert not state.exists()
    assert describe(app) == "its first step has not begun yet"


def test_the_output_of_a_release_is_kept_until_the_next_one(app: Application) -> None:
    """A recovery follows each release, and does not replace its output."""

    def release(number: int) -> None:
        with lease(app, "me", "release", 60):
            say(f"starting {number}")
            raise Failed("no luck")

    for number in (1, 2):
        with pytest.raises(Failed, match="no luck"):
            release(number)
        with lease(app, "me", "recovery", 60):
            say("put right")
        said = (app.directory / "log").read_text()
        assert said == f"starting {number}\nno luck\nput right\n"


def test_a_lease_is_free_again_after_a_failure(app: Application) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), lease(app, "me", "release", 60):
            raise ZeroDivisionError
    assert signal.alarm(0) == 0


def test_a_part_has_less_time_than_the_whole(app: Application) -> None:
    with lease(app, "me", "release", 60) as held:
        held.step("upload")
        words = "not done within 1 s, at the step 'upload'"
        with pytest.raises(Failed, match=words), held.at_most(1):
            time.sleep(30)
        assert 50 < signal.alarm(60) <= 60
        with held.at_most(30):
            pass
        assert 50 < signal.alarm(60) <= 60


@pytest.mark.parametrize(
    "wait",
    [
        lambda: time.sleep(30),
        lambda: run("sleep", "30"),
        # Otherwise the release would go on for ever, as if a program had answered "no".
        lambda: succeeds("sleep", "30"),
    ],
)
def test_a_lease_ends_by_itself(app: Application, wait: Callable[[], object]) -> None:
    started = time.monotonic()

    def release() -> None:
        with lease(app, "me", "release", 3) as held:
            held.step("health")
            wait()

    with pytest.raises(Failed, match="not done within 3 s, at the step 'health'"):
        release()
    assert time.monotonic() - started < 20
    with lease(app, "you", "release", 60):
        assert describe(app).startswith("you ")


# A process that is stopped while it waits, in several ways, and undoes its work.
STOPPED = """\
import signal, sys, time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from terrafirma_host import lease
from terrafirma_host.shell import Failed, run, succeeds

def swallows():
    # A part that ignores every failure.
    with suppress(Failed):
        time.sleep(30)

lease.RUNTIME = Path(sys.argv[1])
api = SimpleNamespace(name="api", directory=lease.RUNTIME)
before = [signal.getsignal(one) for one in lease.ENDS]
try:
    with lease.lease(api, "ci@runner", "release", 60) as held:
        held.step("health")
        print("waits", flush=True)
        try:
            eval(sys.argv[2])
            held.step("commit")
        except Failed:
            print("undoes", flush=True)
            # A second signal does not interrupt that.
            sys.stdin.readline()
            print("undone", flush=True)
            raise
except Failed as error:
    print(error)
assert [signal.getsignal(one) for one in lease.ENDS] == before
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize(
    "wait", ["time.sleep(30)", 'run("sleep", "30")', 'succeeds("sleep", "30")', "swallows()"]
)
def test_a_stopped_process_has_failed(
    app: Application, roots: Path, wait: str, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(roots / "run"), wait],
        env=os.environ | {"PYTHONPATH": str(ROOT / "files")},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "waits\n"
        time.sleep(0.3)
        process.send_signal(number)
        assert process.stdout.readline() == "undoes\n"
        process.send_signal(number)
        said, _ = process.communicate("\n", timeout=20)
    words = f"stopped by {number.name}, at the step 'health'\n"
    assert said == f"undone\n{words}"
    assert process.returncode == 0
    assert (roots / "run" / "log").read_text() == words
    with lease(app, "you", "release", 60):
        pass

"""Nothing else goes on: other work is named, and none begins meanwhile."""

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from terrafirma_host import standstill as module
from terrafirma_host.lease import Busy, describe, lease
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application
from terrafirma_host.standstill import once_well, standstill


@pytest.fixture(autouse=True)
def locks(roots: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("BACKUP", "UPGRADE", "DAILY"):
        monkeypatch.setattr(module, name, roots / name.lower())
    monkeypatch.setattr(module, "APT", (roots / "lists", roots / "frontend", Path("/no/such/lock")))
    monkeypatch.setattr(module, "PAUSE", 0.05)
    (roots / "apps/api.json").write_text("{}")
    return roots


# Another process, which holds a lock until its standard input ends.
HOLDER = """
import fcntl, sys
file = open(sys.argv[2], "w")
getattr(fcntl, sys.argv[1])(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(path: Path, kind: str = "flock") -> Iterator[int]:
    path.parent.mkdir(exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, kind, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.communicate("")


def refusal(*, apt: bool = True) -> str:
    with pytest.raises(Failed) as error, standstill("the window", "reboot", apt=apt):
        raise AssertionError
    return str(error.value)


def test_an_idle_host_grants_all_locks(locks: Path) -> None:
    for _ in range(2):
        with standstill("the window", "reboot"):
            pass
    assert not (locks / "run/api.json").exists()


def test_a_running_release_is_named(app: Application) -> None:
    with lease(app, "ci@runner", "release", 60) as mine:
        mine.step("smoke")
        assert refusal() == (
            "a release of api is going on (ci@runner does the release, now at the step 'smoke')"
        )


def test_a_release_of_an_undeclared_application_is_named(locks: Path) -> None:
    with held(locks / "run/old.lock"):
        assert refusal() == "a release of old is going on (it has just begun)"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("backup", "a backup is going on"),
        ("upgrade", "a major upgrade of PostgreSQL is going on"),
        ("daily", "packages are being installed (apt.systemd.daily)"),
    ],
)
def test_other_work_is_named(locks: Path, name: str, words: str) -> None:
    with held(locks / name):
        assert words in refusal()


@pytest.mark.parametrize("name", ["lists", "frontend"])
def test_a_program_that_installs_packages_is_named(locks: Path, name: str) -> None:
    with held(locks / name, "lockf") as process:
        assert f", process {process})" in refusal()
        # A caller that installs packages leaves apt's locks to apt.
        with standstill("the window", "upgrade", apt=False):
            pass


def test_all_other_work_is_named_at_once(locks: Path) -> None:
    with held(locks / "backup"), held(locks / "lists", "lockf"):
        words = refusal()
    assert "a backup" in words
    assert "; packages are being installed" in words


def test_no_other_work_begins_meanwhile(locks: Path, app: Application) -> None:
    with standstill("the window updates_reboot", "reboot"):
        with pytest.raises(Busy, match="the window updates_reboot does the reboot"), \
                lease(app, "me", "release", 60):  # fmt: skip
            raise AssertionError
        with (locks / "backup").open("w") as backup, pytest.raises(BlockingIOError):
            fcntl.flock(backup, fcntl.LOCK_EX | fcntl.LOCK_NB)
        frontend = subprocess.run(
            [sys.executable, "-c", "import fcntl, sys; "
             "fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)",
             str(locks / "frontend")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "BlockingIOError" in frontend.stderr
    with lease(app, "me", "release", 60):
        assert describe(app).startswith("me ")


def test_a_damaged_lease_causes_no_traceback(locks: Path) -> None:
    with held(locks / "run/api.lock"):
        for text in ("", "[]", json.dumps({"holder": "me"})):
            (locks / "run/api.json").write_text(text)
            assert refusal() == "a release of api is going on (it has just begun)"


def test_it_waits_while_something_is_broken_or_goes_on(
    locks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([["api: no"], ["api: no"], ["caddy: no"], []])
    with once_well(lambda: next(answers), "the window", "reboot", 5):
        # An unchanged reason is shown once.
        assert capsys.readouterr().out == "not yet: api: no\nnot yet: caddy: no\n"
        assert describe_all(locks) == ["the window"]
    with held(locks / "backup"):
        began = time.monotonic()
        with pytest.raises(Failed, match="a backup is"), once_well(list, "x", "reboot", 0.3):
            raise AssertionError
        assert 0.1 < time.monotonic() - began < 2


def describe_all(locks: Path) -> list[str]:
    return [json.loads(path.read_text())["holder"] for path in (locks / "run").glob("*.json")]


def test_a_block_that_fails_is_not_repeated() -> None:
    tries = []

    def attempt() -> None:
        with once_well(list, "the window", "upgrade", 5):
            tries.append(1)
            raise Failed("apt-get install: no")

    with pytest.raises(Failed, match="apt-get install: no"):
        attempt()
    assert tries == [1]

"""files/docker/docker-engine, with a scripted engine that starts only with some files."""

import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.conftest import ROOT

# The engine runs while the file `runs` exists; the file `since` has the time of its start.
SYSTEMCTL = """#!/bin/sh
case "$*" in
'is-active --quiet docker.service') test -e "$HERE/runs" ;;
'show --timestamp=us --property ActiveEnterTimestamp --value docker.service') cat "$HERE/since" ;;
'show --property ExecStart --value docker.service') cat "$HERE/start" ;;
'reset-failed docker.service') ;;
'reload docker.service') echo reload >> "$HERE/done" ;;
'restart docker.service')
    echo restart >> "$HERE/done"
    rm -f "$HERE/runs"
    grep -q broken "$HERE/etc/docker/daemon.json" || touch "$HERE/runs"
    test -e "$HERE/runs"
    ;;
*) exit 9 ;;
esac
"""
DOCKERD = """#!/bin/sh
case "$1" in
--help) cat "$HERE/help" ;;
--validate)
    echo "$*" > "$HERE/validated"
    ! grep refused "$3" >&2 || exit 1
    echo 'configuration OK'
    ;;
*) exit 9 ;;
esac
"""
DOCKER = """#!/bin/sh
case "$*" in
'info --format {{.LiveRestoreEnabled}}') cat "$HERE/live-restore" ;;
'ps --quiet') cat "$HERE/containers" ;;
'network create '*) echo "$*" >> "$HERE/done"; touch "$HERE/chain" ;;
'network rm '*) echo "$*" >> "$HERE/done" ;;
*) exit 9 ;;
esac
"""
IPTABLES = """#!/bin/sh
test "$*" = '--wait --numeric --list DOCKER-USER' || exit 9
test -e "$HERE/chain"
"""
JOURNALCTL = """#!/bin/sh
echo 'Starting up'
echo 'failed to start daemon: no such driver'
"""
PROGRAMS = {
    "systemctl": SYSTEMCTL,
    "dockerd": DOCKERD,
    "docker": DOCKER,
    "iptables": IPTABLES,
    "journalctl": JOURNALCTL,
    "sleep": "#!/bin/sh\n",
}
START = (
    "{ path=/usr/sbin/dockerd ; argv[]=/usr/sbin/dockerd -H fd:// $DOCKER_OPTS ; ignore_errors=no ;"
    " start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }\n"
)
NEW_CHAIN = ["network create terrafirma-chain", "network rm terrafirma-chain"]

Engine = Callable[..., CompletedProcess[str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose engine has run for an hour, with a file that is newer than its start."""
    (tmp_path / "programs").mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / "programs" / name).write_text(text)
        (tmp_path / "programs" / name).chmod(0o755)
    for name, text in {
        "start": START,
        "help": "      --validate   Validate daemon configuration and exit\n",
        "live-restore": "true\n",
        "containers": "0123456789ab\n",
        "etc/docker/daemon.json": "present\n",
        "etc/default/docker": "DOCKER_OPTS='--debug --mtu 1400'\n",
        "new": "new\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in ("runs", "chain"):
        (tmp_path / name).touch()
    started(tmp_path, hours=-1)
    monkeypatch.setenv("PATH", f"{tmp_path}/programs:{os.environ['PATH']}")
    monkeypatch.setenv("HERE", str(tmp_path))
    return tmp_path


@pytest.fixture
def engine(here: Path) -> Engine:
    text = (ROOT / "files/docker/docker-engine").read_text()
    for path in ("/etc/docker/", "/etc/default/docker", "/var/lib/terrafirma/", "/run/sysctl.d"):
        assert path in text
        text = text.replace(path, f"{here}{path}")
    (here / "docker-engine").write_text(text)

    def run(*words: str) -> CompletedProcess[str]:
        return subprocess.run(
            ["sh", here / "docker-engine", *words], capture_output=True, text=True, check=False
        )

    return run


def started(here: Path, hours: int) -> None:
    """Let the engine start so many hours from now; its configuration is of now."""
    when = datetime.now(UTC) + timedelta(hours=hours)
    (here / "since").write_text(f"{when:%a %Y-%m-%d %H:%M:%S.%f} UTC\n")


def proved(here: Path) -> Path:
    return here / "var/lib/terrafirma/daemon.json"


def prove(here: Path, text: str) -> None:
    """Note a configuration as the last one that the engine started with."""
    proved(here).parent.mkdir(parents=True)
    proved(here).write_text(text)


def present(here: Path) -> str:
    return (here / "etc/docker/daemon.json").read_text()


def done(here: Path) -> list[str]:
    return (here / "done").read_text().splitlines() if (here / "done").exists() else []


# --- check ----------------------------------------------------------------------------------------


def test_the_configuration_of_the_running_engine_is_kept(here: Path, engine: Engine) -> None:
    started(here, hours=1)
    assert engine("check", str(here / "new")).returncode == 0
    assert proved(here).read_text() == "present\n"
    assert present(here) == "present\n"


@pytest.mark.parametrize("change", ["the file is newer", "it does not run", "there is no file"])
def test_a_configuration_that_the_engine_has_not_read_is_not_kept(
    here: Path, engine: Engine, change: str
) -> None:
    """It may be the one with which the engine does not start."""
    prove(here, "proved\n")
    if change != "the file is newer":
        started(here, hours=1)
        (here / ("runs" if change == "it does not run" else "etc/docker/daemon.json")).unlink()
    assert engine("check", str(here / "new")).returncode == 0
    assert proved(here).read_text() == "proved\n"


def test_a_file_that_the_engine_refuses(here: Path, engine: Engine) -> None:
    started(here, hours=1)
    prove(here, "proved\n")
    (here / "new").write_text("this is refused\n")
    result = engine("check", str(here / "new"))
    assert result.returncode != 0
    assert "this is refused" in result.stderr
    assert proved(here).read_text() == "proved\n"


def test_a_file_is_tried_with_the_flags_of_the_unit(here: Path, engine: Engine) -> None:
    new = here / "new"
    assert engine("check", str(new)).returncode == 0
    flags = "-H fd:// --debug --mtu 1400"
    assert (here / "validated").read_text() == f"--validate --config-file {new} {flags}\n"


def test_a_unit_that_starts_the_engine_with_another_file_is_refused(
    here: Path, engine: Engine
) -> None:
    (here / "start").write_text(START.replace("$DOCKER_OPTS", "--config-file /srv/docker.json"))
    result = engine("check", str(here / "new"))
    assert result.returncode == 1
    assert "another file (--config-file in -H fd:// --config-file /srv/docker.json)" in (
        result.stderr
    )


def test_an_engine_that_cannot_check_a_file_is_not_asked(here: Path, engine: Engine) -> None:
    (here / "help").write_text("      --debug   Enable debug mode\n")
    started(here, hours=1)
    assert engine("check", str(here / "new")).returncode == 0
    assert not (here / "validated").exists()
    assert proved(here).read_text() == "present\n"


# --- restart --------------------------------------------------------------------------------------


def test_an_engine_that_runs_is_restarted_once_its_containers_outlive_that(
    here: Path, engine: Engine
) -> None:
    assert engine("restart").returncode == 0
    assert done(here) == ["reload", "restart"]


def test_an_engine_whose_restart_would_stop_containers_is_left_alone(
    here: Path, engine: Engine
) -> None:
    (here / "live-restore").write_text("false\n")
    result = engine("restart")
    assert result.returncode == 1
    assert "without live-restore a restart would stop containers" in result.stderr
    assert done(here) == ["reload"]
    (here / "containers").write_text("")
    assert engine("restart").returncode == 0


def test_an_engine_that_is_down_is_started(here: Path, engine: Engine) -> None:
    (here / "runs").unlink()
    assert engine("restart").returncode == 0
    assert done(here) == ["restart"]


@pytest.mark.parametrize("runs", [True, False])
def test_an_engine_that_does_not_start_with_a_file_goes_back_to_the_proved_one(
    here: Path, engine: Engine, runs: bool
) -> None:
    if not runs:
        (here / "runs").unlink()
    (here / "etc/docker/daemon.json").write_text("broken\n")
    prove(here, "proved\n")
    result = engine("restart")
    assert result.returncode == 1
    assert result.stderr == (
        "docker_daemon: the engine does not start with the new file; it runs as before: "
        "failed to start daemon: no such driver\n"
    )
    assert present(here) == "proved\n"
    assert (here / "runs").exists()


@pytest.mark.parametrize(
    ("proof", "words"),
    [
        ("also broken\n", "the engine starts neither with the new file nor with the last one"),
        ("broken\n", "the engine does not start"),
        ("", "the engine does not start"),
    ],
)
def test_an_engine_without_a_way_back_says_so(
    here: Path, engine: Engine, proof: str, words: str
) -> None:
    (here / "etc/docker/daemon.json").write_text("broken\n")
    if proof:
        prove(here, proof)
    result = engine("restart")
    assert result.returncode == 1
    assert result.stderr == f"docker_daemon: {words}: failed to start daemon: no such driver\n"


def test_a_temporary_network_recreates_a_missing_chain(here: Path, engine: Engine) -> None:
    (here / "chain").unlink()
    assert engine("restart").returncode == 0
    assert done(here) == ["reload", "restart", *NEW_CHAIN]
    # With the chain there, no network is created.
    (here / "done").unlink()
    assert engine("restart").returncode == 0
    assert done(here) == ["reload", "restart"]


# --- forward --------------------------------------------------------------------------------------


def test_forwarding_stays_on_when_settings_are_reloaded(here: Path, engine: Engine) -> None:
    assert engine("forward").returncode == 0
    (file,) = (here / "run/sysctl.d").iterdir()
    assert file.name.endswith(".conf")
    # The file is read last, after all files that may set another value.
    assert file.name > "99-sysctl.conf"
    assert file.read_text().splitlines() == [
        "# Managed by Terrafirma: tasks/docker.py",
        "net.ipv4.ip_forward = 1",
    ]


@pytest.mark.parametrize("words", [(), ("stop",), ("check",)])
def test_anything_else_is_refused(here: Path, engine: Engine, words: tuple[str, ...]) -> None:
    assert engine(*words).returncode == 2
    assert done(here) == []

"""Health checks without HTTP: real connections, and a script in place of Docker."""

import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import checks, health
from terrafirma_host.spec import Application

from tests.unit.programs import Program
from tests.unit.terrafirma_host.applications import described
from tests.unit.terrafirma_host.test_answers import replica


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, program: Program) -> Application:
    script = '[ "$1 $2 $3" = "exec 1 nice" ] || exit 9; echo "$4 failed" >&2; exit $4'
    monkeypatch.setenv("PATH", f"{program('docker', script)}:/usr/bin:/bin")
    return described()


def test_a_port_that_accepts_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert checks.connect(port, 1) == ""
        server.settimeout(5)
        # A server that speaks first, and one that leads to nothing.
        for greeting, why in ((b"220 hi", ""), (b"", health.CLOSED)):

            def greet(greeting: bytes = greeting) -> None:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(greeting)

            server.accept()[0].close() if why == "" else None
            thread = threading.Thread(target=greet)
            thread.start()
            assert checks.connect(port, 1) == why
            thread.join()
    assert checks.connect(port, 1) == health.CLOSED


@pytest.mark.parametrize(
    ("kind", "one", "why"),
    [
        ("container", {"health": "healthy"}, ""),
        ("container", {"health": "starting"}, "its own health check says starting"),
        ("container", {"health": "unhealthy"}, "its own health check says unhealthy"),
        ("container", {"health": ""}, "neither its image nor its service has a health check"),
        ("container", {"health": "", "state": "exited"}, "its own health check says exited"),
        ("container", None, "its container does not run"),
        (("nice", "0"), {}, ""),
        (("nice", "7"), {}, "`nice 7` ends with code 7: 7 failed"),
        (("nice", "7"), None, "its container does not run"),
    ],
)
def test_checks_of_a_container(app: Application, kind: Any, one: Any, why: str) -> None:
    app = replace(app, health=kind)
    there = [] if one is None else [replica(1, **one)]
    (answer,) = checks.ask_all(app, [1], there)
    assert answer.good == (not why)
    assert not answer.final
    assert answer.error.startswith(why)
    assert health.words(app, answer) == (answer.error or "it passes its check")


def test_a_command_that_hangs_fails(
    app: Application, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    program("docker", "exec sleep 5")
    monkeypatch.setattr(checks, "COMMAND", 0.2)
    (answer,) = checks.ask_all(replace(app, health=("up",)), [1], [replica(1)])
    assert answer.error == "`up` does not end within 0.2 s"


def test_a_check_that_nothing_can_pass_is_not_waited_for(app: Application) -> None:
    app = replace(app, health="container")
    assert checks.final(app, [replica(1, health="")]).startswith("neither its image")
    assert checks.final(app, [replica(1, health="starting")]) == ""
    assert checks.final(app, [replica(1, health="", state="created")]) == ""
    assert checks.final(replace(app, health="tcp"), [replica(1, health="")]) == ""


def test_nothing_to_ask(app: Application, tmp_path: Path) -> None:
    assert checks.ask_all(replace(app, health="tcp"), [], []) == []

"""Whether the release that serves is complete, and its repair."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import proxy
from terrafirma_host.lease import lease
from terrafirma_host.repair import Repair, is_complete, is_serving, needs_replacement
from terrafirma_host.spec import Application, Serving

from tests.unit.terrafirma_host.applications import records
from tests.unit.terrafirma_host.pages import serving
from tests.unit.terrafirma_host.releases import (
    ALONE,
    FINE,
    RELEASE,
    WORKER,
    asked,
    containers,
    files,
    only_questions,
    target_of,
)

STATES: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "complete": ([FINE, FINE], True),
    "without a health check": ([{"health": ""}, {"health": ""}], True),
    "one that has just started": ([FINE, {"health": "starting"}], True),
    "one is missing": ([FINE], False),
    "one too many": ([FINE, FINE, FINE], False),
    "one has stopped": ([FINE, {"state": "exited"}], False),
    "one is spoilt": ([FINE, {"health": "unhealthy"}], False),
    "one of another release": ([FINE, {"labels": {"terrafirma.release": "x"}}], False),
    "a worker beside them": ([FINE, FINE, WORKER], True),
    "a worker that has stopped": ([FINE, FINE, WORKER | {"state": "exited"}], False),
    "a worker that is spoilt": ([FINE, FINE, WORKER | {"health": "unhealthy"}], False),
    "a worker that was to run once": (
        [FINE, FINE, WORKER | {"state": "exited", "once": 0}],
        True,
    ),
    "a worker that was to run once and failed": (
        [FINE, FINE, WORKER | {"state": "exited", "once": 1}],
        False,
    ),
    "a worker that was to run once and was cleaned away": ([FINE, FINE], True),
    "a worker whose files say nothing": (
        [FINE, FINE, WORKER | {"policy": "unless-stopped"}],
        True,
    ),
    "a worker whose files say nothing, and that has done its work": (
        [FINE, FINE, WORKER | {"state": "exited", "once": 0, "policy": "on-failure"}],
        True,
    ),
    "a worker that was stopped": (
        [FINE, FINE, WORKER | {"state": "exited", "once": 0, "policy": "unless-stopped"}],
        False,
    ),
    # A killed release has not come to its end.
    "a worker that is not started again": ([FINE, FINE, WORKER | {"policy": "on-failure"}], False),
    "no worker": ([FINE, FINE], False),
    "a replica that ended as if that were all": ([FINE, {"state": "exited", "once": 0}], False),
    "none": ([], False),
}


@pytest.mark.parametrize("what", STATES)
def test_whether_a_release_is_complete(host: Path, app: Application, what: str) -> None:
    states, complete = STATES[what]
    proxy.expect(app, "blue")
    serves = Serving(RELEASE, "blue", 2, 8000)
    app = replace(app, replicas=2)
    containers(host, *states)
    worker = {"restart": "no"} if "run once" in what else {}
    project = {"services": ALONE["services"] | ({"w": worker} if "worker" in what else {})}
    assert is_complete(app, project, serves) is complete
    # Nor where Caddy sends requests to the other slot, or the number of replicas has changed.
    assert not is_complete(replace(app, replicas=3), project, serves)
    proxy.point(app, "green")
    assert not is_complete(app, project, serves)
    # … or does not know how they are to be asked.
    proxy.forget(app)
    assert not is_complete(app, project, serves)


def test_as_many_workers_as_the_files_say(host: Path, app: Application) -> None:
    proxy.expect(app, "blue")
    serves, app = Serving(RELEASE, "blue", 2, 8000), replace(app, replicas=2)
    containers(host, FINE, FINE, WORKER, WORKER)
    for worker, complete in (
        ({"deploy": {"replicas": 2}}, True),
        ({"scale": 2}, True),
        ({"deploy": {"replicas": 3}}, False),
        ({"deploy": {"resources": {}}}, False),
    ):
        project = {"services": ALONE["services"] | {"w": worker}}
        assert is_complete(app, project, serves) is complete, worker


def test_replicas_that_look_for_the_host_elsewhere_are_replaced(
    host: Path, app: Application
) -> None:
    serves = Serving(RELEASE, "blue", 2, 8000)
    app = replace(app, replicas=2)
    proxy.expect(app, "blue")
    hosts = host / "hosts"
    containers(host, FINE, {"hosts": str(hosts)})
    for address, lost in (("10.210.0.1", False), ("172.17.0.1", True)):
        hosts.write_text(f"{address}\thost.docker.internal\n")
        assert needs_replacement(app, serves) is lost
        assert is_complete(app, ALONE, serves) is not lost


def test_only_spoilt_replicas_are_removed(host: Path, app: Application) -> None:
    """The others go on serving, and are not recreated."""
    with ExitStack() as stack:
        first, _ = stack.enter_context(serving())
        app = replace(
            app, replicas=1, slots={"blue": first, "green": first + 64}, health_path="/200"
        )
        record = records(app, RELEASE)
        serves = Serving(RELEASE, "blue", 1, first)
        serves.save(app)
        containers(host, FINE, WORKER | {"health": "unhealthy"}, {"state": "exited", "health": ""})
        held = stack.enter_context(lease(app, "me", "release", 60))
        repair = Repair(target_of(app), record, serves, held)
        # The started container is healthy.
        answers = host / "containers"
        script = (host / "programs" / "docker").read_text()
        (host / "programs" / "docker").write_text(
            script.replace("case", f"case $* in rm*) echo '[]' > {answers} ;; esac\ncase", 1)
        )
        repair.run()
    done = asked(host)
    assert [line for line in done if line.startswith(("rm ", "stop ", "restart "))] == [
        "stop id-api-blue-api-2",
        "rm --force id-api-blue-api-2",
    ]
    (up,) = [line for line in done if " up " in line]
    assert "--project-name api-blue " in up
    assert "--no-build --pull never" in up
    # Running containers stay, even if Compose would recreate them.
    assert up.split()[-1] == "--no-recreate"
    assert done.index(up) > done.index("rm --force id-api-blue-api-2")
    assert proxy.slot_of(app) == "blue"


def test_a_repair_checks_the_path_that_caddy_checks(host: Path, app: Application) -> None:
    """A changed path is for the next release; Caddy's file is in the current form."""
    with ExitStack() as stack:
        port, requests = stack.enter_context(serving())
        app = replace(app, replicas=1, slots={"blue": port, "green": port + 64})
        old = replace(app, health_path="/200", domain="www.acme.com")
        proxy.expect(old, "blue")
        file = proxy.asking(app, "blue")
        file.write_text(file.read_text().replace("health_status 2xx\n", ""))
        record = records(app, RELEASE)
        serves = Serving(RELEASE, "blue", 1, port)
        serves.save(app)
        containers(host, FINE)
        assert not is_complete(app, ALONE, serves)
        held = stack.enter_context(lease(app, "me", "release", 60))
        Repair(target_of(app), record, serves, held).run()
        assert is_complete(app, ALONE, serves)
    assert requests == [("www.acme.com", "/200")]


# --- what only asks -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", STATES)
def test_a_question_changes_nothing(host: Path, app: Application, what: str) -> None:
    """Even if a container is missing."""
    proxy.expect(app, "blue")
    serves = Serving(RELEASE, "blue", 2, 8000)
    serves.save(app)
    records(app, RELEASE)
    app = replace(app, replicas=2)
    containers(host, *STATES[what][0])
    target = target_of(app, ALONE)
    before = files(host)
    is_serving(target, serves)
    is_complete(app, ALONE, serves)
    needs_replacement(app, serves)
    assert files(host) == before
    assert only_questions(host)


def test_whether_it_is_the_release_that_serves(host: Path, app: Application) -> None:
    """With other ports new replicas have to take over, though the release is the same."""
    app = replace(app, replicas=2, slots={"blue": 8000, "green": 8064})
    target = target_of(app, ALONE)
    for serves, same in (
        (Serving(RELEASE, "blue", 2, 8000), True),
        (Serving(RELEASE, "green", 2, 8064), True),
        (Serving("another", "blue", 2, 8000), False),
        (Serving(RELEASE, "blue", 3, 8000), False),
        (Serving(RELEASE, "blue", 2, 9000), False),
    ):
        assert is_serving(target, serves) is same, serves


def test_a_repair_is_planned_before_anything_changes(host: Path, app: Application) -> None:
    serves = Serving(RELEASE, "blue", 2, 8000)
    record = records(app, RELEASE)
    containers(host, FINE, {"state": "exited"})
    with lease(app, "me", "release", 60) as held:
        before = files(host)
        plan = Repair(target_of(replace(app, replicas=2), ALONE), record, serves, held).plan()
        assert files(host) == before
    assert not (host / "asked").exists()
    assert str(plan) == (
        "start   start missing containers in blue; others stay\n"
        "health  wait until 2 replicas answer"
    )

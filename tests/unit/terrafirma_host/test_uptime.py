"""Whether containers are up, from the states that Docker shows; a script stands in for it."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import engine, kinds, layers
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application
from terrafirma_host.uptime import Watch

from tests.unit.programs import Program
from tests.unit.terrafirma_host.docker import inspected
from tests.unit.terrafirma_host.health_kinds import KINDS, OK, serving, status

# Each answer is in a file of its own; the last one repeats.
DOCKER = """
case "$*" in
"ps "*) echo one ;;
"container inspect"*)
  cat {root}/looks/1; if [ -e {root}/looks/2 ]; then
    cd {root}/looks; for one in $(ls | sort -n); do
      [ $one = 1 ] || mv $one $((one - 1)); done; fi ;;
"logs "*) cat {root}/logs ;;
esac
"""

ONCE = {"restart": "no"}
SERVICES: dict[str, dict[str, Any]] = {
    "api": {},
    "worker": {},
    "checked": {"healthcheck": {"test": ["CMD", "true"]}},
    "seed": ONCE,
    "tries": {"restart": "on-failure:3"},
    "setup": {"deploy": {"restart_policy": {"condition": "none"}}},
    "awaited": {},
    "waits": {"depends_on": {"awaited": {"condition": "service_completed_successfully"}}},
}


def one(
    service: str, state: str = "running", ran: float = 3600, restarts: int = 0, code: int = 0,
    health: str = "", policy: str = "unless-stopped", memory: bool = False, port: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """A container that started so many seconds ago."""
    answer = inspected(f"api-blue-{service}-1", Status=state, ExitCode=code, OOMKilled=memory)
    answer["State"]["StartedAt"] = ran
    answer["State"]["Health"] = health and {
        "Status": health, "Log": [{"Output": "\x1b[31mno\x1b[0m connection\n"}],
    }  # fmt: skip
    answer["Config"]["Labels"] = {
        "com.docker.compose.service": service, "terrafirma.release": "0123456789ab",
    }  # fmt: skip
    answer["RestartCount"] = restarts
    answer["HostConfig"]["RestartPolicy"]["Name"] = policy
    answer["NetworkSettings"] = {
        "Ports": {"9/udp": None, "8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}
    }
    return answer


def begun(container: dict[str, Any]) -> dict[str, Any]:
    """The start time of a container so many seconds ago."""
    began = datetime.fromtimestamp(time.time() - container["State"]["StartedAt"], UTC)
    started = {"StartedAt": f"{began:%Y-%m-%dT%H:%M:%S}.123456789Z"}
    return container | {"State": container["State"] | started}


Looks = Callable[..., Watch]


@pytest.fixture
def watch(
    roots: Path, app: Application, program: Program, monkeypatch: pytest.MonkeyPatch
) -> Looks:
    """The message about containers in these states, one look after the other."""
    directory = program("docker", DOCKER.format(root=roots))
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    (roots / "looks").mkdir()
    (roots / "logs").write_text("its first words\n")

    def make(*looks: list[dict[str, Any]], port: int = 0, **but: Any) -> Watch:
        for number, look in enumerate(looks, 1):
            (roots / "looks" / str(number)).write_text(json.dumps([begun(one) for one in look]))
        data: dict[str, Any] = {"replicas": 1 if port else 0, "slots": {"blue": port, "green": 1}}
        data |= {"start_seconds": 2}
        return Watch(replace(app, **data | but), {"services": SERVICES}, "0123456789ab", "blue")

    return make


@pytest.mark.parametrize(
    "good",
    [
        [one("worker")],
        [one("worker"), one("api", restarts=7)],
        [one("checked", ran=0.1, health="healthy")],
        [one("seed", "exited", ran=0.5, policy="no")],
        [one("tries", "exited", ran=0.5, restarts=2, policy="on-failure")],
        [one("setup", "exited", policy="no"), one("awaited", "exited", policy="no")],
        # A container that runs for so long is up, though it may end later.
        [one("seed", policy="no"), one("tries", policy="on-failure")],
        [],
    ],
)
def test_containers_that_are_up(watch: Looks, good: list[dict[str, Any]]) -> None:
    seen = watch(good)
    started = time.monotonic()
    seen.until_up()
    assert time.monotonic() - started < 1.5
    seen.still_up()


# The states, one look after the other; the message about the container that is not up.
AGAIN = [one("worker", ran=0.1, restarts=n) for n in range(4)]
DOWN: dict[str, tuple[list[list[dict[str, Any]]], str]] = {
    "a worker that has ended": (
        [[one("worker", "exited", code=1)]],
        "api-blue-worker-1 does not stay up; its log:\nits first words\n(it ended with code 1)",
    ),
    "a worker that ends again and again": (
        [[AGAIN[0]], [one("worker", "restarting", code=7)], *[[again] for again in AGAIN]],
        "api-blue-worker-1 does not stay up; its log:\nits first words\n"
        "(it ended with code 7, and was started 4 times)",
    ),
    "a worker that runs at each look": (
        [[again] for again in AGAIN],
        "does not stay up; its log:\nits first words\n(it was started 4 times)",
    ),
    "a worker that is done": (
        [[AGAIN[0]], [one("worker", "restarting", code=0)], *[[again] for again in AGAIN]],
        '(it ended with code 0, and was started 4 times: `restart: "no"` is for what runs once)',
    ),
    "a worker that is ended for want of memory": (
        [[one("worker", "exited", code=137, memory=True)]],
        "(it took more memory than it may have: memory_mb is 64)",
    ),
    "a replica that ends again and again": (
        [[one("api", "restarting", restarts=n)] for n in range(4)],
        "api-blue-api-1 does not stay up; its log",
    ),
    "one that waits to be started again": (
        [[one("worker", "restarting", ran=50, restarts=9, code=3)]],
        "is not healthy within 2 s; its log:\nits first words\n"
        "(it ended with code 3, and was started 10 times)",
    ),
    "one that is started again once, and no more": (
        [[one("worker", ran=0.1)], [one("worker", ran=0.1, restarts=1)]],
        "is not healthy within 2 s; its log:\nits first words\n(it was started 2 times)",
    ),
    "one that fails once": (
        [[one("seed", "exited", code=3, policy="no")]],
        "api-blue-seed-1 failed with code 3; its log",
    ),
    "one that has failed each time": (
        [[one("tries", "exited", restarts=3, code=4, policy="on-failure")]],
        "api-blue-tries-1 failed with code 4; its log",
    ),
    "one that would be tried for ever": (
        [[one("tries", "restarting", restarts=n, code=4, policy="on-failure")] for n in range(9)],
        "api-blue-tries-1 is not healthy within 2 s",
    ),
    "one that others wait for": (
        [[one("awaited", "exited", code=5, policy="no")]],
        "api-blue-awaited-1 failed with code 5",
    ),
    "one without restarts by its deployment": (
        [[one("setup", "exited", code=6, policy="no")]],
        "api-blue-setup-1 failed with code 6",
    ),
    "one that is not well": (
        [[one("checked", health="unhealthy")]],
        "(its own health check says unhealthy: no connection)",
    ),
    "one that is not well yet": (
        [[one("checked", health="starting")]],
        "api-blue-checked-1 is not healthy within 2 s",
    ),
    "one that was never started": ([[one("worker", "created")]], "(it is created)"),
    "one that is paused": ([[one("worker", "paused")]], "(it is paused)"),
    "one that is dead": ([[one("worker", "dead")]], "does not stay up"),
    "one of a stopped engine's": ([[one("worker", "removing")]], "(it is removing)"),
}


@pytest.mark.parametrize("name", DOWN)
def test_containers_that_are_not_up(watch: Looks, name: str) -> None:
    looks, words = DOWN[name]
    started = time.monotonic()
    with pytest.raises(Failed) as failed:
        watch(looks[0], *looks, memory_mb=64).until_up()
    assert str(failed.value).startswith("release 0123456789ab: api-blue-")
    assert words in str(failed.value)
    assert time.monotonic() - started < 8


def test_one_without_a_health_check_shows_that_it_goes_on(
    watch: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs for longer than a restart loop can, whatever start_seconds is."""
    monkeypatch.setattr(engine, "STRETCH", 4)
    seen = watch([one("worker", ran=0)])
    started = time.monotonic()
    seen.until_up()
    assert 2.5 < time.monotonic() - started < 8


@pytest.mark.parametrize(
    "later",
    [
        one("worker", ran=0.1, restarts=1),
        one("worker", "restarting", restarts=1),
        one("worker", "exited", code=1),
        one("seed", "exited", code=1, policy="no"),
        one("checked", health="unhealthy"),
    ],
)
def test_a_container_that_ends_before_the_commit_is_seen(
    watch: Looks, later: dict[str, Any]
) -> None:
    fine = [one("worker"), one("checked", health="healthy"), one("seed", policy="no")]
    # It is up after two looks.
    seen = watch(fine, fine, [later])
    seen.until_up()
    with pytest.raises(Failed, match=later["Name"].lstrip("/")):
        seen.still_up()


# --- what replicas answer -------------------------------------------------------------------------


def test_the_replica_that_answers_no_success_is_named(watch: Looks) -> None:
    with serving(status("503 Unavailable", body="no database")) as port:
        fine = one("worker", port=port + 1)
        guilty = one("api", port=port)
        with pytest.raises(Failed) as failed:
            watch([fine, guilty], port=port).until_up()
    assert str(failed.value) == (
        f"release 0123456789ab: api-blue-api-1 is not healthy within 2 s (no success from /healthz "
        f"on port {port}): it answers 503 to /healthz (no database); its log:\n"
        "its first words"
    )


@pytest.mark.parametrize(
    "sent",
    [status("404 No"), status("401 No"), status("308 No", "Location: /healthz/"), status("405 No")],
)
def test_an_answer_that_will_not_change_is_not_waited_for(
    watch: Looks, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("terrafirma_host.uptime.SAME", 0.5)
    started = time.monotonic()
    with serving(sent) as port, pytest.raises(Failed, match=r"is not healthy \(no success from"):
        watch([one("api", port=port)], port=port, start_seconds=6).until_up()
    # A sixth of the time.
    assert 0.9 < time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("early", "seconds"),
    # The same answer would be final later on.
    [(b"HTTP/1.1 404 No\r\n\r\n", 3), (b"HTTP/1.1 502 No\r\n\r\n", 1), (b"", 1)],
)
def test_a_framework_may_have_no_routes_at_first(
    watch: Looks, early: bytes, seconds: float
) -> None:
    began = time.monotonic()

    def grows(connection: Any, _: bytes) -> None:
        connection.sendall(early if time.monotonic() - began < seconds else OK)

    with serving(grows) as port:
        seen = watch([one("api", port=port)], port=port, start_seconds=30)
        seen.until_up()
    assert seconds - 0.5 < time.monotonic() - began < seconds + 7


def test_answers_that_change_are_of_the_moment(
    watch: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changing answer is not final before the time is over."""
    monkeypatch.setattr("terrafirma_host.uptime.SAME", 0.5)
    turns = [status("404 No"), status("401 No")] * 100

    def changes(connection: Any, _: bytes) -> None:
        connection.sendall(turns.pop())

    with serving(changes) as port, pytest.raises(Failed, match="is not healthy within 3 s"):
        watch([one("api", port=port)], port=port, start_seconds=3).until_up()


def test_how_long_an_answer_takes_is_known(watch: Looks) -> None:
    """Caddy may need as long to see it."""
    sends, _ = KINDS["after 2.5 s"]
    with serving(sends) as port:
        seen = watch([one("api", port=port)], port=port, start_seconds=20)
        seen.until_up()
    assert 2.4 < seen.slowest < 4


def test_all_have_answered_well_just_now(watch: Looks) -> None:
    """A replica whose good answer is old, because a worker was awaited, is asked again."""
    answers = [status("500 No"), OK]

    def second_thoughts(connection: Any, _: bytes) -> None:
        connection.sendall(answers.pop() if answers else OK)

    with serving(second_thoughts) as port:
        fine = one("api", port=port)
        waits = [[fine, one("checked", health="starting")]] * 12
        seen = watch(*waits, [fine, one("checked", health="healthy")], port=port, start_seconds=30)
        seen.until_up()
    assert answers == []


# --- failed dependencies --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "words"),
    [
        (
            one("awaited", policy="no"),
            r"awaited-1 has not done its work within 2 s \(start_sec",
        ),
        (one("awaited", "restarting", restarts=3, code=1), "has not done its work within 2 s"),
        (one("awaited", "exited", code=3, policy="no"), "api-blue-awaited-1 failed with code 3"),
        (one("awaited", "exited", policy="no"), None),
        (one("waits", "created"), None),
        (one("awaited", "created"), None),
    ],
)
def test_the_message_about_a_failed_dependency(
    watch: Looks, container: dict[str, Any], words: str | None
) -> None:
    seen = watch([container])
    if not words:
        seen.refuse_awaited()
        return
    with pytest.raises(Failed, match=words):
        seen.refuse_awaited()


def test_the_time_limit_of_a_dependency_is_noted(app: Application) -> None:
    waits = {"depends_on": {"one": {"condition": "service_completed_successfully"}}}
    project = {"services": {"one": {}, "api": waits}}
    app = replace(app, start_seconds=120)
    words = "others wait for the end of one, for which it has 120 s (start_seconds)"
    assert layers.limited(app, project) == [words]
    # It is done before the slot starts, or nothing waits for its end.
    assert layers.limited(replace(app, stateful=("one",)), project) == []
    assert layers.limited(app, {"services": {"one": {"restart": "no"}, "api": {}}}) == []


def test_a_service_that_may_end_but_runs_on_is_noted(watch: Looks) -> None:
    states = [one("worker"), one("seed", policy="no"), one("setup", "exited", policy="no")]
    (line,) = watch(states).notes()
    assert line.startswith("api-blue-seed-1 runs on, and may end: to have it started again")


# --- services that may end ------------------------------------------------------------------------

AWAITED = {"depends_on": {"one": {"condition": "service_completed_successfully"}}}
HEALTHY = {"depends_on": {"one": {"condition": "service_healthy"}}}
STARTED = {"depends_on": {"one": {"condition": "service_started"}}}


def condition(name: str, **more: Any) -> dict[str, Any]:
    return {"deploy": {"restart_policy": {"condition": name, **more}}}


@pytest.mark.parametrize(
    ("service", "other", "ends"),
    [
        ({"restart": "no"}, {}, True),
        ({"restart": "no"}, STARTED, True),
        ({"restart": "on-failure"}, {}, True),
        ({"restart": "on-failure:5"}, {}, True),
        (condition("none"), {}, True),
        (condition("on-failure", max_attempts=3), {}, True),
        ({}, AWAITED, True),
        ({"restart": "always"}, AWAITED, True),
        ({"restart": "unless-stopped"}, AWAITED, True),
        (condition("any"), AWAITED, True),
        ({}, {}, False),
        ({"restart": "always"}, {}, False),
        (condition("any"), {}, False),
        ({"deploy": {"replicas": 2}}, STARTED, False),
        # Compose uses the policy in `deploy`.
        ({"restart": "no"} | condition("any"), {}, False),
        ({"restart": "always"} | condition("none"), {}, True),
        # A service that others need healthy has to last.
        ({"restart": "no"}, HEALTHY, False),
        (condition("on-failure"), HEALTHY, False),
    ],
)
def test_which_services_may_end(
    app: Application, service: dict[str, Any], other: dict[str, Any], ends: bool
) -> None:
    project = {"services": {"api": {}, "one": service, "other": other}}
    assert layers.once(app, project) == ({"one"} if ends else set())
    said = layers.mended(app, project)
    assert bool(said) is (not ends and bool(kinds.policy(service))), said


@pytest.mark.parametrize(
    "service", [{"restart": "no"}, {"restart": "on-failure:3"}, condition("none"),
                condition("on-failure")],
)  # fmt: skip
def test_a_service_that_serves_may_not_end(app: Application, service: dict[str, Any]) -> None:
    for project, name in (
        ({"services": {"api": service}}, "api"),
        ({"services": {"api": {}, "db": service}}, "db"),
    ):
        app = replace(app, stateful=("db",))
        assert layers.ending(app, project) == set()
        (line,) = layers.mended(app, project)
        assert line.startswith(f"{name} serves: its restart policy is unless-stopped here, not ")

"""What makes a release, whether it is whole, what is kept of it; a script stands in for Docker."""

import io
import json
import socket
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import proxy, release, spec
from terrafirma_host.engine import Compose
from terrafirma_host.lease import lease
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application, Release, Serving, tree_digest

from terrafirma.operations import files
from tests.unit.conftest import Program, described, records, told
from tests.unit.test_host_engine import DIGEST, inspected
from tests.unit.test_host_proxy import serving

DOCKER = """\
echo "$*" >> {root}/asked
case "$*" in
compose*" config --format json")
  for one; do case $one in *.yaml) cat "$one" ;; esac; done ;;
"image ls"*) cat {root}/images ;;
"manifest inspect"*) cat {root}/manifest ;;
info*) echo '{{}}' ;;
"ps --all"*project=api-green*) ;;
"ps --all"*) echo one ;;
"container inspect"*) cat {root}/containers ;;
*inspect*) echo '[{{}}]' ;;
esac
"""


@pytest.fixture
def host(roots: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose Docker says what is in these files, and whose Caddy does not run."""
    directory = program("docker", DOCKER.format(root=roots))
    program("ip", "echo 'docker0 UP 10.210.0.1/24'")
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    (roots / "manifest").write_text(json.dumps({"Descriptor": {"digest": DIGEST}}))
    (roots / "containers").write_text("[]")
    (roots / "images").write_text("")
    spec.make_key()
    return roots


def asked(host: Path) -> list[str]:
    return (host / "asked").read_text().splitlines()


# --- what makes a release -------------------------------------------------------------------------


def identity(app: Application) -> str:
    return release.wanted(app, Compose(app)).id


def test_what_makes_another_release(host: Path, app: Application) -> None:
    token = host / "secrets" / "token"
    token.write_text("one")
    several: dict[str, Application] = {
        "as it is": app,
        "source": app.with_source(host / "opt" / "api" / "sources" / "4567"),
        "image": app.with_image("registry.test/api:1"),
        "migrate": replace(app, migrate=("migrate",)),
        "env": replace(app, env={"A": "1"}),
        "secret": replace(app, secrets={**app.secrets, "token": str(token)}),
        "secrets_env": replace(app, secrets_env=True),
        "container_port": replace(app, container_port=8080),
        "network": replace(app, network="jobs"),
        "user": replace(app, user="root"),
        "memory": replace(app, memory_mb=64),
        "cpus": replace(app, cpus=0.5),
        "stop_seconds": replace(app, stop_seconds=11),
    }
    made = {what: identity(one) for what, one in several.items()}
    assert len({*made.values()}) == len(made), made
    # A tag that moved, and a secret that is another.
    (host / "manifest").write_text(json.dumps({"Descriptor": {"digest": "sha256:another"}}))
    assert identity(several["image"]) != made["image"]
    token.write_text("two")
    assert identity(several["secret"]) != made["secret"]
    assert identity(app) == made["as it is"]


def test_what_makes_none(host: Path, app: Application) -> None:
    """More patience, another page or more replicas would replace those that serve."""
    before = identity(app)
    for but in (
        *({"replicas": 9}, {"start_seconds": 300}, {"drain_seconds": 5}, {"keep": 9}),
        *({"domain": "www.acme.com"}, {"smoke_path": "/up"}, {"health_path": "/up"}),
        *({"automated": True}, {"registry_user": "ci"}),
    ):
        changed: dict[str, Any] = but
        assert identity(replace(app, **changed)) == before, but


# --- whether it is whole, and what is done where it is not ----------------------------------------


def containers(host: Path, *states: dict[str, Any]) -> None:
    answer = []
    for number, state in enumerate(states, 1):
        one = inspected(f"api-blue-api-{number}", Health={"Status": state.get("health", "healthy")})
        one["State"]["Status"] = state.get("state", "running")
        one["Config"]["Labels"] |= state.get("labels", {})
        one["HostsPath"] = state.get("hosts", "/no/where")
        one["RestartCount"] = state.get("restarts", 0)
        if "once" in state:
            one["HostConfig"]["RestartPolicy"]["Name"] = "no"
            one["State"]["ExitCode"] = state["once"]
        answer.append(one)
    (host / "containers").write_text(json.dumps(answer))


FINE: dict[str, Any] = {}
WORKER = {"labels": {"com.docker.compose.service": "w"}}
ALONE: dict[str, Any] = {"services": {"api": {}}}
STATES: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "whole": ([FINE, FINE], True),
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
    "no worker": ([FINE, FINE], False),
    "a replica that ended as if that were all": ([FINE, {"state": "exited", "once": 0}], False),
    "none": ([], False),
}


@pytest.mark.parametrize("what", STATES)
def test_whether_a_release_is_whole(host: Path, app: Application, what: str) -> None:
    states, whole = STATES[what]
    proxy.expect(app, "blue")
    serves = Serving("0123456789ab", "blue", 2, 8000)
    app = replace(app, replicas=2)
    containers(host, *states)
    worker = {"restart": "no"} if "run once" in what else {}
    project = {"services": ALONE["services"] | ({"w": worker} if "worker" in what else {})}
    assert release.whole(app, serves, project) is whole
    # Nor where Caddy sends requests elsewhere, or another number is wanted.
    assert not release.whole(replace(app, replicas=3), serves, project)
    proxy.point(app, "green")
    assert not release.whole(app, serves, project)
    # … or does not know how they are to be asked.
    proxy.forget(app)
    assert not release.whole(app, serves, project)


def test_as_many_workers_as_the_files_say(host: Path, app: Application) -> None:
    proxy.expect(app, "blue")
    serves, app = Serving("0123456789ab", "blue", 2, 8000), replace(app, replicas=2)
    containers(host, FINE, FINE, WORKER, WORKER)
    for worker, whole in (
        ({"deploy": {"replicas": 2}}, True),
        ({"scale": 2}, True),
        ({"deploy": {"replicas": 3}}, False),
        ({"deploy": {"resources": {}}}, False),
    ):
        project = {"services": ALONE["services"] | {"w": worker}}
        assert release.whole(app, serves, project) is whole, worker


def test_replicas_that_look_for_the_host_elsewhere_are_not_whole(
    host: Path, app: Application
) -> None:
    serves = Serving("0123456789ab", "blue", 2, 8000)
    app = replace(app, replicas=2)
    proxy.expect(app, "blue")
    hosts = host / "hosts"
    containers(host, FINE, {"hosts": str(hosts)})
    for address, lost in (("10.210.0.1", False), ("172.17.0.1", True)):
        hosts.write_text(f"{address}\thost.docker.internal\n")
        assert release.worn(app, serves) is lost
        assert release.whole(app, serves, ALONE) is not lost


def test_other_ports_are_those_of_the_next_release(host: Path, app: Application) -> None:
    """It moves them; on the way back Caddy is told the slot in which those that serve are."""
    serves = Serving("0123456789ab", "blue", 2, 8000)
    serves.save(app)
    containers(host, FINE, FINE)
    moved = replace(app, replicas=2, slots={"blue": 9000, "green": 9064}, drain_seconds=1)
    assert not release.whole(moved, serves, ALONE)
    # What a release left that died after it had switched.
    proxy.point(moved, "green")
    release.settle(moved)
    assert proxy.slot_of(moved) == "blue"


def test_only_spoilt_replicas_are_removed(host: Path, app: Application) -> None:
    """The others go on serving, and are not recreated."""
    with ExitStack() as stack:
        first, _ = stack.enter_context(serving())
        app = replace(
            app, replicas=1, slots={"blue": first, "green": first + 64}, health_path="/200"
        )
        made = records(app, "0123456789ab")
        serves = Serving(made.id, "blue", 1, first)
        serves.save(app)
        containers(host, FINE, WORKER | {"health": "unhealthy"}, {"state": "exited", "health": ""})
        held = stack.enter_context(lease(app, "me", "release", 60))
        compose = Compose(app)
        project = compose.project()
        # What it starts is healthy.
        answers = host / "containers"
        script = (host / "programs" / "docker").read_text()
        (host / "programs" / "docker").write_text(
            script.replace("case", f"case $* in rm*) echo '[]' > {answers} ;; esac\ncase", 1)
        )
        release.repair(app, compose, project, made, serves, held)
    done = asked(host)
    assert [line for line in done if line.startswith(("rm ", "stop ", "restart "))] == [
        "stop --time 10 id-api-blue-api-2",
        "rm --force id-api-blue-api-2",
    ]
    (up,) = [line for line in done if " up " in line]
    assert "--project-name api-blue " in up
    assert "--no-build --pull never" in up
    # Those that run are left alone, whatever Compose would make of them by now.
    assert up.split()[-1] == "--no-recreate"
    assert done.index(up) > done.index("rm --force id-api-blue-api-2")
    assert proxy.slot_of(app) == "blue"


def test_a_replica_that_does_not_stay_up_is_quoted(host: Path, app: Application) -> None:
    program = host / "programs" / "docker"
    program.write_text(f"{program.read_text()}case $1 in logs) echo 'no such table' ;; esac\n")
    containers(host, FINE, {"state": "exited", "health": ""})
    made = records(app, "0123456789ab")
    with pytest.raises(Failed, match="api-blue-api-2 does not stay up; its last words:\nno such"):
        release.await_health(app, made, "blue")


def test_a_replica_that_does_not_become_healthy_is_named(host: Path, app: Application) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    containers(host, FINE)
    app = replace(app, replicas=1, start_seconds=1, slots={"blue": port, "green": port + 64})
    words = f"is not healthy within 1 s \\(no success from /healthz on port {port}\\)"
    with pytest.raises(Failed, match=words):
        release.await_health(app, records(app, "0123456789ab"), "blue")


def test_what_was_restarted_before_is_not_dying(host: Path, app: Application) -> None:
    """One that has served for months may have been; a worker that was to run once has."""
    seed = {"labels": {"com.docker.compose.service": "seed"}, "state": "exited", "once": 0}
    containers(host, {"restarts": 7}, seed)
    with serving() as (port, requests):
        app = replace(
            app, replicas=1, start_seconds=9, slots={"blue": port, "green": port + 64},
            health_path="/200", domain="www.acme.com",
        )  # fmt: skip
        release.await_health(app, records(app, "0123456789ab"), "blue")
        assert requests == [("www.acme.com", "/200")]


def test_what_is_restarted_again_and_again_is_dying(host: Path, app: Application) -> None:
    containers(host, {"restarts": 7})
    text = (host / "containers").read_text()
    later = host / "later"
    later.write_text(text.replace('"RestartCount": 7', '"RestartCount": 10'))
    program = host / "programs" / "docker"
    # The second answer, and those that follow.
    program.write_text(
        program.read_text().replace(
            f"cat {host}/containers ;;", f"cat {host}/containers; cp {later} {host}/containers ;;"
        )
    )
    with pytest.raises(Failed, match="api-blue-api-1 does not stay up"):
        release.await_health(
            replace(app, replicas=1, start_seconds=30), records(app, "0123456789ab"), "blue"
        )


# --- the way from one to the next -----------------------------------------------------------------


@pytest.fixture
def steps(
    host: Path, app: Application, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Application]]:
    """An application whose replicas answer at once, in either slot."""
    monkeypatch.setattr(proxy, "NOTICED", 0)
    with ExitStack() as stack:
        ports = [stack.enter_context(serving())[0] for _ in range(2)]

        def make(**but: Any) -> Application:
            data: dict[str, Any] = {
                "replicas": 1,
                "slots": dict(zip(("blue", "green"), ports, strict=True)),
                "health_path": "/200",
                "start_seconds": 5,
            }
            made = replace(app, **data | but)
            (host / "apps" / "api.json").write_text(told(made))
            return made

        yield make


def arrived(path: Path) -> str:
    """The source of an application that is there."""
    path.mkdir(parents=True)
    (path / "Dockerfile").touch()
    return str(path)


def known(app: Application, release_id: str) -> Release:
    made = Release.load(app, release_id)
    assert made
    return made


def current(app: Application) -> tuple[str, str]:
    now = Serving.load(app)
    assert now
    return now.release, now.slot


def test_there_and_back(host: Path, steps: Callable[..., Application]) -> None:
    """A way back leads to the code of then, under the settings of now, and is called after both."""
    first = steps()
    release.release(first, by="me", revision="r1")
    one = current(first)
    assert one == (identity(first), "blue")
    images = known(first, one[0]).images
    arrived(Path(first.source))
    second = steps(source=arrived(host / "opt" / "api" / "sources" / "4567"))
    release.release(second, by="me", revision="r2")
    two = current(second)
    assert two == (identity(second), "green")
    assert proxy.slot_of(second) == "green"

    now = replace(second, env={"A": "1"})
    release.rollback(now, "", by="me")
    back, slot = current(now)
    assert slot == proxy.slot_of(now) == "blue"
    assert back == identity(replace(first, env={"A": "1"})) != one[0]
    assert (known(now, back).images, known(now, back).revision) == (images, "r1")
    # What was taken back is its code, whatever settings it ran under.
    assert known(now, two[0]).withdrawn
    assert not known(now, back).withdrawn
    for again in (second, replace(second, env={"B": "2"})):
        with pytest.raises(Failed, match="was taken back: change it, or let it serve all the same"):
            release.release(again, by="me")
    # So there is nothing earlier; one that differs in settings alone is no step back.
    with pytest.raises(Failed, match=r"no such release to go back to; kept are: .*Settings and"):
        release.rollback(now, "", by="me")
    # Once somebody insists, it is taken back no more.
    release.release(second, by="me", again=True)
    assert current(second) == (two[0], "green")
    assert not known(second, two[0]).withdrawn
    actions = [line["action"] for line in spec.history(second)]
    assert actions == ["release", "rollback", "release", "release"]


def test_a_restart_is_under_the_settings_of_now(
    host: Path, steps: Callable[..., Application]
) -> None:
    app = steps()
    release.release(app, by="me", revision="r1")
    release.restart(app, by="me")
    assert current(app) == (identity(app), "green")
    now = replace(app, env={"A": "1"})
    release.restart(now, by="me")
    assert current(now) == (identity(now), "blue")
    assert known(now, identity(now)).revision == "r1"
    # A run has nothing to do then.
    release.release(now, by="me")
    assert current(now) == (identity(now), "blue")


def test_settings_and_secrets_reach_what_serves_after_a_way_back(
    host: Path, steps: Callable[..., Application]
) -> None:
    first = steps(source=arrived(host / "opt" / "api" / "sources" / "0123"))
    release.release(first, by="me")
    second = steps(source=arrived(host / "opt" / "api" / "sources" / "4567"))
    release.release(second, by="me")
    release.rollback(second, "", by="me")
    now = replace(second, env={"A": "1"})
    said = release.status(now)
    assert (said["withdrawn"], said["current"], said["wanted"]) == (True, False, identity(now))
    (host / "asked").unlink()
    release.refresh(now, by="me")
    assert current(now) == (identity(replace(first, env={"A": "1"})), "green")
    # With the image of then.
    assert not [line for line in asked(host) if " build " in line]
    assert spec.history(now)[0]["action"] == "refresh"
    assert release.is_withdrawn(now, known(second, identity(second)).code)
    # A tag that has moved since is the next release's.
    (host / "manifest").write_text(json.dumps({"Descriptor": {"digest": "sha256:another"}}))
    # What a way back had marked that died before it served is marked no more.
    release.mark(now, known(now, current(now)[0]).code, withdrawn=True)
    release.settle(now)
    assert not release.is_withdrawn(now, known(now, current(now)[0]).code)


def test_replicas_that_say_that_they_are_ill_serve_until_new_ones_do(
    host: Path, steps: Callable[..., Application]
) -> None:
    """They may be the best there is: their database may just be slow."""
    app = steps()
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


def migrations(host: Path) -> list[str]:
    return [line.split()[-2] for line in asked(host) if " run --rm " in line]


def test_another_migration_runs_once(host: Path, steps: Callable[..., Application]) -> None:
    app = steps(migrate=("sh", "one"))
    release.release(app, by="me")
    # Not for other settings.
    app = replace(app, env={"A": "1"})
    release.release(app, by="me")
    assert len(migrations(host)) == 1
    assert known(app, current(app)[0]).migrate == "sh one"
    # Nor for new containers; and what these did not run is not taken for done.
    other = replace(app, migrate=("sh", "two"))
    release.restart(other, by="me")
    assert len(migrations(host)) == 1
    release.release(other, by="me")
    assert len(migrations(host)) == 2
    assert known(other, current(other)[0]).migrate == "sh two"
    release.release(other, by="me")
    assert len(migrations(host)) == 2


@pytest.mark.parametrize("first", [True, False])
def test_a_page_that_does_not_answer_takes_all_back(
    host: Path, steps: Callable[..., Application], monkeypatch: pytest.MonkeyPatch,
    first: bool, capsys: Any,
) -> None:  # fmt: skip
    app = steps()
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


def test_a_worker_that_ends_before_the_release_counts_takes_all_back(
    host: Path, steps: Callable[..., Application], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = steps()
    release.release(app, by="me")
    before = current(app)
    program = host / "programs" / "docker"
    # The slot that starts has containers, too.
    program.write_text(program.read_text().replace("*project=api-green*) ;;", "*) echo one ;;"))
    containers(host, FINE)

    def meanwhile(_: Application) -> bool:
        containers(host, FINE, WORKER | {"state": "exited", "health": ""})
        return False

    monkeypatch.setattr(proxy, "smoke", meanwhile)
    with pytest.raises(Failed, match=r"at the step .smoke.: .*api-blue-api-2 does not stay up"):
        release.release(replace(app, env={"A": "1"}), by="me")
    assert (current(app), proxy.slot_of(app)) == (before, "blue")


def test_a_repair_asks_as_what_serves_was_asked(host: Path, app: Application) -> None:
    """Another path is that of the next release; Caddy's file says how, in today's words."""
    with ExitStack() as stack:
        port, requests = stack.enter_context(serving())
        app = replace(app, replicas=1, slots={"blue": port, "green": port + 64})
        old = replace(app, health_path="/200", domain="www.acme.com")
        proxy.expect(old, "blue")
        file = proxy.asking(app, "blue")
        file.write_text(file.read_text().replace("health_status 2xx\n", ""))
        made = records(app, "0123456789ab")
        serves = Serving(made.id, "blue", 1, port)
        serves.save(app)
        containers(host, FINE)
        assert not release.whole(app, serves, ALONE)
        held = stack.enter_context(lease(app, "me", "release", 60))
        compose = Compose(app)
        release.repair(app, compose, compose.project(), made, serves, held)
        assert release.whole(app, serves, ALONE)
    assert requests == [("www.acme.com", "/200")]


def test_what_cannot_be_undone_keeps_nothing_else_from_it(
    host: Path, steps: Callable[..., Application], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    app = steps()
    release.release(app, by="me")

    def refuse(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(proxy, "point", refuse)
    (host / "asked").unlink()
    (host / "images").write_text("terrafirma/api:stray\n")
    release.undo(app, "green", Serving.load(app), switched=True)
    assert "warning: no space left" in capsys.readouterr().out
    assert "image rm terrafirma/api:stray" in asked(host)


def test_what_goes_wrong_after_it_serves_takes_nothing_back(
    host: Path, steps: Callable[..., Application], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    app = steps()
    release.release(app, by="me")
    save = Serving.save

    def then_fail(self: Serving, app: Application) -> None:
        save(self, app)
        raise OSError("no sync")

    monkeypatch.setattr(Serving, "save", then_fail)
    now = replace(app, env={"A": "1"})
    release.release(now, by="me")
    assert current(now) == (identity(now), "green")
    assert proxy.slot_of(now) == "green"
    assert "warning: no sync" in capsys.readouterr().out


def test_a_key_brings_no_other_compose_files(host: Path, app: Application) -> None:
    """What a container may do on the host is the deploy's to say."""

    def source(name: str, text: str) -> Path:
        directory = host / "opt" / "api" / "sources" / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "compose.yaml").write_text(text)
        return directory

    deploys = source("0123", "services: {api: {build: .}}\n")
    told = replace(app, source=str(deploys), compose=("compose.yaml",), automated=True)
    theirs = told.with_source(source("4567", "services: {api: {build: .}}\n"))
    release.refuse_other_files(told, theirs)
    # Root reads those of the deploy, whatever happens to the others; for each code that follows.
    for brought in (theirs, theirs.with_source(source("cdef", ""))):
        assert Compose(brought).files() == [f"{deploys}/compose.yaml"]
    other = told.with_source(source("89ab", "include: [{path: x, env_file: /etc/shadow}]\n"))
    with pytest.raises(Failed, match="yaml, as it was sent, is not that of the deploy: run deploy"):
        release.refuse_other_files(told, other)
    assert not (host / "asked").exists()
    # Without any, there is a Dockerfile and nothing more.
    release.refuse_other_files(app, app)
    # Without a key, code is as it was deployed: with the files of then.
    own = replace(told, automated=False).with_source(Path("/then"))
    assert Compose(own).files() == ["/then/compose.yaml"]


# --- what is kept ---------------------------------------------------------------------------------


def test_the_last_releases_are_kept_and_what_they_need(host: Path, app: Application) -> None:
    app = replace(app, keep=2)
    sources = app.directory / "sources"
    for name in ("s1", "s2", "s3", "s4", "stray", Path(app.source).name):
        (sources / name).mkdir(parents=True)
    for number in range(1, 5):
        records(
            app, f"release{number}", source=str(sources / f"s{number}"),
            at=f"2026-01-0{number}T00:00:00.000Z", code=f"code{number}",
            images={"api": f"terrafirma/api:{number}"}, pulled=("base",) if number < 3 else (),
        )  # fmt: skip
    # Of the same code, with other settings: a way back leads to none of these.
    records(app, "release0", source=str(sources / "s4"), at="2026-01-03T01:00:00.000Z",
            code="code4", images={"api": "terrafirma/api:0"})  # fmt: skip
    tags = "".join(f"terrafirma/api:{number}\n" for number in range(5))
    (host / "images").write_text(tags)
    # The oldest serves, after a way back: it is kept beside the two.
    Serving("release1", "blue", 4, 8000).save(app)
    (host / "apps" / "api.json").write_text(told(app))
    release.prune(app)
    assert sorted(one.stem for one in app.releases.iterdir()) == [
        "release1", "release3", "release4"
    ]  # fmt: skip
    kept = {"s1", "s3", "s4", Path(app.source).name}
    assert {one.name for one in sources.iterdir()} == kept
    # What the one that is kept needs as well stays; and nothing but images is removed.
    removed = [line for line in asked(host) if " rm " in line or "prune" in line]
    assert removed == ["image rm terrafirma/api:0", "image rm terrafirma/api:2"]


def test_a_source_that_a_stateful_service_has_mounted_is_kept(host: Path, app: Application) -> None:
    """No release recreates it: it goes on with the files of then."""
    sources = app.directory / "sources"
    for name in ("theirs", "theirs-2", Path(app.source).name):
        (sources / name / "conf").mkdir(parents=True)
    records(app, "0123456789ab")
    Serving("0123456789ab", "blue", 4, 8000).save(app)
    (host / "apps" / "api.json").write_text(told(app))
    answer = [inspected("api-state-redis-1") | {"Mounts": [{"Source": f"{sources}/theirs/conf"}]}]
    (host / "containers").write_text(json.dumps(answer))
    release.prune(app)
    assert {one.name for one in sources.iterdir()} == {"theirs", Path(app.source).name}


def test_images_of_a_release_that_never_served_go_with_it(host: Path, app: Application) -> None:
    records(app, "0123456789ab")
    (host / "images").write_text("terrafirma/api:0123456789ab\nterrafirma/api:ba9876543210\n")
    (app.directory / "fetched").write_text("x:1\ny:1\nz:1\n")
    records(app, "0123456789ab", pulled=("x:1",))
    # One that somebody uses does not go yet.
    program = host / "programs" / "docker"
    program.write_text(
        program.read_text().replace("*inspect*)", "*'inspect y:1') echo '[]' ;;\n*inspect*)")
    )
    release.tidy(app)
    assert [line for line in asked(host) if " rm " in line] == [
        "image rm terrafirma/api:ba9876543210",
        "image rm y:1",
        "image rm z:1",
    ]
    assert (app.directory / "fetched").read_text() == "x:1\nz:1\n"


def test_an_application_that_left_the_data_is_removed_on_demand(host: Path, capsys: Any) -> None:
    """As another version described it, and wherever a removal was killed before."""
    (host / "apps" / "api.json").write_text('{"name": "api", "stop_seconds": 5, "gone": 1}')
    (host / "secrets" / "api").mkdir(parents=True)
    (host / "secrets" / "api" / "token").touch()
    (host / "secrets" / "slots" / "api" / "blue").mkdir(parents=True)
    (host / "caddy" / "upstreams").mkdir(parents=True)
    (host / "caddy" / "upstreams" / "api.green").touch()
    site = host / "caddy" / "Caddyfile"
    site.write_text("root /etc/caddy/upstreams\ntry_files /api.green\n")
    app = Application.of_any_version("api")
    records(app, "0123456789ab")
    (app.directory / "fetched").write_text("api@sha256:1\n")
    with pytest.raises(Failed, match="Caddy serves api: take it out of the data, and run"):
        release.remove(app, by="me")
    assert not (host / "asked").exists()
    site.write_text("try_files /our-api.green\n")
    release.remove(app, by="me")
    assert capsys.readouterr().out.endswith(f"left alone: {host}/secrets/api\n")
    assert "stop --time 5 one" in asked(host)
    assert "image rm api@sha256:1" in asked(host)
    assert not [line for line in asked(host) if "volume rm" in line]
    left = {str(one.relative_to(host)) for one in host.rglob("*") if one.is_file()}
    assert "secrets/api/token" in left
    assert not [one for one in left if one.startswith(("apps", "opt", "caddy/upstreams"))]
    with pytest.raises(Failed, match="there is no application 'api'; there are: none"):
        Application.of_any_version("api")


def test_with_a_deploy_key_the_code_is_that_which_serves(app: Application) -> None:
    """Else a change of a setting would take back what was released in the meantime."""
    theirs = arrived(app.directory / "sources" / "theirs")
    records(app, "0123456789ab", source=theirs)
    Serving("0123456789ab", "blue", 4, 8000).save(app)
    assert release.described(app) == app
    by_key = replace(app, automated=True)
    assert release.described(by_key).source == theirs
    of_a_registry = by_key.with_image("api:1")
    # One of another kind cannot be run by what is described now: that is released.
    assert release.described(of_a_registry) == of_a_registry
    # … nor one whose compose files nobody looked at when the key sent them.
    (Path(theirs) / "compose.yaml").touch()
    project = replace(by_key, compose=("compose.yaml",))
    assert release.described(project) == project
    records(app, "0123456789ab", source="", image=f"api@{DIGEST}")
    assert release.described(of_a_registry).image == f"api@{DIGEST}"
    assert release.described(by_key) == by_key


def test_a_release_of_another_kind_is_nothing_to_go_back_to(host: Path, app: Application) -> None:
    """Nor is what a deploy key sent in files that nobody looked at then."""
    arrived(Path(app.source))
    (Path(app.source) / "compose.yaml").touch()
    records(app, "0123456789ab")
    records(app, "00000000000a", source="", image=f"api@{DIGEST}", code="other")
    records(app, "00000000000b", compose=("compose.yaml",), code="more")
    Serving("0123456789ab", "blue", 1, 8000).save(app)
    for other in ("00000000000a", "00000000000b"):
        with pytest.raises(
            Failed,
            match=r"kept are: 0123456789ab\. 00000000000b, 00000000000a came of another kind",
        ):
            release.rollback(app, other, by="me")


def test_what_serves_in_another_kinds_place_is_not_refreshed(host: Path, app: Application) -> None:
    records(app, "0123456789ab")
    Serving("0123456789ab", "blue", 1, 8000).save(app)
    other = app.with_image("registry.test/api:1")
    for what in (release.refresh, release.restart):
        with pytest.raises(Failed, match="release 0123456789ab is of another kind, or has other"):
            what(other, by="me")


def test_a_tag_that_moved_is_the_next_releases(
    host: Path, steps: Callable[..., Application]
) -> None:
    app = steps(source="", image="registry.test/api:1")
    release.release(app, by="me")
    (host / "manifest").write_text(json.dumps({"Descriptor": {"digest": "sha256:another"}}))
    now = replace(app, env={"A": "1"})
    release.refresh(now, by="me")
    # It is not called after what it does not run.
    assert current(now)[0] != identity(now)
    release.release(now, by="me")
    assert current(now)[0] == identity(now)


def test_a_release_without_an_image_that_is_needed_by_now(
    host: Path, steps: Callable[..., Application]
) -> None:
    """What was stateful then was not built then."""
    app = steps()
    release.release(app, by="me")
    records(app, "00000000000a", images={"redis": "terrafirma/api/redis:0"}, code="other")
    with pytest.raises(Failed, match="release 00000000000a has no image of api: release its code"):
        release.rollback(app, "00000000000a", by="me")
    assert proxy.slot_of(app) == "blue"


def test_the_secrets_of_a_slot_stay_those_of_its_release(host: Path, app: Application) -> None:
    """Whenever Docker starts one of its containers again."""
    token = Path(app.secrets["database_url"])
    token.chmod(0o400)
    compose = Compose(app)
    release.lay_out_secrets(app, compose, "blue")
    there = app.slot_secrets("blue") / "database_url"
    assert there.samefile(token)
    # As app-secrets writes another value: a new file under the old name.
    new = token.with_name("new")
    new.write_text("another")
    new.rename(token)
    assert there.read_text() == "postgresql://s3cret\n"
    assert there.stat().st_mode & 0o777 == 0o400
    # A release that began before has the name of the value of then.
    with pytest.raises(
        Failed, match="the secret database_url was changed while this was under way"
    ):
        release.lay_out_secrets(app, compose, "green")
    release.lay_out_secrets(app, Compose(app), "green")
    release.lay_out_secrets(app, Compose(app), "blue")
    assert there.samefile(app.slot_secrets("green") / "database_url")
    release.clear(app, "green")
    assert not app.slot_secrets("green").exists()
    assert there.read_text() == token.read_text() == "another"


def test_without_a_release_there_is_none(app: Application) -> None:
    with pytest.raises(Failed, match="api has no release yet"):
        release.serves(app)
    Serving("0123456789ab", "blue", 4, 8000).save(app)
    with pytest.raises(Failed, match="api has no release yet"):
        release.serves(app)
    made: Release = records(app, "0123456789ab")
    assert release.serves(app) == (Serving("0123456789ab", "blue", 4, 8000), made)


# --- a source that comes with a deploy key --------------------------------------------------------


def tar(*members: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w:gz") -> io.BytesIO:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode=mode) as made:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                made.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            info.mode = 0o755 if member[0].endswith(".sh") else 0o644
            made.addfile(info, io.BytesIO(member[1]))
    archive.seek(0)
    return archive


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


DOCKERFILE = ("Dockerfile", b"FROM scratch\n")


def test_a_source_is_unpacked_once_under_the_name_of_its_content(app: Application) -> None:
    first = release.unpack(app, tar(DOCKERFILE, ("bin/run.sh", b"#!/bin/sh\n"), ("ü", b"")))
    assert first == app.directory / "sources" / tree_digest(first)
    assert (first / "bin" / "run.sh").stat().st_mode & 0o100
    assert first.stat().st_mode & 0o777 == 0o700
    assert release.unpack(app, tar(("ü", b""), ("bin/run.sh", b"#!/bin/sh\n"), DOCKERFILE)) == first
    other = release.unpack(app, tar(DOCKERFILE))
    assert {one.name for one in first.parent.iterdir()} == {first.name, other.name}


def test_a_source_may_have_names_that_are_no_text(app: Application) -> None:
    odd = special("latin-\udce9", tarfile.REGTYPE)
    assert release.unpack(app, tar(DOCKERFILE, odd)).is_dir()


HOSTILE: dict[str, Callable[[], io.BytesIO]] = {
    "nothing": lambda: io.BytesIO(b""),
    "no gzip": lambda: io.BytesIO(b"x" * 2000),
    "no compression": lambda: tar(DOCKERFILE, mode="w"),
    "half": lambda: io.BytesIO(tar(DOCKERFILE, ("x", bytes(range(256)) * 99)).getvalue()[:-200]),
    "damage": lambda: io.BytesIO(tar(DOCKERFILE).getvalue()[:20] + b"\xff" * 90),
    "no Dockerfile": lambda: tar(("README.md", b"")),
    "a directory called Dockerfile": lambda: tar(("Dockerfile/x", b"")),
    "a way out": lambda: tar(DOCKERFILE, ("../../../canary", b"x")),
    "a link out": lambda: tar(DOCKERFILE, special("x", tarfile.SYMTYPE, "/etc/shadow")),
    "a hard link out": lambda: tar(DOCKERFILE, special("x", tarfile.LNKTYPE, "../../shadow")),
    "through a link": lambda: tar(
        DOCKERFILE, special("x", tarfile.SYMTYPE, "../.."), ("x/canary", b"x")
    ),
    "a device": lambda: tar(DOCKERFILE, special("x", tarfile.CHRTYPE)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_source_that_is_none_leaves_nothing(app: Application, roots: Path, kind: str) -> None:
    before = {path for path in roots.rglob("*") if "sources" not in path.parts}
    with pytest.raises(Failed, match=r"^the source (is no gzipped tar|that was sent has no file)"):
        release.unpack(app, HOSTILE[kind]())
    assert list((app.directory / "sources").iterdir()) == []
    assert {path for path in roots.rglob("*") if "sources" not in path.parts} == before


def test_where_a_link_leads_is_a_part_of_the_content(app: Application) -> None:
    """Of a directory, too; both sides call a source the same."""
    first, second = (
        release.unpack(app, tar(DOCKERFILE, special("now", tarfile.SYMTYPE, where)))
        for where in ("v1", "v2")
    )
    assert first != second
    assert files.tree_digest(first) == first.name
    (first / "v1").mkdir()
    assert tree_digest(first) == files.tree_digest(first) == first.name


def test_a_link_may_lead_nowhere(app: Application) -> None:
    nowhere = special("a", tarfile.SYMTYPE, "generated/later")
    loop = special("b", tarfile.SYMTYPE, "b")
    assert (release.unpack(app, tar(DOCKERFILE, nowhere, loop)) / "a").is_symlink()


def test_a_source_is_not_larger_than_it_may_be(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "SOURCE", 2**20)
    release.unpack(app, tar(DOCKERFILE, ("a", bytes(2**19)), ("b", bytes(2**18))))
    negative = special("d", tarfile.DIRTYPE)
    negative.size = -(2**30)
    for members in (
        [("a", bytes(2**19)), ("c", bytes(2**19))],
        [negative, ("a", bytes(2**20))],
        # Without content, but with a name each.
        [(f"{number}", b"") for number in range(300)],
    ):
        with pytest.raises(Failed, match="the source that was sent has more than 1 MB"):
            release.unpack(app, tar(DOCKERFILE, *members))
    assert len(list((app.directory / "sources").iterdir())) == 1


def test_a_source_of_a_project_has_its_files(app: Application) -> None:
    project = replace(app, compose=("compose.yaml", "deploy/more.yaml"))
    with pytest.raises(Failed, match=r"has no file 'deploy/more.yaml'"):
        release.unpack(project, tar(("compose.yaml", b"")))
    assert release.unpack(project, tar(("compose.yaml", b""), ("deploy/more.yaml", b""))).is_dir()


def test_an_application_as_it_is_told_has_both_slots() -> None:
    app = described()
    assert [release.other(app, slot) for slot in ("blue", "green")] == ["green", "blue"]
    assert not set(app.ports("blue", 64)) & set(app.ports("green", 64))

"""Questions to Docker, and the meaning of its answers; a script stands in for Docker."""

import base64
import json
import os
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import engine, layers, shell
from terrafirma_host.engine import Container, containers, lost_host, registry_of, repository
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

from tests.unit.programs import Program
from tests.unit.terrafirma_host.docker import DIGEST, inspected

HUB = "https://index.docker.io/v1/"


@pytest.fixture
def docker(roots: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets a script answer in the place of Docker; returns the file with the questions."""
    asked = roots / "asked"

    def write(script: str) -> Path:
        directory = program("docker", f'echo "$*" >> {asked}\n{script}')
        monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
        return asked

    return write


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "registry", "path"),
    [
        ("api", HUB, "api"),
        ("api:1.2", HUB, "api"),
        ("team/api:1.2", HUB, "team/api"),
        # Docker Hub's password has one fixed name.
        ("docker.io/team/api:1.2", HUB, "docker.io/team/api"),
        ("index.docker.io/team/api", HUB, "index.docker.io/team/api"),
        ("ghcr.io/acme/api:1.2", "ghcr.io", "ghcr.io/acme/api"),
        ("localhost/api", "localhost", "localhost/api"),
        ("localhost:5000/api", "localhost:5000", "localhost:5000/api"),
        ("registry:5000/a/b/api:1.2", "registry:5000", "registry:5000/a/b/api"),
        (f"ghcr.io/acme/api@{DIGEST}", "ghcr.io", "ghcr.io/acme/api"),
        (f"registry:5000/api:1.2@{DIGEST}", "registry:5000", "registry:5000/api"),
    ],
)
def test_where_an_image_comes_from(image: str, registry: str, path: str) -> None:
    assert registry_of(image) == registry
    assert repository(image) == path


def test_an_image_with_a_digest_needs_no_registry(docker: Any, app: Application) -> None:
    asked = docker("exit 1")
    images = [f"ghcr.io/acme/api{tag}@{DIGEST}" for tag in ("", ":1.2")]
    found = engine.resolve(app, images)
    assert found == dict.fromkeys(images, f"ghcr.io/acme/api@{DIGEST}")
    assert not asked.exists()


@pytest.fixture
def private(app: Application, roots: Path) -> Application:
    password = roots / "secrets" / ".registry_registry.test_5000"
    password.write_text("s3cret:s3cret\n")
    return replace(
        app.with_image("registry.test:5000/api:1"),
        registries={"registry.test:5000": {"user": "ci", "password": str(password)}},
    )


def test_a_password_is_there_for_as_long_as_it_is_needed(private: Application) -> None:
    with suppress(ZeroDivisionError), engine.registry(private) as env:
        directory = Path(env["DOCKER_CONFIG"])
        config = directory / "config.json"
        assert (directory.stat().st_mode & 0o777, config.stat().st_mode & 0o777) == (0o700, 0o600)
        auths = json.loads(config.read_text())["auths"]
        assert list(auths) == ["registry.test:5000"]
        known = base64.b64decode(auths["registry.test:5000"]["auth"])
        assert known == b"ci:s3cret:s3cret"
        raise ZeroDivisionError
    assert not directory.exists()


def test_there_may_be_several_registries(private: Application) -> None:
    login = private.registries["registry.test:5000"]
    several = replace(private, registries={"ghcr.io": login, "docker.io": login})
    with engine.registry(several) as env:
        config = json.loads((Path(env["DOCKER_CONFIG"]) / "config.json").read_text())
    # Docker knows its own by this name.
    assert list(config["auths"]) == ["ghcr.io", HUB]


def test_a_password_is_no_argument(docker: Any, private: Application) -> None:
    asked = docker(
        """case $1 in
        image) echo "Error: No such image" >&2; echo '[]'; exit 1 ;;
        pull) test -s "$DOCKER_CONFIG/config.json" ;;
        esac"""
    )
    assert engine.pull(private, f"registry.test:5000/api@{DIGEST}")
    assert asked.read_text().splitlines()[-1] == f"pull --quiet registry.test:5000/api@{DIGEST}"
    assert "s3cret" not in asked.read_text()


def test_a_password_that_is_missing_is_named(private: Application) -> None:
    login = {"user": "ci", "password": "/no/where"}
    missing = replace(private, registries={"registry.test:5000": login})
    with (
        pytest.raises(Failed, match=r"/no/where is missing; run deploy.py"),
        engine.registry(missing),
    ):
        pass
    with engine.registry(replace(private, registries={})) as env:
        assert env == {}


def test_an_image_for_another_architecture_is_refused(docker: Any, app: Application) -> None:
    docker(
        """case $1 in
        image) echo "Error: No such image" >&2; echo '[]'; exit 1 ;;
        pull) echo "no matching manifest for linux/arm64/v8 in the manifest list" >&2; exit 1 ;;
        esac"""
    )
    with pytest.raises(Failed, match=rf"@{DIGEST}: the registry has none for {os.uname().machine}"):
        engine.pull(app, f"api@{DIGEST}")


def test_an_image_that_is_here_is_not_pulled(docker: Any, app: Application) -> None:
    asked = docker("echo '[{}]'")
    assert not engine.pull(app, f"api@{DIGEST}")
    assert "pull" not in asked.read_text()


def test_a_missing_object_is_no_failure_but_a_failing_docker_is(docker: Any) -> None:
    for words in ("Error: No such image: x", "Error response from daemon: network x not found"):
        docker(f"echo '{words}' >&2; echo '[]'; exit 1")
        assert engine.inspect("image", ["x"]) == []
    docker("echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    with pytest.raises(Failed, match="docker image inspect: Cannot connect"):
        engine.inspect("image", ["x"])


# --- projects, networks, volumes ------------------------------------------------------------------


def test_two_descriptions_are_asked_about_at_once(app: Application, roots: Path) -> None:
    """Each has a file of its own, so a dry run does not change the file of a release under way."""
    first, second = (engine.Compose(one).files() for one in (app, replace(app, network="jobs")))
    assert first != second
    assert engine.Compose(app).files() == first
    (path,) = first
    assert Path(path).parent == roots / "run"
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert app.network in Path(path).read_text()


def test_services_with_profiles_are_known(docker: Any, app: Application) -> None:
    asked = docker("""echo '{"services": {"api": {}}}'""")
    engine.Compose(app).project()
    assert "--profile * config --format json" in asked.read_text()


def test_variables_that_docker_reads_reach_only_the_containers(app: Application) -> None:
    env = {
        "DOCKER_HOST": "tcp://evil:1",
        "COMPOSE_FILE": "/x",
        "LD_PRELOAD": "/x",
        "PATH": "/x",
        "HOME": "/x",
        "BUILDKIT_HOST": "x",
        "SSL_CERT_FILE": "/x",
        "PORT": "8000",
        "DOCKER_RESTART_POLICY": "always",
        "LD_HOST_PORT": "80",
    }
    standard = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    own = {"PATH": standard, "HOME": "/root"}
    assert engine.Compose(replace(app, env=env)).environment() == own | {
        name: env[name] for name in ("PORT", "DOCKER_RESTART_POLICY", "LD_HOST_PORT")
    }
    # Secrets also have names of ours, so that a container gets each of them.
    file = app.secrets["database_url"]
    secrets = {"docker_host": file, "google_key": file}
    told = replace(app, secrets_env=True, secrets=secrets)
    value = "postgresql://s3cret"
    assert engine.Compose(told).environment() == own | {
        "GOOGLE_KEY": value,
        "TERRAFIRMA_SECRET_DOCKER_HOST": value,
        "TERRAFIRMA_SECRET_GOOGLE_KEY": value,
    }


def test_values_with_references_are_only_in_the_environment_of_compose(
    docker: Any, app: Application
) -> None:
    url = "postgresql://api:a-long-password@host.docker.internal:5432/api"
    Path(app.secrets["database_url"]).write_text(f"{url}\n")
    docker('echo "at $DATABASE_URL: refused for a-long-password" >&2; exit 1')
    env = {"DATABASE_URL": "{database.url:postgres}", "PGPORT": "{database.port}", "TEXT": "a\nb"}
    for as_variables in (False, True):
        compose = engine.Compose(replace(app, env=env, secrets_env=as_variables))
        given = compose.environment()
        wanted = url.replace("postgresql:", "postgres:")
        assert given["DATABASE_URL"] == given["TERRAFIRMA_SECRET_DATABASE_URL"] == wanted
        assert given["PGPORT"] == given["TERRAFIRMA_SECRET_PGPORT"] == "5432"
        assert given["TEXT"] == "a\nb"
        assert "TERRAFIRMA_SECRET_TEXT" not in given
        # Nor does Compose's answer show them.
        for ask in (compose.config, lambda: compose.run("api", "", "up")):  # noqa: B023
            with pytest.raises(Failed) as error:
                ask()
            words = "at postgres://api:(a secret)@host.docker.internal:5432/api: refused for (a"
            assert words in str(error.value)


def test_variables_of_a_file_are_only_in_the_environment_of_compose(app: Application) -> None:
    file = Path(app.secrets["database_url"]).with_name(".env_file")
    file.write_text(
        json.dumps({"A": "from a file", "URL": "x://y:passw0rd@z", "TOKEN": "12345678"})
    )
    env = {"A": "of env", "B": "{secrets.database_url}"}
    app = replace(app, compose=("a.yaml",), env=env, env_file=str(file))
    app = replace(app, variables=("A", "TOKEN", "URL"), env_files={"web": ()})
    compose = engine.Compose(app)
    given = compose.environment()
    assert given["A"] == "of env"
    assert given["TOKEN"] == given["TERRAFIRMA_SECRET_TOKEN"] == "12345678"
    assert shell.plain("12345678 from a file x://y:passw0rd@z") == (
        "(a secret) from a file x://y:(a secret)@z"
    )
    own, layer = compose.files()
    assert own.endswith("/a.yaml")
    names = json.loads(Path(layer).read_text().partition("!override ")[2].rstrip("}\n"))
    wanted = [compose.layer("blue", "services: {}\n"), *names, layer]
    assert layers.variables(app) == Path(layers.variables_file(app)).read_text()
    for path in (*wanted, layers.variables_file(app)):
        assert Path(path).stat().st_mode & 0o777 == 0o600
        assert "12345678" not in Path(path).read_text()
    file.write_text('{"A": "1"}')
    with pytest.raises(Failed, match=r"variables are missing in .*\.env_file; run deploy\.py"):
        engine.Compose(app)


def test_a_blank_variable_is_named_where_compose_fails_by_it(docker: Any, app: Application) -> None:
    source = Path(app.source)
    source.mkdir(parents=True)
    (source / "compose.yaml").write_text('services:\n  api:\n    volumes: ["${UPLOADS}:/data"]\n')
    docker(
        """case $* in *--no-interpolate*) echo '{}'; exit 0 ;; esac
        echo 'time="1" level=warning msg="The \\"UPLOADS\\" variable is not set."' >&2
        echo 'invalid spec: :/data: empty section between colons' >&2; exit 1"""
    )
    with pytest.raises(Failed) as said:
        engine.Compose(replace(app, compose=("compose.yaml",))).project()
    assert "${UPLOADS} (compose.yaml, line 3) is not set" in str(said.value)
    assert str(said.value).endswith("(the compose files: invalid spec: :/data: empty section "
                                    "between colons)")  # fmt: skip


def mounted(source: str, **more: Any) -> dict[str, Any]:
    return {"type": "bind", "source": source, "target": "/data", **more}


@pytest.mark.parametrize(
    ("mount", "refused"),
    [
        (mounted("{source}/data"), True),
        (mounted("{source}"), True),
        (mounted("{source}/data", read_only=True), False),
        (mounted("/srv/data"), False),
        ({"type": "volume", "source": "data", "target": "/data"}, False),
        ({"type": "volume", "target": "/data"}, False),
        ({"type": "tmpfs", "target": "/data"}, False),
    ],
)
def test_nothing_is_written_into_a_source(
    docker: Any, app: Application, mount: dict[str, Any], refused: bool
) -> None:
    """The next release has another source."""
    # In other places several may write, or the data may be lost.
    app = replace(app, shared=tuple({mount.get("source", "")} & {"/srv/data"}), scratch=("api",))
    if mount == {"type": "volume", "source": "data", "target": "/data"}:
        app = replace(app, shared=("data",))
    if "source" in mount:
        mount = mount | {"source": mount["source"].format(source=app.source)}
    files = {"services": {"api": {"volumes": [mount]}}, "volumes": {"data": {"name": "api_data"}}}
    docker(f"echo '{json.dumps(files | {'name': 'api'})}'")
    if refused:
        with pytest.raises(Failed, match=r"^api: what it writes into /data would go with its"):
            engine.Compose(app).project()
    else:
        engine.Compose(app).project()


ABSENT = "case $* in *inspect*) echo 'Error: No such thing' >&2; echo '[]'; exit 1 ;; esac"


def test_networks_and_volumes_are_made_as_the_files_say(docker: Any, app: Application) -> None:
    project: dict[str, Any] = {
        "name": "api",
        "services": {},
        "networks": {
            "default": {"name": "api_default", "ipam": {}},
            "inner": {
                "name": "api_inner",
                "internal": True,
                "enable_ipv6": True,
                "driver_opts": {"com.docker.network.driver.mtu": "1400"},
            },
            "theirs": {"name": "theirs", "external": True},
        },
        "volumes": {
            "data": {"name": "api_data"},
            "shared": {
                "name": "api_shared",
                "driver": "local",
                "driver_opts": {"type": "nfs", "o": "addr=nas,rw"},
            },
            "theirs": {"name": "theirs", "external": True},
        },
    }
    asked = docker(ABSENT)
    engine.make_networks(app, project, "green")
    engine.make_volumes(app, project)
    made = [line for line in asked.read_text().splitlines() if " create " in line]
    label = "--label terrafirma.app=api"
    assert made == [
        f"network create {label} api-green",
        f"network create {label} --opt=com.docker.network.driver.mtu=1400 --internal --ipv6"
        " api-green-inner",
        f"volume create {label} api_data",
        f"volume create {label} --opt=type=nfs --opt=o=addr=nas,rw --driver=local api_shared",
    ]
    # Existing ones are left as they are.
    asked = docker("echo '[{}]'")
    asked.unlink()
    engine.make_networks(app, project, "green")
    engine.make_volumes(app, project)
    assert " create " not in asked.read_text()


# --- containers -----------------------------------------------------------------------------------


def test_the_containers_of_a_project(docker: Any) -> None:
    answer = [
        inspected("api-blue-api-1", Health={"Status": "healthy"}),
        # A container without a health check, and with few fields.
        inspected("api-blue-api-2", Status="exited", Health=None) | {"Config": {"Labels": {}}},
    ]
    answer[0]["Mounts"] = [{"Source": "/srv/a"}, {"Type": "tmpfs"}]
    asked = docker(f"case $1 in ps) echo one two ;; *) echo '{json.dumps(answer)}' ;; esac")
    first, second = containers("api-blue", "api")
    assert first == Container(
        id="id-api-blue-api-1", name="api-blue-api-1", service="api", release="0123456789ab",
        state="running", health="healthy", restarts=0, done=False,
        hosts="/var/lib/docker/api-blue-api-1/hosts", mounts=("/srv/a", ""),
    )  # fmt: skip
    assert (second.service, second.release, second.state, second.health) == ("", "", "exited", "")
    listed, inspect = asked.read_text().splitlines()
    # Stopped containers, too; only those of this project, without those of `run`, and without those
    # of a foreign project with the same name.
    assert "label=terrafirma.app" in listed.split()
    assert "--all" in listed.split()
    assert "label=com.docker.compose.project=api-blue" in listed.split()
    assert "label=com.docker.compose.oneoff=False" in listed.split()
    assert "label=com.docker.compose.service=api" in listed.split()
    assert inspect == "container inspect one two"


ONCE = {"RestartPolicy": {"Name": "no"}}


@pytest.mark.parametrize(
    ("host", "state", "done"),
    [
        (ONCE, {"Status": "exited", "ExitCode": 0}, True),
        ({"RestartPolicy": {"Name": ""}}, {"Status": "exited", "ExitCode": 0}, True),
        (ONCE, {"Status": "exited", "ExitCode": 1}, False),
        (ONCE, {"Status": "running", "ExitCode": 0}, False),
        # It was stopped by hand, and was meant to last.
        (
            {"RestartPolicy": {"Name": "unless-stopped"}},
            {"Status": "exited", "ExitCode": 0},
            False,
        ),
    ],
)
def test_a_service_that_may_end_is_done_after_a_success(
    host: dict[str, Any], state: dict[str, Any], done: bool
) -> None:
    answer = inspected("api-blue-seed-1", **state) | {"HostConfig": host}
    assert engine._container(answer).done is done


def test_a_port_without_one_of_the_host_is_none() -> None:
    """As in a routed network."""
    answer = inspected("api-blue-api-1")
    answer["NetworkSettings"] = {"Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": ""}]}}
    assert engine._container(answer).port == 0


def stamp(seconds: float) -> str:
    """The time so many seconds ago, as Docker writes it."""
    return f"{datetime.fromtimestamp(time.time() - seconds, UTC):%Y-%m-%dT%H:%M:%S}.123456789Z"


STATE = """\
case "$1 $2" in
"ps --all") test ! -e {up} || test -e {gone} || echo new ;;
"container inspect") echo '{answer}' ;;
"compose "*) case $* in *" up --detach "*) touch {up} ;; esac ;;
"rm --force") touch {gone} ;;
"logs "*) echo ModuleNotFoundError ;;
esac
"""


def test_a_stateful_service_that_was_never_up_is_made_anew_by_the_next_release(
    docker: Any, app: Application, tmp_path: Path
) -> None:
    """It has no data to keep, and its files may be repaired until then."""
    new = inspected("api-state-db-1", Status="restarting", ExitCode=3) | {"RestartCount": 5}
    new["Config"]["Labels"]["com.docker.compose.service"] = "db"
    up, gone = tmp_path / "up", tmp_path / "gone"
    asked = docker(STATE.format(up=up, gone=gone, answer=json.dumps([new | {"Id": "new"}])))
    files = {"name": "api", "services": {"api": {}, "db": {"build": "db"}}, "networks": {}}
    with pytest.raises(Failed) as failed:
        engine.start_state(engine.Compose(replace(app, stateful=("db",))), files)
    assert str(failed.value) == (
        "api-state-db-1 does not stay up (it ended, the last time with code 3, and was started 6 "
        "times); its log:\nModuleNotFoundError"
    )
    asked_for = asked.read_text().splitlines()
    assert gone.exists()
    assert "rm --force new" in asked_for
    # The image is the one in the current files.
    assert [line for line in asked_for if line.endswith(" build db")]


@pytest.mark.parametrize(
    ("began", "lasts"),
    [(1, False), (9, False), (12, True), (3600, True), (-3600, True)],
)
def test_a_start_in_the_future_was_before_a_correction_of_the_clock(
    began: float, lasts: bool
) -> None:
    assert engine._container(inspected("x", StartedAt=stamp(began))).lasts is lasts


@pytest.mark.parametrize("again", [False, True])
def test_a_restarted_container_has_to_prove_that_it_stays_up(
    again: bool, docker: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "STRETCH", 3)
    worker = inspected("api-blue-jobs-1", StartedAt=stamp(1)) | {"RestartCount": 5}
    later = inspected("api-blue-jobs-1", StartedAt=stamp(-3)) | {"RestartCount": 6}
    answer = json.dumps([later if again else worker])
    once = tmp_path / "once"
    docker(
        f"case $1 in ps) echo one; exit;; esac; test -e {once} && echo '{answer}' ||"
        f" echo '{json.dumps([worker])}'; touch {once}"
    )
    (one,) = engine.stable_containers("api-blue")
    assert one.up is not again


def test_a_project_without_containers_is_not_inspected(docker: Any) -> None:
    asked = docker("true")
    assert containers("api-green") == []
    assert len(asked.read_text().splitlines()) == 1


GATEWAY = "10.210.0.1\thost.docker.internal"
GATEWAY_6 = "fd00::1\thost.docker.internal"


@pytest.mark.parametrize(
    ("hosts", "lost"),
    [
        ([GATEWAY], False),
        ([GATEWAY_6, GATEWAY], False),
        (["10.210.0.1 host.docker.internal another"], False),
        # An address of docker0 before the last boot, and a longer name that only contains ours.
        (["172.17.0.1\thost.docker.internal"], True),
        ([GATEWAY_6, "172.17.0.1\thost.docker.internal"], True),
        (["10.210.0.11\thost.docker.internal"], True),
        (["0.210.0.1\thost.docker.internal"], True),
        # A container without that name, and one without the file.
        (["172.17.0.5\t0b7ca25ec7af"], False),
        ([GATEWAY_6], False),
        ([], False),
        (None, False),
    ],
)
def test_a_container_with_an_old_address_of_the_host_is_found(
    program: Program, roots: Path, monkeypatch: pytest.MonkeyPatch,
    hosts: list[str] | None, lost: bool,
) -> None:  # fmt: skip
    """It keeps the address that docker0 had at its start."""
    file = roots / "hosts"
    if hosts is not None:
        lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost", *hosts, ""]
        file.write_text("\n".join(lines))
    directory = program(
        "ip",
        """test "$*" = '-brief address' || exit 1
        echo 'lo               UNKNOWN        127.0.0.1/8 ::1/128'
        echo 'docker0          UP             10.210.0.1/24 fe80::42:1/64'""",
    )
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    answer = inspected("api") | {"HostsPath": str(file)}
    assert lost_host(engine._container(answer)) is lost


@pytest.mark.parametrize(
    ("since", "all_of_it", "words"),
    [
        ("echo now", "echo before; echo now", "now"),
        # It restarted a moment ago.
        (":", "echo no config", "no config"),
        (":", ":", "(none)"),
    ],
)
def test_the_last_words_of_a_container_that_has_just_begun_again_are_those_of_before(
    docker: Any, since: str, all_of_it: str, words: str
) -> None:
    docker(f'case "$*" in *--since*) {since} ;; *) {all_of_it} ;; esac')
    one = Container(
        id="1a2b", name="api-blue-api-1", service="api", release="0123456789ab",
        state="restarting", health="", restarts=3, done=False, hosts="", mounts=(), started=1e9,
    )  # fmt: skip
    assert engine.logs(one) == words

"""Compose projects: files, variables, what is refused; a script stands in for Docker."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import layer_variables, shell
from terrafirma_host.compose import Compose
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application


def test_two_descriptions_are_asked_about_at_once(app: Application, roots: Path) -> None:
    """Each has a file of its own, so a dry run does not change the file of a release under way."""
    first, second = (Compose(one).files() for one in (app, replace(app, network="jobs")))
    assert first != second
    assert Compose(app).files() == first
    (path,) = first
    assert Path(path).parent == roots / "run"
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert app.network in Path(path).read_text()


def test_services_with_profiles_are_known(docker: Any, app: Application) -> None:
    asked = docker("""echo '{"services": {"api": {}}}'""")
    Compose(app).project()
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
    assert Compose(replace(app, env=env)).environment() == own | {
        name: env[name] for name in ("PORT", "DOCKER_RESTART_POLICY", "LD_HOST_PORT")
    }
    # Secrets also have names of ours, so that a container gets each of them.
    file = app.secrets["database_url"]
    secrets = {"docker_host": file, "google_key": file}
    told = replace(app, secrets_env=True, secrets=secrets)
    value = "postgresql://s3cret"
    assert Compose(told).environment() == own | {
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
        compose = Compose(replace(app, env=env, secrets_env=as_variables))
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
    compose = Compose(app)
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
    assert layer_variables.variables(app) == Path(layer_variables.variables_file(app)).read_text()
    for path in (*wanted, layer_variables.variables_file(app)):
        assert Path(path).stat().st_mode & 0o777 == 0o600
        assert "12345678" not in Path(path).read_text()
    file.write_text('{"A": "1"}')
    with pytest.raises(Failed, match=r"variables are missing in .*\.env_file; run deploy\.py"):
        Compose(app)


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
        Compose(replace(app, compose=("compose.yaml",))).project()
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
            Compose(app).project()
    else:
        Compose(app).project()

"""Files of variables, as applications and Compose read them."""

import json
import subprocess
import traceback
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api import DeployError
from terrafirma_host import layers
from terrafirma_host.shell import Failed

from terrafirma.app.check import check
from terrafirma.app.description import description
from terrafirma.app.env_files import given, refuse_env_files, variables
from terrafirma.app.given import private
from terrafirma.app.hashes import look
from terrafirma.app.laptop import staged
from terrafirma.app.left_out import env_files
from terrafirma.app.selection import selection
from terrafirma.app.settings import Application
from tests.unit.settings import HOST, application, server

KEY = "-----BEGIN KEY-----\nMIIB=\n-----END KEY-----"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("# comment\n\n  A=1\nexport B = two \n", {"A": "1", "B": "two"}),
        ("\ufeffA=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("A=\nB=''\nC=\"\"", {"A": "", "B": "", "C": ""}),
        ("A=x # comment\nB=x#y\nC='x # y' # z\nD=", {"A": "x", "B": "x#y", "C": "x # y", "D": ""}),
        ("A=it's\nB=a b=c\nC=\"it's\"", {"A": "it's", "B": "a b=c", "C": "it's"}),
        (f'KEY="{KEY}"\nB=2', {"KEY": KEY, "B": "2"}),
        (f"KEY='{KEY}'\nB=2", {"KEY": KEY, "B": "2"}),
        (
            r'A="one\ntwo\t\"three\""' + "\nB='one\\ntwo'",
            {"A": 'one\ntwo\t"three"', "B": r"one\ntwo"},
        ),
        ("A=1\nA=2", {"A": "2"}),
        ("discovery.type=single\nx-y=1", {"discovery.type": "single", "x-y": "1"}),
        ('J={"a": "b", "c": [1]}', {"J": '{"a": "b", "c": [1]}'}),
        # Variables above are filled in …
        ('A=1\nB=$A-${A}\nC="<${A}>"', {"A": "1", "B": "1-1", "C": "<1>"}),
        ("B=${A:-x}${A-y}${A:+z}", {"B": "xy"}),
        ("A=1\nB=${A:-x}${A+z}${A:?no}", {"A": "1", "B": "1z1"}),
        ("A=\nB=${A:-x}${A-y}", {"A": "", "B": "x"}),
        ("H=before\nB=$H", {"H": "before", "B": "before"}),
        ("B=${BEFORE}", {"B": "set before"}),
        # … and nothing else is.
        ("A=1\nB='$A ${A}'", {"A": "1", "B": "$A ${A}"}),
        ('A=pa$word\nB="pa$word"', {"A": "pa$word", "B": "pa$word"}),
        ("A=$2b$12$abc.DEF/ghi", {"A": "$2b$12$abc.DEF/ghi"}),
        ('W=1\nA=pa\\$W\nB="pa\\$W"', {"W": "1", "A": "pa$W", "B": "pa$W"}),
        ("A=a$\nB=$$\nC=${x.y}", {"A": "a$", "B": "$$", "C": "${x.y}"}),
    ],
)
def test_variables_are_those_that_the_file_sets(text: str, found: dict[str, str]) -> None:
    assert variables(text.removeprefix("\ufeff"), {"BEFORE": "set before"}) == found


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("A=1\nTOKEN='s3cret", "line 2: is not NAME=value; a value of several lines needs quotes"),
        (f"A=1\n\n# x\nTOKEN=s3cret\n{KEY.replace('MIIB', 's3cret')}", "line 5: is not NAME=value"),
        ("s3cret", "line 1: has no value; NAME= is an empty one"),
        ("\n\ns3cret/s3cret==\n", "line 3: has no name of a variable: letters, digits and `_`"),
        ("2ND=s3cret", "line 1: has no name of a variable"),
        ("A=s3cret\0", "line 1: A has a NUL or more than 65536 characters"),
        (f"A={'s3cret' * 20_000}", "line 1: A has a NUL or more than 65536 characters"),
        ("B=1\nA=s3cret${C}", "line 2: ${C} is not set above; put the value in single quotes if"),
        ("B=\nA=s3cret${B:?s3cret}", "line 2: ${B} is not set above"),
    ],
)
def test_a_line_that_is_no_variable_is_named_unseen(
    tmp_path: Path, text: str, refusal: str
) -> None:
    file = tmp_path / ".env.production"
    file.write_text(text)
    with pytest.raises(Failed) as error:
        given(application(env_file=[str(file)]))
    assert str(error.value).startswith(f"env_file: {file}, {refusal}")
    assert "\n" not in str(error.value)
    assert "s3cret" not in "".join(traceback.format_exception(error.value))


def test_later_files_win(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"\xef\xbb\xbfA=1\r\nB=1\r\n")
    (tmp_path / "two").write_text("B=2$A\n")
    app = application(env_file=[str(tmp_path / "one"), str(tmp_path / "two")])
    assert given(app) == {"A": "1", "B": "21"}


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        (None, "env_file: cannot read '{}' (No such file or directory)"),
        (b"A=\xff\n", "env_file: {} is not text (UTF-8)"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, refusal: str
) -> None:
    file = tmp_path / ".env"
    if content:
        file.write_bytes(content)
    with pytest.raises(Failed) as error:
        given(application(env_file=[str(file)]))
    assert str(error.value) == refusal.format(file)


@pytest.mark.parametrize(
    ("name", "example"),
    [
        (".env", ".env.example"),
        (".env", "env.example"),
        (".env.production", ".env.production.sample"),
        (".env.production", ".env.example"),
    ],
)
def test_the_example_of_a_file_that_is_missing_is_named(
    tmp_path: Path, name: str, example: str
) -> None:
    (tmp_path / example).write_text("A=\n")
    with pytest.raises(Failed) as error:
        given(application(env_file=[str(tmp_path / name)]))
    assert str(error.value).endswith(
        f"/{name}' (No such file or directory): copy {example} beside it to that name, and fill it "
        "in"
    )


# --- an application with such files ---------------------------------------------------------------

COMPOSE = """\
x-files: &files
  env_file: [web.env, {path: .env, required: true}, .env.production]
services:
  web: {build: ., <<: *files, environment: {MODE: of compose, PORT: , TAG: "${TAG:?}"}}
  worker: {image: "busybox:1", env_file: ["web.env", {path: .env.local, required: false}]}
  db: {image: "redis:${TAG}", env_file: ./.env, volumes: ["data:/data"]}
volumes: {data: }
"""
VARIABLES = """\
MODE=of the file
TAG=7
PORT=8000
COLOUR=of the file
TOKEN='s3cret-$TAG ${x}'
DATABASE_URL=postgres://localhost
KEY="one
two"
"""


def project(directory: Path, **fields: Any) -> Application:
    source = directory / "source"
    source.mkdir()
    for name, text in {
        "compose.yaml": COMPOSE,
        "Dockerfile": "FROM scratch\n",
        ".dockerignore": "!.env\n!.env.production\n",
        ".env": "TOKEN=of a developer\n",
        ".env.production": VARIABLES,
        "web.env": "COLOUR=of the source\nSIZE=of the source\n",
    }.items():
        (source / name).write_text(text)
    data: dict[str, Any] = {
        "source": str(source), "compose": ["compose.yaml"], "service": "web", "stateful": ["db"],
        "user": "", "env": {"DATABASE_URL": "{database.url}"},
        "env_file": [f"{directory}/source/../source/.env.production"],
    }  # fmt: skip
    return application(**data | fields)


def test_a_file_of_variables_stays_on_this_machine(tmp_path: Path) -> None:
    app = project(tmp_path)
    names = look(app.source_directory, selection(app)).uploaded
    assert names >= {"web.env", "Dockerfile", ".env"}
    assert ".env.production" not in names
    # Nor does a deploy key send it.
    assert selection(app).as_json()["secret"] == [".env.production"]
    # Without the setting, it is a file like any other.
    assert "secret" not in selection(application()).as_json()


def test_a_description_has_the_names_of_variables_and_no_value(tmp_path: Path) -> None:
    app = project(tmp_path)
    text = description(app, server().users)
    told = json.loads(text)
    assert told["variables"] == [
        "COLOUR", "DATABASE_URL", "KEY", "MODE", "PORT", "TAG", "TOKEN",
    ]  # fmt: skip
    assert told["env_file"] == "/etc/terrafirma/secrets/app/api/.env_file"
    assert "s3cret" not in text
    given_to_host = private(HOST, app)
    assert json.loads(given_to_host[".env_file"])["TOKEN"] == "s3cret-$TAG ${x}"
    assert "s3cret" not in repr(given_to_host)


def test_services_get_the_variables_where_compose_would(tmp_path: Path) -> None:
    app = project(tmp_path)
    # The developer's file that is there is uploaded here, because .dockerignore says so.
    assert env_files(app) == {
        "web": ["web.env", {"path": ".env", "required": True}],
        "worker": ["web.env"],
    }
    with staged(app, description(app, server().users)) as compose:
        read = compose.project()
        text = layers.slot_layer(
            compose.app, read, slot="blue", release="0123456789ab", replicas=1,
            images={"web": "web", "worker": "worker"}, owner="",
        )  # fmt: skip
        compose.layer("blue", text)
        files = [path for path in Path(compose.app.root).rglob("*") if path.is_file()]
        holding = [path for path in files if "s3cret" in path.read_text()]
        assert [path.name for path in holding] == [".env_file"]
        assert holding[0].stat().st_mode & 0o777 == 0o600
        layered = [*compose.command("api", str(compose.work / "blue.yaml")), "config"]
        made = json.loads(
            subprocess.run(
                [*layered, "--format", "json"], env=compose.environment(), capture_output=True,
                text=True, check=True,
            ).stdout.replace("$$", "$")
        )["services"]  # fmt: skip
        url = compose.secrets["database_url"].strip()
    assert read["services"]["db"]["image"] == "redis:7"
    own = {
        "TOKEN": "s3cret-$TAG ${x}",
        "KEY": "one\ntwo",
        "TAG": "7",
        "PORT": "8000",
        "DATABASE_URL": url,
        "COLOUR": "of the file",
        "SIZE": "of the source",
        "TERRAFIRMA_RELEASE": "0123456789ab",
    }
    assert made["web"]["environment"] == own | {"MODE": "of compose"}
    assert made["worker"]["environment"] == own | {"MODE": "of the file"}


def test_a_check_says_where_variables_come_from(tmp_path: Path) -> None:
    app = project(tmp_path)
    fields = ("source", "compose", "service", "stateful", "user", "env_file", "env", "database")
    report = check({name: getattr(app, name) for name in fields})
    assert report.refusals == []
    assert any("TOKEN" in line and "a secret, from" in line for line in report.lines)
    assert any("DATABASE_URL" in line and "a secret" in line for line in report.lines)
    assert "s3cret" not in str(report)
    Path(app.env_file[0]).write_text("TOKEN s3cret")
    (refusal,) = check({name: getattr(app, name) for name in fields}).refusals
    assert refusal.startswith("apps.source.env_file: ")
    assert "line 1: is not NAME=value" in refusal
    with pytest.raises(DeployError, match=r"apps\.api\.env_file: .*line 1: ") as error:
        refuse_env_files(HOST, app)
    assert "s3cret" not in str(error.value)

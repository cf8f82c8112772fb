"""Secrets from environment variables and from commands, which this machine's shell runs."""

import subprocess
import time
from pathlib import Path

import pytest
from pyinfra.api import DeployError

from terrafirma.app.given import private, secrets
from terrafirma.host import given
from tests.conftest import Pyinfra
from tests.unit.settings import HOST, application


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "_answers", {})


def read(source: str) -> str:
    return secrets(HOST, application(secrets={"token": source}))["token"]


def refusal(source: str) -> str:
    with pytest.raises(DeployError) as error:
        read(source)
    message = str(error.value)
    assert message.startswith("db1: apps.api.secrets: token: ")
    assert "\n" not in message
    assert "s3cret" not in message
    return message.removeprefix("db1: apps.api.secrets: token: ")


def test_a_variable_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_TOKEN", 'it\'s "s3cret" $HOME `x` ünïcode\n')
    assert read("env:TF_TOKEN") == 'it\'s "s3cret" $HOME `x` ünïcode'


def test_the_output_of_a_command() -> None:
    assert read("command:printf 'a%sb' s3cret") == "as3cretb"
    assert read("command:echo s3cret") == "s3cret"
    assert read("command:echo s3cret | tr s S; exit 0") == "S3cret"
    assert read("command:echo oh dear >&2; echo s3cret") == "s3cret"


def test_several_lines_end_with_a_line_break() -> None:
    """OpenSSH rejects a key without a final line break."""
    assert read("command:printf 'a\\nb\\n'") == "a\nb\n"
    assert read("command:printf 'a\\nb'") == "a\nb\n"


def test_generated_secrets_are_not_given() -> None:
    assert secrets(HOST, application(secrets={"a": "generated", "b": "command:echo x"})) == {
        "b": "x"
    }


def test_a_command_runs_once(tmp_path: Path) -> None:
    count = tmp_path / "count"
    source = f"command:echo x >> {count}; wc -l < {count}"
    one = application(secrets={"a": source, "b": source})
    for _ in range(3):
        assert set(secrets(HOST, one).values()) == {"1"}
    failing = f"command:echo x >> {count}; exit 3"
    for _ in range(2):
        assert "ended with 3" in refusal(failing)
    assert count.read_text() == "x\nx\n"


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        (None, "TF_TOKEN is not set; set it in the environment of pyinfra"),
        ("", "TF_TOKEN is empty"),
        ("\n", "TF_TOKEN is empty"),
        (" ", "TF_TOKEN is empty"),
        ("s3cret" * 11_000, "TF_TOKEN has 66000 bytes; 65536 is the most"),
        ("s3cret\udcff", "TF_TOKEN is not text (UTF-8)"),
    ],
)
def test_a_variable_without_a_usable_secret(
    monkeypatch: pytest.MonkeyPatch, value: str | None, wrong: str
) -> None:
    monkeypatch.delenv("TF_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("TF_TOKEN", value)
    assert refusal("env:TF_TOKEN").startswith(wrong)


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("echo s3cret; exit 7", "its command ended with 7; try it by hand"),
        (
            "echo s3cret; echo first >&2; printf 'not signed \\033in\\r\\n\\n' >&2; exit 1",
            "its command ended with 1 (not signed in)",
        ),
        ("no-such-command-here", "its command ended with 127 ("),
        ("kill -9 $$", "its command ended with -9; "),
        ("true", "its command printed nothing; try it by hand"),
        ("echo", "its command printed nothing; try it by hand"),
        ("echo no such file >&2", "its command printed nothing (no such file); "),
        ("cat", "its command printed nothing; "),
        ("printf 's3cret\\0x'", "what its command prints has a NUL character in it; "),
        ("printf 's3cret\\377'", "what its command prints is not text (UTF-8); "),
        ("head -c 65537 /dev/zero | tr '\\0' x", "what its command prints has 65537 bytes; "),
        (f"echo {'x' * 300} >&2; false", f"its command ended with 1 ({'x' * 200})"),
    ],
)
def test_a_command_without_a_usable_secret(command: str, wrong: str) -> None:
    assert refusal(f"command:{command}").startswith(wrong)


def test_a_value_of_the_largest_size() -> None:
    assert len(read("command:head -c 65536 /dev/zero | tr '\\0' x")) == 65536


def test_a_command_that_prompts_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(given, "SECONDS", 1)
    assert refusal("command:sleep 61.7 & sleep 61.7").startswith("its command took longer than 1 s")
    for _ in range(50):
        left = subprocess.run(["pgrep", "-f", "^sleep 61.7"], capture_output=True, check=False)
        if not left.stdout:
            break
        time.sleep(0.1)
    assert left.stdout == b""
    # Not even one that asks through the terminal.
    assert "ended with" in refusal("command:read answer < /dev/tty")


def test_a_password_for_a_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_TOKEN", "s3cret")
    login = {"user": "ci", "password": "env:TF_TOKEN"}
    one = application(
        source="", image="registry.test/api:1", registries={"registry.test": login, "a:5000": login}
    )
    assert private(HOST, one) == {".registry_registry.test": "s3cret", ".registry_a_5000": "s3cret"}
    assert private(HOST, application()) == {}
    monkeypatch.delenv("TF_TOKEN")
    words = r"^db1: apps\.api\.registries\.registry\.test\.password: TF_TOKEN is not set"
    with pytest.raises(DeployError, match=words):
        private(HOST, one)


def test_a_value_hides_itself_in_its_repr() -> None:
    values = secrets(HOST, application(secrets={"token": "command:echo s3cret"}))
    assert "s3cret" not in repr(values)
    assert f"{values['token']}" == "s3cret"


DEPLOY = """
from pyinfra import host
from pyinfra.operations import server

from terrafirma.app.given import secrets
from terrafirma.site import site

(app,) = site(host.inventory)[host.name].apps
values = secrets(host, app)
server.shell(name="Say how much it is", commands=[f"echo {len(values['token'])}"])
"""


def test_a_command_runs_once_in_a_run_of_many_hosts(pyinfra: Pyinfra, tmp_path: Path) -> None:
    (tmp_path / "deploy.py").write_text(DEPLOY)
    count = tmp_path / "count"
    source = f"command:echo x >> {count}; sleep 1; echo s3cret"
    result = pyinfra.call(
        "@fake/a,@fake/b,@fake/c", str(tmp_path / "deploy.py"), "-y", "-vvv", "--debug",
        "--data", f'apps.api.secrets={{"token": "{source}"}}',
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert count.read_text() == "x\n"
    assert "echo 6" in result.stderr
    assert "s3cret" not in result.stderr.replace(source, "")

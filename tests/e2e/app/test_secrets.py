"""Secrets of applications: where they are stored, who reads them, and where they never appear."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.support import Target, api, changed, options, target

pytestmark = pytest.mark.e2e

DEPLOY = "tests/e2e/deploy_secrets.py"
DIRECTORY = "/etc/terrafirma/secrets/app/api"
PROGRAM = "/usr/local/bin/terrafirma secrets"
PEM = "-----BEGIN X-----\nodd-l1ne-of-a-key ' \" $HOME `id` \\n ünïcode\n-----END X-----\n"
VALUES = {
    "STRIPE": "sk_live_odd-value-of-stripe",
    "PEM": PEM,
    "REGISTRY": "odd-password-of-the-registry",
    "VAULT": "odd-value-of-the-vault",
}
NAMES = [".registry_registry.example.com", "certificate", "mail_key", "session_key", "stripe_key"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # Stands for a password manager: a command whose output is the value.
    vault = tmp_path_factory.mktemp("vault") / "value"
    vault.write_text(f"{VALUES['VAULT']}\n")
    return api(
        secrets={
            "session_key": "generated",
            "stripe_key": "env:STRIPE",
            "certificate": "env:PEM",
            "mail_key": f"command:cat {vault}",
        },
        source="",
        image="registry.example.com/api:1",
        registries={"registry.example.com": {"user": "ci", "password": "env:REGISTRY"}},
    )


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra, data: dict[str, Any]) -> Iterator[Target]:
    with target(pyinfra, "tf-test-secrets", 2421) as one:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in VALUES.items():
                patch.setenv(name, value)
            bare = one.digest()
            assert one.plan(DEPLOY, **data) == ["Prepare the host", "Give api its secrets"]
            assert one.digest() == bare
        one.deploy("tasks/users.py")
        yield one


def read(server: Target, name: str) -> str:
    return server.run(f"cat {DIRECTORY}/{name}; echo .").removesuffix(".")


@contextmanager
def watched(server: Target) -> Iterator[list[str]]:
    """Collect the command lines and environments of all processes of the server meanwhile."""
    watch = subprocess.Popen(
        ["docker", "exec", server.name, "sh", "-c",
         "rm -f /root/stop; until test -e /root/stop; do cat /proc/[0-9]*/cmdline"
         " /proc/[0-9]*/environ 2> /dev/null | tr '\\0' '\\n' >> /root/seen; done"]
    )  # fmt: skip
    seen: list[str] = []
    try:
        yield seen
    finally:
        server.run("touch /root/stop")
        watch.wait(30)
        seen.append(server.run("cat /root/seen; rm /root/seen /root/stop"))


@pytest.mark.promise(
    "Secrets of applications, from any source, appear in no output, process list or readable file"
)
def test_secrets_are_in_their_files_and_nowhere_else(server: Target, data: dict[str, Any]) -> None:
    """With the most verbose output, and a look at all processes."""
    said = ""
    with watched(server) as seen:
        for how in ("--dry", "-y", "-y", "--dry"):
            result = server.pyinfra.imported.call(
                how, "-vvv", "--diff", "--debug", *options(data), *server.arguments(), DEPLOY
            )
            assert result.returncode == 0, result.stderr
            said += result.stdout + result.stderr
    assert "AppSecrets" in said
    assert f"{PROGRAM} set".replace(" ", "\n") in seen[0]
    generated = read(server, "session_key")
    assert len(generated) == 43
    logs = server.run("journalctl --no-pager -o cat | cat")
    encoded = server.run(
        f"for f in {DIRECTORY}/* {DIRECTORY}/.[a-z]*; do base64 -w 0 $f; echo; done"
    )
    odd = [line for value in VALUES.values() for line in value.splitlines() if "odd" in line]
    for secret in [generated, *odd, *encoded.split()]:
        assert len(secret) >= 16
        for text in (said, *seen, logs):
            assert secret not in text
        readable = server.run(
            'grep -rlF -- "$(cat)" /etc /opt /var/lib /var/log /tmp /home /run /usr/local'
            " 2> /dev/null || true",
            stdin=secret,
        )
        assert set(readable.split()) <= {f"{DIRECTORY}/{name}" for name in NAMES}


def test_the_files_have_their_values_and_rights(server: Target, data: dict[str, Any]) -> None:
    server.deploy(DEPLOY, **data)
    assert read(server, "stripe_key") == VALUES["STRIPE"]
    assert read(server, "certificate") == PEM
    assert read(server, "mail_key") == VALUES["VAULT"]
    assert read(server, ".registry_registry.example.com") == VALUES["REGISTRY"]
    listed = server.run(f"cd {DIRECTORY} && stat -c '%a %U %G %n' * .[a-z]*").splitlines()
    assert sorted(listed) == [
        "400 prod prod certificate",
        "400 prod prod mail_key",
        "400 prod prod session_key",
        "400 prod prod stripe_key",
        "400 root root .registry_registry.example.com",
    ]
    for path in (DIRECTORY, DIRECTORY.rpartition("/")[0], "/etc/terrafirma/secrets"):
        assert server.run(f"stat -c '%a %U' {path}") == "700 root"
    # The account cannot read the file by this path; only a container, which mounts it, can.
    assert server.call(f"runuser -u prod -- cat {DIRECTORY}/stripe_key").returncode != 0


def test_a_second_run_changes_nothing(server: Target, data: dict[str, Any]) -> None:
    server.deploy(DEPLOY, **data)
    before = server.digest()
    assert changed(server.deploy(DEPLOY, **data)) == []
    assert server.plan(DEPLOY, **data) == []
    assert server.digest() == before


@pytest.mark.promise(
    "A changed secret is planned and written; a secret that your settings do not mention stays; "
    "a source that fails changes nothing"
)
def test_another_value_is_planned_and_written(
    server: Target, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.deploy(DEPLOY, **data)
    generated = read(server, "session_key")
    monkeypatch.setenv("STRIPE", "sk_live_odd-value-number-two")
    assert server.plan(DEPLOY, **data) == ["Give api its secrets"]
    assert changed(server.deploy(DEPLOY, **data)) == ["Give api its secrets"]
    assert read(server, "stripe_key") == "sk_live_odd-value-number-two"
    assert read(server, "session_key") == generated
    assert server.plan(DEPLOY, **data) == []


def test_changes_by_hand_are_repaired(server: Target, data: dict[str, Any]) -> None:
    server.deploy(DEPLOY, **data)
    generated = read(server, "session_key")
    for command in (
        f"chmod 444 {DIRECTORY}/session_key",
        f"chown root: {DIRECTORY}/session_key",
        f"echo other > {DIRECTORY}/mail_key",
        f"rm {DIRECTORY}/.registry_registry.example.com",
        f"chmod 755 {DIRECTORY}",
    ):
        server.run(command)
        assert changed(server.deploy(DEPLOY, **data)) == ["Give api its secrets"], command
        assert server.plan(DEPLOY, **data) == []
    assert read(server, "session_key") == generated


def test_a_secret_is_renewed_on_the_server(server: Target, data: dict[str, Any]) -> None:
    server.deploy(DEPLOY, **data)
    generated = read(server, "session_key")
    server.run(f"{PROGRAM} renew {DIRECTORY} session_key")
    renewed = read(server, "session_key")
    assert len(renewed) == 43
    assert renewed != generated
    assert changed(server.deploy(DEPLOY, **data)) == []
    assert read(server, "session_key") == renewed


@pytest.mark.promise(like=test_another_value_is_planned_and_written)
def test_a_secret_that_left_the_settings_is_reported_and_stays(
    server: Target, data: dict[str, Any]
) -> None:
    server.deploy(DEPLOY, **data)
    fewer = data | api(secrets={"stripe_key": "env:STRIPE"})
    result = server.pyinfra.imported.call("-y", *options(fewer), *server.arguments(), DEPLOY)
    assert result.returncode == 0
    assert changed(json.loads(result.stdout)) == []
    assert f"left alone: {DIRECTORY}/ certificate, mail_key, session_key" in result.stderr
    assert len(read(server, "session_key")) == 43


def test_without_an_account_every_id_in_a_container_reads_them(
    server: Target, data: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    project = data | api(
        image="", source=str(tmp_path), compose=["compose.yaml"], user="",
    )  # fmt: skip
    server.deploy(DEPLOY, **project)
    assert server.run(f"stat -c '%a %U' {DIRECTORY}/stripe_key") == "444 root"
    assert server.run(f"stat -c '%a %U' {DIRECTORY}/.registry_registry.example.com") == "400 root"
    assert server.call(f"runuser -u prod -- cat {DIRECTORY}/stripe_key").returncode != 0
    server.deploy(DEPLOY, **data)


def test_a_missing_account_fails_in_one_line(server: Target, data: dict[str, Any]) -> None:
    unmade = {"users_accounts": [{"name": "prod"}, {"name": "nobody-here"}]}
    result = server.pyinfra.imported.call(
        "-y", *options(data | unmade | api(user="nobody-here")), *server.arguments(), DEPLOY
    )
    assert result.returncode != 0
    words = r"\buser: there is no account 'nobody-here'; run tasks/users.py first"
    assert re.search(words, result.stderr)
    assert "Traceback" not in result.stderr
    server.deploy(DEPLOY, **data)


@pytest.mark.promise(like=test_another_value_is_planned_and_written)
def test_a_source_that_fails_changes_nothing(server: Target, data: dict[str, Any]) -> None:
    before = server.digest()
    source = "command:echo odd-output; echo not signed in >&2; exit 1"
    line = server.refuse(DEPLOY, **data | api(secrets={"token": source}))
    assert "127.0.0.1: apps.api.secrets: token: " in line
    assert "ended with 1 (not signed in)" in line
    assert "odd-output" not in line.replace(source, "")
    assert server.digest() == before

"""Deploy keys: what a deploy key allows over SSH, and what it does not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, Pyinfra
from tests.e2e.support import (
    STATE,
    Target,
    beside_api,
    bystander,
    changed,
    eventually,
    execute,
    open_ports,
    output,
    target,
)

pytestmark = pytest.mark.e2e

USERS = ("tasks/users.py", "tasks/sshd.py")
SHOP = {"source": "examples/api", "domain": "shop.test", "port": 9000}
REVISION = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

# Stands in for the program that releases: prints its caller, arguments and input.
STAND_IN = """#!/usr/bin/python3 -I
import hashlib, json, os, sys
asked = os.environ.get("SSH_ORIGINAL_COMMAND", "")
print(json.dumps({
    "arguments": sys.argv[1:],
    "asked": os.environ.get("SSH_ORIGINAL_COMMAND"),
    "uid": os.getuid(),
    "environment": dict(os.environ),
    "terminal": [number for number in (0, 1, 2) if os.isatty(number)],
    "stdin": hashlib.sha256(sys.stdin.buffer.read()).hexdigest() if "release" in asked else "",
}))
sys.exit(int(asked.partition("exit ")[2] or 0))
"""


def accounts(public: str) -> list[dict[str, Any]]:
    return [
        {"name": "prod"},
        {"name": "ci", "keys": [public], "releases": ["api"]},
        {"name": "both-ci", "keys": [public], "releases": ["api", "shop"]},
        {"name": "dev"},
    ]


@pytest.fixture(scope="module")
def data(new_key: str) -> dict[str, Any]:
    return {"users_accounts": accounts(f"{new_key}.pub"), **beside_api(shop=SHOP)}


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra, data: dict[str, Any]) -> Iterator[Target]:
    with target(pyinfra, "tf-test-deploy-key", 2422) as one:
        one.plan(*USERS, **data)
        one.deploy(*USERS, **data)
        one.run(
            "cat > /usr/local/bin/terrafirma && chmod 755 /usr/local/bin/terrafirma",
            stdin=STAND_IN,
        )
        yield one


@pytest.fixture(autouse=True)
def nothing_runs_but_the_program(server: Target) -> Iterator[None]:
    """Asserts that no client of the tests below could run a command of its own."""
    yield
    assert server.run("find /tmp /home /root /var/tmp -name 'canary*'") == ""


class Client:
    """ssh with the deploy key and nothing else."""

    def __init__(self, server: Target, key: str) -> None:
        self.server = server
        self.options = [
            "-F", "/dev/null", "-i", key, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
            "-o", f"UserKnownHostsFile={STATE / 'known_hosts'}",
        ]  # fmt: skip

    def call(
        self,
        *words: str,
        user: str = "ci",
        stdin: bytes = b"",
        options: Sequence[str] = (),
        seconds: int = 30,
    ) -> subprocess.CompletedProcess[bytes]:
        """ssh with this command and these options."""
        where = ["-p", str(self.server.port), f"{user}@127.0.0.1"]
        return subprocess.run(
            ["ssh", *self.options, *options, *where, *(["--"] if words else []), *words],
            input=stdin,
            capture_output=True,
            timeout=seconds,
            check=False,
        )

    def ask(self, *words: str, **how: Any) -> dict[str, Any]:
        """The answer of the stand-in: how it was called."""
        result = self.call(*words, **how)
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer


@pytest.fixture
def client(server: Target, new_key: str) -> Client:
    return Client(server, new_key)


# --- what a deploy key allows ---------------------------------------------------------------------


@pytest.mark.promise(
    "A deploy key releases its application and does nothing else: no shell, terminal, "
    "forwarding, file transfer or environment variable"
)
def test_it_releases_as_root(client: Client) -> None:
    answer = client.ask("release", "api", "--revision", REVISION)
    assert answer["arguments"] == ["forced", "api"]
    assert answer["asked"] == f"release api --revision {REVISION}"
    assert answer["uid"] == 0
    assert answer["terminal"] == []


def test_a_source_reaches_the_program_byte_for_byte(client: Client) -> None:
    source = os.urandom(8_000_000)
    answer = client.ask("release", stdin=source)
    assert answer["stdin"] == hashlib.sha256(source).hexdigest()


def test_its_exit_code_is_the_clients(client: Client) -> None:
    assert client.call("exit 7").returncode == 7


def test_a_key_of_several_applications(client: Client) -> None:
    answer = client.ask("release shop", user="both-ci")
    assert answer["arguments"] == ["forced", "api", "shop"]
    assert answer["asked"] == "release shop"


# --- what it does not allow -----------------------------------------------------------------------


def as_ever(answer: dict[str, Any], asked: str | None) -> None:
    """Only the program ran, and it got the client's command as one string."""
    assert answer["arguments"] == ["forced", "api"]
    assert answer["asked"] == asked
    assert answer["terminal"] == []


@pytest.mark.promise(like=test_it_releases_as_root)
@pytest.mark.parametrize(
    "command",
    [
        "sh",
        "bash -i",
        "touch /tmp/canary",
        "release; touch /tmp/canary",
        "release && touch /tmp/canary",
        "release || touch /tmp/canary",
        "release | touch /tmp/canary",
        "release\ntouch /tmp/canary",
        "release $(touch /tmp/canary)",
        "release `touch /tmp/canary`",
        "release > /tmp/canary",
        "release 2>/tmp/canary",
        "release <(touch /tmp/canary)",
        "'; touch /tmp/canary; '",
        '"; touch /tmp/canary; "',
        '" touch /tmp/canary "',
        "-c touch /tmp/canary",
        "sudo -n touch /tmp/canary",
        "/usr/local/bin/terrafirma release api --source /root",
        "scp -t /tmp/canary",
        "scp -f /etc/passwd",
        "/usr/lib/openssh/sftp-server",
        "internal-sftp",
        "rsync --server . /tmp/canary",
        "git-upload-pack /",
        "x" * 100_000,
        "release \\\n; touch /tmp/canary",
        "%s%n {x} ${HOME} ~ * ? [a-z] !! \\",
    ],
)
def test_no_command_runs_but_the_program(client: Client, command: str) -> None:
    as_ever(client.ask(command), command)


@pytest.mark.promise(like=test_it_releases_as_root)
def test_there_is_no_shell(client: Client) -> None:
    for user in ("ci", "both-ci"):
        result = client.call(user=user, stdin=b"touch /tmp/canary\nid\n")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["asked"] is None
    as_ever(client.ask(stdin=b"touch /tmp/canary\n"), None)


@pytest.mark.promise(like=test_it_releases_as_root)
def test_there_is_no_terminal(client: Client) -> None:
    result = client.call("bash", options=["-tt"], stdin=b"touch /tmp/canary\n")
    assert b"PTY allocation request failed" in result.stderr
    assert result.stdout == b""


@pytest.mark.promise(like=test_it_releases_as_root)
def test_no_file_goes_in_or_out(client: Client, server: Target, tmp_path: Path) -> None:
    canary, got = tmp_path / "canary", tmp_path / "got"
    canary.write_text("x")
    where = [*client.options, "-P", str(server.port)]
    remote = "ci@127.0.0.1:"
    for command in (
        ["scp", *where, str(canary), f"{remote}/tmp/canary"],
        ["scp", "-O", *where, str(canary), f"{remote}/tmp/canary"],
        ["scp", *where, f"{remote}/etc/passwd", str(got)],
        ["scp", "-O", *where, f"{remote}/etc/passwd", str(got)],
        ["sftp", *where, f"{remote}/etc/passwd", str(got)],
        ["sftp", "-s", "/usr/lib/openssh/sftp-server", *where, f"{remote}/etc/passwd", str(got)],
    ):
        result = execute(*command, stdin="", timeout=60)
        assert result.returncode != 0, command
        assert not got.exists(), command
    # The account itself could not write there either.
    assert server.call("runuser -u ci -- touch /usr/local/bin/canary").returncode != 0


@pytest.mark.promise(like=test_it_releases_as_root)
def test_nothing_is_forwarded(client: Client, server: Target, tmp_path: Path) -> None:
    forward = execute(
        "ssh", *client.options, "-p", str(server.port), "-W", "127.0.0.1:22", "ci@127.0.0.1",
        stdin="", timeout=30,
    )  # fmt: skip
    assert forward.returncode != 0
    assert "administratively prohibited" in forward.stderr
    assert "SSH-2.0" not in forward.stdout
    for option in (
        "127.0.0.1:0:127.0.0.1:22",
        "127.0.0.1:8099:127.0.0.1:22",
        "/tmp/canary:localhost:22",
    ):
        result = execute(
            "ssh", *client.options, "-p", str(server.port), "-o", "ExitOnForwardFailure=yes",
            "-N", "-R", option, "ci@127.0.0.1", stdin="", timeout=30,
        )  # fmt: skip
        assert result.returncode != 0, option
        assert "remote port forwarding failed" in result.stderr, option
    # A socket on the client's side that leads to nowhere.
    socket = tmp_path / "socket"
    with subprocess.Popen(
        ["ssh", *client.options, "-p", str(server.port), "-N", "-L", f"{socket}:127.0.0.1:22",
         "ci@127.0.0.1"], stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            program = (
                "import socket, sys, time\n"
                "for _ in range(100):\n"
                "    try:\n"
                "        s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); break\n"
                "    except OSError: time.sleep(0.1)\n"
                "print(s.recv(99))"
            )
            assert output("python3", "-c", program, str(socket)) == "b''"
        finally:
            process.terminate()
        assert process.stderr is not None
        assert "administratively prohibited" in process.stderr.read()


def test_no_agent_and_no_display_come_along(client: Client, server: Target) -> None:
    result = execute(
        "ssh-agent", "ssh", *client.options, "-A", "-p", str(server.port), "ci@127.0.0.1", "x",
        stdin="",
    )  # fmt: skip
    answer = json.loads(result.stdout)
    as_ever(answer, "x")
    assert not {"SSH_AUTH_SOCK", "DISPLAY"} & set(answer["environment"])


@pytest.mark.promise(like=test_it_releases_as_root)
def test_the_environment_is_not_the_clients(client: Client) -> None:
    names = [
        *("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP", "BASH_ENV", "ENV"),
        *("SSH_ORIGINAL_COMMAND", "TERRAFIRMA_X", "PATH", "IFS", "SUDO_USER", "LC_ODD", "LANG"),
    ]
    # Send everything: the server decides what it accepts.
    options = [f"-oSetEnv={' '.join(f'{name}=/tmp/canary' for name in names)}"]
    for more in ([], ["-oSendEnv=*"]):
        answer = client.ask("release api", options=[*options, *more])
        as_ever(answer, "release api")
        assert answer["environment"]["SUDO_USER"] == "ci"
        odd = {name for name, value in answer["environment"].items() if "canary" in value}
        assert odd == set()


def test_files_of_the_account_are_not_run(client: Client, server: Target) -> None:
    """For example files from the time when the account still had a shell."""
    files = ".profile .bashrc .bash_profile .bash_login .kshrc .shrc .pam_environment .ssh/rc"
    server.run(
        f"cd /home/ci && for file in {files}; do echo 'touch /tmp/canary-ran' > $file; done;"
        "echo 'LD_PRELOAD=/tmp/canary' > .ssh/environment;"
        "echo 'ENV=/home/ci/.shrc' >> .ssh/environment; chown -R ci: ."
    )
    as_ever(client.ask("release api"), "release api")
    client.ask()
    server.run(f"cd /home/ci && rm {files} .ssh/environment")


@pytest.mark.parametrize(
    "command",
    [
        "sudo -n touch /tmp/canary",
        "sudo -n /usr/local/bin/terrafirma",
        "sudo -n /usr/local/bin/terrafirma release api",
        "sudo -n /usr/local/bin/terrafirma forced",
        "sudo -n /usr/local/bin/terrafirma forced shop",
        "sudo -n /usr/local/bin/terrafirma forced api shop",
        "sudo -n -u prod /usr/local/bin/terrafirma forced api",
        "sudo -n -E /usr/local/bin/terrafirma forced api",
        "sudo -n LD_PRELOAD=/tmp/canary /usr/local/bin/terrafirma forced api",
        "sudo -n -s",
        "sudo -n -i",
        "sudo -n -e /etc/passwd",
        "sudo -n --chdir=/tmp /usr/local/bin/terrafirma forced api",
        "sudo -n --chroot=/tmp /usr/local/bin/terrafirma forced api",
    ],
)
def test_the_account_itself_may_do_no_more(server: Target, command: str) -> None:
    """Breaking out of the forced command would gain nothing."""
    result = server.call(f"runuser -u ci -- {command}")
    assert result.returncode != 0, result.stdout
    assert "arguments" not in result.stdout
    allowed = server.run("runuser -u ci -- sudo -n /usr/local/bin/terrafirma forced api")
    assert json.loads(allowed)["arguments"] == ["forced", "api"]


def test_sudo_compares_joined_arguments(server: Target) -> None:
    """sudo compares the joined arguments, so the program must not split one argument in two."""
    said = server.run("runuser -u ci -- sudo -n /usr/local/bin/terrafirma 'forced api'")
    assert json.loads(said)["arguments"] == ["forced api"]


def test_the_account_is_in_no_group_and_has_no_password(server: Target) -> None:
    for name in ("ci", "both-ci"):
        assert server.run(f"id -Gn {name}") == name
        assert server.run(f"getent shadow {name}").split(":")[1].startswith("!")
        assert server.run(f"getent passwd {name}").endswith(":/bin/sh")


# --- the settings of the account ------------------------------------------------------------------


def test_a_second_run_changes_nothing(server: Target, data: dict[str, Any]) -> None:
    assert changed(server.deploy(*USERS, **data)) == []
    assert server.plan(*USERS, **data) == []


def test_an_account_that_had_a_shell_has_none_any_more(
    server: Target, client: Client, data: dict[str, Any], new_key: str
) -> None:
    mighty = {"name": "dev", "keys": [f"{new_key}.pub"], "sudo": ["ALL"], "groups": ["adm"]}
    rest = data["users_accounts"][:-1]
    server.deploy(*USERS, **data | {"users_accounts": [*rest, mighty]})
    assert client.call("sudo -n id -u", user="dev").stdout == b"0\n"
    tame = {"name": "dev", "keys": [f"{new_key}.pub"], "releases": ["api"]}
    server.deploy(*USERS, **data | {"users_accounts": [*rest, tame]})
    as_ever(client.ask("sudo -n id -u", user="dev"), "sudo -n id -u")
    assert server.run("id -Gn dev") == "dev"
    assert server.call("runuser -u dev -- sudo -n true").returncode != 0
    server.deploy(*USERS, **data)
    assert client.call("release api", user="dev").returncode == 255
    assert server.call("ls /etc/sudoers.d/90-terrafirma-dev").returncode != 0


def test_an_account_that_is_no_longer_declared_releases_nothing(
    server: Target, client: Client, data: dict[str, Any]
) -> None:
    fewer = [one for one in data["users_accounts"] if one["name"] != "both-ci"]
    server.deploy(*USERS, **data | {"users_accounts": fewer})
    assert client.call("release api", user="both-ci").returncode == 255
    command = "sudo -n /usr/local/bin/terrafirma forced api shop"
    assert server.call(f"runuser -u both-ci -- {command}").returncode != 0
    client.ask("release api")
    server.deploy(*USERS, **data)


# --- from a repository's own pipeline -------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An application in git, with a file that is not committed."""
    path = tmp_path / "repository"
    path.mkdir()
    (path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    git = ["git", "-C", str(path), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    output(*git[:3], "init", "-q", "-b", "main")
    output(*git[:3], "add", ".")
    output(*git, "commit", "-q", "-m", "first")
    (path / "untracked").write_text("private")
    return path


def head(repository: Path) -> str:
    return output("git", "-C", str(repository), "rev-parse", "HEAD")


def archive(repository: Path) -> str:
    """The digest of the source as the program must receive it."""
    packed = subprocess.run(
        ["sh", "-c", "git archive HEAD | gzip"], cwd=repository, capture_output=True, check=True
    )
    return hashlib.sha256(packed.stdout).hexdigest()


def known_hosts(server: Target) -> str:
    lines = (STATE / "known_hosts").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith(f"[127.0.0.1]:{server.port} "))


def expand(text: str, values: dict[str, str]) -> str:
    """Evaluate GitHub's expressions, of which only names of secrets and variables are allowed."""

    def one(found: re.Match[str]) -> str:
        name = re.fullmatch(r"(?:secrets|vars)\.(\w+)", found[1])
        assert name, found[0]
        return values.get(name[1], "")

    return re.sub(r"\$\{\{ *(.*?) *\}\}", one, text)


def wanted(condition: str | None, values: dict[str, str]) -> bool:
    if condition is None:
        return True
    name, operator, value = re.fullmatch(  # type: ignore[union-attr]  # else the test fails
        r"\$\{\{ vars\.(\w+) (==|!=) '(\w*)' \}\}", condition
    ).groups()
    return (values.get(name, "") == value) == (operator == "==")


def github(repository: Path, values: dict[str, str], temporary: Path) -> str:
    """Run the workflow's steps as a runner does, and return their output."""
    workflow = yaml.safe_load((ROOT / "examples/ci/github.yml").read_text())
    (job,) = workflow["jobs"].values()
    temporary.mkdir()
    printed = ""
    for step in job["steps"]:
        if "uses" in step:
            # The repository is checked out already. The action is pinned, because tags can move.
            assert re.fullmatch(r"actions/checkout@[0-9a-f]{40}", step["uses"])
            continue
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]
        if not wanted(step.get("if"), values):
            continue
        script = temporary / "script.sh"
        script.write_text(step["run"])
        declared = workflow.get("env", {}) | job.get("env", {}) | step.get("env", {})
        result = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=repository,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(temporary),
                "RUNNER_TEMP": str(temporary),
                "GITHUB_SHA": head(repository),
                **{key: expand(value, values) for key, value in declared.items()},
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        printed += result.stdout + result.stderr
        assert result.returncode == 0, printed
    return printed


def gitlab(repository: Path, values: dict[str, str], temporary: Path) -> str:
    """Run the job's script as a runner does, in the shell of its image, and return its output."""
    jobs = yaml.safe_load((ROOT / "examples/ci/gitlab.yml").read_text())
    job = jobs["release image" if values.get("DEPLOY_IMAGE") else "release source"]
    template = jobs[job["extends"]]
    temporary.mkdir()
    files = {}
    for name in ("DEPLOY_KEY", "DEPLOY_KNOWN_HOSTS"):
        (temporary / name).write_text(f"{values[name]}\n")
        (temporary / name).chmod(0o666)
        files[name] = str(temporary / name)
    result = subprocess.run(
        ["sh", "-e"],
        cwd=repository,
        input="\n".join([*template["before_script"], *job["script"]]),
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(temporary),
            "TMPDIR": str(temporary),
            "CI_COMMIT_SHA": head(repository),
            **values,
            **files,
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


PIPELINES = {"github": github, "gitlab": gitlab}


def said(printed: str) -> dict[str, Any]:
    (line,) = [line for line in printed.splitlines() if line.startswith('{"arguments"')]
    answer: dict[str, Any] = json.loads(line)
    return answer


@pytest.fixture
def values(server: Target, new_key: str) -> dict[str, str]:
    return {
        "DEPLOY_KEY": Path(new_key).read_text().strip(),
        "DEPLOY_KNOWN_HOSTS": known_hosts(server),
        "DEPLOY_HOST": f"ssh://ci@127.0.0.1:{server.port}",
        "DEPLOY_APP": "api",
    }


@pytest.mark.promise(
    "The pipelines for GitHub and GitLab release a source or an image with a deploy key"
)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_pipeline_releases_the_source(
    pipeline: str, repository: Path, values: dict[str, str], tmp_path: Path
) -> None:
    printed = PIPELINES[pipeline](repository, values, tmp_path / "runner")
    answer = said(printed)
    as_ever(answer, f"release api --revision {head(repository)}")
    assert answer["stdin"] == archive(repository)
    assert values["DEPLOY_KEY"].splitlines()[1] not in printed


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_pipeline_trusts_no_other_host(
    pipeline: str, repository: Path, values: dict[str, str], tmp_path: Path, new_key: str
) -> None:
    other = Path(f"{new_key}.pub").read_text().rsplit(" ", 1)[0]
    where = values["DEPLOY_KNOWN_HOSTS"].split()[0]
    with pytest.raises(AssertionError, match="Host key verification failed"):
        PIPELINES[pipeline](
            repository, values | {"DEPLOY_KNOWN_HOSTS": f"{where} {other}"}, tmp_path / "runner"
        )


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_release_that_fails_fails_the_pipeline(
    pipeline: str, repository: Path, values: dict[str, str], tmp_path: Path, server: Target
) -> None:
    server.run("printf '#!/bin/sh\\necho no release >&2; exit 3\\n' > /usr/local/bin/terrafirma")
    try:
        with pytest.raises(AssertionError, match="no release"):
            PIPELINES[pipeline](repository, values, tmp_path / "runner")
    finally:
        server.run("cat > /usr/local/bin/terrafirma", stdin=STAND_IN)


REGISTRY_CONFIG = """
version: 0.1
storage: {filesystem: {rootdirectory: /srv/registry}}
http: {addr: ":5000"}
auth: {htpasswd: {realm: test, path: /srv/htpasswd}}
"""


@contextmanager
def registry(name: str, port: int) -> Iterator[str]:
    """A registry that needs a password; yields its address on this machine."""
    with bystander(name, "--publish", f"127.0.0.1:{port}:5000") as one:
        one.run("mkdir -p /srv/registry && htpasswd -Bbc /srv/htpasswd ci odd-password")
        one.run("cat > /srv/config.yml", stdin=REGISTRY_CONFIG)
        one.run("docker-registry serve /srv/config.yml > /var/log/registry.log 2>&1 &")
        eventually(lambda: open_ports(one, one, 5000) == [5000], 30)
        yield f"127.0.0.1:{port}"


@pytest.mark.promise(like=test_a_pipeline_releases_the_source)
def test_a_pipeline_builds_pushes_and_releases_an_image(
    repository: Path, values: dict[str, str], tmp_path: Path
) -> None:
    with registry("tf-test-ci-registry", 2423) as address:
        image = f"{address}/team/api"
        values |= {
            "DEPLOY_IMAGE": image, "REGISTRY_USER": "ci", "REGISTRY_PASSWORD": "odd-password",
        }  # fmt: skip
        tag = f"{image}:{head(repository)}"
        for pipeline, run in PIPELINES.items():
            try:
                printed = run(repository, values, tmp_path / pipeline)
                answer = said(printed)
                found = re.fullmatch(
                    rf"release api --image ({image}@sha256:[0-9a-f]{{64}}) "
                    rf"--revision {head(repository)}",
                    answer["asked"],
                )
                assert found, answer["asked"]
                assert "odd-password" not in printed
                # Remove the local image, so that the next command asks the registry.
                output("docker", "image", "rm", tag)
                config = str(tmp_path / pipeline / ".docker")
                output("docker", "--config", config, "pull", "-q", found[1])
                output("docker", "image", "rm", found[1])
            finally:
                execute("docker", "image", "rm", "--force", tag)


def test_the_files_say_what_a_pipeline_may() -> None:
    workflow = yaml.safe_load((ROOT / "examples/ci/github.yml").read_text())
    assert workflow["permissions"] == {}
    assert workflow["concurrency"]["cancel-in-progress"] is False
    (job,) = workflow["jobs"].values()
    assert job["permissions"] == {"contents": "read"}
    template = yaml.safe_load((ROOT / "examples/ci/gitlab.yml").read_text())[".release"]
    assert template["resource_group"]
    assert template["interruptible"] is False

"""What a client with a deploy key may ask for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from terrafirma_host import cli, forced, spec
from terrafirma_host.shell import Failed

from tests.conftest import ROOT
from tests.unit.terrafirma_host.applications import told

# Start it as sshd and sudo do; a program in the place of ours prints its arguments.
FORCED = """\
import sys
from pathlib import Path
from terrafirma_host import forced, spec

forced.PROGRAM, spec.SPECS, *names = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
forced.run(names)
"""
BY = "--by=deploy key of ci"


def test_a_key_that_the_deploy_does_not_know_of_yet_does_nothing(
    app: spec.Application, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tasks/users.py admits the key; tasks/app.py checks the compose files and sets `automated`."""
    (roots / "apps" / "api.json").write_text(told(app))
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", "release")
    with pytest.raises(Failed, match="api is not described as one that a key releases: run deploy"):
        forced.run(["api"])


# The applications that the key may release; the client's command; the resulting command.
GOOD: list[tuple[list[str], str, list[str]]] = [
    (["api"], "release", ["release", "api", BY, "--source=-"]),
    (["api"], "release api", ["release", "api", BY, "--source=-"]),
    (
        ["api"],
        "release api --revision 1a2b3c",
        ["release", "api", "--revision=1a2b3c", BY, "--source=-"],
    ),
    (
        ["web"],
        "release --image registry.acme.com/web:2 --revision 'v2-rc/1'",
        ["release", "web", "--image=registry.acme.com/web:2", "--revision=v2-rc/1", BY],
    ),
    (["api", "web"], "release web", ["release", "web", BY]),
    (["api"], "rollback", ["rollback", "api", BY]),
    (["api"], "rollback api 0123456789ab", ["rollback", "api", "0123456789ab", BY]),
    (["api", "web"], "rollback web", ["rollback", "web", BY]),
    (["api"], "releases", ["releases", "api"]),
    (["api", "web"], "releases web", ["releases", "web"]),
]


@pytest.mark.parametrize(("names", "asked", "done"), GOOD)
def test_the_commands_of_a_deploy_key(
    two_described: Path, names: list[str], asked: str, done: list[str]
) -> None:
    program = two_described / "terrafirma"
    program.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    program.chmod(0o755)
    result = subprocess.run(
        [sys.executable, "-c", FORCED, str(program), str(two_described / "apps"), *names],
        env=os.environ
        | {"PYTHONPATH": str(ROOT / "files"), "SUDO_USER": "ci", "SSH_ORIGINAL_COMMAND": asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\0")[:-1] == done
    # The program parses that command, too.
    arguments = cli.parser().parse_args(done)
    assert arguments.name in names
    assert arguments.command == done[0]
    if arguments.command != "releases":
        assert arguments.by == "deploy key of ci"


@pytest.mark.parametrize("names", [["api"], ["api", "web"]])
@pytest.mark.parametrize(
    "asked",
    [
        # Nothing, or no valid words.
        *("", " ", "'", '"', "release 'api", "\\"),
        # Other commands.
        *("logs api", "run api -- sh", "console api", "restart api", "maintenance api on", "sh"),
        *("forced shop", "status api", "recover api", "refresh api", "refresh", "internal-sftp"),
        *("/usr/local/bin/terrafirma release api", "sudo terrafirma release api", "RELEASE api"),
        *("scp -t /etc", "rsync --server . /", "bash -c 'terrafirma release api'", "-h", "--help"),
        # Another application, and more than one.
        *("release shop", "releases shop", "releases api web", "release api web"),
        *("release ../api", "release api/../../x", "release API", "rollback api a b"),
        # More commands.
        *("release api; reboot", "release api && reboot", "release api | sh", "release $(reboot)"),
        *("release `reboot`", "release api\nreboot", "release api > /etc/passwd", "release api &"),
        # Options that do not exist, or not for a key.
        *("release --again", "release api --again", "release api --aga", "release -x", "release -"),
        *("release --revision", "release --image", "release api --rev 1", "release --source"),
        *("rollback --again", "rollback api --by", "rollback -x", "release -h"),
        *("releases --json", "releases api --json"),
        *("release --source -", "release --source=/etc", "release --by root"),
        *("release --revision=--by=root", "release --revision --by=root", "rollback -- --by=root"),
        *("release --revision '$(reboot)'", "release --image 'a;`reboot`'", "rollback --by=root"),
        "release --revision one --revision two",
        # The text is shown to root, on a terminal.
        *("release api --revision '\x1b[2J'", "release api --revision 'a\nb'"),
        "release api --image 'a\x1b]0;x\x07'",
    ],
)
def test_commands_that_a_deploy_key_may_not_run(
    two_described: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], asked: str
) -> None:
    # A program that was started would not be found, which is another error than Failed.
    monkeypatch.setattr(forced, "PROGRAM", str(two_described / "nowhere"))
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", asked)
    with pytest.raises(Failed, match=r"^this key may: release \["):
        forced.run(names)


@pytest.mark.parametrize("asked", ["release", "rollback", "releases", "release --revision 1"])
def test_a_key_for_two_applications_has_to_say_which(
    two_described: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr(forced, "PROGRAM", str(two_described / "nowhere"))
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", asked)
    with pytest.raises(Failed, match=r"^this key may: release \[api\|web\]"):
        forced.run(["api", "web"])

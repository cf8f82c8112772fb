"""The command `terrafirma`: its arguments."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import cli, spec

from tests.conftest import ROOT
from tests.unit.terrafirma_host.applications import records, told

# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parsed"),
    [
        ("release api", {"name": "api", "source": "", "image": "", "again": False, "by": ""}),
        ("release api --source - --again", {"source": "-", "again": True}),
        ("rollback api", {"release": ""}),
        ("rollback api 0123 --by me", {"release": "0123", "by": "me"}),
        ("releases", {"name": None, "json": False}),
        ("releases api --json", {"name": "api", "json": True}),
        ("logs api -f -n 7", {"follow": True, "lines": 7}),
        ("run api -- ls -l", {"words": ["ls", "-l"]}),
        ("console api", {"words": []}),
        ("maintenance api on", {"state": "on"}),
        ("maintenance api", {"state": None}),
        ("status api --stdin", {"stdin": True}),
        ("forced api web", {"names": ["api", "web"]}),
        ("secrets renew /x api", {"words": ["renew", "/x", "api"]}),
        ("postgres-upgrade recover 15 17", {"words": ["recover", "15", "17"]}),
    ],
)
def test_words(words: str, parsed: dict[str, Any]) -> None:
    arguments = vars(cli.parser().parse_args(words.split()))
    assert {name: arguments[name] for name in parsed} == parsed
    assert arguments["command"] == words.split(maxsplit=1)[0]


@pytest.mark.parametrize("words", ["api", "release", "logs", "run api", "maintenance api maybe"])
def test_words_that_are_refused(words: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(words.split())
    assert error.value.code == 2
    assert "usage: terrafirma" in capsys.readouterr().err


def test_the_help_lists_the_commands_for_people() -> None:
    shown = cli.parser().format_help()
    for name in ("rollback", "status", *cli.LISTED):
        assert f"\n    {name} " in shown
    for name in ("recover", "forced", *(cli.DEPLOY.keys() - cli.LISTED.keys())):
        assert f"\n    {name}" not in shown


def test_each_command_of_the_deploy_has_its_module() -> None:
    for name in cli.DEPLOY.values():
        assert callable(import_module(f"terrafirma_host.{name}").main)


def test_what_is_due_is_told_without_the_modules_of_the_applications() -> None:
    script = (
        "import sys; from terrafirma_host import cli, reboot, updates; cli.main([]); "
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT / "files")},
    )  # fmt: skip
    loaded = done.stdout.splitlines()[-1].split()
    assert "terrafirma_host.updates" in loaded
    assert not {"terrafirma_host.engine", "terrafirma_host.promises", "ssl"} & {*loaded}


def test_without_a_command_the_help_is_shown(capsys: Any) -> None:
    assert cli.main([]) == 0
    assert capsys.readouterr().out == cli.parser().format_help()


@pytest.mark.parametrize(
    "words",
    [
        *("releases", "release api", "forced api", "logs api", "secrets check /x"),
        *("passwords check 17", "postgres-upgrade clean 15 15"),
    ],
)
def test_it_is_for_root(words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main(words.split()) == 1
    assert capsys.readouterr().err == "terrafirma: run it as root (sudo)\n"


@pytest.mark.usefixtures("root", "two_described")
def test_an_error_is_one_line(capsys: Any) -> None:
    for words, wrong in (
        (["logs", "shop"], "there is no application 'shop'; there are: api, web"),
        (["logs", "../api"], "'../api' is no application; there are: api, web"),
        (["logs", "api"], "api has no release yet"),
        (["console", "web"], "web has no release yet"),
    ):
        assert cli.main(words) == 1
        assert capsys.readouterr().err == f"terrafirma: {wrong}\n"


@pytest.mark.usefixtures("root")
def test_releases_are_shown_with_their_state(
    app: spec.Application, roots: Path, monkeypatch: pytest.MonkeyPatch, program: Any, capsys: Any
) -> None:
    # All images exist but that of the first.
    script = """case "$*" in *:aaa*) echo "Error: No such image" >&2; echo '[]'; exit 1 ;; esac
        echo '[{}]'"""
    monkeypatch.setenv("PATH", f"{program('docker', script)}:{os.environ['PATH']}")
    (roots / "apps" / "api.json").write_text(told(app))
    for release in ("aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"):
        records(app, release, withdrawn=release.startswith("c"))
        spec.append_history(app, "release", release, f"revision-of-{release}", "me@here")
    spec.append_history(app, "rollback", "bbbbbbbbbbbb", "", "deploy key of ci")
    spec.Serving("bbbbbbbbbbbb", "blue", 4, 8000).save(app)
    assert cli.main(["releases"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "api: 4 replicas of bbbbbbbbbbbb"
    assert [(line.split()[1], line.split()[2]) for line in lines] == [
        ("rollback", "bbbbbbbbbbbb"),
        ("release", "cccccccccccc"),
        ("release", "bbbbbbbbbbbb"),
        ("release", "aaaaaaaaaaaa"),
    ]
    assert "deploy key of ci" in lines[0]
    assert lines[0].endswith("serves, kept")
    assert lines[1].endswith("rolled back, kept")
    assert lines[3].rstrip().endswith("me@here")
    assert cli.main(["releases", "api", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert (answer["serving"], answer["replicas"]) == ("bbbbbbbbbbbb", 4)
    assert sorted(answer["kept"]) == ["bbbbbbbbbbbb", "cccccccccccc"]
    assert answer["withdrawn"] == ["cccccccccccc"]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "api", "--", "python3", "x.py"], "--entrypoint python3 api x.py"),
        (["console", "api"], "--entrypoint sh api"),
    ],
)
def test_a_command_is_in_a_project_of_its_own(
    app: spec.Application, roots: Path, monkeypatch: pytest.MonkeyPatch,
    words: list[str], said: str,
) -> None:  # fmt: skip
    """A release clears its slot with all containers of that project, but must not end a console."""
    (roots / "apps" / "api.json").write_text(told(app))
    records(app, "0123456789ab")
    spec.Serving("0123456789ab", "green", 4, 8064).save(app)

    def become(program: str, words: list[str], environment: dict[str, str]) -> None:
        raise SystemExit(" ".join(words))

    monkeypatch.setattr(os, "execve", become)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    command = str(ended.value)
    assert "--project-name api-run " in command
    # In the environment and the networks of the release that serves.
    assert f"--file {app.directory}/layers/green.yaml run --rm --no-deps" in command
    assert command.endswith(said)


@pytest.mark.usefixtures("root")
def test_at_boot_each_application_is_recovered_even_if_another_fails(
    app: spec.Application, roots: Path, monkeypatch: pytest.MonkeyPatch, program: Any, capsys: Any
) -> None:
    monkeypatch.setenv("PATH", f"{program('docker', 'exit 0')}:{os.environ['PATH']}")
    (roots / "apps" / "shop.json").write_text(told(replace(app, name="shop")))
    # An application that another version described, and one with a broken file.
    (roots / "apps" / "api.json").write_text('{"name": "api"}')
    (roots / "apps" / "old.json").write_text("[]")
    left = spec.SLOT_SECRETS / "shop" / "green" / "token"
    left.parent.mkdir(parents=True)
    left.touch()
    assert cli.main(["recover"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" is left alone: ")[0] for line in said] == [
        *("terrafirma: api", "terrafirma: old"),
    ]
    assert not left.exists()
    assert cli.main(["releases", "--json"]) == 0
    assert [one["application"] for one in json.loads(capsys.readouterr().out)] == ["shop"]
    # A failure of Docker fails the command, so that systemd tries again.
    program("docker", "echo no luck >&2; exit 1")
    assert cli.main(["recover"]) == 1
    assert "terrafirma: shop: docker ps: no luck" in capsys.readouterr().err


@pytest.mark.usefixtures("root")
def test_settings_are_refreshed_where_something_serves(
    app: spec.Application, roots: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (roots / "apps" / "api.json").write_text(told(app))
    monkeypatch.setenv(cli.UNIT, "terrafirma-release-api.service")
    assert cli.main(["refresh", "api"]) == 0
    assert capsys.readouterr().out == "api has no release yet\n"


# --- the unit of a release ------------------------------------------------------------------------

# Stands in for systemd-run: runs the command after the last option, with the variables of --setenv.
RUNS = """
token=
while :; do case $1 in
--setenv=TERRAFIRMA_TOKEN=*) token=${{1##*=}} ;; --*) ;; *) break ;;
esac; shift; done
{then}
"""
# The unit's script; its state; the client's exit code; the client's message.
UNITS: dict[str, tuple[str, str, int, str]] = {
    "a success": ('echo "$token 0" > {end}; exit 0', "inactive", 0, ""),
    "a failure": ('echo "$token 1" > {end}; exit 1', "inactive", 1, ""),
    # The unit had done its work when it was killed.
    "a success, killed late": ('echo "$token 0" > {end}; exit 255', "inactive", 0, ""),
    # For systemd the unit has succeeded.
    "stopped": ("exit 0", "inactive", 1, "was stopped before its end (systemd-run: exit 0)"),
    "killed": ("exit 255", "inactive", 1, "was stopped before its end (systemd-run: exit 255)"),
    "not begun": ("exit 1", "inactive", 1, "nothing serves: `journalctl -u terrafirma-release-"),
    "an end of another": ('echo "0123 0" > {end}; exit 0', "inactive", 1, "was stopped before"),
    "nonsense": ("echo > {end}; exit 0", "inactive", 1, "was stopped before its end"),
    "nobody waits": ("kill -9 $$", "active", 1, "nobody waits for the release of api any more"),
}


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("what", UNITS)
@pytest.mark.parametrize("words", [["release", "api"], ["rollback", "api"], ["restart", "api"]])
def test_a_waiting_client_gets_the_result_of_the_unit(
    app: spec.Application, roots: Path, monkeypatch: pytest.MonkeyPatch, program: Any, capsys: Any,
    words: list[str], what: str,
) -> None:  # fmt: skip
    then, state, status, said = UNITS[what]
    (roots / "apps" / "api.json").write_text(told(app))
    spec.RUNTIME.mkdir()
    then = then.format(end=spec.RUNTIME / "api.end")
    program("systemctl", f"echo {state}")
    directory = program("systemd-run", RUNS.format(then=then))
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    # Left by another unit.
    (spec.RUNTIME / "api.end").write_text("4567 0\n")
    try:
        ended = cli.main(words)
    except SystemExit as exit:
        ended = int(str(exit.code))
    assert ended == status
    error = capsys.readouterr().err
    assert said in error
    assert bool(error) is bool(said)


@pytest.mark.usefixtures("root")
def test_a_unit_says_how_it_ends(
    app: spec.Application, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recovery after it, in the same unit, does not."""
    (roots / "apps" / "api.json").write_text(told(app))
    monkeypatch.setenv(cli.UNIT, "terrafirma-release-api.service")
    monkeypatch.setenv(cli.TOKEN, "0123")
    end = spec.RUNTIME / "api.end"
    assert cli.main(["refresh", "api"]) == 0
    assert end.read_text() == "0123 0\n"
    assert cli.main(["rollback", "api"]) == 1
    assert end.read_text() == "0123 1\n"
    end.unlink()
    cli.main(["recover", "api"])
    assert not end.exists()


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_logs_are_text(
    app: spec.Application, roots: Path, monkeypatch: pytest.MonkeyPatch, program: Any, capsys: Any,
    follow: list[str],
) -> None:  # fmt: skip
    (roots / "apps" / "api.json").write_text(told(app))
    records(app, "0123456789ab")
    spec.Serving("0123456789ab", "green", 4, 8064).save(app)
    script = r"printf 'api-1  | \033[31mred\033[0m\n'; echo $* >&2; exit 3"
    monkeypatch.setenv("PATH", f"{program('docker', script)}:/usr/bin:/bin")
    with pytest.raises(SystemExit, match="3"):
        cli.main(["logs", "api", *follow])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "api-1  | red"
    assert said[1].startswith("compose --project-name api-green logs --no-color --tail 100")


@pytest.mark.usefixtures("root")
def test_a_revision_is_shown_as_plain_text(
    app: spec.Application, roots: Path, monkeypatch: pytest.MonkeyPatch, program: Any, capsys: Any
) -> None:
    monkeypatch.setenv("PATH", f"{program('docker', 'exit 0')}:/usr/bin:/bin")
    (roots / "apps" / "api.json").write_text(told(app))
    spec.append_history(
        app, "release", "0123456789ab", "\x1b[31mv1\x1b[0m", "\x1b]0;owned\x07me\u202e@here"
    )
    assert cli.main(["releases", "api"]) == 0
    said = capsys.readouterr().out
    assert "v1" in said
    assert "me@here" in said
    assert said.replace("\n", "").isprintable()


def test_the_launcher_finds_its_modules_and_nothing_else() -> None:
    """It ignores the caller's directory and packages."""
    first, *lines = (ROOT / "files" / "terrafirma").read_text().splitlines()
    assert first == "#!/usr/bin/python3 -I"
    assert 'sys.path.insert(0, "/usr/local/lib/terrafirma")' in lines

"""Commands run correctly whatever the login's shell, start-up files and locale are."""

import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gevent
import pytest
from gevent.event import Event
from pyinfra.api import HiddenValue, QuoteString, StringCommand
from pyinfra.connectors.util import CommandOutput, OutputLine

from terrafirma.host import framing
from tests.conftest import Pyinfra

# Prints the umask, the directory, the environment and the input; exits with a code of its own.
QUESTION = r"""
umask; pwd; env | grep -c -e '^LD_' -e ^LANGUAGE -e ^CDPATH -e ^GREP_ -e ^TZ -e ^POSIX -e ^BASH_
echo "$LANG $LC_ALL $PATH"; printf '%s\n' 'a\\b!$c"' "it's" | sed -n 's/\(.*\)/<\1>/p'
cat; echo problem >&2; ( exit 7 )
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Answer:
    code: int
    lines: list[str]
    errors: list[str]
    status: str


def login(
    tmp_path: Path, start: str = "", command: str = QUESTION, shell: str = "bash", **env: str
) -> Answer:
    """The answer of a command that sshd runs in a login shell, which reads `start` first."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    (tmp_path / "rc").write_bytes(start.encode("latin-1"))
    result = subprocess.run(
        [shell, "-c", framing.sent(framing.framed(command))],
        input="\n".join([*framing._SPARE, framing._MARK, "one", "two", ""]).encode(),
        env={"BASH_ENV": str(tmp_path / "rc"), "HOME": str(home), "PATH": os.environ["PATH"]} | env,
        cwd="/tmp",
        capture_output=True,
        timeout=20,
        check=False,
    )
    out, err = (framing._Answer(io.BytesIO(one)) for one in (result.stdout, result.stderr))
    lines, errors = ([line.rstrip("\n") for line in one.lines()] for one in (out, err))
    return Answer(result.returncode, lines, errors, out.status)


def expected(tmp_path: Path) -> list[str]:
    return [
        *("0022", str(tmp_path / "home"), "0", f"C.UTF-8 C.UTF-8 {PATH}"),
        *(r'<a\\b!$c">', "<it's>", "one", "two"),
    ]


@pytest.mark.parametrize(
    "start",
    [
        "echo hello; echo hello >&2",
        "printf 'no line break'; printf 'nor here' >&2",
        "printf 'Gr\xfc\xdfe\\n'; printf '\\377\\376\\n' >&2",
        "id; sudo() { echo no; }; yes | head -n 5000",
        'read -r answer; echo "you said $answer"',
        "for n in 1 2 3 4 5 6 7 8 9 10; do read -r line; done",
        "cd /; umask 777",
        "PATH=; export PATH",
        "unset PATH; hash -r",
        "export LANG=de_DE.UTF-8 LANGUAGE=de LC_ALL=xx_YY LC_MESSAGES=de_DE",
        "export LD_PRELOAD=/no/such.so LD_LIBRARY_PATH=/tmp TZ=Mars/Olympus",
        "export POSIXLY_CORRECT=1 GREP_OPTIONS=-v GREP_COLORS=x CDPATH=/tmp:/ BASH_ENV=/dev/null",
        "export IFS=abcdefghijklmnop; set -f",
        "set -eu; set -o pipefail; set -o noclobber",
        "set -x",
        "sh() { :; }; env() { :; }; printf() { :; }; echo() { :; }; test() { :; }; export -f sh",
        "exec() { :; }; cd() { :; }; umask() { :; }; read() { :; }; eval() { :; }; export -f cd",
        "shopt -s expand_aliases; alias sh=false env=false sudo=false echo=true",
        "enable -n echo printf test",
        "trap 'echo bye; echo bye >&2' EXIT",
        "trap 'echo bye; exit 0' EXIT",
        "trap 'echo step' DEBUG; trap '' INT HUP TERM",
        "shopt -s nullglob failglob extglob dotglob; touch /tmp/x 2> /dev/null",
        "line=x; name=y; status=3; export line name status",
        "stty -echo; tput clear; mesg n; tty",
        "alias; typeset -f; return 5",
        "export TERM=xterm-256color LS_COLORS=x PS4='+ ' PROMPT_COMMAND='echo hi' ENV=/etc/passwd",
        "export http_proxy=http://proxy:3128; ulimit -c unlimited; export TMPDIR=/nowhere",
        "syntax error ( here",
    ],
)  # fmt: skip
def test_start_up_files_change_nothing(tmp_path: Path, start: str) -> None:
    answer = login(tmp_path, start)
    assert answer.lines == expected(tmp_path)
    assert answer.errors == ["problem"]
    assert answer.status == "7"


@pytest.mark.parametrize(
    "start",
    ["exit 0", "exit 3", "exec cat /etc/hostname", "exec > /dev/null 2>&1", "cat > /dev/null",
     "kill -9 $$", "set -e; false", "exec 0< /dev/null", "exec no-such-program"],
)  # fmt: skip
def test_a_command_that_never_began_is_no_answer(tmp_path: Path, start: str) -> None:
    assert login(tmp_path, start).status == ""


@pytest.mark.parametrize("shell", ["bash", "sh", "dash", "zsh", "fish", "tcsh", "ksh93", "mksh"])
def test_every_login_shell_runs_the_same(tmp_path: Path, shell: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    answer = login(tmp_path, shell=shell)
    assert (answer.lines, answer.errors, answer.status) == (expected(tmp_path), ["problem"], "7")


def test_a_home_that_is_not_there_is_no_reason_to_stop(tmp_path: Path) -> None:
    assert login(tmp_path, command="pwd", HOME="/no/such").lines == ["/"]


def test_the_way_out_to_the_internet_is_kept(tmp_path: Path) -> None:
    answer = login(tmp_path, command='echo "$https_proxy"', https_proxy="http://a b:3128")
    assert answer.lines == ["http://a b:3128"]


@pytest.mark.parametrize(
    "command",
    [
        "cat << 'END'\n'quoted' \\n \\\\ !\nEND",
        "printf 'no line break'",
        "printf '%s' \"$0\" > /dev/null; echo 'a|b' | cut -d'|' -f2",
        'awk \'BEGIN { print "\\\\", "\\t|", (2 > 1) }\'',
        "printf '\\0101\\n'; echo ünï",
        "x='\t'; echo \"$x|\"",
        "",
    ],
)
def test_a_command_arrives_as_it_is(tmp_path: Path, command: str) -> None:
    plain = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert login(tmp_path, command=command).lines == plain.stdout.splitlines()
    # Nested, as through sudo and another shell.
    nested = StringCommand("sh", "-c", QuoteString(framing.clean(command))).get_raw_value()
    assert login(tmp_path, command=nested).lines == plain.stdout.splitlines()


def test_no_quote_makes_a_command_longer_than_a_host_takes() -> None:
    command = "'" * 1000 + "\\" * 1000
    assert len(framing.sent(framing.clean(framing.framed(command)))) < 2000 * 20 + 4000


@pytest.mark.parametrize(
    "command",
    [
        "tr '\\0' '\\n' < /proc/$PPID/cmdline",
        "tr '\\0' ' ' < /proc/$PPID/cmdline; echo; echo after",
        "tr '\\0' ' ' < /proc/$PPID/cmdline >&2",
    ],
)
def test_a_process_list_shows_our_own_words(tmp_path: Path, command: str) -> None:
    answer = login(tmp_path, command=command)
    said = "\n".join(answer.lines + answer.errors)
    assert f"echo {framing._BEGIN}; " in said
    assert f"echo {framing._END} $status; " in said
    assert (answer.code, answer.status) == (0, "0")
    assert ("after" in answer.lines) is ("after" in command)


class Channel:
    """A stand-in for paramiko's channel, as far as the timer needs it."""

    def __init__(self) -> None:
        self.closed = Event()

    def close(self) -> None:
        self.closed.set()


class Stream:
    """One stream of a channel, which stays open for a while after its lines, or until closed."""

    FLAG_BINARY = 0
    _flags = 0

    def __init__(self, channel: Channel, *lines: str) -> None:
        self.channel, self.sent = channel, lines

    def __iter__(self) -> Iterator[str]:
        yield from self.sent
        self.channel.closed.wait(0.5)


@pytest.mark.parametrize(
    ("line", "closed"),
    [(f"{framing._BEGIN}\r\n", False), ("x\n", True)],
    ids=["begun", "never begun"],
)
def test_a_terminal_has_one_stream(
    monkeypatch: pytest.MonkeyPatch, line: str, closed: bool
) -> None:
    """The other stream never begins."""
    monkeypatch.setattr(framing, "SECONDS", 0.1)
    channel = Channel()
    streams = [framing._Answer(Stream(channel, *lines)) for lines in ((line,), ())]
    gevent.joinall([gevent.spawn(list, one.lines()) for one in streams])
    assert channel.closed.is_set() is closed


# --- the result for pyinfra -----------------------------------------------------------------------


def ended(status: str | None, *lines: tuple[str, str], success: bool = True) -> tuple[bool, str]:
    """The result of a command that ended with this status and printed these lines."""
    output = [OutputLine(name, line) for name, line in lines]
    output += [OutputLine(framing._FRAME, status)] if status is not None else []
    run = framing._runner(lambda *_, **__: (success, CommandOutput(output)))
    success, answer = run(None, StringCommand("x"))
    return success, answer.output


def test_a_code_is_that_of_the_command() -> None:
    assert ended("0", ("stdout", "x")) == (True, "x")
    # A trap of the login shell changed its exit code.
    assert ended("7") == (False, "")
    assert ended("0", success=False) == (True, "")
    # The host went down, and the connection with it.
    assert ended("") == (True, "")


def test_a_command_that_never_began_has_failed() -> None:
    assert ended(None) == (False, framing._NEVER)
    success, said = ended(None, ("stderr", "sudo: a password is required"), success=False)
    assert (success, said) == (False, "sudo: a password is required")


def test_the_log_shows_the_command_and_no_secret() -> None:
    shown = StringCommand("psql", QuoteString(HiddenValue("s3cret")))
    command = framing._Sent(shown, framing.sent(framing.framed("psql s3cret")))
    assert str(command) == "psql '*MASKED*'"
    assert "s3cret" in command.get_raw_value()


def test_a_run_on_this_machine_is_framed_too(command_line: Pyinfra, tmp_path: Path) -> None:
    """Through the real command line, with a locale that does not exist."""
    task = tmp_path / "ask.py"
    task.write_text(
        "from pyinfra import host\n"
        "from pyinfra.facts.server import Command\n"
        "from pyinfra.operations import server\n"
        "engine = host.get_fact(\n"
        "    Command, command='echo $DOCKER_HOST-$DOCKER_CONTEXT-$DOCKER_CONFIG')\n"
        "assert engine == 'tcp://a:1-a b-', engine\n"
        "assert host.get_fact(Command, command='echo $LC_ALL-$LANGUAGE-$A', _env={'A': \"it's\"})"
        ' == "C.UTF-8--it\'s"\n'
        "server.shell(name='Read', commands=['test \"$(cat)\" = given && pwd'],"
        " _stdin='given', _chdir='/usr')\n"
    )
    result = command_line.call(
        "@local", str(task), "-y", "-vvv", LANG="xx_YY.UTF-8", LANGUAGE="de", LC_ALL="xx_YY",
        DOCKER_HOST="tcp://a:1", DOCKER_CONTEXT="a b",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "[@local] /usr" in result.stderr
    assert "terrafirma-" not in result.stderr
    assert ">>> sh -c 'cd /usr && test" in result.stderr

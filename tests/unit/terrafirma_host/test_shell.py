"""Untrusted output is shown as text, bounded, with the lines that matter."""

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import shell
from terrafirma_host.shell import Failed, ends, follow, locked, plain, plain_lines, run, say, write


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("as it is\n\tand so on", "as it is\n\tand so on"),
        ("Größe 5 µs ✓ 日本 🙂", "Größe 5 µs ✓ 日本 🙂"),
        # Colours, cursor movements, and truncated ones.
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[38;2;1;2;3mred\x1b[m", "red"),
        ("a\x1b[2J\x1b[1;1Hb\x1b[?25l", "ab"),
        ("\x9b31mred", "red"),
        ("cut off \x1b[3", "cut off "),
        ("cut off \x1b", "cut off "),
        # Titles, links, the clipboard, and a string without an end.
        ("\x1b]0;owned\x07text", "text"),
        ("\x1b]8;;https://x.test\x1b\\text\x1b]8;;\x1b\\", "text"),
        ("\x1b]52;c;cm0gLXJm\x07text", "text"),
        ("\x9d0;owned\x9ctext", "text"),
        ("\x1bP+q544e\x1b\\text", "text"),
        ("\x1b]0;no end\nError", "0;no end\nError"),
        ("\x1b(Btext\x1b7\x1b8\x1bc", "text"),
        # Lines that would be overwritten, and other control characters.
        ("hidden\rshown", "hidden\nshown"),
        ("one\r\ntwo\r\n", "one\ntwo\n"),
        ("a\x08b\x07c\x00d\x7fe\x0bf\x0cg\x85h", "abcdefgh"),
        # Direction marks, invisible characters, and other ends of lines.
        ("\u202egnorw\u202c \u2066x\u2069 \u200fy\u200e", "gnorw x y"),
        ("a\u200bb\ufeffc\u00add\u2060e", "abcde"),
        ("a\u2028b\u2029c", "abc"),
        ("\udcff", ""),
        ("\U000e0041tag", "tag"),
    ],
)
def test_words_are_text(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert plain(plain(text)) == shown


def test_concealed_values_are_shown_by_no_output(capsys: pytest.CaptureFixture[str]) -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\n-----END KEY-----\n"
    url = "postgresql://api:Xq3-longpassword@host.docker.internal:5432/api"
    shell.conceal([key, f"{url}\n", "short", "", "true", "MIIEvQIBADANBgkq-and-more"])
    for said, shown in (
        (f"cannot reach {url}", "cannot reach (a secret)"),
        ("mysql+x://api:Xq3-longpassword@db/api", "mysql+x://api:(a secret)@db/api"),
        ("line MIIEvQIBADANBgkq", "line (a secret)"),
        ("MIIEvQIBADANBgkq-and-more", "(a secret)"),
        ("a short one is true", "a short one is true"),
        ("Xq3-\x1b[1mlongpassword", "(a secret)"),
        (f"{'a' * 390}Xq3-longpassword{'a' * 200}", f"{'a' * 390}(a secret)"),
    ):
        assert plain(said).startswith(shown)
        assert str(Failed(said)).startswith(shown)
        say(said)
        assert capsys.readouterr().out.startswith(shown)
        assert ends(said).startswith(shown)
        assert next(plain_lines(io.BytesIO(said.encode()))).startswith(shown)


def test_a_line_without_an_end_is_shown_by_its_ends() -> None:
    shown = plain(f"first\n{'a' * 260_000}b\nlast")
    first, line, last = shown.split("\n")
    assert (first, last) == ("first", "last")
    assert line == f"{'a' * 900} … {'a' * 99}b (260001 characters)"


@pytest.mark.parametrize(
    "text", ["\x1b]" * 500_000, "\x9d" * 10**6, "\x1b[" * 500_000, "\r" * 10**6]
)
def test_no_text_takes_long(text: str) -> None:
    started = time.monotonic()
    plain(text)
    assert time.monotonic() - started < 10


def test_the_first_and_the_last_lines() -> None:
    assert ends("one\n\n \ntwo\n") == "one\ntwo"
    assert ends("\n".join(map(str, range(30)))) == "\n".join(map(str, range(30)))
    lines = ends("\n".join(map(str, range(1000)))).splitlines()
    assert lines[:10] == [str(n) for n in range(10)]
    assert lines[10] == "… 970 more lines …"
    assert lines[11:] == [str(n) for n in range(980, 1000)]
    assert ends("") == ""


def test_a_failure_and_what_is_said_are_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert str(Failed("\x1b[31mno\x1b[0m luck")) == "no luck"
    assert str(Failed(Failed("\x1b[31mno"))) == "no"
    monkeypatch.setattr(shell, "LOG", [tmp_path / "log"])
    say("\x1b]0;owned\x07hello\x1b[0m")
    assert capsys.readouterr().out == "hello\n"
    assert (tmp_path / "log").read_text() == "hello\n"


@pytest.mark.parametrize("lines", [5, 20])
def test_a_program_that_fails_is_quoted_as_text(lines: int) -> None:
    words = json.dumps("\x1b[31mKeyError\x1b[0m: first\n" + "frame\n" * 100 + "last")
    program = f"import sys; sys.exit({words})"
    with pytest.raises(Failed) as failed:
        run(sys.executable, "-c", program, lines=lines)
    said = str(failed.value)
    assert "\x1b" not in said
    assert said.endswith("frame\nlast")
    # A build or a migration names the error first, or last.
    assert ("KeyError: first" in said) is (lines == 20)


def test_the_children_of_a_program_end_with_it() -> None:
    """`docker compose` is a program that another one starts."""
    started = time.monotonic()
    with pytest.raises(Failed, match="sh: not done within 1 s"):
        # The child would keep the pipes open.
        run("sh", "-c", "sleep 30 & sleep 30", timeout=1)
    assert time.monotonic() - started < 10


def test_lines_that_come_are_text_as_they_come() -> None:
    stream = io.BytesIO(
        b"api-1  | \x1b[31mred\x1b[0m\r\n"
        + b"x" * 300_000
        + b"\n"
        + b"\xff\xfe\nlast, without an end"
    )
    first, second, third, last = plain_lines(stream)
    assert first == "api-1  | red"
    assert len(second) < 1100
    assert third == "\ufffd\ufffd"
    assert last == "last, without an end"


def test_a_command_that_may_fail_returns_its_output() -> None:
    assert run("sh", "-c", "echo half; echo no luck >&2; exit 1", check=False) == "half\n"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["docker", "ps", "--all"], "docker ps"),
        (["/usr/lib/postgresql/17/bin/psql", "-X"], "psql"),
        (["runuser", "-u", "postgres", "--", "cat", "/x"], "cat /x"),
    ],
)
def test_the_short_name_of_a_command(words: list[str], shown: str) -> None:
    assert shell.named(words) == shown


def test_lines_of_a_command_are_heard_as_they_come() -> None:
    heard: list[str] = []
    follow("sh", "-c", "echo one; echo $TWO >&2", heard=heard.append, env={"TWO": "two"})
    assert heard == ["one", "two"]
    with pytest.raises(Failed, match=r"^sh:\n2\n3\n4\n5\n6$"):
        follow("sh", "-c", "seq 6; exit 3", heard=heard.append)


def test_a_followed_command_ends_with_its_listener() -> None:
    started = time.monotonic()

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow("sh", "-c", "sleep 30 & echo one; sleep 30", heard=stop)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("directory", [False, True])
def test_a_lock_is_held_once_and_let_go_of(tmp_path: Path, *, directory: bool) -> None:
    path = tmp_path if directory else tmp_path / "lock"
    busy = Failed("another process has it")
    with (
        locked(path),
        pytest.raises(Failed, match="another process has it"),
        locked(path, lambda: busy),
    ):
        pass
    with locked(path, lambda: busy):
        pass


@pytest.mark.parametrize("content", ["größer\n", b"\xff\0"])
def test_a_file_is_written_as_a_whole(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "new" / "file"
    write(path, "before")
    before = path.open("rb")
    write(path, content, 0o400, (os.getuid(), os.getgid()))
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    now = path.stat()
    assert (now.st_mode & 0o777, now.st_uid, now.st_gid) == (0o400, os.getuid(), os.getgid())
    # A reader that had the file open keeps the old content.
    assert before.read() == b"before"
    assert [one.name for one in path.parent.iterdir()] == ["file"]

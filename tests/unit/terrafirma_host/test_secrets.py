"""The files of an application's secrets, with the rights that its containers need."""

import base64
import io
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from terrafirma_host import cli
from terrafirma_host import secrets as program

from tests.unit.programs import terrafirma


class Program:
    """The command in its own directory; the account of the tests stands in for root and `prod`."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        directory: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.patch = patch
        self.directory = directory
        self.capsys = capsys
        patch.setattr(os, "geteuid", lambda: 0)
        patch.setattr(program, "ROOT", (os.getuid(), os.getgid()))
        patch.setattr("pwd.getpwnam", self._account)
        # The program changes to /; the test changes back.
        patch.chdir(directory.parent.parent)

    @staticmethod
    def _account(name: str) -> SimpleNamespace:
        if name != "prod":
            raise KeyError(name)
        return SimpleNamespace(pw_uid=os.getuid(), pw_gid=os.getgid())

    def __call__(self, verb: str, *lines: str, arguments: tuple[str, ...] = ()) -> list[str]:
        before = os.umask(0o022)
        self.patch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        try:
            status = cli.main(["secrets", verb, str(self.directory), *arguments])
        finally:
            os.umask(before)
        said = self.capsys.readouterr()
        if status:
            raise SystemExit(said.err)
        return said.out.splitlines()

    def renew(self, *names: str) -> None:
        self("renew", arguments=names)

    def read(self, name: str) -> str:
        return (self.directory / name).read_text()

    def mode(self, name: str = ".") -> int:
        return (self.directory / name).stat().st_mode & 0o7777


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Program:
    return Program(monkeypatch, tmp_path / "app" / "api", capsys)


def given(name: str, value: str) -> str:
    return f"given {name} {base64.b64encode(value.encode()).decode()}"


ODD = 'it\'s\n"s3cret" $HOME \\ ünïcode\n'
ALL = ("owner prod", "generated key", given("token", ODD), given(".registry_ghcr.io", "s3cret"))


def test_secrets_are_right_after_set(run: Program) -> None:
    assert run("check", *ALL) == ["wrong key", "wrong token", "wrong .registry_ghcr.io"]
    assert not run.directory.exists()
    assert run("set", *ALL) == []
    assert run("check", *ALL) == []
    assert run.read("token") == ODD
    assert run.read(".registry_ghcr.io") == "s3cret"
    assert re.fullmatch(r"[\w-]{43}", run.read("key"))
    assert {name: run.mode(name) for name in ("key", "token", ".registry_ghcr.io")} == {
        "key": 0o400,
        "token": 0o400,
        ".registry_ghcr.io": 0o400,
    }
    assert run.mode() == 0o700
    assert run.directory.parent.stat().st_mode & 0o777 == 0o700


def test_without_an_owner_every_id_reads_them_but_for_the_registrys(run: Program) -> None:
    run("set", *ALL[1:])
    assert (run.mode("key"), run.mode("token"), run.mode(".registry_ghcr.io")) == (
        0o444,
        0o444,
        0o400,
    )
    assert run("check", *ALL) == ["wrong key", "wrong token"]


def test_a_secret_is_generated_once(run: Program) -> None:
    run("set", *ALL)
    before, inode = run.read("key"), (run.directory / "key").stat().st_ino
    run("set", *ALL)
    assert (run.read("key"), (run.directory / "key").stat().st_ino) == (before, inode)
    (run.directory / "key").chmod(0o600)
    assert run("check", *ALL) == ["wrong key"]
    run("set", *ALL)
    assert (run.read("key"), run.mode("key")) == (before, 0o400)


def test_two_generated_secrets_differ(run: Program) -> None:
    run("set", "generated a", "generated b")
    assert run.read("a") != run.read("b")


def test_another_value_replaces_a_file_as_a_whole(run: Program) -> None:
    run("set", *ALL)
    # The file that a running container has mounted.
    before = (run.directory / "token").open()
    later = given("token", "other")
    assert run("check", *ALL[:2], later, ALL[3]) == ["wrong token"]
    run("set", *ALL[:2], later, ALL[3])
    assert run.read("token") == "other"
    assert before.read() == ODD


def test_files_that_a_killed_run_left_are_removed(run: Program) -> None:
    run("set", *ALL)
    (run.directory / ".token.new").write_text("half")
    (run.directory / "token").unlink()
    assert run("check", *ALL) == ["wrong token"]
    run("set", *ALL)
    assert run.read("token") == ODD
    assert not (run.directory / ".token.new").exists()


def test_an_empty_file_is_none(run: Program) -> None:
    run("set", *ALL)
    (run.directory / "key").chmod(0o600)
    (run.directory / "key").write_text("")
    assert run("check", *ALL) == ["wrong key"]
    run("set", *ALL)
    assert len(run.read("key")) == 43


def test_unlisted_files_are_named_and_left_alone(run: Program) -> None:
    run("set", *ALL)
    (run.directory / "database_url").write_text("x")
    (run.directory / "database_url_reports").write_text("x")
    assert run("check", "owner prod", "generated key") == [
        "other .registry_ghcr.io",
        "other token",
    ]
    run("set", "owner prod", "generated key")
    assert run.read("token") == ODD


def test_an_open_directory_is_closed(run: Program) -> None:
    run("set", *ALL)
    run.directory.chmod(0o755)
    assert run("check", *ALL) == ["wrong key", "wrong token", "wrong .registry_ghcr.io"]
    run("set", *ALL)
    assert run.mode() == 0o700
    assert run("check", *ALL) == []


def test_an_account_that_is_not_there_yet(run: Program) -> None:
    assert run("check", "owner web", "generated key") == ["wrong key"]
    with pytest.raises(SystemExit, match="user: there is no account 'web'"):
        run("set", "owner web", "generated key")
    assert not (run.directory / "key").exists()


def test_a_link_is_not_followed(run: Program, tmp_path: Path) -> None:
    run("set", *ALL)
    (run.directory / "token").unlink()
    precious = tmp_path / "precious"
    precious.write_text(ODD)
    (run.directory / "token").symlink_to(precious)
    assert run("check", *ALL) == ["wrong token"]
    run("set", *ALL)
    assert not (run.directory / "token").is_symlink()
    assert precious.stat().st_mode & 0o777 != 0o400


def test_a_directory_in_the_way_is_said(run: Program) -> None:
    run("set", "generated key")
    (run.directory / "token").mkdir()
    with pytest.raises(SystemExit, match="token is a directory: remove it"):
        run("set", "generated key", given("token", "x"))


def test_renew_makes_another(run: Program) -> None:
    run("set", *ALL, "generated other")
    before = run.read("key"), run.read("other")
    run.renew("key")
    assert run.read("key") != before[0]
    assert len(run.read("key")) == 43
    assert run.read("other") == before[1]
    assert run.mode("key") == 0o400
    assert run("check", *ALL, "generated other") == []


@pytest.mark.parametrize(
    "name",
    [
        *("kye", "", ".registry_ghcr.io", "database_url", "database_url_reports"),
        *("../api/key", "/etc/passwd"),
    ],
)
def test_renew_refuses_a_secret_that_does_not_exist(run: Program, name: str) -> None:
    run("set", *ALL)
    (run.directory / "database_url").write_text("x")
    (run.directory / "database_url_reports").write_text("postgresql://reports:x@y:1/reports")
    before = {path: path.read_bytes() for path in run.directory.iterdir()}
    with pytest.raises(SystemExit, match="has no secret"):
        run.renew("key", name)
    assert before == {path: path.read_bytes() for path in run.directory.iterdir()}


@pytest.mark.parametrize(
    "words", [[], ["check"], ["chek", "/x"], ["set", "/x", "y"], ["renew", "/x"]]
)
def test_refuses_another_command_line(words: list[str]) -> None:
    """The program needs no package."""
    result = terrafirma("secrets", *words)
    assert result.returncode == 1
    assert "terrafirma secrets check DIRECTORY" in result.stderr


@pytest.mark.parametrize("line", ["born key", "given token", "given token s3cret", "owner", ""])
def test_another_line_on_standard_input_changes_nothing(run: Program, line: str) -> None:
    with pytest.raises(SystemExit) as refusal:
        run("set", "generated key", line)
    assert str(refusal.value).startswith("terrafirma: ")
    assert "s3cret" not in str(refusal.value)
    assert not run.directory.exists()

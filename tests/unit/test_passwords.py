"""The program that runs on the host: its verifiers are the ones that PostgreSQL makes."""

import base64
import fcntl
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from psycopg import pq

from terrafirma.facts.postgres import psql
from tests.conftest import ROOT
from tests.unit.programs import load

PROGRAM = ROOT / "files" / "postgres" / "postgres-passwords"

# `create role … password …`, then `select rolpassword from pg_authid`, on PostgreSQL 15.18.
PASSWORD = "correct horse battery staple"
SALT = "VMwhW8Ayp7IjJiWBViVKNQ=="
VERIFIER = (
    f"SCRAM-SHA-256$4096:{SALT}"
    "$dt/TJZhM2nU7KblKhUWFxFXQMHWKshbfhjeJwtZmR2A=:o9dZQJ5LBaEQZ4ylNeR54pY3XLkjDyKA1l9wVDX7BFY="
)


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load(PROGRAM)


@pytest.fixture
def directory(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(program, "DIRECTORY", tmp_path)
    return tmp_path


def test_runs_without_any_package_of_ours() -> None:
    bare = [sys.executable, "-I", "-S", str(PROGRAM), "explain", "17"]
    result = subprocess.run(bare, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "postgres-passwords check VERSION" in result.stderr


def test_makes_the_verifier_that_postgresql_makes(program: ModuleType) -> None:
    assert program.verifier(PASSWORD, base64.b64decode(SALT)) == VERIFIER


def test_recognizes_the_password_of_a_verifier(program: ModuleType) -> None:
    assert program.matches(PASSWORD, VERIFIER)


@pytest.mark.parametrize("password", ["", "correct horse", PASSWORD.upper(), f"{PASSWORD} "])
def test_refuses_another_password(program: ModuleType, password: str) -> None:
    assert not program.matches(password, VERIFIER)


def test_agrees_with_libpq_about_new_passwords(program: ModuleType) -> None:
    connection = pq.PGconn.connect_start(b"host=/nowhere")
    for password in ("pencil", "x", "a" * 72, "with ' and \\ and $"):
        made = connection.encrypt_password(password.encode(), b"api", b"scram-sha-256").decode()
        assert program.matches(password, made)
        assert not program.matches(f"{password}x", made)


def test_salts_and_iterations_are_part_of_the_verifier(program: ModuleType) -> None:
    first, second = (program.verifier(PASSWORD, salt, 8192) for salt in (b"a" * 16, b"b" * 16))
    assert first != second
    assert first.startswith("SCRAM-SHA-256$8192:")
    assert program.matches(PASSWORD, first)
    assert program.matches(PASSWORD, second)


@pytest.mark.parametrize(
    "known",
    [
        "",
        "md5a3556571e93b0d20722ba62be61e8c2d",
        PASSWORD,
        "SCRAM-SHA-256$",
        "SCRAM-SHA-256$4096:abc",
        VERIFIER.removesuffix("="),
        VERIFIER.replace("SHA-256", "SHA-512"),
    ],
)
def test_what_is_no_verifier_of_it_does_not_match(program: ModuleType, known: str) -> None:
    assert not program.matches(PASSWORD, known)


@pytest.mark.usefixtures("directory")
def test_a_role_without_a_file_has_no_password(program: ModuleType) -> None:
    assert program.read("api") == ""


# --- as it is called ------------------------------------------------------------------------------


class Program:
    """The program with a cluster of roles and their verifiers instead of psql."""

    def __init__(self, module: ModuleType, patch: pytest.MonkeyPatch) -> None:
        self.module = module
        self.patch = patch
        self.cluster: dict[str, str] = {}
        self.sent: list[str] = []
        patch.setattr(module, "psql", self._psql)

    def _psql(self, version: str, sql: str) -> str:
        assert version == "17"
        if sql.startswith("select "):
            assert sql.startswith("select json_object_agg(rolname, ")
            return json.dumps(self.cluster) + "\n"
        self.sent.append(sql)
        for line in sql.splitlines():
            verb, kind, role, word, verifier = line.split()
            assert (verb, kind, word) == ("alter", "role", "password")
            assert (role[0], role[-1], verifier[0], verifier[-2:]) == ('"', '"', "'", "';")
            self.cluster[role.strip('"')] = verifier[1:-2]
        return ""

    def __call__(self, verb: str, *lines: str) -> None:
        self.patch.setattr(sys, "argv", ["postgres-passwords", verb, "17"])
        self.patch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        self.module.main()

    def password(self, role: str) -> str:
        """That of the file, which the cluster has to have, too."""
        password: str = self.module.read(role)
        assert self.module.matches(password, self.cluster[role])
        return password


@pytest.fixture
def called(
    program: ModuleType, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Program, Path]:
    return Program(program, monkeypatch), directory


GIVEN = "Chosen.elsewhere_~-0123"


def test_a_new_password_is_long_and_closed_to_others(called: tuple[Program, Path]) -> None:
    run, directory = called
    run("set", "role api", "role worker")
    assert sorted(path.name for path in directory.iterdir()) == ["api", "worker"]
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    api, worker = run.password("api"), run.password("worker")
    assert api != worker
    # It goes into a URL as it is.
    for password in (api, worker):
        assert len(password) >= 40
        assert password.replace("-", "").replace("_", "").isalnum()


def test_clear_text_is_not_sent_to_postgresql(called: tuple[Program, Path]) -> None:
    run, _ = called
    run("set", "role api", "role ops", f"given ops {GIVEN}")
    for role in ("api", "ops"):
        assert run.password(role) not in "".join(run.sent)


def test_a_password_that_a_killed_run_left_half_written_is_replaced(
    called: tuple[Program, Path],
) -> None:
    run, directory = called
    (directory / ".api.new").write_text("half")
    run("set", "role api")
    assert "half" not in run.password("api")
    assert [path.name for path in directory.iterdir()] == ["api"]


def test_set_keeps_the_password_that_is_there(called: tuple[Program, Path]) -> None:
    """Else every application would have to be told a new one."""
    run, directory = called
    (directory / "api").write_text("there-is-one\n")
    run("set", "role api")
    assert run.password("api") == "there-is-one"


def test_set_and_renew_do_nothing_to_other_roles(called: tuple[Program, Path]) -> None:
    run, directory = called
    run("set", "role api", "role worker", f"given ops {GIVEN}")
    before = run.password("worker")
    run("renew", "role api")
    assert run.password("worker") == before
    assert sorted(path.name for path in directory.iterdir()) == ["api", "worker"]
    assert sorted(run.cluster) == ["api", "worker"]


def test_set_writes_the_password_that_was_given(called: tuple[Program, Path]) -> None:
    run, directory = called
    run("set", "role api", f"given api {GIVEN}")
    assert run.password("api") == GIVEN
    run("set", f"given api {GIVEN}x", "role api")
    assert run.password("api") == f"{GIVEN}x"
    assert (directory / "api").read_text() == f"{GIVEN}x\n"
    assert (directory / "api").stat().st_mode & 0o777 == 0o600


def test_renew_makes_another_password(called: tuple[Program, Path]) -> None:
    run, _ = called
    run("set", "role api")
    before = run.password("api")
    run("renew", "role api")
    assert run.password("api") != before
    assert len(run.password("api")) >= 40


def test_renew_does_not_replace_a_password_that_was_given(called: tuple[Program, Path]) -> None:
    run, _ = called
    run("renew", "role api", f"given api {GIVEN}")
    run("renew", "role api", f"given api {GIVEN}")
    assert run.password("api") == GIVEN


def test_a_role_with_a_tilde_is_one_of_its_own(called: tuple[Program, Path]) -> None:
    run, directory = called
    run("set", "role api", "role api~")
    assert sorted(path.name for path in directory.iterdir()) == ["api", "api~"]
    api, double = run.password("api"), run.password("api~")
    assert api != double
    run("renew", "role api~")
    assert run.password("api") == api
    assert run.password("api~") != double


# What is in the file, in the cluster and given; whether it is wrong.
CHECKS: dict[str, tuple[str | None, str | None, str | None, bool]] = {
    "as in its file": (GIVEN, GIVEN, None, False),
    "no file": (None, GIVEN, None, True),
    "an empty file": ("", "", None, True),
    "another one in the cluster": (GIVEN, "other", None, True),
    "none in the cluster": (GIVEN, "", None, True),
    "no role in the cluster": (GIVEN, None, None, True),
    "as given": (GIVEN, GIVEN, GIVEN, False),
    "another one was given": (GIVEN, GIVEN, f"{GIVEN}x", True),
    "given, and only in the cluster": ("other", GIVEN, GIVEN, True),
    "given, and only in its file": (GIVEN, "other", GIVEN, True),
    "given, and no file": (None, GIVEN, GIVEN, True),
}


@pytest.mark.parametrize("role", ["api", "api~"])
@pytest.mark.parametrize("what", CHECKS)
def test_check_prints_the_roles_whose_password_is_wrong(
    called: tuple[Program, Path], capsys: pytest.CaptureFixture[str], what: str, role: str
) -> None:
    run, directory = called
    file, cluster, given, wrong = CHECKS[what]
    run("set", "role fine")
    if file is not None:
        (directory / role).write_text(f"{file}\n")
        (directory / role).chmod(0o600)
    if cluster is not None:
        run.cluster[role] = run.module.verifier(cluster, b"salt") if cluster else ""
    before = {path: path.read_text() for path in directory.iterdir()}, dict(run.cluster)
    more = [f"given {role} {given}"] if given else []
    run("check", f"role {role}", "role fine", *more)
    assert capsys.readouterr().out.splitlines() == ([role] if wrong else [])
    assert before == ({path: path.read_text() for path in directory.iterdir()}, run.cluster)


def _link(file: Path) -> None:
    file.symlink_to(file.rename(file.with_name("elsewhere")))


OPENED: dict[str, Callable[[Path], object]] = {
    "mode": lambda file: file.chmod(0o644),
    "group": lambda file: file.chmod(0o640),
    "link": _link,
}
if os.getuid() == 0:
    OPENED["owner"] = lambda file: os.chown(file, 12345, -1)


@pytest.mark.parametrize("how", OPENED)
def test_a_file_that_others_may_read_is_closed(
    called: tuple[Program, Path], capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """With the password that it has: the role's stays, down to its verifier."""
    run, directory = called
    run("set", "role api", f"given api {GIVEN}")
    before = dict(run.cluster)
    OPENED[how](directory / "api")
    run("check", "role api", f"given api {GIVEN}")
    assert capsys.readouterr().out == "api\n"
    run("set", "role api")
    assert (directory / "api").read_text() == f"{GIVEN}\n"
    now = (directory / "api").lstat()
    assert (now.st_mode, now.st_uid) == (0o100600, os.getuid())
    assert run.cluster == before
    run("check", "role api")
    assert capsys.readouterr().out == ""


def test_nobody_is_asked_about(
    called: tuple[Program, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = called
    run("check")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "words", [[], ["check"], ["chek", "17"], ["set", "17", "api"], ["renew", "17", "api", "worker"]]
)
def test_refuses_another_command_line(words: list[str]) -> None:
    """Such as that of before, with the roles in it: they come over standard input."""
    result = subprocess.run(
        [sys.executable, "-I", "-S", str(PROGRAM), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "postgres-passwords check VERSION" in result.stderr


@pytest.mark.parametrize("version", [15, 17])
def test_it_comes_to_postgresql_as_all_the_rest_does(program: ModuleType, version: int) -> None:
    """And pg_stat_statements, which keeps such a statement as it is, does not see its verifiers."""
    options = "-c pg_stat_statements.track=none"
    assert program.command(str(version)) == shlex.split(psql(version, options=options))


def test_names_that_others_chose_are_no_lines_of_its_own(
    called: tuple[Program, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = called
    run("set", "role api")
    right = run.cluster["api"]
    run.cluster |= {f"x\napi {run.module.verifier('other', b'salt')}": "", "y\n": "", "": ""}
    run("check", "role api")
    assert capsys.readouterr().out == ""
    assert run.cluster["api"] == right


def test_one_run_waits_for_the_other(called: tuple[Program, Path]) -> None:
    """Until it ends, in whichever way."""
    run, directory = called
    lock = os.open(directory, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(run, "set", "role api")
        with pytest.raises(TimeoutError):
            done.result(timeout=0.3)
        assert not (directory / "api").exists()
        os.close(lock)
        done.result(timeout=10)
    assert run.password("api")

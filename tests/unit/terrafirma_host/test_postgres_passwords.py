"""Passwords of roles on the host: the verifiers are those that PostgreSQL makes."""

import base64
import fcntl
import io
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from psycopg import pq
from terrafirma_host import postgres
from terrafirma_host import postgres_passwords as program
from terrafirma_host.secrets import Store
from terrafirma_host.shell import Failed

from terrafirma.host.program import told
from terrafirma.postgres.facts import PSQL_OPTIONS, psql_options
from tests.unit.programs import terrafirma

# `create role … password …`, then `select rolpassword from pg_authid`, on PostgreSQL 15.18.
PASSWORD = "correct horse battery staple"
SALT = "VMwhW8Ayp7IjJiWBViVKNQ=="
VERIFIER = (
    f"SCRAM-SHA-256$4096:{SALT}"
    "$dt/TJZhM2nU7KblKhUWFxFXQMHWKshbfhjeJwtZmR2A=:o9dZQJ5LBaEQZ4ylNeR54pY3XLkjDyKA1l9wVDX7BFY="
)


def test_makes_the_verifier_that_postgresql_makes() -> None:
    assert program.verifier(PASSWORD, base64.b64decode(SALT)) == VERIFIER


def test_recognizes_the_password_of_a_verifier() -> None:
    assert program.matches(PASSWORD, VERIFIER)


@pytest.mark.parametrize("password", ["", "correct horse", PASSWORD.upper(), f"{PASSWORD} "])
def test_refuses_another_password(password: str) -> None:
    assert not program.matches(password, VERIFIER)


def test_agrees_with_libpq_about_new_passwords() -> None:
    connection = pq.PGconn.connect_start(b"host=/nowhere")
    for password in ("pencil", "x", "a" * 72, "with ' and \\ and $"):
        made = connection.encrypt_password(password.encode(), b"api", b"scram-sha-256").decode()
        assert program.matches(password, made)
        assert not program.matches(f"{password}x", made)


def test_salts_and_iterations_are_part_of_the_verifier() -> None:
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
def test_another_verifier_does_not_match(known: str) -> None:
    assert not program.matches(PASSWORD, known)


def test_a_role_without_a_file_has_no_password(tmp_path: Path) -> None:
    assert Store(tmp_path, lambda _: None).value("api") == b""


# --- the command ----------------------------------------------------------------------------------


class Program:
    """The program with a cluster of roles and their verifiers instead of psql."""

    def __init__(self, patch: pytest.MonkeyPatch, directory: Path) -> None:
        self.patch = patch
        self.directory = directory
        self.cluster: dict[str, str] = {}
        self.sent: list[str] = []
        patch.setattr(program, "DIRECTORY", directory)
        patch.setattr(program, "ROOT", (os.getuid(), os.getgid()))
        patch.setattr(postgres.Cluster, "sql", lambda *words, **_: self._sql(*words))

    def _sql(self, cluster: postgres.Cluster, sql: str) -> str:
        assert cluster.name == "17/main"
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

    def __call__(self, verb: str, *roles: str, **given: str) -> None:
        """Run it with roles whose password is generated, and given passwords of others."""
        lines = told({**dict.fromkeys(roles), **given})
        self.patch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        program.main([verb, "17"])

    def read(self, role: str) -> str:
        return (self.directory / role).read_text().removesuffix("\n")

    def password(self, role: str) -> str:
        """The password in the file; the cluster must have the same."""
        password = self.read(role)
        assert program.matches(password, self.cluster[role])
        return password


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Program, Path]:
    directory = tmp_path / "postgres"
    directory.mkdir(mode=0o700)
    return Program(monkeypatch, directory), directory


GIVEN = "Chosen.elsewhere_~-0123"


def test_a_new_password_is_long_and_closed_to_others(called: tuple[Program, Path]) -> None:
    run, directory = called
    run("set", "api", "worker")
    assert sorted(path.name for path in directory.iterdir()) == ["api", "worker"]
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    api, worker = run.password("api"), run.password("worker")
    assert api != worker
    # It needs no escaping in a URL.
    for password in (api, worker):
        assert len(password) >= 40
        assert password.replace("-", "").replace("_", "").isalnum()


def test_clear_text_is_not_sent_to_postgresql(called: tuple[Program, Path]) -> None:
    run, _ = called
    run("set", "api", ops=GIVEN)
    for role in ("api", "ops"):
        assert run.password(role) not in "".join(run.sent)


def test_a_password_that_a_killed_run_left_half_written_is_replaced(
    called: tuple[Program, Path],
) -> None:
    run, directory = called
    (directory / ".api.new").write_text("half")
    run("set", "api")
    assert "half" not in run.password("api")
    assert [path.name for path in directory.iterdir()] == ["api"]


def test_set_keeps_the_password_that_is_there(called: tuple[Program, Path]) -> None:
    """Otherwise every application would need a new one."""
    run, directory = called
    (directory / "api").write_text("there-is-one\n")
    run("set", "api")
    assert run.password("api") == "there-is-one"


def test_set_and_renew_do_nothing_to_other_roles(called: tuple[Program, Path]) -> None:
    run, directory = called
    run("set", "api", "worker")
    before = run.password("worker")
    run("renew", "api")
    assert run.password("worker") == before
    assert sorted(path.name for path in directory.iterdir()) == ["api", "worker"]
    assert sorted(run.cluster) == ["api", "worker"]


def test_set_writes_the_password_that_was_given(called: tuple[Program, Path]) -> None:
    run, directory = called
    run("set", api=GIVEN)
    assert run.password("api") == GIVEN
    run("set", api=f"{GIVEN}x")
    assert run.password("api") == f"{GIVEN}x"
    assert (directory / "api").read_text() == f"{GIVEN}x\n"
    assert (directory / "api").stat().st_mode & 0o777 == 0o600


def test_renew_makes_another_password(called: tuple[Program, Path]) -> None:
    run, _ = called
    run("set", "api")
    before = run.password("api")
    run("renew", "api")
    assert run.password("api") != before
    assert len(run.password("api")) >= 40


def test_renew_does_not_replace_a_password_that_was_given(called: tuple[Program, Path]) -> None:
    run, _ = called
    run("renew", api=GIVEN)
    run("renew", api=GIVEN)
    assert run.password("api") == GIVEN


def test_a_role_with_a_tilde_is_one_of_its_own(called: tuple[Program, Path]) -> None:
    run, directory = called
    run("set", "api", "api~")
    assert sorted(path.name for path in directory.iterdir()) == ["api", "api~"]
    api, double = run.password("api"), run.password("api~")
    assert api != double
    run("renew", "api~")
    assert run.password("api") == api
    assert run.password("api~") != double


# The password in the file, in the cluster, and given; whether it is wrong.
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
    run("set", "fine")
    if file is not None:
        (directory / role).write_text(f"{file}\n")
        (directory / role).chmod(0o600)
    if cluster is not None:
        run.cluster[role] = program.verifier(cluster, b"salt") if cluster else ""
    before = {path: path.read_text() for path in directory.iterdir()}, dict(run.cluster)
    run("check", "fine", *([] if given else [role]), **({role: given} if given else {}))
    assert capsys.readouterr().out.splitlines() == ([f"wrong {role}"] if wrong else [])
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
    """The password stays, and so does the role's verifier."""
    run, directory = called
    run("set", api=GIVEN)
    before = dict(run.cluster)
    OPENED[how](directory / "api")
    run("check", api=GIVEN)
    assert capsys.readouterr().out == "wrong api\n"
    run("set", "api")
    assert (directory / "api").read_text() == f"{GIVEN}\n"
    now = (directory / "api").lstat()
    assert (now.st_mode, now.st_uid) == (0o100600, os.getuid())
    assert run.cluster == before
    run("check", "api")
    assert capsys.readouterr().out == ""


def test_no_role_on_standard_input(
    called: tuple[Program, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = called
    run("check")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "words", [[], ["check"], ["chek", "17"], ["set", "17", "api"], ["renew", "17", "api", "worker"]]
)
def test_refuses_another_command_line(words: list[str]) -> None:
    """Such as one with roles: they come over standard input. The program needs no package."""
    result = terrafirma("passwords", *words)
    assert result.returncode == 1
    assert "terrafirma passwords check VERSION" in result.stderr


# --- the connection to PostgreSQL -----------------------------------------------------------------

RUNUSER = """\
#!/bin/sh
test "$1 $2 $3" = "-u postgres --" || exit 9
shift 3
case $1 in pg_conftool) echo "$DATA"; exit ;; esac
exec "$@"
"""
PSQL = """\
#!/bin/sh
echo "$*" > "$0.words"
echo "$PGOPTIONS" > "$0.options"
echo "$PGDATABASE" > "$0.database"
cat > "$0.input"
echo answer
"""


class Host:
    """A host on which the test's own process stands in for the server."""

    def __init__(self, place: Path, patch: pytest.MonkeyPatch) -> None:
        self.data = place / "data"
        self.psql = place / "lib" / "17" / "bin" / "psql"
        self.psql.parent.mkdir(parents=True)
        self.data.mkdir()
        for path, script in ((place / "runuser", RUNUSER), (self.psql, PSQL)):
            path.write_text(script)
            path.chmod(0o755)
        patch.setattr(postgres, "LIB", place / "lib")
        patch.setenv("PATH", f"{place}:{os.environ['PATH']}")
        patch.setenv("DATA", str(self.data))
        patch.chdir(self.data)

    def listens(self, process: int, directory: str = "/sockets") -> None:
        lines = (process, self.data, 1700000000, 5433, directory, "localhost", "x", "ready   ")
        (self.data / "postmaster.pid").write_text("".join(f"{line}\n" for line in lines))

    def said(self, what: str) -> str:
        return self.psql.with_name(f"psql.{what}").read_text().removesuffix("\n")


@pytest.fixture
def on_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_it_connects_with_the_same_session_settings(on_host: Host) -> None:
    """And pg_stat_statements, which would keep the statement, does not see the verifiers."""
    on_host.listens(os.getpid())
    assert postgres.Cluster("17").sql("alter …") == "answer"
    assert on_host.said("words") == "-XAtq -v ON_ERROR_STOP=1 -h /sockets -p 5433"
    assert (on_host.said("input"), on_host.said("database")) == ("alter …", "postgres")
    assert on_host.said("options") == postgres.session("17")["PGOPTIONS"]


@pytest.mark.parametrize("version", [15, 17])
def test_its_sessions_have_all_settings_of_ours(version: int) -> None:
    more = "-c pg_stat_statements.track=none -c client_encoding=UTF8"
    options = postgres.session(str(version))["PGOPTIONS"].replace("-c ", "\n-c ").split("\n")
    expected = f"{psql_options(version)} {more}".replace("-c ", "\n-c ").split("\n")
    assert sorted(map(str.strip, options)) == sorted(map(str.strip, expected))
    assert PSQL_OPTIONS in psql_options(version)


@pytest.mark.parametrize("what", ["no file", "a crash", "no socket", "a server that starts"])
def test_no_other_server_is_taken_for_the_one_that_does_not_run(on_host: Host, what: str) -> None:
    """Its port may belong to another cluster by now."""
    if what == "a crash":
        # Another process has that id now, in another directory.
        on_host.listens(1)
    if what == "no socket":
        on_host.listens(os.getpid(), "")
    if what == "a server that starts":
        (on_host.data / "postmaster.pid").write_text(f"{os.getpid()}\n{on_host.data}\n")
    with pytest.raises(Failed, match=r"^17/main does not run, or has no socket$"):
        postgres.Cluster("17").sql("select 1")
    assert not on_host.psql.with_name("psql.words").exists()


def test_a_line_break_in_a_role_name_is_harmless(
    called: tuple[Program, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = called
    run("set", "api")
    right = run.cluster["api"]
    run.cluster |= {f"x\napi {program.verifier('other', b'salt')}": "", "y\n": "", "": ""}
    run("check", "api")
    assert capsys.readouterr().out == ""
    assert run.cluster["api"] == right


def test_one_run_waits_for_the_other(called: tuple[Program, Path]) -> None:
    """Until it ends, in any way."""
    run, directory = called
    lock = os.open(directory, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(run, "set", "api")
        with pytest.raises(TimeoutError):
            done.result(timeout=0.3)
        assert not (directory / "api").exists()
        os.close(lock)
        done.result(timeout=10)
    assert run.password("api")

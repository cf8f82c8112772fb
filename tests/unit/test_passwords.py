"""The program that runs on the host: its verifiers are the ones that PostgreSQL makes."""

import base64
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
from psycopg import pq

from tests.conftest import ROOT

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
    loader = SourceFileLoader("postgres_passwords", str(PROGRAM))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        loader.exec_module(module)
    return module


@pytest.fixture
def directory(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(program, "DIRECTORY", tmp_path)
    return tmp_path


def test_runs_without_any_package_of_ours() -> None:
    bare = [sys.executable, "-I", "-S", str(PROGRAM), "explain", "17"]
    result = subprocess.run(bare, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "postgres-passwords check VERSION ROLE" in result.stderr


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


def test_a_new_password_is_long_and_closed_to_others(program: ModuleType, directory: Path) -> None:
    program.make("api")
    program.make("worker")
    assert sorted(path.name for path in directory.iterdir()) == ["api", "worker"]
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    api, worker = program.read("api"), program.read("worker")
    assert api != worker
    # It goes into a URL as it is.
    for password in (api, worker):
        assert len(password) >= 40
        assert password.replace("-", "").replace("_", "").isalnum()


def test_a_password_that_a_killed_run_left_half_written_is_replaced(
    program: ModuleType, directory: Path
) -> None:
    (directory / ".api.new").write_text("half")
    assert program.read("api") == ""
    program.make("api")
    assert "half" not in program.read("api")


@pytest.mark.usefixtures("directory")
def test_a_role_without_a_file_has_no_password(program: ModuleType) -> None:
    assert program.read("api") == ""

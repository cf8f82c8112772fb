"""Fixtures for all unit tests: runs of pyinfra, fake hosts, a PostgreSQL cluster."""

import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.conftest import Pyinfra
from tests.unit.facts import Cluster
from tests.unit.fake_host import INVENTORY, Answers
from tests.unit.programs import Program


@pytest.fixture(autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the caches of the user who runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def command_line(pyinfra: Pyinfra) -> Pyinfra:
    """Starts a process for each run, as users do."""
    return Pyinfra()


@pytest.fixture(scope="session")
def pyinfra(pyinfra: Pyinfra) -> Pyinfra:
    return pyinfra.imported


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Writes a shell script that stands in for a program, which need not be installed here."""

    def write(name: str, script: str) -> Path:
        directory = tmp_path / "programs"
        directory.mkdir(exist_ok=True)
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
        return directory

    return write


@pytest.fixture
def inventory(tmp_path: Path) -> Any:
    """An inventory of fake hosts, each with answers and data of its own."""

    def write(**hosts: tuple[Answers, dict[str, Any]]) -> str:
        data = {
            f"@fake/{name}": {"fake_responses": answers, **more}
            for name, (answers, more) in hosts.items()
        }
        path = tmp_path / "fakes.py"
        path.write_text(INVENTORY.format(text=json.dumps(data)))
        return str(path)

    return write


@pytest.fixture(scope="module")
def refused(pyinfra: Pyinfra, request: pytest.FixtureRequest) -> dict[str, CompletedProcess[str]]:
    """The result of a run for each row of the module's table REFUSALS."""
    return pyinfra.call_all(
        {
            what: ["@fake/host", f"{page}.py", "-y", *host]
            for what, (page, host, _) in request.module.REFUSALS.items()
        }
    )


@pytest.fixture
def cluster(program: Program, tmp_path: Path) -> Iterator[Cluster]:
    one = Cluster(program, tmp_path)
    yield one
    one.server.kill()
    one.server.wait()


@pytest.fixture
def no_canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Asserts that no command in HOSTILE was executed."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield
    assert list(Path.cwd().iterdir()) == []


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrusted certificate, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "another.test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(pem, *form) + made.public_bytes(pem))
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context

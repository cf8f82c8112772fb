"""The promises of a host, and the messages when one is broken."""

import datetime as dt
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from terrafirma_host import promises, proxy
from terrafirma_host.postgres import Cluster
from terrafirma_host.promises import broken, certificate, clusters, domains
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Serving

from tests.unit.programs import Program
from tests.unit.terrafirma_host.pages import serving
from tests.unit.terrafirma_host.releases import Answering

NAME = "api.terrafirma.test"


@pytest.fixture(autouse=True)
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(promises, "UNITS", tmp_path / "units")
    monkeypatch.setattr(promises, "BACKUP", tmp_path / "last.json")
    return tmp_path / "units"


def own(units: Path, version: str, *marks: str) -> None:
    directory = units / f"postgresql@{version}-main.service.d"
    directory.mkdir(parents=True)
    for name in ("terrafirma.conf", *marks):
        (directory / name).touch()


# --- applications ---------------------------------------------------------------------------------


def test_a_host_with_nothing_breaks_no_promise(roots: Path) -> None:
    assert broken() == []


def test_replicas_that_answer_are_healthy(answering: Answering) -> None:
    app = answering()
    Serving("r1", "blue", 1, app.slots["blue"]).save(app)
    assert broken() == []


def test_a_replica_that_does_not_answer_is_named(answering: Answering) -> None:
    app = answering(health_path="/503")
    port = app.slots["blue"]
    Serving("r1", "blue", 1, port).save(app)
    (words,) = broken()
    assert words.startswith(f"api: the replica on port {port} is not healthy: it answers 503")


def test_a_missing_replica_is_named(answering: Answering) -> None:
    app = answering()
    with serving() as (port, _):
        pass
    Serving("r1", "blue", 1, port).save(app)
    assert broken() == [
        f"api: the replica on port {port} is not healthy: the connection is closed without an "
        "answer"
    ]


def test_a_replica_is_checked_as_its_own_release_describes(answering: Answering) -> None:
    app = answering(health_path="/503")
    Serving("r1", "blue", 1, app.slots["blue"]).save(app)
    proxy.make_directories()
    proxy.asking(app, "blue").write_text(
        "health_uri /200\nhealth_headers {\n\tHost api.terrafirma.test\n}\n"
    )
    assert broken() == []


def test_an_application_without_a_release_promises_nothing(answering: Answering) -> None:
    answering(health_path="/503")
    assert broken() == []


def test_a_description_for_another_version_is_skipped(roots: Path) -> None:
    (roots / "apps/old.json").write_text('{"name": "old"}')
    (roots / "apps/torn.json").write_text("{")
    assert broken() == []


# --- PostgreSQL -----------------------------------------------------------------------------------


def test_clusters_that_are_set_aside_are_not_checked(units: Path) -> None:
    own(units, "9", "terrafirma-retired.conf")
    own(units, "17")
    own(units, "18", "terrafirma-unfinished.conf")
    (units / "postgresql@15-main.service.d").mkdir()
    assert clusters() == ["17"]


def test_a_database_that_does_not_run_is_named(units: Path, program: Program, roots: Path) -> None:
    own(units, "17")
    directory = program("runuser", "exit 1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{directory}:/usr/bin:/bin")
        assert broken() == [
            "PostgreSQL 17 answers no query: 17/main does not run, or has no socket"
        ]


def test_postgres_gets_a_query(units: Path, roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(units, "17")
    asked = []

    def run(*words: object, **how: object) -> str:
        asked.append(words)
        return "1\n"

    monkeypatch.setattr(Cluster, "address", lambda self: ("/run/postgresql", "5432"))
    monkeypatch.setattr(promises, "run", run)
    assert broken() == []
    ((*_, query, at, directory, _, _),) = asked
    assert (query, at, directory) == ("select 1", "-h", "/run/postgresql")


def test_an_enabled_pooler_must_run(units: Path, roots: Path, program: Program) -> None:
    directory = program("systemctl", "test $1 = is-enabled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{directory}:/usr/bin:/bin")
        assert broken() == []
        (units / "pgbouncer.service.d").mkdir(parents=True)
        (units / "pgbouncer.service.d/terrafirma.conf").touch()
        assert broken() == ["PgBouncer does not run: `journalctl -u pgbouncer`"]


# --- Caddy ----------------------------------------------------------------------------------------

CADDYFILE = f"""\
# Managed by Terrafirma: tasks/caddy.py
{{
\tadmin localhost:2019
log {{
}}
}}

www.terrafirma.test {{
\tredir https://{NAME}{{uri}} 308
}}

{NAME} {{
\t@api.green {{
\t}}
}}
"""


def test_the_sites_names_are_read_from_the_caddyfile(roots: Path) -> None:
    assert domains() == []
    proxy.CADDYFILE.parent.mkdir()
    proxy.CADDYFILE.write_text(CADDYFILE)
    assert domains() == [NAME, "www.terrafirma.test"]
    proxy.CADDYFILE.write_text(CADDYFILE.partition("\n")[2])
    assert domains() == []


def test_a_stopped_caddy_is_reported_once(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.CADDYFILE.parent.mkdir()
    proxy.CADDYFILE.write_text(CADDYFILE)
    monkeypatch.setattr(proxy, "runs", lambda: False)
    assert broken() == ["Caddy does not run: `journalctl -u caddy`"]


@pytest.mark.parametrize(
    ("status", "guarded", "on", "wrong"),
    [
        (200, False, False, False),
        (500, False, False, True),
        (401, False, False, True),
        (401, True, False, False),
        # A maintenance page is intended.
        (503, False, True, False),
    ],
)
def test_the_application_must_answer_through_caddy(
    answering: Answering,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    guarded: bool,
    on: bool,
    wrong: bool,
) -> None:
    app = answering(guarded=guarded)
    Serving("r1", "blue", 1, app.slots["blue"]).save(app)
    proxy.make_directories()
    proxy.CADDYFILE.write_text(CADDYFILE.replace(NAME, app.domain))
    if on:
        proxy.maintenance(app).touch()
    monkeypatch.setattr(proxy, "runs", lambda: True)
    monkeypatch.setattr(promises, "certificate", lambda name: "")
    monkeypatch.setattr(proxy, "ask", lambda front: status)
    assert broken() == ([f"https://{app.domain}/200 answers {status}"] if wrong else [])


def test_a_site_without_a_certificate_is_named(
    roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.CADDYFILE.parent.mkdir()
    proxy.CADDYFILE.write_text(CADDYFILE)
    monkeypatch.setattr(proxy, "runs", lambda: True)
    monkeypatch.setattr(promises, "certificate", lambda name: "certificate has expired")
    assert broken() == [
        f"https://{name} has no good certificate: certificate has expired"
        for name in (NAME, "www.terrafirma.test")
    ]


# --- certificates ---------------------------------------------------------------------------------


@contextmanager
def https(path: Path, *names: str, days: int = 1) -> Iterator[int]:
    """A site with a certificate for these names, by an unknown authority."""
    key, authority = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now = dt.datetime.now(dt.UTC)
    alternatives: list[x509.GeneralName] = [
        x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
        for name in names
    ]
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody")]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=9))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=True)
        .sign(authority, hashes.SHA256())
    )
    (path / "key.pem").write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path / "key.pem")
    with serving(context) as (port, _):
        yield port


def test_a_certificate_of_any_authority_is_good(tmp_path: Path) -> None:
    with https(tmp_path, NAME) as port:
        assert certificate(NAME, port) == ""
    with https(tmp_path, "*.terrafirma.test") as port:
        assert certificate(NAME, port) == ""
    with https(tmp_path, "127.0.0.1") as port:
        assert certificate("127.0.0.1", port) == ""


def test_a_certificate_for_another_name_is_bad(tmp_path: Path) -> None:
    with https(tmp_path, "www.terrafirma.test") as port:
        assert "Hostname mismatch" in certificate(NAME, port)


def test_an_expired_certificate_is_bad(tmp_path: Path) -> None:
    with https(tmp_path, NAME, days=-1) as port:
        assert certificate(NAME, port) == "certificate has expired"


def test_a_missing_certificate_is_bad() -> None:
    with serving() as (port, _):
        assert certificate(NAME, port).startswith("there is none (")
    assert certificate(NAME, port) == "Connection refused"


# --- as a command ---------------------------------------------------------------------------------


def test_the_exit_code_says_whether_anything_is_broken(
    roots: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    promises.main([])
    assert capsys.readouterr().out == "all is as promised\n"
    monkeypatch.setattr(promises, "broken", lambda: ["one", "two"])
    with pytest.raises(SystemExit, match="1"):
        promises.main([])
    assert capsys.readouterr().out == "one\ntwo\n"


@pytest.mark.parametrize(
    ("content", "enabled", "said"),
    [
        ('{"words": "the last backup failed", "invocation": "a"}', True, "the last backup failed"),
        ('{"words": "", "invocation": "a"}', True, "all is as promised"),
        ("", True, "all is as promised"),
        # You have ended the backups.
        ('{"words": "the last backup failed"}', False, "all is as promised"),
    ],
)
def test_the_last_backup_is_reported(
    roots: Path, program: Program, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], content: str, enabled: bool, said: str,
) -> None:  # fmt: skip
    """But no reboot or upgrade waits for the next backup, or is undone because of it."""
    answer = "true" if enabled else "false"
    directory = program("systemctl", f'test "$*" = "is-enabled borgmatic.timer" && {answer}')
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    (roots / "last.json").write_text(content)
    with pytest.raises(SystemExit) if "failed" in said else nullcontext():
        promises.main([])
    assert capsys.readouterr().out == f"{said}\n"
    assert broken() == []


def test_a_check_that_fails_counts_as_a_broken_promise(
    roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs() -> bool:
        raise Failed("systemctl: no")

    proxy.CADDYFILE.parent.mkdir()
    proxy.CADDYFILE.write_text(CADDYFILE)
    monkeypatch.setattr(proxy, "runs", runs)
    assert broken() == ["Caddy does not run: `journalctl -u caddy`"]

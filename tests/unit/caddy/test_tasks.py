"""What a run plans for Caddy: sites, and warnings about their names."""

import ssl
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from terrafirma.caddy.facts import CaddyVersion, Names
from tests.conftest import Pyinfra
from tests.unit.fake_host import api, command, commands, fake, machine, refuses, written

# --- refusals -------------------------------------------------------------------------------------

# The mistake; the task; the host; the key in the message, and what would be right.
REFUSALS: dict[str, tuple[str, list[str], Sequence[str]]] = {
    "a foreign Caddyfile": (
        "tasks/caddy",
        fake(machine(caddyfile="foreign")),
        ("apps: ", "/etc/caddy/Caddyfile", "move it away"),
    ),
    "a foreign Caddyfile below the platform": (
        "deploy",
        fake(machine(caddyfile="foreign")),
        ("apps: ", "/etc/caddy/Caddyfile"),
    ),
    "a snippet that is not there": (
        "tasks/caddy",
        fake(machine(), **api(snippet="no/where.caddy")),
        ("apps.api.snippet: ", "cannot read 'no/where.caddy'"),
    ),
    "a snippet that is no text": (
        "tasks/caddy",
        fake(machine(), **api(snippet=".venv/bin/caddy")),
        ("apps.api.snippet: ", "cannot read '.venv/bin/caddy' (not a text file)"),
    ),
    "a root of no authority": (
        "tasks/caddy",
        fake(machine(), caddy_acme_ca_root="LICENSE"),
        ("caddy_acme_ca_root: ", "caddy_acme_ca is empty"),
    ),
    "a root that is no certificate": (
        "tasks/caddy",
        fake(machine(), caddy_acme_ca="https://ca.acme.test/d", caddy_acme_ca_root="LICENSE"),
        ("caddy_acme_ca_root: ", "'LICENSE' is no certificate in PEM"),
    ),
    "a header of two lines": (
        "tasks/caddy",
        fake(machine(), **api(headers={"X-Mine": "a\nb"})),
        ("apps.api.headers.X-Mine: ", "line break"),
    ),
    "a guard of nothing": (
        "tasks/caddy",
        fake(machine(), **api(guards=[{"path": "/admin/*"}])),
        ("apps.api.guards.0: ", "/admin/*", "neither allow nor users"),
    ),
    "a redirect to itself": (
        "tasks/caddy",
        fake(machine(), **api(redirects=["api.terrafirma.test"])),
        ("apps.api.redirects: ", "'api.terrafirma.test' is there twice"),
    ),
    "a guard that guards nothing": (
        "tasks/caddy",
        fake(machine(), **api(guards=[{"path": "/admin/*"}])),
        ("apps.api.guards.0: ", "neither allow nor users"),
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses_in_one_line_before_anything_changes(
    refused: dict[str, CompletedProcess[str]], what: str
) -> None:
    refuses(refused[what], REFUSALS[what][2])


# --- sites ----------------------------------------------------------------------------------------

BCRYPT = "$2b$05$CmPv0xRvR5sSyz9vWiX9mOK8jNmGCyjRvzcSjPdVlPV7TfJPAu9Mi"


@pytest.mark.parametrize(
    ("version", "delays"), [([], False), (["2.6.2"], False), (["v2.11.7 h1:x"], True)]
)
def test_a_site_is_as_the_installed_caddy_takes_it(
    pyinfra: Pyinfra, tmp_path: Path, version: list[str], delays: bool
) -> None:
    (tmp_path / "mine.caddy").write_text("redir /old /new\n")
    answers = machine() | {command(CaddyVersion): version}
    options = fake(
        answers,
        **api(
            redirects=["www.terrafirma.test"],
            guards=[{"path": "/admin/*", "users": {"bob": BCRYPT}}],
            snippet=str(tmp_path / "mine.caddy"),
        ),
    )
    result = pyinfra.call("@fake/host", "tasks/caddy.py", "--dry", "--diff", *options)
    caddyfile = written(result, "/etc/caddy/Caddyfile")
    assert ("stream_close_delay 30s" in caddyfile) is delays
    assert "redir https://api.terrafirma.test{uri} 308" in caddyfile
    assert "redir /old /new" in caddyfile
    assert "path /admin /admin/*" in caddyfile
    # The password hash is in the file, which is closed to other accounts, and in no output.
    assert "bob *MASKED*" in caddyfile
    assert BCRYPT not in result.stderr + result.stdout


def test_the_root_of_a_private_authority_is_there_before_the_sites(
    pyinfra: Pyinfra, tmp_path: Path
) -> None:
    file = tmp_path / "root.pem"
    path = ssl.get_default_verify_paths().cafile or ssl.get_default_verify_paths().openssl_cafile
    end = "-----END CERTIFICATE-----\n"
    file.write_text(Path(path).read_text().partition(end)[0] + end)
    data = {"caddy_acme_ca": "https://ca.terrafirma.test/d", "caddy_acme_ca_root": str(file)}
    result = pyinfra.call(
        "@fake/host", "tasks/caddy.py", "--dry", "--diff", *fake(machine(), **data)
    )
    root = "/etc/caddy/acme-ca-root.pem"
    assert "BEGIN CERTIFICATE" in written(result, root)
    assert f"acme_ca_root {root}" in written(result, "/etc/caddy/Caddyfile")
    assert result.stderr.index(f"Will create {root}") < result.stderr.index("/etc/caddy/Caddyfile")


@pytest.mark.parametrize("files", [["tasks/caddy.py"], ["tasks/preflight.py", "tasks/caddy.py"]])
def test_a_name_that_leads_elsewhere_is_reported_once_and_stops_nothing(
    pyinfra: Pyinfra, files: list[str]
) -> None:
    names = command(Names, domains=["acme.com", "www.acme.com"])
    answers = machine() | {names: ["own 8.8.8.8/24", "name acme.com 9.9.9.9"]}
    more = api(domain="acme.com", redirects=["www.acme.com"])
    result = pyinfra.call("@fake/host", *files, "--dry", *fake(answers, **more))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("acme.com leads to 9.9.9.9, which is not the host (8.8.8.8)") == 1
    assert result.stderr.count("www.acme.com has no address") == 1


def test_names_that_no_authority_signs_are_not_looked_up(pyinfra: Pyinfra) -> None:
    result = pyinfra.call("@fake/host", "tasks/caddy.py", "--dry", "-vv", *fake(machine()))
    assert not [one for one in commands(result) if "getent ahosts" in one]

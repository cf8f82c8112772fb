"""What facts read of applications: releases, ports, secrets and database addresses."""

import getpass
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pyinfra.api import FactProcessError

from terrafirma.app.description import description
from terrafirma.app.facts import AppSecrets, DatabaseUrl, Kept, KeptState, ReleaseStatus
from terrafirma.paths import APPLICATIONS, HOST_PROGRAM
from tests.unit.facts import shell, text
from tests.unit.programs import Program
from tests.unit.settings import API, entry, server

PASSWORDS = "/etc/terrafirma/secrets/postgres"


# --- releases -------------------------------------------------------------------------------------

STATUS = {
    "serving": "0123456789ab",
    "wanted": "ba9876543210",
    "withdrawn": True,
    "current": False,
    "trouble": "",
    "silent": [],
    "troubles": [],
    "notes": [],
}


def released(script: str, tmp_path: Path, program: Program) -> str:
    """Ask a script on this machine that takes the place of the host's program."""
    program("docker", "true")
    (tmp_path / "terrafirma").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "terrafirma").chmod(0o755)
    return text(ReleaseStatus, app="it's mine").replace(HOST_PROGRAM, f"{tmp_path}/terrafirma")


def test_the_description_of_an_application_is_no_argument(program: Program, tmp_path: Path) -> None:
    """It comes on standard input, because in a dry run the host still has the old one."""
    asked = tmp_path / "asked"
    script = f"printf '<%s>' \"$@\" > {asked}; cat >> {asked}; echo '{json.dumps(STATUS)}'"
    command = released(script, tmp_path, program)
    output = shell(command, tmp_path / "programs", stdin='{"name": "api"}')
    assert ReleaseStatus().process(output) == STATUS
    assert asked.read_text() == "<status><--stdin><it's mine>" + '{"name": "api"}'


def test_an_earlier_program_reports_no_silent_replicas() -> None:
    """A dry run still asks the earlier program."""
    before = {key: STATUS[key] for key in ("serving", "wanted", "withdrawn", "current", "trouble")}
    assert ReleaseStatus().process([json.dumps(before)]) == STATUS


def test_an_error_of_an_older_program_means_no_release(program: Program, tmp_path: Path) -> None:
    """The run replaces the program before it releases."""
    command = released("echo 'no such command' >&2; exit 2", tmp_path, program)
    assert shell(command, tmp_path / "programs") == []


def test_a_host_without_the_program_has_no_release() -> None:
    assert shell(text(ReleaseStatus, app="api").replace(HOST_PROGRAM, "/nowhere/terrafirma")) == []


# --- addresses of databases -----------------------------------------------------------------------


@pytest.fixture
def address(tmp_path: Path) -> Callable[..., str]:
    """Whether a file has the address of a database; the files are below `tmp_path`."""

    def read(user: str = "", database: str = "api") -> str:
        url = f"postgresql://api:*@host.docker.internal:5432/{database}"
        path = f"{tmp_path}/it's {PASSWORDS.rpartition('/')[2]}"
        command = text(DatabaseUrl, path=path, url=url, role="api", user=user or getpass.getuser())
        answer: str = DatabaseUrl().process(
            shell(command.replace(f"{PASSWORDS}/", f"{tmp_path}/passwords/"))
        )
        return answer

    passwords = tmp_path / "passwords"
    passwords.mkdir()
    (passwords / "api").write_text("s3cret_-\n")
    file = tmp_path / f"it's {PASSWORDS.rpartition('/')[2]}"
    file.write_text("postgresql://api:s3cret_-@host.docker.internal:5432/api\n")
    file.chmod(0o400)
    return read


def test_an_address_is_right(address: Callable[..., str]) -> None:
    assert address() == "right"


def test_an_address_of_another_database_is_wrong(address: Callable[..., str]) -> None:
    assert address(database="other") == "wrong"


def test_an_address_with_another_password_is_wrong(
    address: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "passwords" / "api").write_text("other\n")
    assert address() == "wrong"


def test_an_address_that_others_may_read_is_wrong(
    address: Callable[..., str], tmp_path: Path
) -> None:
    for path in tmp_path.glob("it's *"):
        path.chmod(0o444)
    assert address() == "wrong"


def test_an_address_that_is_not_there_is_wrong(address: Callable[..., str], tmp_path: Path) -> None:
    for path in tmp_path.glob("it's *"):
        path.unlink()
    assert address() == "wrong"


def test_an_address_of_another_account(address: Callable[..., str]) -> None:
    assert address(user="nobody") == "wrong"
    assert address(user="no-such-account") == "no account"


def test_an_address_before_its_password(address: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "passwords" / "api").unlink()
    assert address() == "no password"


# --- secrets of applications ----------------------------------------------------------------------


def test_all_secrets_are_wrong_where_there_is_no_program_yet() -> None:
    """And no value comes back."""
    asked = "owner prod\ngenerated key\ngiven .registry_ghcr.io czNjcmV0\ngiven token czNjcmV0\n"
    answer = shell(text(AppSecrets, directory="/nowhere"), stdin=asked)
    assert AppSecrets().process(answer) == {
        "wrong": ["key", ".registry_ghcr.io", "token"],
        "other": [],
    }


def test_wrong_secrets_and_unknown_ones() -> None:
    assert AppSecrets().process(["wrong a", "other b", "wrong c"]) == {
        "wrong": ["a", "c"],
        "other": ["b"],
    }


@pytest.mark.parametrize("line", ["s3cret", "", "wrong", "wrong a b", "right a"])
def test_an_unknown_answer_about_secrets_is_not_repeated(line: str) -> None:
    with pytest.raises(FactProcessError) as error:
        AppSecrets().process([line])
    assert "s3cret" not in str(error.value)


# --- ports of applications ------------------------------------------------------------------------


def kept(directory: Path) -> KeptState:
    command = text(Kept).replace(APPLICATIONS, str(directory))
    return Kept().process(shell(command))


def kept_ports(directory: Path) -> Mapping[str, int]:
    return kept(directory)["ports"]


def test_a_host_knows_the_ports_of_its_applications(tmp_path: Path) -> None:
    """It reads them from the descriptions that tasks/app.py writes."""
    assert kept_ports(tmp_path / "nowhere") == {}
    assert kept_ports(tmp_path) == {}
    # Variables, secrets and services called like a slot, at the same depth.
    blue = {"env": {"blue": "8000"}, "secrets": {"blue": "env:BLUE"}, "static": {"/blue": "/srv"}}
    entries = {"api": API | blue, "web-2": entry(port=9000, env={"blue": 7000, "green": True})}
    placed = server(apps=entries).with_ports({})
    for app in placed.apps:
        (tmp_path / f"{app.name}.json").write_text(description(app, placed.users))
    assert kept_ports(tmp_path) == {"api": 8000, "web-2": 9000}
    (tmp_path / "api.json").unlink()
    assert kept_ports(tmp_path) == {"web-2": 9000}


def test_a_host_knows_the_ports_of_public_services(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    services = {
        "blue": {"path": "/blue/*", "port": 3000},
        "admin.v2": {"domain": "admin.acme.com", "port": 80, "health_headers": {"Blue": "8"}},
        "worker": {"replicas": 2},
    }
    project = {"source": str(tmp_path), "compose": ["compose.yaml"], "service": "web"}
    entries = {"api": API | project | {"services": services}, "web-2": entry()}
    placed = server(apps=entries).with_ports({"web-2": 9000, "api/blue": 9128})
    for app in placed.apps:
        (tmp_path / f"{app.name}.json").write_text(description(app, placed.users))
    assert kept(tmp_path) == {
        "ports": {"api": 8000, "api/admin.v2": 8128, "api/blue": 9128, "web-2": 9000},
        "routed": ["api"],
    }
    # It stays so when the settings no longer need it.
    app = placed.apps[1]
    (tmp_path / "web-2.json").write_text(description(app, placed.users, routed=True))
    assert kept(tmp_path)["routed"] == ["api", "web-2"]


@pytest.mark.parametrize(
    "line", ["grep: /etc/terrafirma/apps: Is a directory", '/x/api.json:    "blue": ,', "8000"]
)
def test_an_unknown_answer_about_ports_fails(line: str) -> None:
    with pytest.raises(FactProcessError, match="no ports of applications"):
        Kept().process([line])

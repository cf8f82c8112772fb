"""Runs of the task sshd: the connected user keeps access."""

from collections.abc import Sequence
from subprocess import CompletedProcess

import pytest

from terrafirma.host.units import Unit
from tests.conftest import Pyinfra
from tests.unit.fake_host import UBUNTU_24, command, commands, fake, machine, refuses, written
from tests.unit.settings import KEY

# --- they refuse ----------------------------------------------------------------------------------

# The mistake; the task; the host; the parts of the message: the key or the thing, and the remedy.
REFUSALS: dict[str, tuple[str, list[str], Sequence[str]]] = {
    "a port that would close under the run": (
        "tasks/sshd",
        fake(machine(connection="192.0.2.1 5022 192.0.2.2 22"), sshd_ports=[2222]),
        ("sshd_ports: ", "connected to port 22", "list it too"),
    ),
    "root without an administrator": (
        "tasks/sshd",
        fake(machine(), sshd_root_login=False, users_accounts=[{"name": "prod"}]),
        ("sshd_root_login: ", "(none is declared)", "leave sshd_root_login True"),
    ),
    "root with an administrator whose key is elsewhere": (
        "tasks/sshd",
        fake(
            machine(),
            sshd_root_login=False,
            users_accounts=[{"name": "prod"}, {"name": "me", "keys": [KEY], "sudo": ["ALL"]}],
        ),
        ("sshd_root_login: ", "sudo ALL (me)", "cannot be proved"),
    ),
    "a login that would be locked out by its password": (
        "tasks/sshd",
        fake(machine(root="", sudo="yes", user="me"), ssh_password="s3cret"),
        ("sshd_password_authentication: ", "with a key"),
    ),
    "a root login that would be locked out by its password": (
        "tasks/sshd",
        fake(machine(), ssh_password="s3cret"),
        ("sshd_password_authentication: ", "with a key"),
    ),
    "a root login with a password, which never works": (
        "tasks/sshd",
        fake(machine(), ssh_password="s3cret", sshd_password_authentication=True),
        ("sshd_password_authentication: ", "with a key"),
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses_in_one_line_before_anything_changes(
    refused: dict[str, CompletedProcess[str]], what: str
) -> None:
    refuses(refused[what], REFUSALS[what][2])


def test_a_password_is_not_repeated(refused: dict[str, CompletedProcess[str]]) -> None:
    for result in refused.values():
        assert "s3cret" not in result.stdout + result.stderr


# --- the connected user keeps access --------------------------------------------------------------


def test_a_password_login_works_while_passwords_are_allowed(pyinfra: Pyinfra) -> None:
    me = machine(root="", sudo="yes", user="me")
    host = fake(me, ssh_password="s3cret", sshd_password_authentication=True)
    assert pyinfra.call("@fake/host", "tasks/sshd.py", "--dry", *host).returncode == 0


@pytest.mark.parametrize("more", [[], ["--sudo"]])
def test_sshd_keeps_admitting_the_connected_user(pyinfra: Pyinfra, more: list[str]) -> None:
    """Also with --sudo: root is not the connected user."""
    host = fake(machine(root="", sudo="yes", user="admin"))
    how = ("--dry", "--diff", "-vv")
    result = pyinfra.call("@fake/host", "tasks/sshd.py", *how, *more, *host)
    assert "AllowUsers admin dev ingres prod" in written(
        result, "/etc/ssh/sshd_config.d/00-terrafirma.conf"
    )
    assert "Machine (_sudo=False)" in result.stderr


DROP_IN = "/etc/ssh/sshd_config.d/00-terrafirma.conf"
SOCKET = "/etc/systemd/system/ssh.socket.d/terrafirma.conf"
UNIT = command(
    Unit, unit="ssh.service", reload_on=[DROP_IN], socket="ssh.socket", socket_files=[SOCKET]
)


@pytest.mark.parametrize(
    ("answer", "done"),
    [
        (["UnitFileState=enabled"], "systemctl reload ssh.service"),
        # It would not find the socket again that it was handed.
        (["UnitFileState=disabled", "on_demand"], "systemctl restart ssh.service"),
    ],
)
def test_sshd_reads_its_file_and_the_port_stays_open(
    pyinfra: Pyinfra, answer: list[str], done: str
) -> None:
    state = ["ActiveState=active", *answer, "started", f"stale_reload={DROP_IN}"]
    host = fake(machine(UBUNTU_24) | {UNIT: state})
    lines = commands(pyinfra.call("@fake/host", "tasks/sshd.py", "-y", "-vv", *host))
    (line,) = [one for one in lines if f"{done} " in f"{one} "]
    assert "enable" not in line
    assert not any("systemctl enable" in one for one in lines)


def test_the_ports_are_those_of_the_socket_too(pyinfra: Pyinfra) -> None:
    state = ["ActiveState=active", "on_demand", "started", f"stale_socket={SOCKET}"]
    host = fake(
        machine(UBUNTU_24, connection="192.0.2.1 5022 192.0.2.2 22") | {UNIT: state},
        sshd_ports=[22, 2222],
    )
    result = pyinfra.call("@fake/host", "tasks/sshd.py", "-y", "--diff", "-vv", *host)
    assert written(result, SOCKET).splitlines()[1:] == [
        "[Socket]",
        "ListenStream=",
        *("ListenStream=0.0.0.0:22", "ListenStream=[::]:22"),
        *("ListenStream=0.0.0.0:2222", "ListenStream=[::]:2222"),
        "BindIPv6Only=ipv6-only",
    ]
    assert "Port 22\nPort 2222\n" in written(result, DROP_IN)
    done = "systemctl stop ssh.service && systemctl restart ssh.socket"
    assert any(done in line for line in commands(result))


def test_root_is_shut_out_through_another_account(pyinfra: Pyinfra) -> None:
    host = fake(machine(root="", sudo="yes", user="admin"), sshd_root_login=False)
    text = written(pyinfra.call("@fake/host", "tasks/sshd.py", "--dry", "--diff", *host), DROP_IN)
    assert "PermitRootLogin no\n" in text
    assert "AllowUsers admin dev ingres prod\n" in text

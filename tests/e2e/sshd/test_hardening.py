"""sshd offers nothing old and nothing that nobody declared, and clients of five years get in."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import HOST, clone
from tests.e2e.sshd.test_lockout import OURS, login
from tests.e2e.support import (
    STATE,
    Container,
    Target,
    changed,
    eventually,
    execute,
    open_ports,
    options,
    target,
)  # fmt: skip

pytestmark = pytest.mark.e2e

KEY = str(STATE / "id_ed25519")


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra, new_key: str) -> Iterator[Target]:
    with clone(pyinfra, "tf-a-hardening", 2579, HOST) as server:
        server.deploy(*OURS, **settings(new_key))
        yield server


def settings(new_key: str, *forwards: str, **more: Any) -> dict[str, Any]:
    admin = {"name": "ingres", "keys": [f"{new_key}.pub"], "sudo": ["ALL"]}
    dev = {"name": "dev", "keys": [f"{new_key}.pub"], "forwards": forwards}
    return {"users_accounts": [admin, dev], "sshd_allow_users": ["root"], "apps": {}} | more


def ssh(server: Target, user: str, key: str, *options: str) -> subprocess.CompletedProcess[str]:
    return execute(
        "ssh", "-F", "/dev/null", "-i", key, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
        "-o", f"UserKnownHostsFile={STATE / 'known_hosts'}", "-p", str(server.port),
        *options, f"{user}@127.0.0.1",
    )  # fmt: skip


@pytest.mark.promise("ssh-audit finds neither a failure nor a warning")
def test_ssh_audit(server: Target, outsider: Container) -> None:
    outsider.run(
        "command -v ssh-audit > /dev/null || { apt-get update -q > /dev/null;"
        " DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends ssh-audit; }"
    )
    # It tries many connections, and sshd counts them.
    answer = outsider.call(f"ssh-audit --json --skip-rate-test {server.address}")
    report = json.loads(answer.stdout)
    found = [
        f"{level}: {one['algorithm']}: {said}"
        for kind in ("kex", "key", "enc", "mac")
        for one in report[kind]
        for level in ("fail", "warn")
        for said in one.get("notes", {}).get(level, ())
    ]
    assert report["key"]
    assert found == []
    assert not report["cves"]


# The controls of dev-sec's ssh-baseline that `sshd -T` answers; each with the right values.
CONTROLS = {
    "permitrootlogin": ("no", "without-password"),
    "addressfamily": ("any",),
    "strictmodes": ("yes",),
    "syslogfacility": ("AUTH",),
    "loglevel": ("VERBOSE",),
    "permituserenvironment": ("no",),
    "logingracetime": ("30",),
    # Theirs is 2: an agent with three keys would keep its owner out.
    "maxauthtries": ("4",),
    "maxsessions": ("10",),
    "maxstartups": ("10:30:60",),
    "pubkeyauthentication": ("yes",),
    "ignorerhosts": ("yes",),
    "ignoreuserknownhosts": ("yes",),
    "hostbasedauthentication": ("no",),
    "passwordauthentication": ("no",),
    "permitemptypasswords": ("no",),
    "kbdinteractiveauthentication": ("no",),
    "kerberosauthentication": ("no",),
    "kerberosorlocalpasswd": ("no",),
    "kerberosticketcleanup": ("yes",),
    "gssapiauthentication": ("no",),
    "gssapicleanupcredentials": ("yes",),
    "tcpkeepalive": ("no",),
    "clientaliveinterval": ("300",),
    "clientalivecountmax": ("3",),
    "permittunnel": ("no",),
    "allowtcpforwarding": ("no",),
    "allowagentforwarding": ("no",),
    "gatewayports": ("no",),
    "x11forwarding": ("no",),
    "x11uselocalhost": ("yes",),
    "printmotd": ("no",),
    "printlastlog": ("no",),
    "banner": ("none",),
    "debianbanner": ("no",),
}


def test_the_controls_of_a_baseline(server: Target) -> None:
    for user in ("dev", "ingres", "root"):
        shown = server.run(f"sshd -T -C user={user},host=x,addr=192.0.2.1").splitlines()
        rules = dict(line.split(" ", 1) for line in shown if " " in line)
        assert {
            keyword: rules[keyword] for keyword, right in CONTROLS.items()
            if rules[keyword] not in right
        } == {}  # fmt: skip
    assert server.run("stat -c '%a %U %G' /etc/ssh /etc/ssh/sshd_config").splitlines() == [
        "755 root root", "644 root root",
    ]  # fmt: skip
    assert server.run("awk '/^[0-9]/ && $5 < 2047' /etc/ssh/moduli") == ""


# The least that clients of the last five years offer; see docs/tasks/sshd.md.
CLIENTS = {
    "OpenSSH 8.4, 2020": ("curve25519-sha256", "chacha20-poly1305@openssh.com", "", "ssh-ed25519"),
    "paramiko, and so pyinfra and Ansible": (
        "curve25519-sha256@libssh.org", "aes128-ctr", "hmac-sha2-256-etm@openssh.com",
        "ssh-ed25519",
    ),
    "Go": ("curve25519-sha256@libssh.org", "aes128-gcm@openssh.com", "", "rsa-sha2-512"),
    "Java": ("curve25519-sha256", "aes256-ctr", "hmac-sha2-512-etm@openssh.com", "rsa-sha2-256"),
    "OpenSSH 9.9": ("mlkem768x25519-sha256", "aes256-gcm@openssh.com", "", "ssh-ed25519"),
}  # fmt: skip


@pytest.mark.promise("SSH clients of the last five years get in, older algorithms do not")
@pytest.mark.parametrize("client", CLIENTS)
def test_clients_of_five_years_get_in(server: Target, new_key: str, client: str) -> None:
    exchange, cipher, mac, host_key = CLIENTS[client]
    words = [
        f"-oKexAlgorithms={exchange}", f"-oCiphers={cipher}", f"-oHostKeyAlgorithms={host_key}",
        *([f"-oMACs={mac}"] if mac else []),
    ]  # fmt: skip
    if exchange not in execute("ssh", "-Q", "kex").stdout.split():
        pytest.skip(f"the client here does not know {exchange}")
    done = ssh(server, "ingres", new_key, *words, "-oRemoteCommand=sudo -n id -u")
    assert done.stdout == "0\n", done.stderr


@pytest.mark.promise(like=test_clients_of_five_years_get_in)
@pytest.mark.parametrize(
    "option",
    [
        "KexAlgorithms=diffie-hellman-group14-sha256", "KexAlgorithms=ecdh-sha2-nistp256",
        "MACs=hmac-sha1", "MACs=hmac-sha2-256", "HostKeyAlgorithms=ecdsa-sha2-nistp256",
        "PreferredAuthentications=password,keyboard-interactive",
    ],
)  # fmt: skip
def test_what_is_older_is_refused(server: Target, new_key: str, option: str) -> None:
    # A cipher with a code of its own would need no MAC.
    done = ssh(server, "ingres", new_key, f"-o{option}", "-oCiphers=aes128-ctr")
    assert done.returncode == 255
    assert "no matching" in done.stderr.lower() or "Permission denied" in done.stderr


@pytest.mark.long
def test_forwarding_is_for_those_who_declare_it(server: Target, new_key: str) -> None:
    server.run("systemd-run --quiet --unit=web python3 -m http.server --bind 127.0.0.1 8099")

    def reached(user: str, port: int) -> str:
        words = ["-W", f"127.0.0.1:{port}"]
        request = "GET / HTTP/1.0\r\n\r\n"
        done = execute(
            "ssh", "-F", "/dev/null", "-i", new_key, "-o", "BatchMode=yes",
            "-o", f"UserKnownHostsFile={STATE / 'known_hosts'}", "-p", str(server.port),
            *words, f"{user}@127.0.0.1", stdin=request,
        )  # fmt: skip
        return done.stdout

    server.deploy(*OURS, **settings(new_key, "127.0.0.1:8099"))
    eventually(lambda: "200 OK" in reached("dev", 8099), 20)
    assert reached("dev", 22) == ""
    assert reached("ingres", 8099) == ""
    assert changed(server.deploy(*OURS, **settings(new_key, "127.0.0.1:8099"))) == []
    server.deploy(*OURS, **settings(new_key))
    assert reached("dev", 8099) == ""
    server.run("systemctl stop web")


@pytest.mark.promise(
    "Files of sshd that sort before Terrafirma's, and Match blocks, cannot weaken it unnoticed"
)
@pytest.mark.long
def test_files_that_sort_earlier_are_named(server: Target, new_key: str) -> None:
    foreign = "/etc/ssh/sshd_config.d/00-a.conf"
    server.run(
        f"printf 'Ciphers aes128-cbc\\nMatch User dev\\n  AllowTcpForwarding yes\\n' > {foreign}"
    )
    try:
        line = server.refuse(*OURS, **settings(new_key))
    finally:
        server.run(f"rm {foreign}")
    assert f"ciphers aes128-cbc ({foreign}:1)" in line
    assert f"treat dev otherwise than declared: allowtcpforwarding yes ({foreign}:3)" in line


@pytest.mark.promise("root is shut out only after an administrator's login is proved")
@pytest.mark.long
def test_root_is_shut_out(server: Target, new_key: str) -> None:
    # The administrator is declared by the same run that ends root's logins.
    server.deploy(*OURS, **settings(new_key) | {"users_accounts": []})
    declared = settings(new_key, sshd_root_login=False, sshd_allow_users=[])
    result = server.pyinfra.imported.call("-y", *options(declared), *server.arguments(), *OURS)
    assert result.returncode == 0, result.stderr
    assert "from the next run on, connect as one (ssh_user)" in result.stderr
    assert not login(server, "root", KEY)
    assert changed(server.deploy(*OURS, user="ingres", key=new_key, **declared)) == []
    # And back.
    server.deploy(*OURS, user="ingres", key=new_key, **settings(new_key))
    assert login(server, "root", KEY)


@pytest.mark.promise(
    "sshd listens on exactly the declared ports, also where systemd does it for it"
)
@pytest.mark.long
@pytest.mark.parametrize("distro", ["debian13", "ubuntu2404-like"])
def test_several_ports(pyinfra: Pyinfra, outsider: Container, new_key: str, distro: str) -> None:
    with target(pyinfra, "tf-a-ports", 2581, distro) as server:
        declared = settings(new_key, sshd_ports=[22, 2222])
        files = ("tasks/apt.py", *OURS)
        server.deploy(*files, **settings(new_key))
        server.deploy(*files, **declared)
        assert open_ports(outsider, server, 22, 2222) == [22, 2222]
        assert changed(server.deploy(*files, **declared)) == []
        server.reboot()
        eventually(lambda: open_ports(outsider, server, 22, 2222) == [22, 2222], 60)
        time.sleep(1)
        server.deploy(*files, **settings(new_key, sshd_ports=[22]))
        assert open_ports(outsider, server, 22, 2222) == [22]
        line = server.refuse(*OURS, **settings(new_key, sshd_ports=[2222]))
        assert "sshd_ports: you are connected to port 22, which would close" in line

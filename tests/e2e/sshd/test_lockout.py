"""Lock-outs: every declared account can log in, whatever the server looked like before."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.support import STATE, Target, changed, execute, options, output, target

pytestmark = pytest.mark.e2e

TASKS = ("tasks/preflight.py", "tasks/apt.py", "tasks/users.py", "tasks/sshd.py")
OURS = ("tasks/users.py", "tasks/sshd.py")

# Start-up files that run before each of our commands. Their output is not valid UTF-8.
START = r"""
echo "Welcome, id=fedora"; printf 'Gr\374\337e, no line break' >&2
read -r answer; read -r answer
cd /tmp; umask 777; set -u; PATH=/nowhere; IFS=abc
export LANG=de_DE.UTF-8 LANGUAGE=de LC_ALL=xx_YY.UTF-8 LD_PRELOAD=/no/such.so POSIXLY_CORRECT=1
export CDPATH=/:/etc GREP_OPTIONS=-v BASH_ENV=/etc/passwd ENV=/etc/passwd TZ=Nowhere/Else TERM=xterm
sudo() { echo no; }; sh() { echo no; }; printf() { echo no; }; export -f sh
shopt -s expand_aliases; alias sudo=false env=false
trap 'echo bye; echo bye >&2; exit 9' EXIT
"""


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with target(pyinfra, "tf-a-lockout", 2575) as server:
        # An account that came with the image deploys.
        server.run(
            "useradd -m -s /bin/bash ops && install -d -o ops -m 700 /home/ops/.ssh"
            " && install -o ops -m 600 /root/.ssh/authorized_keys /home/ops/.ssh/"
            " && echo 'ops ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/20-image"
        )
        yield server


def login(server: Target, user: str, key: str, command: str = "true") -> bool:
    done: subprocess.CompletedProcess[str] = execute(
        "ssh", "-F", "/dev/null", "-i", key, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
        "-o", f"UserKnownHostsFile={STATE / 'known_hosts'}", "-p", str(server.port),
        f"{user}@127.0.0.1", command,
    )  # fmt: skip
    return done.returncode == 0


@pytest.fixture(scope="module")
def data(new_key: str) -> dict[str, Any]:
    """`dev` may run one command as root, `ingres` every command."""
    keys = [f"{new_key}.pub"]
    return {
        "users_accounts": [
            {"name": "prod"},
            {"name": "ingres", "keys": keys, "sudo": ["ALL"]},
            {"name": "dev", "keys": keys, "sudo": ["/usr/bin/id"], "groups": ["users"]},
        ],
        "sshd_allow_users": ["root", "ops"],
        "apt_packages": ["less"],
    }


@pytest.fixture(scope="module")
def converged(server: Target, data: dict[str, Any]) -> Target:
    server.deploy(*OURS, **data)
    return server


def everybody_gets_in(server: Target, new_key: str) -> None:
    mine = str(STATE / "id_ed25519")
    assert login(server, "root", mine)
    assert login(server, "ops", mine, "/usr/bin/sudo -n true")
    assert login(server, "ingres", new_key, "sudo -n true")
    assert login(server, "dev", new_key, "sudo -n id && ! sudo -n true")


@pytest.mark.promise(
    "Start-up files, locale and aliases of the deploying account do not affect a run"
)
def test_a_hostile_login_deploys(server: Target, data: dict[str, Any], new_key: str) -> None:
    server.run("echo LANG=de_DE.UTF-8 > /etc/default/locale")
    server.run("echo 'PATH=/usr/bin' >> /etc/environment; echo 'LC_ALL=de_DE' >> /etc/environment")
    # sudo prints a lecture each time, and that it cannot resolve the host.
    server.run("printf 'Defaults lecture=always\\n' > /etc/sudoers.d/10-lecture; hostname nowhere")
    # A wrapper around every command prints, too.
    server.run(
        'printf \'#!/bin/sh\\necho audited\\nexec "$SHELL" -c "$SSH_ORIGINAL_COMMAND"\\n\''
        " > /usr/local/bin/audit; chmod +x /usr/local/bin/audit;"
        "printf 'Match User ops\\n  ForceCommand /usr/local/bin/audit\\n'"
        " > /etc/ssh/sshd_config.d/60-audit.conf; systemctl reload ssh"
    )
    server.run("cat > /home/ops/.bashrc; cp /home/ops/.bashrc /home/ops/.profile", stdin=START)
    mine = str(STATE / "id_ed25519")
    try:
        first = server.deploy(*TASKS, user="ops", key=mine, **data)
        assert {"Install the base packages", "Create the accounts"} <= {*changed(first)}
        assert changed(server.deploy(*TASKS, user="ops", key=mine, **data)) == []
        assert server.run("stat -c '%a %U %G' /home/dev/.ssh/authorized_keys") == "600 dev dev"
    finally:
        server.run(
            "hostname $(cat /etc/hostname); rm -f /etc/sudoers.d/10-lecture /home/ops/.bashrc"
            " /home/ops/.profile /etc/default/locale /etc/ssh/sshd_config.d/60-audit.conf;"
            " sed -i -e /^PATH/d -e /^LC_ALL/d /etc/environment; systemctl reload ssh"
        )
    assert server.plan(*OURS, **data) == []
    everybody_gets_in(server, new_key)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("exit 0", "the command never began"),
        ("exec cat /etc/hostname", "the command never began"),
        ("cat > /dev/null", "read standard input to its end"),
    ],
)
def test_a_login_that_runs_nothing_is_a_failure(
    converged: Target, data: dict[str, Any], start: str, words: str
) -> None:
    server = converged
    server.run("cat > /home/ops/.bashrc", stdin=start)
    mine = str(STATE / "id_ed25519")
    try:
        result = server.pyinfra.call("-y", *server.arguments("ops", mine), *OURS)
    finally:
        server.run("rm /home/ops/.bashrc")
    assert result.returncode != 0
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("Defaults:ops requiretty", "you must have a tty"),
        ("ops ALL=(ALL) PASSWD: ALL", "a password is required"),
        ("ops ALL=(ALL) !ALL", "'ops' is neither root nor may it use sudo"),
        ("Defaults:ops runas_default=nobody", "(as uid 65534)"),
    ],
)
def test_the_refusal_quotes_sudo(converged: Target, rule: str, words: str) -> None:
    server = converged
    server.run(f"echo '{rule}' > /etc/sudoers.d/30-ops")
    try:
        line = server.refuse(*OURS, user="ops", key=str(STATE / "id_ed25519"))
    finally:
        server.run("rm /etc/sudoers.d/30-ops")
    assert "ssh_user" in line
    assert words in line


def test_programs_that_are_missing_are_named_at_once(converged: Target) -> None:
    server = converged
    server.run("mv /usr/sbin/sysctl /usr/bin/ss /root/")
    try:
        line = server.refuse("tasks/preflight.py")
    finally:
        server.run("mv /root/ss /usr/bin/; mv /root/sysctl /usr/sbin/")
    assert "programs: ss, sysctl missing there" in line
    assert "apt-get install iproute2 procps" in line


DROP_IN = "/etc/ssh/sshd_config.d/50-x.conf"
# How each obstacle is made, how it is removed, and the parts of the message.
CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "sudo rules in other files": (
        "printf '# image\\ndev ALL=(ALL) NOPASSWD: ALL\\n' > /etc/sudoers.d/90-cloud-init-users;"
        # Rules by user id, by an alias, in a list.
        "printf '#%s ALL=/bin/x\\nUser_Alias A = dev\\nA ALL=/bin/y\\nbob, dev ALL=/bin/z\\n'"
        " $(id -u dev) > /etc/sudoers.d/50-x;"
        # A rule after ours that asks for a password.
        "echo 'ingres ALL=(ALL:ALL) ALL' > /etc/sudoers.d/95-x",
        "cd /etc/sudoers.d && rm 90-cloud-init-users 50-x 95-x",
        (
            "'dev': sudo gives it other rights than declared (/usr/bin/id), by ",
            "/etc/sudoers.d/90-cloud-init-users:2",
            "/etc/sudoers.d/50-x:1 and /etc/sudoers.d/50-x:3 and /etc/sudoers.d/50-x:4",
            "'ingres': sudo gives it other rights than declared (ALL), by /etc/sudoers.d/95-x:1",
        ),
    ),
    "sudoers that read no directory": (
        "sed -i.kept 's/^@includedir/# &/' /etc/sudoers",
        "mv /etc/sudoers.kept /etc/sudoers",
        ("@includedir /etc/sudoers.d",),
    ),
    "homes and user ids of other accounts": (
        "chown ops /home/dev; mv /home/ingres/.ssh /home/ingres/kept; ln -s kept /home/ingres/.ssh;"
        "useradd -M -o -u $(id -u dev) twin",
        "chown dev /home/dev; rm /home/ingres/.ssh; mv /home/ingres/kept /home/ingres/.ssh;"
        # userdel would refuse: a user with this uid may be logged in.
        "sed -i /^twin:/d /etc/passwd /etc/shadow /etc/group /etc/gshadow",
        (
            "'dev': its home /home/dev belongs to ops",
            "chown dev: /home/dev",
            "'dev': twin has the same uid",
            "'ingres': its home's .ssh, /home/ingres/.ssh, is a symbolic link",
        ),
    ),
    "sshd rules in other files": (
        "printf '# hardened\\nDenyUsers bob d*\\nPubkeyAcceptedAlgorithms rsa-sha2-512\\n"
        "AuthenticationMethods publickey,publickey\\nAllowUsers bob\\n"
        "Match Group users\\nForceCommand internal-sftp\\nPasswordAuthentication yes\\n'"
        f" > {DROP_IN};"
        "echo 'AllowGroups ssh-users root ops' >> /etc/ssh/sshd_config;"
        # sshd reads this file before ours.
        "echo 'AuthorizedKeysFile /etc/ssh/keys/%u' > /etc/ssh/sshd_config.d/00-a.conf",
        f"rm {DROP_IN} /etc/ssh/sshd_config.d/00-a.conf;"
        " sed -i /AllowGroups/d /etc/ssh/sshd_config",
        (
            f"sshd would not let dev in: denyusers d* ({DROP_IN}:2)",
            f"sshd would not let ingres in: pubkeyacceptedalgorithms without ssh-ed25519, which is"
            f" one of its keys ({DROP_IN}:3)",
            f"ingres in: authenticationmethods publickey,publickey ({DROP_IN}:4)",
            f"sshd would let others in: allowusers bob ({DROP_IN}:5)",
            f"sshd would not let dev in: forcecommand internal-sftp ({DROP_IN}:7)",
            f"let dev in without one of its keys: passwordauthentication yes ({DROP_IN}:8)",
            "sshd would not let dev in: allowgroups ssh-users root ops (/etc/ssh/sshd_config:",
            "authorizedkeysfile /etc/ssh/keys/%u (/etc/ssh/sshd_config.d/00-a.conf:1)",
        ),
    ),
    "a configuration that reads no directory": (
        "sed -i.kept 's/^Include/# &/' /etc/ssh/sshd_config",
        "mv /etc/ssh/sshd_config.kept /etc/ssh/sshd_config",
        ("Include /etc/ssh/sshd_config.d/*.conf",),
    ),
    "a configuration that sshd rejects": (
        f"printf '\\nAllowUser dev\\n' > {DROP_IN}",
        f"rm {DROP_IN}",
        (f"sshd rejects its configuration: {DROP_IN}", "line 2", "AllowUser"),
    ),
}


@pytest.mark.promise(
    "Anything on the server that would lock out a declared account, or give it more rights, is "
    "refused with file and line, or repaired; afterwards every declared account can log in"
)
@pytest.mark.smoke
@pytest.mark.parametrize(
    "case",
    # The cases of unread directories and invalid files are similar, so `make long` runs them.
    [
        pytest.param(one, marks=pytest.mark.long if "read" in one or "rejects" in one else ())
        for one in CASES
    ],
)
def test_foreign_lockouts_are_refused(
    converged: Target, data: dict[str, Any], new_key: str, case: str
) -> None:
    make, undo, parts = CASES[case]
    server = converged
    server.run(make)
    before = server.run("find /etc -newer /etc/hostname -type f | xargs sha256sum | sha256sum")
    try:
        line = server.refuse(*OURS, **data)
        assert before == server.run(
            "find /etc -newer /etc/hostname -type f | xargs sha256sum | sha256sum"
        )
    finally:
        server.run(undo)
    assert "127.0.0.1: users_accounts: " in line
    for part in parts:
        assert part in line
    everybody_gets_in(server, new_key)


def test_a_name_with_the_group_of_a_package(converged: Target, data: dict[str, Any]) -> None:
    server = converged
    server.run("groupadd --system wireshark")
    more = [*data["users_accounts"], {"name": "wireshark"}]
    line = server.refuse(*OURS, **data | {"users_accounts": more})
    assert "'wireshark': the group of that name is a system group (gid" in line
    server.run("groupdel wireshark")


@pytest.mark.promise(like=test_foreign_lockouts_are_refused)
@pytest.mark.smoke
def test_a_key_that_is_cut_off_never_arrives(
    converged: Target, data: dict[str, Any], new_key: str, tmp_path: Path
) -> None:
    kind, encoded, *_ = Path(f"{new_key}.pub").read_text().split()
    cut = tmp_path / "cut.pub"
    cut.write_text(f"{kind} {encoded[:-10]}\n")
    accounts = [*data["users_accounts"][:2], {"name": "dev", "keys": [str(cut)]}]
    line = converged.refuse(*OURS, **data | {"users_accounts": accounts})
    assert "users_accounts.2.keys.0" in line
    assert "cut off" in line
    everybody_gets_in(converged, new_key)


@pytest.mark.promise(like=test_foreign_lockouts_are_refused)
@pytest.mark.smoke
def test_the_key_in_use_stays(
    converged: Target, data: dict[str, Any], new_key: str, tmp_path: Path
) -> None:
    """Replace the key of `ingres` while it is connected with the old key."""
    server = converged
    other = tmp_path / "other"
    output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other))
    prod, ingres, dev = data["users_accounts"]
    accounts = [prod, ingres | {"keys": [f"{other}.pub"]}, dev]
    line = server.refuse(*OURS, user="ingres", key=new_key, **data | {"users_accounts": accounts})
    fingerprint = output("ssh-keygen", "-lf", f"{new_key}.pub").split()[1]
    assert f"connected as 'ingres' with the key {fingerprint}, which is not one of its keys" in line
    # First both keys, then only the new key, connected with it.
    both = [prod, ingres | {"keys": [f"{new_key}.pub", f"{other}.pub"]}, dev]
    server.deploy(*OURS, user="ingres", key=new_key, **data | {"users_accounts": both})
    server.deploy(*OURS, user="ingres", key=str(other), **data | {"users_accounts": accounts})
    assert not login(server, "ingres", new_key)
    server.deploy(*OURS, **data)
    everybody_gets_in(server, new_key)


DAMAGE = {
    # As on a hardened image: a password is valid for 90 days, and the last one is old.
    "chage -M 90 -I 7 -d 2020-01-01 dev": "expired",
    "usermod --expiredate 1 dev": "ended",
    "chage -d 0 dev": "must be changed",
    "chmod 777 /home/dev": "a home that others write",
    "passwd -d dev && usermod -s /bin/dash dev": "an empty password, another shell",
    "usermod -g users -G docker dev && groupadd -f docker": "groups",
}


@pytest.mark.promise(like=test_foreign_lockouts_are_refused)
def test_managed_settings_are_repaired_and_reported(
    converged: Target, data: dict[str, Any], new_key: str
) -> None:
    server = converged
    server.run("groupadd --force --system docker")
    for damage in DAMAGE:
        server.run(damage)
    assert not login(server, "dev", new_key)
    result = server.pyinfra.call(
        "-y", *options(data), *server.arguments(), *OURS,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "dev is there: " in line]
    for said in (
        "shell /bin/dash → /bin/bash", "own group users → dev", "groups docker → users",
        "password empty → none", "home 777 → not writable for others",
        "a new password at the next login, a new password each 90 days", "expires on day 1",
    ):  # fmt: skip
        assert said in line
    assert server.run("id -Gn dev") == "dev users"
    assert changed(server.deploy(*OURS, **data)) == []
    assert server.plan(*OURS, **data) == []
    everybody_gets_in(server, new_key)
    server.run("groupdel docker")


@pytest.mark.long
def test_a_home_that_is_gone_is_made(converged: Target, data: dict[str, Any], new_key: str) -> None:
    server = converged
    server.run("rm -r /home/dev")
    server.deploy(*OURS, **data)
    everybody_gets_in(server, new_key)
    assert changed(server.deploy(*OURS, **data)) == []


def test_undeclared_accounts_are_listed_and_left_alone(
    converged: Target, data: dict[str, Any]
) -> None:
    server = converged
    server.run("useradd -m -s /bin/bash bob; echo bob:s3cret-s3cret | chpasswd")
    before = server.run("getent passwd bob; getent shadow bob")
    result = server.pyinfra.call(
        "-y", *options(data), *server.arguments(), *OURS,
    )  # fmt: skip
    assert "left unchanged: " in result.stderr
    assert "bob (a password)" in result.stderr
    assert "ops (keys, sudo)" in result.stderr
    assert server.run("getent passwd bob; getent shadow bob") == before
    server.run("userdel -r bob 2> /dev/null")


@pytest.mark.long
@pytest.mark.parametrize("shell", ["fish", "zsh", "tcsh", "ksh93", "mksh"])
def test_any_login_shell_deploys(converged: Target, data: dict[str, Any], shell: str) -> None:
    server = converged
    server.run(
        "apt-get update -q > /dev/null; DEBIAN_FRONTEND=noninteractive apt-get install -qy"
        f" --no-install-recommends {shell.removesuffix('93')}; usermod -s $(command -v {shell}) ops"
    )
    try:
        answer = server.deploy(*OURS, user="ops", key=str(STATE / "id_ed25519"), **data)
        assert changed(answer) == []
    finally:
        server.run("usermod -s /bin/bash ops")

"""Changes that would lock out whoever deploys undo themselves, whatever becomes of the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import ROOT, Pyinfra
from tests.e2e.clones import HOST, clone
from tests.e2e.sshd.test_lockout import OURS, login
from tests.e2e.support import STATE, Target, changed, eventually, options

pytestmark = pytest.mark.e2e

SECONDS = 20
"""The setting guard_seconds of these tests; the way back may take as long by itself, at most 60."""
KEY = str(STATE / "id_ed25519")
OURS_FILE = "/etc/ssh/sshd_config.d/00-terrafirma.conf"
# Everything that decides who gets in.
DIGEST = (
    "cd / && for path in etc/ssh/sshd_config etc/ssh/sshd_config.d etc/sudoers etc/sudoers.d"
    " home/*/.ssh root/.ssh; do find $path -printf '%p %m %u %g %s\\n'"
    ' -exec sh -c \'test ! -f "$1" || sha256sum "$1"\' sh {} \\;; done | sort;'
    " stat -c '%n %a %U' /home/* /root; id -Gn ops; ls /etc/systemd/system | grep guard"
)


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra, new_key: str) -> Iterator[Target]:
    with clone(pyinfra, "tf-a-guard", 2577, HOST) as server:
        # An account of the image deploys, with sudo by a rule of its own.
        server.run(
            "useradd -m -s /bin/bash ops && install -d -o ops -m 700 /home/ops/.ssh"
            " && install -o ops -m 600 /root/.ssh/authorized_keys /home/ops/.ssh/"
            " && echo 'ops ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/20-image"
        )
        server.deploy(*OURS, **settings(new_key))
        yield server


def settings(new_key: str, *more: str) -> dict[str, Any]:
    return {
        "users_accounts": [
            {"name": "ingres", "keys": [f"{new_key}.pub"], "sudo": ["ALL"]},
            {"name": "dev", "keys": [f"{new_key}.pub"]},
        ],
        # Another list is a change to sshd, and harmless by itself.
        "sshd_allow_users": ["root", "ops", *more],
        "guard_seconds": SECONDS,
        "apps": {},
    }


@contextmanager
def damaging(server: Target, damage: str) -> Iterator[None]:
    """
    Another program does `damage` as soon as a run has written sshd's file, before it reloads sshd.

    So what a run checks before it changes anything is not enough.
    """
    # Another test may have left a timer that would restore this file, too.
    eventually(lambda: "guard" not in server.run("ls /etc/systemd/system"), 60)
    server.run(f"cp {OURS_FILE} /run/before")
    loop = f"until ! cmp -s {OURS_FILE} /run/before; do sleep 0.02; done; {damage}"
    server.run("cat > /run/damage", stdin=loop)
    server.run("systemd-run --quiet --collect --unit=damage sh /run/damage")
    try:
        yield
    finally:
        server.call("systemctl stop damage.service")


def as_before(server: Target, before: str) -> Callable[[], bool]:
    def is_as_before() -> bool:
        return server.run(DIGEST + "; true") == before

    return is_as_before


def gets_in(server: Target, user: str) -> Callable[[], bool]:
    def is_let_in() -> bool:
        return login(server, user, KEY, "/usr/bin/sudo -n true")

    return is_let_in


FOREIGN = "/etc/ssh/sshd_config.d/00-a.conf"
RELOAD = "systemctl reload ssh"
# The damage, and what the run says of it.
DRILLS: dict[str, tuple[str, str]] = {
    "a foreign drop-in that leaves the connecting account out": (
        f"echo 'DenyUsers ops' > {FOREIGN}; {RELOAD}",
        "ops would no longer get in: Authentication error",
    ),
    "a wrong key file": (
        "ssh-keygen -q -t ed25519 -N '' -f /run/other; cat /run/other.pub"
        " > /home/ops/.ssh/authorized_keys",
        "ops would no longer get in: Authentication error",
    ),
    "AuthorizedKeysFile elsewhere": (
        f"echo 'AuthorizedKeysFile /etc/ssh/keys/%u' > {FOREIGN}; {RELOAD}",
        "ops would no longer get in: Authentication error",
    ),
    "sudoers that break sudo": (
        "echo 'ops ALL=(ALL) PASSWD: ALL' > /etc/sudoers.d/99-policy",
        "sudo asks for a password",
    ),
    "a home with bad modes": (
        "chmod 777 /home/ops",
        "ops would no longer get in: Authentication error",
    ),
    "a configuration that is valid and refuses everybody": (
        f"printf 'PubkeyAuthentication no\\n' > {FOREIGN}; sshd -t && {RELOAD}",
        "ops would no longer get in: Authentication error",
    ),
    "a configuration with which sshd ends": (
        # The run's own reload ends it, and only the timer is left.
        f"echo 'ListenAddress 10.9.9.9' > {FOREIGN}; sshd -t",
        "Run sshd",
    ),
    "an administrator who is shut out": (
        "chmod 777 /home/ingres",
        "users_accounts: ingres would not get in",
    ),
}
FIRST = "a configuration that is valid and refuses everybody"


@pytest.mark.promise(
    "A change to sshd, keys or sudo after which the deploying account, or an administrator, would "
    "not get in undoes itself within a minute"
)
@pytest.mark.parametrize(
    "drill",
    [pytest.param(one, marks=() if one == FIRST else pytest.mark.long) for one in DRILLS],
)
def test_a_change_that_locks_out_is_undone(server: Target, new_key: str, drill: str) -> None:
    damage, said = DRILLS[drill]
    before = server.run(DIGEST + "; true")
    started = time.monotonic()
    with damaging(server, damage):
        result = server.pyinfra.imported.call(
            "-y", *options(settings(new_key, "bob")), *server.arguments("ops", KEY), *OURS
        )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr, result.stderr
    assert said in result.stderr, result.stderr
    eventually(as_before(server, before), 60 - (time.monotonic() - started))
    # sshd counts refused logins for a while.
    eventually(gets_in(server, "ops"), 40)
    # Nothing is left of it, and the same run succeeds.
    assert changed(server.deploy(*OURS, user="ops", key=KEY, **settings(new_key))) == []


@contextmanager
def killed(server: Target, new_key: str, after: str, *more: str) -> Iterator[None]:
    """A run that is killed as soon as it prints `after`, with all its connections."""
    run = subprocess.Popen(
        [
            sys.executable, "-m", "pyinfra", "-y", *options(settings(new_key, *more)),
            *server.arguments("ops", KEY), *OURS,
        ],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert run.stderr
    for line in run.stderr:
        if after in line:
            break
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    yield


@pytest.mark.promise(like=test_a_change_that_locks_out_is_undone)
def test_the_timer_alone_undoes_a_change(server: Target, new_key: str) -> None:
    """The deploying machine dies when sshd has just read a configuration that refuses everybody."""
    before = server.run(DIGEST + "; true")
    damage = f"echo 'DenyUsers *' > {FOREIGN}; {RELOAD}"
    started = time.monotonic()
    with damaging(server, damage), killed(server, new_key, "Run sshd", "bob"):
        eventually(lambda: not gets_in(server, "ops")(), 10)
        eventually(as_before(server, before), 60 - (time.monotonic() - started))
    eventually(gets_in(server, "ops"), 40)
    assert changed(server.deploy(*OURS, user="ops", key=KEY, **settings(new_key))) == []


@pytest.mark.long
@pytest.mark.promise(like=test_a_change_that_locks_out_is_undone)
def test_a_reboot_undoes_a_change_before_sshd_starts(server: Target, new_key: str) -> None:
    before = server.run(DIGEST + "; true")
    damage = f"echo 'DenyUsers *' > {FOREIGN}; {RELOAD}"
    with damaging(server, damage), killed(server, new_key, "Run sshd", "bob"):
        assert "guard" in server.run("ls /etc/systemd/system")
        server.reboot()
        eventually(as_before(server, before), 30)
    eventually(gets_in(server, "ops"), 30)
    assert changed(server.deploy(*OURS, user="ops", key=KEY, **settings(new_key))) == []


STEPS = (
    "Watch over who", "Create the accounts", "Authorize exactly", "Allow exactly",
    "Prove that", "Install sshd", "Admit only", "Run sshd",
)  # fmt: skip


@pytest.mark.long
@pytest.mark.promise(like=test_a_change_that_locks_out_is_undone)
@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_is_killed_between_two_steps(server: Target, new_key: str, step: str) -> None:
    """The next run waits until the change is undone, and finishes its own."""
    with killed(server, new_key, step, f"bob{STEPS.index(step)}"):
        pass
    assert login(server, "root", KEY)
    result = server.pyinfra.imported.call(
        "-y", *options(settings(new_key)), *server.arguments("ops", KEY), *OURS
    )
    assert result.returncode == 0, result.stderr
    assert "guard" not in server.run("ls /etc/systemd/system")
    eventually(gets_in(server, "ops"), 40)
    assert changed(server.deploy(*OURS, user="ops", key=KEY, **settings(new_key))) == []


@pytest.mark.long
def test_a_converged_run_starts_no_timer(server: Target, new_key: str) -> None:
    asked = "systemctl show -p ActiveEnterTimestampMonotonic --value terrafirma-guard.timer"
    before = server.run(asked)
    assert changed(server.deploy(*OURS, user="ops", key=KEY, **settings(new_key))) == []
    assert server.run(asked) == before
    assert server.plan(*OURS, **settings(new_key)) == []


@pytest.mark.long
def test_a_full_disk_stops_the_change(server: Target, new_key: str) -> None:
    before = server.run(DIGEST + "; true")
    server.run("mount -t tmpfs -o size=4k full /var/lib/terrafirma/guard")
    try:
        result = server.pyinfra.imported.call(
            "-y", *options(settings(new_key, "bob")), *server.arguments("ops", KEY), *OURS
        )
    finally:
        server.run("umount /var/lib/terrafirma/guard")
    assert result.returncode != 0
    assert "No space left on device" in result.stderr
    assert server.run(DIGEST + "; true") == before

"""Errors of a backup host, as real programs print them, and their explanations in one line."""

from types import ModuleType

import pytest

from tests.conftest import ROOT
from tests.unit.programs import load

LEFT = "Connection closed by remote host. Is borg working on the server?\n"
FILLED = {
    "host": "box.acme.com",
    "key": "ssh-ed25519 AAAA backup@web",
    "shown": "ED25519 SHA256:7Qou6hP6",
    "borg": "borg-1.4",
    "locker": "no borg runs on this server",
    "said": "the last words",
}


@pytest.fixture(scope="module")
def causes() -> ModuleType:
    return load(ROOT / "files/borg/backup_causes.py")


def remote(*lines: str) -> str:
    return "".join(f"Remote: {line}\n" for line in lines) + LEFT


def served(error: str, *, where: str = "res = f(**args)") -> str:
    """An exception on the backup host, as borg prints it on both hosts."""
    return (
        "Traceback (most recent call last):\n\n"
        '  File "/usr/lib/python3/dist-packages/borg/remote.py", line 252, in serve\n'
        f"    {where}\n\n{error}\n\n"
        "Borg server: Platform: Linux box 6.18.44 #1 SMP PREEMPT_DYNAMIC @0 x86_64\n"
        "Borg server: sys.argv: ['/usr/bin/borg', 'serve']\nPID: 3801  CWD: /\n"
        "sys.argv: ['/usr/bin/borg', 'list', 'ssh://box@172.17.0.6/home/box/x']\n"
        "SSH_ORIGINAL_COMMAND: None\n\n"
    )


CHANGED = remote(
    "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@",
    "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @",
    "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@",
    "IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!",
    "Someone could be eavesdropping on you right now (man-in-the-middle attack)!",
    "It is also possible that a host key has just been changed.",
    "The fingerprint for the ED25519 key sent by the remote host is",
    "SHA256:7Qou6hP6obUGvYzxBQg1R9JOVjs+uqMmCagnoT6unoA.",
    "Please contact your system administrator.",
    "Add correct host key in /tmp/kh1 to get rid of this message.",
    "Host key for 172.17.0.6 has changed and you have requested strict checking.",
    "Host key verification failed.",
)
MOVED = """\
Warning: The repository at location ssh://box@172.17.0.6/home/box/moved.borg was previously \
located at ssh://box@172.17.0.6/home/box/one.borg
Do you want to continue? [yN] no (from BORG_RELOCATED_REPO_ACCESS_IS_OK)
Aborting.
Repository access aborted
"""
UNENCRYPTED = """\
Warning: Attempting to access a previously unknown unencrypted repository!
Do you want to continue? [yN] no (from BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK)
Aborting.
Cache initialization aborted
"""
LOCKED = "Failed to create/acquire the lock /home/box/locked.borg/lock.exclusive"

ROWS: dict[str, tuple[str, str]] = {
    # ssh.
    "name": (
        remote(
            "ssh: Could not resolve hostname nowhere.invalid: Name or service not known",
        ),
        "borg_repository: the name nowhere.invalid does not resolve",
    ),
    "refused": (
        remote("ssh: connect to host 172.17.0.6 port 2: Connection refused"),
        "borg_repository: 172.17.0.6 refuses connections to port 2: no SSH server listens there",
    ),
    # borg misses this error, so the program runs ssh itself.
    "time": (
        f"{LEFT}\nRemote: ssh: connect to host 10.255.255.1 port 22: Connection timed out",
        "borg_repository: 10.255.255.1 does not answer on port 22 (Connection timed out)",
    ),
    "route": (
        remote("ssh: connect to host 10.0.0.9 port 23: No route to host"),
        "borg_repository: 10.0.0.9 does not answer on port 23 (No route to host)",
    ),
    "unknown host key": (
        remote(
            "No ED25519 host key is known for 172.17.0.6 and you have requested strict checking.",
            "Host key verification failed.",
        ),
        "borg_known_hosts: no ED25519 key is declared for 172.17.0.6; it shows ED25519 "
        "SHA256:7Qou6hP6; compare that with what its provider publishes",
    ),
    "other host key": (
        CHANGED,
        "borg_known_hosts: box.acme.com shows another key than the one that is declared: ED25519 "
        "SHA256:7Qou6hP6obUGvYzxBQg1R9JOVjs+uqMmCagnoT6unoA; compare it with what its provider "
        "publishes",
    ),
    "key not let in": (
        remote("nobody@172.17.0.6: Permission denied (publickey,password)."),
        "borg_repository: box.acme.com does not let this key in; add it to the authorized_keys of "
        "the account there: ssh-ed25519 AAAA backup@web",
    ),
    "key only": (
        remote("box@172.17.0.6: Permission denied (publickey)."),
        "borg_repository: box.acme.com does not let this key in; add it to the authorized_keys of "
        "the account there: ssh-ed25519 AAAA backup@web",
    ),
    "nologin": (
        remote("This account is currently not available."),
        "borg_repository: the account on box.acme.com runs no commands: its shell is nologin, or "
        "it expired",
    ),
    # borg on the backup host.
    "no borg": (
        remote("sh: 1: borg-1.9: not found"),
        "borg_remote_path: box.acme.com has no program borg-1.4 for this account: install borg "
        "there, or name its path, like /usr/local/bin/borg or borg-1.4",
    ),
    "no borg, says bash": (
        remote("bash: line 1: borg: command not found"),
        "borg_remote_path: box.acme.com has no program",
    ),
    "no borg at this path": (
        remote("bash: line 1: /opt/bin/borg: No such file or directory"),
        "borg_remote_path: box.acme.com has no program",
    ),
    "borg that is none": (
        remote("sh: 1: /etc/passwd: Permission denied"),
        "borg_remote_path: box.acme.com has no program",
    ),
    "a program that says nothing": (
        LEFT,
        "the connection to box.acme.com ended: either box.acme.com went away, or borg-1.4 does "
        "not run there (the last words)",
    ),
    "another path": (
        "Repository path not allowed: /home/box/other.borg\n",
        "borg_repository: the key may not use /home/box/other.borg on box.acme.com: its line in "
        "authorized_keys restricts it to another path",
    ),
    # Space.
    "quota": (
        "The storage quota (10.00 MB) has been exceeded (23.30 MB). Try deleting some archives.\n",
        "box.acme.com has no room for the backup: storage quota (10.00 MB) has been exceeded "
        "(23.30 MB). Try deleting some archives.",
    ),
    "full": (
        served("OSError: [Errno 28] No space left on device"),
        "no room for the backup, on box.acme.com or on this server: No space left on device",
    ),
    "read-only": (
        f"{LOCKED} ([Errno 30] Read-only file system: '/mnt/ro/x.borg/lock.exclusive.tmp').\n"
        f"Traceback (most recent call last):\nborg.locking.LockFailed: {LOCKED}",
        "box.acme.com cannot write: /mnt/ro/x.borg/lock.exclusive.tmp is on a file system that is "
        "read-only",
    ),
    "append-only": (
        served("ValueError: /home/box/other.borg is in append-only mode"),
        "box.acme.com refuses to delete: /home/box/other.borg is in append-only mode",
    ),
    # The repository.
    "locked": (
        f"{LOCKED} (timeout).\n",
        "the repository is locked: /home/box/locked.borg/lock.exclusive (timeout); no borg runs on "
        "this server",
    ),
    "moved": (
        MOVED,
        "borg_repository: this repository was at ssh://box@172.17.0.6/home/box/one.borg; if it was "
        "moved, set borg_repository_id",
    ),
    "older": (
        "Cache, or information obtained from the security directory is newer than repository - "
        "this is either an attack or unsafe (multiple repos with same ID)\n",
        "the repository is older than what this server remembers",
    ),
    "passphrase": (
        "passphrase supplied in BORG_PASSPHRASE, by BORG_PASSCOMMAND or via BORG_PASSPHRASE_FD is "
        "incorrect.\n",
        "the passphrase in /etc/terrafirma/secrets/borg/passphrase is not the repository's",
    ),
    "no passphrase": (
        "cat: /nonexistent: No such file or directory\npasscommand supplied in BORG_PASSCOMMAND "
        "failed: Command '['cat', '/nonexistent']' returned non-zero exit status 1.\n",
        "/etc/terrafirma/secrets/borg/passphrase cannot be read",
    ),
    "unencrypted": (UNENCRYPTED, "borg_repository: the repository there is not encrypted, or not"),
    "keyfile": (
        "No key file for repository ssh://box@172.17.0.6/home/box/keyfile.borg found in "
        "/root/.config/borg/keys.\n",
        "borg_repository: the key of the repository is a file on the machine that created it: "
        "copy the file to /root/.config/borg/keys, or take another path",
    ),
    "version": (
        "/home/box/v2.borg does not have a valid configuration. Check repo config [repository "
        "version 2 is not supported by this borg version].\n",
        "borg_repository: another version of borg created the repository there: repository version "
        "2 is not supported",
    ),
    "something else is there": (
        "There is already something at /home/box/plain.\n",
        "borg_repository: what is there on box.acme.com is not a repository of borg",
    ),
    "a directory": (
        "/home/box/plain is not a valid repository. Check repo config.\n",
        "borg_repository: what is there on box.acme.com is not a repository of borg",
    ),
    "configuration damaged": (
        served(
            "configparser.MissingSectionHeaderError: File contains no section headers.\n"
            "file: '/home/box/damaged.borg/config', line: 1\n'junk\\n'"
        ),
        "borg_repository: what is there on box.acme.com is not a repository of borg",
    ),
    "parent": (
        "The parent path of the repo directory [/home/box/a/b/c.borg] does not exist.\n",
        "borg_repository: the directories above /home/box/a/b/c.borg cannot be made on",
    ),
    "below a file": (
        served("NotADirectoryError: [Errno 20] Not a directory: '/home/box/file/x'"),
        "borg_repository: the directories above /home/box/file/x cannot be made on box.acme.com",
    ),
    "may not look": (
        served("PermissionError: [Errno 13] Permission denied: '/home/box/secret/x'"),
        "borg_repository: the account on box.acme.com may not use /home/box/secret/x",
    ),
    "may not make": (
        "Permission denied to /home/box/secret/x.\n",
        "borg_repository: the account on box.acme.com may not use /home/box/secret/x",
    ),
    "nothing": (
        "Repository ssh://box@172.17.0.6/home/box/none.borg does not exist.\n",
        "there is no repository at borg_repository: ssh://box@172.17.0.6/home/box/none.borg",
    ),
    "damaged": (
        'Inconsistency detected. Please run "borg check ssh://box@172.17.0.6/home/box/x.borg".\n'
        "Traceback (most recent call last):\n",
        "the repository is damaged: run `borg check` on box.acme.com before anything else",
    ),
    # Unknown errors.
    "else": (
        "something\nborg: error: argument --x: odd\nusage\n",
        "borg: error: argument --x: odd",
    ),
    "borgmatic": (
        "web: Command 'x' returned non-zero exit status 1.\n\nNeed some help? https://borgmatic\n",
        "web: Command 'x' returned non-zero exit status 1.",
    ),
    "silence": ("", "it ended without a message"),
}


@pytest.mark.parametrize("what", ROWS)
def test_each_cause_has_its_own_line(causes: ModuleType, what: str) -> None:
    said, line = ROWS[what]
    found = causes.cause(said, **FILLED)
    assert found.startswith(line)
    assert "\n" not in found
    assert not {"{", "\\"} & set(found)


def test_placeholders_are_not_filled_in_twice(causes: ModuleType) -> None:
    said = "Repository path not allowed: /home/{key}/\\1\n"
    assert "/home/ssh-ed25519" not in causes.cause(said, **FILLED | {"host": "{key}"})
    assert "{key}" in causes.cause(
        remote("x: Permission denied (publickey)."), host="{key}", key="k"
    )


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            'pg_dump: error: Dumping the contents of table "big" failed\npg_dump: detail: Error '
            "message from server: FATAL:  terminating connection due to administrator command\n"
            "pg_dump: detail: Command was: COPY public.big (g, t) TO stdout;\n",
            "pg_dump: detail: Error message from server: FATAL:  terminating connection due to "
            "administrator command",
        ),
        (
            "pg_restore: error: could not read from input file: end of file\n",
            "pg_restore: error: could not read from input file: end of file",
        ),
        ("Killed\n\n", "Killed"),
        ("", "it ended without a message"),
    ],
)
def test_the_line_that_says_why(causes: ModuleType, said: str, line: str) -> None:
    assert causes.last(said) == line

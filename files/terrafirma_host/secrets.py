"""
Managed by Terrafirma. Secrets in files, one in each, in a directory that only root enters.

    terrafirma secrets check DIRECTORY          print `wrong NAME` for each secret that is not as it
                                                should be, `other NAME` for each unlisted file
    terrafirma secrets set DIRECTORY            repair the secrets that are wrong
    terrafirma secrets renew DIRECTORY NAME…    replace these secrets with newly generated ones

Standard input of `check` and `set` has a line for each secret: `generated NAME` for one that is
generated here, once; `given NAME BASE64` for one with this value. The line `owner ACCOUNT` names
the only account that may read the secrets. Without an owner every user in a container can read
them, and the directory keeps the accounts of the host out. A name that starts with a dot is of a
secret for root only.
"""

from __future__ import annotations

import base64
import os
import pwd
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe

from terrafirma_host.shell import Failed, locked, write

# Files that earlier versions have made, and `set` removes.
FORMER = (".registry_password",)

# The start of other files in that directory, which tasks/app.py writes itself.
BESIDE = "database_url"
ROOT = 0, 0

Rights = tuple[int, int, int]  # mode, user id, group id
Values = dict[str, bytes | None]  # by name; None: generated here

RANDOM_BYTES = 32
"""The length of each generated password and secret, which is 43 characters as text. The passphrase
of backups is generated in terrafirma/borg/operations.py."""


def asked() -> tuple[Values, str]:
    """The secrets that standard input lists; and the account that owns them, or ""."""
    values: Values = {}
    owner = ""
    for line in sys.stdin:
        match line.split():
            case ["generated", name]:
                values[name] = None
            case ["given", name, value]:
                values[name] = base64.b64decode(value, validate=True)
            case ["owner", account]:
                owner = account
            case _:
                raise Failed("standard input has a line that describes no secret")
    return values, owner


@dataclass(frozen=True)
class Store:
    """The secrets in a directory, which `put` changes while it is locked."""

    directory: Path
    rights: Callable[[str], Rights | None]
    """The rights of the file of that name; None where its owner does not exist yet."""
    end: bytes = b""
    """The end of each file, after its secret."""

    def value(self, name: str) -> bytes:
        """The secret; empty where there is none."""
        path = self.directory / name
        return path.read_bytes().rstrip(self.end) if path.is_file() else b""

    def is_right(self, name: str, wanted: bytes | None) -> bool:
        value = self.value(name)
        if not value or wanted not in (None, value):
            return False
        now = (self.directory / name).lstat()
        return stat.S_ISREG(now.st_mode) and _rights(now) == self.rights(name)

    def put(self, values: Values, *, renew: bool = False) -> None:
        """Repair wrong secrets. A generated one keeps its value unless it is renewed."""
        for left in self.directory.glob(".*.new"):
            left.unlink()
        for name, wanted in values.items():
            path = self.directory / name
            if path.is_dir():
                raise Failed(f"{path} is a directory: remove it")
            if renew or not self.is_right(name, wanted):
                rights = self.rights(name)
                assert rights
                kept = b"" if renew else self.value(name)
                value = (kept or token_urlsafe(RANDOM_BYTES).encode()) if wanted is None else wanted
                write(path, value + self.end, rights[0], rights[1:])


def _rights(status: os.stat_result) -> Rights:
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


# --- of an application ----------------------------------------------------------------------------


def of_application(directory: Path, owner: str) -> Store:
    def rights(name: str) -> Rights | None:
        if name.startswith("."):
            return 0o400, *ROOT
        if not owner:
            return 0o444, *ROOT
        try:
            account = pwd.getpwnam(owner)
        except KeyError:
            return None
        return 0o400, account.pw_uid, account.pw_gid

    return Store(directory, rights)


def check(directory: Path) -> None:
    values, owner = asked()
    store = of_application(directory, owner)
    closed = _closed(directory)
    for name, value in values.items():
        if not (closed and store.is_right(name, value)):
            print("wrong", name)
    if closed:
        for path in sorted(directory.iterdir()):
            name = path.name
            if name in FORMER and name not in values:
                print("wrong", name)
            elif not (name.startswith(BESIDE) or name in values or name.endswith(".new")):
                print("other", name)


def _closed(directory: Path) -> bool:
    try:
        now = directory.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(now.st_mode) and _rights(now)[:2] == (0o700, ROOT[0])


def put(directory: Path) -> None:
    values, owner = asked()
    store = of_application(directory, owner)
    if None in map(store.rights, values):
        raise Failed(f"user: there is no account {owner!r}; run tasks/users.py first")
    directory.mkdir(parents=True, exist_ok=True)
    os.chown(directory, *ROOT)
    directory.chmod(0o700)
    with locked(directory):
        store.put(values)
        for name in {*FORMER} - values.keys():
            (directory / name).unlink(missing_ok=True)


def renew(directory: Path, names: Sequence[str]) -> None:
    store = Store(directory, lambda name: _rights((directory / name).stat()))
    for name in names:
        hidden = "/" in name or name.startswith(".")
        if hidden or name in ("", BESIDE) or not (value := store.value(name)) or _is_url(value):
            raise Failed(f"{directory} has no secret {name!r}")
    with locked(directory):
        store.put(dict.fromkeys(names), renew=True)


def _is_url(value: bytes) -> bool:
    """Whether a value is the address of a database, whose password the role has, too."""
    return value.startswith(b"postgresql://")


def main(words: Sequence[str]) -> None:
    match words:
        case ["check", directory]:
            check(Path(directory))
        case ["set", directory]:
            put(Path(directory))
        case ["renew", directory, _, *_]:
            renew(Path(directory), words[2:])
        case _:
            sys.exit(__doc__)

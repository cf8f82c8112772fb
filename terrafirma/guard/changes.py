"""What a change to who reaches a host may touch, and how the host returns to the state before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from terrafirma.host.units import RELOADS
from terrafirma.server import Server


@dataclass(frozen=True)
class Change:
    """The way back from one change."""

    what: str
    """What changes, for messages: "who may log in"."""
    paths: tuple[str, ...]
    """
    Each file, link or directory that comes back with its content, owner and mode, or is absent
    again; with `/` at its end, a directory to which nothing may be added. `~NAME` begins at the
    account's present home, and is left out where the account does not exist.
    """
    first: tuple[str, ...] = ()
    """Shell commands before the files come back, also at a boot."""
    commands: tuple[str, ...] = ()
    """Shell commands afterwards; at a boot the services start later anyway."""

    def with_more(self, other: Change) -> Change:
        """Both changes as one."""
        return Change(
            f"{self.what}, {other.what}",
            (*self.paths, *other.paths),
            (*self.first, *other.first),
            (*self.commands, *other.commands),
        )


_FILES = (
    "/etc/ssh/sshd_config",
    "/etc/ssh/sshd_config.d/",
    "/etc/default/ssh",
    "/etc/systemd/system/ssh.service.d/",
    "/etc/systemd/system/ssh.socket.d/",
    "/etc/sudoers",
    "/etc/sudoers.d/",
)
_STAMP = f"{RELOADS}/ssh.service.reloaded"
# A sshd that ended must start again. While systemd listens, the next client starts it.
_SSHD = (
    "systemctl daemon-reload; systemctl reset-failed ssh.service ssh.socket 2> /dev/null;"
    " if systemctl is-enabled --quiet ssh.socket;"
    " then systemctl stop ssh.service; systemctl restart ssh.socket;"
    " else systemctl reload ssh.service || systemctl restart ssh.service; fi;"
    f" mkdir -p {RELOADS}; touch {_STAMP}"
)


def logins(server: Server, connected: str, *, first: Iterable[str] = ()) -> Change:
    """
    Who may log in and become root: sshd, keys and sudo rules, which depend on each other.

    + connected: the account that deploys
    + first: commands that bring back what is no file of its own
    """
    homes = [
        path
        for name in sorted({connected, *(one.name for one in server.users.accounts)})
        for path in (f"~{name}", f"~{name}/.ssh", f"~{name}/.ssh/authorized_keys")
    ]
    # An account that the change creates has no home before.
    new = [f"{one.directory}/.ssh/authorized_keys" for one in server.users.accounts]
    return Change(
        "who may log in", (*_FILES, *homes, *new), tuple(first), (_SSHD,),
    )  # fmt: skip

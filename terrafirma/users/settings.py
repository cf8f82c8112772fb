"""Settings of the accounts."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from terrafirma.fields import (
    AbsolutePath,
    AccountName,
    ApplicationName,
    Forward,
    Line,
    PublicKey,
    absolute_or_empty,
    refuse_duplicates,
)
from terrafirma.settings import Model, Settings

# Users and groups of the base system and of the platform's packages. An account with such a name
# would be in the group of that name, and some groups are as good as root (docker, disk, sudo).
_SYSTEM_NAMES = frozenset(
    """
    daemon bin sys adm tty disk lp mail news uucp man proxy kmem dialout fax voice cdrom floppy tape
    sudo wheel audio dip www-data backup operator list irc src shadow utmp video sasl plugdev staff
    games users nogroup nobody sync gnats _apt input sgx kvm render netdev crontab messagebus
    polkitd sshd _ssh ssh ssl-cert docker lxd incus libvirt postgres pgbouncer caddy syslog uuidd
    tcpdump _chrony ntpsec tss dhcpcd landscape pollinate fwupd-refresh
    """.split()
)


class Account(Model):
    """One login on the host."""

    name: AccountName
    """Login name."""
    shell: AbsolutePath = "/bin/bash"
    """Login shell."""
    home: Annotated[
        str, AfterValidator(absolute_or_empty), Field(title="absolute path, or empty")
    ] = ""
    """Home directory; empty: `/home/<name>`."""
    keys: tuple[PublicKey, ...] = ()
    """All the SSH public keys that may log in: the keys themselves, or files on this machine. A key
    that is not listed is removed from the host."""
    groups: tuple[AccountName, ...] = ()
    """All the groups besides the account's own. `docker` is as good as root."""
    sudo: tuple[Line, ...] = ()
    """Commands it may run as root without a password, by absolute path; `ALL` for every command."""
    releases: tuple[ApplicationName, ...] = ()
    """Applications that its keys may release, for an automated deployment, and nothing else."""
    forwards: tuple[Forward, ...] = ()
    """Addresses that it may reach through the host, with `ssh -L` or `ProxyJump`:
    `127.0.0.1:5432`; `*` for any host, or any port."""

    @property
    def directory(self) -> str:
        return self.home or f"/home/{self.name}"

    @property
    def login_shell(self) -> str:
        """The shell; for an account that releases, one that reads no file of the account first."""
        return "/bin/sh" if self.releases else self.shell

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name == "root":
            raise ValueError("root exists already and is not managed here")
        if self.name in _SYSTEM_NAMES or self.name.startswith("systemd-"):
            raise ValueError(f"{self.name} is reserved for the system; take another")
        refuse_duplicates("groups", (self.name, *self.groups))
        for command in self.sudo:
            if command != "ALL" and not command.startswith("/"):
                raise ValueError(f"sudo: {command!r} is neither ALL nor an absolute path")
            if re.search(r"(?<!\\)[,#]", command):
                raise ValueError(
                    f"sudo: {command!r} has a comma or a # in it, where sudo begins something "
                    "else; write each command by itself, and a backslash before such a character"
                )
        refuse_duplicates("forwards", self.forwards)
        refuse_duplicates("releases", self.releases)
        if self.releases:
            for key in ("sudo", "groups", "shell", "forwards"):
                if key in self.model_fields_set and getattr(self, key):
                    raise ValueError(
                        f"releases: {self.name} releases applications and does nothing else: leave "
                        f"{key} out, or take another account for that"
                    )
        return self


class Users(Settings):
    prefix = "users"

    accounts: tuple[Account, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_duplicates("users_accounts", (account.name for account in self.accounts))
        return self

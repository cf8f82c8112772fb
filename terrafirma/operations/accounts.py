"""Accounts of the host."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import StringCommand

from terrafirma.facts.accounts import Accounts
from terrafirma.operations import operation
from terrafirma.settings import Account


@operation
def accounts(accounts: Sequence[Account]) -> Generator[StringCommand]:
    """
    Accounts with exactly these shells, homes and groups; without a password, so that only keys open
    them.

    pyinfra's server.user never takes away the last of an account's groups, and its facts cost eight
    processes for every account of the host and print password hashes at -vvv.
    """
    known = host.get_fact(Accounts, names=[account.name for account in accounts])
    commands = []
    for account in accounts:
        now = known.get(account.name)
        groups = ",".join(sorted(account.groups))
        make_groups = "".join(f"groupadd --force --system {group} && " for group in account.groups)
        # Nothing here needs quotes: settings.py admits only plain names and paths.
        if now is None:
            commands.append(
                StringCommand(
                    f"{make_groups}useradd --create-home --shell {account.login_shell}",
                    # A group of that name may be there, as one that another account is in.
                    f"$(getent group {account.name} > /dev/null && echo --gid {account.name} "
                    "|| echo --user-group)",
                    f"--home-dir {account.directory} --groups '{groups}' {account.name}",
                )
            )
            continue
        options = []
        if now["shell"] != account.login_shell:
            options.append(f"--shell {account.login_shell}")
        if now["home"] != account.directory:
            options.append(f"--move-home --home {account.directory}")
        if now["groups"] != sorted(account.groups):
            options.append(f"--groups '{groups}'")
        if options:
            commands.append(StringCommand(f"{make_groups}usermod", *options, account.name))
    if not commands:
        host.noop(f"{', '.join(account.name for account in accounts) or 'no account'}: as wanted")
    yield from commands

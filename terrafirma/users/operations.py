"""Operations for accounts and their sudo rules."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import StringCommand

from terrafirma.host.asking import ask
from terrafirma.host.files import Absent, Entry, put, template
from terrafirma.host.operation import failure, operation
from terrafirma.paths import SUDOERS
from terrafirma.users.accounts import creation, differences, homes, repair, surplus
from terrafirma.users.facts import Accounts
from terrafirma.users.settings import Account


@operation
def accounts(accounts: Sequence[Account], *, connected: str) -> Generator[StringCommand]:
    """
    Accounts with exactly these shells, homes and groups, which never expire and get no password.
    Other accounts are listed, except the `connected` one.

    pyinfra's server.user never removes the last of an account's groups. Its facts start eight
    processes for every account of the host, and print password hashes at -vvv.
    """
    state = ask(host, Accounts, homes=homes(accounts))
    others = [f"{name} ({how})" for name, how in state["others"].items() if name != connected]
    if others:
        host.log(f"Accounts that are not declared, left unchanged: {', '.join(others)}")
    known = state["accounts"]
    names = [account.name for account in accounts]
    commands = []
    for account in accounts:
        now = known.get(account.name)
        if now is None or now["uid"] is None:
            commands.append(StringCommand(creation(account, names)))
        elif command := repair(account, now, names):
            host.log(f"{account.name} is there: {'; '.join(differences(account, now))}")
            commands.append(StringCommand(command))
    if not commands:
        host.noop(f"{', '.join(names) or 'no account'}: as wanted")
    yield from commands


@operation
def sudo_rules(
    accounts: Sequence[Account], *, commands: dict[str, str], spare: str
) -> Generator[StringCommand]:
    """
    Exactly the sudo rules of `accounts`, in one file for each; fails if other files add rules.

    + commands: the only command of each account that releases, by its name
    + spare: the connected account, whose file stays for the rest of this run

    An account that is no longer declared loses its rights too.
    """
    known = ask(host, Accounts, homes=homes(accounts))
    for account in accounts:
        now = known["accounts"].get(account.name)
        for wrong in surplus(account, now) if now else ():
            yield failure(f"{host.name}: users_accounts: {account.name!r}: {wrong}")
            return
    wanted: dict[str, Entry] = {
        f"{SUDOERS}{account.name}": template(
            "users/sudoers.j2",
            f"{SUDOERS}{account.name}",
            data={
                "name": account.name,
                "commands": account.sudo,
                "command": commands.get(account.name, ""),
            },
            mode="440",
        )
        for account in accounts
        if account.sudo or account.releases
    }
    gone = set(known["files"]) - set(wanted) - {f"{SUDOERS}{spare}"}
    entries = [Absent(path) for path in sorted(gone)] + list(wanted.values())
    yield from put._inner(entries=entries, check='visudo -cqf "$new"')

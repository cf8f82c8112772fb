"""Who may log in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override


class AccountState(TypedDict):
    uid: int
    gid: int
    home: str
    shell: str
    groups: list[str]  # without the account's own, sorted


class Accounts(FactBase[dict[str, AccountState]]):
    """
    Ids, home, shell and groups of those of `names` that exist.

    pyinfra's server.Users asks eight processes for every account of the host and prints all the
    password hashes at -vvv.
    """

    default = dict

    @override
    def command(self, names: Sequence[str]) -> StringCommand:
        return StringCommand(
            "for name in",
            *map(QuoteString, names),
            '; do entry=$(getent passwd "$name") || continue;',
            'echo "$entry|$(id -gn "$name")|$(id -Gn "$name")"; done',
        )

    @override
    def process(self, output: list[str]) -> dict[str, AccountState]:
        accounts: dict[str, AccountState] = {}
        for line in output:
            try:
                entry, own, groups = line.rsplit("|", 2)
                name, _, uid, gid, _, home, shell = entry.split(":")
                ids = int(uid), int(gid)
            except ValueError as error:
                raise FactProcessError(f"not an entry of passwd: {line!r}") from error
            accounts[name] = AccountState(
                uid=ids[0],
                gid=ids[1],
                home=home,
                shell=shell,
                groups=sorted(set(groups.split()) - {own}),
            )
        return accounts

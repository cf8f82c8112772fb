"""Secrets that are made on the server from what is there."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand

from terrafirma.facts.secrets import DatabaseUrl
from terrafirma.operations import failure, operation
from terrafirma.paths import PASSWORDS


@operation
def database_url(path: str, *, url: str, role: str, user: str) -> Generator[StringCommand]:
    """
    A file that holds the URL of a database, with the password that was made on the server.

    + path: the file; `user` alone may read it, in a directory that root alone may enter
    + url: with `*` where the password goes
    + role: whose password
    """
    known = host.get_fact(DatabaseUrl, path=path, url=url, role=role, user=user)
    if known == "right":
        host.noop(f"{path} is right")
        return
    # In a dry run on a bare host both are still to come.
    if host.state.is_executing and known == "no account":
        yield failure(f"app_user: there is no account {user!r}; run tasks/users.py first")
    if host.state.is_executing and known == "no password":
        yield failure(f"role {role!r} has no password yet; run tasks/postgres.py first")
    before, _, after = url.partition("*")
    yield StringCommand(
        StringCommand("file=", QuoteString(path), _separator=""),
        '; umask 077; mkdir -p "${file%/*}" &&',
        f'printf "%s\\n" "{before}$(cat {PASSWORDS}/{role}){after}" > "$file.new" &&',
        f'chown {user}: "$file.new" && chmod 400 "$file.new" && mv -f "$file.new" "$file"',
    )

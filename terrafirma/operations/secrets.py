"""Secrets that are made on the server, or brought there."""

from __future__ import annotations

import base64
from collections.abc import Generator, Iterable, Mapping

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand

from terrafirma.facts.secrets import AppSecrets, DatabaseUrl, owner_of_secrets
from terrafirma.given import Hidden
from terrafirma.operations import failure, operation
from terrafirma.paths import PASSWORDS, SECRETS_PROGRAM


@operation
def app_secrets(
    directory: str,
    *,
    secrets: Iterable[str],
    given: Mapping[str, str],
    user: str,
    registry_password: str = "",
) -> Generator[StringCommand]:
    """
    Files with the secrets of an application; those that are not given are made there, once.

    + directory: where, 0700 and root's; it may not be there yet
    + secrets: the names of all of them
    + given: the values of those that were chosen elsewhere
    + user: who alone may read them; empty: every id in a container, as root's 0444
    + registry_password: goes into `.registry_password`, which is root's alone

    SECRETS_PROGRAM does it, and has to be there. Values travel over standard input, and are
    compared on the host. A file that is no longer in the data is reported and left alone.
    """
    stdin = Hidden([f"owner {user}"] if user else [])
    values = {name: given.get(name) for name in secrets}
    if registry_password:
        values[".registry_password"] = registry_password
    for name, value in values.items():
        # Base64 is one line, whatever is in it.
        encoded = base64.b64encode((value or "").encode()).decode()
        stdin.append(f"born {name}" if value is None else f"given {name} {encoded}")
    known = host.get_fact(AppSecrets, directory=directory, _stdin=stdin)
    if known["other"]:
        host.log(f"Not in the data, left alone: {directory}/ {', '.join(known['other'][:10])}")
    if not known["wrong"]:
        host.noop(f"{len(values)} secrets in {directory} are as wanted")
        return
    if not host.state.is_executing:
        host.log(f"  {', '.join(known['wrong'])}")
    yield StringCommand(SECRETS_PROGRAM, "set", QuoteString(directory), _stdin=stdin)


@operation
def database_url(path: str, *, url: str, role: str, user: str) -> Generator[StringCommand]:
    """
    A file that holds the URL of a database, with the password that was made on the server.

    + path: the file, in a directory that root alone may enter
    + url: with `*` where the password goes
    + role: whose password
    + user: who alone may read it; empty: every id in a container
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
    mode, owner = owner_of_secrets(user)
    yield StringCommand(
        StringCommand("file=", QuoteString(path), _separator=""),
        '; umask 077; mkdir -p "${file%/*}" &&',
        f'printf "%s\\n" "{before}$(cat {PASSWORDS}/{role}){after}" > "$file.new" &&',
        f'chown {owner}: "$file.new" && chmod {mode} "$file.new" && mv -f "$file.new" "$file"',
    )

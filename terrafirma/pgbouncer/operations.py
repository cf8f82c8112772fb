"""PgBouncer: its user list, and stopping it."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand

from terrafirma.host.operation import failure, operation
from terrafirma.host.units import Unit
from terrafirma.paths import POOLER_USERS
from terrafirma.pgbouncer.facts import UserList, verifiers


@operation
def user_list(version: int, roles: Sequence[str]) -> Generator[StringCommand]:
    """
    PgBouncer's user list: the verifiers of `roles` in cluster `version`/main.

    The verifiers go from PostgreSQL into the file without leaving the server. PgBouncer can use the
    proof of its client to log in to PostgreSQL, because both have the same verifier.
    """
    known = host.get_fact(UserList, version=version, roles=roles)
    if known == "right":
        host.noop(f"{POOLER_USERS} has the verifiers of {len(roles)} roles")
        return
    # A dry run on a bare host is no failure: the roles do not exist yet.
    if host.state.is_executing and known == "no verifiers":
        yield failure(
            "pgbouncer_enabled: PostgreSQL does not run, or one of the roles has no password yet; "
            "run tasks/postgres.py first"
        )
    yield StringCommand(
        f"file={POOLER_USERS}; new=$file.terrafirma-new; umask 077;",
        StringCommand("lines=$(", verifiers(version, roles), ") &&", _separator=""),
        'rm -f "$new" && : > "$new" && chown root:postgres "$new" && chmod 640 "$new" &&',
        # `printf` is a shell builtin: no verifier appears in the process list.
        'printf "%s\\n" "; Managed by Terrafirma: tasks/pgbouncer.py" "$lines" > "$new" &&',
        'mv -fT "$new" "$file"',
    )


@operation
def stop(unit: str) -> Generator[StringCommand]:
    """The unit does not run and does not start at boot; its package stays installed."""
    known = host.get_fact(Unit, unit=unit)
    if known["active"] or known["enabled"]:
        yield StringCommand("systemctl disable --quiet --now", QuoteString(unit))
    else:
        host.noop(f"{unit} is stopped")

"""PgBouncer: who may log in, and the end of it."""

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
    PgBouncer's user list: the verifiers of `roles`, as cluster `version`/main has them.

    They go from PostgreSQL into the file without leaving the server. The same verifier on both
    sides is what lets PgBouncer log in with what its client has just proved.
    """
    known = host.get_fact(UserList, version=version, roles=roles)
    if known == "right":
        host.noop(f"{POOLER_USERS} has the verifiers of {len(roles)} roles")
        return
    # In a dry run on a bare host the roles are still to come.
    if host.state.is_executing and known == "no verifiers":
        yield failure(
            "pgbouncer_enabled: PostgreSQL does not run, or one of the roles has no password yet; "
            "run tasks/postgres.py first"
        )
    yield StringCommand(
        f"file={POOLER_USERS}; new=$file.terrafirma-new; umask 077;",
        StringCommand("lines=$(", verifiers(version, roles), ") &&", _separator=""),
        'rm -f "$new" && : > "$new" && chown root:postgres "$new" && chmod 640 "$new" &&',
        # A part of the shell: no verifier is in the process list.
        'printf "%s\\n" "; Managed by Terrafirma: tasks/pgbouncer.py" "$lines" > "$new" &&',
        'mv -fT "$new" "$file"',
    )


@operation
def stop(unit: str) -> Generator[StringCommand]:
    """A unit that does not run, and does not start at boot; its package stays."""
    known = host.get_fact(Unit, unit=unit)
    if known["active"] or known["enabled"]:
        yield StringCommand("systemctl disable --quiet --now", QuoteString(unit))
    else:
        host.noop(f"{unit} is stopped")

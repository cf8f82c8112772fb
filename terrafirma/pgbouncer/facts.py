"""The user list and configuration of PgBouncer on a host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override

from terrafirma.paths import POOLER_CONFIG, POOLER_DROP_IN, POOLER_USERS
from terrafirma.postgres.facts import psql, runs


def verifiers(version: int, roles: Sequence[str]) -> StringCommand:
    """
    The shell command that prints PgBouncer's user list: a line for each role with a SCRAM verifier.

    Use it in `$(…)` on the host only: the verifiers must not reach pyinfra.
    """
    # NAME~ is the second login of a role while its password is renewed.
    names = ",".join(f"{role},{role}~" for role in roles)
    query = (
        'select format(\'"%s" "%s"\', rolname, rolpassword) from pg_authid '
        f"where rolname = any('{{{names}}}') and rolpassword like 'SCRAM-SHA-256$%' "
        "order by rolname"
    )
    return StringCommand("echo", QuoteString(query), "|", psql(version))


class UserList(FactBase[Literal["right", "wrong", "no verifiers"]]):
    """
    Whether PgBouncer's user list has the same verifiers of `roles` as cluster `version`/main.

    "no verifiers": a role has none, or the cluster does not run.
    """

    @staticmethod
    @override
    def default() -> Literal["no verifiers"]:
        return "no verifiers"

    @override
    def command(self, version: int, roles: Sequence[str]) -> StringCommand:
        return StringCommand(
            f"{runs(version)} || exit 0;",
            StringCommand("lines=$(", verifiers(version, roles), ") || exit 1;", _separator=""),
            # `echo` and `test` are shell builtins: no verifier appears in the process list.
            """test "$(echo "$lines" | grep '^"' |""",
            f"""grep -vc '^"[^"]*~"')" -eq {len(roles)} || exit 0;""",
            f'if test "$(grep -v "^;" {POOLER_USERS} 2> /dev/null)" = "$lines"',
            f'-a "$(stat -c %a:%U:%G {POOLER_USERS} 2> /dev/null)" = 640:root:postgres;',
            "then echo right; else echo wrong; fi",
        )

    @override
    def process(self, output: list[str]) -> Literal["right", "wrong", "no verifiers"]:
        match output:
            case ["right"]:
                return "right"
            case ["wrong"]:
                return "wrong"
            case _:
                # The output may hold verifiers, so the message does not show it.
                raise FactProcessError("the user list of PgBouncer cannot be compared")


class ForeignPooler(FactBase[bool]):
    """Whether PgBouncer's configuration is neither Terrafirma's nor the package's unchanged one."""

    default = bool

    @override
    def command(self) -> str:
        return (
            f"file={POOLER_CONFIG}; test ! -e {POOLER_DROP_IN} -a -e $file || exit 0; "
            "grep -q 'Managed by Terrafirma' $file || "
            '{ dpkg-query -W pgbouncer && ! dpkg --verify pgbouncer | grep -q " $file\\$"; } '
            "> /dev/null 2>&1 || echo foreign"
        )

    @override
    def process(self, output: list[str]) -> bool:
        if output != ["foreign"]:
            raise FactProcessError(f"dpkg answered {output[:1]!r}")
        return True

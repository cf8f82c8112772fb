"""What a PostgreSQL cluster holds."""

from __future__ import annotations

import json
from typing import Any, TypedDict

from pyinfra.api import FactBase, FactProcessError, StringCommand
from typing_extensions import override

from terrafirma.paths import PASSWORDS_PROGRAM


def psql(version: int, *more: str) -> str:
    """The command line that runs SQL from standard input in cluster `version`/main as superuser."""
    return " ".join(
        (
            "runuser -u postgres -- psql --cluster",
            f"{version}/main",
            "--no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1",
            *more,
            "postgres",
        )
    )


class RoleState(TypedDict):
    login: bool
    superuser: bool
    create_database: bool
    create_role: bool
    replication: bool
    bypass_rls: bool
    connection_limit: int


class DatabaseState(TypedDict):
    owner: str
    open: bool  # PUBLIC may connect or make temporary tables


def _ask(version: int, query: str) -> StringCommand:
    # No cluster, or one that is down, is a valid answer: its roles and databases are still to come.
    return StringCommand(
        f"pg_lsclusters -h {version} main 2> /dev/null | grep -qw online || exit 0;",
        f'echo "{" ".join(query.split())}" | {psql(version)}',
    )


def _answer(output: list[str]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = dict(json.loads("".join(output)))
    except (ValueError, TypeError) as error:
        raise FactProcessError(f"psql answered {output[:1]!r}") from error
    return answer


class Roles(FactBase[dict[str, RoleState]]):
    """The roles of cluster `version`/main; none where it does not run."""

    default = dict

    @override
    def command(self, version: int) -> StringCommand:
        return _ask(
            version,
            """
            select json_object_agg(rolname, json_build_object(
                'login', rolcanlogin, 'superuser', rolsuper, 'create_database', rolcreatedb,
                'create_role', rolcreaterole, 'replication', rolreplication,
                'bypass_rls', rolbypassrls, 'connection_limit', rolconnlimit))
            from pg_roles where rolname !~ '^pg_'
            """,
        )

    @override
    def process(self, output: list[str]) -> dict[str, RoleState]:
        return _answer(output)


class Databases(FactBase[dict[str, DatabaseState]]):
    """The databases of cluster `version`/main; none where it does not run."""

    default = dict

    @override
    def command(self, version: int) -> StringCommand:
        return _ask(
            version,
            """
            select json_object_agg(datname, json_build_object(
                'owner', pg_get_userbyid(datdba),
                'open', has_database_privilege('public', oid, 'connect')
                     or has_database_privilege('public', oid, 'temporary')))
            from pg_database where not datistemplate
            """,
        )

    @override
    def process(self, output: list[str]) -> dict[str, DatabaseState]:
        return _answer(output)


class RestartSettings(FactBase[dict[str, bool]]):
    """
    The settings of cluster `version`/main that only a restart changes, and whether one is due.

    Empty where it does not run.
    """

    default = dict

    @override
    def command(self, version: int) -> StringCommand:
        return _ask(
            version,
            """
            select json_object_agg(name, pending_restart)
            from pg_settings where context = 'postmaster'
            """,
        )

    @override
    def process(self, output: list[str]) -> dict[str, bool]:
        return _answer(output)


class WrongPasswords(FactBase[list[str]]):
    """
    Those of `roles` whose password in the cluster is not the one in their file, or has no file.

    All of them where the cluster does not run yet.
    """

    default = list

    @override
    def command(self, version: int, roles: list[str]) -> StringCommand:
        names = " ".join(roles)
        return StringCommand(
            f"if test -x {PASSWORDS_PROGRAM} && pg_lsclusters -h {version} main 2> /dev/null",
            f"| grep -qw online; then {PASSWORDS_PROGRAM} check {version} {names};",
            f'else for role in {names}; do echo "$role"; done; fi',
        )

    @override
    def process(self, output: list[str]) -> list[str]:
        return output

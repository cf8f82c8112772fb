"""What a PostgreSQL cluster holds."""

from __future__ import annotations

import json
from typing import TypedDict

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


class ClusterState(TypedDict):
    exists: bool
    running: bool
    roles: dict[str, RoleState]
    databases: dict[str, DatabaseState]


_QUERY = """
select json_build_object(
  'roles', (select json_object_agg(rolname, json_build_object(
      'login', rolcanlogin, 'superuser', rolsuper, 'create_database', rolcreatedb,
      'create_role', rolcreaterole, 'replication', rolreplication, 'bypass_rls', rolbypassrls,
      'connection_limit', rolconnlimit)) from pg_roles where rolname !~ '^pg_'),
  'databases', (select json_object_agg(datname, json_build_object(
      'owner', pg_get_userbyid(datdba),
      'open', has_database_privilege('public', oid, 'connect')
           or has_database_privilege('public', oid, 'temporary')))
      from pg_database where not datistemplate))
"""


class Cluster(FactBase[ClusterState]):
    """Roles and databases of cluster `version`/main; nothing exists where it does not run."""

    @staticmethod
    @override
    def default() -> ClusterState:
        return ClusterState(exists=False, running=False, roles={}, databases={})

    @override
    def command(self, version: int) -> StringCommand:
        query = " ".join(_QUERY.split())
        return StringCommand(
            f"test -e /etc/postgresql/{version}/main/postgresql.conf || exit 0; echo exists;",
            f"pg_lsclusters -h {version} main | grep -qw online || exit 0;",
            f'echo "{query}" | {psql(version)}',
        )

    @override
    def process(self, output: list[str]) -> ClusterState:
        state = self.default()
        state["exists"] = True
        if len(output) > 1:
            try:
                state.update(json.loads("".join(output[1:])))
            except ValueError as error:
                raise FactProcessError(f"psql answered {output[1]!r}") from error
            state["running"] = True
        return state


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
            f"else printf '%s\\n' {names}; fi",
        )

    @override
    def process(self, output: list[str]) -> list[str]:
        return output

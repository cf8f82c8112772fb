"""The answers of a host whose cluster is in the declared state."""

import json
from collections.abc import Sequence
from typing import Any

from terrafirma.postgres.facts import Contents, Databases, Roles, Server
from tests.unit.fake_host import Answers, command

SERVER = command(Server, version=17)
RESTART = ["max_connections", "port", "shared_buffers", "wal_level"]


def answer(pending: Sequence[str] = (), by_hand: Sequence[str] = ()) -> list[str]:
    return [json.dumps({"pending": pending, "restart": RESTART, "by_hand": by_hand})]


def as_declared(data: dict[str, Any]) -> Answers:
    """The answers of a cluster with everything in `data`, and no table yet."""
    no = dict.fromkeys(
        ("superuser", "create_database", "create_role", "replication", "bypass_rls", "expires"),
        False,
    )
    yes = {"login": True, "inherit": True, "connection_limit": -1, "member_of": [], "settings": []}
    base = {"encoding": "UTF8", "locale": "C.UTF-8", "connection_limit": -1}
    base |= {"connectable": True, "template": False}
    none: dict[str, Any] = {"handed": [], "settings": [], "role_settings": {}}
    everywhere: dict[str, Any] = {"default_acl": []}
    roles = {one["name"]: no | yes for one in data["postgres_roles"]}
    databases: dict[str, Any] = {"postgres": base | none | {"owner": "postgres", "acl": []}}
    contents = [
        {"database": "postgres", "extensions": ["pg_stat_statements"], "schemas": {}} | everywhere
    ]
    for one in data["postgres_databases"]:
        name, owner, readers = one["name"], one["owner"], [*one.get("access", ())]
        acl = [(owner, right) for right in ("CREATE", "CONNECT", "TEMPORARY")]
        acl += [(reader, "CONNECT") for reader in readers]
        databases[name] = base | none | {"owner": owner, "acl": acl}
        public = {
            "owner": "pg_database_owner",
            "acl": [("public", "USAGE"), *((reader, "USAGE") for reader in readers)],
            "tables": 0,
            "sequences": 0,
            "table_acl": [],
            "sequence_acl": [],
            "of_extension": False,
            "handed": [],
            "default_acl": [
                (owner, kind, one, "SELECT", False) for one in readers for kind in "rS"
            ],
            "strangers": [],
        }
        extensions = ["plpgsql", *one.get("extensions", ())]
        contents.append(
            {"database": name, "extensions": extensions, "schemas": {"public": public}} | everywhere
        )
    return {
        command(Roles, version=17): [json.dumps(roles)],
        command(Databases, version=17): [json.dumps(databases)],
        command(Contents, version=17): [json.dumps(one) for one in contents],
        SERVER: answer(),
    }


ONE = {
    "postgres_roles": [{"name": "api"}],
    "postgres_databases": [{"name": "api", "owner": "api", "extensions": ["hstore"]}],
}

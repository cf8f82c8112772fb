"""
Managed by Terrafirma. The passwords of PostgreSQL's roles are those in their files.

    terrafirma passwords check VERSION    print `wrong ROLE` for each role whose password differs
                                          from its file, or whose file others can read
    terrafirma passwords set VERSION      create missing files, close readable ones, and give the
                                          roles the passwords in their files
    terrafirma passwords renew VERSION    generate new passwords, and give them to the roles

Standard input is that of `terrafirma secrets`, with the roles as names. Clear text stays in the
files: PostgreSQL is sent SCRAM verifiers (RFC 5803), over standard input.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from terrafirma_host.postgres import Cluster
from terrafirma_host.secrets import ROOT, Store, asked
from terrafirma_host.shell import locked

DIRECTORY = Path("/etc/terrafirma/secrets/postgres")
ITERATIONS = 4096  # PostgreSQL's own default


def verifier(password: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """The SCRAM-SHA-256 verifier, as pg_authid stores it."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client = hmac.digest(salted, b"Client Key", "sha256")
    server = hmac.digest(salted, b"Server Key", "sha256")
    stored = hashlib.sha256(client).digest()
    parts = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return "SCRAM-SHA-256${}:{}${}:{}".format(iterations, *parts)


def matches(password: str, known: str) -> bool:
    found = re.fullmatch(r"SCRAM-SHA-256\$(\d+):([^$]+)\$.+", known)
    if not found:
        return False
    salt = base64.b64decode(found[2])
    return hmac.compare_digest(verifier(password, salt, int(found[1])), known)


def main(words: Sequence[str]) -> None:
    match words:
        case ["check" | "set" | "renew" as action, version]:
            pass
        case _:
            sys.exit(__doc__)
    values, _ = asked()
    store = Store(DIRECTORY, lambda _: (0o600, *ROOT), end=b"\n")
    cluster = Cluster(version)
    if action == "check" and not DIRECTORY.is_dir():
        sys.stdout.writelines(f"wrong {role}\n" for role in values)
        return
    # One run at a time: of two, one could win in the file and the other in PostgreSQL.
    with locked(DIRECTORY):
        if action != "check":
            store.put(values, renew=action == "renew")
        # As JSON: the name of another program's role may have line breaks.
        known = cluster.ask(
            "select json_object_agg(rolname, coalesce(rolpassword, '')) from pg_authid"
        )
        passwords = {role: store.value(role).decode() for role in values}
        # A right password keeps its verifier: PgBouncer, for one, has a copy of it.
        differ = [role for role in values if not matches(passwords[role], known.get(role, ""))]
        if action == "check":
            for role, value in values.items():
                if role in differ or not store.is_right(role, value):
                    print("wrong", role)
        elif differ:
            made = {role: verifier(passwords[role], os.urandom(16)) for role in differ}
            cluster.sql(
                "".join(f"alter role \"{role}\" password '{made[role]}';\n" for role in made)
            )

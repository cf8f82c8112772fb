"""Where the passwords of PostgreSQL's roles live on a host."""

SECRETS = "/etc/terrafirma/secrets"
"""0700, root: everything secret that was born on the server."""

PASSWORDS = f"{SECRETS}/postgres"
"""One file for each role, named after it, mode 0600."""

PROGRAM = "/usr/local/lib/terrafirma/postgres-passwords"
"""Installed from files/postgres/postgres-passwords."""

"""Managed by Terrafirma. A cluster of PostgreSQL, and what root has a superuser do there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from terrafirma_host.shell import Failed, run, succeeds

ETC = Path("/etc/postgresql")
LIB = Path("/usr/lib/postgresql")
AS_POSTGRES = ("runuser", "-u", "postgres", "--")

# As terrafirma/postgres/facts.py has it: whoever owns a database must not choose what a superuser
# calls there, nor when that ends.
OPTIONS = (
    "-c search_path=pg_catalog -c role=none -c local_preload_libraries= -c statement_timeout=0 "
    "-c lock_timeout=0 -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 "
    "-c default_transaction_read_only=off -c standard_conforming_strings=on "
    # It would keep ALTER ROLE with its verifier, for all who may read it.
    "-c pg_stat_statements.track=none"
)

# Where a server is: socket directory and port.
Address = tuple[str, str]


def as_postgres(*command: str | Path, **how: Any) -> str:
    """What a command printed that was run as postgres; `how` as for `run`."""
    return run(*AS_POSTGRES, *command, **how)


def session(version: str, encoding: str = "UTF8") -> dict[str, str]:
    """The environment in which a superuser's session is ours: of a server of that version."""
    options = f"{OPTIONS} -c client_encoding={encoding}"
    # Before that the option is unknown, and would end the session.
    return {"PGOPTIONS": options + (" -c transaction_timeout=0" if int(version) >= 17 else "")}


class Cluster:
    def __init__(self, version: str, cluster: str = "main") -> None:
        self.version = version
        self.cluster = cluster
        self.name = f"{version}/{cluster}"
        self.etc = ETC / version / cluster
        self.programs = LIB / version / "bin"

    @property
    def data(self) -> Path:
        command = ("pg_conftool", "-s", self.version, self.cluster, "show", "data_directory")
        # Of one whose creation was cut short nothing is said; it is where they all are.
        answer = as_postgres(*command, check=False).rstrip("\n")
        return Path(answer or f"/var/lib/postgresql/{self.name}")

    def address(self) -> Address:
        """
        Where the server listens that runs: raises Failed where none does.

        The configuration is ahead of it, from a new port until the restart. A crash leaves the file
        behind: at that port may be another cluster's server by now.
        """
        data = self.data
        lines = as_postgres("cat", data / "postmaster.pid", check=False).splitlines()
        if len(lines) > 4 and lines[4]:
            process, _, _, port, directory, *_ = lines
            if succeeds(*AS_POSTGRES, "test", f"/proc/{process}/cwd", "-ef", data):
                return directory, port
        raise Failed(f"{self.name} does not run, or has no socket")

    def client(
        self, program: str, *words: str, address: Address | None = None
    ) -> tuple[str | Path, ...]:
        """A program of PostgreSQL's that comes to the server: to this address, or where it runs."""
        directory, port = address or self.address()
        return (*AS_POSTGRES, self.programs / program, *words, "-h", directory, "-p", port)

    def sql(self, query: str, database: str = "postgres", address: Address | None = None) -> str:
        return run(
            *self.client("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", address=address),
            stdin=query,
            env=session(self.version) | {"PGDATABASE": database},
        ).strip()

    def ask(self, query: str, **where: Any) -> Any:
        """The JSON that a query answers."""
        return json.loads(self.sql(query, **where))

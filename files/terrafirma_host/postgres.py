"""Managed by Terrafirma. A cluster of PostgreSQL, and sessions of a superuser in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from terrafirma_host.shell import Failed, run, succeeds

ETC = Path("/etc/postgresql")
LIB = Path("/usr/lib/postgresql")
AS_POSTGRES = ("runuser", "-u", "postgres", "--")

# The same as in terrafirma/postgres/facts.py: the owner of a database must not choose which
# functions a superuser calls there, nor when the superuser's session ends.
OPTIONS = (
    "-c search_path=pg_catalog -c role=none -c local_preload_libraries= -c statement_timeout=0 "
    "-c lock_timeout=0 -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 "
    "-c default_transaction_read_only=off -c standard_conforming_strings=on "
    # The extension would show ALTER ROLE, with its verifier, to all who may read the statistics.
    "-c pg_stat_statements.track=none"
)

# The address of a server: socket directory and port.
Address = tuple[str, str]


def as_postgres(*command: str | Path, **how: Any) -> str:
    """Run a command as postgres; returns its output. `how` is that of `run`."""
    return run(*AS_POSTGRES, *command, **how)


def session(version: str, encoding: str = "UTF8") -> dict[str, str]:
    """The environment for a superuser's session on a server of that version."""
    options = f"{OPTIONS} -c client_encoding={encoding}"
    # A server before 17 does not know the option, and would refuse the session.
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
        # A cluster whose creation was interrupted has no such setting: it has the default place.
        answer = as_postgres(*command, check=False).rstrip("\n")
        return Path(answer or f"/var/lib/postgresql/{self.name}")

    def address(self) -> Address:
        """
        Where the running server listens; raises Failed where none runs.

        The server's own pid file tells: the configuration may name a new port that waits for a
        restart. A crash leaves the pid file behind, and another cluster may use that port by now;
        so the process must have this data directory.
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
        """The command of a PostgreSQL client: to this address, or to where the server listens."""
        directory, port = address or self.address()
        return (*AS_POSTGRES, self.programs / program, *words, "-h", directory, "-p", port)

    def sql(self, query: str, database: str = "postgres", address: Address | None = None) -> str:
        return run(
            *self.client("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", address=address),
            stdin=query,
            env=session(self.version) | {"PGDATABASE": database},
        ).strip()

    def ask(self, query: str, **where: Any) -> Any:
        """The JSON value that a query returns."""
        return json.loads(self.sql(query, **where))

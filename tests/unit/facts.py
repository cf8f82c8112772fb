"""Runs facts on this machine, with programs that stand in for those of a host."""

import os
import subprocess
from functools import cached_property
from pathlib import Path
from typing import Any

from pyinfra.api import FactBase, StringCommand

from tests.unit.programs import Program


def text(fact: type[FactBase[Any]], **arguments: Any) -> str:
    command = fact().command(**arguments)
    return command.get_raw_value() if isinstance(command, StringCommand) else command


def shell(command: str, path: Path | None = None, stdin: str = "") -> list[str]:
    """The output of `command`; `path` holds programs that stand in for the host's."""
    environment = os.environ | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
    result = subprocess.run(
        ["sh", "-c", command],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if result.returncode:
        raise AssertionError(f"exit {result.returncode}: {result.stderr}")
    return result.stdout.splitlines()


def ask(
    fact: type[FactBase[Any]], path: Path | None = None, *, stdin: str = "", **arguments: Any
) -> Any:
    """The fact of this machine, as pyinfra gathers it."""
    output = shell(text(fact, **arguments), path, stdin)
    return fact().process(output) if output else fact().default()


class Cluster:
    """A stand-in for a cluster 17/main: its configuration, and the pid file of its server."""

    def __init__(self, program: Program, directory: Path) -> None:
        self.program = program
        self.data = directory / "it's data"
        self.data.mkdir()

    def runs(self, pid: int | None = None, socket: str = "/run/postgresql") -> Path:
        """A server with this data directory; other pids, as of the tests, run elsewhere."""
        pid = self.server.pid if pid is None else pid
        lines = (pid, self.data, 1795526851, 6543, socket, "localhost", "  1818658  4", "ready")
        (self.data / "postmaster.pid").write_text("".join(f"{line}\n" for line in lines))
        return self.is_down()

    def is_down(self) -> Path:
        return self.program(
            "pg_conftool", f'test "$*" = "-s 17 main show data_directory" && echo "{self.data}"'
        )

    def is_not_there(self) -> Path:
        return self.program(
            "pg_conftool", "echo 'Error: cluster 17 main does not exist' >&2; exit 1"
        )

    @cached_property
    def server(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["sleep", "60"], cwd=self.data)

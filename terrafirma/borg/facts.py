"""Archives in the backup repository."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override


class BackupsState(TypedDict):
    first: str  # the archive that proved the configuration; empty without one
    trouble: str  # what is wrong with the last backup, in one line; empty: nothing


class Backups(FactBase[BackupsState]):
    """
    The archive that proved this configuration, and what is wrong with the last backup.

    The file `stamp` has the archive's name. If a file of `configuration` is newer, there is no such
    archive. The program on the host wrote `result` when the last backup ended.
    """

    @staticmethod
    @override
    def default() -> BackupsState:
        return BackupsState(first="", trouble="")

    @override
    def command(self, stamp: str, configuration: Sequence[str], result: str) -> StringCommand:
        return StringCommand(
            StringCommand("stamp=", QuoteString(stamp), _separator=""),
            StringCommand("result=", QuoteString(result), _separator=""), ";",
            'test ! -e "$result" || sed s/^/result=/ < "$result";',
            "for path in", *map(QuoteString, configuration),
            '; do test "$stamp" -nt "$path" || exit 0; done; sed s/^/first=/ < "$stamp"',
        )  # fmt: skip

    @override
    def process(self, output: list[str]) -> BackupsState:
        state = self.default()
        try:
            for line in output:
                key, _, value = line.partition("=")
                match key:
                    case "first":
                        state["first"] = value
                    case "result":
                        state["trouble"] = str(json.loads(value)["words"])
                    case _:
                        raise ValueError(line)
        except (ValueError, LookupError, TypeError) as error:
            raise FactProcessError(f"no result of a backup: {output[:2]!r}") from error
        return state


class Archives(FactBase[list[str]]):
    """Names of the archives in the repository, oldest first; connects to the backup host once."""

    default = list

    @override
    def command(self) -> str:
        return "borgmatic rlist --json"

    @override
    def process(self, output: list[str]) -> list[str]:
        try:
            return [
                archive["archive"]
                for repository in json.loads("".join(output))
                for archive in repository["archives"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise FactProcessError(f"borgmatic answered {output[:1]!r}") from error

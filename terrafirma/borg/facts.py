"""Archives in the backup repository."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override


class FirstArchive(FactBase[str | None]):
    """
    The archive that proved this configuration, whose name is in the file `stamp`.

    None without such an archive, or if a file of `configuration` is newer than `stamp`.
    """

    @override
    def command(self, stamp: str, configuration: Sequence[str]) -> StringCommand:
        return StringCommand(
            "for path in", *map(QuoteString, configuration),
            "; do test", QuoteString(stamp), '-nt "$path" || exit 0; done; cat', QuoteString(stamp),
        )  # fmt: skip

    @override
    def process(self, output: list[str]) -> str:
        return output[0]


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

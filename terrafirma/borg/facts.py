"""What the backup repository holds."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override


class FirstArchive(FactBase[str | None]):
    """
    The archive that proved this configuration, as `stamp` notes it.

    None when there was none yet, or when one of the files of `configuration` changed since.
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
    """Names of the archives, oldest first, read back from the repository: one connection to it."""

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

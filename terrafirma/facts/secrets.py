"""Secrets that were born on the server; none of them leaves it."""

from __future__ import annotations

from typing import Literal

from pyinfra.api import FactBase, QuoteString, StringCommand
from typing_extensions import override

from terrafirma.paths import PASSWORDS


class DatabaseUrl(FactBase[Literal["right", "wrong", "no password", "no account"]]):
    """
    Whether the file at `path` holds `url`, with the password of `role` in place of its `*`.

    It must belong to `user`, who alone may read it.
    """

    @staticmethod
    @override
    def default() -> Literal["no password"]:
        return "no password"

    @override
    def command(self, path: str, url: str, role: str, user: str) -> StringCommand:
        before, _, after = url.partition("*")
        return StringCommand(
            StringCommand("file=", QuoteString(path), _separator=""),
            ";",
            f"id -u {user} > /dev/null 2>&1 || {{ echo no account; exit 0; }};",
            f"test -s {PASSWORDS}/{role} || {{ echo no password; exit 0; }};",
            # `test` is a part of the shell: the password is in no process list.
            f'if test "$(cat "$file" 2> /dev/null)" = "{before}$(cat {PASSWORDS}/{role}){after}"',
            f'-a "$(stat -c %a:%U "$file")" = 400:{user}; then echo right; else echo wrong; fi',
        )

    @override
    def process(self, output: list[str]) -> Literal["right", "wrong", "no password", "no account"]:
        return output[0]  # type: ignore[return-value]  # one of the four words above

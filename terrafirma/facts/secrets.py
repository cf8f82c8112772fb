"""Secrets on the server; none of them leaves it."""

from __future__ import annotations

from typing import Literal, TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override

from terrafirma.paths import PASSWORDS, SECRETS_PROGRAM


class SecretsState(TypedDict):
    wrong: list[str]  # missing, with another value, or with another owner or mode
    other: list[str]  # that nobody asked about


class AppSecrets(FactBase[SecretsState]):
    """
    Those secrets of an application that are not in `directory` as they should be, by name.

    Which there should be comes on standard input, as the program wants it:
    `host.get_fact(AppSecrets, directory=…, _stdin=…)`. All are wrong where it is not there yet.
    """

    @staticmethod
    @override
    def default() -> SecretsState:
        return SecretsState(wrong=[], other=[])

    @override
    def command(self, directory: str) -> StringCommand:
        return StringCommand(
            f"test -x {SECRETS_PROGRAM} ||",
            r"{ sed -nE 's/^(born|given) ([^ ]+).*/wrong \2/p'; exit 0; };",
            f"{SECRETS_PROGRAM} check",
            QuoteString(directory),
        )

    @override
    def process(self, output: list[str]) -> SecretsState:
        state = self.default()
        for line in output:
            match line.split():
                case ["wrong", name]:
                    state["wrong"].append(name)
                case ["other", name]:
                    state["other"].append(name)
                case _:
                    raise FactProcessError("app-secrets did not answer as it does")
        return state


def owner_of_secrets(user: str) -> tuple[str, str]:
    """Mode and owner of a file that containers of `user` read; empty: of any id."""
    return ("400", user) if user else ("444", "root")


class DatabaseUrl(FactBase[Literal["right", "wrong", "no password", "no account"]]):
    """
    Whether the file at `path` holds `url`, with the password of `role` in place of its `*`.

    It must belong to `user`, who alone may read it; without one, to root, and be for every reader
    who gets as far: its directory is root's alone, and in a container it is mounted.
    """

    @staticmethod
    @override
    def default() -> Literal["no password"]:
        return "no password"

    @override
    def command(self, path: str, url: str, role: str, user: str) -> StringCommand:
        before, _, after = url.partition("*")
        mode, user = owner_of_secrets(user)
        return StringCommand(
            StringCommand("file=", QuoteString(path), _separator=""),
            ";",
            f"id -u {user} > /dev/null 2>&1 || {{ echo no account; exit 0; }};",
            f"test -s {PASSWORDS}/{role} || {{ echo no password; exit 0; }};",
            # `test` is a part of the shell: the password is in no process list.
            f'if test "$(cat "$file" 2> /dev/null)" = "{before}$(cat {PASSWORDS}/{role}){after}"',
            f'-a "$(stat -c %a:%U "$file")" = {mode}:{user}; then echo right; else echo wrong; fi',
        )

    @override
    def process(self, output: list[str]) -> Literal["right", "wrong", "no password", "no account"]:
        return output[0]  # type: ignore[return-value]  # one of the four words above

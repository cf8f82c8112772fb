"""What is released, and which secrets an application has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override

from terrafirma.host.program import which_are_wrong
from terrafirma.paths import APPLICATIONS, HOST_PROGRAM, PASSWORDS, SECRETS_PROGRAM


class ReleaseState(TypedDict):
    serving: str  # release, or ""
    wanted: str  # release that the description makes, or "" where that is not known yet
    withdrawn: bool  # somebody went back from the wanted one
    current: bool  # it serves, or what serves in its place; whole, and with the settings of now
    trouble: str  # why it is not known
    silent: list[str]  # replicas that run and do not answer: others are to take over
    troubles: list[str]  # why it does not answer, where others would not either
    notes: list[str]  # what may be meant to be so


class KeptPorts(FactBase[Mapping[str, int]]):
    """The first port of each application that the host was told of, by name."""

    @staticmethod
    @override
    def default() -> Mapping[str, int]:
        return {}

    @override
    def command(self) -> str:
        # The slot that comes first, in a file of ours. A variable of that name has its value in
        # quotes.
        return f"grep -Hs '^    \"blue\": [0-9]' {APPLICATIONS}/*.json || true"

    @override
    def process(self, output: list[str]) -> Mapping[str, int]:
        try:
            pairs = (line.split('.json:    "blue": ') for line in output)
            return {path.rpartition("/")[2]: int(port.rstrip(",")) for path, port in pairs}
        except ValueError as error:
            raise FactProcessError(f"no ports of applications: {output}") from error


class ReleaseStatus(FactBase[ReleaseState]):
    """
    Whether an application is what its description says, which comes on standard input, and answers.

    Asked of the program on the host; where that is missing, nothing serves yet.
    """

    @staticmethod
    @override
    def default() -> ReleaseState:
        return ReleaseState(
            serving="", wanted="", withdrawn=False, current=False, trouble="",
            silent=[], troubles=[], notes=[],
        )  # fmt: skip

    @override
    def command(self, app: str) -> StringCommand:
        return StringCommand(
            # Read in any case: who sends it would find nobody there.
            "told=$(cat);",
            f"test -x {HOST_PROGRAM} && command -v docker > /dev/null || exit 0;",
            # One of another version, or an engine that is down: the run puts that right first.
            "printf '%s' \"$told\" |", HOST_PROGRAM, "status --stdin", QuoteString(app),
            "2> /dev/null || true",
        )  # fmt: skip

    @override
    def process(self, output: list[str]) -> ReleaseState:
        try:
            answer = json.loads("".join(output))
            return ReleaseState(
                serving=answer["serving"],
                wanted=answer["wanted"],
                withdrawn=answer["withdrawn"],
                current=answer["current"],
                trouble=answer["trouble"],
                # A program of before does not ask.
                silent=answer.get("silent", []),
                troubles=answer.get("troubles", []),
                notes=answer.get("notes", []),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise FactProcessError(f"terrafirma status answered {output[:1]!r}") from error


class SecretsState(TypedDict):
    wrong: list[str]  # missing, with another value, or with another owner or mode
    other: list[str]  # that nobody asked about


class AppSecrets(FactBase[SecretsState]):
    """
    Those secrets of an application that are not in `directory` as they should be, by name.

    Which there should be comes on standard input, as `told` says it:
    `host.get_fact(AppSecrets, directory=…, _stdin=…)`.
    """

    @staticmethod
    @override
    def default() -> SecretsState:
        return SecretsState(wrong=[], other=[])

    @override
    def command(self, directory: str) -> StringCommand:
        return which_are_wrong(SECRETS_PROGRAM, directory)

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
                    raise FactProcessError("terrafirma secrets did not answer as it does")
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

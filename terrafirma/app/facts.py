"""Which release of an application serves, and which secrets the application has."""

from __future__ import annotations

import json
from typing import Literal, TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override

from terrafirma.host.program import which_are_wrong
from terrafirma.paths import APPLICATIONS, HOST_PROGRAM, PASSWORDS, SECRETS_PROGRAM


class ReleaseState(TypedDict):
    serving: str  # release, or ""
    wanted: str  # release that the description makes, or "" where that is not known yet
    withdrawn: bool  # the wanted release was rolled back
    current: bool  # the wanted release, or its replacement, serves: complete, with current settings
    trouble: str  # why `current` is not known
    silent: list[str]  # replicas that run but do not answer: new ones are to take over
    troubles: list[str]  # why the application does not answer, if new replicas would not either
    notes: list[str]  # findings that may be intended


class KeptState(TypedDict):
    ports: dict[str, int]  # first port of each application, and of each APPLICATION/SERVICE
    routed: list[str]  # applications whose releases write how Caddy reaches them


class Kept(FactBase[KeptState]):
    """What applications keep that the host has a description of."""

    @staticmethod
    @override
    def default() -> KeptState:
        return KeptState(ports={}, routed=[])

    @override
    def command(self) -> str:
        # Blue is the first slot. A variable called `blue` does not match: its value is quoted.
        # A public service is a dictionary under its name, with slots of its own.
        lines = (
            '    "blue": [0-9]',
            '    "[^"]*": {$',
            '        "blue": [0-9]',
            '  "routed": true',
        )
        patterns = " ".join(f"-e '^{one}'" for one in lines)
        return f"grep -Hs {patterns} {APPLICATIONS}/*.json || true"

    @override
    def process(self, output: list[str]) -> KeptState:
        state = self.default()
        service = ""
        for line in output:
            path, _, text = line.partition(".json:")
            app = path.rpartition("/")[2]
            name, _, value = text.rstrip(",").partition(": ")
            match name, value:
                case '  "routed"', "true":
                    state["routed"].append(app)
                case '    "blue"', port if port.isdecimal():
                    state["ports"][app] = int(port)
                case '        "blue"', port if port.isdecimal() and service:
                    state["ports"][f"{app}/{service}"] = int(port)
                case name, "{":
                    service = name.strip(' "')
                case _:
                    raise FactProcessError(f"no ports of applications: {output}")
        return state


class ReleaseStatus(FactBase[ReleaseState]):
    """
    Whether an application matches the description on standard input, and answers.

    The program on the host decides; where the program is missing, nothing serves yet.
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
            # Always read standard input: the sender fails if nothing reads it.
            "description=$(cat);",
            f"test -x {HOST_PROGRAM} && command -v docker > /dev/null || exit 0;",
            # Errors of an older program, or of an engine that is down, are ignored: the run repairs
            # both before it releases.
            "printf '%s' \"$description\" |", HOST_PROGRAM, "status --stdin", QuoteString(app),
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
                # Earlier versions of the program do not report these.
                silent=answer.get("silent", []),
                troubles=answer.get("troubles", []),
                notes=answer.get("notes", []),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise FactProcessError(f"terrafirma status answered {output[:1]!r}") from error


class SecretsState(TypedDict):
    wrong: list[str]  # missing, or with a wrong value, owner or mode
    other: list[str]  # not in the settings


class AppSecrets(FactBase[SecretsState]):
    """
    The names of an application's secrets in `directory` that are wrong, and of those not wanted.

    The wanted secrets come on standard input, in the form that `told` returns:
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
                    raise FactProcessError("terrafirma secrets gave an unknown answer")
        return state


def owner_of_secrets(user: str) -> tuple[str, str]:
    """Mode and owner of a file that containers of `user` read; without a user, of any id."""
    return ("400", user) if user else ("444", "root")


class DatabaseUrl(FactBase[Literal["right", "wrong", "no password", "no account"]]):
    """
    Whether the file at `path` holds `url`, with the password of `role` in place of its `*`.

    The file must belong to `user` and be readable by `user` alone. Without a user it must belong to
    root and be readable by all: only root can enter its directory, and containers mount the file.
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
            # `test` is built into the shell, which keeps the password out of the process list.
            f'if test "$(cat "$file" 2> /dev/null)" = "{before}$(cat {PASSWORDS}/{role}){after}"',
            f'-a "$(stat -c %a:%U "$file")" = {mode}:{user}; then echo right; else echo wrong; fi',
        )

    @override
    def process(self, output: list[str]) -> Literal["right", "wrong", "no password", "no account"]:
        return output[0]  # type: ignore[return-value]  # one of the four answers above

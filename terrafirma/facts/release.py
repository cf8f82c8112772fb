"""What the applications of a host run."""

from __future__ import annotations

import json
from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override

from terrafirma.paths import HOST_PROGRAM


class ReleaseState(TypedDict):
    serving: str  # release, or ""
    wanted: str  # release that the description makes, or "" where that is not known yet
    withdrawn: bool  # somebody went back from the wanted one
    current: bool  # it serves, or what serves in its place; whole, and with the settings of now
    trouble: str  # why it is not known
    silent: list[str]  # replicas that run and do not answer: others are to take over
    troubles: list[str]  # why it does not answer, where others would not either
    notes: list[str]  # what may be meant to be so


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

"""The state of a host's updates."""

from __future__ import annotations

import json
from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError
from typing_extensions import override

from terrafirma.paths import HOST_PROGRAM


class UpdatesState(TypedDict):
    alarms: list[str]  # messages that need attention, like a pending reboot
    notes: list[str]  # what was done in the windows


class UpdatesStatus(FactBase[UpdatesState]):
    """Messages about what is due, and about what was done in the windows."""

    @staticmethod
    @override
    def default() -> UpdatesState:
        return UpdatesState(alarms=[], notes=[])

    @override
    def command(self) -> str:
        # If the program is missing, of another version, or partly replaced, the answer is empty:
        # this run installs the right one.
        return (
            f"{HOST_PROGRAM} updates || case $? in 2 | 126 | 127) ;; "
            f"*) ! {HOST_PROGRAM} --help > /dev/null 2>&1 || exit 1 ;; esac"
        )

    @override
    def process(self, output: list[str]) -> UpdatesState:
        try:
            answer = json.loads("".join(output))
            return UpdatesState(
                alarms=[str(one) for one in answer["alarms"]],
                notes=[str(one) for one in answer["notes"]],
            )
        except (ValueError, LookupError, TypeError) as error:
            raise FactProcessError(f"terrafirma updates answered {output[:1]!r}") from error

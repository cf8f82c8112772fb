"""Times in systemd's form, which systemd on the host checks before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyinfra.api import DeployError, FactBase, Host, QuoteString, StringCommand
from typing_extensions import override


class WrongCalendars(FactBase[list[str]]):
    """The elements of `calendars` that systemd does not understand, or that never come."""

    default = list

    @override
    def command(self, calendars: Sequence[str]) -> StringCommand:
        return StringCommand(
            "for when in", *map(QuoteString, calendars),
            '; do next=$(LC_ALL=C systemd-analyze calendar -- "$when" 2> /dev/null) &&',
            'case "$next" in *"elapse: never"*) false;; esac ||',
            "! command -v systemd-analyze > /dev/null || printf '%s\n' \"$when\"; done",
        )  # fmt: skip

    @override
    def process(self, output: list[str]) -> list[str]:
        return output


def refuse_calendars(host: Host, given: Mapping[str, str], like: str) -> None:
    """
    Raise DeployError where systemd does not understand a time.

    + given: the times by the keys of their settings
    + like: examples of right ones, for the message
    """
    wrong = host.get_fact(WrongCalendars, calendars=sorted({*given.values()})) if given else []
    for key, value in given.items():
        if value in wrong:
            raise DeployError(
                f"{host.name}: {key}: systemd does not understand {value!r}, or it never comes "
                f"(OnCalendar, see man systemd.time); write it like {like}"
            )

"""The base of our own operations, for what pyinfra lacks or gets wrong."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import wraps
from typing import Any, ParamSpec
from weakref import WeakKeyDictionary

from pyinfra import api, state
from pyinfra.api import Host, QuoteString, StringCommand
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.operation import PyinfraOperation
from pyinfra.context import ctx_host

from terrafirma.host.asking import forget

P = ParamSpec("P")

# What has to come before the next change on a host, and words about it: see terrafirma/guard.
_before: WeakKeyDictionary[Host, tuple[StringCommand | None, str]] = WeakKeyDictionary()


def operation(function: Callable[P, Generator[Any]]) -> PyinfraOperation[P]:
    """
    pyinfra's `operation`, except that an operation stops when a fact that it asks fails.

    With one host, a failed fact ends the run. With several, pyinfra marks the host as failed, but
    continues the current operation with the fact's default, as if nothing were on the host.
    """

    @wraps(function)
    def careful(*args: P.args, **kwargs: P.kwargs) -> Generator[PyinfraCommand]:
        for command in function(*args, **kwargs):
            host = ctx_host.get()
            if state.is_executing and host not in state.active_hosts:
                yield failure("skipped: a fact that this operation needs has failed")
                return
            if not isinstance(command, Failure) and host in _before:
                first, words = _before.pop(host)
                if state.is_executing:
                    host.log(words)
                if first:
                    yield first
            yield command
            forget(host)

    return api.operation()(careful)


def before_change(host: Host, command: StringCommand | None, words: str) -> None:
    """
    From now on, `command` comes before the first one with which our operations change `host`.

    + command: None to say only `words`
    """
    _before[host] = command, words


def is_unchanged(host: Host) -> bool:
    """Whether no operation changed `host` since `before_change`; later ones run without it."""
    return _before.pop(host, None) is not None


class Failure(StringCommand):
    """A command that changes nothing, and fails."""


def failure(message: str) -> Failure:
    """
    A command that only fails, with `message`.

    An exception in the body of an operation would end the run of all hosts with a traceback. This
    command fails one host, with one line.
    """
    return Failure("echo", QuoteString(message), ">&2; exit 1")

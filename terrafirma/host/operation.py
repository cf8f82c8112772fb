"""The base of our own operations, for what pyinfra lacks or gets wrong."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import wraps
from typing import Any, ParamSpec

from pyinfra import api, state
from pyinfra.api import QuoteString, StringCommand
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.operation import PyinfraOperation
from pyinfra.context import ctx_host

from terrafirma.host.asking import forget

P = ParamSpec("P")


def operation(function: Callable[P, Generator[Any]]) -> PyinfraOperation[P]:
    """
    pyinfra's `operation`, except that an operation stops when a fact that it asks fails.

    With one host, a failed fact ends the run. With several, pyinfra marks the host as failed, but
    continues the current operation with the fact's default, as if nothing were on the host.
    """

    @wraps(function)
    def careful(*args: P.args, **kwargs: P.kwargs) -> Generator[PyinfraCommand]:
        for command in function(*args, **kwargs):
            if state.is_executing and ctx_host.get() not in state.active_hosts:
                yield failure("skipped: a fact that this operation needs has failed")
                return
            yield command
            forget(ctx_host.get())

    return api.operation()(careful)


def failure(message: str) -> StringCommand:
    """
    A command that only fails, with `message`.

    An exception in the body of an operation would end the run of all hosts with a traceback. This
    command fails one host, with one line.
    """
    return StringCommand("echo", QuoteString(message), ">&2; exit 1")

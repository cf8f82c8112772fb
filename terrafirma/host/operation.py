"""Operations that pyinfra lacks or gets wrong; each says in its docstring which."""

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
    pyinfra's `operation`, for a function that does nothing on the strength of a fact that failed.

    With one host such a fact ends the run. With several, pyinfra marks the host as failed, but goes
    on with the operation at hand, with the fact's default: as if nothing were there.
    """

    @wraps(function)
    def careful(*args: P.args, **kwargs: P.kwargs) -> Generator[PyinfraCommand]:
        for command in function(*args, **kwargs):
            if state.is_executing and ctx_host.get() not in state.active_hosts:
                yield failure("nothing is done here on the strength of a fact that failed")
                return
            yield command
            forget(ctx_host.get())

    return api.operation()(careful)


def failure(message: str) -> StringCommand:
    """
    A command that does nothing but fail with `message`.

    An exception in the body of an operation ends the run of all hosts with a traceback; this fails
    the one host, in one line.
    """
    return StringCommand("echo", QuoteString(message), ">&2; exit 1")

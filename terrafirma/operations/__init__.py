"""Operations that pyinfra lacks or gets wrong; each says in its docstring which."""

from __future__ import annotations

from pyinfra.api import QuoteString, StringCommand


def failure(message: str) -> StringCommand:
    """
    A command that does nothing but fail with `message`.

    An exception in the body of an operation ends the run of all hosts with a traceback; this fails
    the one host, in one line.
    """
    return StringCommand("echo", QuoteString(message), ">&2; exit 1")

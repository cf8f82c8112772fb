"""Facts that several operations need, asked only once until something changes on the host."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from pyinfra.api import FactBase, Host

T = TypeVar("T")


@dataclass
class _Answers:
    moment: tuple[bool, int]
    known: dict[str, Any] = field(default_factory=dict)


_answers: WeakKeyDictionary[Host, _Answers] = WeakKeyDictionary()


def ask(host: Host, fact: type[FactBase[T]], **arguments: Any) -> T:
    """
    A fact of `host`, like `host.get_fact`, but cached.

    The answer is kept until an operation changes something on the host. It is also asked anew when
    the execution begins, since the user may have taken a long time to read the plan.
    """
    moment = (host.state.is_executing, changes_of(host))
    kept = _answers.get(host)
    if kept is None or kept.moment != moment:
        kept = _answers[host] = _Answers(moment)
    question = f"{fact.__module__}.{fact.__name__} {sorted(arguments.items())}"
    if question not in kept.known:
        kept.known[question] = host.get_fact(fact, **arguments)
    answer: T = kept.known[question]
    return answer


def forget(host: Host) -> None:
    """Drop the answers so far: an operation that still runs has changed something on `host`."""
    _answers.pop(host, None)


def changes_of(host: Host) -> int:
    """How many operations of the run, ours or others, have done something on `host`."""
    # `_commands` is None until an operation has ended, whether or not it succeeded.
    return sum(bool(one.operation_meta._commands) for one in host.state.ops[host].values())

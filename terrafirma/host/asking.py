"""Facts that several operations need, asked once as long as nothing changes."""

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
    A fact of `host`, as `host.get_fact` answers it.

    The same question has the same answer until an operation does something on the host: until then
    it is asked once, and once more when the run begins: somebody may have read its plan for long.
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
    """An operation that is not over yet has done something: what was asked before says nothing."""
    _answers.pop(host, None)


def changes_of(host: Host) -> int:
    """How many operations of the run, whoever wrote them, have done something on `host`."""
    # None until an operation is over; whether it succeeded is another question.
    return sum(bool(one.operation_meta._commands) for one in host.state.ops[host].values())

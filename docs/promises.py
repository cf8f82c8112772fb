"""
Write docs/promises.md: the promises of the product, as the tests that show them state them.

Usage: python docs/promises.py [--check]
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from docs.generated import ROOT, write

# Each command runs what the commands before it run.
COMMANDS = ("make test", "make check", "make long")
TEST, CHECK, LONG = range(3)
INTRODUCTION = """\
<!-- docs/promises.py writes this page from the tests: `make docs` -->
# What Terrafirma promises

A test proves each promise on a real server: a container with systemd, sshd and its own Docker
engine. The last column names the command that runs the test; `make check` begins with `make test`.
`make long` runs further cases of promises that `make check` proves: a kill at each step of a
release, other versions of Caddy, 20,000 requests a case.
"""


@dataclass
class Promise:
    """A promise: the title of its section, and the commands that run the cases of each test."""

    section: str
    tests: dict[str, set[int]] = field(default_factory=dict)

    @property
    def shown_by(self) -> str:
        """The command that runs every test, apart from cases that only `make long` runs."""
        return COMMANDS[max(max(found - {LONG}, default=LONG) for found in self.tests.values())]


class Collection:
    """A pytest plugin that collects the promises of all tests."""

    def __init__(self) -> None:
        self.promises: dict[str, Promise] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        functions = [item for item in session.items if isinstance(item, pytest.Function)]
        assert len(functions) == len(session.items)
        # First the platform as a whole, then each part, by title.
        for item in sorted(
            functions,
            key=lambda item: ("platform" not in item.nodeid, _section(item), item.location),
        ):
            mark = item.get_closest_marker("promise")
            if not mark:
                continue
            words = mark.args[0] if mark.args else _words(mark.kwargs["like"])
            promise = self.promises.setdefault(words, Promise(_section(item)))
            promise.tests.setdefault(_test(item), set()).add(_command(item))


def _test(item: pytest.Function) -> str:
    """The name of the test without its cases, or the module if all its tests show the promise."""
    module, _, test = item.nodeid.removeprefix("tests/").partition("::")
    alone = any(mark.name == "promise" for mark in getattr(item.function, "pytestmark", []))
    return f"{module}::{test.partition('[')[0]}" if alone else module


def _words(test: object) -> str:
    (mark,) = (mark for mark in getattr(test, "pytestmark", []) if mark.name == "promise")
    words: str = mark.args[0]
    return words


def _section(item: pytest.Function) -> str:
    """The first sentence of the module's docstring."""
    return re.sub(r"\s+", " ", (item.module.__doc__ or "").strip()).partition(". ")[0].rstrip(".")


def _command(item: pytest.Function) -> int:
    if item.get_closest_marker("long"):
        return LONG
    if item.get_closest_marker("smoke") or not item.get_closest_marker("e2e"):
        return TEST
    return CHECK


def collect() -> dict[str, Promise]:
    collection = Collection()
    # Swallow pytest's list of the collected tests.
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main(
            ["--collect-only", "-qq", "-p", "no:cacheprovider", str(ROOT / "tests")],
            plugins=[collection],
        )
    assert code == 0, said.getvalue()
    return collection.promises


def page(promises: dict[str, Promise]) -> str:
    sections: dict[str, list[str]] = {}
    for words, promise in promises.items():
        rows = sections.setdefault(promise.section, [])
        tests = ", ".join(f"`{test}`" for test in promise.tests)
        rows.append(f"| {words} | {tests} | `{promise.shown_by}` |")
    text = INTRODUCTION
    for section, rows in sections.items():
        text += f"\n## {section}\n\n| Promise | Test | Shown by |\n| --- | --- | --- |\n"
        text += "\n".join(rows) + "\n"
    return text


if __name__ == "__main__":
    sys.exit(write("docs/promises.md", page(collect())))

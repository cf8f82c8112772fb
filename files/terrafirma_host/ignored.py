"""Managed by Terrafirma. The rules of a .dockerignore file, as Docker's builder applies them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Matched = Sequence[bool]
"""Which patterns match a directory."""

# One or more characters or ranges: `[abc]`, `[a-z]`, `[^0-9]`.
_CLASS = re.compile(r"\[\^?(?:(?:\\.|[^\\\]-])(?:-(?:\\.|[^\\\]-]))?)+\]")


@dataclass(frozen=True)
class Pattern:
    text: str
    exception: bool  # with `!`: files that match stay after all
    matches: Callable[[str], bool]

    @classmethod
    def of(cls, text: str, *, exception: bool) -> Pattern:
        """Raises ValueError where the builder refuses the pattern."""
        return cls(text, exception, _matcher(text))

    @property
    def literal(self) -> str:
        """The path that is meant, if it has no wildcards but at its end; else ""."""
        bare = self.text.removesuffix("/**").removesuffix("/*")
        return "" if set(bare) & {*"*[]?^\\"} else bare


@dataclass(frozen=True)
class Patterns:
    """The lines of a .dockerignore file. The last one that matches a path decides."""

    patterns: tuple[Pattern, ...] = ()

    @classmethod
    def of(cls, text: str) -> Patterns:
        """Raises ValueError, with the number of the line, where the builder refuses a line."""
        return cls(tuple(_read(text.removeprefix("\ufeff"))))

    @property
    def exceptions(self) -> list[Pattern]:
        return [one for one in self.patterns if one.exception]

    def judge(self, path: str, parent: Matched = ()) -> tuple[bool, Matched]:
        """
        Whether a path is ignored, and which patterns match it.

        + path: relative to the directory that is built
        + parent: which patterns match the directory of the path; what matches a directory matches
          everything in it
        """
        ignored = False
        matched = [False] * len(self.patterns)
        for number, pattern in enumerate(self.patterns):
            if parent and parent[number]:
                matched[number] = True
            elif pattern.exception == ignored:
                matched[number] = pattern.matches(path)
            if matched[number]:
                ignored = not pattern.exception
        return ignored, matched

    def may_spare(self, directory: str) -> bool:
        """Whether something in an ignored directory may be an exception."""
        exceptions = self.exceptions
        if any(not one.literal for one in exceptions):
            return True
        return any(f"{one.literal}/".startswith(f"{directory}/") for one in exceptions)


def _read(text: str) -> Iterator[Pattern]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.startswith("#") or not line.strip():
            continue
        bare = line.strip()
        exception = bare.startswith("!")
        bare = bare[1:].strip() if exception else bare
        if not bare:
            raise ValueError(f"line {number}: '!' alone: write the path after it")
        # `normpath` keeps two slashes at the beginning, which POSIX allows to mean something else.
        bare = re.sub("^/+", "/", posixpath.normpath(bare))
        try:
            yield Pattern.of(bare[1:] if len(bare) > 1 and bare[0] == "/" else bare,
                             exception=exception)  # fmt: skip
        except (ValueError, re.error):
            raise ValueError(f"line {number}: {line.strip()[:80]!r} is no pattern: "
                             "a bracket or a backslash has no counterpart") from None  # fmt: skip


def _matcher(text: str) -> Callable[[str], bool]:
    """
    Whether a path is meant by a pattern.

    `*` and `?` stand for anything but a slash, `**` for any number of directories. At the end of a
    pattern `**` stands for everything, and at its beginning for everything as well, as long as the
    rest has no wildcards: the builder compares ends then, so that `**x` matches `a/bx`, too.
    """
    tokens = list(_tokens(text))
    if all(len(token) == 1 for token in tokens):
        return lambda path: path == text
    rest = tokens[1:]
    if tokens[0].startswith("**") and all(len(token) == 1 for token in rest):
        end = text[2:]
        return lambda path: path.endswith(end) or path == end.removeprefix("/")
    if tokens[-1].startswith("**") and all(len(token) == 1 for token in tokens[:-1]):
        begin = text[:-2]
        return lambda path: path.startswith(begin)
    if sum(token in WILD for token in tokens) > FEW:
        return _bounded(tokens)
    last = len(tokens) - 1
    expression = re.compile(
        "".join(_expression(one, last=number == last) for number, one in enumerate(tokens))
    )
    return lambda path: expression.fullmatch(path) is not None


WILD = ("* ", "**", "**/")
FEW = 2
"""Wildcards with which a regular expression is fast: it tries each place for each of them."""


def _bounded(tokens: Sequence[str]) -> Callable[[str], bool]:
    """Like a regular expression, in a time that grows with the wildcards, not with their power."""
    steps: list[tuple[str, re.Pattern[str]]] = []
    wild, fixed = "", ""
    for number, token in enumerate([*tokens, ""]):
        if token in (*WILD, ""):
            steps.append((wild, re.compile(fixed)))
            fixed, wild = "", "rest" if token[:2] == "**" and number == len(tokens) - 1 else token
        else:
            fixed += _expression(token, last=False)

    def matches(path: str) -> bool:
        at = {0}
        for wild, fixed in steps:
            at = {found.end() for one in _reached(wild, at, path)
                  if (found := fixed.match(path, one))}  # fmt: skip
            if not at:
                return False
        return len(path) in at

    return matches


def _reached(wild: str, at: set[int], path: str) -> set[int]:
    """Where a wildcard may end that begins at one of these places."""
    if wild == "rest":
        return {len(path)}
    if wild[:2] == "**":
        return at | {place + 1 for place in range(min(at), len(path)) if path[place] == "/"}
    if not wild:
        return at
    found = {*at}
    for place in range(min(at), len(path)):
        if place in found and path[place] != "/":
            found.add(place + 1)
    return found


def _tokens(text: str) -> Iterator[str]:
    """The characters of a pattern; wildcards, classes and what a backslash escapes in one piece."""
    at = 0
    while at < len(text):
        found = re.compile(r"\*\*/?|\\.").match(text, at)
        if text[at] == "[":
            found = _CLASS.match(text, at)
            if not found:
                raise ValueError(text)
        elif text[at] == "\\" and not found:
            raise ValueError(text)
        token = found[0] if found else text[at]
        at += len(token)
        # Two characters show that it is no plain one.
        yield f"{token} " if token in ("*", "?") else token


def _expression(token: str, *, last: bool) -> str:
    match token[:2]:
        case "**":
            return ".*" if last else "(?:.*/)?"
        case "* ":
            return "[^/]*"
        case "? ":
            return "[^/]"
    if token[0] == "[":
        # Python reserves these characters in a class.
        inner = re.sub(r"\\.|[\[&~|]", lambda found: found[0].rjust(2, "\\"), token[1:-1])
        return f"[{inner}]"
    return re.escape(token.removeprefix("\\") if len(token) == 2 else token)

"""The rules of .dockerignore files, as Docker documents them."""

import itertools
import time
from collections.abc import Sequence

import pytest
from terrafirma_host.ignored import Patterns, _matcher

# The lines of a file, the paths that they leave out, and paths that stay.
CASES: dict[str, tuple[str, list[str], list[str]]] = {
    # The examples of Docker's documentation.
    "a comment": ("# temp\n", [], ["temp", "# temp"]),
    "one directory below": (
        "*/temp*",
        ["somedir/temporary.txt", "somedir/temp", "somedir/temp/x"],
        ["temp", "a/b/temp"],
    ),
    "two directories below": ("*/*/temp*", ["somedir/subdir/temporary.txt"], ["somedir/temp"]),
    "one more character": ("temp?", ["tempa", "tempb"], ["temp", "tempab", "temp/"]),
    "slashes at the ends": ("/foo/bar/", ["foo/bar", "foo/bar/x"], ["x/foo/bar"]),
    "no slashes": ("foo/bar", ["foo/bar", "foo/bar/x"], ["x/foo/bar", "foo"]),
    "any depth": ("**/*.go", ["a.go", "a/b/c.go"], ["a.god", "go"]),
    "an exception": ("*.md\n!README.md", ["x.md"], ["README.md", "a/x.md"]),
    "the last line decides": (
        "*.md\n!README*.md\nREADME-secret.md",
        ["README-secret.md", "x.md"],
        ["README.md", "README-x.md"],
    ),
    "an exception after it": (
        "*.md\nREADME-secret.md\n!README*.md",
        ["x.md"],
        ["README.md", "README-secret.md"],
    ),
    # Further ones.
    "only one directory": ("*\n!src", ["a", "b/c"], ["src", "src/a/b"]),
    "only some files": ("*\n!src/*.py", ["src/a/b.py", "src/x"], ["src/a.py"]),
    "only one file below": ("*\n!a/b/c", ["a/b/d", "a/c"], ["a/b/c", "a/b/c/d"]),
    "out again": ("*\n!src\nsrc/secret", ["src/secret", "src/secret/x"], ["src/a"]),
    "a name only at the top": ("node_modules", ["node_modules/x/y"], ["web/node_modules/x"]),
    "a name anywhere": ("**/node_modules", ["node_modules/x", "web/node_modules/x"], ["node"]),
    "everything": ("**", ["a", "a/b", ".x"], []),
    "everything with a slash": ("**/", ["a", "a/b"], []),
    "everything below": ("a/**", ["a/b", "a/b/c"], ["a", "ab"]),
    "everything that begins so": ("a**", ["a", "abc", "a/b"], ["ba"]),
    "a place in between": ("a/**/b", ["a/b", "a/x/b", "a/x/y/b/c"], ["b", "a/xb"]),
    "a directory anywhere": ("**/a/**", ["a/b", "x/a/b"], ["a", "x/a"]),
    "ends alike": ("**foo", ["foo", "xfoo", "a/xfoo"], ["foox"]),
    "with wildcards, names": ("**foo*", ["foo", "foox", "a/foox"], ["xfoo"]),
    "a class": ("[a-c]x[0-9]", ["bx1"], ["dx1", "bxx"]),
    "no class": ("[^a-c]x", ["dx", "!x"], ["ax", "x"]),
    "brackets in a class": (r"[\[\]]", ["[", "]"], ["a", "\\"]),
    "an exclamation mark in a class": ("[!a]", ["!", "a"], ["b"]),
    "an escaped star": (r"a\*", ["a*"], ["ab", "a\\*"]),
    "an escaped exclamation mark": (r"\!a", ["!a"], ["a"]),
    "characters of regular expressions": ("a.b+(c)|{d}$", ["a.b+(c)|{d}$"], ["axb+(c)|{d}$"]),
    "a name of two characters": ("ab", ["ab"], ["a", "b"]),
    "spaces around": ("  a \n ! b/ \n", ["a"], ["b", " a"]),
    "a space after the exclamation mark": ("*\n!  a", ["b"], ["a"]),
    "a comment after spaces": (" # a", ["# a"], ["a"]),
    "blank lines": ("\n \n\t\na\n", ["a"], ["b"]),
    "line ends of Windows": ("a\r\nb*\r\n", ["a", "bx"], ["c"]),
    "a mark of the byte order": ("\ufeffa", ["a"], ["\ufeffa"]),
    "dots": ("./a/../b\n../c", ["b"], ["a", "c"]),
    "the root alone": ("/\n.", [], ["a"]),
    "two slashes": ("//a//b", ["a/b"], ["b"]),
    "no text": ("caf\udce9*", ["caf\udce9s"], ["cafés"]),
    "an exception at any depth": ("**\n!**/*.py", ["a", "b/c"], ["x.py", "b/c/y.py"]),
    "a directory that is an exception": ("a/*\n!a/b", ["a/c", "a/c/b"], ["a/b/c", "a"]),
}


def ignored(patterns: Patterns, path: str) -> bool:
    """As a walk finds out: from the top down."""
    ignored = False
    matched: Sequence[bool] = ()
    parts = path.split("/")
    for number in range(len(parts)):
        above = "/".join(parts[:number])
        if ignored and not patterns.may_spare(above):
            return True
        ignored, matched = patterns.judge("/".join(parts[: number + 1]), matched)
    return ignored


@pytest.mark.parametrize("case", CASES)
def test_a_path_is_ignored_as_by_the_builder(case: str) -> None:
    text, out, stay = CASES[case]
    patterns = Patterns.of(text)
    assert [path for path in out if not ignored(patterns, path)] == []
    assert [path for path in stay if ignored(patterns, path)] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\nb[\n", r"line 2: 'b\[' is no pattern: a bracket or a backslash has no counterpart"),
        ("[]a]", "line 1: .* is no pattern"),
        ("[a-]", "line 1: .* is no pattern"),
        ("[z-a]", "line 1: .* is no pattern"),
        ("# x\n\na\\", "line 3: .* is no pattern"),
        ("!", "line 1: '!' alone: write the path after it"),
    ],
)
def test_a_line_that_the_builder_refuses(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        Patterns.of(text)


@pytest.mark.parametrize(
    "pattern",
    [
        "**/a" * 30 + "/b",
        "*a" * 60 + "b",
        "**/" * 40 + "*b",
        "?*" * 60 + "/b",
        "[ab]*" * 60 + "/c",
        "**/*a*/**/*a*/**/*a*/**/*a*/**/*a*/c",
    ],
)
def test_a_pattern_takes_no_longer_whatever_it_is(pattern: str) -> None:
    """A deploy key may have sent it."""
    patterns = Patterns.of(pattern)
    start = time.process_time()
    for path in ("a" * 250, "a/" * 2000 + "a", "a" * 4000):
        assert not patterns.judge(path)[0]
    assert time.process_time() - start < 5


TOKENS = ("a", "/", "*", "**", "**/", "?", "[^a]")


@pytest.mark.parametrize("length", [3, 4, 5])
def test_many_wildcards_mean_the_same_as_few(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to match are asked, whatever the number of wildcards."""
    names = ["".join(one) for n in range(1, 6) for one in itertools.product("ab/", repeat=n)]
    texts = ["".join(one) for one in itertools.product(TOKENS, repeat=length)]
    for text in texts[:: 7 ** (length - 3)]:
        matchers = []
        for few in (0, 100):
            monkeypatch.setattr("terrafirma_host.ignored.FEW", few)
            matchers.append(_matcher(text))
        for name in names:
            first, second = (matches(name) for matches in matchers)
            assert first == second, (text, name)

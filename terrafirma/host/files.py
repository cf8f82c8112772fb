"""Files and directories with exact content: each is checked, then replaced as a whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypedDict

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pyinfra import host, logger, state
from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from pyinfra.facts.files import FileContents
from pyinfra.operations.util.files import generate_color_diff
from typing_extensions import override

from terrafirma.host.asking import ask, changes_of
from terrafirma.host.given import HiddenText
from terrafirma.host.operation import operation
from terrafirma.paths import OURS
from terrafirma.settings import ROOT


class PathState(TypedDict):
    kind: str  # "file", "directory" or "other"
    mode: str  # octal digits, as in "644"
    user: str
    group: str
    sha256: str  # of a file; else empty


class PathStates(FactBase[dict[str, PathState]]):
    """
    Kind, mode, owner and digest of those of `paths` that exist.

    pyinfra's files.File, Directory and Sha256File answer one question about one path at a time,
    which costs three or four round trips for each file.
    """

    default = dict

    @override
    def command(self, paths: Sequence[str], patterns: Sequence[str] = ()) -> StringCommand:
        """`patterns` are for the shell to expand, like `/etc/caddy/*`."""
        take = 'test ! -e "$path" || set -- "$@" "$path"; done;'
        return StringCommand(
            "set --; for path in", *map(QuoteString, paths), f"; do {take}",
            # Skip files with unusual names: ours have none, and another program's may hold a "|".
            "for path in", *patterns, "; do",
            'case "$path" in *[!A-Za-z0-9_.,:@/+-]*) continue ;; esac;', take,
            "test $# = 0 || LC_ALL=C stat -Lc '%a|%U|%G|%F|%n' \"$@\" 2> /dev/null;",
            # Only regular files: reading a pipe would never end.
            'for path do shift; test ! -f "$path" || set -- "$@" "$path"; done;',
            # A file that disappears meanwhile counts as absent or different, which is right.
            'test $# = 0 || sha256sum "$@" 2> /dev/null || true',
        )  # fmt: skip

    @override
    def process(self, output: list[str]) -> dict[str, PathState]:
        states: dict[str, PathState] = {}
        for line in output:
            parts = line.split("|", 4)
            digest, _, file = line.partition("  ")
            if len(parts) == 5:
                mode, user, group, kind, path = parts
                kind = {"directory": "directory"}.get(
                    kind, "file" if "regular" in kind else "other"
                )
                states[path] = PathState(kind=kind, mode=mode, user=user, group=group, sha256="")
            elif file in states:
                states[file]["sha256"] = digest
            else:
                raise FactProcessError(f"not an answer of stat or sha256sum: {line!r}")
        return states


def path_states(paths: Sequence[str]) -> dict[str, PathState]:
    """
    PathStates of `paths` on the current host.

    As long as a run has changed nothing, one command reads the state of all files that Terrafirma
    keeps on a host, and its answer serves for nearly all paths.
    """
    ours = all(any(_matches(path, one) for one in OURS) for path in paths)
    if changes_of(host) or not ours:
        return host.get_fact(PathStates, paths=paths)
    known = ask(host, PathStates, paths=(), patterns=OURS)
    return {path: known[path] for path in paths if path in known}


def _matches(path: str, pattern: str) -> bool:
    """Whether a shell would expand `pattern` to `path`; no matched name begins with a dot."""
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)


_TEMPLATES = Environment(
    loader=FileSystemLoader(ROOT / "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701  # configuration files, not HTML
)


# The bcrypt hash of a password, which would allow a reader to guess the password offline.
_HASH = re.compile(r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}")


@dataclass(frozen=True)
class Directory:
    """A directory with exactly this owner and mode."""

    path: str
    mode: str = "755"
    user: str = "root"
    group: str = "root"
    as_owner: bool = False
    """Its owner makes it, as for File."""


@dataclass(frozen=True)
class File:
    """A file with exactly this content, owner and mode."""

    path: str
    content: str
    mode: str = "644"
    user: str = "root"
    group: str = "root"
    as_owner: bool = False
    """Its owner writes it: in a directory of another user, a link could mislead root."""
    secret: bool = False
    """Its content appears in no log and no diff."""


@dataclass(frozen=True)
class Absent:
    """No file at this path, to which only Terrafirma writes."""

    path: str


Entry = Directory | File | Absent
Entries = Sequence[Entry]


def template(name: str, path: str, *, data: dict[str, Any] | None = None, **owner: Any) -> File:
    """A file rendered from `templates/<name>` with `data`; `owner` as for File."""
    return File(path, render(name, **(data or {})), **owner)


def source(name: str, path: str, **owner: Any) -> File:
    """A file that is a copy of `files/<name>`; `owner` as for File."""
    return File(path, (ROOT / "files" / name).read_text(), **owner)


def render(template_name: str, /, **data: Any) -> str:
    """The text of a file of `templates`; an unknown name in it raises jinja2.UndefinedError."""
    return _TEMPLATES.get_template(template_name).render(**data)


@operation
def put(
    entries: Entries | Callable[[], Entries], *, check: str | None = None
) -> Generator[StringCommand]:
    """
    Directories and files with exact content, owner and mode.

    + entries: the files and directories; a callable is called when the operation runs, so that it
      can read facts that an earlier operation of the same run changes
    + check: shell command that must accept a new file before it replaces the old one; `$new` is
      the path of the new file, which has its final owner and mode; the user who writes the file
      runs it

    pyinfra's files.put asks three or four questions for each file, uploads over the old content,
    sets owner and mode only afterwards, and may replace a good file with a broken one. Here one
    command asks about all files, and each is replaced as a whole, after its check. The content
    travels on standard input, so no process list shows it. An existing file that Terrafirma did not
    write (it lacks "managed by Terrafirma") is kept once, with the suffix `.before-terrafirma`.
    """
    wanted = entries() if callable(entries) else entries
    known = path_states([entry.path for entry in wanted]) if wanted else {}
    # pyinfra plans only up to the first command, so show all differences before yielding one.
    commands: list[StringCommand] = []
    for entry in wanted:
        now = known.get(entry.path)
        match entry:
            case Absent():
                if now is not None:
                    commands.append(StringCommand("rm -f", QuoteString(entry.path)))
            case Directory():
                if not _has(entry, now) or now is None or now["kind"] != "directory":
                    commands.append(_directory(entry))
            case File():
                # pyinfra sends standard input in whole lines.
                content = entry.content if entry.content.endswith("\n") else entry.content + "\n"
                digest = hashlib.sha256(content.encode()).hexdigest()
                if _has(entry, now) and now is not None and now["sha256"] == digest:
                    continue
                if state.config.DIFF:
                    _show_difference(entry, content, now)
                commands.append(_replacement(entry, content, check))
    if not commands:
        host.noop(f"{', '.join(entry.path for entry in wanted) or 'nothing'}: as wanted")
    yield from commands


def _has(entry: File | Directory, now: PathState | None) -> bool:
    return now is not None and (now["mode"], now["user"], now["group"]) == (
        entry.mode.lstrip("0"),
        entry.user,
        entry.group,
    )


def _directory(directory: Directory) -> StringCommand:
    path = QuoteString(directory.path)
    if directory.as_owner:
        script = f'mkdir -p "$1" && chmod {directory.mode} "$1"'
        return StringCommand(
            f"runuser -u {directory.user} -- sh -c", QuoteString(script), "sh", path
        )
    owner = f"-o {directory.user} -g {directory.group}"
    return StringCommand(f"install -d -m {directory.mode} {owner}", path)


def _replacement(file: File, content: str, check: str | None) -> StringCommand:
    path = QuoteString(file.path)
    chown = "" if file.as_owner else f'chown {file.user}:{file.group} "$new" && '
    script = (
        'new="$path.terrafirma-new"; umask 022; mkdir -p "${path%/*}" && umask 077 && '
        # Owner and mode first, then the content, so that nobody else can read it in between.
        f'rm -f "$new" && : > "$new" && {chown}chmod {file.mode} "$new" && cat > "$new" && '
        + (f"( {check} ) && " if check else "")
        + '{ ! test -f "$path" || grep -qi "managed.by.terrafirma" "$path" || '
        'test -e "$path.before-terrafirma" || cp -a "$path" "$path.before-terrafirma" || '
        # The writer may be unable to read, and so to copy, the old file: move it instead.
        'mv -T "$path" "$path.before-terrafirma"; } && '
        'mv -fT "$new" "$path" || { rm -f "$new"; exit 1; }'
    )
    if file.as_owner:
        # Leave the current directory: programs complain if their user may not enter it.
        return StringCommand(
            f"cd / && runuser -u {file.user} -- sh -c",
            QuoteString(f"path=$1; {script}"), "sh", path,
            _stdin=content,
        )  # fmt: skip
    sent = HiddenText(content) if file.secret else content
    return StringCommand(StringCommand("path=", path, _separator=""), f"; {script}", _stdin=sent)


def _show_difference(file: File, content: str, now: PathState | None) -> None:
    # Read the file as the user who writes it.
    who = {"_su_user": file.user, "_su_shell": "sh"} if file.as_owner else {}
    known = (host.get_fact(FileContents, path=file.path, **who) or []) if now else []
    host.log(f"{'Will change' if now else 'Will create'} {file.path}")
    if file.secret:
        return
    before = [f"{line}\n" for line in known]
    for line in generate_color_diff(before, content.splitlines(keepends=True)):
        logger.info("  %s", _HASH.sub("*MASKED*", line))

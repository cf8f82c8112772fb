"""
Managed by Terrafirma. Which files of a source directory a release sees, and the digest of them.

The machine that deploys uses this module, too, so that both sides name a source alike. There it
chooses what is uploaded; here it chooses from what a deploy key sends.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from terrafirma_host.ignored import Matched, Patterns
from terrafirma_host.shell import Failed

# Left out even where no .dockerignore names them: they are secret, or belong to one machine, and
# change by themselves. An exception of a .dockerignore that names one brings it back: `!.git`.
PRIVATE = frozenset({".git", ".venv", ".DS_Store", "__pycache__", ".env"})
# Left out where there is no .dockerignore.
DEPENDENCIES = "node_modules"
# An `.env.…` with one of these words only shows which variables there are.
EXAMPLES = frozenset({"example", "examples", "sample", "template", "dist", "defaults", "schema"})

# Bytes of a .dockerignore file. One may be sent with a deploy key.
LARGEST = 2**20


@dataclass(frozen=True)
class Selection:
    """How the files of a source are chosen; the description of an application says so."""

    builds: tuple[tuple[str, str], ...] = (("", "Dockerfile"),)
    """The directories that are built, each with the path of its Dockerfile, or ""."""
    named: tuple[str, ...] = ()
    """Files and directories that compose files name: no .dockerignore leaves them out."""
    secret: tuple[str, ...] = ()
    """Files that `env_file` of the settings names: they are never uploaded, whatever names them."""

    @classmethod
    def of(cls, data: Any) -> Selection:
        """From `as_json`; raises LookupError, TypeError or ValueError for anything else."""
        return cls(
            tuple((str(directory), str(dockerfile)) for directory, dockerfile in data["builds"]),
            tuple(str(path) for path in data["named"]),
            tuple(str(path) for path in data.get("secret", ())),
        )

    def as_json(self) -> dict[str, Any]:
        builds, more = [list(one) for one in self.builds], {"secret": [*self.secret]}
        return {"builds": builds, "named": [*self.named], **(more if self.secret else {})}

    @property
    def needed(self) -> set[str]:
        """Paths that stay whatever is ignored: the builder and Compose read them themselves."""
        files = {".dockerignore" if not where else f"{where}/.dockerignore" for where, _ in
                 self.builds}  # fmt: skip
        for _, dockerfile in self.builds:
            files |= {dockerfile, f"{dockerfile}.dockerignore"} if dockerfile else set()
        return files | {*self.named}


DOCKERFILE = Selection()
"""How the files of a source with a Dockerfile are chosen."""


@dataclass(frozen=True)
class _Build:
    """A directory that is built, with the rules of its .dockerignore."""

    directory: str
    patterns: Patterns
    written: bool  # it has a .dockerignore

    def within(self, path: str) -> str:
        return path[len(self.directory) + 1 :] if self.directory else path


@dataclass
class _Visit:
    """A directory on the way through a source."""

    path: str
    builds: list[tuple[_Build, Matched]]
    named: bool = False
    ignored: bool = False


@dataclass
class _Walk:
    root: Path
    selection: Selection
    builds: list[_Build] = field(default_factory=list)
    spared: set[str] = field(default_factory=set)
    found: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.builds = [_read(self.root, *one) for one in dict.fromkeys(self.selection.builds)]
        for build in self.builds:
            for one in build.patterns.exceptions:
                self.spared |= {*one.text.split("/")}
        self.needed = self.selection.needed
        self.above = {
            str(parent)
            for path in (*self.needed, *(f"{one.directory}/x" for one in self.builds))
            for parent in Path(path).parents
        }

    def run(self) -> list[str]:
        todo = [_Visit("", self._begin("", []))]
        while todo:
            visit = todo.pop()
            try:
                with os.scandir(self.root / visit.path) as entries:
                    for entry in entries:
                        todo.extend(self._look(visit, entry))
            except PermissionError:
                # Only something in it could be an exception, and the builder cannot read it either.
                if not visit.ignored:
                    raise
        return sorted(self.found, key=lambda path: path.split("/"))

    def _begin(
        self, path: str, builds: list[tuple[_Build, Matched]]
    ) -> list[tuple[_Build, Matched]]:
        return builds + [(one, ()) for one in self.builds if one.directory == path]

    def _look(self, visit: _Visit, entry: os.DirEntry[str]) -> Iterable[_Visit]:
        """Judge an entry of a directory; returns it if it is a directory to be visited."""
        path = f"{visit.path}/{entry.name}" if visit.path else entry.name
        if path in self.selection.secret:
            return ()
        if is_private(entry.name) and entry.name not in self.spared:
            return ()
        if entry.name == DEPENDENCIES and not any(one.written for one, _ in visit.builds):
            return ()
        named = visit.named or path in self.needed
        builds, all_ignore = [], bool(visit.builds)
        for build, parent in visit.builds:
            ignored, matched = build.patterns.judge(build.within(path), parent)
            builds.append((build, matched))
            all_ignore = all_ignore and ignored
        all_ignore = all_ignore and not named
        if entry.is_dir(follow_symlinks=False):
            if all_ignore and path not in self.above and not any(
                one.patterns.may_spare(one.within(path)) for one, _ in builds
            ):  # fmt: skip
                return ()
            return (_Visit(path, self._begin(path, builds), named, all_ignore),)
        if not all_ignore and (entry.is_symlink() or entry.is_file(follow_symlinks=False)):
            self.found.append(path)
        return ()


def is_private(name: str) -> bool:
    """Whether a file of this name stays where it is, unless a .dockerignore asks for it."""
    if name.startswith(".env."):
        return not EXAMPLES & {*name.lower().split(".")}
    return name in PRIVATE or (name.startswith(".") and name.endswith("_cache"))


def _read(root: Path, directory: str, dockerfile: str) -> _Build:
    """The rules of a directory that is built; raises Failed where they are wrong."""
    # A file beside the Dockerfile, with its name, counts instead of the directory's.
    for name in (f"{dockerfile}.dockerignore" if dockerfile else "",
                 posixpath.join(directory, ".dockerignore")):  # fmt: skip
        file = root / name
        # A link may have been sent to make root read another file.
        if not name or file.is_symlink() or not file.is_file():
            continue
        with file.open("rb") as opened:
            text = opened.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise Failed(f"{name}: more than {LARGEST // 2**20} MB")
        try:
            patterns = Patterns.of(text.decode(errors="surrogateescape"))
        except ValueError as error:
            raise Failed(f"{name}: {error}") from None
        return _Build(directory, patterns, written=True)
    return _Build(directory, Patterns(), written=False)


def files(root: Path, selection: Selection) -> list[str]:
    """
    The paths of files and links below `root` that a release sees, in a fixed order.

    Raises Failed for a wrong .dockerignore, and OSError where a directory cannot be read.
    """
    return _Walk(root, selection).run()


Hashed = Callable[[str, os.stat_result], str]
"""Returns the SHA-256 of a file's content."""


class Entry(NamedTuple):
    """A file or link of a source: all that its digest is about."""

    path: str
    kind: str  # "link", "True" if it is executable, else "False"
    content: str  # where the link leads, or the SHA-256

    @property
    def line(self) -> bytes:
        # A name need not be UTF-8.
        return f"{self.path}|{self.kind}|{self.content}\n".encode(errors="surrogateescape")


def sha256(path: str, _: os.stat_result | None = None) -> str:
    content = hashlib.sha256()
    # A source may have many small files: `open` would take as long as the hash.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while block := os.read(descriptor, 2**20):
            content.update(block)
    finally:
        os.close(descriptor)
    return content.hexdigest()


def entries(root: Path, paths: Iterable[str], hashed: Hashed = sha256) -> list[Entry]:
    """Files and links, in the order of `paths`."""
    found = []
    for name in paths:
        path = f"{root}/{name}"
        state = os.lstat(path)
        if stat.S_ISLNK(state.st_mode):
            found.append(Entry(name, "link", str(Path(path).readlink())))
        else:
            found.append(Entry(name, str(bool(state.st_mode & 0o100)), hashed(path, state)))
    return found


def digest(found: Iterable[Entry]) -> str:
    """SHA-256 over names, modes and contents, which names a source."""
    whole = hashlib.sha256()
    for entry in found:
        whole.update(entry.line)
    return whole.hexdigest()


def all_entries(directory: Path, hashed: Hashed = sha256) -> list[Entry]:
    """All files and links of a directory, in the order of `files`."""
    paths: list[str] = []
    todo = [""]
    while todo:
        above = todo.pop()
        with os.scandir(f"{directory}/{above}") as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(f"{above}{entry.name}/")
                elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
                    paths.append(f"{above}{entry.name}")
    return entries(directory, sorted(paths, key=lambda path: path.split("/")), hashed)


def tree_digest(directory: Path) -> str:
    """The digest of all files of a directory."""
    return digest(all_entries(directory))


def drop_others(directory: Path, kept: Collection[str]) -> None:
    """Remove all files but these, and the directories that are empty then."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif str(path.relative_to(directory)) not in kept:
            path.unlink()

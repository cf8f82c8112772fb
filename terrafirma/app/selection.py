"""Which files of a source are uploaded: what its .dockerignore files say, and who reads what."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import yaml
from pyinfra.api import DeployError, Host
from terrafirma_host.shell import Failed
from terrafirma_host.sources import DOCKERFILE, Selection

from terrafirma.app.hashes import look
from terrafirma.app.settings import Application
from terrafirma.fields import here

# Keys of compose files whose values are paths of files that Compose or a container reads.
_PATHS = frozenset(
    {"volumes", "source", "file", "path", "env_file", "label_file", "include", "extends"}
    | {"dockerfile", "security_opt", "configs", "secrets"}
)


def selection(app: Application) -> Selection:
    """
    How the files of an application's source are chosen.

    Compose files decide which directories are built, each with a .dockerignore of its own. Files
    that they name, such as a mounted configuration, are uploaded whatever is ignored.
    """
    return replace(_selection(app), secret=tuple(_secret(app)))


def _secret(app: Application) -> list[str]:
    """The files of variables that are in the source, relative to it."""
    found = set()
    for real in (os.path.normpath, os.path.realpath):
        root = real(app.source_directory)
        paths = [os.path.relpath(real(here(name)), root) for name in app.env_file]
        found |= {path for path in paths if not path.startswith("..")}
    return sorted(found)


def is_vague(app: Application) -> bool:
    """Whether the paths that the compose files name are not all known on this machine."""
    return _read(app).vague


def _read(app: Application) -> _Read:
    read = _Read(app)
    for name in app.compose:
        read.file(name)
    return read


def _selection(app: Application) -> Selection:
    if not app.compose:
        return Selection((("", app.dockerfile),)) if app.dockerfile else DOCKERFILE
    read = _read(app)
    if read.unclear:
        # A directory that depends on a variable may be any of them: leave no file out.
        return Selection((), tuple(sorted(read.named)))
    roots = [f"{where}/" if where else "" for where, _ in read.builds]
    named = {
        path
        for path in read.named
        # A mount of a whole directory that is built is for development.
        if not any(root.startswith(f"{path}/") or not path for root in roots)
    }
    return Selection(tuple(sorted(read.builds)), tuple(sorted({*app.compose, *named})))


def refuse_unreadable(host: Host, app: Application) -> None:
    """Raise DeployError where a .dockerignore is wrong, or a file of the source is unreadable."""
    if words := unreadable(app):
        raise DeployError(f"{host.name}: {app.key('source')}: {words}")


def unreadable(app: Application) -> str:
    """Why the source of an application cannot be uploaded; or ""."""
    if not app.source:
        return ""
    try:
        _ = look(app.source_directory, selection(app)).digest
    except Failed as error:
        return str(error)
    except OSError as error:
        path = posixpath.relpath(str(error.filename), app.source_directory.resolve())
        return f"{path}: {error.strerror}: make it readable, or name it in .dockerignore"
    return ""


@dataclass
class _Read:
    """What the compose files of an application say about its files."""

    app: Application
    builds: set[tuple[str, str]] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    unclear: bool = False
    """Which directory is built depends on a variable without a value."""
    vague: bool = False
    """Any path does, or a file is no YAML."""
    seen: set[str] = field(default_factory=set)

    def file(self, name: str) -> None:
        """Read a compose file, and those that it includes or extends."""
        if name in self.seen:
            return
        self.seen.add(name)
        try:
            top = yaml.compose((self.app.source_directory / name).read_text())
        except OSError:
            return
        except (yaml.YAMLError, ValueError, RecursionError):
            # The release reports what Compose says about such a file.
            self.vague = True
            return
        # Paths are relative to the project or, in an included or extended file, to that file. To
        # take both for possible keeps a file too many at most.
        bases = {"", posixpath.dirname(self.app.compose[0]), posixpath.dirname(name)}
        further = {id(one) for key, node in _mappings(top) for one in _further(key, node)}
        for key, node in _mappings(top):
            if key == "build":
                self._build(node, bases)
            elif isinstance(node, yaml.ScalarNode) and key in _PATHS:
                found = [one for one in self._paths(key, node.value, bases) if one]
                self.named |= {*found}
                for path in found if id(node) in further else ():
                    self.file(path)

    def _paths(self, key: str, text: str, bases: set[str]) -> Iterator[str]:
        """The paths that a value may mean: `./a:/b:ro`, `seccomp=./a` or `./a`."""
        filled = self._filled(text) or ""
        # Without a dot, it is the name of a volume.
        if key != "volumes" or filled.startswith("."):
            yield from self._inside(filled.partition(":")[0], bases)
            yield from self._inside(re.split("[:=]", filled)[-1], bases)

    def _build(self, node: yaml.Node, bases: set[str]) -> None:
        fields: dict[str, yaml.Node] = {}
        context = node.value if isinstance(node, yaml.ScalarNode) else "."
        dockerfile = "Dockerfile"
        if isinstance(node, yaml.MappingNode):
            fields = {str(key.value): value for key, value in node.value}
            context = _text(fields.get("context")) or "."
            dockerfile = _text(fields.get("dockerfile")) or "Dockerfile"
        filled = self._filled(context)
        self.unclear |= filled is None or self._filled(dockerfile) is None
        for directory in self._inside(filled or "", bases) if not _is_remote(filled or "") else ():
            paths = self._inside(self._filled(dockerfile) or "", {directory})
            self.builds |= {(directory, path) for path in paths} or {(directory, "")}
        for _, more in _mappings(fields.get("additional_contexts")):
            if isinstance(more, yaml.ScalarNode) and not _is_remote(more.value):
                path = self._filled(more.value.rpartition("=")[2])
                self.unclear |= path is None
                self.builds |= {(one, "") for one in self._inside(path or "", bases)}

    def _inside(self, path: str, bases: set[str]) -> Iterator[str]:
        """A path relative to the source, from each base where it is in the source."""
        filled = self._filled(path)
        if not filled or filled.startswith(("/", "~")):
            return
        for base in bases:
            found = posixpath.normpath(posixpath.join(base, filled))
            if not found.startswith(".."):
                yield "" if found == "." else found

    def _filled(self, text: str) -> str | None:
        """A path with its variables; None where one has no value on this machine."""
        missing, may_be_secret = False, bool(self.app.env_file or self.app.secrets_env)

        def value(found: re.Match[str]) -> str:
            nonlocal missing
            name, default = found[1] or found[2], found[3]
            known = self.app.env.get(name)
            missing |= known is None and default is None
            # Its value may be a secret, which is on this machine, too, but no part of a path here.
            self.vague |= "{" in str(known) or (known is None and may_be_secret)
            return str(known if known is not None else default or "")

        text = re.sub(r"\$(?:(\w+)|\{(\w+)(?::?-([^}]*))?[^}]*\})", value, text)
        self.vague |= missing
        return None if missing else text


def _mappings(node: yaml.Node | None, key: str = "") -> Iterator[tuple[str, yaml.Node]]:
    """Each value below a node with its key; entries of a list have the key of the list."""
    todo, seen = [(key, node)], set()
    while todo:
        key, node = todo.pop()
        if node is None or id(node) in seen:
            continue
        if isinstance(node, yaml.CollectionNode):
            seen.add(id(node))
        if key:
            yield key, node
        if isinstance(node, yaml.SequenceNode):
            todo += [(key, one) for one in node.value]
        elif isinstance(node, yaml.MappingNode):
            todo += [(str(name.value), one) for name, one in node.value]


def _further(key: str, node: yaml.Node) -> Iterator[yaml.Node]:
    """The parts of a value that name further compose files, whatever their names are."""
    if key == "include" and isinstance(node, yaml.ScalarNode):
        yield node
    if key in ("include", "extends") and isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value in ("path", "file"):
                yield from value.value if isinstance(value, yaml.SequenceNode) else [value]


def _text(node: yaml.Node | None) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else ""


def _is_remote(context: str) -> bool:
    """Whether a directory that is built is not of this machine: a repository, or a service."""
    return "://" in context or context.startswith(("git@", "github.com/"))

"""
Managed by Terrafirma. The variables, files and secrets that compose files refer to, and checks.

Pure functions of Compose's answers: the resolved files, the unresolved ones, and the warnings.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from terrafirma_host import images, stores
from terrafirma_host.layers import Project
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

Raw = Mapping[str, Any]
"""The merged files before variables are filled in; empty where Compose cannot print them."""

# Warnings of Compose that change nothing.
HARMLESS = ("`version` is obsolete", "external.name is deprecated")
BLANK = re.compile(r'The "([^"]+)" variable is not set')
NAME = "[A-Za-z_][A-Za-z0-9_]*"
VARIABLE = re.compile(rf"\$\$|\$\{{({NAME})(:?[-+?])?|\$({NAME})|[{{}}]")
# Variables that have another value for root on the host than for the author of the files.
HOSTS = {"HOME": "is /root", "PWD": "is not set"}


@dataclass(frozen=True)
class Files:
    """The compose files of a project as they are read."""

    app: Application
    paths: Sequence[str]
    project: Project  # resolved
    raw: Raw
    warnings: Sequence[str]
    given: Mapping[str, str] = field(repr=False)  # variables that are filled in, secrets included
    kept: frozenset[str]  # variables that the settings name, and that are not filled in
    notes: list[str] = field(default_factory=list)  # lines for the output of a release

    @property
    def used(self) -> list[str]:
        """The services that are ever started."""
        return [*self.app.stateful, *stores.started(self.app, self.project)]


def warnings(said: str) -> list[str]:
    """The warnings in Compose's standard error, each once."""
    found = []
    for line in said.splitlines():
        match = re.search(r'level=warning msg=("(?:[^"\\]|\\.)*"|\S+)', line)
        if match:
            text = match[1]
            found.append(str(json.loads(text)) if text.startswith('"') else text)
    return [one.strip() for one in dict.fromkeys(found)]


def errors(app: Application, said: str) -> str:
    """Compose's standard error without the warnings, in one line."""
    lines = [line.strip() for line in said.splitlines() if "level=warning" not in line]
    text = " ".join(line for line in lines if line)
    root = app.directory.parent
    beside = re.search(rf"{re.escape(str(root))}/[^\s:]+", text.replace(f"{app.source}/", ""))
    text = text.replace(f"{app.source}/", "") if app.source else text
    if app.source and beside:
        word = posixpath.relpath(beside[0], app.source)
        text += f" ({word} is outside of the source, which alone is on the host: {_instead(False)})"
    elif "env file" in text or "env_file" in text:
        text += " (no .env is uploaded: name a file with its variables in env_file of the settings)"
    return text


def unknown(said: Iterable[str]) -> list[str]:
    """The warnings to show: neither handled here nor harmless."""
    return [
        one for one in said
        if not BLANK.search(one) and not any(words in one for words in HARMLESS)
    ]  # fmt: skip


def check(files: Files) -> None:
    """Raise Failed, in one line, for references that lead nowhere; note keys without effect."""
    for rule in RULES:
        rule(files)


def refuse_blank(files: Files, error: str) -> None:
    """Raise Failed if Compose warned of a blank variable before this error."""
    if any(map(BLANK.search, files.warnings)):
        try:
            for rule in (_refuse_kept, _refuse_hosts, _refuse_blank):
                rule(files)
        except Failed as blank:
            raise Failed(f"{blank} ({error})") from None


# --- variables ------------------------------------------------------------------------------------


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _strings(key)
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def variables(value: Any, given: Mapping[str, str] | None = None) -> set[str]:
    """
    The variables in a part of the files, without those in a default that is not needed.

    Without `given` every variable counts.
    """
    return {name for text in _strings(value) for name in _variables(text, given)}


def _variables(text: str, given: Mapping[str, str] | None) -> Iterator[str]:
    counts = [True]  # for each open brace, whether the text inside is used
    for token in VARIABLE.finditer(text):
        braced, how, plain = token.groups()
        if counts[-1] and (braced or plain):
            yield braced or plain
        if braced:
            known = given is not None and bool(given.get(braced) or (
                braced in given and not (how or "").startswith(":")))  # fmt: skip
            used = given is None or known == (how or "").endswith("+")
            counts.append(counts[-1] and used)
        elif token[0] == "{":
            counts.append(counts[-1])
        elif token[0] == "}" and len(counts) > 1:
            counts.pop()


def _users(files: Files) -> dict[str, list[str]]:
    """For each variable, the parts of started services that name it; no parts without `raw`."""
    if not files.raw:
        return {name: [] for name in variables(_lines(files), files.given)}
    found: dict[str, list[str]] = {}
    live = [(name, (files.raw.get("services") or {}).get(name)) for name in files.used]
    for kind in ("volumes", "networks", "secrets", "configs"):
        for key, one in (files.raw.get(kind) or {}).items():
            if any(_names(files, name, kind, key) for name in files.used):
                live.append((f"{kind}.{key}", one))
    for name, part in live:
        for variable in variables(part, files.given):
            found.setdefault(variable, []).append(name)
    return found


def _lines(files: Files) -> list[str]:
    lines = "\n".join(map(_read, files.paths)).splitlines()
    return [line for line in lines if not line.lstrip().startswith("#")]


def _names(files: Files, service: str, kind: str, key: str) -> bool:
    used = files.project["services"][service]
    parts = [used.get(kind) or [], (used.get("build") or {}).get(kind) or []]
    return any(
        key in (part if isinstance(part, Mapping) else [one.get("source") for one in part])
        for part in parts
    )


def _place(files: Files, variable: str) -> str:
    """The file and line that name a variable."""
    for path in (*files.paths, *_env_files(files), *_further(files)):
        try:
            lines = Path(path).read_text(errors="replace").splitlines()
        except OSError:
            continue
        for number, line in enumerate(lines, 1):
            written = variable in line and not line.lstrip().startswith("#")
            if written and variable in variables([line], files.given):
                return f"{_below(files.app, path)}, line {number}"
    return "the compose files"


def _further(files: Files) -> list[str]:
    """Further compose files, which others may include or extend."""
    source = Path(files.app.source)
    found = sorted([*source.glob("**/*.yaml"), *source.glob("**/*.yml")])
    return [str(path) for path in found if "node_modules" not in path.parts][:200]


def _env_files(files: Files) -> list[str]:
    return [
        posixpath.join(files.app.project_directory, path)
        for name in files.used
        for path, _ in _env_file(files, name)
    ]


def _env_file(files: Files, service: str) -> list[tuple[str, bool]]:
    """The paths of a service's env_file as they are written, and whether each is required."""
    entries = ((files.raw.get("services") or {}).get(service) or {}).get("env_file") or []
    found = [
        (one, True) if isinstance(one, str) else (one.get("path", ""), one.get("required", True))
        for one in ([entries] if isinstance(entries, str) else entries)
    ]
    # The last one takes the place of those that are not on the host.
    return found[:-1] if service in files.app.env_files else found


def _refuse_kept(files: Files) -> None:
    """Refuse variables in the settings that Docker reads itself: these are never filled in."""
    users = _users(files)
    for name in sorted(files.kept & users.keys()):
        where = ", ".join([_place(files, name), *users[name]])
        raise Failed(
            f"env: {name} is a name that Docker reads itself, so ${{{name}}} ({where}) is not "
            "filled in: call it otherwise, in both"
        )


def _refuse_hosts(files: Files) -> None:
    for name, users in sorted(_users(files).items()):
        if name in HOSTS and (name == "HOME" or name not in files.given):
            where = ", ".join([_place(files, name), *users])
            raise Failed(
                f"${name} ({where}) {HOSTS[name]} on the host: write the path out, or `$${name}` "
                "for the container's own"
            )


def _refuse_blank(files: Files) -> None:
    users = _users(files)
    blank = [match[1] for one in files.warnings if (match := BLANK.search(one))]
    env_files = {
        name
        for path in _env_files(files)
        for name in variables(_read(path), files.given)
    }  # fmt: skip
    # Compose also warns of variables in a default that is not needed.
    unused = set() if files.raw else variables(_lines(files)) - users.keys()
    said = []
    for name in sorted(blank):
        if name in users or name in env_files or not (files.raw or name in unused):
            where = ", ".join([_place(files, name), *users.get(name, [])])
            said.append(f"${{{name}}} ({where})")
    if said:
        verb = "is" if len(said) == 1 else "are"
        raise Failed(
            f"env: {', '.join(said)} {verb} not set: name what is to stand there in env or in a "
            "file of env_file, or in secrets with secrets_env; `${…:-}` where it may be empty, "
            "`$$` for a dollar sign"
        )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


# --- paths ----------------------------------------------------------------------------------------


def _refuse_paths(files: Files) -> None:
    """Refuse paths outside of the source: only the source is on the host."""
    app = files.app
    for name in files.used:
        service = files.project["services"][name]
        raw = (files.raw.get("services") or {}).get(name) or {}
        for mount in service.get("volumes") or []:
            if mount["type"] == "bind":
                path = mount.get("source", "")
                if path.startswith("/root/") and not files.raw and _has_tilde(files):
                    _refuse_word(app, f"{name}: volumes", f"~{path[5:]}", mount=True)
                _refuse_path(app, f"{name}: volumes", path, mount=True)
        ours = app.volumes.values() if name == app.service else ()
        for mount in raw.get("volumes") or []:
            if posixpath.normpath(mount.get("target") or "") in ours:
                continue
            _refuse_word(app, f"{name}: volumes", mount.get("source") or "", mount=True)
        build, written = service.get("build") or {}, raw.get("build") or {}
        built = [("context", build.get("context"), written.get("context"))]
        further = written.get("additional_contexts") or {}
        if isinstance(further, list):
            further = dict(one.partition("=")[::2] for one in further)
        built += [
            (f"additional_contexts: {key}", path, further.get(key))
            for key, path in (build.get("additional_contexts") or {}).items()
        ]
        for key, path, word in built if name not in app.stateful or build else []:
            _refuse_path(app, f"{name}: build: {key}", path or "")
            _refuse_word(app, f"{name}: build: {key}", word or "")
        if build.get("dockerfile") and not build.get("dockerfile_inline"):
            path = posixpath.join(build.get("context") or "", build["dockerfile"])
            _refuse_path(app, f"{name}: build: dockerfile", path)
        for word, _ in _env_file(files, name):
            _refuse_word(app, f"{name}: env_file", word)
            _refuse_path(app, f"{name}: env_file", posixpath.join(app.project_directory, word))
        for option in service.get("security_opt") or []:
            _refuse_profile(app, f"{name}: security_opt: seccomp", option)
    for kind, key, one in _used_files(files):
        _refuse_path(app, f"{kind}: {key}", one.get("file") or "")
        word = ((files.raw.get(kind) or {}).get(key) or {}).get("file") or ""
        _refuse_word(app, f"{kind}: {key}", word)
    for key, volume in (files.project.get("volumes") or {}).items():
        options = (volume or {}).get("driver_opts") or {}
        device, bound = str(options.get("device") or ""), "bind" in str(options.get("o") or "")
        if bound and not device.startswith("/"):
            raise Failed(f"volumes: {key}: the device {device!r} is no place on the host: write an "
                         "absolute path")  # fmt: skip


def _refuse_builds(files: Files) -> None:
    """Refuse a build whose directory or Dockerfile is not in the source."""
    app = files.app
    if not app.source or not Path(app.source).is_dir():
        return
    for name in files.used:
        build = files.project["services"][name].get("build") or {}
        context = build.get("context") or ""
        if not Path(context).is_relative_to(app.source):
            # A repository, or another service's image.
            continue
        if not Path(context).is_dir():
            raise Failed(f"{name}: build: context: the source has no directory "
                         f"{_below(app, context)}")  # fmt: skip
        path = posixpath.normpath(posixpath.join(context, build.get("dockerfile") or "Dockerfile"))
        inside = Path(path).is_relative_to(app.source)
        if inside and not build.get("dockerfile_inline") and not Path(path).is_file():
            raise Failed(f"{name}: build: dockerfile: the source has no file {_below(app, path)}")


def _refuse_profile(app: Application, what: str, option: str) -> None:
    found = re.fullmatch(r"seccomp[=:](?!(?:unconfined|builtin)$)(.*)", option)
    if found:
        _refuse_word(app, what, found[1])
        path = posixpath.join(app.project_directory or str(app.directory), found[1])
        _refuse_path(app, what, path)
        if not Path(path).is_file():
            raise Failed(f"{what} is the file {_below(app, path)}, which is not on the host: "
                         "upload the file")  # fmt: skip


def _has_tilde(files: Files) -> bool:
    return any("~/" in _read(path) for path in files.paths)


def _used_files(files: Files) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The secrets and configs in use, without those that the settings replace in a slot."""
    for kind in ("secrets", "configs"):
        for key, one in (files.project.get(kind) or {}).items():
            users = [name for name in files.used if _names(files, name, kind, key)]
            if kind == "secrets" and key in files.app.secrets:
                users = [name for name in users if name in files.app.stateful]
            if users:
                yield kind, key, one or {}


def _refuse_word(app: Application, what: str, word: str, *, mount: bool = False) -> None:
    """Raise Failed for an unresolved path that leads out of the source."""
    if word.startswith("~"):
        raise Failed(f"{what}: {word} is below /root on the host: {_instead(mount)}")
    if "://" in word or word.startswith(("/", "$", "git@")) or not word:
        return
    if mount and not word.startswith("."):
        return  # the name of a volume
    inner = posixpath.dirname(app.compose[0]) if app.compose else ""
    if posixpath.normpath(posixpath.join(inner, word)).startswith(".."):
        raise Failed(f"{what}: {word} is outside of the source, which alone is on the host: "
                     f"{_instead(mount)}")  # fmt: skip


def _refuse_path(app: Application, what: str, path: str, *, mount: bool = False) -> None:
    """Raise Failed for a resolved path beside the source, or a link that leads out of it."""
    if not path.startswith("/") or not app.source:
        return
    path = posixpath.normpath(path)
    inside = Path(path).is_relative_to(app.source)
    if not inside and Path(path).is_relative_to(app.directory.parent):
        word = posixpath.relpath(path, app.source)
        raise Failed(f"{what}: {word} is outside of the source, which alone is on the host: "
                     f"{_instead(mount)}")  # fmt: skip
    real = os.path.realpath(path)
    if inside and not Path(real).is_relative_to(os.path.realpath(app.source)):
        raise Failed(f"{what}: {_below(app, path)} is a link to {real}, outside of the source: "
                     f"{_instead(mount)}")  # fmt: skip


def _instead(mount: bool) -> str:
    if mount:
        return "a volume with a name, or an absolute path of the host"
    return "move it into the source, or let `source` be the directory above"


def _below(app: Application, path: str) -> str:
    top = app.compose_in or app.source
    return posixpath.relpath(path, top) if top and Path(path).is_relative_to(top) else path


# --- secrets, and the namespaces of others --------------------------------------------------------


def _refuse_secrets(files: Files) -> None:
    for kind, key, one in _used_files(files):
        where = f"{kind}: {key}"
        if one.get("external"):
            raise Failed(f"{where} is external, which Compose has none of: name it in secrets, "
                         "and leave `external` out")  # fmt: skip
        variable = one.get("environment")
        if variable and variable not in files.given:
            raise Failed(f"{where} is taken from ${variable}, which is not set: name it in "
                         "env, or the secret in secrets")  # fmt: skip
        path = one.get("file")
        if path and not Path(path).exists():
            raise Failed(f"{where} is the file {_below(files.app, path)}, which is not on the "
                         "host: name the secret in secrets, or upload the file")  # fmt: skip


def refuse_joined(app: Application, project: Project) -> None:
    """Raise Failed where a service joins a stateful one, which is in another project."""
    begun = stores.started(app, project)
    for name in begun:
        service = project["services"][name]
        words = [(key, service.get(key) or "") for key in ("network_mode", "ipc", "pid")]
        joins = [
            (key, word.removeprefix("service:")) for key, word in words if word[:8] == "service:"
        ]
        joins += [("volumes_from", one.partition(":")[0])
                  for one in service.get("volumes_from") or []]  # fmt: skip
        for key, other in joins:
            if other in project["services"] and other not in begun:
                how = "mount its volume by its name" if key == "volumes_from" else (
                    f"it is reached by the name {other}")  # fmt: skip
                raise Failed(f"{name}: {key} joins {other}, which is not started with it: {how}")


# --- notes ----------------------------------------------------------------------------------------


def _missing(files: Files) -> Iterator[str]:
    """Lines about optional files that are missing, and variables that nothing sets."""
    for name in files.used:
        for path, _ in _env_file(files, name):
            if "$" not in path and not Path(files.app.project_directory, path).exists():
                yield f"{name}: env_file {path} is not there, and is left out"
        service = files.project["services"][name]
        environment = service.get("environment") or {}
        ours = set() if name in files.app.stateful else {*files.given, *files.kept}
        for variable, value in environment.items():
            if value is None and variable not in ours:
                yield f"{name}: nothing sets {variable}, which its environment passes on"


def _dropped(files: Files) -> Iterator[str]:
    """Lines about keys of the files that have no effect here."""
    app = files.app
    for key in sorted({*(files.project.get("secrets") or {})} & {*app.secrets}):
        yield f"secrets: {key} is that of the settings, not that of the compose files"
    public = {one.service: one for one in app.fronts}
    for name in dict.fromkeys(files.used):
        service = files.project["services"][name]
        ports = [
            str(port.get("published") or port["target"])
            for port in service.get("ports") or []
            if name not in public or port["target"] != images.of_files(public[name], service)
        ]
        if ports:
            yield f"{name}: port {', '.join(ports)} is not published: Caddy is the way in"
        deploy = service.get("deploy") or {}
        ignored = [
            f"deploy.{key}"
            for key in ("placement", "update_config", "rollback_config", "endpoint_mode", "labels")
            if deploy.get(key)
        ]
        if deploy.get("mode", "replicated") != "replicated":
            ignored.append("deploy.mode")
        ignored += [
            f"{kind}.{word}"
            for kind in ("secrets", "configs")
            for word in ("uid", "gid", "mode")
            if any(one.get(word) is not None for one in service.get(kind) or [])
        ]
        if ignored:
            yield f"{name}: {', '.join(ignored)} has no effect on one host with Compose"


def _note(files: Files) -> None:
    files.notes.extend(f"Compose says: {one}" for one in unknown(files.warnings))
    files.notes.extend(_missing(files))
    files.notes.extend(_dropped(files))


RULES: Sequence[Callable[[Files], None]] = (
    *(
        _refuse_kept,
        _refuse_hosts,
        _refuse_blank,
        _refuse_paths,
        _refuse_builds,
        _refuse_secrets,
        _note,
    ),
)
"""Each raises Failed for references that lead nowhere, or notes keys without effect."""

"""Managed by Terrafirma. Paths in compose files: only the source of a project is on the host."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from terrafirma_host import mounts, stores
from terrafirma_host.kinds import Service
from terrafirma_host.project_files import MOVED, Files, below, text_at
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application


def _refuse_paths(files: Files) -> None:
    """Refuse paths outside of the source: only the source is on the host."""
    app = files.app
    for name in files.used:
        service = files.project["services"][name]
        raw = (files.raw.get("services") or {}).get(name) or {}
        _refuse_mounts(files, name, service, raw)
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
        for word, _ in files.env_file(name):
            _refuse_word(app, f"{name}: env_file", word)
            _refuse_path(app, f"{name}: env_file", posixpath.join(app.project_directory, word))
        for option in service.get("security_opt") or []:
            _refuse_profile(app, f"{name}: security_opt: seccomp", option)
    for kind, key, one in files.used_files():
        _refuse_path(app, f"{kind}: {key}", one.get("file") or "")
        word = ((files.raw.get(kind) or {}).get(key) or {}).get("file") or ""
        _refuse_word(app, f"{kind}: {key}", word)
    for key, volume in (files.project.get("volumes") or {}).items():
        options = (volume or {}).get("driver_opts") or {}
        device, bound = str(options.get("device") or ""), "bind" in str(options.get("o") or "")
        if bound and not device.startswith("/"):
            raise Failed(f"volumes: {key}: the device {device!r} is no place on the host: write an "
                         "absolute path")  # fmt: skip


def _refuse_mounts(files: Files, name: str, service: Service, raw: Service) -> None:
    app, what = files.app, f"{name}: volumes"
    for mount in service.get("volumes") or []:
        if mount["type"] == "bind":
            path, way = mount.get("source", ""), _way(app, name, mount)
            if path.startswith("/root/") and not files.raw and _has_tilde(files):
                _refuse_word(app, what, f"~{path[5:]}", mount=way)
            _refuse_path(app, what, path, mount=way)
    ours = app.volumes.values() if name == app.service else ()
    for mount in raw.get("volumes") or []:
        if posixpath.normpath(mount.get("target") or "") not in ours:
            _refuse_word(app, what, mount.get("source") or "", mount=_way(app, name, mount))


def _way(app: Application, name: str, mount: Mapping[str, Any]) -> str:
    """What to write in place of a mount from outside of the source."""
    target = posixpath.normpath(mount.get("target") or "")
    read = mount.get("read_only") or mounts.is_configuration(target)
    if name != app.service or read or not target.startswith("/"):
        return "a volume with a name, or an absolute path of the host"
    key = stores.volume_key(posixpath.normpath(mount.get("source") or ""))
    return (f"volumes = {json.dumps({key: target})} in the settings lasts, or an absolute path of "
            "the host")  # fmt: skip


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
                         f"{below(app, context)}")  # fmt: skip
        path = posixpath.normpath(posixpath.join(context, build.get("dockerfile") or "Dockerfile"))
        inside = Path(path).is_relative_to(app.source)
        if inside and not build.get("dockerfile_inline") and not Path(path).is_file():
            raise Failed(f"{name}: build: dockerfile: the source has no file {below(app, path)}")


def _refuse_profile(app: Application, what: str, option: str) -> None:
    found = re.fullmatch(r"seccomp[=:](?!(?:unconfined|builtin)$)(.*)", option)
    if found:
        _refuse_word(app, what, found[1])
        path = posixpath.join(app.project_directory or str(app.directory), found[1])
        _refuse_path(app, what, path)
        if not Path(path).is_file():
            raise Failed(f"{what} is the file {below(app, path)}, which is not on the host: "
                         "upload the file")  # fmt: skip


def _has_tilde(files: Files) -> bool:
    return any("~/" in text_at(path) for path in files.paths)


def _refuse_word(app: Application, what: str, word: str, mount: str = "") -> None:
    """Raise Failed for an unresolved path that leads out of the source."""
    if word.startswith("~"):
        raise Failed(f"{what}: {word} is below /root on the host: {mount or MOVED}")
    if "://" in word or word.startswith(("/", "$", "git@")) or not word:
        return
    if mount and not word.startswith("."):
        return  # the name of a volume
    inner = posixpath.dirname(app.compose[0]) if app.compose else ""
    if posixpath.normpath(posixpath.join(inner, word)).startswith(".."):
        raise Failed(f"{what}: {word} is outside of the source, which alone is on the host: "
                     f"{mount or MOVED}")  # fmt: skip


def _refuse_path(app: Application, what: str, path: str, mount: str = "") -> None:
    """Raise Failed for a resolved path beside the source, or a link that leads out of it."""
    if not path.startswith("/") or not app.source:
        return
    path = posixpath.normpath(path)
    inside = Path(path).is_relative_to(app.source)
    if not inside and Path(path).is_relative_to(app.directory.parent):
        word = posixpath.relpath(path, app.source)
        raise Failed(f"{what}: {word} is outside of the source, which alone is on the host: "
                     f"{mount or MOVED}")  # fmt: skip
    real = os.path.realpath(path)
    if inside and not Path(real).is_relative_to(os.path.realpath(app.source)):
        raise Failed(f"{what}: {below(app, path)} is a link to {real}, outside of the source: "
                     f"{mount or MOVED}")  # fmt: skip


def _refuse_secrets(files: Files) -> None:
    for kind, key, one in files.used_files():
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
            raise Failed(f"{where} is the file {below(files.app, path)}, which is not on the "
                         "host: name the secret in secrets, or upload the file")  # fmt: skip


RULES = _refuse_paths, _refuse_builds, _refuse_secrets
"""Each raises Failed for files and directories that are not on the host."""

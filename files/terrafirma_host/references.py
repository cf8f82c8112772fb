"""
Managed by Terrafirma. What compose files refer to, and checks.

Pure functions of Compose's answers: the resolved files, the unresolved ones, and the warnings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from terrafirma_host import images, paths, variables
from terrafirma_host.project_files import Files, unknown


def check(files: Files) -> None:
    """Raise Failed, in one line, for references that lead nowhere; note keys without effect."""
    for rule in RULES:
        rule(files)


def _missing(files: Files) -> Iterator[str]:
    """Lines about optional files that are missing, and variables that nothing sets."""
    for name in files.used:
        for path, _ in files.env_file(name):
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


RULES: Sequence[Callable[[Files], None]] = (*variables.RULES, *paths.RULES, _note)
"""Each raises Failed for references that lead nowhere, or notes keys without effect."""

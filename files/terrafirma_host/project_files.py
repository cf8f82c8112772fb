"""
Managed by Terrafirma. The compose files of a project with all that they refer to, as Compose reads
them.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from terrafirma_host import stores
from terrafirma_host.layers import Project
from terrafirma_host.spec import Application

Raw = Mapping[str, Any]
"""The merged files before variables are filled in; empty where Compose cannot print them."""

# What to do about a file outside of the source.
MOVED = "move it into the source, or let `source` be the directory above"
# Warnings of Compose that change nothing.
HARMLESS = ("`version` is obsolete", "external.name is deprecated")
BLANK = re.compile(r'The "([^"]+)" variable is not set')


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

    def env_files(self) -> list[str]:
        return [
            posixpath.join(self.app.project_directory, path)
            for name in self.used
            for path, _ in self.env_file(name)
        ]

    def env_file(self, service: str) -> list[tuple[str, bool]]:
        """The paths of a service's env_file as they are written, and whether each is required."""
        entries = ((self.raw.get("services") or {}).get(service) or {}).get("env_file") or []
        found = [
            (one, True)
            if isinstance(one, str)
            else (one.get("path", ""), one.get("required", True))
            for one in ([entries] if isinstance(entries, str) else entries)
        ]
        # The last one takes the place of those that are not on the host.
        return found[:-1] if service in self.app.env_files else found

    def names(self, service: str, kind: str, key: str) -> bool:
        used = self.project["services"][service]
        parts = [used.get(kind) or [], (used.get("build") or {}).get(kind) or []]
        return any(
            key in (part if isinstance(part, Mapping) else [one.get("source") for one in part])
            for part in parts
        )

    def used_files(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """The secrets and configs in use, without those that the settings replace in a slot."""
        for kind in ("secrets", "configs"):
            for key, one in (self.project.get(kind) or {}).items():
                users = [name for name in self.used if self.names(name, kind, key)]
                if kind == "secrets" and key in self.app.secrets:
                    users = [name for name in users if name in self.app.stateful]
                if users:
                    yield kind, key, one or {}


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
        text += f" ({word} is outside of the source, which alone is on the host: {MOVED})"
    elif "env file" in text or "env_file" in text:
        text += " (no .env is uploaded: name a file with its variables in env_file of the settings)"
    return text


def unknown(said: Iterable[str]) -> list[str]:
    """The warnings to show: neither handled here nor harmless."""
    return [
        one for one in said
        if not BLANK.search(one) and not any(words in one for words in HARMLESS)
    ]  # fmt: skip


def below(app: Application, path: str) -> str:
    top = app.compose_in or app.source
    return posixpath.relpath(path, top) if top and Path(path).is_relative_to(top) else path


def text_at(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""

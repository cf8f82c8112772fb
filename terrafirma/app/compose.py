"""The compose file of a project where the settings name none."""

from __future__ import annotations

from pathlib import Path

from terrafirma.fields import is_file

DEFAULTS = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
"""The files that Compose itself looks for, in this order."""


def default_file(directory: Path) -> str:
    """The file in a directory that Compose itself would take; or ""."""
    return next((name for name in DEFAULTS if is_file(directory / name)), "")

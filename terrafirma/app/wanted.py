"""Variables that a project asks for in an example of its .env, and that nothing sets."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from terrafirma.app.env_files import given
from terrafirma.app.guess import examples
from terrafirma.app.settings import Application

SHOWN = 12
"""Names in the line; of more, the number is said."""


def wanted(app: Application) -> list[str]:
    """A line that names such variables, or none."""
    if not app.source:
        return []
    derived = [name.upper() for name in (*app.secrets, *app.database_urls.values())]
    set_here = {*app.env, *given(app), *(derived if app.secrets_env else [])}
    texts = (_read(app, name) for name in (*app.compose, app.dockerfile or "Dockerfile"))
    names = sorted(unset(examples(app.source_directory), set_here, texts))
    if not names:
        return []
    listed = ", ".join(names[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"the example of its .env names {listed}{more}: no env, env_file or secrets_env sets "
            f"{'it' if len(names) == 1 else 'them'}"]  # fmt: skip


def unset(example: Mapping[str, str], set_here: Collection[str], texts: Iterable[str]) -> list[str]:
    """
    The variables of an example that nothing sets.

    + set_here: the variables of the settings
    + texts: compose files and Dockerfile. What they name is set there or has a default, or Compose
      says that it is missing
    """
    known = {*set_here}
    for text in texts:
        known |= {*re.findall(r"\b[A-Za-z_]\w*\b", re.sub(r"(?m)^\s*#.*", "", text))}
    return [name for name in example if name not in known]


def _read(app: Application, name: str) -> str:
    try:
        return (app.source_directory / name).read_text(errors="replace")
    except OSError:
        return ""

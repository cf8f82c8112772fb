"""Where an application says, in its own files, on which port it listens and how it is checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from terrafirma.app.hashes import look

MOST = 2000
"""Files that are looked at."""
_CODE = (".rs", ".go", ".js", ".mjs", ".cjs", ".ts", ".properties", ".yml", ".yaml")
_TESTS = re.compile(r"(?:^|/)(?:tests?|spec|node_modules|vendor|examples?)/|[._-](?:test|spec)\.")
_ADDRESS = r"[\"'`](?P<host>[\w.]*|\[::1?\]):(?P<port>\d{2,5})[\"'`]"
_BINDS = tuple(
    re.compile(pattern)
    for pattern in (
        # Rust, Go; Node; Spring.
        rf"(?:\bbind|ListenAndServe|\.Run|\.Start|\.Listen)\(\s*&?{_ADDRESS}",
        r"\bbind\(\s*\(\s*[\"'](?P<host>[\w.]+)[\"']\s*,\s*(?P<port>\d{2,5})\s*\)",
        r"SocketAddr::from\(\(\[(?P<host>[\d, ]+)\],\s*(?P<port>\d{2,5})\)\)",
        r"\.listen\(\s*(?:process\.env\.PORT\s*(?:\|\||\?\?)\s*)?(?P<port>\d{2,5})\b(?P<host>)",
        r"(?m)^server\.port\s*[=:]\s*(?:\$\{\w+:)?(?P<port>\d{2,5})\b(?P<host>)",
        r"(?m)^server:\n(?:[ ]+.*\n)*?[ ]+port:\s*(?:\$\{\w+:)?(?P<port>\d{2,5})\b(?P<host>)",
    )
)


def bound(directory: Path) -> tuple[int, str]:
    """
    The port that the code names, and the file with it where only its own container reaches it.

    The port is 0 where the code names none, or several.
    """
    found = dict(_bound(directory))
    if len(found) != 1:
        return 0, ""
    return next(iter(found.items()))


def _bound(directory: Path) -> Iterator[tuple[int, str]]:
    for name in islice(look(directory).paths, MOST):
        path = directory / name
        spring = path.name.startswith("application.")
        if path.suffix not in _CODE or _TESTS.search(name) or path.is_symlink():
            continue
        if path.suffix in (".properties", ".yml", ".yaml") and not spring:
            continue
        if path.stat().st_size >= 2**18:
            continue
        text = path.read_text(errors="replace")
        for match in (one for pattern in _BINDS for one in pattern.finditer(text)):
            host = match["host"].replace(" ", "").replace(",", ".")
            yield int(match["port"]), name if host in ("127.0.0.1", "localhost", "[::1]") else ""


_URL = re.compile(
    r"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(?::(?P<port>\d+))?"
    r"(?P<path>/[A-Za-z0-9_.-][A-Za-z0-9/_.-]*)"
)


def checked_path(service: Mapping[str, Any], dockerfile: str, ports: list[int]) -> str:
    """The path that the health check of a compose file or a Dockerfile requests; "" without one."""
    test = (service.get("healthcheck") or {}).get("test") or ""
    stage = re.split(r"(?mi)^\s*FROM\s", dockerfile.replace("\\\n", " "))[-1]
    texts = [test if isinstance(test, str) else " ".join(map(str, test))]
    texts += re.findall(r"(?mi)^\s*HEALTHCHECK\s+(.+)$", stage)
    for match in (one for text in texts for one in _URL.finditer(text)):
        if not ports or int(match["port"] or 80) in ports:
            return match["path"]
    return ""

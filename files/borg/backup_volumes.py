# Managed by Terrafirma: tasks/borg.py
"""The lasting volumes of applications: where they are, and what is written there for a backup."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from backup_store import STATE

PROGRAM = "/usr/local/bin/terrafirma"
# The volumes of the last backup; and for each service the archive with its last good dump.
KNOWN = STATE / "volumes.json"
DUMPED = STATE / "dumped.json"
# How troubles begin that concern a service, all services of an application, and those of all.
COMMAND = "backup_command of "
DESCRIPTION = "the description of "
AFTER = "the commands after it"
UNKNOWN = "the volumes of the last backup are in it"


@dataclass
class Quiet:
    """What is to be backed up of the applications, and what went wrong with it."""

    volumes: list[str]  # directories
    troubles: dict[str, str]  # what → why
    good: list[str]  # services whose commands succeeded

    def remember(self, archive: str, before: list[str]) -> dict[str, str]:
        """
        Note that an archive has the good dumps.

        Returns the archive with the last good dump of each service that has none in this one, if it
        is still there.
        """
        known = {name: one for name, one in _read(DUMPED, {}).items() if one in before}
        _write(DUMPED, known | dict.fromkeys(self.good, archive))
        return {name: one for name, one in known.items() if self._lacks(name)}

    def _lacks(self, service: str) -> bool:
        """Whether a service that had a dump has none in this backup."""
        app = service.partition("/")[0]
        causes = {UNKNOWN, f"{DESCRIPTION}{app}", f"{COMMAND}{service}"}
        return bool(causes & self.troubles.keys())

    def words(self, dumped: dict[str, str]) -> str:
        """All troubles in one line."""
        return "; ".join(
            f"{what}: {why}"
            + f" (it last succeeded for {dumped.get(what.removeprefix(COMMAND), 'no archive')})"
            * what.startswith(COMMAND)
            for what, why in self.troubles.items()
        )


@contextmanager
def quiet() -> Iterator[Quiet]:
    """Within the block, the applications have written what a backup is to have."""
    begun, trouble = _ask("begin")
    if trouble:
        # Better those of the last backup than none.
        found = Quiet(_read(KNOWN, []), {UNKNOWN: trouble}, [])
    else:
        found = Quiet(begun["volumes"], begun["troubles"], begun["good"])
        _write(KNOWN, found.volumes)
    try:
        yield found
    finally:
        troubles = end()
        if found.troubles:
            # Its cause may be the same.
            troubles.pop(AFTER, None)
        found.troubles |= troubles


def end() -> dict[str, str]:
    """Run the commands after a backup, also after one that was killed; what went wrong."""
    ended, trouble = _ask("end")
    return {**(ended.get("troubles") or {}), **({AFTER: trouble} if trouble else {})}


def _ask(words: str) -> tuple[dict[str, Any], str]:
    """The answer of the program for applications, or why there is none."""
    try:
        result = subprocess.run(
            [PROGRAM, "backup", words], cwd="/",
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        )  # fmt: skip
    except OSError as error:
        return {}, str(error)
    lines = result.stderr.strip().splitlines()
    if result.returncode:
        return {}, lines[-1] if lines else f"exit {result.returncode}"
    try:
        answer: dict[str, Any] = json.loads(result.stdout or "{}")
    except ValueError:
        return {}, f"it answered {result.stdout[:80]!r}"
    return answer, ""


def location(
    directories: list[str], volumes: list[str], *, stays: bool = False
) -> dict[str, list[str]]:
    """
    borgmatic's settings by which a backup has these volumes, whatever else it leaves out.

    borg's first matching pattern counts, and patterns come before excluded paths. A full path (pf)
    includes a directory without its content, so that borg passes through one whose content is
    excluded. With `stays`, borg stays on the file system of each directory, as borgmatic 1.7 has
    it do while databases are dumped; Docker may have a file system of its own.
    """
    apart = [one for one in volumes if not _covered(directories, one, stays=stays)]
    above: set[PurePosixPath] = set()
    for one in volumes:
        above |= {*PurePosixPath(one).parents} if one not in apart else set()
    return {
        "source_directories": [*directories, *apart],
        "patterns": [
            *(f"+ pf:{path}" for path in sorted(above) if path != PurePosixPath("/")),
            *(f"+ pp:{path}" for path in sorted(volumes)),
        ],
    }


def _covered(directories: list[str], volume: str, *, stays: bool) -> bool:
    """Whether borg finds a volume on its way through a directory."""
    above = [one for one in directories if PurePosixPath(volume).is_relative_to(one)]
    return bool(above) and not (stays and _device(volume) not in {_device(one) for one in above})


def _device(path: str) -> int | None:
    with suppress(OSError):
        return Path(path).stat().st_dev
    return None


def _read(path: Path, otherwise: Any) -> Any:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        if isinstance(found, type(otherwise)):
            return found
    return otherwise


def _write(path: Path, value: object) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(value) + "\n")
    new.replace(path)

"""The state of a host's packages, from which the plan of an upgrade is made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override

from terrafirma.paths import BACKUP_CONFIG, BACKUP_PROGRAM, PACKAGES_STATE


class Known(TypedDict):
    """A package as apt knows it."""

    installed: str  # the installed version; empty if there is none
    versions: list[tuple[str, list[str]]]  # each with the archives that offer it


class PackagesState(TypedDict):
    packages: dict[str, Known]
    files: list[tuple[str, str]]  # packages kept as files on the host: name, version
    rest: list[tuple[str, str, str]]  # packages to upgrade: name, old version, new version
    age: int | None  # age of the package lists, in seconds
    backups: bool
    reboot: bool  # a reboot is due
    left: bool  # an upgrade was interrupted


class Packages(FactBase[PackagesState]):
    """The packages `names`, other packages to upgrade, and the files for a rollback."""

    @staticmethod
    @override
    def default() -> PackagesState:
        return PackagesState(
            packages={}, files=[], rest=[], age=None, backups=False, reboot=False, left=False
        )

    @override
    def command(self, names: Sequence[str]) -> StringCommand:
        quoted = [QuoteString(name) for name in names]
        policy = ["apt-cache policy", *quoted, "| sed 's/^/policy|/';"] if names else []
        return StringCommand(
            *policy,
            # Read without apt's locks, which an installation in progress holds.
            "apt-get -s -o Debug::NoLocking=true upgrade --with-new-pkgs 2> /dev/null |",
            "sed -n 's/^Inst /rest|/p';",
            f"for file in {PACKAGES_STATE}/*.deb /var/cache/apt/archives/*.deb; do",
            'test ! -e "$file" || echo "file|${file##*/}"; done;',
            # A refresh leaves an unchanged list as it is, but always writes to `partial`.
            "newest=; ls /var/lib/apt/lists/*_* > /dev/null 2>&1 && newest=$(find",
            "/var/lib/apt/lists -maxdepth 1 '(' -name '*_*' -o -name partial ')' -printf '%T@\\n'",
            '| sort -n | tail -n 1); test -z "$newest" ||',
            'echo "age|$(($(date +%s) - ${newest%.*}))";',
            f"test ! -e {BACKUP_PROGRAM} -o ! -e {BACKUP_CONFIG} || echo 'backups|';",
            "test ! -e /run/reboot-required || echo 'reboot|';",
            f"test ! -e {PACKAGES_STATE}/current.json || echo 'left|'",
        )

    @override
    def process(self, output: list[str]) -> PackagesState:
        state = self.default()
        known: Known | None = None
        for line in output:
            kind, _, rest = line.partition("|")
            try:
                if kind == "policy":
                    known = _policy(state, known, rest)
                elif kind == "file":
                    # Ignore files that apt did not name.
                    if match := re.match(r"([^_]+)_([^_]+)_[^_]+\.deb$", rest):
                        state["files"].append((match[1], match[2].replace("%3a", ":")))
                elif kind == "rest":
                    state["rest"].append(_upgraded(rest))
                elif kind == "age":
                    state["age"] = int(rest)
                elif kind == "backups":
                    state["backups"] = True
                elif kind == "reboot":
                    state["reboot"] = True
                elif kind == "left":
                    state["left"] = True
                else:
                    raise ValueError(kind)
            except (ValueError, LookupError) as error:
                raise FactProcessError(f"not an answer about packages: {line!r}") from error
        return state


def _policy(state: PackagesState, known: Known | None, line: str) -> Known | None:
    """Read a line of `apt-cache policy`; returns the package that the next lines describe."""
    if re.match(r"\S+:$", line):
        return state["packages"].setdefault(line[:-1], Known(installed="", versions=[]))
    if known is None:
        raise ValueError(line)
    words = line.split()
    if line.startswith("  Installed: "):
        known["installed"] = "" if words[1] == "(none)" else words[1]
    elif re.match(r" (\*\*\*|   ) \S", line):
        known["versions"].append((words[1] if words[0] == "***" else words[0], []))
    elif re.match(r" {8,}-?\d+ ", line):
        # In the form of Repository.listed (vendors.py).
        known["versions"][-1][1].append(" ".join(words[1:3]))
    return known


def _upgraded(line: str) -> tuple[str, str, str]:
    """Read a package that apt would install, like "curl [8.1] (8.2 Debian:13 [amd64])"."""
    match = re.match(r"(\S+) (?:\[([^]]+)\] )?\((\S+)", line)
    if not match:
        raise ValueError(line)
    name, old, new = match.groups()
    return name, old or "", new

"""What dpkg and apt are doing."""

from __future__ import annotations

from collections.abc import Sequence

from pyinfra.api import FactBase, QuoteString, StringCommand
from typing_extensions import override


class MissingPackages(FactBase[list[str]]):
    """Those of `packages` that are not installed, in that order."""

    default = list

    @override
    def command(self, packages: Sequence[str]) -> StringCommand:
        return StringCommand(
            "for package in",
            *map(QuoteString, packages),
            "; do dpkg-query -Wf '${db:Status-Status}\\n' \"$package\" 2> /dev/null",
            '| grep -qx installed || echo "$package"; done',
        )

    @override
    def process(self, output: list[str]) -> list[str]:
        return output


# The locks that apt and dpkg take, in the order in which an installation takes them.
APT_LOCKS = (
    "/var/lib/apt/lists/lock",
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/cache/apt/archives/lock",
)


class AptLockHolder(FactBase[str | None]):
    """Who holds one of apt's locks, like "unattended-upgr (pid 812)"; None when they are free."""

    @override
    def command(self) -> str:
        # The kernel lists lock holders by inode: neither fuser nor lsof need be installed.
        return (
            f"for lock in {' '.join(APT_LOCKS)}; do "
            'inode=$(stat -c %i "$lock" 2> /dev/null) || continue; '
            'pid=$(awk -v inode="$inode" \'{ n = split($6, part, ":"); '
            'if ($2 == "POSIX" && part[n] == inode) { print $5; exit } }\' /proc/locks); '
            'test -z "$pid" || { echo "$(cat "/proc/$pid/comm" 2> /dev/null) (pid $pid)"; exit; }; '
            "done"
        )

    @override
    def process(self, output: list[str]) -> str:
        return output[0].strip()

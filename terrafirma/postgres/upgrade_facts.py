"""What a major upgrade of PostgreSQL needs, and its progress."""

from __future__ import annotations

from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override

from terrafirma.paths import UPGRADE_LOG, UPGRADE_UNIT
from terrafirma.postgres.facts import CONNECT, psql

SHARING = frozenset({"xfs", "btrfs"})
"""File systems that may copy a file by sharing its blocks; names as `stat` prints them."""


class UpgradeNeeds(TypedDict):
    online: bool  # the old server runs
    size: int  # of the old data, in kB
    free: int  # on the disk that the copy goes to, in kB
    may_share: bool  # the file systems may copy by sharing blocks, which takes no space
    inside: list[str]  # tablespaces inside the old data directory
    packages: list[str]  # packages of the new version for extensions that the databases use
    missing: list[str]  # packages among them that the package lists do not offer


class UpgradeState(FactBase[UpgradeNeeds]):
    """What the cluster `old`/main needs to become `new`/main. The old server must run to answer."""

    @staticmethod
    @override
    def default() -> UpgradeNeeds:
        return UpgradeNeeds(
            online=False, size=0, free=0, may_share=False, inside=[], packages=[], missing=[]
        )

    @override
    def command(self, old: int, new: int) -> StringCommand:
        # Files of the extensions and libraries that the databases use: dpkg knows their packages.
        controls = (
            f"select '/usr/share/postgresql/{old}/extension/' || extname || '.control' "
            "from pg_extension;"
        )
        libraries = (
            f"select '/usr/lib/postgresql/{old}/lib/' || regexp_replace(one, '.*/', '') || '.so' "
            "from pg_settings, unnest(string_to_array(translate(setting, '\" ', ''), ',')) as one "
            "where name = 'shared_preload_libraries';"
        )
        return StringCommand(
            f"set -- $(pg_lsclusters -h {old} main 2> /dev/null); test $# -ge 6 || exit 0;",
            "data=$6; case $4 in online*) ;; *) exit 0 ;; esac; echo online=yes; cd /;",
            # A running server creates and removes files meanwhile: du's complaints are no errors.
            'echo "size=$(du -skL "$data" 2> /dev/null | cut -f 1)";',
            "df -Pk /var/lib/postgresql | awk 'NR == 2 { print \"free=\" $4 }';",
            # Only a trial copy proves that blocks can be shared. A fact must not write, so the
            # upgrade itself makes that copy, before it stops the server.
            'for place in "$data" /var/lib/postgresql; do',
            'echo "type=$(stat -f -c %T "$place" 2> /dev/null)"; done;',
            'own=$(realpath "$data"); for link in "$data"/pg_tblspc/*; do',
            'place=$(realpath -m "$link"); test ! -e "$link" ||',
            'case $place in "$own"/*) echo "inside=$place" ;; esac; done;',
            "lines=$(printf %s", QuoteString(" ".join(CONNECT.split())),
            f"| {psql(old)}) || exit 1;",
            StringCommand("controls=", QuoteString(controls), _separator=""), ";",
            "files=$( { echo", QuoteString(libraries), ";",
            "printf '%s\\n' \"$lines\" | while IFS= read -r line; do",
            """printf '%s\\n' "$line" "$controls"; done; }""",
            f"| {psql(old)}) || exit 1;",
            'for package in $(for file in $files; do dpkg -S "$file" 2> /dev/null; done |',
            "cut -d : -f 1 | sort -u); do",
            f'named=$(echo "$package" | sed "s/-{old}\\(-\\|\\$\\)/-{new}\\1/");',
            'test "$named" != "$package" || continue; echo "package=$named";',
            'apt-cache pkgnames "$named" | grep -qxF "$named" || echo "missing=$named"; done',
        )  # fmt: skip

    @override
    def process(self, output: list[str]) -> UpgradeNeeds:
        pairs = [line.partition("=")[::2] for line in output]
        one = dict(pairs)
        try:
            return UpgradeNeeds(
                online="online" in one,
                size=int(one["size"]),
                free=int(one["free"]),
                may_share=SHARING.issuperset(value for key, value in pairs if key == "type"),
                inside=[value for key, value in pairs if key == "inside"],
                packages=[value for key, value in pairs if key == "package"],
                missing=[value for key, value in pairs if key == "missing"],
            )
        except (KeyError, ValueError) as error:
            raise FactProcessError(f"du, df and psql answered {output[:3]!r}") from error


class Progress(TypedDict):
    running: bool
    lines: list[str]


class UpgradeProgress(FactBase[Progress]):
    """Whether an upgrade is running, and the log of the last one after its first `seen` lines."""

    @staticmethod
    @override
    def default() -> Progress:
        return Progress(running=False, lines=[])

    @override
    def command(self, seen: int = 0) -> str:
        return (
            # State first, log second: the last lines before the end are not lost.
            f"if test -e /run/systemd/transient/{UPGRADE_UNIT}; then echo running; "
            f"else echo ended; fi; tail -n +{seen + 1} {UPGRADE_LOG} 2> /dev/null || true"
        )

    @override
    def process(self, output: list[str]) -> Progress:
        first, *lines = output
        if first not in ("running", "ended"):
            raise FactProcessError(f"not an answer on an upgrade: {first!r}")
        return Progress(running=first == "running", lines=lines)

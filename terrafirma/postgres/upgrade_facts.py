"""What a major upgrade of PostgreSQL needs, and how far it is."""

from __future__ import annotations

from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override

from terrafirma.paths import UPGRADE_LOG, UPGRADE_UNIT
from terrafirma.postgres.facts import CONNECT, psql

SHARING = frozenset({"xfs", "btrfs"})
"""The file systems that may copy a file by sharing its blocks, as stat names them."""


class UpgradeNeeds(TypedDict):
    online: bool  # the old server runs
    size: int  # of its data, in kB
    free: int  # where the copy goes, in kB
    may_share: bool  # its file system may be one where a copy shares blocks, and takes no room
    inside: list[str]  # tablespaces that are in its own data directory
    packages: list[str]  # those of the new version that give what the old databases use
    missing: list[str]  # those of them that the package lists do not have


class UpgradeState(FactBase[UpgradeNeeds]):
    """What the cluster `old`/main needs to become `new`/main. Asks its databases: it must run."""

    @staticmethod
    @override
    def default() -> UpgradeNeeds:
        return UpgradeNeeds(
            online=False, size=0, free=0, may_share=False, inside=[], packages=[], missing=[]
        )

    @override
    def command(self, old: int, new: int) -> StringCommand:
        # Files that packages have brought, for what the databases use.
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
            # Files come and go below a running server.
            'echo "size=$(du -skL "$data" 2> /dev/null | cut -f 1)";',
            "df -Pk /var/lib/postgresql | awk 'NR == 2 { print \"free=\" $4 }';",
            # Only a trial copy shows whether blocks can be shared, and a trial writes: the upgrade
            # makes it before it stops the server.
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
    """Whether an upgrade is going on, and what it, or the last one, said after `seen` lines."""

    @staticmethod
    @override
    def default() -> Progress:
        return Progress(running=False, lines=[])

    @override
    def command(self, seen: int = 0) -> str:
        return (
            # In this order: what it said last before it ended is not lost.
            f"if test -e /run/systemd/transient/{UPGRADE_UNIT}; then echo running; "
            f"else echo ended; fi; tail -n +{seen + 1} {UPGRADE_LOG} 2> /dev/null || true"
        )

    @override
    def process(self, output: list[str]) -> Progress:
        first, *lines = output
        if first not in ("running", "ended"):
            raise FactProcessError(f"not an answer on an upgrade: {first!r}")
        return Progress(running=first == "running", lines=lines)

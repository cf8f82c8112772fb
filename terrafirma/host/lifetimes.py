"""
How long the software of a host gets security updates, and what to do before they end.

The end of a distribution comes from the package distro-info-data on the host. If that package does
not know it, and for the engines, the tables below are used.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple, TypedDict

from pyinfra.api import FactBase, FactProcessError, Host, QuoteString, StringCommand
from typing_extensions import override

from terrafirma.host.facts import MachineState

READ = date(2026, 11, 28)
"""When the tables were last compared with their sources, which the comments name."""

# distro-info-data 0.58+deb12u7. For Debian, the end of its long-term support, which includes the
# architectures that Terrafirma supports; for Ubuntu, the end of updates without a subscription.
DISTRIBUTIONS = {
    ("debian", "12"): date(2028, 6, 30),
    ("debian", "13"): date(2030, 6, 30),
    ("ubuntu", "22.04"): date(2027, 6, 1),
    ("ubuntu", "24.04"): date(2029, 5, 31),
    ("ubuntu", "26.04"): date(2031, 5, 29),
}
# https://www.postgresql.org/support/versioning/ (May 2024): the last minor release of each major
# version. For 17 and 18 by the rule on that page: the second Thursday of a November, after 5 years.
POSTGRES = {
    "13": date(2025, 11, 13),
    "14": date(2026, 11, 12),
    "15": date(2027, 11, 11),
    "16": date(2028, 11, 9),
    "17": date(2029, 11, 8),
    "18": date(2030, 11, 14),
}
# https://github.com/moby/moby/blob/master/project/BRANCHES-AND-TAGS.md, by
# https://endoflife.date/docker-engine (March 2026); None: no end was announced. A distribution
# supports its own packages of Docker itself.
DOCKER: dict[str, date | None] = {
    "20.10": date(2023, 12, 10),
    "23.0": date(2025, 5, 19),
    "24.0": date(2024, 6, 8),
    "25.0": None,
    "26.0": date(2024, 6, 8),
    "26.1": date(2025, 2, 17),
    "27": date(2025, 5, 3),
    "28": None,
    "29": None,
}
# https://github.com/caddyserver/caddy/blob/master/.github/SECURITY.md; version 1 ended with 2.0.
CADDY: dict[str, date | None] = {"1": date(2020, 5, 4), "2": None}

NOTICE = timedelta(days=183)
"""How long before an end each run warns: half a year."""

PACKAGES = ("docker-ce", "caddy")


class LifetimesState(TypedDict):
    end: str  # of the distribution, like "2030-06-30"; empty if the host does not know it
    packages: dict[str, str]  # versions of the installed ones of PACKAGES


class Lifetimes(FactBase[LifetimesState]):
    """The end of the distribution by distro-info-data, and the versions of the vendors' engines."""

    @staticmethod
    @override
    def default() -> LifetimesState:
        return LifetimesState(end="", packages={})

    @override
    def command(self, distribution: str, version: str) -> StringCommand:
        return StringCommand(
            StringCommand("name=", QuoteString(distribution), _separator=""), ";",
            StringCommand("version=", QuoteString(version), _separator=""), ";",
            'case "$name" in debian | ubuntu) awk -F, -v version="$version"',
            "'NR == 1 { print \"row=\" $0 }",
            "{ split($1, part, \" \"); if (part[1] == version) print \"row=\" $0 }'",
            '"/usr/share/distro-info/$name.csv" 2> /dev/null ;; esac;',
            "dpkg-query -Wf '${db:Status-Status} ${Package}=${Version}\\n'", *PACKAGES,
            "2> /dev/null | sed -n 's/^installed //p'; true",
        )  # fmt: skip

    @override
    def process(self, output: list[str]) -> LifetimesState:
        rows = [line.removeprefix("row=") for line in output if line.startswith("row=")]
        pairs = [line.partition("=") for line in output if not line.startswith("row=")]
        if any(name not in PACKAGES for name, _, _ in pairs):
            raise FactProcessError(f"dpkg-query answered {output!r}")
        end = ""
        for row in csv.DictReader(rows):
            end = row.get("eol-lts") or row.get("eol") or ""
        try:
            date.fromisoformat(end or "2000-01-01")
        except ValueError as error:
            raise FactProcessError(f"distro-info-data says {end!r}") from error
        return LifetimesState(end=end, packages={name: value for name, _, value in pairs})


class End(NamedTuple):
    """When software on a host gets its last security updates, and what to do before."""

    what: str
    day: date
    way: str


def ends(machine: MachineState, known: LifetimesState, postgres: str) -> Iterator[End]:
    """The known ends of a host's software; `postgres` is the major version of its cluster."""
    kind = (machine["id"], machine["version"])
    day = date.fromisoformat(known["end"]) if known["end"] else DISTRIBUTIONS.get(kind)
    if day:
        way = (
            "set up a server with a newer release and restore the backup there "
            "(docs/operations.md#rebuild-a-lost-server)"
        )
        yield End(machine["name"], day, way)
    if day := POSTGRES.get(postgres):
        yield End(
            f"PostgreSQL {postgres}", day, "commands/postgres_upgrade.py moves to a newer one"
        )
    for title, package, table in (("Docker", "docker-ce", DOCKER), ("Caddy", "caddy", CADDY)):
        version = known["packages"].get(package, "")
        if release := _vendors(version):
            for name, end in table.items():
                if end and f"{release}.".startswith(f"{name}."):
                    yield End(f"{title} {name}", end, "commands/upgrade.py moves to a newer one")


def _vendors(version: str) -> str:
    """The upstream version of a vendor's package; empty for a distribution's package."""
    upstream, _, build = version.rpartition(":")[2].partition("-")
    # Docker's revisions name the distribution; Caddy's packages have no revision; Debian's do.
    return upstream if not build or re.search(r"~(debian|ubuntu)\.", build) else ""


def warnings(found: Iterator[End], today: date) -> Iterator[tuple[str, bool]]:
    """A message about each end that is near or past, and whether it is past."""
    for what, day, way in found:
        if day < today:
            yield f"{what} has had no security updates since {day}: {way}", True
        elif day - today <= NOTICE:
            yield f"{what} gets security updates until {day}: {way}", False


def warn_of_ends(host: Host, machine: MachineState, postgres: str) -> None:
    """Warn of software on the host whose security updates end soon, or have ended."""
    known = host.get_fact(Lifetimes, distribution=machine["id"], version=machine["version"])
    for words, over in warnings(ends(machine, known, postgres), datetime.now(UTC).date()):
        host.log_styled(words, fg="red" if over else "yellow", bold=over)

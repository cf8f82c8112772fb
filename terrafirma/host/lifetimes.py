"""
How long the parts of a host get security updates, and the way on before they end.

The distribution's end is what its own package distro-info-data says on the host. What is not there,
and what the vendors say, is in the tables below, as their sources had it on `READ`.
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
"""When the tables were compared with the copies of their sources that each of them names."""

# distro-info-data 0.58+deb12u7. Of Debian the end of its long-term support, which is for the
# architectures that Terrafirma supports; of Ubuntu that of the updates which need no subscription.
DISTRIBUTIONS = {
    ("debian", "12"): date(2028, 6, 30),
    ("debian", "13"): date(2030, 6, 30),
    ("ubuntu", "22.04"): date(2027, 6, 1),
    ("ubuntu", "24.04"): date(2029, 5, 31),
    ("ubuntu", "26.04"): date(2031, 5, 29),
}
# https://www.postgresql.org/support/versioning/ (May 2024): the last minor release of each major
# version; of 17 and 18 by the rule there: the second Thursday of a November, five years on.
POSTGRES = {
    "13": date(2025, 11, 13),
    "14": date(2026, 11, 12),
    "15": date(2027, 11, 11),
    "16": date(2028, 11, 9),
    "17": date(2029, 11, 8),
    "18": date(2030, 11, 14),
}
# https://github.com/moby/moby/blob/master/project/BRANCHES-AND-TAGS.md, by
# https://endoflife.date/docker-engine (March 2026); None: no end was announced. What distributions
# ship is theirs to mend.
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
"""Half a year before an end it is said."""

PACKAGES = ("docker-ce", "caddy")


class LifetimesState(TypedDict):
    end: str  # of the distribution, as the host knows it: "2030-06-30"; or ""
    packages: dict[str, str]  # version of each of PACKAGES that is installed


class Lifetimes(FactBase[LifetimesState]):
    """What distro-info-data says of a distribution, and which of the vendors' engines there are."""

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
    """When a part of a host gets no more security updates, and what to do before."""

    what: str
    day: date
    way: str


def ends(machine: MachineState, known: LifetimesState, postgres: str) -> Iterator[End]:
    """The ends that are known of a host's parts; `postgres` is the major version of its cluster."""
    kind = (machine["id"], machine["version"])
    day = date.fromisoformat(known["end"]) if known["end"] else DISTRIBUTIONS.get(kind)
    if day:
        way = (
            "set up a server with a newer release and restore there "
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
    """The upstream part of a package's version that a vendor built; empty: a distribution's."""
    upstream, _, build = version.rpartition(":")[2].partition("-")
    # Docker names its own builds; Caddy's packages have no build at all, all of Debian's have.
    return upstream if not build or re.search(r"~(debian|ubuntu)\.", build) else ""


def sayings(found: Iterator[End], today: date) -> Iterator[tuple[str, bool]]:
    """What is to be said of each end that has come or is near, and whether it has come."""
    for what, day, way in found:
        if day < today:
            yield f"{what} has had no security updates since {day}: {way}", True
        elif day - today <= NOTICE:
            yield f"{what} gets security updates until {day}: {way}", False


def warn_of_ends(host: Host, machine: MachineState, postgres: str) -> None:
    """Say which parts of the host are about to get no more security updates, or get none now."""
    known = host.get_fact(Lifetimes, distribution=machine["id"], version=machine["version"])
    for words, over in sayings(ends(machine, known, postgres), datetime.now(UTC).date()):
        host.log_styled(words, fg="red" if over else "yellow", bold=over)

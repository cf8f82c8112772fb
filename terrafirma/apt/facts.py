"""The versions that package sources offer, by the package lists on the host."""

from __future__ import annotations

from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError
from typing_extensions import override

from terrafirma.apt.engines import ALL_PACKAGES


class Offer(TypedDict):
    version: str
    repository: str  # "https://download.docker.com/linux/debian trixie/stable"


Offers = dict[str, list[Offer]]
"""By the name of the package."""


class OfferedPackages(FactBase[Offers]):
    """
    The versions of the engines' packages that the host's sources offer, each with its source.

    The fact InstalledPackages (terrafirma/host/packages.py) has the installed versions.
    """

    default = dict

    @override
    def command(self) -> str:
        # apt-cache fails if a name is in no source.
        return f"LC_ALL=C apt-cache madison {' '.join(ALL_PACKAGES)} 2> /dev/null || true"

    @override
    def process(self, output: list[str]) -> Offers:
        offers: Offers = {}
        for line in output:
            try:
                package, version, where = (part.strip() for part in line.split(" | "))
                repository, kind = where.rsplit(" ", 1)
            except ValueError:
                raise FactProcessError(f"apt-cache madison answered {line!r}") from None
            if kind == "Packages":
                # Drop the architecture.
                repository = repository.rpartition(" ")[0]
                offers.setdefault(package, []).append(Offer(version=version, repository=repository))
        return offers

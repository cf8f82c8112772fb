"""What package sources offer, as the lists of the last refresh have it; no network is asked."""

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
    Which versions of the engines' packages the host's sources offer, and which source does.

    What is installed is the fact InstalledPackages of terrafirma/host/packages.py.
    """

    default = dict

    @override
    def command(self) -> str:
        # Names that nobody offers are an error there.
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
                # The architecture, which is the host's.
                repository = repository.rpartition(" ")[0]
                offers.setdefault(package, []).append(Offer(version=version, repository=repository))
        return offers

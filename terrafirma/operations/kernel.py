"""Settings of the running kernel."""

from __future__ import annotations

from collections.abc import Generator, Mapping

from pyinfra import host
from pyinfra.api import StringCommand

from terrafirma.facts.machine import KernelSettings
from terrafirma.operations import operation


@operation
def sysctl(values: Mapping[str, int]) -> Generator[StringCommand]:
    """
    Kernel settings as they should be now; a file below /etc/sysctl.d sees to the next boot.

    pyinfra's server.sysctl fails where the kernel lacks one of them (a host without IPv6), and
    costs a round trip for each.
    """
    known = host.get_fact(KernelSettings, names=sorted(values))
    wrong = [f"{name}={value}" for name, value in values.items()
             if known.get(name, str(value)) != str(value)]  # fmt: skip
    if wrong:
        yield StringCommand("sysctl --quiet --write", *wrong)
    else:
        host.noop(f"{', '.join(values)}: as wanted")

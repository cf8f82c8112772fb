"""Debian packages."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import FunctionCommand, Host, QuoteString, State, StringCommand

from terrafirma.facts.packages import AptLockHolder, MissingPackages
from terrafirma.operations import operation
from terrafirma.settings import Apt, Preflight

_APT = "DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -y -q -o Acquire::Retries=3"


@operation
def wait_for_apt() -> Generator[FunctionCommand]:
    """
    Wait, and say so, while another program holds apt's lock.

    On its first day a server upgrades itself in the background; without this an installation fails
    at once.
    """
    if host.get_fact(AptLockHolder):
        yield _wait()
    else:
        host.noop("apt's locks are free")


@operation
def packages(packages: Sequence[str]) -> Generator[StringCommand | FunctionCommand]:
    """
    Install those of `packages` that are missing.

    pyinfra's apt.packages refreshes the package lists even when nothing is missing, which is a
    change on each run, and neither waits for apt's lock nor finishes what a killed run left.
    """
    missing = host.get_fact(MissingPackages, packages=packages)
    if not missing:
        host.noop(f"{', '.join(packages)}: installed")
        return
    yield _wait()
    recent = f'-name "*_*" -mmin -{Apt.of(host).cache_hours * 60} -print -quit'
    install = StringCommand(
        _APT,
        "install --no-install-recommends --no-remove -o Dpkg::Options::=--force-confold",
        *map(QuoteString, missing),
    )
    yield StringCommand(
        'test -z "$(dpkg --audit)" || DEBIAN_FRONTEND=noninteractive',
        "dpkg --force-confdef --force-confold --configure -a < /dev/null &&",
        # Lists that are too old, or that no longer fit the archive: refresh them, then install.
        f'if test -z "$(find /var/lib/apt/lists -maxdepth 1 {recent})"; then {_APT} update; fi &&',
        "{", install, "|| {", _APT, "update &&", install, "; }; }",
    )  # fmt: skip


def _wait() -> FunctionCommand:
    def wait(state: State, host: Host) -> bool:
        patience = Preflight.of(host).wait_seconds
        deadline = time.monotonic() + patience
        while holder := host.get_fact(AptLockHolder):
            left = deadline - time.monotonic()
            if left <= 0:
                host.log_styled(
                    f"{holder} has held apt's lock for {patience} s: see what it does, "
                    "or set preflight_wait_seconds higher",
                    fg="red",
                )
                return False
            host.log(f"Waiting for apt's lock, held by {holder}, {left:.0f} s left")
            time.sleep(min(5, left))
        return True

    return FunctionCommand(wait, (), {})

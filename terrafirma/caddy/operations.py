"""Caddy's certificates."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import StringCommand

from terrafirma.caddy.facts import Certificates
from terrafirma.host.operation import operation

# Seconds to wait for certificates: authorities rarely take longer.
PATIENCE = 30


@operation
def certificates(domains: Sequence[str]) -> Generator[StringCommand]:
    """
    Say which of `domains` have no certificate yet, and why. It changes nothing and never fails.

    Caddy gets certificates by itself after it has loaded its configuration, and keeps trying.
    Without this operation, visitors would be the first to notice that one is missing.
    """
    if not host.state.is_executing or not domains:
        host.noop("Caddy gets certificates by itself")
        return
    deadline = time.monotonic() + PATIENCE
    known = host.get_fact(Certificates, domains=domains)
    while set(known["missing"]) - set(known["reasons"]) and time.monotonic() < deadline:
        time.sleep(1)
        known = host.get_fact(Certificates, domains=domains)
    for name in known["missing"]:
        why = known["reasons"].get(name, "Caddy's log does not say why")
        host.log_styled(
            f"{name} has no certificate yet: {why}. Caddy tries again by itself, and at once "
            "after `systemctl reload caddy`",
            fg="yellow",
        )
    host.noop(f"{len(domains) - len(known['missing'])} of {len(domains)} names have certificates")
    yield from ()

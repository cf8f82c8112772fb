"""Docker's networks, and the packets that must reach containers and leave them."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand

from terrafirma.docker.facts import ContainerReach, ContainerReachState
from terrafirma.docker.reach import Reach, judge
from terrafirma.host.operation import failure, operation
from terrafirma.paths import DOCKER_ENGINE

# Number of faults to print: after a flush of a table, every port has one.
SHOWN = 3

_NOT_ANEW = (
    "a restart of the engine did not restore that: remove what is in its way (rules of your own "
    "belong in the chain DOCKER-USER)"
)


@operation
def connect(
    networks: Sequence[str], *, serves: Mapping[int, str], guests: Mapping[int, str]
) -> Generator[StringCommand]:
    """
    Create bridge networks, and let their containers reach the internet and be reached.

    + networks: their names; an existing network is left as it is
    + serves: ports on which the host answers the internet, with the program that answers there
    + guests: ports on which the host answers its containers, likewise

    pyinfra's docker.network asks for each network on its own, and checks nothing but its existence.
    """

    def wrong() -> tuple[ContainerReachState, Reach]:
        state = host.get_fact(ContainerReach, names=networks)
        return state, judge(state["seen"], serves, guests)

    state, found = wrong()
    if found["settings"] or found["lost"] or found["blocked"]:
        # Ask twice: a container that starts or ends during the first answer looks like a fault.
        before, (state, found) = found, wrong()
        found["lost"] = [one for one in found["lost"] if one in before["lost"]]
    for words in found["notes"][:SHOWN]:
        host.log(f"A rule of your own, left alone: {words}")
    # pyinfra's plan does not show that an operation will fail, so a warning does.
    planned_failure = [] if host.state.is_executing else found["blocked"]
    for words in [*found["settings"], *found["lost"], *planned_failure][:SHOWN]:
        host.log_styled(f"To be repaired: {words}", fg="yellow")
    if found["settings"]:
        said_by = ", ".join(state["said_by"])
        if said_by:
            host.log_styled(f"net.ipv4.ip_forward = 0 is set in {said_by}", fg="yellow")
        settings = map(QuoteString, found["settings"])
        yield StringCommand("sysctl --quiet --write", *settings, "&&", DOCKER_ENGINE, "forward")
    if found["lost"]:
        yield StringCommand(DOCKER_ENGINE, "restart")
    for name in state["missing"]:
        yield StringCommand("docker network create", QuoteString(name))
    if found["settings"] or found["lost"]:
        _, found = wrong()
    left = [*found["blocked"], *found["lost"], *found["settings"]]
    if left:
        more = f"; and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        hint = f"; {_NOT_ANEW}" if found["lost"] else ""
        yield failure(f"containers are not connected: {'; '.join(left[:SHOWN])}{more}{hint}")
    elif not state["missing"]:
        host.noop(f"{', '.join(networks) or 'no network'}: present and connected")

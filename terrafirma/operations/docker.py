"""What leads to containers, and what images are built from."""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand

from terrafirma.facts.docker import ContainerReach, ContainerReachState
from terrafirma.facts.files import PathStates
from terrafirma.operations import failure, operation
from terrafirma.operations.files import source_files
from terrafirma.paths import DOCKER_ENGINE
from terrafirma.reach import Reach, judge

# Of what is wrong, so much is said: a flushed table is a fault of every port.
SHOWN = 3

_NOT_ANEW = (
    "the engine's start did not make that anew: take away what is in its way (rules of your own "
    "belong into the chain DOCKER-USER)"
)


@operation
def connect(
    networks: Sequence[str], *, serves: Mapping[int, str], guests: Mapping[int, str]
) -> Generator[StringCommand]:
    """
    Bridge networks that are there, and whose containers reach the world and are reached.

    + networks: their names; an existing one is left as it is
    + serves: ports on which the host itself answers the world, and who answers there
    + guests: ports on which it answers its containers, likewise

    pyinfra's docker.network asks for each network, and for nothing that leads there.
    """

    def wrong() -> tuple[ContainerReachState, Reach]:
        state = host.get_fact(ContainerReach, names=networks)
        return state, judge(state["seen"], serves, guests)

    state, found = wrong()
    if found["settings"] or found["lost"] or found["blocked"]:
        # A container that came or went between two of the questions is no fault.
        before, (state, found) = found, wrong()
        found["lost"] = [one for one in found["lost"] if one in before["lost"]]
    for words in found["notes"][:SHOWN]:
        host.log(f"A rule of your own, left alone: {words}")
    # A plan shows no failure to come.
    planned_failure = [] if host.state.is_executing else found["blocked"]
    for words in [*found["settings"], *found["lost"], *planned_failure][:SHOWN]:
        host.log_styled(f"To be put right: {words}", fg="yellow")
    if found["settings"]:
        said_by = ", ".join(state["said_by"])
        if said_by:
            host.log_styled(f"net.ipv4.ip_forward = 0 is what {said_by} says", fg="yellow")
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
        host.noop(f"{', '.join(networks) or 'no network'}: there, and connected")


@operation
def upload_source(directory: Path, *, dest: str) -> Generator[StringCommand]:
    """
    A copy of a local directory at `dest`, complete or not there at all.

    + directory: what to copy
    + dest: where to, named after the digest of the content: what exists there is right

    pyinfra's files.sync asks for each file, and leaves half a copy when it dies.
    """
    if dest in host.get_fact(PathStates, paths=[dest]):
        host.noop(f"{dest} is there")
        return
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for path in source_files(directory):
            tar.add(path, path.relative_to(directory), filter=_anonymous)
    yield StringCommand(
        "dest=", QuoteString(dest),
        # Root alone gets there; who runs in a container reads what is copied or mounted of it.
        '; umask 077; rm -rf "$dest.new"; mkdir -p "$dest.new" && umask 022 && base64 -d |',
        ' tar -xzf - -C "$dest.new" && mv "$dest.new" "$dest"',
        _stdin=base64.encodebytes(archive.getvalue()).decode(),
        _separator="",
    )  # fmt: skip


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member

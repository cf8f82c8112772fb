"""Docker networks and compose projects."""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Generator, Sequence
from pathlib import Path

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand
from pyinfra.facts.files import FileContents

from terrafirma.facts.docker import MissingNetworks, ProjectContainers
from terrafirma.facts.files import PathStates
from terrafirma.operations import operation
from terrafirma.operations.files import source_files


@operation
def networks(names: Sequence[str]) -> Generator[StringCommand]:
    """
    Bridge networks; an existing one is left as it is.

    pyinfra's docker.network asks for each of them.
    """
    missing = host.get_fact(MissingNetworks, names=names)
    for name in missing:
        yield StringCommand("docker network create", QuoteString(name))
    if not missing:
        host.noop(f"{', '.join(names) or 'no network'}: there")


@operation
def upload_source(directory: Path, *, dest: str) -> Generator[StringCommand]:
    """
    A copy of a local directory at `dest`, complete or not there at all.

    + directory: what to copy
    + dest: where to, ending in the digest of the content: what exists there is right, and its
      siblings with other digests are removed

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
        # Root alone builds from it.
        '; umask 077; rm -rf "${dest%-*}"-*; mkdir -p "$dest.new" && base64 -d |',
        ' tar -xzf - -C "$dest.new" && mv "$dest.new" "$dest"',
        _stdin=base64.encodebytes(archive.getvalue()).decode(),
        _separator="",
    )  # fmt: skip


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member


@operation
def compose_up(
    project: str,
    *,
    directory: str,
    release: str,
    replicas: int,
    service: str,
    secrets: Sequence[str],
    health_urls: Sequence[str],
    timeout: int,
) -> Generator[StringCommand]:
    """
    A compose project of which so many healthy containers of one release run, and no other.

    + project, directory: its name, and where its compose.yaml is
    + release: what its containers carry as label `terrafirma.release`
    + replicas, service: how many containers of which service
    + secrets: files that a container reads as it starts
    + health_urls: what must answer with success before the containers count as healthy; an image
      need not have a health check of its own
    + timeout: how long that may take, in seconds

    pyinfra's docker.compose runs `up` on each run. Images are built before anything is stopped, and
    what a container that does not become healthy has to say is shown.
    """
    containers = host.get_fact(ProjectContainers, project=project, secrets=secrets)
    # Written once the release answered: one that merely runs is no success next time, either.
    serving = f"{directory}/serving"
    served = host.get_fact(FileContents, path=serving) == [release]
    # Compose leaves these as they are: for it, nothing changed.
    spoilt = [one for one in containers if one["stale"] or one["health"] == "unhealthy"]
    right = [one for one in containers if (one["release"], one["state"]) == (release, "running")]
    complete = served and len(right) == len(containers) == replicas
    if complete and not spoilt:
        host.noop(f"{replicas} replicas of {project} run release {release}")
        return
    if complete and all(one["stale"] for one in spoilt):
        yield from _roll([one["name"] for one in spoilt], health_urls, timeout)
        return
    compose = f"docker compose --project-name {project} --progress plain"
    # Only these: the others go on serving.
    names = " ".join(one["name"] for one in spoilt)
    remove = f"docker rm --force {names} >&2;" if names else ""
    # Once for all replicas: they say the same.
    last_words = f"{{ {compose} logs --no-log-prefix --index 1 --tail 20 {service} >&2; exit 1; }}"
    yield StringCommand(
        "cd", QuoteString(directory), "&& rm -f serving &&",
        f"{{ {compose} build > build.log 2>&1 || {{ tail -n 20 build.log >&2; exit 1; }}; }} &&",
        f"{{ {remove} {compose} up --detach --remove-orphans --wait --wait-timeout {timeout}",
        f"|| {last_words}; }} &&",
        f"{_answers(health_urls, timeout)} || {last_words} &&",
        f"echo {release} > serving",
    )  # fmt: skip


@operation
def roll(
    project: str, *, secrets: Sequence[str], health_urls: Sequence[str], timeout: int
) -> Generator[StringCommand]:
    """
    The containers of a compose project that started before one of `secrets` changed, started anew.

    One after the other, each when the one before answers again: the others go on serving.
    """
    containers = host.get_fact(ProjectContainers, project=project, secrets=secrets)
    # In a dry run the secret is still the one that they know.
    stale = [one["name"] for one in containers if one["stale"] or not host.state.is_executing]
    yield from _roll(stale, health_urls, timeout)
    if not stale:
        host.noop(f"{project} knows its secrets")


def _roll(
    containers: Sequence[str], health_urls: Sequence[str], timeout: int
) -> Generator[StringCommand]:
    for name in containers:
        # Of those to come it is not asked: where the database moved, none of them can answer yet.
        its_own = 'case "$own" in *":${port%%/*}") ;; *) continue ;; esac'
        yield StringCommand(
            "docker restart --time 30", QuoteString(name), "> /dev/null &&",
            StringCommand("own=$(docker port ", QuoteString(name), ") &&", _separator=""),
            _answers(health_urls, timeout, its_own),
        )  # fmt: skip


def _answers(urls: Sequence[str], timeout: int, which: str = ":") -> str:
    """Shell words that succeed once all of `urls`, or those that `which` lets pass, answer well."""
    return (
        f"( for url in {' '.join(urls)}; do port=${{url##*:}}; {which}; "
        f"curl --silent --show-error --fail --output /dev/null --max-time 5 --retry {timeout} "
        f"--retry-delay 1 --retry-max-time {timeout} --retry-all-errors "
        '"$url" || { echo "$url does not answer" >&2; exit 1; }; done )'
    )

"""Packages of the distribution's archive."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from pyinfra import host
from pyinfra.api import FactBase, FunctionCommand, Host, QuoteString, State, StringCommand
from typing_extensions import override

from terrafirma.host.asking import ask
from terrafirma.host.operation import operation

if TYPE_CHECKING:
    from terrafirma.server import Server


class PackageState(TypedDict):
    version: str
    held: bool  # dpkg's mark: apt-get upgrade does not change the package


Installed = dict[str, PackageState]
"""By the name of the package."""


class InstalledPackages(FactBase[Installed]):
    """All packages that are installed."""

    default = dict

    @override
    def command(self) -> str:
        return "dpkg-query -Wf '${db:Status-Status} ${db:Status-Want} ${Package} ${Version}\\n'"

    @override
    def process(self, output: list[str]) -> Installed:
        found: Installed = {}
        for line in output:
            match line.split():
                case ["installed", want, name, version]:
                    found[name] = PackageState(version=version, held=want == "hold")
        return found


# The locks that apt and dpkg take, in the order in which an installation takes them.
APT_LOCKS = (
    "/var/lib/apt/lists/lock",
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/cache/apt/archives/lock",
)


class AptLockHolder(FactBase[str | None]):
    """The holder of one of apt's locks, like "unattended-upgr (pid 812)"; None if all are free."""

    @override
    def command(self) -> str:
        # The kernel lists lock holders by inode: neither fuser nor lsof need be installed.
        return (
            f"for lock in {' '.join(APT_LOCKS)}; do "
            'inode=$(stat -c %i "$lock" 2> /dev/null) || continue; '
            'pid=$(awk -v inode="$inode" \'{ n = split($6, part, ":"); '
            'if ($2 == "POSIX" && part[n] == inode) { print $5; exit } }\' /proc/locks); '
            'test -z "$pid" || { echo "$(cat "/proc/$pid/comm" 2> /dev/null) (pid $pid)"; exit; }; '
            "done"
        )

    @override
    def process(self, output: list[str]) -> str:
        return output[0].strip()


_APT = "DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -y -q -o Acquire::Retries=3"


@operation
def wait_for_apt() -> Generator[FunctionCommand]:
    """
    Wait, and say so, while another program holds apt's lock.

    A new server often upgrades itself in the background, and meanwhile an installation would fail
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
    change on each run. It neither waits for apt's lock nor finishes an interrupted installation.
    """
    known = ask(host, InstalledPackages)
    missing = [name for name in packages if name not in known]
    if not missing:
        host.noop(f"{', '.join(packages)}: installed")
        return
    yield _wait()
    install = StringCommand(
        _APT,
        "install --no-install-recommends --no-remove -o Dpkg::Options::=--force-confold",
        *map(QuoteString, missing),
    )
    # If the lists no longer fit the archive, refresh them and try again.
    yield StringCommand(
        _prepare(host), "&& {", install, "|| {", _APT, "update &&", install, "; }; }"
    )


def _prepare(host: Host) -> str:
    recent = f'-name "*_*" -mmin -{_server(host).apt.cache_hours * 60} -print -quit'
    return (
        'test -z "$(dpkg --audit)" || DEBIAN_FRONTEND=noninteractive '
        "dpkg --force-confdef --force-confold --configure -a < /dev/null && "
        # Refresh package lists that are too old.
        f'if test -z "$(find /var/lib/apt/lists -maxdepth 1 {recent})"; then {_APT} update; fi'
    )


def prepare(host: Host) -> Iterator[StringCommand | FunctionCommand]:
    """Wait for apt's lock, finish an interrupted installation, and refresh old package lists."""
    yield _wait()
    yield StringCommand(_prepare(host))


def installation(
    versions: Mapping[str, str], replacing: Sequence[str] = (), *, held: bool = False
) -> StringCommand:
    """
    The command that installs packages.

    + versions: by name; empty: the version that apt prefers
    + replacing: the only packages that may be removed; they are not purged
    + held: whether to change held packages, too
    """
    words = [f"{name}={version}" if version else name for name, version in versions.items()]
    words += [f"{name}-" for name in replacing]
    install = StringCommand(
        "install --no-install-recommends",
        *([] if replacing else ["--no-remove"]),
        *(["--allow-change-held-packages"] if held else []),
        "-o Dpkg::Options::=--force-confold",
        *map(QuoteString, words),
    )
    if not replacing:
        return StringCommand("{", _APT, install, "|| {", _APT, "update &&", _APT, install, "; }; }")
    return StringCommand(
        # With removals there is no second attempt, so refresh the lists first.
        _APT, "update &&", "removed=$(LC_ALL=C", _APT, "-s", install,
        "| sed -n 's/^Remv \\([^ :]*\\).*/\\1/p') &&",
        "for one in $removed; do case", QuoteString(f" {' '.join(replacing)} "),
        'in *" $one "*) ;;',
        '*) echo "$one would have to be removed as well: remove it first" >&2; exit 1 ;;',
        "esac; done &&", _APT, install,
    )  # fmt: skip


def holding(packages: Sequence[str]) -> StringCommand:
    """The command that holds packages, so that only an announced upgrade changes their versions."""
    return StringCommand("apt-mark hold", *map(QuoteString, packages), "> /dev/null")


def _wait() -> FunctionCommand:
    def wait(state: State, host: Host) -> bool:
        patience = _server(host).preflight.wait_seconds
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


def _server(host: Host) -> Server:
    from terrafirma.site import site  # noqa: PLC0415  # the site imports what is beside this

    return site(host.inventory)[host.name]

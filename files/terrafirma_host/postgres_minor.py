"""
Managed by Terrafirma. Installs a minor release of PostgreSQL in the window that your settings name.

    terrafirma postgres-minor SECONDS [VERSION]

PostgreSQL's packages are held, so that nothing else upgrades them. This program upgrades them,
within VERSION if it is given ("17.5"), makes a backup first if backups are set up, and restarts the
server once. It begins as soon as nothing else goes on and all is as promised, and gives up after
SECONDS.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from terrafirma_host.notes import forget, moment, note
from terrafirma_host.postgres import Cluster, as_postgres
from terrafirma_host.promises import broken, clusters
from terrafirma_host.shell import BROKEN, Failed, run, say, succeeds
from terrafirma_host.standstill import once_well

BACKUP = Path("/usr/local/lib/terrafirma/backup")
BACKUP_CONFIG = Path("/etc/borgmatic/config.yaml")
NOTE = "postgres"

APT = (
    "apt-get", "-y", "-q", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=600",
    "-o", "Dpkg::Options::=--force-confold",
)  # fmt: skip
# A source that cannot be fetched is a failure: its old list would hide new versions.
STRICT = ("-o", "APT::Update::Error-Mode=any")
QUIET = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
# Seconds for packages and a restart, for a backup, and until all must be as promised.
LONG = 1800
BACKED_UP = 6 * 3600
PATIENCE = 120
# Seconds to wait for the lock of the package lists, and between two tries.
WAIT = 600
PAUSE = 5


def main(words: Sequence[str]) -> None:
    if len(words) not in (1, 2) or not words[0].isdigit():
        sys.exit(__doc__)
    version = words[1] if len(words) == 2 else ""
    try:
        window(int(words[0]), version)
    except BROKEN as error:
        note(NOTE, f"PostgreSQL was not upgraded in its window of {moment()}: {error}", alarm=True)
        raise


def window(seconds: int, wanted: str) -> None:
    until = time.monotonic() + seconds
    ours = clusters()
    if not ours:
        say("Terrafirma runs no PostgreSQL here")
        return
    version = ours[-1]
    refresh()
    newer = offered(version, wanted)
    if not newer:
        say(f"there is no newer release of PostgreSQL {version}")
        forget(NOTE)
        return
    back_up()
    left = until - time.monotonic()
    if left <= 0:
        raise Failed(
            "nothing was changed: the window closed before the backup had ended; let "
            "updates_postgres begin earlier, when a backup is quick, or run commands/upgrade.py"
        )
    with once_well(broken, "the window updates_postgres", "upgrade of PostgreSQL", left, apt=False):
        install(version, newer)


def refresh() -> None:
    """Refresh the package lists; DPkg::Lock::Timeout does not cover their lock."""
    until = time.monotonic() + WAIT
    while True:
        try:
            run(*APT, *STRICT, "update", env={**QUIET, "LC_ALL": "C.UTF-8"}, timeout=LONG)
            return
        except Failed as error:
            if "Could not get lock" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(PAUSE)


def offered(version: str, wanted: str) -> dict[str, tuple[str, str]]:
    """The held packages with a newer version: the installed version, and the newest that fits."""
    held = run("apt-mark", "showhold").split()
    names = [name for name in held if re.fullmatch(rf"postgresql(-\w+)?-{version}(-.+)?", name)]
    if not names:
        raise Failed(f"no package of PostgreSQL {version} is held: run deploy.py")
    found = {}
    for name in names:
        now = run("dpkg-query", "-Wf", "${Version}", name).strip()
        # Extensions have versions of their own.
        prefix = wanted if name in (f"postgresql-{version}", f"postgresql-client-{version}") else ""
        newest = now
        for line in run("apt-cache", "madison", name, env={"LC_ALL": "C.UTF-8"}).splitlines():
            _, one, where = [part.strip() for part in line.split("|")]
            # Skip sources, and PGDG's versions for a package of the distribution, or vice versa.
            if where.endswith("Sources") or ("pgdg" in one) != ("pgdg" in now):
                continue
            if fits(one, prefix) and succeeds("dpkg", "--compare-versions", one, "gt", newest):
                newest = one
        if newest != now:
            found[name] = (now, newest)
    return found


def fits(version: str, wanted: str) -> bool:
    """Whether a package's version is of a release: "17.5-1.pgdg13+1" is of 17 and of 17.5."""
    upstream = re.split(r"[-+~]", version.rpartition(":")[2])[0]
    return not wanted or f"{upstream}.".startswith(f"{wanted}.")


def back_up() -> None:
    if BACKUP.exists() and BACKUP_CONFIG.exists():
        say("making a backup first")
        run(BACKUP, "create", timeout=BACKED_UP)


def install(version: str, packages: dict[str, tuple[str, str]]) -> None:
    server, unit = f"postgresql-{version}", f"postgresql@{version}-main.service"
    now, then = packages.get(server, next(iter(packages.values())))
    say(f"PostgreSQL {version}: {now} is replaced by {then}")
    options = ("--only-upgrade", "--no-remove", "--no-install-recommends")
    names = [f"{name}={new}" for name, (_, new) in packages.items()]
    try:
        run(*APT, "install", *options, "--allow-change-held-packages", *names, env=QUIET,
            timeout=LONG)  # fmt: skip
    except Failed:
        # An interrupted installation may have stopped the server.
        run("systemctl", "start", unit, check=False, timeout=LONG)
        raise
    finally:
        run("apt-mark", "hold", *packages, check=False)
    # The packages may have restarted the server themselves.
    if is_old(version):
        # A server that does not start is reported as broken below.
        run("systemctl", "restart", unit, check=False, timeout=LONG)
    began = time.monotonic()
    while (wrong := broken()) and time.monotonic() - began < PATIENCE:
        time.sleep(2)
    what = f"PostgreSQL was upgraded from {now} to {then} at {moment()}"
    if wrong:
        note(NOTE, f"{what}, and since then: {'; '.join(wrong)}", alarm=True, broken=True)
        say("; ".join(wrong))
    else:
        note(NOTE, f"{what}: all is as promised")
        say(f"{what}: all is as promised")


def is_old(version: str) -> bool:
    """Whether the server still runs a replaced program, or does not run."""
    pid = Cluster(version).data / "postmaster.pid"
    process = (as_postgres("cat", pid, check=False).splitlines() or ["0"])[0]
    try:
        return Path(f"/proc/{process}/exe").readlink().name.endswith("(deleted)")
    except OSError:
        # It does not run: report it as old, so that it is started.
        return True

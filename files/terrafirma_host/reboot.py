"""
Managed by Terrafirma. The reboot that is due, in the window that the settings name for it.

    terrafirma reboot window SECONDS   reboot if it is due, as soon as nothing else goes on and all
                                       is as promised; after so many seconds it is left
    terrafirma reboot report           after a boot: note whether all is as promised again
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from terrafirma_host.notes import forget, moment, note, read
from terrafirma_host.promises import broken
from terrafirma_host.shell import Failed, run, say, succeeds
from terrafirma_host.standstill import once_well

REQUIRED = Path("/run/reboot-required")
BOOT = Path("/boot")
PROC = Path("/proc")
TIMER = Path("/etc/systemd/system/terrafirma-reboot.timer")
NOTE = "reboot"

# Seconds that a boot has until all is as promised, and between two questions.
PATIENCE = 600
PAUSE = 5
# Seconds that a host may take to go down.
DOWN = 600


def main(words: Sequence[str]) -> None:
    match list(words):
        case ["window", seconds] if seconds.isdigit():
            window(int(seconds))
        case ["report"]:
            report()
        case _:
            sys.exit(__doc__)


# --- whether it is due ----------------------------------------------------------------------------


def due() -> list[str]:
    """Why a reboot is due; empty: it is not."""
    return [why for why in (required(), newer_kernel()) if why]


def required() -> str:
    """What the packages say themselves."""
    if not REQUIRED.exists():
        return ""
    names: list[str] = []
    with suppress(OSError):
        names = sorted(set(REQUIRED.with_name("reboot-required.pkgs").read_text().split()))
    return f"asked for by {', '.join(names)}" if names else "a package asks for it"


def newer_kernel() -> str:
    """Whether another kernel than the newest of its kind runs; of a container's none is known."""
    running = os.uname().release
    kind = _kernel(running)
    if not kind or succeeds("systemd-detect-virt", "--container", "--quiet"):
        return ""
    names = (path.name.removeprefix("vmlinuz-") for path in BOOT.glob("vmlinuz-*"))
    alike = [name for name in names if (one := _kernel(name)) and one[1] == kind[1]]
    newest = max(alike, key=_numbers, default=running)
    if _numbers(newest) > _numbers(running):
        return f"kernel {newest} is installed, {running} runs"
    # A fix may keep the name; then the build says which it is.
    build = re.search(r"\bDebian (\S+) \(", os.uname().version)
    query = ("dpkg-query", "-Wf", "${Version}", f"linux-image-{running}")
    there = run(*query, check=False).strip() if build else ""
    if build and there and there != build[1]:
        return f"kernel {there} is installed, {build[1]} runs"
    return ""


def _kernel(release: str) -> re.Match[str] | None:
    """Version and kind: "6.12.43+deb13" and "-cloud-amd64", "6.8.0-45" and "-generic"."""
    return re.fullmatch(r"[\d.]+(?:-\d+)?(?:\+[\w.+~]+)?(-[a-z][\w-]*)", release)


def _numbers(release: str) -> list[int]:
    kind = _kernel(release)
    version = release.removesuffix(kind[1]) if kind else release
    return [int(one) for one in re.findall(r"\d+", version)]


# --- the window -----------------------------------------------------------------------------------


def window(seconds: int) -> None:
    why = due()
    if not why:
        say("no reboot is due")
        return
    try:
        with once_well(broken, "the window updates_reboot", "reboot", seconds):
            go_down(why)
    except Failed as error:
        words = f"the reboot that is due was not made in its window of {moment()}: {error}"
        note(NOTE, words, alarm=True, refused=True)
        raise


def go_down(why: Sequence[str]) -> None:
    """Raises Failed where the host does not."""
    at = moment()
    say(f"rebooting: {'; '.join(why)}")
    words = f"rebooted at {at} ({'; '.join(why)}), and nothing was said since"
    note(NOTE, words, alarm=True, left=boot(), began=at, why="; ".join(why))
    run("systemctl", "reboot", timeout=60)
    # Alone until the end, which comes as a signal.
    time.sleep(DOWN)
    raise Failed(f"the host did not go down within {DOWN} s")


def boot() -> str:
    """Which boot this is. A container has the kernel's name of its host's boot, at each start."""
    kernel = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    started = (PROC / "1/stat").read_text().rpartition(")")[2].split()[19]
    return f"{kernel} {started}"


# --- after it -------------------------------------------------------------------------------------


def report() -> None:
    """Note how the boot ended that the window began; of others nothing is noted."""
    known = read(NOTE)
    if known.get("refused"):
        # It was made by somebody else, where it still was due.
        if not due():
            forget(NOTE)
        return
    if not known.get("left") or known["left"] == boot():
        return
    began = time.monotonic()
    while wrong := broken():
        if time.monotonic() - began > PATIENCE:
            break
        time.sleep(PAUSE)
    what = f"rebooted at {known.get('began')} ({known.get('why')})"
    took = max(0, time.time() - float(known.get("at", 0)))
    if wrong:
        words = f"{what}, and {PATIENCE // 60} minutes after the boot: {'; '.join(wrong)}"
        note(NOTE, words, alarm=True, broken=True)
        say(words)
    else:
        note(NOTE, f"{what}: all was as promised again after {took:.0f} s")
        say(f"{what}: all is as promised")

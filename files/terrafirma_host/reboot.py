"""
Managed by Terrafirma. Reboots the host in the window that your settings name, if a reboot is due.

    terrafirma reboot window SECONDS   reboot if it is due, as soon as nothing else goes on and all
                                       is as promised; give up after SECONDS
    terrafirma reboot report           after a boot: note whether all is as promised again
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from terrafirma_host.notes import forget, moment, note, read
from terrafirma_host.shell import Failed, run, say, succeeds
from terrafirma_host.standstill import once_well

REQUIRED = Path("/run/reboot-required")
BOOT = Path("/boot")
PROC = Path("/proc")
TIMER = Path("/etc/systemd/system/terrafirma-reboot.timer")
NOTE = "reboot"

# Seconds after a boot until all must be as promised, and between two checks.
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
    """The reasons for a reboot; empty if none is due."""
    return [why for why in (required(), newer_kernel()) if why]


def required() -> str:
    """Which packages ask for a reboot; empty: none does."""
    if not REQUIRED.exists():
        return ""
    names: list[str] = []
    with suppress(OSError):
        names = sorted(set(REQUIRED.with_name("reboot-required.pkgs").read_text().split()))
    return f"asked for by {', '.join(names)}" if names else "a package asks for it"


def newer_kernel() -> str:
    """
    Which kernel waits for a reboot: one newer than the running one, of the same kind.

    A container runs the kernel of its host, so nothing is known there.
    """
    running = os.uname().release
    kind = _kernel(running)
    if not kind or succeeds("systemd-detect-virt", "--container", "--quiet"):
        return ""
    names = (path.name.removeprefix("vmlinuz-") for path in BOOT.glob("vmlinuz-*"))
    alike = [name for name in names if (one := _kernel(name)) and one[1] == kind[1]]
    newest = max(alike, key=_numbers, default=running)
    if _numbers(newest) > _numbers(running):
        return f"kernel {newest} is installed, {running} runs"
    # A fix may keep the kernel's name; then the build tells the two apart.
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


def broken() -> list[str]:
    """The broken promises; their checks are loaded only here, for each run asks what is due."""
    found: list[str] = import_module("terrafirma_host.promises").broken()
    return found


# --- the window -----------------------------------------------------------------------------------


def window(seconds: int) -> None:
    why = due()
    if not why:
        say("no reboot is due")
        forget_unchanged()
        return
    if not helps(why):
        say(f"a reboot has changed nothing about it: {'; '.join(why)}")
        return
    try:
        with once_well(broken, "the window updates_reboot", "reboot", seconds):
            go_down(why)
    except Failed as error:
        words = f"the due reboot did not happen in its window of {moment()}: {error}"
        note(NOTE, words, alarm=True, refused=True)
        raise


def helps(why: Sequence[str]) -> bool:
    """Whether one of the reasons is another than a reboot of the window has left as it was."""
    return bool(set(why) - set(read(NOTE).get("unchanged", ())))


def forget_unchanged() -> None:
    known = read(NOTE)
    if known.get("unchanged") and not known.get("broken"):
        forget(NOTE)


def go_down(why: Sequence[str]) -> None:
    """Reboot; raises Failed if the host does not go down."""
    at = moment()
    say(f"rebooting: {'; '.join(why)}")
    words = f"rebooted at {at} ({'; '.join(why)}), and has reported nothing since"
    note(NOTE, words, alarm=True, left=boot(), began=at, why="; ".join(why))
    run("systemctl", "reboot", timeout=60)
    # Hold the locks until the shutdown ends this process.
    time.sleep(DOWN)
    raise Failed(f"the host did not go down within {DOWN} s")


def boot() -> str:
    """
    An identifier of this boot.

    The kernel's own identifier is not enough: a container shows that of its host at every start.
    """
    kernel = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    started = (PROC / "1/stat").read_text().rpartition(")")[2].split()[19]
    return f"{kernel} {started}"


# --- after it -------------------------------------------------------------------------------------


def report() -> None:
    """Note how a reboot of the window ended; other reboots are not noted."""
    known = read(NOTE)
    if known.get("refused"):
        # A reboot that is no longer due was done outside of the window.
        if not due():
            forget(NOTE)
        return
    if not due():
        forget_unchanged()
    if not known.get("left") or known["left"] == boot():
        return
    # The reasons, joined in go_down, that are still there.
    unchanged = [one for one in due() if one in str(known.get("why")).split("; ")]
    began = time.monotonic()
    while wrong := broken():
        if time.monotonic() - began > PATIENCE:
            break
        time.sleep(PAUSE)
    what = f"rebooted at {known.get('began')} ({known.get('why')})"
    if unchanged:
        what += (
            f", which changed nothing: {'; '.join(unchanged)}; no window reboots again for this "
            "reason"
        )
    took = max(0, time.time() - float(known.get("at", 0)))
    if wrong:
        words = f"{what}, and {PATIENCE // 60} minutes after the boot: {'; '.join(wrong)}"
        note(NOTE, words, alarm=True, broken=True, unchanged=unchanged)
        say(words)
    else:
        words = f"{what}: all was as promised again after {took:.0f} s"
        note(NOTE, words, alarm=bool(unchanged), unchanged=unchanged)
        say(f"{what}: all is as promised")

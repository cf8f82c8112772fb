"""
A lock for one run of end-to-end tests at a time on this machine: the targets of two runs would have
the same names and ports. Run as a program, it exits with code 4 if a run holds the lock.
"""

import fcntl
import os
import sys
from pathlib import Path

LOCK = Path("/tmp/terrafirma-e2e.lock")
BUSY = "end-to-end tests are running on this machine already"


def hold() -> int | None:
    """Take the lock until this process ends, and return its descriptor; None if a run holds it."""
    if not LOCK.exists():
        LOCK.touch()
    # Open it read-only: another user may own the file.
    lock = os.open(LOCK, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


if __name__ == "__main__" and hold() is None:
    print(BUSY, file=sys.stderr)
    sys.exit(4)

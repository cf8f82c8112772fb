"""
The lock that one run of end-to-end tests on this machine holds: the targets of two would have the
same names and ports. As a program it ends with code 4 if a run holds the lock.
"""

import fcntl
import os
import sys
from pathlib import Path

LOCK = Path("/tmp/terrafirma-e2e.lock")
BUSY = "end-to-end tests are running on this machine already"


def hold() -> int | None:
    """The lock's descriptor, held until the process ends, however it does; None if a run has it."""
    if not LOCK.exists():
        LOCK.touch()
    # Whoever made the file may be another user: it is only read.
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

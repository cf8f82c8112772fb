"""Ends with code 4 if end-to-end tests run on this machine already: see tests/conftest.py."""

import fcntl
import os
import sys
from pathlib import Path

LOCK = Path("/tmp/terrafirma-e2e.lock")

if LOCK.exists():
    lock = os.open(LOCK, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("end-to-end tests are running on this machine already", file=sys.stderr)
        sys.exit(4)

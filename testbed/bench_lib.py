"""Targets and commands on them, for all parts of `make bench`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEY, KNOWN_HOSTS = ".target/id_ed25519", ".target/known_hosts"


def run(*command: str, stdin: bytes = b"") -> str:
    result = subprocess.run(
        command, cwd=ROOT, input=stdin, capture_output=True, check=False, timeout=1800
    )
    if result.returncode != 0:
        sys.exit(f"bench: {' '.join(command)[:200]}\n{result.stderr.decode()[-2000:]}")
    return (result.stdout + result.stderr).decode()


def timed(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def ssh(port: int, command: str, stdin: bytes = b"") -> str:
    return run(
        "ssh", "-F", "/dev/null", "-i", KEY, "-o", f"UserKnownHostsFile={KNOWN_HOSTS}",
        "-o", "BatchMode=yes", "-p", str(port), "root@127.0.0.1", command, stdin=stdin,
    )  # fmt: skip


def pyinfra(port: int, *arguments: str) -> str:
    return run(
        sys.executable, "-m", "pyinfra", "--user", "root", "--key", KEY, "--port", str(port),
        "--data", f"ssh_known_hosts_file={KNOWN_HOSTS}", "127.0.0.1", *arguments,
    )  # fmt: skip


@contextmanager
def target(name: str, ssh_port: int, https_port: int | None = None) -> Iterator[None]:
    """A bare server, which exists only inside the block."""
    https = [] if https_port is None else [str(https_port)]
    run("testbed/untarget.sh", name)
    try:
        run("testbed/target.sh", name, str(ssh_port), "debian13", *https)
        yield
    finally:
        run("testbed/untarget.sh", name)

"""Uploads of a source of 20,000 files: seconds, bytes and memory of a run beside rsync."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from testbed.bench_lib import KEY, KNOWN_HOSTS, ROOT, run, ssh, target

NAME, PORT = "tf-bench-uploads", 2425
DIRECTORIES, EACH, BYTES = 1000, 20, 15_000
IGNORED = 400  # files of 1 MB, in a directory that .dockerignore names
ONE = "src/pkg07/mod07/file07.py"
INSTALL = "apt-get update -q && apt-get install -qy --no-install-recommends python3 rsync"


class Sent(NamedTuple):
    seconds: float
    megabytes: float  # that have reached the target
    memory: float  # MB, of the process on this machine


def make(source: Path) -> None:
    """A source of about 300 MB, which compresses as code does."""
    chance = random.Random(1)  # noqa: S311  # no secret
    words = [
        "".join(chance.choices("abcdefghijklmnopqrstuvwxyz_", k=n % 9 + 2)) for n in range(4000)
    ]
    for number in range(DIRECTORIES):
        directory = source / f"src/pkg{number // 50:02}/mod{number % 50:02}"
        directory.mkdir(parents=True)
        for file in range(EACH):
            text = " ".join(chance.choices(words, k=BYTES // 6))
            (directory / f"file{file:02}.py").write_text(text[:BYTES])
    (source / "ignored").mkdir()
    for number in range(IGNORED):
        with (source / f"ignored/{number}").open("wb") as empty:
            empty.truncate(2**20)
    (source / ".dockerignore").write_text("ignored\n")
    (source / "Dockerfile").write_text("FROM scratch\nCOPY . .\n")


def measured(*command: str, env: dict[str, str]) -> Sent:
    before, started = _received(), time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **env}, stdout=said, stderr=said
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            said.seek(0)
            sys.exit(f"bench: {command[0]}: {said.read().decode(errors='replace')[-2000:]}")
    return Sent(seconds, (_received() - before) / 2**20, used.ru_maxrss / 1024)


def _received() -> int:
    return int(ssh(PORT, "cat /sys/class/net/eth0/statistics/rx_bytes"))


def ours(source: Path, cache: str) -> Sent:
    apps = json.dumps({"up": {"source": str(source), "domain": "up.terrafirma.test"}})
    return measured(
        sys.executable, "-m", "pyinfra", "-y", "--user", "root", "--key", KEY, "--port", str(PORT),
        "--data", f"ssh_known_hosts_file={KNOWN_HOSTS}", "--data", f"apps={apps}",
        "127.0.0.1", "testbed/upload.py", env={"XDG_CACHE_HOME": cache},
    )  # fmt: skip


def rsync(source: Path) -> Sent:
    shell = f"ssh -F /dev/null -i {KEY} -o UserKnownHostsFile={KNOWN_HOSTS} -p {PORT}"
    return measured(
        "rsync", "-az", "--delete", "--exclude", "/ignored", f"{source}/",
        "root@127.0.0.1:/opt/rsync/", env={"RSYNC_RSH": shell},
    )  # fmt: skip


def bench() -> None:
    if not run("sh", "-c", "command -v rsync || true").strip():
        sys.exit("bench: uploads: there is no rsync on this machine to compare with")
    with target(NAME, PORT), tempfile.TemporaryDirectory() as directory:
        ssh(PORT, INSTALL)
        source, cache = Path(directory) / "source", str(Path(directory) / "cache")
        make(source)
        changes: dict[str, Callable[[], object]] = {
            "the first upload": lambda: None,
            "nothing changed": lambda: None,
            "one file changed": lambda: (source / ONE).write_text("changed\n"),
            "an ignored file changed": lambda: (source / "ignored/0").write_text("changed\n"),
        }
        time.sleep(4)  # until the files count as old
        for what, change in changes.items():
            change()
            base = rsync(source)
            report(f"{what}, rsync", base, base)
            report(f"{what}, a run", ours(source, cache), base)


def report(what: str, sent: Sent, base: Sent) -> None:
    print(
        f"{what:38} {sent.seconds:6.1f} s  {sent.seconds / base.seconds:.1f} of rsync"
        f"   ({sent.megabytes:.1f} MB; memory {sent.memory:.0f} MB)",
        flush=True,
    )

"""
Managed by Terrafirma. Whether PostgreSQL starts with the file NEW in the place of PATH.

    terrafirma postgres-check VERSION NEW PATH

PostgreSQL's parser accepts much with which it cannot start. So a server without data, made for the
question, starts with the whole configuration, for nobody: it listens nowhere, archives nothing, and
is gone as soon as it is up. The live server holds its memory meanwhile. What is only short because
of that is no reason to refuse: the memory is mapped, not used, and huge pages are left to the live
server.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from terrafirma_host.postgres import ETC, LIB
from terrafirma_host.shell import Failed, run

PROC = Path("/proc")
PAGES = Path("/sys/kernel/mm/hugepages")
PATIENCE = 60  # seconds; one that is neither up nor down by then is not refused
SSL_FILES = (
    *("ssl_cert_file", "ssl_key_file", "ssl_ca_file", "ssl_crl_file", "ssl_crl_dir"),
    "ssl_dh_params_file",
)


def said(*command: str | Path) -> str:
    """What a command printed; nothing if it failed."""
    return run(*command, check=False).strip()


def read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def configuration(scratch: Path, new: Path, path: Path) -> Path:
    """A copy of all configuration, with the new file in it: includes are relative to their file."""
    copy = scratch / "etc"
    # What postgres may not read it may not include either: it says so then.
    with suppress(shutil.Error):
        shutil.copytree(ETC, copy, ignore_dangling_symlinks=True)
    file = copy / path.relative_to(ETC)
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(new, file)
    return copy


def by_hand(data: Path, new: str) -> str:
    """What ALTER SYSTEM set, without what the run undoes: the settings that our file has."""
    ours = {line.split("=")[0].strip().lower() for line in new.splitlines()}
    lines = read(data / "postgresql.auto.conf").splitlines()
    return "".join(
        f"{line}\n" for line in lines if line.split("=")[0].strip(' "').lower() not in ours
    )


def segment(programs: Path, data: Path) -> int:
    """Megabytes of a segment of the WAL, on which the bounds of some settings depend."""
    found = re.search(r"WAL segment:\s+(\d+)", said(programs / "pg_controldata", "-D", data))
    return int(found[1]) // 1024**2 if found else 16


def memory() -> Iterator[str]:
    """Overrides for what there may be too little of only while the live server runs."""
    # Really taken from the start, unlike the buffers.
    yield "min_dynamic_shared_memory=0"
    # By default the kernel judges each mapping by itself: ours fits if that of a restart does.
    # Where it adds them up, the live server's is in the sum; where it refuses none, what describes
    # the buffers, a hundredth of them, would really be taken.
    if read(PROC / "sys/vm/overcommit_memory").strip() != "0":
        yield "shared_buffers=16MB"
    pages = (read(file).strip() for file in PAGES.glob("*/nr_*hugepages"))
    if any(number not in ("", "0") for number in pages):
        yield "huge_pages=off"


def settings(programs: Path, scratch: Path, config: Path, data: Path) -> list[str]:
    ours = scratch / "data"
    words = [
        f"config_file={config}",
        f"data_directory={ours}",
        f"hba_file={ours}/pg_hba.conf",
        f"ident_file={ours}/pg_ident.conf",
        *("listen_addresses=", f"unix_socket_directories={scratch}", "external_pid_file="),
        *("archive_command=", "archive_library="),
        *("logging_collector=off", "log_destination=stderr", "log_line_prefix="),
        *("log_min_messages=warning", "log_error_verbosity=default", "lc_messages=C"),
        *memory(),
    ]
    words = [part for word in words for part in ("-c", word)]
    if said(programs / "postgres", *words, "-C", "ssl") == "on":
        # Relative to the data directory, where ours has none.
        for name in SSL_FILES:
            value = said(programs / "postgres", *words, "-C", name)
            if value and not value.startswith("/"):
                words += ["-c", f"{name}={data / value}"]
    return words


def up(data: Path) -> bool:
    return read(data / "postmaster.pid").splitlines()[7:8] in (["ready   "], ["ready"])


def start(command: list[str | Path], scratch: Path) -> str:
    """Start it and stop it; what it said if it ended by itself, for a reason that it gave."""
    log = scratch / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            # Whatever becomes of us, it does not stay.
            ["setpriv", "--pdeathsig", "QUIT", *command],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            until = time.monotonic() + PATIENCE
            while server.poll() is None and not up(scratch / "data") and time.monotonic() < until:
                time.sleep(0.02)
            ended = server.poll()
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGQUIT)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    return reason(read(log)) if ended else ""


def reason(log: str) -> str:
    """PostgreSQL's own words, in one line."""
    parts = [line.partition(":") for line in log.splitlines()]
    lines = [(kind.strip(), words.strip()) for kind, _, words in parts]
    fatal = [number for number, (kind, _) in enumerate(lines) if kind in ("FATAL", "PANIC")]
    if not fatal:
        return ""
    first = fatal[0]
    errors = [words for kind, words in lines[:first] if kind == "LOG"]
    # What they are, it has said before.
    if "contains errors" in lines[first][1] and errors:
        return "; ".join(errors)
    more = [words for kind, words in lines[first + 1 :] if kind in ("DETAIL", "HINT")]
    return ": ".join([lines[first][1], " ".join(more)]) if more else lines[first][1]


def check(version: str, new: Path, path: Path) -> None:
    programs = LIB / version / "bin"
    found = said("pg_conftool", "-s", version, "main", "show", "data_directory")
    data = Path(found or f"/var/lib/postgresql/{version}/main")
    # If memory runs out after all, the kernel ends us, and nobody else.
    with suppress(OSError):
        (PROC / "self/oom_score_adj").write_text("1000")
    with tempfile.TemporaryDirectory(prefix="terrafirma-", ignore_cleanup_errors=True) as place:
        scratch = Path(place)
        copy = configuration(scratch, new, path)
        try:
            run(
                *(programs / "initdb", "-D", scratch / "data", "--auth", "reject", "--no-sync"),
                *("--locale", "C", "--encoding", "UTF8"),
                *("--wal-segsize", str(segment(programs, data))),
            )
        except Failed as error:
            raise Failed(f"no server could be made to try it with: {error}") from None
        auto = scratch / "data/postgresql.auto.conf"
        auto.write_text(by_hand(data, read(new)))
        config = copy / version / "main/postgresql.conf"
        command: list[str | Path] = [programs / "postgres"]
        command += settings(programs, scratch, config, data)
        why = start(command, scratch)
        if why:
            why = why.replace(str(copy), str(ETC))
            raise Failed(f"postgres_settings: PostgreSQL would not start: {why}")


def main(words: Sequence[str]) -> None:
    if len(words) != 3:
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    version, new, path = words
    check(version, Path(new), Path(path))

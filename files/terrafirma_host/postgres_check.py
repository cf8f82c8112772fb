"""
Managed by Terrafirma. Whether PostgreSQL starts with the file NEW in the place of PATH.

    terrafirma postgres-check VERSION NEW PATH

PostgreSQL's parser accepts many settings with which the server cannot start. So the check starts a
scratch server without data, with the whole configuration. It listens nowhere, archives nothing, and
stops as soon as it is up. The live server keeps its memory meanwhile, and memory that is short only
for that reason must not fail the check: the scratch server maps its memory without using it, and
leaves huge pages to the live server.
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
PATIENCE = 60  # seconds; a server that is neither up nor down by then is accepted
SSL_FILES = (
    *("ssl_cert_file", "ssl_key_file", "ssl_ca_file", "ssl_crl_file", "ssl_crl_dir"),
    "ssl_dh_params_file",
)


def said(*command: str | Path) -> str:
    """The output of a command, which may fail."""
    return run(*command, check=False).strip()


def read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def configuration(scratch: Path, new: Path, path: Path) -> Path:
    """A copy of all configuration with the new file in it: includes may be relative paths."""
    copy = scratch / "etc"
    # A file that postgres cannot read stays out of the copy; an include of it is an error then.
    with suppress(shutil.Error):
        shutil.copytree(ETC, copy, ignore_dangling_symlinks=True)
    file = copy / path.relative_to(ETC)
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(new, file)
    return copy


def by_hand(data: Path, new: str) -> str:
    """The lines of ALTER SYSTEM, without settings that our file has: the run resets these."""
    ours = {line.split("=")[0].strip().lower() for line in new.splitlines()}
    lines = read(data / "postgresql.auto.conf").splitlines()
    return "".join(
        f"{line}\n" for line in lines if line.split("=")[0].strip(' "').lower() not in ours
    )


def segment(programs: Path, data: Path) -> int:
    """The size of a WAL segment in megabytes: the bounds of some settings depend on it."""
    found = re.search(r"WAL segment:\s+(\d+)", said(programs / "pg_controldata", "-D", data))
    return int(found[1]) // 1024**2 if found else 16


def memory() -> Iterator[str]:
    """Overrides for memory that may be short only because the live server runs, too."""
    # The server takes this memory at its start, unlike the buffers.
    yield "min_dynamic_shared_memory=0"
    # By default the kernel judges each mapping by itself: ours fits if that of a restart does.
    # In other modes the buffers do harm: where the kernel adds mappings up, the live server's are
    # in the sum; where it refuses none, the headers of the buffers, a hundredth, take real memory.
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
        # Relative paths are below the data directory, and the scratch server's has no such files.
        for name in SSL_FILES:
            value = said(programs / "postgres", *words, "-C", name)
            if value and not value.startswith("/"):
                words += ["-c", f"{name}={data / value}"]
    return words


def up(data: Path) -> bool:
    return read(data / "postmaster.pid").splitlines()[7:8] in (["ready   "], ["ready"])


def start(command: list[str | Path], scratch: Path) -> str:
    """Start a server and stop it. Returns its reason if it ended by itself and gave one."""
    log = scratch / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            # The server ends even when this process is killed.
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
    """The reason in PostgreSQL's log, in one line."""
    parts = [line.partition(":") for line in log.splitlines()]
    lines = [(kind.strip(), words.strip()) for kind, _, words in parts]
    fatal = [number for number, (kind, _) in enumerate(lines) if kind in ("FATAL", "PANIC")]
    if not fatal:
        return ""
    first = fatal[0]
    errors = [words for kind, words in lines[:first] if kind == "LOG"]
    # The lines before name the errors.
    if "contains errors" in lines[first][1] and errors:
        return "; ".join(errors)
    more = [words for kind, words in lines[first + 1 :] if kind in ("DETAIL", "HINT")]
    return ": ".join([lines[first][1], " ".join(more)]) if more else lines[first][1]


def check(version: str, new: Path, path: Path) -> None:
    programs = LIB / version / "bin"
    found = said("pg_conftool", "-s", version, "main", "show", "data_directory")
    data = Path(found or f"/var/lib/postgresql/{version}/main")
    # If memory runs out after all, the kernel kills this process before any other.
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
            raise Failed(f"no scratch server to check with could be made: {error}") from None
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

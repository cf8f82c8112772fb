"""
PostgreSQL's settings for the hardware it runs on.

The rules come from PostgreSQL's documentation (Resource Consumption, WAL Configuration, Automatic
Vacuuming) and from pgtune, mostly its profile "web"; from 8 GB on the WAL of its "oltp". All
functions here are pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from terrafirma.host.facts import HardwareState

MB = 1024  # kB


@dataclass(frozen=True)
class Hardware:
    """The share of a host's hardware that PostgreSQL may use."""

    memory: int
    """PostgreSQL's share, in kB."""
    cores: int
    ssd: bool
    """False: a rotating disk."""


def hardware(known: HardwareState | None, percent: int, disk: str) -> Hardware:
    """
    PostgreSQL's share of a host; `disk` is "ssd", "hdd" or "" for what the host reports.

    The memory is rounded down to 64 MB, so that a new kernel that reserves a little more causes no
    restart. A host whose hardware is unknown counts as one with 1 GB.
    """
    known = known or HardwareState(memory=1024 * MB, cores=1, ssd=True)
    share = known["memory"] * percent // 100
    return Hardware(
        memory=share // (64 * MB) * 64 * MB,
        cores=known["cores"],
        ssd=known["ssd"] if not disk else disk == "ssd",
    )


class Tuned(NamedTuple):
    value: str
    reason: str


class DoesNotFit(ValueError):
    """The connections need more memory than there is; the message has the numbers."""


def tune(hardware: Hardware, *, max_connections: int, version: int) -> dict[str, Tuned]:
    """
    Settings by name, each with its reason, the most important first.

    Raises DoesNotFit when less than 1 MB would be left for a connection to sort in.
    """
    memory, cores = hardware.memory, hardware.cores
    shared_buffers = memory // 4
    workers = max(8, cores)
    # Three per connection: a query may sort or hash in several places, but not all queries do.
    work_mem = (memory - shared_buffers) // (3 * (max_connections + workers))
    if work_mem < MB:
        fits = (memory - shared_buffers) // (3 * MB) - workers
        raise DoesNotFit(
            f"{max_connections} connections leave {work_mem} kB each of PostgreSQL's "
            f"{memory // MB} MB; {max(fits, 0)} fit"
        )
    gather = min(4, ceil(cores / 2))
    big = memory >= 8 * 1024 * MB
    return {
        "shared_buffers": Tuned(_kb(shared_buffers), "a quarter of the memory"),
        "effective_cache_size": Tuned(
            _kb(memory * 3 // 4), "includes the cache of the system; allocates nothing"
        ),
        "maintenance_work_mem": Tuned(
            _kb(min(memory // 16, 2048 * MB)), "a sixteenth, at most 2 GB: VACUUM, CREATE INDEX"
        ),
        "work_mem": Tuned(
            _kb(work_mem), f"the rest, over three sorts of each of {max_connections} connections"
        ),
        "min_wal_size": Tuned("2GB" if big else "1GB", "segments are recycled, not created anew"),
        "max_wal_size": Tuned("8GB" if big else "4GB", "fewer checkpoints under load"),
        "checkpoint_timeout": Tuned(
            "15min", "each page is written whole to the WAL only once between checkpoints"
        ),
        "wal_compression": Tuned(
            "lz4" if version >= 15 else "on", "less WAL after a checkpoint, for little work"
        ),
        "random_page_cost": Tuned(
            "1.1" if hardware.ssd else "4",
            "an SSD seeks in no time" if hardware.ssd else "a rotating disk has to seek",
        ),
        "effective_io_concurrency": Tuned(
            "200" if hardware.ssd else "2", "requests that the disk serves in parallel"
        ),
        "max_worker_processes": Tuned(str(workers), "at least the default"),
        "max_parallel_workers": Tuned(str(cores), "one for each core"),
        "max_parallel_workers_per_gather": Tuned(str(gather), "half the cores, at most 4"),
        "max_parallel_maintenance_workers": Tuned(str(gather), "half the cores, at most 4"),
        "autovacuum_vacuum_cost_limit": Tuned(
            "2000" if hardware.ssd else "200", "vacuum as fast as the disk can bear"
        ),
        "autovacuum_vacuum_scale_factor": Tuned("0.1", "tables are vacuumed before they bloat"),
        "autovacuum_analyze_scale_factor": Tuned("0.05", "the planner's statistics stay fresh"),
    }


def huge_pages(hardware: Hardware) -> int:
    """
    Huge pages of 2 MB to reserve for the shared memory; 0 below 8 GB of shared_buffers.

    With 8 GB, each connection would need 16 MB of page tables. The pages hold a tenth more than
    shared_buffers, for the other structures that PostgreSQL keeps in shared memory.
    """
    shared_buffers = hardware.memory // 4
    return ceil(shared_buffers * 1.1 / (2 * MB)) if shared_buffers >= 8 * 1024 * MB else 0


LOGGING = {
    "log_min_duration_statement": Tuned("1s", "slow statements, with their duration"),
    "log_lock_waits": Tuned("on", "sessions that wait for a lock longer than deadlock_timeout"),
    "log_checkpoints": Tuned("on", "if they come too often, raise max_wal_size"),
    "log_temp_files": Tuned("10MB", "sorts that did not fit into work_mem"),
    "log_autovacuum_min_duration": Tuned("1s", "vacuums that take long"),
}
"""Settings that make the log useful; Debian rotates it every week."""


def plain(value: bool | float | str) -> str:
    """A value as PostgreSQL's documentation writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def literal(value: bool | float | str) -> str:
    """A value as it is written in PostgreSQL's configuration files."""
    if not isinstance(value, str):
        return plain(value)
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"


def _kb(kilobytes: int) -> str:
    """In MB from 16 MB on, where less than 1 MB does not matter; else in kB."""
    return f"{kilobytes // MB}MB" if kilobytes >= 16 * MB else f"{kilobytes}kB"

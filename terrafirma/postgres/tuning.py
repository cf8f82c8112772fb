"""
PostgreSQL's settings for the hardware it runs on.

Rules: PostgreSQL's documentation (Resource Consumption, WAL Configuration, Automatic Vacuuming) and
what pgtune publishes, mostly for its profile "web"; from 8 GB on the WAL of its "oltp". A function
of numbers alone: no host is asked here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from terrafirma.host.facts import HardwareState

MB = 1024  # kB


@dataclass(frozen=True)
class Hardware:
    """What a host has for PostgreSQL."""

    memory: int
    """kB that are PostgreSQL's share of the host."""
    cores: int
    ssd: bool
    """False: a rotating disk."""


def hardware(known: HardwareState | None, percent: int, disk: str) -> Hardware:
    """
    PostgreSQL's share of a host; `disk` is "ssd", "hdd" or "" for what the host says.

    Rounded down to 64 MB: a new kernel that keeps a little more for itself is no reason for a
    restart. A host that does not say what it has counts as one of 1 GB.
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
    Settings by name, each with its reason, in the order in which a reader wants them.

    Raises DoesNotFit when less than 1 MB would be left for a connection to sort in.
    """
    memory, cores = hardware.memory, hardware.cores
    shared_buffers = memory // 4
    workers = max(8, cores)
    # Three: a query may sort or hash in more than one place, and not all do so at once.
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
            _kb(memory * 3 // 4), "what the system caches, too; allocates nothing"
        ),
        "maintenance_work_mem": Tuned(
            _kb(min(memory // 16, 2048 * MB)), "a sixteenth, at most 2 GB: VACUUM, CREATE INDEX"
        ),
        "work_mem": Tuned(
            _kb(work_mem), f"the rest, over three sorts of each of {max_connections} connections"
        ),
        "min_wal_size": Tuned("2GB" if big else "1GB", "segments are recycled, not made anew"),
        "max_wal_size": Tuned("8GB" if big else "4GB", "fewer checkpoints under load"),
        "checkpoint_timeout": Tuned(
            "15min", "between two of them a page is written whole to the WAL once only"
        ),
        "wal_compression": Tuned(
            "lz4" if version >= 15 else "on", "less WAL after a checkpoint, for little work"
        ),
        "random_page_cost": Tuned(
            "1.1" if hardware.ssd else "4",
            "an SSD seeks for nothing" if hardware.ssd else "it seeks",
        ),
        "effective_io_concurrency": Tuned(
            "200" if hardware.ssd else "2", "requests that the disk answers at once"
        ),
        "max_worker_processes": Tuned(str(workers), "at least the default"),
        "max_parallel_workers": Tuned(str(cores), "one for each core"),
        "max_parallel_workers_per_gather": Tuned(str(gather), "half the cores, at most 4"),
        "max_parallel_maintenance_workers": Tuned(str(gather), "half the cores, at most 4"),
        "autovacuum_vacuum_cost_limit": Tuned(
            "2000" if hardware.ssd else "200", "vacuum as fast as the disk bears it"
        ),
        "autovacuum_vacuum_scale_factor": Tuned(
            "0.1", "tables are vacuumed before they are bloated"
        ),
        "autovacuum_analyze_scale_factor": Tuned("0.05", "the planner's picture stays fresh"),
    }


def huge_pages(hardware: Hardware) -> int:
    """
    Pages of 2 MB to set apart for the shared memory; 0 where the page tables are small anyway.

    From 8 GB of shared_buffers on: each connection would need 16 MB of page tables for them. A
    tenth more than shared_buffers, for what else PostgreSQL keeps there.
    """
    shared_buffers = hardware.memory // 4
    return ceil(shared_buffers * 1.1 / (2 * MB)) if shared_buffers >= 8 * 1024 * MB else 0


LOGGING = {
    "log_min_duration_statement": Tuned("1s", "slow statements, with their duration"),
    "log_lock_waits": Tuned("on", "who waits for a lock longer than deadlock_timeout"),
    "log_checkpoints": Tuned("on", "checkpoints that come too often call for more WAL"),
    "log_temp_files": Tuned("10MB", "sorts that did not fit into work_mem"),
    "log_autovacuum_min_duration": Tuned("1s", "vacuums that take long"),
}
"""What helps whoever reads the log; Debian rotates it every week."""


def plain(value: bool | float | str) -> str:
    """A value as PostgreSQL's documentation writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def literal(value: bool | float | str) -> str:
    """A value as a configuration file of PostgreSQL has it."""
    if not isinstance(value, str):
        return plain(value)
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"


def _kb(kilobytes: int) -> str:
    """In the largest unit that loses nothing worth having."""
    return f"{kilobytes // MB}MB" if kilobytes >= 16 * MB else f"{kilobytes}kB"

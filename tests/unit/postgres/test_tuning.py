"""
PostgreSQL's settings for the hardware, compared with numbers that were calculated by hand.

pgtune for its profile "web": https://github.com/le0pard/pgtune,
src/features/configuration/configurationSlice.js. PostgreSQL: "Resource Consumption",
"Write Ahead Log", "Automatic Vacuuming". A comment marks each number that differs from theirs.
"""

from itertools import product
from typing import Any

import pytest

from terrafirma.host.facts import HardwareState
from terrafirma.postgres.tuning import (
    LOGGING,
    DoesNotFit,
    Hardware,
    hardware,
    huge_pages,
    literal,
    tune,
)

GB = 1024 * 1024  # kB

# PostgreSQL's share in GB: a quarter, three quarters and a sixteenth of it. pgtune limits the last
# to 8 GB, and that of autovacuum to 2 GB; here 2 GB is the limit of both.
MEMORY = {
    2: ("512MB", "1536MB", "128MB"),
    8: ("2048MB", "6144MB", "512MB"),
    32: ("8192MB", "24576MB", "2048MB"),
    128: ("32768MB", "98304MB", "2048MB"),
}
# pgtune has 1 GB and 4 GB for "web", 2 GB and 8 GB for "oltp"; ours change at 8 GB of memory.
WAL = {2: ("1GB", "4GB"), 8: ("2GB", "8GB"), 32: ("2GB", "8GB"), 128: ("2GB", "8GB")}
# Cores: max_worker_processes, max_parallel_workers, and both kinds of workers for one statement.
# pgtune sets nothing below 4 cores, and 4 processes for 4 cores; PostgreSQL's default is 8.
CORES = {
    1: ("8", "1", "1"),
    2: ("8", "2", "1"),
    3: ("8", "3", "2"),
    4: ("8", "4", "2"),
    8: ("8", "8", "4"),
    16: ("16", "16", "4"),
    32: ("32", "32", "4"),
}
# Three quarters of the memory over three times 100 connections and the processes: 324, 348 and 396.
WORK_MEM = {
    (2, "8"): "4854kB",
    (2, "16"): "4519kB",
    (2, "32"): "3971kB",
    (8, "8"): "18MB",
    (8, "16"): "17MB",
    (8, "32"): "15887kB",
    (32, "8"): "75MB",
    (32, "16"): "70MB",
    (32, "32"): "62MB",
    (128, "8"): "303MB",
    (128, "16"): "282MB",
    (128, "32"): "248MB",
}
# random_page_cost, effective_io_concurrency, autovacuum_vacuum_cost_limit (the default is 200).
DISKS = {True: ("1.1", "200", "2000"), False: ("4", "2", "200")}


def tuned(
    gb: float = 8, cores: int = 4, *, ssd: bool = True, connections: int = 100, version: int = 17
) -> dict[str, str]:
    host = Hardware(memory=int(gb * GB), cores=cores, ssd=ssd)
    settings = tune(host, max_connections=connections, version=version)
    return {name: setting.value for name, setting in settings.items()}


@pytest.mark.parametrize(("gb", "cores", "ssd"), list(product(MEMORY, CORES, DISKS)))
def test_settings_are_the_published_ones(gb: int, cores: int, ssd: bool) -> None:
    shared_buffers, cache, maintenance = MEMORY[gb]
    processes, parallel, gather = CORES[cores]
    assert tuned(gb, cores, ssd=ssd) == {
        "shared_buffers": shared_buffers,
        "effective_cache_size": cache,
        "maintenance_work_mem": maintenance,
        "work_mem": WORK_MEM[gb, processes],
        "min_wal_size": WAL[gb][0],
        "max_wal_size": WAL[gb][1],
        # PostgreSQL's "WAL Configuration": rarer checkpoints, less WAL, a longer recovery. pgtune
        # leaves the 5 minutes, which come before max_wal_size is reached.
        "checkpoint_timeout": "15min",
        "wal_compression": "lz4",
        "random_page_cost": DISKS[ssd][0],
        "effective_io_concurrency": DISKS[ssd][1],
        "autovacuum_vacuum_cost_limit": DISKS[ssd][2],
        "max_worker_processes": processes,
        "max_parallel_workers": parallel,
        "max_parallel_workers_per_gather": gather,
        "max_parallel_maintenance_workers": gather,
        "autovacuum_vacuum_scale_factor": "0.1",
        "autovacuum_analyze_scale_factor": "0.05",
    }


@pytest.mark.parametrize(
    ("connections", "work_mem"), [(20, "73MB"), (100, "18MB"), (200, "10082kB"), (1000, "2080kB")]
)
def test_more_connections_leave_less_for_each(connections: int, work_mem: str) -> None:
    assert tuned(connections=connections)["work_mem"] == work_mem


def test_a_host_between_two_of_the_table() -> None:
    """12 GB, 16 cores and 200 connections, as in pgtune's form: 9437184 kB over 648."""
    settings = tuned(12, 16, connections=200)
    assert settings["shared_buffers"] == "3072MB"
    assert settings["effective_cache_size"] == "9216MB"
    assert settings["maintenance_work_mem"] == "768MB"
    assert settings["work_mem"] == "14563kB"


def test_the_wal_grows_with_the_memory() -> None:
    assert tuned(7.9375)["max_wal_size"] == "4GB"
    assert tuned(8)["max_wal_size"] == "8GB"


@pytest.mark.parametrize(
    ("gb", "pages"),
    [
        *((2, 0), (8, 0), (31.9375, 0)),
        # 8 GB of shared_buffers are 4096 pages of 2 MB, and a tenth more 4505.6.
        (32, 4506),
        # 16384 pages and 1638.4.
        (128, 18023),
    ],
)
def test_huge_pages_are_for_large_shared_buffers(gb: float, pages: int) -> None:
    assert huge_pages(Hardware(memory=int(gb * GB), cores=4, ssd=True)) == pages


@pytest.mark.parametrize(("version", "method"), [(13, "on"), (14, "on"), (15, "lz4"), (17, "lz4")])
def test_lz4_is_used_from_version_15_on(version: int, method: str) -> None:
    assert tuned(version=version)["wal_compression"] == method


def test_every_setting_has_a_reason_in_one_line() -> None:
    settings = tune(Hardware(8 * GB, 4, True), max_connections=100, version=17) | LOGGING
    for value, reason in settings.values():
        assert value == value.strip() != ""
        assert reason
        assert reason == " ".join(reason.split())


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mb", "cores", "connections", "message"),
    [
        # 288 MB over 324 shares; at 3 MB each, 96 fit, of which 8 are for the worker processes.
        (384, 2, 100, "100 connections leave 910 kB each of PostgreSQL's 384 MB; 88 fit"),
        (384, 16, 100, "100 connections leave 847 kB each of PostgreSQL's 384 MB; 80 fit"),
        (2048, 4, 1000, "1000 connections leave 520 kB each of PostgreSQL's 2048 MB; 504 fit"),
        (64, 2, 100, "100 connections leave 151 kB each of PostgreSQL's 64 MB; 8 fit"),
        (64, 32, 20, "20 connections leave 315 kB each of PostgreSQL's 64 MB; 0 fit"),
        (0, 1, 20, "20 connections leave 0 kB each of PostgreSQL's 0 MB; 0 fit"),
    ],
)
def test_too_many_connections_are_refused_with_numbers(
    mb: int, cores: int, connections: int, message: str
) -> None:
    with pytest.raises(DoesNotFit) as error:
        tuned(mb / 1024, cores, connections=connections)
    assert str(error.value) == message


@pytest.mark.parametrize(("mb", "cores", "fit"), [(384, 2, 88), (384, 16, 80), (2048, 4, 504)])
def test_the_named_number_of_connections_fits_and_no_more(mb: int, cores: int, fit: int) -> None:
    assert tuned(mb / 1024, cores, connections=fit)["work_mem"] == "1024kB"
    with pytest.raises(DoesNotFit, match=rf"; {fit} fit$"):
        tuned(mb / 1024, cores, connections=fit + 1)


# --- PostgreSQL's share of a host -----------------------------------------------------------------


def known(kb: int, *, cores: int = 4, ssd: bool = True) -> HardwareState:
    return HardwareState(memory=kb, cores=cores, ssd=ssd)


@pytest.mark.parametrize(
    ("kb", "percent", "mb"),
    [
        # MemTotal of a test machine with 24 GB: 18079 MB are 282.5 times 64 MB.
        (24684092, 75, 18048),
        (24684092, 90, 21632),
        (24684092, 5, 1152),
        # Nominal 2 GB and 8 GB, minus the kernel's reserve.
        (2014576, 75, 1472),
        (8148804, 75, 5952),
        # Exactly, and one kB less.
        (4 * GB, 50, 2048),
        (4 * GB - 2, 50, 1984),
        (64 * 1024, 75, 0),
    ],
)
def test_the_share_is_rounded_down_to_64_mb(kb: int, percent: int, mb: int) -> None:
    assert hardware(known(kb), percent, "").memory == mb * 1024


def test_a_kernel_that_keeps_a_little_more_changes_nothing() -> None:
    before, after = (hardware(known(kb), 75, "") for kb in (8148804, 8143000))
    assert before == after


@pytest.mark.parametrize(
    ("says", "disk", "ssd"),
    [
        (True, "", True),
        (False, "", False),
        (True, "hdd", False),
        (False, "ssd", True),
        (True, "ssd", True),
        (False, "hdd", False),
    ],
)
def test_the_setting_for_the_disk_overrides_the_host(says: bool, disk: str, ssd: bool) -> None:
    assert hardware(known(8 * GB, ssd=says), 75, disk).ssd is ssd


def test_cores_are_those_of_the_host() -> None:
    assert hardware(known(8 * GB, cores=6), 75, "").cores == 6


def test_a_host_of_unknown_hardware_is_tuned_as_a_small_one() -> None:
    nothing = hardware(None, 75, "")
    assert nothing == Hardware(memory=768 * 1024, cores=1, ssd=True)
    assert tune(nothing, max_connections=100, version=17)["work_mem"].value == "1820kB"
    assert not hardware(None, 75, "hdd").ssd


# --- values in the file ---------------------------------------------------------------------------


def postgresql_value(text: str) -> str:
    """A value of postgresql.conf as the server reads it (GUC_scanstr in guc-file.l)."""
    if not text.startswith("'"):
        return text
    assert text.endswith("'")
    escapes = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
    value, inner = "", text[1:-1]
    while inner:
        if inner.startswith("''"):
            value, inner = value + "'", inner[2:]
        elif inner.startswith("\\"):
            value, inner = value + escapes.get(inner[1:2], inner[1:2]), inner[2:]
        else:
            assert inner[0] != "'"
            value, inner = value + inner[0], inner[1:]
    return value


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (True, "on"),
        (False, "off"),
        (200, "200"),
        (1.5, "1.5"),
        ("64MB", "64MB"),
        ("", ""),
        ("it's", "it's"),
        ("'", "'"),
        ("%m [%p] %q'%u'@%d ", "%m [%p] %q'%u'@%d "),
        ("# no comment", "# no comment"),
        (r"C:\temp", r"C:\temp"),
        ("ends with \\", "ends with \\"),
        (r"\'", r"\'"),
    ],
)
def test_postgresql_reads_each_value_back_unchanged(value: Any, read: str) -> None:
    assert postgresql_value(literal(value)) == read


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (True, "on"),
        (1, "1"),
        (0, "0"),
        (-1, "-1"),
        (0.05, "0.05"),
        ("1s", "'1s'"),
        ("it's", "'it''s'"),
        (r"C:\temp", r"'C:\\temp'"),
        (r"\'", r"'\\'''"),
    ],
)
def test_a_literal(value: Any, written: str) -> None:
    assert literal(value) == written

"""PostgreSQL: pgbench with the tuned settings beside PostgreSQL's own defaults, on one target."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from statistics import median
from typing import NamedTuple

from terrafirma.host.facts import Hardware
from terrafirma.postgres import tuning
from testbed.bench_lib import pyinfra, ssh, target

NAME, PORT = "tf-bench-postgres", 2423
SHARE = 2 * 1024 * tuning.MB  # kB that are to be PostgreSQL's: large beside the default of 128 MB
SCALE_KB = 15 * 1024  # what one unit of pgbench's scale takes, with its index
CLUSTER = "17/main"
CONF = f"/etc/postgresql/{CLUSTER}/conf.d/terrafirma.conf"
PGBENCH = "/usr/lib/postgresql/17/bin/pgbench"
# Prepared statements: what the drivers of applications do (psycopg 3, asyncpg, JDBC, pgx). Else a
# third of the work is to parse and plan the same words again, whatever the settings are.
ROUNDS, CLIENTS = 3, "-c 8 -j 2 -M prepared"
# A round of writes has several of the default's checkpoints, after each of which every page goes
# whole into the WAL once more. Tuned, they come less often than once a round; each round begins
# just after one, which is where most of these whole pages are.
MODES = {"read-only": ("-S", 20), "read-write": ("", 120)}


class Round(NamedTuple):
    tps: float
    """Transactions, by the seconds that they took and those of a checkpoint after them."""
    checkpoints: int
    """During the transactions."""
    wal: float
    """Bytes for each transaction: the same on a busy machine."""


def as_postgres(command: str, stdin: str = "") -> str:
    return ssh(PORT, f"cd / && runuser -u postgres -- {command}", stdin.encode())


def sql(statements: str) -> str:
    return as_postgres("psql -XqAt -v ON_ERROR_STOP=1 bench", statements).strip()


def deploy(percent: int) -> None:
    pyinfra(PORT, "-y", "--data", f"postgres_memory_percent={percent}", "tasks/postgres.py")


def configure(configuration: str, percent: int) -> str:
    """The server, just started, and its shared_buffers."""
    if configuration == "tuned":
        deploy(percent)
    else:
        # What pg_createcluster made is left; a file that does not end in .conf is not read.
        ssh(PORT, f"if test -e {CONF}; then mv {CONF} {CONF}.aside; fi")
    ssh(PORT, "systemctl restart postgresql@17-main")
    return sql("show shared_buffers")


def measure(mode: str) -> Round:
    """
    One round, begun with no dead rows, no page to write, and a cache as full as it gets.

    What it leaves to be written counts, too: larger buffers put off more.
    """
    option, seconds = MODES[mode]
    sql("truncate pgbench_history; vacuum analyze; checkpoint;")
    sql("select pg_prewarm('pgbench_accounts'), pg_prewarm('pgbench_accounts_pkey')")
    sql("select pg_stat_reset_shared('checkpointer'), pg_stat_reset_shared('wal')")
    output = as_postgres(f"{PGBENCH} -n {option} {CLIENTS} -T {seconds} bench")
    checkpoints, wal, rest = sql(
        "select num_timed + num_requested from pg_stat_checkpointer;"
        "select wal_bytes from pg_stat_wal;"
        "select clock_timestamp() as began \\gset\n"
        "checkpoint;"
        "select extract(epoch from clock_timestamp() - :'began'::timestamptz)"
    ).split()
    found = re.search(
        r"actually processed: (\d+).*^tps = ([0-9.]+)", output, re.DOTALL | re.MULTILINE
    )
    if not found:
        sys.exit(f"bench: pgbench answered {output[-2000:]}")
    done = int(found[1])
    return Round(
        tps=done / (done / float(found[2]) + float(rest)),
        checkpoints=int(checkpoints),
        wal=int(wal) / done,
    )


def share() -> tuple[int, int]:
    """The per cent of the target's memory that are nearest to SHARE, and how many kB that is."""
    fact = Hardware()
    known = fact.process(
        ssh(PORT, fact.command("/var/lib/postgresql").get_raw_value()).splitlines()
    )
    # The setting takes 5 to 90; a small machine keeps the default's quarter for the rest.
    percent = min(75, max(5, round(100 * SHARE / known["memory"])))
    return percent, tuning.hardware(known, percent, "").memory


def bench() -> None:
    with target(NAME, PORT):
        percent, memory = share()
        deploy(percent)
        scale = memory // 2 // SCALE_KB
        as_postgres("createdb bench")
        as_postgres(f"{PGBENCH} -i -q -s {scale} bench")
        sql("create extension pg_prewarm")
        rounds: dict[tuple[str, str], list[Round]] = defaultdict(list)
        buffers = {}
        for number in range(ROUNDS):
            # Each goes first in turn, so that neither has the older tables or the quieter machine.
            order = ("default", "tuned") if number % 2 == 0 else ("tuned", "default")
            for configuration in order:
                buffers[configuration] = configure(configuration, percent)
                for mode in MODES:
                    result = measure(mode)
                    rounds[mode, configuration].append(result)
                    print(f"round {number + 1}: {mode}, {configuration}: {result}", file=sys.stderr)
        print(
            f"pgbench, {CLIENTS}, scale {scale}; {memory // tuning.MB} MB are PostgreSQL's; "
            f"shared_buffers: default {buffers['default']}, tuned {buffers['tuned']}"
        )
        for mode in MODES:
            base = median(each.tps for each in rounds[mode, "default"])
            for configuration in ("default", "tuned"):
                report(f"{mode}, {configuration}", rounds[mode, configuration], base)


def report(what: str, rounds: list[Round], base: float) -> None:
    tps = [each.tps for each in rounds]
    print(
        f"{f'pgbench {what}':38} {median(tps):6.0f} tps {median(tps) / base:.2f} of the default"
        f"   ({min(tps):.0f} to {max(tps):.0f};"
        f" checkpoints {' '.join(str(each.checkpoints) for each in rounds)};"
        f" WAL {median(each.wal for each in rounds):.0f} bytes each)",
        flush=True,
    )
